/* models/moe_kernel.h - loops of the mixture-of-experts layer that mix the tape's arithmetic with
 * double. */
#ifndef BK_MODELS_MOE_KERNEL_H
#define BK_MODELS_MOE_KERNEL_H

#include "core/real.h"

typedef struct bk_moe_kernels {
    /* h[experts] = gate x for one token, in double, channels in order for each expert: a row's bits
     * depend on nothing beside it.  gate_t[channels,experts] is the transposed gate in double. */
    void (*logits)(int64_t channels, int64_t experts, const void *x, const double *gate_t,
                   double *h);
    /* gate_t from gate[experts,channels]. */
    void (*transpose)(int64_t experts, int64_t channels, const void *gate, double *gate_t);
    /* sum[experts,channels] += g[experts] x[channels]. */
    void (*outer)(int64_t experts, int64_t channels, const double *g, const void *x, double *sum);
    /* dx[channels] += g gate. */
    void (*input_back)(int64_t experts, int64_t channels, const double *g, const void *gate,
                       void *dx);
    void (*round)(int64_t n, const double *x, void *y);
    /* y = w x, w rounded first. */
    void (*weigh)(int64_t n, double w, const void *x, void *y);
} bk_moe_kernels;

BK_KERNEL_TABLES(bk_moe_kernels);

static inline const bk_moe_kernels *bk_moe_of(bk_dtype dtype)
{
    return BK_KERNEL_SELECT(bk_moe_kernels, dtype);
}

#endif
