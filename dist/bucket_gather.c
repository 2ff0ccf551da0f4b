#include "dist/bucket.h"

#include "core/log.h"
#include "dist/bucket_internal.h"
#include "dist/trace.h"

#include <stdlib.h>

/* ---- all at once ---- */

static void gather_plain(const bk_comm *c, const bk_bucket *b, float *array)
{
    int64_t width = b->length / c->size;
    bk_trace_enter(c, BK_CALL_ALLGATHER, bk_bucket_bytes(b));
    BK_MPI(MPI_Allgather(MPI_IN_PLACE, 0, MPI_FLOAT, array + b->offset, (int)width, MPI_FLOAT,
                         c->handle));
    bk_trace_leave();
    bk_traffic_add(BK_TRAFFIC_GATHER, width * (c->size - 1) * (int64_t)sizeof *array);
}

void bk_reduction_allgather(bk_reduction *r, float *array)
{
    double start = bk_seconds();
    for (int i = 0; i < r->slab->buckets; i++) {
        const bk_bucket *b = &r->slab->bucket[i];
        const bk_comm *c = bk_bucket_comm(r, b);
        if (b->use > 0 || c->size == 1)
            continue;
        if (!bk_is_power_of_two(c->size)) {
            gather_plain(c, b, array);
            continue;
        }
        bk_trace_enter(c, BK_CALL_ALLGATHER, bk_bucket_bytes(b));
        bk_gather_halves(c, BK_F32, b->length, array + b->offset, r->tag[i] + 1);
        bk_trace_leave();
    }
    bk_traffic_blocked(BK_TRAFFIC_GATHER, start);
}

/* ---- beside forward: the steps of halving backwards, bucket by bucket ---- */

typedef struct place {
    int first, bucket; /* its first parameter in the order of declaration, which is forward's */
} place;

static int by_first(const void *a, const void *b)
{
    const place *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

/* Ranks with other experts have other buckets; those that they share stand in one order on all. */
void bk_gather_prepare(bk_reduction *r, bk_arena *arena)
{
    bk_gather *g = &r->gather;
    const bk_slab *slab = r->slab;
    place *list = BK_NEW(arena, place, slab->buckets);
    for (int i = 0; i < slab->buckets; i++)
        list[i] = (place){slab->parameters, i};
    for (int i = slab->parameters - 1; i >= 0; i--)
        list[slab->parameter[i]->bucket].first = i;
    qsort(list, (size_t)slab->buckets, sizeof *list, by_first);
    g->order = BK_NEW(arena, int, slab->buckets);
    g->missing = BK_ZNEW(arena, bool, slab->buckets);
    for (int i = 0; i < slab->buckets; i++) {
        const bk_bucket *b = &slab->bucket[list[i].bucket];
        if (b->use == 0 && bk_bucket_comm(r, b)->size > 1)
            g->order[g->buckets++] = list[i].bucket;
    }
    g->next = g->buckets;
    for (int i = 0; i < BK_FLIGHTS; i++)
        g->flight[i].bucket = -1;
}

/* The floats that the partner of this level holds: beside ours. */
static int64_t theirs(const bk_comm *c, const bk_flight *f)
{
    return (c->rank & f->distance) == 0 ? f->hi : f->lo - (f->hi - f->lo);
}

static void post_level(bk_reduction *r, bk_flight *f)
{
    const bk_bucket *b = &r->slab->bucket[f->bucket];
    const bk_comm *c = bk_bucket_comm(r, b);
    float *value = r->slab->value + b->offset;
    int partner = c->rank ^ f->distance, width = (int)(f->hi - f->lo);
    int tag = r->tag[f->bucket] + 1;
    BK_MPI(
        MPI_Irecv(value + theirs(c, f), width, MPI_FLOAT, partner, tag, c->handle, &f->request[0]));
    BK_MPI(MPI_Isend(value + f->lo, width, MPI_FLOAT, partner, tag, c->handle, &f->request[1]));
    bk_traffic sent = {.bytes = width * (int64_t)sizeof *value, .messages = 1};
    r->gather.sent = bk_traffic_plus(r->gather.sent, sent);
}

static void finish_level(bk_reduction *r, bk_flight *f)
{
    const bk_comm *c = bk_bucket_comm(r, &r->slab->bucket[f->bucket]);
    int64_t other = theirs(c, f), width = f->hi - f->lo;
    f->lo = other < f->lo ? other : f->lo;
    f->hi = f->lo + 2 * width;
    f->distance /= 2;
    if (f->distance > 0) {
        post_level(r, f);
        return;
    }
    r->gather.missing[f->bucket] = false;
    f->bucket = -1;
}

static void start(bk_reduction *r, bk_flight *f, int turn)
{
    f->turn = turn;
    f->bucket = r->gather.order[turn];
    bk_segment own = bk_reduction_segment(r, f->bucket);
    f->lo = own.lo;
    f->hi = own.hi;
    f->distance = bk_bucket_comm(r, &r->slab->bucket[f->bucket])->size / 2;
    post_level(r, f);
}

/* Those of ranks no power of two came at once. */
static bool next_is_here(const bk_gather *g)
{
    return g->next < g->buckets && !g->missing[g->order[g->next]];
}

void bk_gather_progress(bk_reduction *r)
{
    bk_gather *g = &r->gather;
    for (int i = 0; i < BK_FLIGHTS; i++) {
        bk_flight *f = &g->flight[i];
        while (f->bucket >= 0 && bk_flight_landed(f))
            finish_level(r, f);
        while (next_is_here(g))
            g->next++;
        if (f->bucket < 0 && g->next < g->buckets)
            start(r, f, g->next++);
    }
}

static void wait_for_one(bk_reduction *r)
{
    bk_flight *first = bk_flight_oldest(r->gather.flight);
    BK_ASSERT(first, "%d of %d buckets", r->gather.next, r->gather.buckets);
    bk_flight_wait(r, first, BK_TRAFFIC_GATHER);
    finish_level(r, first);
    bk_gather_progress(r);
}

static void parameter_needed(void *context, bk_parameter *p)
{
    bk_reduction *r = context;
    while (p->slab == r->slab && r->gather.missing[p->bucket])
        wait_for_one(r);
}

/* What cannot go bucket by bucket: blocks. */
static void gather_odd(bk_reduction *r)
{
    double began = bk_seconds();
    for (int i = 0; i < r->gather.buckets; i++) {
        const bk_bucket *b = &r->slab->bucket[r->gather.order[i]];
        const bk_comm *c = bk_bucket_comm(r, b);
        r->gather.missing[r->gather.order[i]] = bk_is_power_of_two(c->size);
        if (!bk_is_power_of_two(c->size))
            gather_plain(c, b, r->slab->value);
    }
    bk_traffic_blocked(BK_TRAFFIC_GATHER, began);
}

void bk_reduction_gather_begin(bk_reduction *r, bk_tape *tape)
{
    bk_gather *g = &r->gather;
    if (!r->overlap) {
        bk_reduction_allgather(r, r->slab->value);
        return;
    }
    gather_odd(r);
    g->next = 0;
    g->sent = (bk_traffic){0};
    g->active = true;
    g->tape = tape;
    tape->parameter_needed = parameter_needed;
    tape->parameter_context = r;
    bk_reduction_poll(r);
    bk_gather_progress(r);
}

void bk_reduction_gather_finish(bk_reduction *r)
{
    bk_gather *g = &r->gather;
    if (!g->active)
        return;
    bk_gather_progress(r);
    while (bk_flight_oldest(g->flight))
        wait_for_one(r);
    bk_traffic_add_all(BK_TRAFFIC_GATHER, g->sent);
    g->active = false;
    g->tape->parameter_needed = NULL;
}
