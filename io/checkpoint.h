/* io/checkpoint.h - checkpoints: a directory that appears by one rename, is never written again,
 * can be read by any number of ranks and is believed only after its digests were checked. */
#ifndef BK_IO_CHECKPOINT_H
#define BK_IO_CHECKPOINT_H

#include "core/arena.h"
#include "core/tensor.h"
#include "dist/comm.h"

/* A contiguous slice of a flattened logical tensor in this rank's memory. */
typedef struct bk_piece {
    const char *name; /* "model/block3/attention/wq", "optim/m/block3/attention/wq" */
    bk_dtype dtype;   /* BK_F32, BK_F64 or BK_I64 */
    int64_t global_shape[BK_MAX_DIMS];
    int dims;
    int64_t offset, count; /* elements of the flattened tensor */
    void *data;
} bk_piece;

/* Mean and variance of the gradient's norm over the steps before (jobs/spike.h). */
typedef struct bk_spike_state {
    double mean, variance;
    int64_t seen, row; /* steps in them; steps left out in a row */
} bk_spike_state;

/* The small state of a run: everything of a checkpoint that is not a tensor. */
typedef struct bk_run_state {
    int64_t step; /* updates done */
    int64_t samples_seen, tokens_seen, updates_skipped;
    int64_t moments_from;  /* updates applied before the optimizer's moments began; 0: none */
    int64_t epoch, cursor; /* global sample position of the next batch */
    uint64_t seed;
    bk_spike_state spike;
    double best_value; /* of the evaluation metric */
    int64_t best_step;
    const char *data_path, *data_digest;
    const char *vocabulary_digest; /* of the subwords (io/dataset.h); "" without */
    const char *config;            /* resolved configuration, YAML */
    const char *machine;           /* "P=2 lanes=4 expert=2 kernels=..." one "key: value" line each;
                                      information only */
    int64_t world_size, lanes;
} bk_run_state;

typedef struct bk_save_options {
    int writers; /* 0: auto: one a node, more while each still has 64 MiB */
    int nodes;   /* of the job */
    int keep;    /* newest kept, at least 2 */
    int64_t keep_every;
    int64_t best;         /* step of the best one so far, kept and named in `best`; -1: none */
    int64_t started_from; /* step this run resumed from; kept until two newer exist; -1: none */
    int deflate;
    bool verify_write;
    const char *run_id;
} bk_save_options;

typedef struct bk_saved {
    int64_t step, bytes;
    double seconds; /* from the beginning to the commit */
    double stall;   /* of them, those that the main thread spent in it */
    char payload[65];
} bk_saved;

/* Not collective.  Ranks of `size` that write files of a checkpoint of so many bytes. */
int bk_checkpoint_writers(const bk_save_options *options, int size, int64_t bytes);

/* Collective.  Commits `directory`/step-%08d from what the ranks own: the pieces of all ranks must
 * cover every tensor exactly once.  On failure nothing final-named is left behind and every rank
 * gets the same status (BK_FAULT). */
BK_CHECKED bk_status bk_checkpoint_save(const bk_comm *comm, const char *directory,
                                        const bk_piece *pieces, int64_t count,
                                        const bk_run_state *state, const bk_save_options *options,
                                        bk_saved *out);

/* Not collective.  Puts back each checkpoint that a save of the same step had set aside when it was
 * killed before its own was in place.  The caller alone saves there (run.lock). */
void bk_checkpoint_restore(const char *directory);

/* Not collective.  Removes what saves that were killed left behind; the caller alone saves there.
 */
void bk_checkpoint_sweep(const char *directory);

/* Saves one checkpoint after the other into a directory.  In the background: the elements are
 * copied at once, a thread of each writing rank makes its file beside the training, rank 0's
 * thread commits, and the main threads meet twice for a few messages, when the threads of all ranks
 * are done.  The staging memory stays until the saver is freed. */
typedef struct bk_saver bk_saver;

/* Not collective.  `directory` is borrowed. */
bk_saver *bk_saver_new(const bk_comm *comm, const char *directory, bool background);
/* Not collective.  No save is under way (bk_saver_finish).  NULL is fine. */
void bk_saver_free(bk_saver *v);

/* Collective.  Begins what bk_checkpoint_save does; none is under way.  On return the pieces may
 * change; the texts of state and options are borrowed until the save is over. */
BK_CHECKED bk_status bk_saver_begin(bk_saver *v, const bk_piece *pieces, int64_t count,
                                    const bk_run_state *state, const bk_save_options *options);

/* Not collective, the same on all ranks.  NULL is not busy. */
bool bk_saver_busy(const bk_saver *v);

/* Not collective.  This rank's part of the present phase.  When no rank's is under way any more
 * (flags of the step's message), all call bk_saver_advance. */
typedef enum bk_saver_part { BK_PART_UNDER_WAY, BK_PART_DONE, BK_PART_FAILED } bk_saver_part;
bk_saver_part bk_saver_part_of(const bk_saver *v);

/* Collective.  Waits for this phase and begins the next.  When the saver is not busy any more, the
 * checkpoint is committed and *saved filled; or it failed (BK_FAULT, agreed) and nothing is left of
 * it. */
BK_CHECKED bk_status bk_saver_advance(bk_saver *v, bk_saved *saved);
/* Collective.  The same to the end; nothing under way is fine, then *saved stays as it is. */
BK_CHECKED bk_status bk_saver_finish(bk_saver *v, bk_saved *saved);

/* A checkpoint found and verified. */
typedef struct bk_checkpoint bk_checkpoint;

/* What is held against the manifest before a checkpoint is believed; sizes always are. */
typedef enum bk_checkpoint_check {
    BK_CHECK_SHA256,
    BK_CHECK_XXH64,
    BK_CHECK_SIZE
} bk_checkpoint_check;

typedef struct bk_find_options {
    bk_checkpoint_check check;
    bool strict; /* a damaged newest one is BK_INPUT */
} bk_find_options;

/* Collective.  The newest valid checkpoint below `directory` (runs/NAME/checkpoints): files are
 * checked, the ranks share the work; damaged ones are named in a warning and passed over.  *out =
 * NULL with BK_OK when there is none at all; BK_INPUT when there are only damaged ones. */
BK_CHECKED bk_status bk_checkpoint_find(const bk_comm *comm, bk_arena *arena, const char *directory,
                                        bk_find_options options, bk_checkpoint **out);
/* Collective.  Opens one checkpoint directory; a run directory means its newest valid checkpoint.
 * comm NULL: this process alone, without MPI. */
BK_CHECKED bk_status bk_checkpoint_open(const bk_comm *comm, bk_arena *arena, const char *path,
                                        bk_checkpoint_check check, bk_checkpoint **out);

const bk_run_state *bk_checkpoint_state(const bk_checkpoint *c);
const char *bk_checkpoint_path(const bk_checkpoint *c);
const char *bk_checkpoint_payload(const bk_checkpoint *c);
/* Whether it holds a tensor of this name. */
bool bk_checkpoint_has(const bk_checkpoint *c, const char *name);

/* Collective (agreed).  Fills the pieces this rank needs (they may overlap those of other ranks).
 * Missing, or of another shape: BK_INPUT with the names.  `complete`: so are tensors of the
 * checkpoint whose names begin with this text and that no piece names; NULL: no check. */
BK_CHECKED bk_status bk_checkpoint_read(const bk_comm *comm, const bk_checkpoint *c,
                                        const bk_piece *pieces, int64_t count,
                                        const char *complete);

/* Not collective.  Steps of the directories with final names below `directory`, newest first; their
 * number.  One that a killed save set aside counts, too: it is read where it stands. */
int64_t bk_list_steps(bk_arena *arena, const char *directory, int64_t **steps);
/* "DIRECTORY/step-00000500" */
const char *bk_step_path(bk_arena *arena, const char *directory, int64_t step);

/* For inspect: what the manifest says of the files, number of tensors, and the i-th. */
typedef struct bk_checkpoint_files {
    const char *created, *version, *run_id;
    int shards;
    int64_t bytes;
} bk_checkpoint_files;
bk_checkpoint_files bk_checkpoint_describe(const bk_checkpoint *c);
int64_t bk_checkpoint_tensors(const bk_checkpoint *c);
void bk_checkpoint_tensor(const bk_checkpoint *c, int64_t i, const char **name, bk_dtype *dtype,
                          int *dims, int64_t shape[BK_MAX_DIMS]);

/* Collective.  `birkhoff verify`: every byte of a checkpoint, run directory or data set; prints one
 * line a file and the findings to stdout on rank 0; BK_INPUT when something is wrong. */
BK_CHECKED bk_status bk_verify(const bk_comm *comm, const char *path);

#endif
