/* core/ops/pointwise_kernel.h - loops of the pointwise ops over n elements. */
#ifndef BK_CORE_OPS_POINTWISE_KERNEL_H
#define BK_CORE_OPS_POINTWISE_KERNEL_H

#include "core/real.h"

typedef struct bk_pointwise_kernels {
    void (*add)(int64_t n, const void *a, const void *b, void *y);
    void (*mul)(int64_t n, const void *a, const void *b, void *y);
    void (*mul_add)(int64_t n, const void *a, const void *b, void *y); /* y += a b */
    /* y = act(x); dx += dy act'(x); dx *= act'(x), for bk_activation `kind`. */
    void (*activate)(int kind, int64_t n, const void *x, void *y);
    void (*activate_back)(int kind, int64_t n, const void *x, const void *dy, void *dx);
    void (*times_slope)(int kind, int64_t n, const void *x, void *dx);
    /* y += x scale where word i (a uniform 32-bit number) is at least the threshold. */
    void (*keep_add)(int64_t n, const void *x, const uint32_t *word, uint32_t threshold,
                     double scale, void *y);
} bk_pointwise_kernels;

BK_KERNEL_TABLES(bk_pointwise_kernels);

static inline const bk_pointwise_kernels *bk_pointwise(bk_dtype dtype)
{
    return BK_KERNEL_SELECT(bk_pointwise_kernels, dtype);
}

#endif
