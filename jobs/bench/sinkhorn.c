/* bench sinkhorn: sweeps of the transport engine in the log domain, each one exponential an
 * element; rows are spread over the ranks. */
#include "core/transport/sinkhorn.h"
#include "core/blas.h"
#include "core/log.h"
#include "core/rng.h"
#include "core/vector.h"
#include "dist/collective.h"
#include "dist/topology.h"
#include "jobs/bench.h"

#include <math.h>

typedef struct sinkhorn_config {
    int64_t n, m, iterations, threads, warmup, repeats;
    double epsilon;
} sinkhorn_config;

static const bk_option options[] = {
    BK_OPTION_I64(sinkhorn_config, n, 1024, 1, 1 << 20, "rows of the cost, of all ranks"),
    BK_OPTION_I64(sinkhorn_config, m, 1024, 1, 1 << 20, "columns"),
    BK_OPTION_F64(sinkhorn_config, epsilon, 0.05, 1e-6, 1e6,
                  "entropic regularisation; costs are uniform in [0,1)"),
    BK_OPTION_I64(sinkhorn_config, iterations, 20, 1, 10000, "sweeps of a run"),
    BK_OPTION_I64(sinkhorn_config, threads, 0, 0, 4096,
                  "threads a rank; 0 = OMP_NUM_THREADS, or cores bound / ranks on the node"),
    BK_OPTION_I64(sinkhorn_config, warmup, 1, 0, BK_BENCH_REPEATS, "runs that do not count"),
    BK_OPTION_I64(sinkhorn_config, repeats, 9, 1, BK_BENCH_REPEATS, "runs; the median counts"),
    BK_OPTION_END,
};

/* ---- the limit ---- */

/* Exponentials/s in double on all threads of a rank, from and to the first-level cache; best of a
 * few runs. */
static double exp_limit(void)
{
    enum { COUNT = 1024, ROUNDS = 2000 };
    static double x[COUNT], y[COUNT];
    double best = 0.0;
    for (int i = 0; i < COUNT; i++)
        x[i] = bk_fill((uint64_t)i, 1, -20.0, 0.0);
    for (int k = 0; k < 5; k++) {
        double start = bk_seconds();
        for (int i = 0; i < ROUNDS; i++)
            bk_exp_f64(COUNT, x, y);
        best = fmax(best, (double)COUNT * ROUNDS / (bk_seconds() - start));
    }
    return best * bk_blas_threads();
}

/* ---- the sweeps ---- */

typedef struct work {
    const sinkhorn_config *config;
    bk_lanes lanes;
    bk_sinkhorn problem;
    double *f, *g, *column;
} work;

/* From g = 0: row sums to 1, column sums to n/m. */
static bk_status sweep(void *context)
{
    work *w = context;
    double share = (double)w->config->m / (double)w->config->n;
    for (int64_t j = 0; j < w->problem.columns; j++)
        w->g[j] = 0.0;
    for (int64_t k = 0; k < w->config->iterations; k++) {
        bk_sinkhorn_sweep(&w->problem, w->g, w->f, w->column, NULL);
        for (int64_t j = 0; j < w->problem.columns; j++)
            w->g[j] -= bk_log_one(w->column[j] * share);
    }
    return BK_OK;
}

static void make_problem(bk_arena *arena, const bk_comm *comm, work *w, bk_sinkhorn_block *block)
{
    int64_t lanes = 1, m = w->config->m;
    while (lanes < bk_comm_size(comm))
        lanes *= 2;
    w->lanes = bk_lanes_of_rank(lanes, w->config->n, bk_comm_rank(comm), bk_comm_size(comm));
    int64_t rows = bk_lanes_samples(&w->lanes), first = bk_lanes_first_sample(&w->lanes);
    int64_t *lane_row = BK_NEW(arena, int64_t, w->lanes.count + 1);
    double *s = BK_NEW(arena, double, rows *m);
    for (int64_t l = 0; l <= w->lanes.count; l++)
        lane_row[l] = bk_lane_row(&w->lanes, rows, l);
    for (int64_t i = 0; i < rows * m; i++)
        s[i] = bk_fill((uint64_t)(first * m + i), BK_USE_BENCH, -1.0, 0.0) / w->config->epsilon;
    *block = (bk_sinkhorn_block){.rows = rows, .columns = m, .s = s};
    w->problem = (bk_sinkhorn){.block = block,
                               .blocks = 1,
                               .rows = rows,
                               .columns = m,
                               .lane_row = lane_row,
                               .lanes = &w->lanes,
                               .reducer = bk_comm_reducer(comm),
                               .scratch = arena};
    w->f = BK_NEW(arena, double, rows);
    w->g = BK_NEW(arena, double, m);
    w->column = BK_NEW(arena, double, m);
}

static bk_status measure(bk_context *context, const sinkhorn_config *c, const bk_world *world,
                         bk_bench_result *out)
{
    work w = {.config = c};
    bk_sinkhorn_block block;
    make_problem(context->arena, world->loss, &w, &block);
    BK_TRY(bk_bench_time(world->ctl, c->warmup, c->repeats, sweep, &w, &out->seconds));
    out->rate = (double)(c->n * c->m) * (double)c->iterations / out->seconds;
    out->limit = bk_bench_limit(world->ctl, exp_limit);
    return BK_OK;
}

static bk_status run(bk_context *context, const void *config, bk_bench_result *out)
{
    const sinkhorn_config *c = config;
    bk_world *world;
    BK_TRY(bk_blas_setup(c->threads > 0 ? (int)c->threads : bk_topology_threads(), BK_GEMM_AUTO));
    BK_TRY(bk_world_open(context->arena, 1, &world));
    *out =
        (bk_bench_result){.unit = "elements/s", .ranks = world->size, .threads = bk_blas_threads()};
    bk_status status = measure(context, c, world, out);
    bk_world_close(world);
    return status;
}

const bk_bench bk_bench_sinkhorn = {
    .name = "sinkhorn",
    .summary = "Sinkhorn sweeps in the log domain, n m elements each, against exponentials in "
               "double from the first-level cache",
    .options = options,
    .config_size = sizeof(sinkhorn_config),
    .run = run,
};
