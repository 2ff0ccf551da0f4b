/* bench transport_batch: many small transport problems by a fixed number of half steps, on every
 * rank. */
#include "core/blas.h"
#include "core/log.h"
#include "core/parallel.h"
#include "core/rng.h"
#include "core/transport/batch.h"
#include "dist/topology.h"
#include "jobs/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct batch_config {
    int64_t problems, n, half_steps, threads, warmup, repeats;
    double spread;
    bool backward;
} batch_config;

static const bk_option options[] = {
    BK_OPTION_I64(batch_config, problems, 100000, 1, 1 << 26, "problems a rank"),
    BK_OPTION_I64(batch_config, n, 16, 1, BK_BATCH_MOST, "rows and columns of each"),
    BK_OPTION_I64(batch_config, half_steps, 5, 1, 1000, "half steps of each, rows first"),
    BK_OPTION_F64(batch_config, spread, 4.0, 0.0, 1e6, "scores are uniform in [0, spread)"),
    BK_OPTION_BOOL(batch_config, backward, false, "the gradient (forward included), else plans"),
    BK_OPTION_I64(batch_config, threads, 0, 0, 4096,
                  "threads a rank; 0 = OMP_NUM_THREADS, or cores bound / ranks on the node"),
    BK_OPTION_I64(batch_config, warmup, 2, 0, BK_BENCH_REPEATS, "runs that do not count"),
    BK_OPTION_I64(batch_config, repeats, 9, 1, BK_BENCH_REPEATS, "runs; the median counts"),
    BK_OPTION_END,
};

/* ---- the limit: to read each score and write each entry once ---- */

typedef struct copying {
    const char *from;
    char *to;
} copying;

static void copy_piece(void *context, int64_t first, int64_t last)
{
    const copying *c = context;
    memcpy(c->to + first, c->from + first, (size_t)(last - first));
}

/* Elements/s of a copy through memory; best of a few. */
static double copy_limit(void)
{
    enum { BYTES = 1 << 27 };
    char *both = malloc(2 * (size_t)BYTES);
    double best = 0.0;
    if (!both)
        return NAN;
    memset(both, 1, 2 * (size_t)BYTES);
    for (int k = 0; k < 5; k++) {
        double start = bk_seconds();
        bk_parallel(BYTES, 4096, 1, copy_piece, &(copying){both, both + BYTES});
        best = fmax(best, BYTES / sizeof(float) / (bk_seconds() - start));
    }
    free(both);
    return best;
}

/* ---- the problems ---- */

typedef struct work {
    const batch_config *c;
    bk_batch batch;
    float *g, *out;
    bk_arena *scratch;
} work;

static bk_status pass(void *context)
{
    work *w = context;
    if (w->c->backward)
        bk_transport_batch_backward(&w->batch, false, w->g, w->out, w->scratch);
    else
        bk_transport_batch(&w->batch, w->out, w->scratch);
    return BK_OK;
}

static float *fill(bk_arena *arena, int64_t count, uint64_t tag, double lo, double hi)
{
    float *x = BK_NEW(arena, float, count);
    for (int64_t i = 0; i < count; i++)
        x[i] = (float)bk_fill((uint64_t)i, tag, lo, hi);
    return x;
}

static void make(bk_arena *arena, const batch_config *c, work *w)
{
    int64_t slots = bk_slots(BK_F32), blocks = (c->problems + slots - 1) / slots;
    int64_t lines = blocks * c->n * slots, count = lines * c->n;
    double mass = 1.0 / (double)c->n;
    w->c = c;
    w->scratch = arena;
    w->g = fill(arena, count, 2, -1.0, 1.0);
    w->out = fill(arena, count, 3, 0.0, 1.0);
    w->batch = (bk_batch){.dtype = BK_F32,
                          .problems = c->problems,
                          .rows = c->n,
                          .columns = c->n,
                          .half_steps = c->half_steps,
                          .s = fill(arena, count, 1, 0.0, c->spread),
                          .a = fill(arena, lines, 4, mass, mass),
                          .b = fill(arena, lines, 5, mass, mass)};
}

/* So that two programs can see that they compute the same. */
static double norm_of(const work *w)
{
    double sum = 0.0;
    int64_t slots = bk_slots(BK_F32), square = w->c->n * w->c->n;
    for (int64_t p = 0; p < w->c->problems; p++)
        for (int64_t i = 0; i < square; i++) {
            double x = (double)w->out[(p / slots * square + i) * slots + p % slots];
            sum += x * x;
        }
    return sqrt(sum);
}

static bk_status measure(bk_context *context, const batch_config *c, const bk_world *world,
                         bk_bench_result *out)
{
    work w;
    make(context->arena, c, &w);
    BK_TRY(bk_bench_time(world->ctl, c->warmup, c->repeats, pass, &w, &out->seconds));
    double start = bk_bench_cpu_seconds();
    BK_TRY(pass(&w));
    bk_bench_add(out, NULL, "cpu_seconds", bk_bench_cpu_since(world->ctl, start));
    bk_bench_add(out, NULL, "norm", norm_of(&w));
    out->rate = (double)(c->problems * c->n * c->n) * world->size / out->seconds;
    out->limit = bk_bench_limit(world->ctl, copy_limit);
    return BK_OK;
}

static bk_status run(bk_context *context, const void *config, bk_bench_result *out)
{
    const batch_config *c = config;
    bk_world *world;
    BK_TRY(bk_blas_setup(c->threads > 0 ? (int)c->threads : bk_topology_threads(), BK_GEMM_AUTO));
    BK_TRY(bk_world_open(context->arena, 1, &world));
    *out =
        (bk_bench_result){.unit = "elements/s", .ranks = world->size, .threads = bk_blas_threads()};
    bk_status status = measure(context, c, world, out);
    bk_world_close(world);
    return status;
}

const bk_bench bk_bench_transport_batch = {
    .name = "transport_batch",
    .summary = "many small Sinkhorn problems side by side in vectors, against a copy of their "
               "scores",
    .options = options,
    .config_size = sizeof(batch_config),
    .run = run,
};
