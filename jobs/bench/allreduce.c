/* bench allreduce: the sum of an fp32 array over the ranks by each algorithm, against the bound of
 * the alpha-beta-gamma model with a ping-pong of the same run. */
#include "core/blas.h"
#include "dist/collective.h"
#include "dist/cost.h"
#include "dist/reduce_scatter.h"
#include "dist/topology.h"
#include "jobs/bench.h"

#include <math.h>

typedef struct allreduce_config {
    int algorithm;
    int64_t bytes, threads, warmup, repeats;
} allreduce_config;

static const bk_option options[] = {
    BK_OPTION_CHOICE(allreduce_config, algorithm, 0, "own|ring|mpi",
                     "own: halving with distance 1 first, and doubling (any P no power of two: "
                     "MPI's reduce-scatter); ring; mpi: what the library has"),
    BK_OPTION_I64(allreduce_config, bytes, 4 << 20, 4, INT64_C(1) << 40,
                  "of the array, rounded up to 16 floats a rank"),
    BK_OPTION_I64(allreduce_config, threads, 1, 0, 4096,
                  "threads a rank; 0 = OMP_NUM_THREADS, or cores bound / ranks on the node"),
    BK_OPTION_I64(allreduce_config, warmup, 3, 0, BK_BENCH_REPEATS, "runs that do not count"),
    BK_OPTION_I64(allreduce_config, repeats, 21, 1, BK_BENCH_REPEATS, "runs; the median counts"),
    BK_OPTION_END,
};

typedef struct work {
    const bk_comm *comm;
    bk_reduce_algorithm algorithm;
    int64_t floats;
    float *x;
} work;

static bk_status sum(void *context)
{
    const work *w = context;
    bk_allreduce(w->comm, w->algorithm, BK_F32, w->floats, w->x);
    return BK_OK;
}

static bk_traffic sent_so_far(void)
{
    return bk_traffic_plus(bk_traffic_of(BK_TRAFFIC_REDUCE), bk_traffic_of(BK_TRAFFIC_GATHER));
}

static bk_status measure(const bk_world *world, const allreduce_config *c, work *w,
                         bk_bench_result *out)
{
    double bytes = (double)w->floats * sizeof(float);
    bk_cost cost = bk_cost_measure(world->ctl, 21);
    bk_traffic before = sent_so_far();
    BK_TRY(bk_bench_time(world->ctl, c->warmup, c->repeats, sum, w, &out->seconds));
    bk_traffic sent = bk_traffic_minus(sent_so_far(), before);
    double runs = (double)(c->warmup + c->repeats);
    double bound = bk_cost_allreduce(&cost, w->algorithm, world->size, bytes);
    out->rate = bytes / out->seconds;
    out->limit = world->size > 1 ? bytes / bound : out->rate; /* nothing to send */
    bk_bench_add(out, NULL, "bytes", bytes);
    bk_bench_add(out, NULL, "bound_seconds", bound);
    bk_bench_add(out, NULL, "bytes_sent", (double)sent.bytes / runs);
    bk_bench_add(out, NULL, "messages_sent", (double)sent.messages / runs);
    bk_bench_add(out, NULL, "alpha", cost.alpha);
    bk_bench_add(out, NULL, "beta", cost.beta);
    bk_bench_add(out, NULL, "gamma", cost.gamma);
    return BK_OK;
}

static bk_status run(bk_context *context, const void *config, bk_bench_result *out)
{
    static const bk_reduce_algorithm algorithms[] = {BK_REDUCE_TREE, BK_REDUCE_RING, BK_REDUCE_MPI};
    const allreduce_config *c = config;
    bk_world *world;
    BK_TRY(bk_blas_setup(c->threads > 0 ? (int)c->threads : bk_topology_threads(), BK_GEMM_AUTO));
    BK_TRY(bk_world_open(context->arena, 1, &world));
    int64_t unit = 16 * world->size * (int64_t)sizeof(float);
    work w = {.comm = world->world,
              .algorithm = algorithms[c->algorithm],
              .floats = (c->bytes + unit - 1) / unit * unit / (int64_t)sizeof(float)};
    w.x = BK_ZNEW(context->arena, float, w.floats);
    *out = (bk_bench_result){.unit = "B/s", .ranks = world->size, .threads = bk_blas_threads()};
    bk_status status = measure(world, c, &w, out);
    bk_world_close(world);
    return status;
}

const bk_bench bk_bench_allreduce = {
    .name = "allreduce",
    .summary = "the sum of an array over the ranks against the bound of its messages",
    .options = options,
    .config_size = sizeof(allreduce_config),
    .run = run,
};
