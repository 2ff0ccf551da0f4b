/* Operator moe: the mixture-of-experts layer y[T,C], tokens split over the ranks, experts sharded.
 */
#include "models/moe.h"

#include "dist/collective.h"
#include "jobs/op/routing.h"

#include <string.h>

typedef struct moe_settings {
    routing_settings routing;
    const char *router;
    int activation, wire, hierarchy;
    int64_t expert, chunks;
    double max_receive_factor;
} moe_settings;

static bk_status choose(const bk_value *given, bk_operator *op);

static const bk_option settings[] = {
    BK_OPTION_TEXT(moe_settings, router, "topk", "kind of the router; its options follow"),
    ROUTING_OPTIONS(moe_settings),
    BK_OPTION_CHOICE(moe_settings, activation, BK_GELU, "gelu|gelu_tanh|relu|silu",
                     "of the experts"),
    BK_OPTION_I64(moe_settings, expert, 0, 0, 65536,
                  "expert-parallel degree; 0 = the largest that fits"),
    BK_OPTION_F64(moe_settings, max_receive_factor, 0.0, 0.0, 1e9,
                  "most rows of a rank, in even shares: at least 1; 0 = any number"),
    BK_OPTION_CHOICE(moe_settings, wire, 0, "fp32|bf16",
                     "rows between tokens and experts (model.moe.wire)"),
    BK_OPTION_CHOICE(moe_settings, hierarchy, 0, "auto|flat|two_level",
                     "ways between nodes (model.moe.hierarchy)"),
    BK_OPTION_I64(moe_settings, chunks, 1, 1, 64, "pieces of a rank's experts (model.moe.chunks)"),
    BK_OPTION_END,
};

/* ---- checks ---- */

static int64_t degree(const bk_operator_call *c)
{
    int64_t asked = ((const moe_settings *)c->own)->expert, size = c->world->size;
    for (int64_t ep = size; asked == 0 && ep >= 1; ep--)
        if (size % ep == 0 && ep <= c->axis['E'])
            return ep;
    return asked;
}

static const char *const shared_names[] = {"shared_w1", "shared_w2", "shared_b1", "shared_b2",
                                           "shared_gate"};

/* The two maps of the shared expert come together, and the rest only with them. */
static bk_status check_shared(const bk_operator_call *c)
{
    for (size_t i = 0; i < sizeof shared_names / sizeof *shared_names; i++)
        for (int map = 0; map < 2; map++)
            if (bk_operator_given(c, shared_names[i]) && !bk_operator_given(c, shared_names[map]))
                return bk_fail(BK_USAGE, "%s is given without %s (%s): give both", shared_names[i],
                               shared_names[map], c->in);
    return BK_OK;
}

static bk_status check(bk_operator_call *c)
{
    int64_t ep = degree(c), experts = c->axis['E'];
    if (c->world->size % ep != 0)
        return bk_fail(BK_USAGE,
                       "expert=%lld does not divide %d ranks (birkhoff op moe): choose a "
                       "divisor",
                       (long long)ep, c->world->size);
    if (ep > experts)
        return bk_fail(BK_USAGE, "expert=%lld of %lld experts (%s): use at most %lld",
                       (long long)ep, (long long)experts, c->in, (long long)experts);
    double most = ((const moe_settings *)c->own)->max_receive_factor;
    if (most > 0.0 && most < 1.0)
        return bk_fail(BK_USAGE,
                       "max_receive_factor=%g is below the even share (birkhoff op moe): use 0 or "
                       "at least 1",
                       most);
    BK_TRY(check_shared(c));
    return routing_check(c, c->op.plug_in);
}

/* ---- experts: w1, b1, w2, b2 cut along the first axis ---- */

enum { W1, B1, W2, B2, WEIGHTS };
static const char *const weight_names[WEIGHTS] = {"w1", "b1", "w2", "b2"};

/* One leaf for each own expert; NULL when the array is not given. */
static bk_tensor **leaves(bk_operator_call *c, const char *name, int64_t first, int64_t count)
{
    const bk_tensor *all = bk_operator_input(c, name);
    if (!all)
        return NULL;
    bk_tensor **list = BK_NEW(c->arena, bk_tensor *, count);
    size_t bytes = (size_t)(bk_count(all) / all->shape[0]) * bk_dtype_size(all->dtype);
    for (int64_t e = 0; e < count; e++) {
        list[e] = bk_tensor_wrap(c->arena, all->dtype, all->dims - 1, all->shape + 1,
                                 (char *)all->data + (size_t)(first + e) * bytes);
        list[e]->needs_grad = c->backward;
    }
    return list;
}

/* Own experts, summed over their replicas; then those of the whole expert-parallel group. */
static bk_tensor *gather_gradient(bk_operator_call *c, const bk_world *world, const bk_tensor *all,
                                  bk_tensor **leaf, int64_t count)
{
    int64_t one = bk_count(all) / all->shape[0], shape[BK_MAX_DIMS];
    size_t bytes = (size_t)one * bk_dtype_size(all->dtype);
    memcpy(shape, all->shape, sizeof shape);
    shape[0] = count;
    bk_tensor *own = bk_tensor_new(c->arena, all->dtype, all->dims, shape);
    for (int64_t e = 0; e < count; e++)
        memcpy((char *)own->data + (size_t)e * bytes, bk_grad(&c->tape, leaf[e]), bytes);
    bk_operator_sum_ranks(world->edp, all->dtype, count * one, own->data, c->tape.scratch);
    return bk_operator_gather(world->ep, c->arena, own);
}

/* ---- run ---- */

static void seed_losses(bk_operator_call *c, const bk_moe_result *m)
{
    const routing_settings *s = &((const moe_settings *)c->own)->routing;
    if (m->aux)
        routing_seed(c, "aux", s->aux_weight, bk_grad(&c->tape, m->aux));
    if (m->z)
        routing_seed(c, "z", s->z_weight, bk_grad(&c->tape, m->z));
}

static void backward(bk_operator_call *c, const bk_world *world, const bk_moe_args *a,
                     const bk_moe_result *m)
{
    bk_tensor **const leaf[WEIGHTS] = {a->w1, a->b1, a->w2, a->b2};
    bk_operator_seed_tape(c, "y", m->y);
    seed_losses(c, m);
    bk_tape_backward_seeded(&c->tape);
    for (int i = 0; i < WEIGHTS; i++)
        if (leaf[i])
            c->gradient[bk_operator_find(c->op.input, weight_names[i])] =
                gather_gradient(c, world, bk_operator_input(c, weight_names[i]), leaf[i], a->count);
}

static const bk_moe_shared *shared_of(bk_operator_call *c)
{
    bk_moe_shared *shared = BK_NEW(c->arena, bk_moe_shared, 1);
    *shared = (bk_moe_shared){.w1 = bk_operator_input(c, "shared_w1"),
                              .b1 = bk_operator_input(c, "shared_b1"),
                              .w2 = bk_operator_input(c, "shared_w2"),
                              .b2 = bk_operator_input(c, "shared_b2"),
                              .gate = bk_operator_input(c, "shared_gate")};
    return shared;
}

static bk_moe_args args_of(bk_operator_call *c, const bk_world *world)
{
    const moe_settings *s = c->own;
    bk_moe_args a = {.x = bk_operator_input(c, "x"),
                     .gate = bk_operator_input(c, "gate"),
                     .noise_gate = bk_operator_input(c, "noise_gate"),
                     .experts = c->axis['E'],
                     .k = s->routing.k,
                     .hidden = c->axis['F'],
                     .activation = (bk_activation)s->activation,
                     .router = c->op.plug_in,
                     .router_config = c->config,
                     .bias = routing_bias(c, c->op.plug_in),
                     .noise = routing_noise(c),
                     .blocks = routing_blocks(c),
                     .capacity = routing_capacity(c),
                     .max_receive_factor = s->max_receive_factor,
                     .aux = (bk_moe_aux)s->routing.aux,
                     .z = s->routing.z,
                     .first_token = bk_operator_first_row(c),
                     .layer = (int)s->routing.layer,
                     .ep = world->ep,
                     .chunks = s->chunks,
                     .wire_bf16 = s->wire != 0,
                     .hierarchy = (bk_moe_hierarchy)s->hierarchy,
                     .route = bk_comm_reducer(world->route),
                     .attributes = &c->attributes};
    if (bk_operator_given(c, "shared_w1"))
        a.shared = shared_of(c);
    a.mask = bk_operator_mask(c, &a.valid);
    bk_moe_experts_of(bk_comm_rank(world->ep), a.experts, world->expert, &a.first, &a.count);
    bk_tensor **list[WEIGHTS];
    for (int i = 0; i < WEIGHTS; i++)
        list[i] = leaves(c, weight_names[i], a.first, a.count);
    a.w1 = list[W1];
    a.b1 = list[B1];
    a.w2 = list[W2];
    a.b2 = list[B2];
    return a;
}

static bk_status run_layer(bk_operator_call *c, const bk_world *world)
{
    const routing_settings *s = &((const moe_settings *)c->own)->routing;
    bk_moe_state state = {0};
    bk_moe_args a = args_of(c, world);
    bk_moe_state_init(&state, c->arena, a.experts);
    a.state = &state;
    c->tape.training = s->training;
    c->tape.seed = (uint64_t)s->seed;
    c->tape.step = s->step;
    bk_moe_result m = bk_moe(&c->tape, &a);
    BK_TRY(c->tape.status);
    bk_operator_output(c, "y", m.y);
    routing_output(c, a.router, &state, &m.route, a.bias);
    if (m.aux)
        routing_output_loss(c, "aux", m.aux->data);
    if (m.z)
        routing_output_loss(c, "z", m.z->data);
    if (s->training) /* the layer counts what it trains on */
        routing_figures(c, &state, &m.route);
    if (c->backward)
        backward(c, world, &a, &m);
    return BK_OK;
}

static bk_status run(bk_operator_call *c)
{
    bk_world *world;
    BK_TRY(bk_world_open(c->arena, (int)degree(c), &world));
    bk_status status = run_layer(c, world);
    bk_world_close(world);
    return status;
}

/* ---- the table ---- */

static const bk_operator moe = {
    .name = "moe",
    .summary = "mixture-of-experts layer, experts sharded over the ranks",
    .kind = "moe",
    .rows = 'T',
    .input =
        {
            {.name = "x", .axes = "TC", .type = BK_OPERATOR_REAL, .differentiable = true},
            {.name = "gate", .axes = "EC", .type = BK_OPERATOR_REAL, .differentiable = true},
            {.name = "w1", .axes = "EFC", .type = BK_OPERATOR_REAL, .differentiable = true},
            {.name = "b1",
             .axes = "EF",
             .type = BK_OPERATOR_REAL,
             .optional = true,
             .differentiable = true},
            {.name = "w2", .axes = "ECF", .type = BK_OPERATOR_REAL, .differentiable = true},
            {.name = "b2",
             .axes = "EC",
             .type = BK_OPERATOR_REAL,
             .optional = true,
             .differentiable = true},
        },
    .output = {{.name = "y", .axes = "TC", .type = BK_OPERATOR_REAL, .differentiable = true}},
    .own_options = settings,
    .own_size = sizeof(moe_settings),
    .choose = choose,
    .check = check,
    .examine = routing_examine,
    .run = run,
};

/* ---- the router that is asked for ---- */

/* Weights of the shared expert, S = its hidden width. */
static void add_shared(bk_operator *op)
{
    static const char *const axes[] = {"SC", "CS", "S", "C", "C"};
    for (size_t i = 0; i < sizeof axes / sizeof *axes; i++)
        bk_operator_add(op->input, (bk_operator_array){.name = shared_names[i],
                                                       .axes = axes[i],
                                                       .type = BK_OPERATOR_REAL,
                                                       .optional = true,
                                                       .differentiable = true});
}

static void use_router(const bk_router_kind *kind, bk_operator *op)
{
    *op = moe;
    op->plug_in = kind;
    op->options = kind->options;
    op->size = kind->config_size;
    if (kind->flags & BK_ROUTER_NOISE_GATE)
        bk_operator_add(op->input, (bk_operator_array){.name = "noise_gate",
                                                       .axes = "EC",
                                                       .type = BK_OPERATOR_REAL,
                                                       .differentiable = true});
    add_shared(op);
    routing_add_inputs(kind, op);
    routing_add_outputs(kind, false, op);
}

static bk_status choose(const bk_value *given, bk_operator *op)
{
    const bk_value *router = bk_value_get(given, "router");
    const bk_router_kind *kind = bk_router_find(router && router->text ? router->text : "topk");
    const char *names[64] = {0};
    for (int i = 0; bk_routers[i] && i < 63; i++)
        names[i] = bk_routers[i]->name;
    if (kind) {
        use_router(kind, op);
        return routing_check_options(given, op, NULL);
    }
    const char *text = router->text, *near = bk_nearest(text, names);
    return bk_fail(BK_USAGE, "unknown router '%s'%s%s%s: birkhoff kinds router lists them", text,
                   near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
}

bool bk_operator_moe(int index, bk_arena *arena, bk_operator *op)
{
    (void)arena;
    if (index > 0)
        return false;
    use_router(bk_router_find("topk"), op);
    return true;
}
