/* core/transport/sinkhorn.h - entropic transport in the log domain: the sweep that routing and
 * SinKD share.
 *
 * Rows are sharded over the ranks, columns are replicated.  The problem may fall into blocks
 * (groups of rows with columns of their own); the column vectors of all blocks are concatenated, so
 * one message serves a sweep. row step:     f_i = -LSE_j(S_ij + g_j)                         local
 *   column sums:  column_j = sum_i exp(S_ij + f_i + g_j)           each term at most 1, so no
 * maximum is needed */
#ifndef BK_CORE_TRANSPORT_SINKHORN_H
#define BK_CORE_TRANSPORT_SINKHORN_H

#include "core/hooks.h"

/* Local rows first .. first+rows-1 against columns column .. column+columns-1; s[rows,columns]. */
typedef struct bk_sinkhorn_block {
    int64_t first, rows;
    int64_t column, columns;
    const double *s;
} bk_sinkhorn_block;

typedef enum bk_sum_rule {
    BK_SUM_LANES, /* rule F3: doubles by lane, then the lane tree */
    BK_SUM_FIXED, /* rule F1: int64 fixed point, exact in any order, also over rows */
} bk_sum_rule;

typedef struct bk_sinkhorn {
    const bk_sinkhorn_block *block;
    int64_t blocks;
    int64_t rows, columns; /* local rows; all columns */
    bk_sum_rule rule;
    int64_t terms;           /* FIXED: number of terms of the global sum, for the scale */
    const int64_t *lane_row; /* LANES: [lanes->count + 1] first local row of each own lane */
    const bk_lanes *lanes;
    const bk_reducer *reducer; /* NULL = one rank, or sums that never leave the rank */
    bk_arena *scratch;
} bk_sinkhorn;

/* Bits behind the point of rule F1: min(40, 62 - ceil(log2 terms)). */
int bk_fixed_bits(int64_t terms);

/* Collective over the reducer.  From g[columns]: f[rows] and column[columns] as above.  With
 * BK_SUM_FIXED a column below one unit counts as one unit, and `q` (not NULL) receives exp(S + f +
 * g) [rows,columns] of a single block. */
void bk_sinkhorn_sweep(const bk_sinkhorn *p, const double *g, double *f, double *column, double *q);

/* Collective.  The column step with a maximum: g_j = -LSE_i(S_ij + f_i), for columns whose sum
 * underflowed. */
void bk_sinkhorn_shifted_columns(const bk_sinkhorn *p, const double *f, double *g);

/* Collective.  local[lanes->count, n] -> out[n] by the problem's reducer and lane tree. */
void bk_sinkhorn_sum(const bk_sinkhorn *p, int64_t n, const double *local, double *out);

/* The own lane that local row i lies in. */
int64_t bk_sinkhorn_lane(const bk_sinkhorn *p, int64_t i);

#endif
