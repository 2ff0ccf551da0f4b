/* models/moe_experts.h - the local experts, FFN_e(x) = W2_e act(W1_e x + b1_e) + b2_e, on the rows
 * that the exchange brought.  Products are those of one (expert, lane) block, so that bits depend
 * neither on the ranks nor on the expert-parallel degree. */
#ifndef BK_MODELS_MOE_EXPERTS_H
#define BK_MODELS_MOE_EXPERTS_H

#include "core/ops.h"
#include "models/moe_exchange.h"

typedef enum bk_expert_weight {
    BK_EXPERT_W1, /* [F,C] */
    BK_EXPERT_B1, /* [F] */
    BK_EXPERT_W2, /* [C,F] */
    BK_EXPERT_B2, /* [C] */
    BK_EXPERT_WEIGHTS
} bk_expert_weight;

/* The weights, and what the forward pass keeps for the way back. */
typedef struct bk_experts {
    bk_dtype dtype;
    int64_t count;         /* local experts */
    int64_t width, hidden; /* C, F */
    bk_activation activation;
    bk_tensor *const *leaf; /* [BK_EXPERT_WEIGHTS, count]; b1, b2 may be NULL */
    const bk_dispatch *dispatch;
    char *received; /* [R,C] rows at their experts */
    char *inner;    /* [R,F] before the activation */
    char *active;   /* [R,F] behind it */
} bk_experts;

/* Not collective.  out[R,C] from x->received; inner and active live on the step arena. */
void bk_experts_forward(bk_tape *t, bk_experts *x, void *out);

/* Not collective.  From g[R,C] = dL/d(out): adds to the gradients of the weights by the lane tree
 * over the lanes of the expert-parallel group (empty blocks count as zeros), and writes dx[R,C]. */
void bk_experts_backward(bk_tape *t, const bk_experts *x, const void *g, void *dx);

#endif
