#include "dist/bucket.h"

#include "core/blas.h"
#include "core/hooks.h"
#include "core/log.h"
#include "core/vector.h"
#include "dist/bucket_internal.h"
#include "dist/collective.h"

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

bk_reduction *bk_reduction_new(bk_arena *arena, const bk_world *world, bk_slab *slab,
                               const bk_lanes *lanes, bool overlap)
{
    bk_reduction *r = BK_ZNEW(arena, bk_reduction, 1);
    *r = (bk_reduction){.world = world,
                        .slab = slab,
                        .lanes = *lanes,
                        .overlap = overlap,
                        .exact = bk_lanes_exact(lanes, world->size)};
    int64_t longest = 0;
    for (int i = 0; i < slab->buckets; i++) {
        BK_ASSERT(slab->bucket[i].length % world->size == 0, "bucket %d is not padded for %d ranks",
                  i, world->size);
        longest = slab->bucket[i].length > longest ? slab->bucket[i].length : longest;
    }
    r->incoming = BK_NEW(arena, float, longest / 2 + 1);
    link_second_uses(r, arena);
    number_messages(r, arena);
    count_experts(r);
    return r;
}

/* ---- recursive halving ---- */

/* Distance 1 first: the rank whose bit is 0 keeps the lower half and sends the upper one. */
static void post_level(bk_reduction *r, const bk_bucket *b)
{
    const bk_comm *c = bk_bucket_comm(r, b);
    int partner = c->rank ^ r->distance;
    int64_t half = (r->hi - r->lo) / 2;
    bool lower = (c->rank & r->distance) == 0;
    int64_t send = lower ? r->lo + half : r->lo;
    if (lower)
        r->hi -= half;
    else
        r->lo += half;
    BK_ASSERT(half < BK_MESSAGE_MAX, "a bucket of %lld floats", (long long)b->length);
    BK_MPI(MPI_Irecv(r->incoming, (int)half, MPI_FLOAT, partner, r->tag[r->next], c->handle,
                     &r->request[0]));
    BK_MPI(MPI_Isend(bk_bucket_grad(r, b) + send, (int)half, MPI_FLOAT, partner, r->tag[r->next],
                     c->handle, &r->request[1]));
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
    BK_MPI(MPI_Reduce_scatter_block(bk_bucket_grad(r, b), sum, (int)width, MPI_FLOAT, MPI_SUM,
                                    c->handle));
    memcpy(bk_bucket_grad(r, b) + own.lo, sum, (size_t)width * sizeof *sum);
    bk_traffic_add(BK_TRAFFIC_REDUCE, (b->length - width) * (int64_t)sizeof *sum);
    bk_traffic_blocked(BK_TRAFFIC_REDUCE, start);
    bk_arena_release(c->scratch, mark);
}

static void bucket_done(bk_reduction *r)
{
    r->under_way = false;
    r->next++;
}

static void start_bucket(bk_reduction *r)
{
    const bk_bucket *b = &r->slab->bucket[r->next];
    const bk_comm *c = bk_bucket_comm(r, b);
    if (!bk_is_power_of_two(c->size))
        reduce_plain(r, b);
    if (c->size == 1 || !bk_is_power_of_two(c->size)) {
        bucket_done(r);
        return;
    }
    r->under_way = true;
    r->distance = 1;
    r->lo = 0;
    r->hi = b->length;
    post_level(r, b);
}

static void finish_level(bk_reduction *r)
{
    const bk_bucket *b = &r->slab->bucket[r->next];
    bk_vector(BK_F32)->add(r->hi - r->lo, r->incoming, bk_bucket_grad(r, b) + r->lo);
    r->distance *= 2;
    if (r->distance < bk_bucket_comm(r, b)->size)
        post_level(r, b);
    else
        bucket_done(r);
}

static bool arrived(bk_reduction *r, bool wait)
{
    if (wait) {
        double start = bk_seconds();
        BK_MPI(MPI_Waitall(2, r->request, MPI_STATUSES_IGNORE));
        bk_traffic_blocked(BK_TRAFFIC_REDUCE, start);
        return true;
    }
    int flag = 0;
    BK_MPI(MPI_Testall(2, r->request, &flag, MPI_STATUSES_IGNORE));
    return flag != 0;
}

/* A plain reduction blocks, so it must not be started from inside backward on one rank while
 * another computes: it would still be right, but it would stall; it waits for bk_reduction_finish.
 */
static bool may_start(const bk_reduction *r, bool wait)
{
    if (r->next >= r->slab->buckets || r->slab->bucket[r->next].waiting > 0)
        return false;
    return wait || bk_is_power_of_two(bk_bucket_comm(r, &r->slab->bucket[r->next])->size);
}

static void progress(bk_reduction *r, bool wait)
{
    for (;;) {
        if (r->under_way) {
            if (!arrived(r, wait))
                return;
            finish_level(r);
        } else if (may_start(r, wait)) {
            start_bucket(r);
        } else {
            return;
        }
    }
}

static void poll(void)
{
    if (polled)
        progress(polled, false);
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
    r->under_way = false;
    tape->grad_ready = parameter_ready;
    tape->grad_ready_context = r;
    polled = r->overlap ? r : NULL;
    bk_set_poll(poll);
}

static void add_second_uses(bk_reduction *r)
{
    for (int i = 0; i < r->slab->buckets; i++) {
        if (r->second_use[i] < 0)
            continue;
        bk_segment own = bk_reduction_segment(r, i);
        float *first = bk_bucket_grad(r, &r->slab->bucket[i]);
        const float *second = bk_bucket_grad(r, &r->slab->bucket[r->second_use[i]]);
#pragma omp parallel for simd schedule(static) num_threads(bk_blas_threads())
        for (int64_t j = own.lo; j < own.hi; j++)
            first[j] += second[j];
    }
}

void bk_reduction_finish(bk_reduction *r)
{
    polled = NULL;
    progress(r, true);
    BK_ASSERT(r->next == r->slab->buckets, "bucket %d never became ready", r->next);
    add_second_uses(r);
}

/* ---- all-gather: the steps backwards ---- */

static void gather_doubling(const bk_comm *c, float *x, int64_t length, int tag)
{
    int64_t width = length / c->size;
    int64_t lo = width * bk_bit_reverse(c->rank, c->size);
    for (int distance = c->size / 2; distance >= 1; distance /= 2, width *= 2) {
        bool lower = (c->rank & distance) == 0;
        int64_t theirs = lower ? lo + width : lo - width;
        int partner = c->rank ^ distance;
        BK_MPI(MPI_Sendrecv(x + lo, (int)width, MPI_FLOAT, partner, tag, x + theirs, (int)width,
                            MPI_FLOAT, partner, tag, c->handle, MPI_STATUS_IGNORE));
        bk_traffic_add(BK_TRAFFIC_GATHER, width * (int64_t)sizeof *x);
        lo = lower ? lo : theirs;
    }
}

void bk_reduction_allgather(bk_reduction *r, float *array)
{
    double start = bk_seconds();
    for (int i = 0; i < r->slab->buckets; i++) {
        const bk_bucket *b = &r->slab->bucket[i];
        const bk_comm *c = bk_bucket_comm(r, b);
        if (b->use > 0 || c->size == 1)
            continue;
        if (bk_is_power_of_two(c->size)) {
            gather_doubling(c, array + b->offset, b->length, r->tag[i] + 1);
            continue;
        }
        int64_t width = b->length / c->size;
        BK_MPI(MPI_Allgather(MPI_IN_PLACE, 0, MPI_FLOAT, array + b->offset, (int)width, MPI_FLOAT,
                             c->handle));
        bk_traffic_add(BK_TRAFFIC_GATHER, width * (c->size - 1) * (int64_t)sizeof *array);
    }
    bk_traffic_blocked(BK_TRAFFIC_GATHER, start);
}

/* ---- formulas ---- */

static int levels_of(int size)
{
    int levels = 0;
    while (1 << levels < size)
        levels++;
    return levels;
}

/* One bucket each way. */
static bk_traffic one_way(const bk_comm *c, int64_t length)
{
    if (c->size == 1)
        return (bk_traffic){0};
    return (bk_traffic){.bytes = length / c->size * (c->size - 1) * (int64_t)sizeof(float),
                        .messages = bk_is_power_of_two(c->size) ? levels_of(c->size) : 1};
}

bk_traffic bk_reduction_formula(const bk_reduction *r, bk_traffic_part part)
{
    bk_traffic sum = {0};
    for (int i = 0; i < r->slab->buckets; i++) {
        const bk_bucket *b = &r->slab->bucket[i];
        if (b->use > 0 && part == BK_TRAFFIC_GATHER)
            continue;
        bk_traffic one = one_way(bk_bucket_comm(r, b), b->length);
        sum.bytes += one.bytes;
        sum.messages += one.messages;
    }
    return sum;
}
