#include "dist/bucket.h"

#include "core/blas.h"
#include "core/hooks.h"
#include "dist/collective.h"
#include "dist/internal.h"

#include <math.h>
#include <string.h>

/* Where a bucket stands.  One bucket is under way at a time; they start in index order on all
 * ranks. */
struct bk_reduction {
    const bk_world *world;
    bk_slab *slab;
    bk_lanes lanes;
    bool overlap, exact;
    int64_t experts;    /* of the model, over all ranks */
    int64_t local_most; /* experts on the fullest rank */
    int *second_use;    /* [buckets] bucket of use 1 of the bucket of use 0, or -1 */
    int *tag;           /* [buckets] of its messages; the same on all ranks that reduce it */
    /* the bucket under way */
    int next; /* index of the next bucket to start, or of the one under way */
    bool under_way;
    int distance;
    int64_t lo, hi; /* floats of the bucket that are still ours */
    float *incoming;
    MPI_Request request[2];
};

static bk_reduction *polled;

static const bk_comm *comm_of(const bk_reduction *r, const bk_bucket *b)
{
    return b->expert < 0 ? r->world->world : r->world->edp_buckets;
}

/* ---- segments ---- */

static int bit_reverse(int rank, int size)
{
    int reversed = 0;
    for (; size > 1; size /= 2, rank /= 2)
        reversed = 2 * reversed + rank % 2;
    return reversed;
}

static int place_of_rank(int rank, int size)
{
    return bk_is_power_of_two(size) ? bit_reverse(rank, size) : rank;
}

bk_segment bk_reduction_segment(const bk_reduction *r, int bucket)
{
    const bk_bucket *b = &r->slab->bucket[bucket];
    const bk_comm *c = comm_of(r, b);
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

static float *bucket_grad(const bk_reduction *r, const bk_bucket *b)
{
    return r->slab->grad + b->grad_offset;
}

/* Distance 1 first: the rank whose bit is 0 keeps the lower half and sends the upper one. */
static void post_level(bk_reduction *r, const bk_bucket *b)
{
    const bk_comm *c = comm_of(r, b);
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
    BK_MPI(MPI_Isend(bucket_grad(r, b) + send, (int)half, MPI_FLOAT, partner, r->tag[r->next],
                     c->handle, &r->request[1]));
    bk_traffic_add(half * (int64_t)sizeof(float));
}

static void reduce_plain(bk_reduction *r, const bk_bucket *b)
{
    const bk_comm *c = comm_of(r, b);
    bk_segment own = bk_reduction_segment(r, r->next);
    int64_t width = own.hi - own.lo;
    bk_arena_mark mark = bk_arena_get_mark(c->scratch);
    float *sum = BK_NEW(c->scratch, float, width);
    BK_MPI(MPI_Reduce_scatter_block(bucket_grad(r, b), sum, (int)width, MPI_FLOAT, MPI_SUM,
                                    c->handle));
    memcpy(bucket_grad(r, b) + own.lo, sum, (size_t)width * sizeof *sum);
    bk_traffic_add((b->length - width) * (int64_t)sizeof *sum);
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
    const bk_comm *c = comm_of(r, b);
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
    float *own = bucket_grad(r, b);
    for (int64_t i = r->lo; i < r->hi; i++)
        own[i] += r->incoming[i - r->lo];
    r->distance *= 2;
    if (r->distance < comm_of(r, b)->size)
        post_level(r, b);
    else
        bucket_done(r);
}

static bool arrived(bk_reduction *r, bool wait)
{
    if (wait) {
        BK_MPI(MPI_Waitall(2, r->request, MPI_STATUSES_IGNORE));
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
    return wait || bk_is_power_of_two(comm_of(r, &r->slab->bucket[r->next])->size);
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
        float *first = bucket_grad(r, &r->slab->bucket[i]);
        const float *second = bucket_grad(r, &r->slab->bucket[r->second_use[i]]);
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
    int64_t lo = width * bit_reverse(c->rank, c->size);
    for (int distance = c->size / 2; distance >= 1; distance /= 2, width *= 2) {
        bool lower = (c->rank & distance) == 0;
        int64_t theirs = lower ? lo + width : lo - width;
        int partner = c->rank ^ distance;
        BK_MPI(MPI_Sendrecv(x + lo, (int)width, MPI_FLOAT, partner, tag, x + theirs, (int)width,
                            MPI_FLOAT, partner, tag, c->handle, MPI_STATUS_IGNORE));
        bk_traffic_add(width * (int64_t)sizeof *x);
        lo = lower ? lo : theirs;
    }
}

void bk_reduction_allgather(bk_reduction *r, float *array)
{
    for (int i = 0; i < r->slab->buckets; i++) {
        const bk_bucket *b = &r->slab->bucket[i];
        const bk_comm *c = comm_of(r, b);
        if (b->use > 0 || c->size == 1)
            continue;
        if (bk_is_power_of_two(c->size)) {
            gather_doubling(c, array + b->offset, b->length, r->tag[i] + 1);
            continue;
        }
        int64_t width = b->length / c->size;
        BK_MPI(MPI_Allgather(MPI_IN_PLACE, 0, MPI_FLOAT, array + b->offset, (int)width, MPI_FLOAT,
                             c->handle));
        bk_traffic_add(width * (c->size - 1) * (int64_t)sizeof *array);
    }
}

/* ---- the norm ---- */

/* Blocks of a segment: L / ranks of the bucket's communicator, so that one block is the shard of P
 * = L; one otherwise. */
static int64_t blocks_of(const bk_reduction *r, const bk_comm *c)
{
    return r->exact ? r->lanes.total / c->size : 1;
}

static int64_t expert_blocks(const bk_reduction *r)
{
    return blocks_of(r, r->world->edp_buckets);
}

int64_t bk_reduction_norm_records(const bk_reduction *r)
{
    return blocks_of(r, r->world->world) + r->local_most * expert_blocks(r);
}

/* Eight accumulators, then a fixed tree: a fixed order for equal n. */
static double sum_of_squares(const float *x, int64_t n)
{
    double a[8] = {0};
    for (int64_t i = 0; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++)
            a[j] += (double)x[i + j] * (double)x[i + j];
    for (int64_t i = n / 8 * 8; i < n; i++)
        a[i % 8] += (double)x[i] * (double)x[i];
    return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
}

static int64_t count_nonfinite(const float *x, int64_t n)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        count += !isfinite(x[i]);
    return count;
}

/* First expert of this rank, from its parameters; 0 when there are none. */
static int first_expert(const bk_slab *slab)
{
    int first = -1;
    for (int i = 0; i < slab->parameters; i++) {
        int expert = slab->parameter[i]->expert;
        if (expert >= 0 && (first < 0 || expert < first))
            first = expert;
    }
    return first < 0 ? 0 : first;
}

void bk_reduction_squares(const bk_reduction *r, double *records, int64_t *nonfinite)
{
    memset(records, 0, (size_t)bk_reduction_norm_records(r) * sizeof *records);
    *nonfinite = 0;
    int first = first_expert(r->slab);
    for (int i = 0; i < r->slab->buckets; i++) {
        const bk_bucket *b = &r->slab->bucket[i];
        if (b->use > 0)
            continue;
        const bk_comm *c = comm_of(r, b);
        bk_segment own = bk_reduction_segment(r, i);
        int64_t blocks = blocks_of(r, c), width = (own.hi - own.lo) / blocks;
        const float *grad = bucket_grad(r, b) + own.lo;
        double *record = records;
        if (b->expert >= 0)
            record += blocks_of(r, r->world->world) + (b->expert - first) * expert_blocks(r);
        bool bad = false;
        for (int64_t j = 0; j < blocks; j++) {
            double squares = sum_of_squares(grad + j * width, width);
            record[j] += squares;
            bad = bad || !isfinite(squares);
        }
        if (bad)
            *nonfinite += count_nonfinite(grad, own.hi - own.lo);
    }
}

/* Puts the records of one kind (dense, or one expert) in block order and adds them by the lane
 * tree; any other P: in rank order. */
static double add_blocks(const bk_reduction *r, const double *all, int64_t offset, int first_rank,
                         int stride, int ranks)
{
    int64_t stored = bk_reduction_norm_records(r);
    int64_t blocks = r->exact ? r->lanes.total / ranks : 1;
    bk_arena *scratch = r->world->world->scratch;
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    double *ordered = BK_NEW(scratch, double, blocks *ranks);
    for (int i = 0; i < ranks; i++) {
        int place = r->exact ? bit_reverse(i, ranks) : i;
        const double *from = all + (int64_t)(first_rank + i * stride) * stored + offset;
        memcpy(ordered + place * blocks, from, (size_t)blocks * sizeof *from);
    }
    double sum = 0.0;
    if (r->exact)
        bk_lane_tree_values(blocks * ranks, 1, ordered, &sum, scratch);
    for (int i = 0; !r->exact && i < ranks; i++)
        sum += ordered[i];
    bk_arena_release(scratch, mark);
    return sum;
}

double bk_reduction_norm(const bk_reduction *r, const double *all_records)
{
    int size = r->world->size, ep = r->world->expert;
    double squares = add_blocks(r, all_records, 0, 0, 1, size);
    int64_t dense = blocks_of(r, r->world->world);
    int64_t share = r->experts / ep, more = r->experts % ep; /* owner rule of the experts */
    for (int e = 0; e < ep; e++)
        for (int64_t i = 0; i < share + (e < more); i++)
            squares += add_blocks(r, all_records, dense + i * expert_blocks(r), e, ep, size / ep);
    return sqrt(squares);
}
