/* losses/layers_kernel.h - loops of the losses between layers: two rows of n reals. */
#ifndef BK_LOSSES_LAYERS_KERNEL_H
#define BK_LOSSES_LAYERS_KERNEL_H

#include "core/real.h"

/* Probabilities below this count as that much. */
#define BK_LAYERS_LEAST 1e-30

typedef struct bk_layers_kernels {
    /* sum (x - y)^2, in double. */
    double (*square)(int64_t n, const void *x, const void *y);
    /* <x,y>, in double. */
    double (*dot)(int64_t n, const void *x, const void *y);
    /* dx += a x + b y. */
    void (*combine)(int64_t n, double a, const void *x, double b, const void *y, void *dx);
    /* sum y (log max(y,least) - log max(x,least)), in double. */
    double (*divergence)(int64_t n, const void *x, const void *y);
    /* dx -= factor y/x where x >= least. */
    void (*divergence_back)(int64_t n, double factor, const void *x, const void *y, void *dx);
} bk_layers_kernels;

BK_KERNEL_TABLES(bk_layers_kernels);

static inline const bk_layers_kernels *bk_layers_of(bk_dtype dtype)
{
    return BK_KERNEL_SELECT(bk_layers_kernels, dtype);
}

#endif
