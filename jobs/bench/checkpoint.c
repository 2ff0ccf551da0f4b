/* bench checkpoint: a checkpoint of so many bytes is written, verified, read, and written in the
 * background, against a plain file of the same size on the same disk. */
#include "io/checkpoint.h"
#include "core/blas.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "io/files.h"
#include "io/storage.h"
#include "jobs/bench.h"

#include <stdlib.h>
#include <unistd.h>

typedef struct checkpoint_config {
    int layout;
    int64_t bytes, writers, warmup, repeats;
    const char *path;
} checkpoint_config;

static const bk_option options[] = {
    BK_OPTION_CHOICE(checkpoint_config, layout, 0, "none|gpt2",
                     "gpt2: as many bytes as the 124M layout has with AdamW (1.49 GB)"),
    BK_OPTION_I64(checkpoint_config, bytes, 256 << 20, 1 << 10, INT64_C(1) << 42,
                  "of the checkpoint"),
    BK_OPTION_TEXT(checkpoint_config, path, NULL,
                   "directory to write in; without: TMPDIR, or /tmp"),
    BK_OPTION_I64(checkpoint_config, writers, 0, 0, 4096, "files; 0 = as checkpoint.writers=0"),
    BK_OPTION_I64(checkpoint_config, warmup, 0, 0, BK_BENCH_REPEATS, "runs that do not count"),
    BK_OPTION_I64(checkpoint_config, repeats, 3, 1, BK_BENCH_REPEATS - 1,
                  "runs; the median counts"),
    BK_OPTION_END,
};

enum { TENSORS = 32, GPT2_FLOATS = 124439808 };

typedef struct work {
    bk_arena *arena;
    const bk_world *world;
    const checkpoint_config *config;
    const char *directory; /* removed at the end */
    int64_t step;
    bk_piece piece[TENSORS]; /* the own slice of each tensor */
    bk_checkpoint *opened;
    bk_saved saved;
    bk_saver *saver; /* in the background */
    int64_t beside;  /* saves of it so far */
    double stall[BK_BENCH_REPEATS];
} work;

/* Equal tensors, cut into equal slices. */
static void make_pieces(work *w, int64_t bytes)
{
    int64_t count = (bytes / (int64_t)sizeof(float) + TENSORS - 1) / TENSORS;
    int64_t first = count * w->world->rank / w->world->size;
    int64_t own = count * (w->world->rank + 1) / w->world->size - first;
    for (int i = 0; i < TENSORS; i++) {
        float *data = BK_NEW(w->arena, float, own);
        for (int64_t j = 0; j < own; j++)
            data[j] = (float)(i + 1) / (float)(first + j + 1);
        w->piece[i] = (bk_piece){.name = bk_arena_printf(w->arena, "model/tensor%d", i),
                                 .dtype = BK_F32,
                                 .global_shape = {count},
                                 .dims = 1,
                                 .offset = first,
                                 .count = own,
                                 .data = data};
    }
}

static bk_run_state next_state(work *w)
{
    return (bk_run_state){.step = ++w->step,
                          .data_path = "none",
                          .data_digest = "none",
                          .config = "bench: checkpoint",
                          .machine = "bench: checkpoint",
                          .world_size = w->world->size,
                          .lanes = 1};
}

static bk_save_options options_of(const work *w)
{
    return (bk_save_options){.writers = (int)w->config->writers,
                             .nodes = w->world->nodes,
                             .keep = 2,
                             .best = -1,
                             .started_from = -1,
                             .run_id = "bench"};
}

static bk_status write_one(void *context)
{
    work *w = context;
    bk_run_state state = next_state(w);
    bk_save_options save = options_of(w);
    return bk_checkpoint_save(w->world->checkpoint, w->directory, w->piece, TENSORS, &state, &save,
                              &w->saved);
}

/* The phases of a save beside a training that does nothing: the ranks meet every millisecond. */
static bk_status write_beside(void *context)
{
    work *w = context;
    bk_run_state state = next_state(w);
    bk_save_options save = options_of(w);
    bk_saved saved = {0};
    BK_TRY(bk_saver_begin(w->saver, w->piece, TENSORS, &state, &save));
    while (bk_saver_busy(w->saver)) {
        int64_t waiting = bk_saver_part_of(w->saver) == BK_PART_UNDER_WAY;
        bk_sum_i64(w->world->ctl, 1, &waiting);
        if (waiting == 0)
            BK_TRY(bk_saver_advance(w->saver, &saved));
        else
            usleep(1000);
    }
    bk_max_f64(w->world->ctl, 1, &saved.stall);
    w->stall[w->beside++] = saved.stall;
    return BK_OK;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* After a first one, whose staging memory is new. */
static bk_status measure_beside(work *w, bk_bench_result *out)
{
    double seconds;
    int64_t repeats = w->config->repeats;
    w->saver = bk_saver_new(w->world->checkpoint, w->directory, true);
    bk_status status = bk_bench_time(w->world->ctl, 1, repeats, write_beside, w, &seconds);
    bk_saver_free(w->saver);
    BK_TRY(status);
    qsort(w->stall + 1, (size_t)repeats, sizeof *w->stall, by_size);
    double stall = w->stall[1 + repeats / 2];
    bk_bench_add(out, "background", "seconds", seconds);
    bk_bench_add(out, "background", "rate", (double)w->saved.bytes / seconds);
    bk_bench_add(out, "background", "stall", stall);
    bk_bench_add(out, "background", "stall_share", stall / out->seconds);
    return BK_OK;
}

/* Opening one checks every byte against its digests. */
static bk_status verify(void *context)
{
    work *w = context;
    return bk_checkpoint_open(w->world->checkpoint, w->arena,
                              bk_step_path(w->arena, w->directory, w->step), BK_CHECK_SHA256,
                              &w->opened);
}

static bk_status read_one(void *context)
{
    work *w = context;
    return bk_checkpoint_read(w->world->checkpoint, w->opened, w->piece, TENSORS, "model/");
}

/* Rank 0 writes a plain file of as many bytes. */
static bk_status measure_disk(const work *w, double *write, double *read)
{
    double seconds[2] = {0.0, 0.0};
    bk_status status = BK_OK;
    if (w->world->rank == 0)
        status = bk_storage_rates(w->directory, w->saved.bytes, &seconds[0], &seconds[1]);
    BK_TRY(bk_agree(w->world->ctl, status));
    bk_max_f64(w->world->ctl, 2, seconds);
    *write = (double)w->saved.bytes / seconds[0];
    *read = (double)w->saved.bytes / seconds[1];
    return BK_OK;
}

static bk_status measure(work *w, bk_bench_result *out)
{
    const checkpoint_config *c = w->config;
    const bk_comm *ctl = w->world->ctl;
    double verifying, reading, disk_read;
    BK_TRY(bk_bench_time(ctl, c->warmup, c->repeats, write_one, w, &out->seconds));
    BK_TRY(measure_disk(w, &out->limit, &disk_read));
    BK_TRY(bk_bench_time(ctl, 0, 1, verify, w, &verifying));
    BK_TRY(bk_bench_time(ctl, 0, c->repeats, read_one, w, &reading));
    double bytes = (double)w->saved.bytes;
    out->rate = bytes / out->seconds;
    bk_bench_add(out, NULL, "bytes", bytes);
    bk_bench_add(out, NULL, "verify_rate", bytes / verifying);
    bk_bench_add(out, NULL, "read_rate", bytes / reading);
    bk_bench_add(out, NULL, "disk_write", out->limit);
    bk_bench_add(out, NULL, "disk_read", disk_read);
    return measure_beside(w, out);
}

static bk_status make_directory(work *w)
{
    const char *above = bk_bench_directory(w->config->path);
    int64_t id = getpid(); /* of rank 0, so that all name the same */
    bk_broadcast(w->world->ctl, 0, &id, sizeof id);
    w->directory = bk_arena_printf(w->arena, "%s/.birkhoff-bench.%lld", above, (long long)id);
    return bk_agree(w->world->ctl, w->world->rank == 0 ? bk_make_directories(w->directory) : BK_OK);
}

static void remove_all(const work *w)
{
    int64_t *steps;
    bk_barrier(w->world->ctl);
    if (w->world->rank != 0)
        return;
    int64_t count = bk_list_steps(w->arena, w->directory, &steps);
    for (int64_t i = 0; i < count; i++)
        bk_remove_directory(bk_step_path(w->arena, w->directory, steps[i]));
    bk_remove_directory(w->directory);
}

static bk_status run(bk_context *context, const void *config, bk_bench_result *out)
{
    const checkpoint_config *c = config;
    bk_world *world;
    BK_TRY(bk_world_open(context->arena, 1, &world));
    work w = {.arena = context->arena, .world = world, .config = c};
    make_pieces(&w, c->layout == 1 ? 3 * (int64_t)GPT2_FLOATS * 4 : c->bytes);
    *out = (bk_bench_result){.unit = "B/s", .ranks = world->size, .threads = bk_blas_threads()};
    bk_status status = make_directory(&w);
    if (status == BK_OK) {
        status = measure(&w, out);
        remove_all(&w);
    }
    bk_world_close(world);
    return status;
}

const bk_bench bk_bench_checkpoint = {
    .name = "checkpoint",
    .summary = "a checkpoint written, verified and read, against a plain file on the same disk",
    .options = options,
    .config_size = sizeof(checkpoint_config),
    .run = run,
};
