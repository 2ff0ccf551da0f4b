/* bench sinkd: the SinKD loss of a global batch and its gradient.  The work that counts is that of
 * the cost matrix, B^2 V elements forward and as many backward. */
#include "core/blas.h"
#include "core/log.h"
#include "core/rng.h"
#include "core/tape.h"
#include "dist/collective.h"
#include "dist/topology.h"
#include "jobs/bench.h"
#include "losses/loss.h"
#include "losses/sinkd_kernel.h"

#include <math.h>

typedef struct sinkd_config {
    int64_t rows, vocabulary, iterations, top_k, threads, warmup, repeats;
    double epsilon;
    const char *gradient;
    bool debias;
} sinkd_config;

static const bk_option options[] = {
    BK_OPTION_I64(sinkd_config, rows, 256, 1, 1 << 20, "rows B of the global batch"),
    BK_OPTION_I64(sinkd_config, vocabulary, 50257, 1, 1 << 30, "classes V"),
    BK_OPTION_F64(sinkd_config, epsilon, 0.1, 1e-3, 1e3, "entropic regularisation"),
    BK_OPTION_I64(sinkd_config, iterations, 20, 1, 10000, "normalisations of rows and columns"),
    BK_OPTION_TEXT(sinkd_config, gradient, "unrolled", "unrolled, envelope or implicit"),
    BK_OPTION_BOOL(sinkd_config, debias, false, "three matchings forward, two back"),
    BK_OPTION_I64(sinkd_config, top_k, 0, 0, 1 << 30, "classes of a teacher row; 0 = all"),
    BK_OPTION_I64(sinkd_config, threads, 0, 0, 4096,
                  "threads a rank; 0 = OMP_NUM_THREADS, or cores bound / ranks on the node"),
    BK_OPTION_I64(sinkd_config, warmup, 1, 0, BK_BENCH_REPEATS, "runs that do not count"),
    BK_OPTION_I64(sinkd_config, repeats, 5, 1, BK_BENCH_REPEATS, "runs; the median counts"),
    BK_OPTION_END,
};

/* ---- the limit ---- */

/* Elements/s of minima and additions in registers on all threads of a rank, best of a few runs. */
static double min_add_limit(void)
{
    double best = 0.0;
    for (int i = 0; i < 5; i++) {
        double start = bk_seconds(), count = bk_sinkd_of(BK_F32)->min_add(400000);
        best = fmax(best, count / (bk_seconds() - start));
    }
    return best * bk_blas_threads();
}

/* ---- loss and gradient ---- */

typedef struct work {
    const bk_world *world;
    bk_tape tape;
    int64_t vocabulary, rows, own; /* rows of all ranks, and of this one */
    float *student, *teacher;      /* [own,V] */
    const void *config;            /* of the loss */
    double loss;
    int64_t runs, warmup;
    double cpu;        /* seconds of this process when the warm-up was over */
    double seconds[2]; /* since then on this rank, forward and backward */
} work;

/* Logits in [-8,8), the same for any number of ranks. */
static float *fill(bk_arena *arena, const work *w, uint64_t tag)
{
    int64_t count = w->own * w->vocabulary;
    uint64_t first = (uint64_t)(bk_lanes_first_sample(&w->tape.lanes) * w->vocabulary);
    float *x = BK_NEW(arena, float, count);
    for (int64_t i = 0; i < count; i++)
        x[i] = (float)bk_fill(first + (uint64_t)i, tag, -8.0, 8.0);
    return x;
}

static void observe(void *context, const bk_op *op, bool backward, double seconds)
{
    work *w = context;
    (void)op;
    if (w->runs > w->warmup)
        w->seconds[backward] += seconds;
}

static bk_status loss_and_gradient(void *context)
{
    work *w = context;
    bk_tape *t = &w->tape;
    if (w->runs++ == w->warmup)
        w->cpu = bk_bench_cpu_seconds();
    bk_tape_begin(t);
    bk_loss_args a = {
        .logits = bk_tensor_wrap(t->arena, BK_F32, BK_SHAPE(w->own, w->vocabulary), w->student),
        .teacher = bk_tensor_wrap(t->arena, BK_F32, BK_SHAPE(w->own, w->vocabulary), w->teacher),
        .rows = w->rows,
        .comm = w->world->loss,
        .config = w->config};
    a.logits->needs_grad = true;
    bk_tensor *value = bk_loss_find("sinkd")->apply(t, &a);
    bk_sum_lanes(w->world->loss, &t->lanes, 1, value->data, &w->loss);
    bk_tape_add_term(t, "sinkd", -1, value, 1.0);
    bk_tape_backward(t);
    return BK_OK;
}

static bk_status loss_config(bk_arena *arena, const sinkd_config *c, const void **out)
{
    const bk_loss_kind *kind = bk_loss_find("sinkd");
    bk_value *map = bk_value_new(arena, BK_MAP, "bench", 0);
    void *config = bk_arena_zalloc(arena, kind->config_size);
    const struct {
        const char *key, *text;
    } given[] = {{"epsilon", bk_arena_printf(arena, "%.17g", c->epsilon)},
                 {"iterations", bk_arena_printf(arena, "%lld", (long long)c->iterations)},
                 {"top_k", bk_arena_printf(arena, "%lld", (long long)c->top_k)},
                 {"gradient", c->gradient},
                 {"debias", c->debias ? "true" : "false"}};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++)
        BK_TRY(bk_value_set(arena, map, given[i].key, given[i].text));
    BK_TRY(bk_options_read(kind->options, config, map, "bench.sinkd", arena));
    *out = config;
    return kind->check(config, BK_F32);
}

/* Elements of cost matrices, forward and back. */
static double elements(const sinkd_config *c)
{
    bool few = c->top_k > 0 && c->top_k < c->vocabulary;
    double classes = (double)(few ? c->top_k : c->vocabulary);
    return (c->debias ? 5.0 : 2.0) * (double)(c->rows * c->rows) * classes;
}

static bk_status measure(bk_arena *arena, const sinkd_config *c, work *w, bk_bench_result *out)
{
    BK_TRY(loss_config(arena, c, &w->config));
    w->student = fill(arena, w, 1);
    w->teacher = fill(arena, w, 2);
    BK_TRY(
        bk_bench_time(w->world->ctl, c->warmup, c->repeats, loss_and_gradient, w, &out->seconds));
    double cpu = bk_bench_cpu_since(w->world->ctl, w->cpu);
    out->rate = elements(c) / out->seconds;
    out->limit = bk_bench_limit(w->world->ctl, min_add_limit);
    bk_bench_add(out, NULL, "forward_seconds", w->seconds[0] / (double)c->repeats);
    bk_bench_add(out, NULL, "backward_seconds", w->seconds[1] / (double)c->repeats);
    bk_bench_add(out, NULL, "cpu_seconds", cpu / (double)c->repeats);
    bk_bench_add(out, NULL, "loss", w->loss);
    return BK_OK;
}

static bk_status run(bk_context *context, const void *config, bk_bench_result *out)
{
    const sinkd_config *c = config;
    work w = {.vocabulary = c->vocabulary, .rows = c->rows, .warmup = c->warmup};
    bk_world *world;
    int64_t lanes = 1;
    BK_TRY(bk_blas_setup(c->threads > 0 ? (int)c->threads : bk_topology_threads(), BK_GEMM_AUTO));
    BK_TRY(bk_world_open(context->arena, 1, &world));
    while (lanes < world->size)
        lanes *= 2;
    w.world = world;
    w.tape = (bk_tape){.arena = bk_arena_new("step"),
                       .scratch = bk_arena_new("scratch"),
                       .dtype = BK_F32,
                       .lanes = bk_lanes_of_rank(lanes, c->rows, world->rank, world->size),
                       .recording = true};
    w.tape.observe = observe;
    w.tape.observe_context = &w;
    w.own = bk_lanes_samples(&w.tape.lanes);
    *out =
        (bk_bench_result){.unit = "elements/s", .ranks = world->size, .threads = bk_blas_threads()};
    bk_status status = measure(context->arena, c, &w, out);
    bk_arena_free(w.tape.arena);
    bk_arena_free(w.tape.scratch);
    bk_world_close(world);
    return status;
}

const bk_bench bk_bench_sinkd = {
    .name = "sinkd",
    .summary = "the SinKD loss and its gradient, 2 B^2 V elements of the cost matrix, against "
               "minima and additions in registers",
    .options = options,
    .config_size = sizeof(sinkd_config),
    .run = run,
};
