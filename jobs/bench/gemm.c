/* bench gemm: one product C[m,n] = op(A)[m,k] op(B)[k,n] in fp32 or bf16, on every rank. */
#include "core/blas.h"
#include "core/rng.h"
#include "dist/topology.h"
#include "jobs/bench.h"
#include "jobs/config.h"

typedef struct gemm_config {
    int64_t m, n, k, threads, warmup, repeats;
    bool ta, tb;
    int gemm, precision;
} gemm_config;

static const bk_option options[] = {
    BK_OPTION_I64(gemm_config, m, 1024, 1, 1 << 20, "rows of C"),
    BK_OPTION_I64(gemm_config, n, 768, 1, 1 << 20, "columns of C"),
    BK_OPTION_I64(gemm_config, k, 768, 1, 1 << 20, "columns of op(A)"),
    BK_OPTION_BOOL(gemm_config, ta, false, "A is stored [k,m]"),
    BK_OPTION_BOOL(gemm_config, tb, true, "B is stored [n,k], as weights are"),
    BK_OPTION_CHOICE(gemm_config, gemm, 0, "auto|onednn|cblas", "library"),
    BK_OPTION_CHOICE(gemm_config, precision, 0, "fp32|bf16", "of A and B"),
    BK_OPTION_I64(gemm_config, threads, 0, 0, 4096,
                  "threads a rank; 0 = OMP_NUM_THREADS, or cores bound / ranks on the node"),
    BK_OPTION_I64(gemm_config, warmup, 3, 0, BK_BENCH_REPEATS, "runs that do not count"),
    BK_OPTION_I64(gemm_config, repeats, 21, 1, BK_BENCH_REPEATS, "runs; the median counts"),
    BK_OPTION_END,
};

static const void *filled(bk_arena *arena, bk_dtype dtype, int64_t count, uint64_t tag)
{
    float *x = BK_NEW(arena, float, count);
    for (int64_t i = 0; i < count; i++)
        x[i] = (float)bk_fill((uint64_t)i, tag, -1.0, 1.0);
    if (dtype == BK_F32)
        return x;
    void *rounded = bk_arena_alloc(arena, (size_t)count * bk_dtype_size(dtype));
    bk_blas_round(count, x, rounded);
    return rounded;
}

typedef struct work {
    bk_dtype dtype;
    bk_gemm product;
} work;

static bk_status multiply(void *context)
{
    const work *w = context;
    bk_gemm_run(w->dtype, &w->product);
    return BK_OK;
}

static bk_status measure(bk_context *context, const gemm_config *c, const bk_world *world,
                         bk_bench_result *out)
{
    bool bf16 = c->precision == BK_PRECISION_BF16;
    work w = {.dtype = bf16 ? bk_blas_bf16() : BK_F32};
    w.product = (bk_gemm){.ta = c->ta ? BK_T : BK_N,
                          .tb = c->tb ? BK_T : BK_N,
                          .m = c->m,
                          .n = c->n,
                          .k = c->k,
                          .alpha = 1.0,
                          .a = filled(context->arena, w.dtype, c->m * c->k, 1),
                          .lda = c->ta ? c->m : c->k,
                          .b = filled(context->arena, w.dtype, c->k * c->n, 2),
                          .ldb = c->tb ? c->k : c->n,
                          .c = BK_ZNEW(context->arena, float, c->m * c->n),
                          .ldc = c->n};
    BK_TRY(bk_bench_time(world->ctl, c->warmup, c->repeats, multiply, &w, &out->seconds));
    out->rate = 2.0 * (double)c->m * (double)c->n * (double)c->k * world->size / out->seconds;
    out->limit = bf16 ? bk_bench_peak_bf16(world->ctl) : bk_bench_peak(world->ctl);
    out->library = bk_blas_description();
    return BK_OK;
}

static bk_status run(bk_context *context, const void *config, bk_bench_result *out)
{
    const gemm_config *c = config;
    bk_world *world;
    BK_TRY(bk_blas_setup(c->threads > 0 ? (int)c->threads : bk_topology_threads(),
                         (bk_gemm_library)c->gemm));
    BK_TRY(bk_world_open(context->arena, 1, &world));
    *out = (bk_bench_result){.unit = "FLOP/s", .ranks = world->size, .threads = bk_blas_threads()};
    bk_status status = measure(context, c, world, out);
    bk_world_close(world);
    return status;
}

const bk_bench bk_bench_gemm = {
    .name = "gemm",
    .summary = "a matrix product in fp32 on every rank",
    .options = options,
    .config_size = sizeof(gemm_config),
    .run = run,
};
