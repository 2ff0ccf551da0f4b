/* io/checkpoint_internal.h - between the checkpoint_*.c files; nobody else includes it.
 *
 *   plan      who writes which slice of which tensor
 *   save      stage, then write and commit, on a thread or not; what all ranks do together
 *   shard     one writer's file
 *   commit    directory, manifest, rename, hints: rank 0
 *   manifest  what a committed directory says of itself
 *   state     the small groups of shard 0
 *   find      the newest directory that can be believed
 *   retain    what goes and what comes back
 *   read      slices of any rank count
 *   verify    every byte against its digest */
#ifndef BK_IO_CHECKPOINT_INTERNAL_H
#define BK_IO_CHECKPOINT_INTERNAL_H

#include "io/checkpoint.h"
#include "io/digest.h"
#include "io/hdf5.h"

enum { BK_NAME_TEXT = 128 };

/* Elements [offset, offset+length) of a flattened tensor, stored in one shard. */
typedef struct bk_stored_piece {
    int shard;
    int64_t offset, length;
} bk_stored_piece;

typedef struct bk_stored_tensor {
    const char *name; /* without the leading slash of its path */
    bk_dtype dtype;
    int dims;
    int64_t shape[BK_MAX_DIMS];
    int64_t count; /* elements */
    int pieces;
    bk_stored_piece *piece; /* by offset, no gaps */
} bk_stored_tensor;

typedef struct bk_shard_file {
    const char *file; /* "shard-00000.h5" */
    bk_file_digest digest;
} bk_shard_file;

typedef struct bk_manifest {
    int64_t step, world_size, lanes;
    const char *run_id, *created, *version;
    char config_sha256[BK_SHA256_TEXT], payload[BK_SHA256_TEXT];
    int shards;
    bk_shard_file *shard;
    int64_t tensors;
    bk_stored_tensor *tensor; /* by name */
} bk_manifest;

struct bk_checkpoint {
    const char *path; /* of the directory */
    bk_manifest manifest;
    bk_run_state state;
};

/* ---- manifest ---- */

/* The text of manifest.json, its own digest included. */
const char *bk_manifest_text(bk_arena *arena, const bk_manifest *m);
/* BK_INPUT when the text is no manifest, of another major version, or its digest differs. */
BK_CHECKED bk_status bk_manifest_parse(bk_arena *arena, const char *path, const char *text,
                                       bk_manifest *out);
/* Every element of every tensor in exactly one piece, every piece in a shard: else BK_INPUT. */
BK_CHECKED bk_status bk_manifest_check(const bk_manifest *m, const char *path);
const bk_stored_tensor *bk_manifest_find(const bk_manifest *m, const char *name);
int64_t bk_shape_count(int dims, const int64_t *shape);

/* SHA-256 over the tensors in order of name of (name, 0 byte, digest of the tensor), where the
 * digest of a tensor is the SHA-256 of the SHA-256 of its leaves of 4096 elements.  leaves[i]: the
 * leaf digests of tensor i. */
void bk_payload_digest(const bk_manifest *m, uint8_t *const *leaves, char out[BK_SHA256_TEXT]);

/* ---- plan ---- */

/* A part of one rank's piece that goes into one stored piece. */
typedef struct bk_transfer {
    int rank;      /* that owns the elements */
    int64_t index; /* of the piece in that rank's list */
    int64_t from;  /* first element within that piece */
    int shard;
    int64_t tensor, piece;
    int64_t to, count; /* first element within the stored piece */
} bk_transfer;

typedef struct bk_plan {
    bk_manifest *manifest; /* tensors and pieces are filled, digests are not */
    int64_t transfers;
    bk_transfer *transfer; /* by rank, then shard: the order in which everybody sends */
} bk_plan;

/* Collective.  The same plan on every rank: tensors of all ranks cut at multiples of 4096 elements
 * into `shards` parts of about equal bytes.  BK_FAULT when the pieces do not cover a tensor once.
 */
BK_CHECKED bk_status bk_plan_make(const bk_comm *comm, bk_arena *arena, const bk_piece *pieces,
                                  int64_t count, int shards, bk_plan *out);

/* The rank that writes a shard. */
static inline int bk_writer_rank(int shard, int shards, int size)
{
    return (int)((int64_t)shard * size / shards);
}

/* ---- save ---- */

/* One checkpoint on its way to the disk. */
typedef struct bk_save {
    const bk_comm *comm;
    bk_arena *arena;
    const char *directory, *temporary; /* DIR, DIR/.tmp-step-... */
    bk_run_state state;
    bk_save_options options;
    bk_plan plan;
    int rank, size, shard; /* shard: the one this rank writes, -1 = none */
    void **staged;         /* [tensors] own slice of each tensor */
    uint8_t **leaves;      /* [tensors] rank 0: of the whole; else of the own slice */
    bk_file_digest digest; /* of the own shard */
} bk_save;

/* The piece of a tensor that this rank writes; NULL: none. */
const bk_stored_piece *bk_own_piece(const bk_save *s, int64_t tensor);
const char *bk_shard_path(const bk_save *s);

/* Not collective, any thread.  The own shard from what was staged: written, digested, synced; and
 * the digests of its leaves. */
BK_CHECKED bk_status bk_shard_write(bk_save *s);
/* Not collective, rank 0, any thread. */
BK_CHECKED bk_status bk_commit_begin(const bk_save *s); /* makes the temporary directory */
BK_CHECKED bk_status bk_commit(const bk_save *s);       /* all digests are there */

/* ---- shard files ---- */

BK_CHECKED bk_status bk_state_write(bk_h5 *file, const bk_run_state *s, const char *run_id);
BK_CHECKED bk_status bk_state_read(bk_h5 *file, bk_arena *arena, bk_run_state *out);

/* The number in "step-00000500"; -1: not such a name. */
int64_t bk_step_of(const char *name);

/* ---- find ---- */

/* Not collective.  Reads and checks manifest.json; `read` the sizes of the files, too. */
BK_CHECKED bk_status bk_manifest_load(bk_arena *arena, const char *path, bk_manifest *out);
BK_CHECKED bk_status bk_manifest_read(bk_arena *arena, const char *path, bk_manifest *out);
/* Not collective.  The same, and the digests of all files. */
BK_CHECKED bk_status bk_manifest_verify(bk_arena *arena, const char *path, bk_manifest *out);

/* Not collective.  BK_INPUT when a shard is missing or its size is not the manifest's. */
BK_CHECKED bk_status bk_shard_size(bk_arena *arena, const char *path, const bk_shard_file *s);

/* Collective.  Steps below the directory as rank 0 sees it, newest first; their number. */
int64_t bk_list_steps_everywhere(const bk_comm *comm, bk_arena *arena, const char *directory,
                                 int64_t **steps);
/* Collective.  Where a step of that list is, as rank 0 sees it: under its name, else aside. */
const char *bk_place_of_step(const bk_comm *comm, bk_arena *arena, const char *directory,
                             int64_t step);

/* ---- retention (rank 0) ---- */

/* "DIR/.aside-step-00000500": the older one of a step while it is replaced. */
const char *bk_aside_path(bk_arena *arena, const char *directory, int64_t step);
/* The step of ".aside-step-00000500"; -1: not such a name. */
int64_t bk_step_aside(const char *name);
/* Removes what an older attempt left behind. */
void bk_remove_stale(bk_arena *arena, const char *directory, const char *own);
/* Moves a directory out of sight by one rename, then unlinks its files. */
void bk_discard(bk_arena *arena, const char *directory, const char *name, const char *run_id);
/* This process has just written or checked every byte of it. */
void bk_manifest_believe(const bk_manifest *m);
/* Of the verified ones keeps the newest, the multiples, the best and what the run started from;
 * removes the others.  Damaged ones count for nothing and stay. */
void bk_retain(bk_arena *arena, const char *directory, const bk_save_options *options);

#endif
