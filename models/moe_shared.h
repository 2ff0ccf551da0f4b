/* models/moe_shared.h - the expert that every token goes to, beside those that the router chooses:
 *   y_t = r_t (W2 act(W1 x_t + b1) + b2),   r_t = 1 or sigmoid(<gate, x_t>)
 * (Dai et al. 2024; the gate as in Qwen2-MoE).  Dense: each rank has it whole. */
#ifndef BK_MODELS_MOE_SHARED_H
#define BK_MODELS_MOE_SHARED_H

#include "core/ops.h"

typedef struct bk_moe_shared {
    bk_tensor *w1, *b1, *w2, *b2; /* [Fs,C], [Fs], [C,Fs], [C]; b1 and b2 may be NULL */
    bk_tensor *gate;              /* [C]; NULL: r = 1 */
} bk_moe_shared;

/* Not collective.  y[T,C] of x[T,C]; 0, and without a gradient, where mask[T] (NULL: nowhere) is 0,
 * whatever stands there. */
bk_tensor *bk_moe_shared_expert(bk_tape *t, bk_tensor *x, const int32_t *mask,
                                bk_activation activation, const bk_moe_shared *shared);

#endif
