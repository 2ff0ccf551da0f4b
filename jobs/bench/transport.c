/* bench transport: one problem over a sweep of 1/epsilon, by Sinkhorn, Newton and sparse Newton.
 * The rate is that of Newton at the sharpest problem: the products and factorisations of its steps,
 * against multiply-adds in double. */
#include "core/transport/transport.h"

#include "core/blas.h"
#include "core/fma.h"
#include "core/log.h"
#include "core/rng.h"
#include "dist/collective.h"
#include "dist/topology.h"
#include "jobs/bench.h"

#include <math.h>

typedef struct transport_config {
    int problem;
    int64_t n, iterations, threads, warmup, repeats;
    double tolerance;
} transport_config;

enum { ASSIGNMENT, BLOBS_L2, BLOBS_L1 };

static const bk_option options[] = {
    BK_OPTION_CHOICE(transport_config, problem, ASSIGNMENT, "assignment|blobs_l2|blobs_l1",
                     "costs uniform in [0,1); two images of blobs, distances of their pixels"),
    BK_OPTION_I64(transport_config, n, 500, 4, 1 << 20,
                  "rows and columns; blobs: the next square number below"),
    BK_OPTION_F64_ABOVE(transport_config, tolerance, 1e-11, 0.0, 1.0, "L1 error of the marginals"),
    BK_OPTION_I64(transport_config, iterations, 40000, 1, 1e12, "most sweeps of sinkhorn"),
    BK_OPTION_I64(transport_config, threads, 0, 0, 4096,
                  "threads a rank; 0 = OMP_NUM_THREADS, or cores bound / ranks on the node"),
    BK_OPTION_I64(transport_config, warmup, 0, 0, BK_BENCH_REPEATS, "runs that do not count"),
    BK_OPTION_I64(transport_config, repeats, 1, 1, BK_BENCH_REPEATS, "runs; the median counts"),
    BK_OPTION_END,
};

/* FLOP/s of multiply-adds in double on all threads of a rank. */
static double peak(void)
{
    enum { ROUNDS = 1000000 };
    double start = bk_seconds(), flops = 0.0;
#pragma omp parallel num_threads(bk_blas_threads()) reduction(+ : flops)
    flops += BK_KERNEL_SELECT(bk_fma_kernels, BK_F64)->run(ROUNDS);
    return flops / (bk_seconds() - start);
}

/* ---- problems ---- */

typedef struct work {
    bk_arena *arena, *scratch;
    bk_lanes lanes;
    bk_transport problem;
    bk_transport_config config;
    bk_transport_result result;
} work;

static void fill_assignment(double *cost, int64_t first, int64_t rows, int64_t n)
{
    for (int64_t i = 0; i < rows * n; i++)
        cost[i] = bk_fill((uint64_t)(first * n + i), BK_USE_BENCH, 0.0, 1.0);
}

/* Distances of pixels of a side x side image, the greatest 1. */
static void fill_distances(double *cost, int64_t first, int64_t rows, int64_t side, bool squared)
{
    double span = (double)(side - 1), most = squared ? 2.0 * span * span : 2.0 * span;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < side * side; j++) {
            double dx = (double)((first + i) / side - j / side),
                   dy = (double)((first + i) % side - j % side);
            cost[i * side * side + j] = (squared ? dx * dx + dy * dy : fabs(dx) + fabs(dy)) / most;
        }
}

/* Four Gaussians on a background of 0.01; the sum is 1. */
static void fill_image(double *mass, int64_t side, uint64_t image)
{
    enum { BLOBS = 4 };
    double sum = 0.0;
    for (int64_t i = 0; i < side * side; i++) {
        double x = (double)(i / side) / (double)(side - 1),
               y = (double)(i % side) / (double)(side - 1);
        mass[i] = 0.01;
        for (uint64_t k = 0; k < BLOBS; k++) {
            uint64_t at = (image * BLOBS + k) * 3;
            double dx = x - bk_fill(at, BK_USE_BENCH, 0.2, 0.8),
                   dy = y - bk_fill(at + 1, BK_USE_BENCH, 0.2, 0.8),
                   width = bk_fill(at + 2, BK_USE_BENCH, 0.05, 0.12);
            mass[i] += exp(-(dx * dx + dy * dy) / (2.0 * width * width));
        }
        sum += mass[i];
    }
    for (int64_t i = 0; i < side * side; i++)
        mass[i] /= sum;
}

static void make_blobs(work *w, const transport_config *c, double *cost, int64_t first)
{
    int64_t side = (int64_t)floor(sqrt((double)c->n) + 1e-9), n = side * side;
    double *a = BK_NEW(w->arena, double, n), *b = BK_NEW(w->arena, double, n);
    fill_distances(cost, first, w->problem.rows, side, c->problem == BLOBS_L2);
    fill_image(a, side, 0);
    fill_image(b, side, 1);
    w->problem.a = a + first;
    w->problem.b = b;
}

static void make_problem(work *w, const transport_config *c, const bk_world *world)
{
    int64_t side = (int64_t)floor(sqrt((double)c->n) + 1e-9);
    int64_t n = c->problem == ASSIGNMENT ? c->n : side * side;
    w->lanes = bk_lanes_of_rank(bk_transport_blocks(n), n, world->rank, world->size);
    int64_t rows = bk_lanes_samples(&w->lanes), first = bk_lanes_first_sample(&w->lanes);
    double *cost = BK_NEW(w->arena, double, rows *n);
    w->problem = (bk_transport){.dtype = BK_F64,
                                .total = n,
                                .rows = rows,
                                .columns = n,
                                .cost = cost,
                                .lanes = &w->lanes,
                                .reducer = bk_comm_reducer(world->loss),
                                .arena = bk_arena_new("solve"),
                                .scratch = w->scratch};
    if (c->problem == ASSIGNMENT)
        fill_assignment(cost, first, rows, n);
    else
        make_blobs(w, c, cost, first);
}

/* ---- solves ---- */

static bk_status solve(void *context)
{
    work *w = context;
    bk_arena_reset(w->problem.arena);
    return bk_transport_solve(&w->problem, &w->config, &w->result);
}

static bk_status run_method(work *w, const transport_config *c, const bk_world *world, int method,
                            double eta, double *seconds)
{
    BK_TRY(bk_options_read(bk_transport_options, &w->config, NULL, "transport", w->arena));
    w->config.method = method;
    w->config.epsilon = 1.0 / eta;
    w->config.tolerance = c->tolerance;
    w->config.iterations = method == BK_TRANSPORT_SINKHORN ? c->iterations : 200;
    return bk_bench_time(world->ctl, c->warmup, c->repeats, solve, w, seconds);
}

/* One column of the table: how each method fares at one 1/epsilon. */
static bk_status run_eta(work *w, const transport_config *c, const bk_world *world, double eta,
                         bk_bench_result *out)
{
    const char *group = bk_arena_printf(w->arena, "eta %g", eta);
    static const char *const name[][3] = {
        {"sinkhorn_seconds", "sinkhorn_sweeps", "sinkhorn_residual"},
        {"newton_seconds", "newton_steps", "newton_residual"},
        {"sns_seconds", "sns_steps", "sns_residual"}};
    const int method[] = {BK_TRANSPORT_SINKHORN, BK_TRANSPORT_SNS, BK_TRANSPORT_NEWTON};
    for (int i = 0; i < 3; i++) {
        const char *const *key = name[method[i]];
        BK_TRY(run_method(w, c, world, method[i], eta, &out->seconds));
        const bk_transport_result *r = &w->result;
        bk_bench_add(out, group, key[0], out->seconds);
        bk_bench_add(out, group, key[1],
                     (double)(method[i] == BK_TRANSPORT_SINKHORN ? r->sweeps : r->newton_steps));
        bk_bench_add(out, group, key[2], r->residual_a + r->residual_b);
    }
    return BK_OK;
}

static bk_status measure(work *w, const transport_config *c, const bk_world *world,
                         bk_bench_result *out)
{
    static const double etas[] = {10, 50, 200, 600, 1200};
    make_problem(w, c, world);
    for (size_t i = 0; i < sizeof etas / sizeof *etas; i++)
        BK_TRY(run_eta(w, c, world, etas[i], out));
    double n = (double)w->problem.total; /* Newton at the last eta was the last solve */
    out->rate = (double)w->result.newton_steps * (n * n * n + n * n * n / 3.0) / out->seconds;
    out->limit = bk_bench_limit(world->ctl, peak);
    return BK_OK;
}

static bk_status run(bk_context *context, const void *config, bk_bench_result *out)
{
    const transport_config *c = config;
    bk_world *world;
    BK_TRY(bk_blas_setup(c->threads > 0 ? (int)c->threads : bk_topology_threads(), BK_GEMM_AUTO));
    BK_TRY(bk_world_open(context->arena, 1, &world));
    *out = (bk_bench_result){.unit = "FLOP/s", .ranks = world->size, .threads = bk_blas_threads()};
    work w = {.arena = context->arena, .scratch = bk_arena_new("scratch")};
    bk_status status = measure(&w, c, world, out);
    bk_arena_free(w.problem.arena);
    bk_arena_free(w.scratch);
    bk_world_close(world);
    return status;
}

const bk_bench bk_bench_transport = {
    .name = "transport",
    .summary = "an entropic transport problem over 1/epsilon = 10 to 1200, by Sinkhorn, Newton and "
               "sparse Newton; the rate is Newton's at 1200, against multiply-adds in double",
    .options = options,
    .config_size = sizeof(transport_config),
    .run = run,
};
