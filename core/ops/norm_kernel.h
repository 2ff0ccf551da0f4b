/* core/ops/norm_kernel.h - LayerNorm, a row at a time. */
#ifndef BK_CORE_OPS_NORM_KERNEL_H
#define BK_CORE_OPS_NORM_KERNEL_H

#include "core/real.h"

typedef struct bk_norm_kernels {
    /* y = (x - mean) rstd gain + bias for one row of n; stat = {mean, rstd}.  bias may be NULL. */
    void (*forward)(int64_t n, const void *x, const void *gain, const void *bias, double epsilon,
                    void *y, void *stat);
    /* dx += rstd (g - mean(g) - xhat mean(g xhat)), g = dy gain. */
    void (*backward)(int64_t n, const void *x, const void *gain, const void *dy, const void *stat,
                     void *dx);
    /* dgain += dy xhat. */
    void (*gain)(int64_t n, const void *x, const void *dy, const void *stat, void *dgain);
} bk_norm_kernels;

BK_KERNEL_TABLES(bk_norm_kernels);

#endif
