/* losses/sinkd_kernel.h - the cost matrix of SinKD and its adjoint: register-blocked loops over a
 * part of the vocabulary.  A result's bits depend on the two rows and on the width alone, never on
 * the rows beside them. */
#ifndef BK_LOSSES_SINKD_KERNEL_H
#define BK_LOSSES_SINKD_KERNEL_H

#include "core/real.h"

enum { BK_SINKD_PAD = 16 };

/* Rows of p against rows of q, probabilities in [0,1] or NaN. */
typedef struct bk_sinkd_tile {
    int64_t rows, columns, width; /* width: a multiple of BK_SINKD_PAD */
    const void *p, *q;            /* [rows,ld], [columns,ld] */
    int64_t ld;
} bk_sinkd_tile;

typedef struct bk_sinkd_kernels {
    /* c[rows,columns] += sum_v |p_iv - q_jv| = sum_v p_iv + sum_v q_jv - 2 sum_v min(p_iv, q_jv),
     * for the sums of the rows p_sum[rows] and q_sum[columns]. */
    void (*distances)(const bk_sinkd_tile *t, const double *p_sum, const double *q_sum, double *c);
    /* h[rows,ld]: h_iv = sum_j g_ij sign(p_iv - q_jv), sign(0) = 0; g[rows,columns]. */
    void (*sign_sum)(const bk_sinkd_tile *t, const double *g, void *h);
    /* Runs `rounds` rounds of independent minima and additions in registers, the arithmetic of
     * `distances`; returns the number of elements. */
    double (*min_add)(int64_t rounds);
} bk_sinkd_kernels;

BK_KERNEL_TABLES(bk_sinkd_kernels);

static inline const bk_sinkd_kernels *bk_sinkd_of(bk_dtype dtype)
{
    return BK_KERNEL_SELECT(bk_sinkd_kernels, dtype);
}

#endif
