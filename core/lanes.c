#include "core/lanes.h"

#include "core/parallel.h"

#include <string.h>

static int64_t cut(int64_t total, int64_t i, int64_t parts)
{
    return total * i / parts;
}

bk_lanes bk_lanes_single(int64_t batch)
{
    return (bk_lanes){.total = 1, .first = 0, .count = 1, .batch = batch};
}

bk_lanes bk_lanes_of_rank(int64_t total, int64_t batch, int rank, int size)
{
    int64_t first = cut(total, rank, size);
    return (bk_lanes){.total = total,
                      .first = first,
                      .count = cut(total, rank + 1, size) - first,
                      .batch = batch};
}

int64_t bk_lanes_first_sample(const bk_lanes *lanes)
{
    return cut(lanes->batch, lanes->first, lanes->total);
}

int64_t bk_lanes_samples(const bk_lanes *lanes)
{
    return cut(lanes->batch, lanes->first + lanes->count, lanes->total) -
           bk_lanes_first_sample(lanes);
}

int64_t bk_lane_row(const bk_lanes *lanes, int64_t rows, int64_t l)
{
    int64_t samples = bk_lanes_samples(lanes);
    if (samples == 0)
        return 0;
    BK_ASSERT(rows % samples == 0, "%lld rows of %lld samples", (long long)rows,
              (long long)samples);
    int64_t before =
        cut(lanes->batch, lanes->first + l, lanes->total) - bk_lanes_first_sample(lanes);
    return before * (rows / samples);
}

/* ---- the tree: a binary counter of partial sums ---- */

typedef struct counter {
    void *level[64];
    int depth;
    int64_t n;
    bk_dtype dtype;
} counter;

typedef struct addition {
    bk_dtype dtype;
    void *into;
    const void *other;
} addition;

static void add_piece(void *context, int64_t first, int64_t last)
{
    const addition *c = context;
    if (c->dtype == BK_F64) {
        double *a = c->into;
        const double *b = c->other;
        for (int64_t i = first; i < last; i++)
            a[i] += b[i];
    } else {
        float *a = c->into;
        const float *b = c->other;
        for (int64_t i = first; i < last; i++)
            a[i] += b[i];
    }
}

static void add_into(bk_dtype dtype, int64_t n, void *into, const void *other)
{
    bk_parallel(n, BK_PARALLEL_VECTOR, 1, add_piece, &(addition){dtype, into, other});
}

/* After lane number `done - 1` was pushed: fold the two on top while done is even, then its half,
 * ... */
static void fold(counter *c, int64_t done)
{
    for (; done % 2 == 0; done /= 2) {
        c->depth--;
        add_into(c->dtype, c->n, c->level[c->depth - 1], c->level[c->depth]);
    }
}

static void fold_rest(counter *c)
{
    for (; c->depth > 1; c->depth--)
        add_into(c->dtype, c->n, c->level[c->depth - 2], c->level[c->depth - 1]);
}

void bk_lane_tree(const bk_lanes *lanes, bk_dtype dtype, int64_t n, void *out,
                  bk_lane_product *product, void *context, bk_arena *scratch)
{
    size_t bytes = (size_t)n * bk_dtype_size(dtype);
    if (lanes->count == 0)
        memset(out, 0, bytes);
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    counter c = {.level = {out}, .n = n, .dtype = dtype};
    for (int64_t l = 0; l < lanes->count; l++) {
        if (!c.level[c.depth])
            c.level[c.depth] = bk_arena_alloc(scratch, bytes);
        product(context, l, c.level[c.depth++]);
        fold(&c, l + 1);
    }
    fold_rest(&c);
    bk_arena_release(scratch, mark);
}

typedef struct rows_of_values {
    const double *values;
    int64_t n;
} rows_of_values;

static void copy_row(void *context, int64_t l, void *out)
{
    const rows_of_values *r = context;
    memcpy(out, r->values + l * r->n, (size_t)r->n * sizeof(double));
}

void bk_lane_tree_values(int64_t total, int64_t n, const double *values, double *out,
                         bk_arena *scratch)
{
    bk_lanes lanes = {.total = total, .count = total, .batch = total};
    rows_of_values rows = {values, n};
    bk_lane_tree(&lanes, BK_F64, n, out, copy_row, &rows, scratch);
}
