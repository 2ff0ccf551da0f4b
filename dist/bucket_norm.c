/* The global norm of the gradients, from block sums that do not depend on the number of ranks. */
#include "core/parallel.h"
#include "dist/bucket_internal.h"

#include <math.h>
#include <string.h>

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

/* Sums of squares of the own segment of each bucket, by block. */
typedef struct block_squares {
    const bk_reduction *r;
    int64_t most;       /* blocks of a bucket */
    double *sum;        /* [buckets,most] */
    int64_t *nonfinite; /* [buckets] values */
} block_squares;

static bool counts(const bk_bucket *b)
{
    return b->use == 0; /* the slots of second uses were added to it */
}

static void squares_of_buckets(void *context, int64_t first, int64_t last)
{
    const block_squares *s = context;
    for (int64_t i = first; i < last; i++) {
        const bk_bucket *b = &s->r->slab->bucket[i];
        s->nonfinite[i] = 0;
        if (!counts(b))
            continue;
        bk_segment own = bk_reduction_segment(s->r, (int)i);
        int64_t blocks = blocks_of(s->r, bk_bucket_comm(s->r, b)),
                width = (own.hi - own.lo) / blocks;
        const float *grad = bk_bucket_grad(s->r, b) + own.lo;
        bool finite = true;
        for (int64_t j = 0; j < blocks; j++) {
            s->sum[i * s->most + j] = sum_of_squares(grad + j * width, width);
            finite = finite && isfinite(s->sum[i * s->most + j]);
        }
        if (!finite)
            s->nonfinite[i] = count_nonfinite(grad, own.hi - own.lo);
    }
}

/* Added in bucket order. */
static void add_records(const block_squares *s, double *records, int64_t *nonfinite)
{
    const bk_reduction *r = s->r;
    int first = first_expert(r->slab);
    for (int i = 0; i < r->slab->buckets; i++) {
        const bk_bucket *b = &r->slab->bucket[i];
        double *record = records;
        if (!counts(b))
            continue;
        if (b->expert >= 0)
            record += blocks_of(r, r->world->world) + (b->expert - first) * expert_blocks(r);
        for (int64_t j = 0; j < blocks_of(r, bk_bucket_comm(r, b)); j++)
            record[j] += s->sum[i * s->most + j];
        *nonfinite += s->nonfinite[i];
    }
}

void bk_reduction_squares(const bk_reduction *r, double *records, int64_t *nonfinite)
{
    int64_t buckets = r->slab->buckets;
    bk_arena *scratch = r->world->world->scratch;
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    block_squares s = {.r = r, .most = r->exact ? r->lanes.total : 1};
    s.sum = BK_NEW(scratch, double, buckets *s.most);
    s.nonfinite = BK_NEW(scratch, int64_t, buckets);
    memset(records, 0, (size_t)bk_reduction_norm_records(r) * sizeof *records);
    *nonfinite = 0;
    bk_parallel(buckets, 1, buckets > 0 ? r->slab->values / buckets : 0, squares_of_buckets, &s);
    add_records(&s, records, nonfinite);
    bk_arena_release(scratch, mark);
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
        int place = r->exact ? bk_bit_reverse(i, ranks) : i;
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
