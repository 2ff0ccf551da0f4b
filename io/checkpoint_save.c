/* Saving: stage, write, vote, commit.  A failure before the rename leaves nothing with a final
 * name.  Files are made by a thread, or (in the foreground) by the caller; messages are always the
 * main threads'. */
#include "io/checkpoint_internal.h"

#include "core/fault.h"
#include "core/log.h"
#include "core/parallel.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "io/files.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { WRITER_BYTES = 64 << 20, TAG_BLOCK = 1, TAG_LEAVES = 2, NICE = 10, TEXT = 2048 };

typedef enum phase { IDLE, WRITING, COMMITTING } phase;

struct bk_saver {
    const bk_comm *comm;
    const char *directory;
    bool background;
    bk_arena *arena; /* kept from save to save: its pages are there */
    bk_save save;
    phase phase;
    pthread_t thread;
    bool threaded;    /* this phase runs on the thread */
    atomic_bool over; /* this rank's part of the phase is */
    bk_status status; /* of it */
    char text[TEXT];
    double began, stall; /* seconds: of the save; of the main thread in it */
};

/* ---- stage: every element to the rank that writes it ---- */

static void allocate(bk_save *s)
{
    const bk_manifest *m = s->plan.manifest;
    s->staged = BK_ZNEW(s->arena, void *, m->tensors);
    s->leaves = BK_ZNEW(s->arena, uint8_t *, m->tensors);
    for (int64_t i = 0; i < m->tensors; i++) {
        const bk_stored_piece *own = bk_own_piece(s, i);
        if (own)
            s->staged[i] =
                bk_arena_alloc(s->arena, (size_t)own->length * bk_dtype_size(m->tensor[i].dtype));
        int64_t whole = s->rank == 0 ? m->tensor[i].count : own ? own->length : 0;
        s->leaves[i] = bk_arena_alloc(s->arena, (size_t)bk_leaves(whole) * BK_SHA256);
    }
}

typedef struct copy {
    char *to;
    const char *from;
} copy;

static void copy_piece(void *context, int64_t first, int64_t last)
{
    const copy *c = context;
    memcpy(c->to + first, c->from + first, (size_t)(last - first));
}

/* Everybody walks the same list, so each blocking send meets its receive. */
static void stage(bk_save *s, const bk_piece *piece)
{
    const bk_manifest *m = s->plan.manifest;
    for (int64_t i = 0; i < s->plan.transfers; i++) {
        const bk_transfer *x = &s->plan.transfer[i];
        int writer = bk_writer_rank(x->shard, m->shards, s->size);
        size_t element = bk_dtype_size(m->tensor[x->tensor].dtype);
        int64_t bytes = x->count * (int64_t)element;
        const char *from = x->rank == s->rank
                               ? (const char *)piece[x->index].data + (size_t)x->from * element
                               : NULL;
        char *to =
            writer == s->rank ? (char *)s->staged[x->tensor] + (size_t)x->to * element : NULL;
        if (from && to)
            bk_parallel(bytes, 4096, 1, copy_piece, &(copy){to, from});
        else if (from)
            bk_send_bytes(s->comm, writer, TAG_BLOCK, from, bytes);
        else if (to)
            bk_receive_bytes(s->comm, x->rank, TAG_BLOCK, to, bytes);
    }
}

/* ---- digests to rank 0 ---- */

static void gather_leaves(const bk_save *s)
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

static void gather_digests(bk_save *s)
{
    bk_manifest *m = s->plan.manifest;
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
}

/* ---- who writes ---- */

int bk_checkpoint_writers(const bk_save_options *o, int size, int64_t bytes)
{
    int64_t wanted = o->writers > 0 ? o->writers : bytes / WRITER_BYTES;
    if (o->writers == 0 && wanted < o->nodes)
        wanted = o->nodes;
    return wanted < 1 ? 1 : wanted > size ? size : (int)wanted;
}

static int own_shard(const bk_save *s)
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

static const char *temporary_path(const bk_save *s)
{
    const char *attempt = getenv("SLURM_RESTART_COUNT");
    return bk_arena_printf(s->arena, "%s/.tmp-step-%08lld.%s.%s", s->directory,
                           (long long)s->state.step, s->options.run_id, attempt ? attempt : "0");
}

/* The status of the trouble is BK_FAULT, whatever the file system said. */
static bk_status as_fault(bk_status status)
{
    if (status == BK_OK || status == BK_FAULT)
        return status;
    char text[TEXT];
    snprintf(text, sizeof text, "%s", bk_status_text());
    return bk_fail(BK_FAULT, "%s", text);
}

/* ---- phases: this rank's part, on a thread or here ---- */

static bool has_part(const bk_saver *v)
{
    return v->phase == WRITING ? v->save.shard >= 0 : v->save.rank == 0;
}

static void *run_part(void *saver)
{
    bk_saver *v = saver;
    v->status = as_fault(v->phase == WRITING ? bk_shard_write(&v->save) : bk_commit(&v->save));
    if (v->status != BK_OK)
        snprintf(v->text, sizeof v->text, "%s", bk_status_text());
    atomic_store(&v->over, true);
    return NULL;
}

/* Training goes first. */
static void *run_in_background(void *saver)
{
    setpriority(PRIO_PROCESS, (id_t)gettid(), NICE);
    return run_part(saver);
}

/* Signals are for the main thread. */
static bool start_thread(bk_saver *v)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&v->thread, NULL, run_in_background, v);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error == 0;
}

static void start_phase(bk_saver *v, phase next)
{
    v->phase = next;
    v->status = BK_OK;
    atomic_store(&v->over, !has_part(v));
    v->threaded = has_part(v) && v->background && start_thread(v);
    if (has_part(v) && !v->threaded)
        run_part(v);
}

/* Waits for the thread; the status of the own part. */
static bk_status join(bk_saver *v)
{
    if (v->threaded)
        pthread_join(v->thread, NULL);
    v->threaded = false;
    return v->status == BK_OK ? BK_OK : bk_fail(v->status, "%s", v->text);
}

/* Removes what there is of a save that failed. */
static void clean(const bk_save *s)
{
    char text[TEXT]; /* the text of the failure outlives the cleaning */
    snprintf(text, sizeof text, "%s", bk_status_text());
    if (s->shard >= 0)
        unlink(bk_shard_path(s));
    bk_barrier(s->comm);
    if (s->rank == 0)
        bk_remove_directory(s->temporary);
    bk_status_set_text(text);
}

static bk_status give_up(bk_saver *v, bk_status status)
{
    clean(&v->save);
    v->phase = IDLE;
    return status;
}

/* ---- the whole ---- */

bk_saver *bk_saver_new(const bk_comm *comm, const char *directory, bool background)
{
    bk_saver *v = calloc(1, sizeof *v);
    if (!v)
        bk_fatal("out of memory: a saver");
    v->comm = comm;
    v->directory = directory;
    v->background = background;
    v->arena = bk_arena_new("checkpoint");
    return v;
}

void bk_saver_free(bk_saver *v)
{
    if (!v)
        return;
    BK_ASSERT(v->phase == IDLE, "a save is under way");
    bk_arena_free(v->arena);
    free(v);
}

bool bk_saver_busy(const bk_saver *v)
{
    return v && v->phase != IDLE;
}

bk_saver_part bk_saver_part_of(const bk_saver *v)
{
    if (!bk_saver_busy(v) || !atomic_load(&v->over))
        return BK_PART_UNDER_WAY;
    return v->status == BK_OK ? BK_PART_DONE : BK_PART_FAILED;
}

static bk_status plan(bk_save *s, const bk_piece *pieces, int64_t count)
{
    int shards = bk_checkpoint_writers(&s->options, s->size, all_bytes(s->comm, pieces, count));
    BK_TRY(bk_plan_make(s->comm, s->arena, pieces, count, shards, &s->plan));
    s->shard = own_shard(s);
    return BK_OK;
}

static bk_status begin(bk_saver *v, const bk_piece *pieces, int64_t count)
{
    bk_save *s = &v->save;
    BK_TRY(plan(s, pieces, count));
    allocate(s);
    int error = bk_fault(BK_FAULT_SAVE_STAGE);
    bk_status local =
        error ? bk_fail(BK_FAULT, "the elements cannot be staged: %s", strerror(error)) : BK_OK;
    stage(s, pieces);
    if (local == BK_OK && s->rank == 0)
        local = bk_commit_begin(s);
    local = bk_agree(s->comm, as_fault(local));
    if (local != BK_OK)
        return give_up(v, local);
    start_phase(v, WRITING);
    return BK_OK;
}

bk_status bk_saver_begin(bk_saver *v, const bk_piece *pieces, int64_t count,
                         const bk_run_state *state, const bk_save_options *options)
{
    BK_ASSERT(v->phase == IDLE, "a save is under way");
    v->began = bk_seconds();
    bk_arena_reset(v->arena);
    v->save = (bk_save){.comm = v->comm,
                        .arena = v->arena,
                        .directory = v->directory,
                        .state = *state,
                        .options = *options,
                        .rank = bk_comm_rank(v->comm),
                        .size = bk_comm_size(v->comm)};
    v->save.temporary = temporary_path(&v->save);
    bk_status status = begin(v, pieces, count);
    v->stall = bk_seconds() - v->began;
    return status;
}

static int64_t file_bytes(const bk_manifest *m)
{
    int64_t bytes = 0;
    for (int i = 0; i < m->shards; i++)
        bytes += m->shard[i].digest.size;
    return bytes;
}

static void describe_saved(const bk_saver *v, bk_saved *out)
{
    const bk_manifest *m = v->save.plan.manifest;
    *out = (bk_saved){.step = v->save.state.step,
                      .bytes = file_bytes(m),
                      .seconds = bk_seconds() - v->began,
                      .stall = v->stall};
    memcpy(out->payload, m->payload, sizeof out->payload);
}

/* Each phase ends agreed, so that all ranks take the same way out. */
static bk_status next_phase(bk_saver *v)
{
    bk_save *s = &v->save;
    bk_status own = join(v);
    if (v->phase == WRITING) {
        int error = bk_fault(BK_FAULT_SAVE_VOTE);
        if (own == BK_OK && error)
            own = bk_fail(BK_FAULT, "the outcome is lost: %s", strerror(error));
    }
    own = bk_agree(s->comm, own);
    if (own != BK_OK)
        return give_up(v, own);
    if (v->phase == WRITING) {
        gather_digests(s);
        start_phase(v, COMMITTING);
    } else {
        bk_broadcast(s->comm, 0, s->plan.manifest->payload, sizeof s->plan.manifest->payload);
        v->phase = IDLE;
    }
    return BK_OK;
}

bk_status bk_saver_advance(bk_saver *v, bk_saved *saved)
{
    double start = bk_seconds();
    BK_ASSERT(v->phase != IDLE, "no save is under way");
    bk_status status = next_phase(v);
    v->stall += bk_seconds() - start;
    if (status == BK_OK && v->phase == IDLE)
        describe_saved(v, saved);
    return status;
}

bk_status bk_saver_finish(bk_saver *v, bk_saved *saved)
{
    bk_status status = BK_OK;
    while (status == BK_OK && bk_saver_busy(v))
        status = bk_saver_advance(v, saved);
    return status;
}

bk_status bk_checkpoint_save(const bk_comm *comm, const char *directory, const bk_piece *pieces,
                             int64_t count, const bk_run_state *state,
                             const bk_save_options *options, bk_saved *out)
{
    bk_saver *v = bk_saver_new(comm, directory, false);
    bk_status status = bk_saver_begin(v, pieces, count, state, options);
    if (status == BK_OK)
        status = bk_saver_finish(v, out);
    bk_saver_free(v);
    return status;
}
