#include "dist/trace.h"

#include "core/rng.h"
#include "dist/collective.h"
#include "dist/internal.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static struct {
    bk_trace_entry entry[BK_TRACE_ENTRIES];
    int64_t entries; /* ever */
    int64_t calls[BK_LINES];
    uint64_t hash[BK_LINES];
} ring;

static struct {
    atomic_bool inside;
    atomic_int call;
    _Atomic(const char *) comm;
    _Atomic int64_t bytes, sequence;
    _Atomic uint64_t changes;
} mark;

const char *bk_call_name(bk_call call)
{
    static const char *const names[BK_CALLS] = {"barrier",
                                                "broadcast",
                                                "sum",
                                                "max",
                                                "lane sum",
                                                "gather",
                                                "all-gather",
                                                "all-to-all",
                                                "all-to-all-v",
                                                "reduce-scatter",
                                                "reduction of bucket",
                                                "send",
                                                "receive"};
    return names[call];
}

/* ---- the ring ---- */

static uint64_t hash_of(const bk_trace_entry *e)
{
    uint64_t h = (uint64_t)e->call;
    for (const char *c = e->comm; *c; c++)
        h = (h ^ (unsigned char)*c) * 0x100000001b3; /* FNV-1a */
    return bk_mix64(h) + (uint64_t)(e->call == BK_CALL_ALLTOALLV ? 0 : e->bytes);
}

static void record(const bk_trace_entry *e)
{
    ring.entry[ring.entries++ % BK_TRACE_ENTRIES] = *e;
    ring.calls[e->line]++;
    if (e->line != BK_LINE_GROUP)
        ring.hash[e->line] = bk_mix64(ring.hash[e->line] + hash_of(e));
}

static void set_mark(bool inside, const bk_trace_entry *e)
{
    atomic_store_explicit(&mark.call, e->call, memory_order_relaxed);
    atomic_store_explicit(&mark.comm, e->comm, memory_order_relaxed);
    atomic_store_explicit(&mark.bytes, e->bytes, memory_order_relaxed);
    atomic_store_explicit(&mark.sequence, e->sequence, memory_order_relaxed);
    atomic_store_explicit(&mark.inside, inside, memory_order_relaxed);
    atomic_store_explicit(&mark.changes, bk_trace_changes() + 1, memory_order_relaxed);
}

static bk_call_line line_of(const bk_comm *comm, bk_call call)
{
    if (!comm->all_ranks || call == BK_CALL_SEND || call == BK_CALL_RECEIVE)
        return BK_LINE_GROUP;
    return call == BK_CALL_BUCKET ? BK_LINE_BUCKET : BK_LINE_ALL;
}

static bk_trace_entry entry_of(const bk_comm *comm, bk_call call, int64_t bytes)
{
    bk_call_line line = line_of(comm, call);
    return (bk_trace_entry){call, line, comm->name, bytes, ring.calls[line]};
}

void bk_trace_enter(const bk_comm *comm, bk_call call, int64_t bytes)
{
    bk_trace_entry e = entry_of(comm, call, bytes);
    record(&e);
    set_mark(true, &e);
}

void bk_trace_leave(void)
{
    atomic_store_explicit(&mark.inside, false, memory_order_relaxed);
    atomic_store_explicit(&mark.changes, bk_trace_changes() + 1, memory_order_relaxed);
}

void bk_trace_bucket(const bk_comm *comm, int number, int64_t bytes)
{
    bk_trace_entry e = entry_of(comm, BK_CALL_BUCKET, bytes);
    record(&e);
    e.sequence = number;
    set_mark(false, &e);
}

void bk_trace_wait_bucket(const bk_comm *comm, int number, int64_t bytes)
{
    bk_trace_entry e = entry_of(comm, BK_CALL_BUCKET, bytes);
    e.sequence = number;
    set_mark(true, &e);
}

bool bk_trace_waits(bk_trace_entry *out)
{
    *out = (bk_trace_entry){.call = (bk_call)atomic_load_explicit(&mark.call, memory_order_relaxed),
                            .comm = atomic_load_explicit(&mark.comm, memory_order_relaxed),
                            .bytes = atomic_load_explicit(&mark.bytes, memory_order_relaxed),
                            .sequence = atomic_load_explicit(&mark.sequence, memory_order_relaxed)};
    return atomic_load_explicit(&mark.inside, memory_order_relaxed);
}

uint64_t bk_trace_changes(void)
{
    return atomic_load_explicit(&mark.changes, memory_order_relaxed);
}

void bk_trace_restart(void)
{
    memset(&ring, 0, sizeof ring);
}

bk_trace_sum bk_trace_now(void)
{
    uint64_t hash = bk_mix64(ring.hash[BK_LINE_ALL]) + ring.hash[BK_LINE_BUCKET];
    return (bk_trace_sum){ring.calls[BK_LINE_ALL] + ring.calls[BK_LINE_BUCKET],
                          (int64_t)(hash >> 1)};
}

int bk_trace_last(bk_trace_entry out[BK_TRACE_ENTRIES])
{
    int64_t count = ring.entries < BK_TRACE_ENTRIES ? ring.entries : BK_TRACE_ENTRIES;
    for (int64_t i = 0; i < count; i++)
        out[i] = ring.entry[(ring.entries - count + i) % BK_TRACE_ENTRIES];
    return (int)count;
}

/* ---- ranks whose calls differ ---- */

enum { NAME = 16 };

/* The last calls of one rank, as it sends them. */
typedef struct calls {
    bk_trace_entry entry[BK_TRACE_ENTRIES];
    char comm[BK_TRACE_ENTRIES][NAME];
    int count;
} calls;

static void take(calls *c)
{
    memset(c, 0, sizeof *c);
    c->count = bk_trace_last(c->entry);
    for (int i = 0; i < c->count; i++) {
        snprintf(c->comm[i], NAME, "%s", c->entry[i].comm);
        c->entry[i].comm = NULL;
    }
}

static const char *text_of(const calls *c, int i, char text[96])
{
    const bk_trace_entry *e = &c->entry[i];
    snprintf(text, 96, "%s on %s, %lld bytes", bk_call_name(e->call), c->comm[i],
             (long long)e->bytes);
    return text;
}

static const char *const line_name[BK_LINES] = {"call", "bucket", "call of a group"};

static void print(int rank, const calls *c)
{
    char text[96];
    for (int i = 0; i < c->count; i++)
        fprintf(stderr, "birkhoff: rank %d, %s %lld: %s\n", rank, line_name[c->entry[i].line],
                (long long)c->entry[i].sequence, text_of(c, i, text));
}

static int place_of(const calls *c, bk_call_line line, int64_t sequence)
{
    for (int i = 0; i < c->count; i++)
        if (c->entry[i].line == line && c->entry[i].sequence == sequence)
            return i;
    return -1;
}

/* Sequences of a line that the ring holds: [first, last]; empty: first > last. */
static void range_of(const calls *c, bk_call_line line, int64_t *first, int64_t *last)
{
    *first = INT64_MAX;
    *last = -1;
    for (int i = 0; i < c->count; i++) {
        int64_t sequence = c->entry[i].sequence;
        if (c->entry[i].line != line)
            continue;
        *first = sequence < *first ? sequence : *first;
        *last = sequence;
    }
}

static bool same(const calls *a, int i, const calls *b, int j)
{
    const bk_trace_entry *x = &a->entry[i], *y = &b->entry[j];
    return x->call == y->call && strcmp(a->comm[i], b->comm[j]) == 0 &&
           (x->call == BK_CALL_ALLTOALLV || x->bytes == y->bytes);
}

/* Text of the first call of a line in which `theirs` differs from `own`; false: none that both
 * still hold. */
static bool describe_line(const calls *own, const calls *theirs, bk_call_line line, char text[256])
{
    int64_t first[2], last[2];
    range_of(own, line, &first[0], &last[0]);
    range_of(theirs, line, &first[1], &last[1]);
    int64_t from = first[0] > first[1] ? first[0] : first[1];
    int64_t to = last[0] > last[1] ? last[0] : last[1];
    for (int64_t s = from; s <= to; s++) {
        int i = place_of(own, line, s), j = place_of(theirs, line, s);
        char one[96], other[96];
        if (i >= 0 && j >= 0 && same(own, i, theirs, j))
            continue;
        snprintf(text, 256, "%s %lld: %s; on rank 0: %s", line_name[line], (long long)s,
                 j >= 0 ? text_of(theirs, j, one) : "none",
                 i >= 0 ? text_of(own, i, other) : "none");
        return true;
    }
    return false;
}

static void describe(const calls *own, const calls *theirs, char text[256])
{
    if (!describe_line(own, theirs, BK_LINE_ALL, text) &&
        !describe_line(own, theirs, BK_LINE_BUCKET, text))
        snprintf(text, 256, "more than the last %d calls ago", BK_TRACE_ENTRIES);
}

/* The lowest rank whose sum is not that of rank 0; -1: none. */
static int first_differing(const bk_comm *comm, const bk_trace_sum *sum)
{
    bk_arena_mark start = bk_arena_get_mark(comm->scratch);
    int64_t *hash = BK_NEW(comm->scratch, int64_t, comm->size);
    int found = -1;
    bk_gather_counts(comm, (int64_t)bk_mix64((uint64_t)sum->hash + (uint64_t)sum->calls), hash);
    for (int r = comm->size - 1; r > 0; r--)
        if (hash[r] != hash[0])
            found = r;
    bk_arena_release(comm->scratch, start);
    return found;
}

bk_status bk_trace_compare(const bk_comm *comm)
{
    bk_trace_sum sum = bk_trace_now();
    calls own, theirs;
    char text[256];
    take(&own);
    theirs = own;
    int rank = first_differing(comm, &sum);
    if (rank < 0)
        return BK_OK;
    bk_broadcast(comm, rank, &theirs, sizeof theirs);
    if (comm->rank == 0)
        print(rank, &theirs);
    describe(&own, &theirs, text);
    bk_broadcast(comm, 0, text, sizeof text);
    return bk_fail(BK_FAULT,
                   "rank %d makes other collective calls than rank 0 (%s): a fault in Birkhoff; "
                   "report it with the calls above",
                   rank, text);
}
