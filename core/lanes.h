/* core/lanes.h - lanes: the fixed virtual shards of the global batch that make results independent
 * of the rank count.
 *
 * The global batch of `batch` samples is cut into `total` lanes, lane i = samples [batch i/total,
 * batch (i+1)/total). A rank owns lanes first .. first+count-1 and works on the rows of all of them
 * together; sums over rows are made per lane and combined by one fixed binary tree over the lane
 * index (tree_sum of the reference). */
#ifndef BK_CORE_LANES_H
#define BK_CORE_LANES_H

#include "core/tensor.h"

typedef struct bk_lanes {
    int64_t total; /* L, a power of two */
    int64_t first; /* first own lane */
    int64_t count; /* m, own lanes; 0 is possible */
    int64_t batch; /* samples of the global batch */
} bk_lanes;

/* One lane that holds `batch` samples: what a single-rank computation without lanes uses. */
bk_lanes bk_lanes_single(int64_t batch);

/* Lanes of rank `rank` of `size`: [L r/P, L (r+1)/P). */
bk_lanes bk_lanes_of_rank(int64_t total, int64_t batch, int rank, int size);

/* Samples of own lanes, and the global position of the first of them. */
int64_t bk_lanes_samples(const bk_lanes *lanes);
int64_t bk_lanes_first_sample(const bk_lanes *lanes);

/* First local row of own lane l (0 <= l <= count) in an array of `rows` local rows, where every own
 * sample has the same number of rows.  bk_lane_row(lanes, rows, count) = rows. */
int64_t bk_lane_row(const bk_lanes *lanes, int64_t rows, int64_t l);

/* What makes the contribution of own lane l, count values, in `out`. */
typedef void bk_lane_product(void *context, int64_t l, void *out);

/* out[n] = tree over the own lanes of product(l), elementwise in the arithmetic of `dtype` (BK_F32
 * or BK_F64), with a binary counter of at most log2(m)+1 arrays on `scratch`.  With one own lane
 * the product is written straight to out. Zero lanes: out = 0. */
void bk_lane_tree(const bk_lanes *lanes, bk_dtype dtype, int64_t n, void *out,
                  bk_lane_product *product, void *context, bk_arena *scratch);

/* values[total,n] -> out[n] by the lane tree in double.  `total` may be any number >= 0: what is
 * left over at the end of the counter is added from the top. */
void bk_lane_tree_values(int64_t total, int64_t n, const double *values, double *out,
                         bk_arena *scratch);

#endif
