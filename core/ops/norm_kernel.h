/* core/ops/norm_kernel.h - LayerNorm of rows. */
#ifndef BK_CORE_OPS_NORM_KERNEL_H
#define BK_CORE_OPS_NORM_KERNEL_H

#include "core/real.h"

/* Rows of n elements one behind the other, each with its stat = {mean, rstd}. */
typedef struct bk_norm_back {
    int64_t rows, n;
    const void *x, *gain, *dy, *stat;
    void *dx;   /* NULL where not wanted */
    bool fresh; /* dx is written, not added to */
    struct {    /* get what dx then holds; NULL: nobody */
        void *rows;
        bool fresh;
    } to[2];
    void *dgain, *dbias;
} bk_norm_back;

typedef struct bk_norm_kernels {
    /* y = (x - mean) rstd gain + bias for one row of n; stat = {mean, rstd}.  bias may be NULL. */
    void (*forward)(int64_t n, const void *x, const void *gain, const void *bias, double epsilon,
                    void *y, void *stat);
    /* sum = x + r for one row. */
    void (*add)(int64_t n, const void *x, const void *r, void *sum);
    /* dx += rstd (g - mean(g) - xhat mean(g xhat)), g = dy gain, of every row;
     * dgain = sum of dy xhat, dbias = sum of dy, over the rows in order. */
    void (*backward)(const bk_norm_back *b);
} bk_norm_kernels;

BK_KERNEL_TABLES(bk_norm_kernels);

#endif
