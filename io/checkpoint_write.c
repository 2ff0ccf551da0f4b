/* Saving: stage, mkdir, write, sync, vote, manifest, rename.  A failure before the rename leaves
 * nothing with a final name. */
#include "io/checkpoint_internal.h"

#include "core/log.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "io/files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { WRITER_BYTES = 64 << 20, CALL_BYTES = 8 << 20, TAG_BLOCK = 1, TAG_LEAVES = 2 };

typedef struct save {
    const bk_comm *comm;
    bk_arena *arena;
    const char *directory, *temporary; /* DIR, DIR/.tmp-step-... */
    const bk_piece *piece;
    const bk_run_state *state;
    const bk_save_options *options;
    bk_plan plan;
    int rank, size, shard; /* shard: the one this rank writes, -1 = none */
    void **staged;         /* [tensors] own slice of each tensor */
    uint8_t **leaves;      /* [tensors] rank 0: of the whole; else of the own slice */
    bk_file_digest digest;
} save;

static bk_status failed_at(const char *what, const char *path)
{
    return bk_fail(BK_FAULT, "%s (%s): %s", what, path, strerror(errno));
}

static const bk_stored_piece *own_piece(const save *s, int64_t tensor)
{
    const bk_stored_tensor *t = &s->plan.manifest->tensor[tensor];
    for (int k = 0; k < t->pieces; k++)
        if (t->piece[k].shard == s->shard)
            return &t->piece[k];
    return NULL;
}

/* ---- stage: every element to the rank that writes it ---- */

static void allocate(save *s)
{
    const bk_manifest *m = s->plan.manifest;
    s->staged = BK_ZNEW(s->arena, void *, m->tensors);
    s->leaves = BK_ZNEW(s->arena, uint8_t *, m->tensors);
    for (int64_t i = 0; i < m->tensors; i++) {
        const bk_stored_piece *own = own_piece(s, i);
        if (own)
            s->staged[i] =
                bk_arena_alloc(s->arena, (size_t)own->length * bk_dtype_size(m->tensor[i].dtype));
        int64_t whole = s->rank == 0 ? m->tensor[i].count : own ? own->length : 0;
        s->leaves[i] = bk_arena_alloc(s->arena, (size_t)bk_leaves(whole) * BK_SHA256);
    }
}

/* Everybody walks the same list, so each blocking send meets its receive. */
static void stage(save *s)
{
    const bk_manifest *m = s->plan.manifest;
    for (int64_t i = 0; i < s->plan.transfers; i++) {
        const bk_transfer *x = &s->plan.transfer[i];
        int writer = bk_writer_rank(x->shard, m->shards, s->size);
        size_t element = bk_dtype_size(m->tensor[x->tensor].dtype);
        int64_t bytes = x->count * (int64_t)element;
        const char *from = x->rank == s->rank
                               ? (const char *)s->piece[x->index].data + (size_t)x->from * element
                               : NULL;
        char *to =
            writer == s->rank ? (char *)s->staged[x->tensor] + (size_t)x->to * element : NULL;
        if (from && to)
            memcpy(to, from, (size_t)bytes);
        else if (from)
            bk_send_bytes(s->comm, writer, TAG_BLOCK, from, bytes);
        else if (to)
            bk_receive_bytes(s->comm, x->rank, TAG_BLOCK, to, bytes);
    }
}

/* ---- directory ---- */

static bk_status make_directory(const save *s)
{
    const char *name = strrchr(s->temporary, '/') + 1;
    bk_remove_stale(s->arena, s->directory, name);
    if (mkdir(s->temporary, 0777) != 0)
        return failed_at("the directory cannot be made", s->temporary);
    return BK_OK;
}

/* ---- write ---- */

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
    }
    return BK_OK;
}

static bk_status write_content(const save *s, bk_h5 *file)
{
    const bk_manifest *m = s->plan.manifest;
    const int32_t shard = s->shard, shards = m->shards;
    const uint8_t complete = 1;
    bk_h5_set_deflate(file, s->options->deflate);
    BK_TRY(bk_h5_stamp(file, "birkhoff-checkpoint"));
    BK_TRY(bk_h5_set_attribute(file, "/", "step", BK_I64, 0, &s->state->step));
    BK_TRY(bk_h5_set_attribute(file, "/", "shard", BK_I32, 0, &shard));
    BK_TRY(bk_h5_set_attribute(file, "/", "shards", BK_I32, 0, &shards));
    for (int64_t i = 0; i < m->tensors; i++) {
        const bk_stored_piece *own = own_piece(s, i);
        if (own)
            BK_TRY(write_slice(file, &m->tensor[i], own, s->staged[i], s->arena));
    }
    if (s->shard == 0)
        BK_TRY(bk_state_write(file, s->state, s->options->run_id));
    return bk_h5_set_attribute(file, "/", "complete", BK_U8, 0, &complete);
}

static const char *shard_path(const save *s)
{
    return bk_arena_printf(s->arena, "%s/shard-%05d.h5", s->temporary, s->shard);
}

/* What was written, read again and compared with what was staged. */
static bk_status reread(const save *s, const char *path)
{
    const bk_manifest *m = s->plan.manifest;
    bk_h5 *file;
    BK_TRY(bk_h5_open(s->arena, path, &file));
    bk_status status = BK_OK;
    for (int64_t i = 0; i < m->tensors && status == BK_OK; i++) {
        const bk_stored_piece *own = own_piece(s, i);
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

static bk_status write_shard(save *s)
{
    const char *path = shard_path(s);
    bk_h5 *file;
    BK_TRY(bk_h5_create(s->arena, path, &file));
    bk_status status = write_content(s, file), closed = bk_h5_close(file);
    BK_TRY(status);
    BK_TRY(closed);
    BK_TRY(bk_sync_file(path));
    if (s->options->verify_write)
        BK_TRY(reread(s, path));
    return bk_digest_file(path, &s->digest);
}

/* ---- digests to rank 0 ---- */

static void digest_own(const save *s)
{
    const bk_manifest *m = s->plan.manifest;
    for (int64_t i = 0; i < m->tensors; i++) {
        const bk_stored_piece *own = own_piece(s, i);
        uint8_t *to = s->leaves[i];
        if (own)
            bk_digest_leaves(s->staged[i], own->length, bk_dtype_size(m->tensor[i].dtype),
                             s->rank == 0 ? to + own->offset / BK_LEAF * BK_SHA256 : to);
    }
}

static void gather_leaves(const save *s)
{
    const bk_manifest *m = s->plan.manifest;
    for (int64_t i = 0; i < m->tensors; i++)
        for (int k = 0; k < m->tensor[i].pieces; k++) {
            const bk_stored_piece *p = &m->tensor[i].piece[k];
            int writer = bk_writer_rank(p->shard, m->shards, s->size);
            int64_t bytes = bk_leaves(p->length) * BK_SHA256;
            if (writer != 0 && s->rank == writer)
                bk_send_bytes(s->comm, 0, TAG_LEAVES, s->leaves[i], bytes);
            else if (writer != 0 && s->rank == 0)
                bk_receive_bytes(s->comm, writer, TAG_LEAVES,
                                 s->leaves[i] + p->offset / BK_LEAF * BK_SHA256, bytes);
        }
}

static void gather_digests(save *s)
{
    bk_manifest *m = s->plan.manifest;
    digest_own(s);
    gather_leaves(s);
    int64_t *bytes = BK_NEW(s->arena, int64_t, s->size);
    for (int r = 0; r < s->size; r++)
        bytes[r] = sizeof(bk_file_digest);
    bk_file_digest *all = BK_NEW(s->arena, bk_file_digest, s->size);
    bk_allgather_bytes(s->comm, &s->digest, bytes[0], bytes, all);
    m->shard = BK_ZNEW(s->arena, bk_shard_file, m->shards);
    for (int i = 0; i < m->shards; i++)
        m->shard[i] = (bk_shard_file){.file = bk_arena_printf(s->arena, "shard-%05d.h5", i),
                                      .digest = all[bk_writer_rank(i, m->shards, s->size)]};
    if (s->rank == 0)
        bk_payload_digest(m, s->leaves, m->payload);
    bk_broadcast(s->comm, 0, m->payload, sizeof m->payload);
}

/* ---- commit (rank 0) ---- */

static void describe(const save *s)
{
    bk_manifest *m = s->plan.manifest;
    char now[32];
    time_t seconds = time(NULL);
    struct tm utc;
    gmtime_r(&seconds, &utc);
    strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", &utc);
    m->step = s->state->step;
    m->world_size = s->size;
    m->lanes = s->state->lanes;
    m->run_id = s->options->run_id;
    m->created = bk_arena_strdup(s->arena, now);
    m->version = BIRKHOFF_VERSION;
    const char *config = s->state->config ? s->state->config : "";
    bk_sha256_text(config, strlen(config), m->config_sha256);
}

/* A directory of this step is there already: a run that was set back. */
static bool same_is_there(const save *s, const char *target)
{
    bk_manifest old;
    if (bk_manifest_verify(s->arena, target, &old) == BK_OK &&
        strcmp(old.payload, s->plan.manifest->payload) == 0)
        return true;
    bk_discard(s->arena, s->directory, strrchr(target, '/') + 1, s->options->run_id);
    return false;
}

static bk_status rename_to(const save *s, const char *target)
{
    if (bk_is_directory(target) && same_is_there(s, target)) {
        bk_remove_directory(s->temporary);
        return BK_OK;
    }
    if (rename(s->temporary, target) != 0)
        return failed_at("the checkpoint cannot be renamed", target);
    return bk_sync_directory(s->directory);
}

static void point(const save *s, const char *name, const char *target)
{
    const char *hint = bk_arena_printf(s->arena, "%s/%s", s->directory, name);
    const char *text = bk_arena_printf(s->arena, "%s\n", strrchr(target, '/') + 1);
    if (bk_write_text(hint, text) != BK_OK)
        bk_warn("%s", bk_status_text());
}

static bk_status commit(const save *s)
{
    const char *target = bk_step_path(s->arena, s->directory, s->state->step);
    const char *manifest = bk_arena_printf(s->arena, "%s/manifest.json", s->temporary);
    describe(s);
    BK_TRY(bk_manifest_check(s->plan.manifest, manifest));
    BK_TRY(bk_write_text(manifest, bk_manifest_text(s->arena, s->plan.manifest)));
    BK_TRY(bk_sync_directory(s->temporary));
    BK_TRY(rename_to(s, target));
    bk_manifest_believe(s->plan.manifest);
    point(s, "latest", target);
    if (s->options->best == s->state->step)
        point(s, "best", target);
    bk_retain(s->arena, s->directory, s->options);
    return BK_OK;
}

/* ---- the whole ---- */

static int choose_shards(const save *s, int64_t bytes)
{
    const bk_save_options *o = s->options;
    int64_t wanted = o->writers > 0 ? o->writers : bytes / WRITER_BYTES;
    if (o->writers == 0 && wanted < o->nodes)
        wanted = o->nodes;
    return wanted < 1 ? 1 : wanted > s->size ? s->size : (int)wanted;
}

static int own_shard(const save *s)
{
    int shards = s->plan.manifest->shards;
    for (int i = 0; i < shards; i++)
        if (bk_writer_rank(i, shards, s->size) == s->rank)
            return i;
    return -1;
}

static int64_t all_bytes(const bk_comm *comm, const bk_piece *pieces, int64_t count)
{
    int64_t bytes = 0;
    for (int64_t i = 0; i < count; i++)
        bytes += pieces[i].count * (int64_t)bk_dtype_size(pieces[i].dtype);
    bk_sum_i64(comm, 1, &bytes);
    return bytes;
}

/* The status of the trouble is BK_FAULT, whatever the file system said. */
static bk_status as_fault(bk_status status)
{
    if (status == BK_OK || status == BK_FAULT)
        return status;
    char text[1024];
    snprintf(text, sizeof text, "%s", bk_status_text());
    return bk_fail(BK_FAULT, "%s", text);
}

/* Collective steps; each ends agreed, so that all ranks take the same way out. */
static bk_status run(save *s)
{
    bk_status local = s->rank == 0 ? make_directory(s) : BK_OK;
    BK_TRY(bk_agree(s->comm, as_fault(local)));
    local = s->shard >= 0 ? write_shard(s) : BK_OK;
    BK_TRY(bk_agree(s->comm, as_fault(local)));
    gather_digests(s);
    local = s->rank == 0 ? commit(s) : BK_OK;
    return bk_agree(s->comm, as_fault(local));
}

static void clean(const save *s)
{
    char text[1024]; /* the text of the failure outlives the cleaning */
    snprintf(text, sizeof text, "%s", bk_status_text());
    if (s->shard >= 0)
        unlink(shard_path(s));
    bk_barrier(s->comm);
    if (s->rank == 0)
        bk_remove_directory(s->temporary);
    bk_status_set_text(text);
}

static const char *temporary_path(const save *s)
{
    const char *attempt = getenv("SLURM_RESTART_COUNT");
    return bk_arena_printf(s->arena, "%s/.tmp-step-%08lld.%s.%s", s->directory,
                           (long long)s->state->step, s->options->run_id, attempt ? attempt : "0");
}

static int64_t file_bytes(const bk_manifest *m)
{
    int64_t bytes = 0;
    for (int i = 0; i < m->shards; i++)
        bytes += m->shard[i].digest.size;
    return bytes;
}

bk_status bk_checkpoint_save(const bk_comm *comm, const char *directory, const bk_piece *pieces,
                             int64_t count, const bk_run_state *state,
                             const bk_save_options *options, bk_saved *out)
{
    double start = bk_seconds();
    save s = {.comm = comm,
              .arena = bk_arena_new("checkpoint"),
              .directory = directory,
              .piece = pieces,
              .state = state,
              .options = options,
              .rank = bk_comm_rank(comm),
              .size = bk_comm_size(comm)};
    s.temporary = temporary_path(&s);
    int shards = choose_shards(&s, all_bytes(comm, pieces, count));
    bk_status status = bk_plan_make(comm, s.arena, pieces, count, shards, &s.plan);
    if (status == BK_OK) {
        s.shard = own_shard(&s);
        allocate(&s);
        stage(&s);
        status = run(&s);
        if (status != BK_OK)
            clean(&s);
        else
            *out =
                (bk_saved){.bytes = file_bytes(s.plan.manifest), .seconds = bk_seconds() - start};
        if (status == BK_OK)
            memcpy(out->payload, s.plan.manifest->payload, sizeof out->payload);
    }
    bk_arena_free(s.arena);
    return status;
}
