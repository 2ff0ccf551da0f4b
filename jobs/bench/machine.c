/* bench machine: the arithmetic of the cores, alone and together, the bandwidth of memory, what a
 * message costs, and the disk. */
#include "core/blas.h"
#include "core/fma.h"
#include "core/vector.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "dist/cost.h"
#include "dist/topology.h"
#include "io/storage.h"
#include "jobs/bench.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

typedef struct machine_config {
    int64_t threads, repeats, megabytes;
    const char *path;
} machine_config;

static const bk_option options[] = {
    BK_OPTION_I64(machine_config, threads, 0, 0, 4096,
                  "threads a rank; 0 = OMP_NUM_THREADS, or cores bound / ranks on the node"),
    BK_OPTION_I64(machine_config, repeats, 9, 1, BK_BENCH_REPEATS, "runs; the median counts"),
    BK_OPTION_I64(machine_config, megabytes, 64, 1, 1 << 20,
                  "MiB of each of the two arrays of a rank that are read and written, and of the "
                  "file"),
    BK_OPTION_TEXT(machine_config, path, NULL,
                   "directory of the disk to measure; without: TMPDIR, or /tmp"),
    BK_OPTION_END,
};

enum { ROUNDS = 1000000 };

typedef struct work {
    double flops; /* of one run on this rank */
    int64_t floats;
    float *x, *y;
} work;

static bk_status multiply_add(void *context)
{
    work *w = context;
    double flops = 0.0;
#pragma omp parallel num_threads(bk_blas_threads()) reduction(+ : flops)
    flops += bk_fma_run(ROUNDS);
    w->flops = flops;
    return BK_OK;
}

/* y += x: reads two arrays and writes one. */
static bk_status stream(void *context)
{
    const work *w = context;
    int64_t parts = bk_blas_threads();
#pragma omp parallel for schedule(static) num_threads((int)parts)
    for (int64_t i = 0; i < parts; i++) {
        int64_t first = w->floats * i / parts, last = w->floats * (i + 1) / parts;
        bk_vector(BK_F32)->add(last - first, w->x + first, w->y + first);
    }
    return BK_OK;
}

/* Rank 0 writes and reads one file. */
static bk_status measure_disk(const bk_comm *comm, const machine_config *c, bk_bench_result *out)
{
    double bytes = (double)c->megabytes * (1 << 20), seconds[2] = {0.0, 0.0};
    bk_status status = BK_OK;
    if (bk_comm_rank(comm) == 0)
        status =
            bk_storage_rates(bk_bench_directory(c->path), (int64_t)bytes, &seconds[0], &seconds[1]);
    BK_TRY(bk_agree(comm, status));
    bk_max_f64(comm, 2, seconds);
    bk_bench_add(out, NULL, "disk_write", bytes / seconds[0]);
    bk_bench_add(out, NULL, "disk_read", bytes / seconds[1]);
    return BK_OK;
}

static void measure_messages(const bk_comm *comm, const machine_config *c, bk_bench_result *out)
{
    bk_cost cost = bk_cost_measure(comm, (int)c->repeats);
    bk_bench_add(out, NULL, "alpha", cost.alpha);
    bk_bench_add(out, NULL, "beta", cost.beta);
    bk_bench_add(out, NULL, "gamma", cost.gamma);
}

static bk_status measure(const bk_comm *comm, const machine_config *c, work *w,
                         bk_bench_result *out)
{
    double streaming;
    int size = bk_comm_size(comm);
    BK_TRY(bk_bench_time(comm, 1, c->repeats, multiply_add, w, &out->seconds));
    BK_TRY(bk_bench_time(comm, 1, c->repeats, stream, w, &streaming));
    out->rate = w->flops * size / out->seconds;
    out->limit = bk_bench_peak(comm);
    bk_bench_add(out, NULL, "bf16_limit", bk_bench_peak_bf16(comm));
    bk_bench_add(out, NULL, "bytes_per_second",
                 3.0 * sizeof(float) * (double)w->floats * size / streaming);
    measure_messages(comm, c, out);
    return measure_disk(comm, c, out);
}

static bk_status run(bk_context *context, const void *config, bk_bench_result *out)
{
    const machine_config *c = config;
    bk_world *world;
    BK_TRY(bk_blas_setup(c->threads > 0 ? (int)c->threads : bk_topology_threads(), BK_GEMM_AUTO));
    BK_TRY(bk_world_open(context->arena, 1, &world));
    work w = {.floats = c->megabytes << 18};
    w.x = BK_ZNEW(context->arena, float, w.floats);
    w.y = BK_ZNEW(context->arena, float, w.floats);
    *out = (bk_bench_result){.unit = "FLOP/s", .ranks = world->size, .threads = bk_blas_threads()};
    bk_status status = measure(world->ctl, c, &w, out);
    bk_world_close(world);
    return status;
}

const bk_bench bk_bench_machine = {
    .name = "machine",
    .summary = "multiply-adds of all cores at once against their best; memory, messages, disk",
    .options = options,
    .config_size = sizeof(machine_config),
    .run = run,
};
