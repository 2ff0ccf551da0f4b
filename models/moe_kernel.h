/* models/moe_kernel.h - loops of the mixture-of-experts layer that mix the tape's arithmetic with
 * double. */
#ifndef BK_MODELS_MOE_KERNEL_H
#define BK_MODELS_MOE_KERNEL_H

#include "core/real.h"

#define BK_MOE_PANEL(experts) (((experts) + 7) / 8 * 8)

typedef struct bk_moe_kernels {
    /* The gate[experts,channels] in double as `logits` wants it; BK_MOE_PANEL(experts) channels
     * numbers. */
    void (*panels)(int64_t experts, int64_t channels, const void *gate, double *panel);
    /* h[tokens,experts] = x[tokens,channels] gate^T in double, channels in order: an element's bits
     * depend on nothing beside it. */
    void (*logits)(int64_t tokens, int64_t channels, int64_t experts, const void *x,
                   const double *panel, double *h);
    /* sum[experts,channels] += g[experts] x[channels], rows of sum `stride` apart; dx[channels] +=
     * g gate.  Experts whose g is 0 are passed over. */
    void (*outer)(int64_t experts, int64_t channels, int64_t stride, const double *g, const void *x,
                  double *sum);
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
