/* bench moe: forward and backward of one mixture-of-experts layer, from random weights, the experts
 * spread over the ranks as far as their number divides. */
#include "models/moe.h"
#include "core/blas.h"
#include "core/param.h"
#include "core/rng.h"
#include "dist/collective.h"
#include "dist/topology.h"
#include "jobs/bench.h"

#include <math.h>
#include <string.h>

typedef struct moe_config {
    int64_t tokens, width, hidden, experts, k, chunks, threads, warmup, repeats;
    const char *router;
    double probability;
    int solver, gemm, wire, hierarchy;
} moe_config;

static const bk_option options[] = {
    BK_OPTION_I64(moe_config, tokens, 4096, 1, 1 << 24, "tokens of all ranks together, T"),
    BK_OPTION_I64(moe_config, width, 512, 1, 65536, "channels, C"),
    BK_OPTION_I64(moe_config, hidden, 0, 0, 1048576, "hidden width of an expert; 0 = 4 x width"),
    BK_OPTION_I64(moe_config, experts, 8, 1, 65536, "experts, E"),
    BK_OPTION_I64(moe_config, k, 2, 1, 65536, "experts of a token"),
    BK_OPTION_I64(moe_config, chunks, 1, 1, 64, "pieces of a rank's experts (model.moe.chunks)"),
    BK_OPTION_CHOICE(moe_config, wire, 0, "fp32|bf16", "rows that travel (model.moe.wire)"),
    BK_OPTION_CHOICE(moe_config, hierarchy, 0, "auto|flat|two_level",
                     "ways between nodes (model.moe.hierarchy)"),
    BK_OPTION_TEXT(moe_config, router, "topk", "router (birkhoff kinds router)"),
    BK_OPTION_F64(moe_config, probability, -1.0, -1.0, 1.0,
                  "share of the steps that route by transport (ssr); -1 = the router's default"),
    BK_OPTION_CHOICE(moe_config, solver, 0, "default|sinkhorn|newton",
                     "of the transport part (sinkhorn, ssr)"),
    BK_OPTION_CHOICE(moe_config, gemm, 0, "auto|onednn|cblas", "library of matrix products"),
    BK_OPTION_I64(moe_config, threads, 0, 0, 4096,
                  "threads a rank; 0 = OMP_NUM_THREADS, or cores bound / ranks on the node"),
    BK_OPTION_I64(moe_config, warmup, 2, 0, BK_BENCH_REPEATS, "runs that do not count"),
    BK_OPTION_I64(moe_config, repeats, 5, 1, BK_BENCH_REPEATS, "runs; the median counts"),
    BK_OPTION_END,
};

/* ---- the router ---- */

static bk_status find_router(const moe_config *c, const bk_router_kind **out)
{
    const char *names[64] = {0};
    for (int i = 0; bk_routers[i] && i < 63; i++)
        names[i] = bk_routers[i]->name;
    *out = bk_router_find(c->router);
    return *out ? BK_OK : bk_unknown_kind("router", c->router, NULL, names);
}

/* The router's options with that solver and probability; below 0: its default. */
static bk_status router_config(bk_arena *arena, const bk_router_kind *router, int solver,
                               double probability, void **out)
{
    const char *path = bk_arena_printf(arena, "router.%s", router->name);
    const bk_option *const tables[] = {router->options, NULL};
    bk_value *map = bk_value_new(arena, BK_MAP, "command line", 0);
    if (probability >= 0.0)
        BK_TRY(bk_value_set(arena, map, "probability", bk_arena_printf(arena, "%g", probability)));
    if (solver > 0)
        BK_TRY(bk_value_set(arena, map, "solver", solver == 1 ? "sinkhorn" : "newton"));
    *out = bk_arena_zalloc(arena, router->config_size);
    BK_TRY(bk_options_read(router->options, *out, map, path, arena));
    return bk_options_unknown(map, path, tables, NULL);
}

/* The probability in use; -1 for a router without. */
static double probability_of(const bk_router_kind *router, const moe_config *c)
{
    for (const bk_option *o = router->options; o->name; o++)
        if (strcmp(o->name, "probability") == 0)
            return c->probability >= 0.0 ? c->probability : o->preset;
    return -1.0;
}

/* ---- the layer ---- */

enum { WEIGHTS = 4 }; /* w1, b1, w2, b2 */

typedef struct layer {
    bk_tape tape;
    bk_slab *slab;
    bk_parameter *gate, *noise_gate; /* noise_gate: of routers with one, else NULL */
    bk_parameter **weight[WEIGHTS];  /* [count] */
    double *bias;                    /* [E] the router's state */
    bk_moe_args args;
    bk_moe_state state;
    float *x, *dy; /* [T,C] of this rank */
    int64_t rows, width;
    int64_t warmup, done;
    double cpu;                    /* seconds of this process when the warm-up was over */
    bk_traffic before;             /* what it had sent then */
    double seconds[BK_MOE_PHASES]; /* of the runs that count, summed */
} layer;

static float *filled(bk_arena *arena, int64_t first, int64_t count, uint64_t tag)
{
    float *x = BK_NEW(arena, float, count);
    for (int64_t i = 0; i < count; i++)
        x[i] = (float)bk_fill((uint64_t)(first + i), tag, -1.0, 1.0);
    return x;
}

static bk_parameter *declare(layer *y, const char *name, int expert, int64_t rows, int64_t cols)
{
    return bk_slab_declare(
        y->slab, &(bk_parameter){.name = name,
                                 .global_shape = {expert < 0 ? 1 : y->args.experts, rows, cols},
                                 .global_dims = 3,
                                 .global_offset = expert < 0 ? 0 : expert * rows * cols,
                                 .shape = {rows, cols},
                                 .dims = cols > 1 ? 2 : 1,
                                 .uses = 1,
                                 .expert = expert,
                                 .init = BK_INIT_NORMAL,
                                 .init_scale = 1.0 / sqrt((double)cols)});
}

static void declare_weights(layer *y, bk_arena *arena)
{
    static const char *const name[WEIGHTS] = {"w1", "b1", "w2", "b2"};
    int64_t hidden = y->args.hidden;
    y->slab = bk_slab_new(arena);
    y->gate = declare(y, "gate", -1, y->args.experts, y->width);
    if (y->args.router->flags & BK_ROUTER_NOISE_GATE)
        y->noise_gate = declare(y, "noise_gate", -1, y->args.experts, y->width);
    for (int w = 0; w < WEIGHTS; w++) {
        y->weight[w] = BK_NEW(arena, bk_parameter *, y->args.count);
        for (int64_t e = 0; e < y->args.count; e++)
            y->weight[w][e] =
                declare(y, name[w], (int)(y->args.first + e), w < 2 ? hidden : y->width,
                        w % 2    ? 1
                        : w == 0 ? y->width
                                 : hidden);
    }
    bk_slab_layout(y->slab, 1 << 20, 16);
    bk_slab_want_gradients(y->slab);
    bk_slab_initialise(y->slab, 1);
}

static void open_layer(layer *y, bk_arena *arena, const moe_config *c, const bk_world *world)
{
    bk_lanes lanes = bk_lanes_of_rank(world->size, c->tokens, world->rank, world->size);
    y->tape = (bk_tape){.arena = bk_arena_new("step"),
                        .scratch = bk_arena_new("scratch"),
                        .dtype = BK_F32,
                        .lanes = lanes,
                        .training = true,
                        .recording = true,
                        .seed = 1};
    y->rows = bk_lanes_samples(&lanes);
    y->width = c->width;
    y->warmup = c->warmup;
    y->bias = BK_ZNEW(arena, double, c->experts);
    y->args = (bk_moe_args){.router = y->args.router,
                            .router_config = y->args.router_config,
                            .experts = c->experts,
                            .k = c->k,
                            .hidden = c->hidden > 0 ? c->hidden : 4 * c->width,
                            .activation = BK_GELU,
                            .bias = y->bias,
                            .valid = c->tokens,
                            .first_token = bk_lanes_first_sample(&lanes),
                            .ep = world->ep,
                            .chunks = c->chunks,
                            .wire_bf16 = c->wire != 0,
                            .hierarchy = (bk_moe_hierarchy)c->hierarchy,
                            .route = bk_comm_reducer(world->route),
                            .state = &y->state};
    bk_moe_experts_of(bk_comm_rank(world->ep), c->experts, world->expert, &y->args.first,
                      &y->args.count);
    bk_moe_state_init(&y->state, arena, c->experts);
    y->x = filled(arena, y->args.first_token * c->width, y->rows * c->width, 1);
    y->dy = filled(arena, y->args.first_token * c->width, y->rows * c->width, 2);
    declare_weights(y, arena);
}

static void close_layer(layer *y)
{
    bk_arena_free(y->tape.arena);
    bk_arena_free(y->tape.scratch);
}

static bk_tensor **leaves(layer *y, int which)
{
    bk_tensor **list = BK_NEW(y->tape.arena, bk_tensor *, y->args.count);
    for (int64_t e = 0; e < y->args.count; e++)
        list[e] = bk_tape_parameter(&y->tape, y->weight[which][e]);
    return list;
}

static bk_status forward_backward(void *context)
{
    layer *y = context;
    if (y->done == y->warmup) {
        y->cpu = bk_bench_cpu_seconds();
        y->before = bk_traffic_of(BK_TRAFFIC_EXPERT);
    }
    bk_tape_begin(&y->tape);
    y->tape.step = y->done;
    bk_moe_args a = y->args;
    a.x = bk_tensor_wrap(y->tape.arena, BK_F32, BK_SHAPE(y->rows, y->width), y->x);
    a.x->needs_grad = true;
    a.gate = bk_tape_parameter(&y->tape, y->gate);
    a.noise_gate = y->noise_gate ? bk_tape_parameter(&y->tape, y->noise_gate) : NULL;
    a.w1 = leaves(y, 0);
    a.b1 = leaves(y, 1);
    a.w2 = leaves(y, 2);
    a.b2 = leaves(y, 3);
    bk_moe_result result = bk_moe(&y->tape, &a);
    result.y->grad = y->dy;
    bk_tape_backward_seeded(&y->tape);
    if (result.route.next)
        memcpy(y->bias, result.route.next, (size_t)a.experts * sizeof *y->bias);
    for (int i = 0; y->done >= y->warmup && i < BK_MOE_PHASES; i++)
        y->seconds[i] += y->state.seconds[i];
    y->done++;
    return BK_OK;
}

/* ---- the transport part of a router ---- */

typedef struct routing {
    const bk_router_kind *router;
    bk_route_args args;
    int64_t iterations;
    bk_traffic sent;
} routing;

/* From zero potentials (no bias is given): a warm start costs less. */
static bk_status route(void *context)
{
    routing *r = context;
    bk_route out = {0};
    bk_traffic before = bk_traffic_of(BK_TRAFFIC_ROUTE);
    bk_arena_reset(r->args.arena);
    r->router->route(&r->args, &out);
    r->iterations = out.iterations;
    r->sent = bk_traffic_minus(bk_traffic_of(BK_TRAFFIC_ROUTE), before);
    return BK_OK;
}

/* Logits that prefer the later experts: plain routing would be far from balance. */
static double *skewed_logits(const layer *y, bk_arena *arena)
{
    int64_t experts = y->args.experts, first = y->args.first_token * experts;
    double *h = BK_NEW(arena, double, y->rows *experts);
    for (int64_t i = 0; i < y->rows * experts; i++)
        h[i] = 3.0 * bk_fill((uint64_t)(first + i), 3, -1.7, 1.7) +
               4.5 * (double)(i % experts) / (double)experts;
    return h;
}

static bk_status time_route(routing *r, const moe_config *c, const bk_comm *comm, bk_arena *arena,
                            double probability, double *seconds)
{
    void *config;
    BK_TRY(router_config(arena, r->router, c->solver, probability, &config));
    r->args.config = config;
    return bk_bench_time(comm, 1, c->repeats, route, r, seconds);
}

/* What the transport steps add to the mean step. */
static bk_status measure_transport(layer *y, const moe_config *c, const bk_world *world,
                                   bk_arena *arena, bk_bench_result *out)
{
    double with, without, probability = probability_of(y->args.router, c);
    if (probability < 0.0)
        return BK_OK;
    routing r = {.router = y->args.router,
                 .args = {.kind = y->args.router,
                          .logits = skewed_logits(y, arena),
                          .tokens = y->rows,
                          .experts = c->experts,
                          .k = c->k,
                          .valid = c->tokens,
                          .first_token = y->args.first_token,
                          .reducer = y->args.route,
                          .lanes = &y->tape.lanes,
                          .training = true,
                          .arena = y->tape.arena,
                          .scratch = y->tape.scratch}};
    BK_TRY(time_route(&r, c, world->ctl, arena, 0.0, &without));
    BK_TRY(time_route(&r, c, world->ctl, arena, 1.0, &with));
    bk_bench_add(out, "transport", "seconds", with - without);
    bk_bench_add(out, "transport", "iterations", (double)r.iterations);
    bk_bench_add(out, "transport", "messages", (double)r.sent.messages);
    bk_bench_add(out, "transport", "bytes", (double)r.sent.bytes);
    bk_bench_add(out, "transport", "probability", probability);
    bk_bench_add(out, "transport", "share", probability * (with - without) / out->seconds);
    return BK_OK;
}

/* ---- the bench ---- */

static void add_phases(layer *y, const moe_config *c, const bk_world *world, bk_bench_result *out)
{
    static const char *const name[BK_MOE_PHASES] = {"route", "pack", "exchange", "gemm", "combine"};
    bk_max_f64(world->ctl, BK_MOE_PHASES, y->seconds);
    for (int i = 0; i < BK_MOE_PHASES; i++)
        bk_bench_add(out, "phase", name[i], y->seconds[i] / (double)c->repeats);
}

/* Of one run and the rank that sends most. */
static void add_messages(const layer *y, const moe_config *c, const bk_world *world,
                         bk_bench_result *out)
{
    bk_traffic sent = bk_traffic_minus(bk_traffic_of(BK_TRAFFIC_EXPERT), y->before);
    int64_t most[] = {sent.bytes, sent.messages, sent.far};
    static const char *const name[] = {"bytes", "messages", "messages_between_nodes"};
    bk_max_i64(world->ctl, 3, most);
    for (int i = 0; i < 3; i++)
        bk_bench_add(out, "communication", name[i], (double)most[i] / (double)c->repeats);
}

static bk_status measure(layer *y, const moe_config *c, const bk_world *world, bk_arena *arena,
                         bk_bench_result *out)
{
    BK_TRY(bk_bench_time(world->ctl, c->warmup, c->repeats, forward_backward, y, &out->seconds));
    double cpu = bk_bench_cpu_since(world->ctl, y->cpu);
    double products = 2.0 * (double)(c->k * y->args.hidden) + (double)c->experts;
    out->rate = 6.0 * (double)(c->tokens * c->width) * products / out->seconds;
    out->limit = bk_bench_peak(world->ctl);
    out->library = bk_blas_description();
    bk_bench_add(out, NULL, "tokens_per_second", (double)c->tokens / out->seconds);
    bk_bench_add(out, NULL, "cpu_seconds", cpu / (double)c->repeats);
    bk_bench_add(out, NULL, "expert_parallel", world->expert);
    add_phases(y, c, world, out);
    add_messages(y, c, world, out);
    return measure_transport(y, c, world, arena, out);
}

static bk_status check(const moe_config *c, bk_arena *arena, bk_moe_args *a)
{
    void *config;
    if (c->k > c->experts)
        return bk_fail(BK_USAGE, "k=%lld of experts=%lld (bench.moe): use fewer or have more",
                       (long long)c->k, (long long)c->experts);
    BK_TRY(find_router(c, &a->router));
    BK_TRY(router_config(arena, a->router, c->solver, c->probability, &config));
    a->router_config = config;
    return a->router->check ? a->router->check(config, c->experts, c->k) : BK_OK;
}

static bk_status run(bk_context *context, const void *config, bk_bench_result *out)
{
    const moe_config *c = config;
    bk_moe_args a = {0};
    bk_world *world;
    BK_TRY(check(c, context->arena, &a));
    BK_TRY(bk_blas_setup(c->threads > 0 ? (int)c->threads : bk_topology_threads(),
                         (bk_gemm_library)c->gemm));
    BK_TRY(bk_world_open(context->arena, bk_common_degree(bk_mpi_size(), c->experts), &world));
    *out = (bk_bench_result){.unit = "FLOP/s", .ranks = world->size, .threads = bk_blas_threads()};
    layer y = {.args = a};
    open_layer(&y, context->arena, c, world);
    bk_status status = measure(&y, c, world, context->arena, out);
    close_layer(&y);
    bk_world_close(world);
    return status;
}

const bk_bench bk_bench_moe = {
    .name = "moe",
    .summary = "forward and backward of a mixture-of-experts layer, and where its time goes",
    .options = options,
    .config_size = sizeof(moe_config),
    .run = run,
};
