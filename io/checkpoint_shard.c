/* One writer's part of a checkpoint: the file from what was staged, its digests, its leaves. */
#include "io/checkpoint_internal.h"

#include "core/fault.h"
#include "io/files.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

enum { CALL_BYTES = 8 << 20 };

const bk_stored_piece *bk_own_piece(const bk_save *s, int64_t tensor)
{
    const bk_stored_tensor *t = &s->plan.manifest->tensor[tensor];
    for (int k = 0; k < t->pieces; k++)
        if (t->piece[k].shard == s->shard)
            return &t->piece[k];
    return NULL;
}

const char *bk_shard_path(const bk_save *s)
{
    return bk_arena_printf(s->arena, "%s/shard-%05d.h5", s->temporary, s->shard);
}

/* A fault that a test wants here. */
static bk_status pass(bk_fault_point point, const char *path)
{
    int error = bk_fault_at(point, path);
    return error ? bk_fail(BK_FAULT, "the file cannot be written (%s): %s", path, strerror(error))
                 : BK_OK;
}

/* ---- content ---- */

static bk_status write_slice(bk_h5 *file, const bk_stored_tensor *t, const bk_stored_piece *own,
                             const void *data, bk_arena *arena)
{
    const char *path = bk_arena_printf(arena, "/%s", t->name);
    int64_t step = (int64_t)(CALL_BYTES / bk_dtype_size(t->dtype));
    BK_TRY(bk_h5_create_dataset(file, path, t->dtype, 1, &own->length));
    BK_TRY(bk_h5_set_attribute(file, path, "global_shape", BK_I64, t->dims, t->shape));
    BK_TRY(bk_h5_set_attribute(file, path, "offset", BK_I64, 0, &own->offset));
    BK_TRY(bk_h5_set_attribute_text(file, path, "dtype", bk_dtype_name(t->dtype)));
    for (int64_t at = 0; at < own->length; at += step) {
        int64_t count = own->length - at < step ? own->length - at : step;
        const char *from = (const char *)data + (size_t)at * bk_dtype_size(t->dtype);
        BK_TRY(bk_h5_write_rows(file, path, t->dtype, at, count, from));
        bk_h5_start_writing_back(file);
    }
    return BK_OK;
}

static bk_status write_slices(const bk_save *s, bk_h5 *file)
{
    const bk_manifest *m = s->plan.manifest;
    for (int64_t i = 0; i < m->tensors; i++) {
        const bk_stored_piece *own = bk_own_piece(s, i);
        if (i == m->tensors / 2)
            BK_TRY(pass(BK_FAULT_SAVE_WRITE_MID, bk_shard_path(s)));
        if (own)
            BK_TRY(write_slice(file, &m->tensor[i], own, s->staged[i], s->arena));
    }
    return BK_OK;
}

static bk_status write_content(const bk_save *s, bk_h5 *file)
{
    const int32_t shard = s->shard, shards = s->plan.manifest->shards;
    const uint8_t complete = 1;
    bk_h5_set_deflate(file, s->options.deflate);
    BK_TRY(bk_h5_stamp(file, "birkhoff-checkpoint"));
    BK_TRY(bk_h5_set_attribute(file, "/", "step", BK_I64, 0, &s->state.step));
    BK_TRY(bk_h5_set_attribute(file, "/", "shard", BK_I32, 0, &shard));
    BK_TRY(bk_h5_set_attribute(file, "/", "shards", BK_I32, 0, &shards));
    BK_TRY(write_slices(s, file));
    if (s->shard == 0)
        BK_TRY(bk_state_write(file, &s->state, s->options.run_id));
    BK_TRY(bk_h5_set_attribute(file, "/", "complete", BK_U8, 0, &complete));
    return pass(BK_FAULT_SAVE_CLOSE, bk_shard_path(s));
}

/* What was written, read again and compared with what was staged. */
static bk_status reread(const bk_save *s, const char *path)
{
    const bk_manifest *m = s->plan.manifest;
    bk_h5 *file;
    BK_TRY(bk_h5_open(s->arena, path, &file));
    bk_status status = BK_OK;
    for (int64_t i = 0; i < m->tensors && status == BK_OK; i++) {
        const bk_stored_piece *own = bk_own_piece(s, i);
        const char *name = bk_arena_printf(s->arena, "/%s", m->tensor[i].name);
        bk_tensor *x;
        if (!own)
            continue;
        bk_arena_mark mark = bk_arena_get_mark(s->arena);
        status = bk_h5_read(file, name, m->tensor[i].dtype, s->arena, &x);
        if (status == BK_OK &&
            memcmp(x->data, s->staged[i], (size_t)own->length * bk_dtype_size(x->dtype)) != 0)
            status = bk_fail(BK_FAULT, "%s reads back other values (%s)", name, path);
        bk_arena_release(s->arena, mark);
    }
    bk_status closed = bk_h5_close(file);
    return status != BK_OK ? status : closed;
}

/* ---- the file ---- */

static bk_status write_file(const bk_save *s, const char *path)
{
    bk_h5 *file;
    BK_TRY(pass(BK_FAULT_SAVE_WRITE, path));
    BK_TRY(bk_h5_create(s->arena, path, &file));
    bk_status status = write_content(s, file), closed = bk_h5_close(file);
    return status != BK_OK ? status : closed;
}

/* The library refuses a file that is shorter than it left it; what was digested is what is there.
 */
static bk_status check_whole(const bk_save *s, const char *path)
{
    uint8_t complete = 0;
    bk_h5 *file;
    BK_TRY(bk_h5_open(s->arena, path, &file));
    bk_status status = bk_h5_attribute(file, "/", "complete", BK_U8, 0, &complete);
    bk_status closed = bk_h5_close(file);
    BK_TRY(status);
    BK_TRY(closed);
    if (complete != 1 || bk_file_size(path) != s->digest.size)
        return bk_fail(BK_FAULT, "the file lost a part of what was written (%s): check the disk",
                       path);
    return BK_OK;
}

static void *digest_leaves(void *save)
{
    const bk_save *s = save;
    const bk_manifest *m = s->plan.manifest;
    for (int64_t i = 0; i < m->tensors; i++) {
        const bk_stored_piece *own = bk_own_piece(s, i);
        uint8_t *to = s->leaves[i];
        if (own)
            bk_digest_leaves(s->staged[i], own->length, bk_dtype_size(m->tensor[i].dtype),
                             s->rank == 0 ? to + own->offset / BK_LEAF * BK_SHA256 : to);
    }
    return NULL;
}

/* The digests of the leaves are made from memory beside the writing. */
static bk_status write_and_digest(bk_save *s, const char *path)
{
    pthread_t digester;
    bool beside = pthread_create(&digester, NULL, digest_leaves, s) == 0;
    bk_status status = write_file(s, path);
    if (beside)
        pthread_join(digester, NULL);
    else
        digest_leaves(s);
    return status;
}

/* The digests of the file are made while the system writes: what they read is what it writes. */
bk_status bk_shard_write(bk_save *s)
{
    const char *path = bk_shard_path(s);
    BK_TRY(write_and_digest(s, path));
    BK_TRY(pass(BK_FAULT_SAVE_DIGEST, path));
    BK_TRY(bk_digest_file(path, &s->digest));
    BK_TRY(pass(BK_FAULT_SAVE_SYNC, path));
    BK_TRY(bk_sync_file(path));
    BK_TRY(check_whole(s, path));
    return s->options.verify_write ? reread(s, path) : BK_OK;
}
