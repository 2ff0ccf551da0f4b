/* losses/sinkd_kernel.h - the cost matrix of SinKD and its adjoint: block-wise loops over the
 * vocabulary. p[rows,ld], q[columns,ld]: probabilities, padded with zeros to ld, a multiple of
 * bk_sinkd_pad. */
#ifndef BK_LOSSES_SINKD_KERNEL_H
#define BK_LOSSES_SINKD_KERNEL_H

#include "core/real.h"

enum { BK_SINKD_PAD = 16 };

typedef struct bk_sinkd_kernels {
    /* c[rows,columns] += sum over v in [0,width) of |p_iv - q_jv|; width a multiple of
     * BK_SINKD_PAD. */
    void (*distances)(int64_t rows, int64_t columns, int64_t width, const void *p, const void *q,
                      int64_t ld, double *c);
    /* h_iv = sum_j g_ij sign(p_iv - q_jv), sign(0) = 0; g[rows,columns]. */
    void (*sign_sum)(int64_t rows, int64_t columns, int64_t width, const void *p, const void *q,
                     int64_t ld, const double *g, void *h);
} bk_sinkd_kernels;

BK_KERNEL_TABLES(bk_sinkd_kernels);

static inline const bk_sinkd_kernels *bk_sinkd_of(bk_dtype dtype)
{
    return BK_KERNEL_SELECT(bk_sinkd_kernels, dtype);
}

#endif
