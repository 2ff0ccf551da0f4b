#include "dist/bucket.h"

#include "core/log.h"
#include "core/parallel.h"
#include "core/vector.h"
#include "dist/bucket_internal.h"
#include "dist/collective.h"
#include "dist/trace.h"

#include <string.h>

static bk_reduction *polled;

/* ---- segments ---- */

static int place_of_rank(int rank, int size)
{
    return bk_is_power_of_two(size) ? bk_bit_reverse(rank, size) : rank;
}

bk_segment bk_reduction_segment(const bk_reduction *r, int bucket)
{
    const bk_bucket *b = &r->slab->bucket[bucket];
    const bk_comm *c = bk_bucket_comm(r, b);
    int64_t width = b->length / c->size;
    int64_t lo = width * place_of_rank(c->rank, c->size);
    return (bk_segment){lo, lo + width};
}

/* ---- construction ---- */

static void count_experts(bk_reduction *r)
{
    int64_t most[2] = {0, 0};
    for (int i = 0, last = -1; i < r->slab->parameters; i++) {
        int expert = r->slab->parameter[i]->expert;
        if (expert < 0)
            continue;
        if (expert >= most[0])
            most[0] = expert + 1;
        if (expert > last)
            most[1]++;
        last = expert > last ? expert : last;
    }
    bk_max_i64(r->world->world, 2, most);
    r->experts = most[0];
    r->local_most = most[1];
}

static void link_second_uses(bk_reduction *r, bk_arena *arena)
{
    r->second_use = BK_NEW(arena, int, r->slab->buckets);
    for (int i = 0; i < r->slab->buckets; i++)
        r->second_use[i] = -1;
    for (int i = 0; i < r->slab->buckets; i++)
        if (r->slab->bucket[i].sibling >= 0)
            r->second_use[r->slab->bucket[i].sibling] = i;
}

/* Numbers the buckets of each communicator apart: ranks with another number of experts have another
 * index for the same dense bucket.  Even tags reduce, odd ones gather. */
static void number_messages(bk_reduction *r, bk_arena *arena)
{
    int dense = 0, experts = 0;
    r->tag = BK_NEW(arena, int, r->slab->buckets);
    for (int i = 0; i < r->slab->buckets; i++)
        r->tag[i] = 2 * (r->slab->bucket[i].expert < 0 ? dense++ : experts++);
}

/* One flight takes any bucket; the others those of up to twice the mean length. */
static void make_flights(bk_reduction *r, bk_arena *arena)
{
    int64_t longest = 0, sum = 0;
    for (int i = 0; i < r->slab->buckets; i++) {
        int64_t length = r->slab->bucket[i].length;
        BK_ASSERT(length % r->world->size == 0, "bucket %d is not padded for %d ranks", i,
                  r->world->size);
        longest = length > longest ? length : longest;
        sum += length;
    }
    int64_t usual = r->slab->buckets > 0 ? 2 * sum / r->slab->buckets : 0;
    for (int i = 0; i < BK_FLIGHTS; i++) {
        int64_t most = i == 0 || usual > longest ? longest : usual;
        r->flight[i].bucket = -1;
        r->flight[i].room = most / 2;
        r->flight[i].incoming = BK_NEW(arena, float, most / 2 + 1);
    }
}

bk_reduction *bk_reduction_new(bk_arena *arena, const bk_world *world, bk_slab *slab,
                               const bk_lanes *lanes, bool overlap)
{
    bk_reduction *r = BK_ZNEW(arena, bk_reduction, 1);
    *r = (bk_reduction){.world = world,
                        .slab = slab,
                        .lanes = *lanes,
                        .overlap = overlap,
                        .exact = bk_lanes_exact(lanes, world->size)};
    make_flights(r, arena);
    bk_gather_prepare(r, arena);
    link_second_uses(r, arena);
    number_messages(r, arena);
    count_experts(r);
    return r;
}

/* ---- flights ---- */

bk_flight *bk_flight_oldest(bk_flight flight[BK_FLIGHTS])
{
    bk_flight *first = NULL;
    for (int i = 0; i < BK_FLIGHTS; i++)
        if (flight[i].bucket >= 0 && (!first || flight[i].turn < first->turn))
            first = &flight[i];
    return first;
}

bool bk_flight_landed(bk_flight *f)
{
    int here = 0;
    BK_MPI(MPI_Testall(2, f->request, &here, MPI_STATUSES_IGNORE));
    return here;
}

void bk_flight_wait(const bk_reduction *r, bk_flight *f, bk_traffic_part part)
{
    const bk_bucket *b = &r->slab->bucket[f->bucket];
    double start = bk_seconds();
    bk_trace_wait_bucket(bk_bucket_comm(r, b), bk_bucket_number(r, f->bucket), bk_bucket_bytes(b));
    BK_MPI(MPI_Waitall(2, f->request, MPI_STATUSES_IGNORE));
    bk_trace_leave();
    bk_traffic_blocked(part, start);
}

/* ---- recursive halving ---- */

/* Distance 1 first: the rank whose bit is 0 keeps the lower half and sends the upper one. */
static void post_level(const bk_reduction *r, bk_flight *f)
{
    const bk_bucket *b = &r->slab->bucket[f->bucket];
    const bk_comm *c = bk_bucket_comm(r, b);
    int partner = c->rank ^ f->distance, tag = r->tag[f->bucket];
    int64_t half = (f->hi - f->lo) / 2;
    bool lower = (c->rank & f->distance) == 0;
    int64_t send = lower ? f->lo + half : f->lo;
    if (lower)
        f->hi -= half;
    else
        f->lo += half;
    BK_ASSERT(half < BK_MESSAGE_MAX, "a bucket of %lld floats", (long long)b->length);
    BK_MPI(MPI_Irecv(f->incoming, (int)half, MPI_FLOAT, partner, tag, c->handle, &f->request[0]));
    BK_MPI(MPI_Isend(bk_bucket_grad(r, b) + send, (int)half, MPI_FLOAT, partner, tag, c->handle,
                     &f->request[1]));
    bk_traffic_add(BK_TRAFFIC_REDUCE, half * (int64_t)sizeof(float));
}

static void reduce_plain(bk_reduction *r, const bk_bucket *b)
{
    const bk_comm *c = bk_bucket_comm(r, b);
    bk_segment own = bk_reduction_segment(r, r->next);
    int64_t width = own.hi - own.lo;
    bk_arena_mark mark = bk_arena_get_mark(c->scratch);
    float *sum = BK_NEW(c->scratch, float, width);
    double start = bk_seconds();
    bk_trace_wait_bucket(c, bk_bucket_number(r, r->next), bk_bucket_bytes(b));
    BK_MPI(MPI_Reduce_scatter_block(bk_bucket_grad(r, b), sum, (int)width, MPI_FLOAT, MPI_SUM,
                                    c->handle));
    bk_trace_leave();
    memcpy(bk_bucket_grad(r, b) + own.lo, sum, (size_t)width * sizeof *sum);
    bk_traffic_add(BK_TRAFFIC_REDUCE, (b->length - width) * (int64_t)sizeof *sum);
    bk_traffic_blocked(BK_TRAFFIC_REDUCE, start);
    bk_arena_release(c->scratch, mark);
}

typedef struct addition {
    float *sum;
    const float *other;
} addition;

static void add_piece(void *context, int64_t first, int64_t last)
{
    const addition *a = context;
    bk_vector(BK_F32)->add(last - first, a->other + first, a->sum + first);
}

static void add_to(float *sum, const float *other, int64_t n)
{
    bk_parallel(n, BK_PARALLEL_VECTOR, 1, add_piece, &(addition){sum, other});
}

static void finish_level(const bk_reduction *r, bk_flight *f)
{
    const bk_bucket *b = &r->slab->bucket[f->bucket];
    add_to(bk_bucket_grad(r, b) + f->lo, f->incoming, f->hi - f->lo);
    f->distance *= 2;
    if (f->distance < bk_bucket_comm(r, b)->size)
        post_level(r, f);
    else
        f->bucket = -1;
}

/* Finishes the levels whose messages are there; whether there were any. */
static bool advance(bk_reduction *r)
{
    bool moved = false;
    for (int i = 0; i < BK_FLIGHTS; i++)
        if (r->flight[i].bucket >= 0 && bk_flight_landed(&r->flight[i])) {
            finish_level(r, &r->flight[i]);
            moved = true;
        }
    return moved;
}

/* A free flight with room; the last with room, for the first alone takes the longest buckets. */
static bk_flight *free_flight(bk_reduction *r, int64_t length)
{
    for (int i = BK_FLIGHTS - 1; i >= 0; i--)
        if (r->flight[i].bucket < 0 && r->flight[i].room >= length / 2)
            return &r->flight[i];
    return NULL;
}

/* Starts the next bucket if it may.  A plain reduction blocks: it waits for bk_reduction_finish, so
 * that no rank stalls another in backward, and for the buckets on their way, whose partners may not
 * be there yet. */
static bool start_next(bk_reduction *r, bool wait)
{
    if (r->next >= r->slab->buckets || r->slab->bucket[r->next].waiting > 0)
        return false;
    const bk_bucket *b = &r->slab->bucket[r->next];
    int size = bk_bucket_comm(r, b)->size;
    if (!bk_is_power_of_two(size)) {
        if (!wait || bk_flight_oldest(r->flight))
            return false;
        bk_trace_bucket(bk_bucket_comm(r, b), bk_bucket_number(r, r->next), bk_bucket_bytes(b));
        reduce_plain(r, b);
    } else if (size > 1) {
        bk_flight *f = free_flight(r, b->length);
        if (!f)
            return false;
        bk_trace_bucket(bk_bucket_comm(r, b), bk_bucket_number(r, r->next), bk_bucket_bytes(b));
        f->bucket = f->turn = r->next;
        f->distance = 1;
        f->lo = 0;
        f->hi = b->length;
        post_level(r, f);
    }
    r->next++;
    return true;
}

static void progress(bk_reduction *r, bool wait)
{
    for (;;) {
        bool moved = advance(r);
        while (start_next(r, wait))
            moved = true;
        if (moved)
            continue;
        bk_flight *first = bk_flight_oldest(r->flight);
        if (!wait || !first)
            return;
        bk_flight_wait(r, first, BK_TRAFFIC_REDUCE);
        finish_level(r, first);
    }
}

void bk_bucket_poll(void)
{
    if (polled && polled->gather.active)
        bk_gather_progress(polled);
    if (polled && polled->active)
        progress(polled, false);
}

void bk_reduction_poll(bk_reduction *r)
{
    polled = r;
}

static void parameter_ready(void *context, bk_parameter *p, int use)
{
    bk_reduction *r = context;
    int index = use == 0 ? p->bucket : r->second_use[p->bucket];
    r->slab->bucket[index].waiting--;
    if (r->overlap)
        progress(r, false);
}

void bk_reduction_begin(bk_reduction *r, bk_tape *tape)
{
    for (int i = 0; i < r->slab->buckets; i++)
        r->slab->bucket[i].waiting = r->slab->bucket[i].parameters;
    r->next = 0;
    tape->grad_ready = parameter_ready;
    tape->grad_ready_context = r;
    r->active = true;
    if (r->overlap)
        bk_reduction_poll(r);
}

static void add_second_uses(bk_reduction *r)
{
    for (int i = 0; i < r->slab->buckets; i++) {
        if (r->second_use[i] < 0)
            continue;
        bk_segment own = bk_reduction_segment(r, i);
        add_to(bk_bucket_grad(r, &r->slab->bucket[i]) + own.lo,
               bk_bucket_grad(r, &r->slab->bucket[r->second_use[i]]) + own.lo, own.hi - own.lo);
    }
}

void bk_reduction_finish(bk_reduction *r)
{
    bk_reduction_gather_finish(r);
    progress(r, true);
    r->active = false;
    polled = NULL;
    BK_ASSERT(r->next == r->slab->buckets, "bucket %d never became ready", r->next);
    add_second_uses(r);
}

/* ---- formulas ---- */

static int levels_of(int size)
{
    int levels = 0;
    while (1 << levels < size)
        levels++;
    return levels;
}

bk_traffic bk_bucket_formula(const bk_reduction *r, int bucket)
{
    const bk_bucket *b = &r->slab->bucket[bucket];
    int size = bk_bucket_comm(r, b)->size;
    if (size == 1)
        return (bk_traffic){0};
    return (bk_traffic){.bytes = b->length / size * (size - 1) * (int64_t)sizeof(float),
                        .messages = bk_is_power_of_two(size) ? levels_of(size) : 1};
}

bk_traffic bk_reduction_formula(const bk_reduction *r, bk_traffic_part part)
{
    bk_traffic sum = {0};
    for (int i = 0; i < r->slab->buckets; i++)
        if (part == BK_TRAFFIC_REDUCE || r->slab->bucket[i].use == 0)
            sum = bk_traffic_plus(sum, bk_bucket_formula(r, i));
    return sum;
}
