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

/* The weights, and what the forward pass keeps for the way back.  Products read `operands`: with
 * run.precision bf16 rows and weights rounded to it, as those of bk_linear do; sums, biases and
 * the activation stay in `dtype`. */
typedef struct bk_experts {
    bk_dtype dtype;
    bk_dtype operands;     /* type of received, active and weight (bk_operand_dtype) */
    bool rounded;          /* operands are rounded copies */
    int64_t count;         /* local experts */
    int64_t width, hidden; /* C, F */
    bk_activation activation;
    bk_tensor *const *leaf; /* [BK_EXPERT_WEIGHTS, count]; b1, b2 may be NULL */
    const bk_dispatch *dispatch;
    const char *received; /* [R,C] operands: rows at their experts */
    char *inner;          /* [R,F] before the activation */
    char *active;         /* [R,F] operands: behind it */
    const void **weight;  /* operands: w1[count], w2[count] */
} bk_experts;

/* Not collective.  For x with all but operands, rounded, received, inner, active and weight in
 * place: what products read, from the tape's precision. */
void bk_experts_precision(const bk_tape *t, bk_experts *x);
/* Not collective.  Makes room for inner and active on the step arena, and rounds the weights: on
 * the step arena, or without a way back on the scratch arena. */
void bk_experts_open(bk_tape *t, bk_experts *x);
/* Not collective.  Behind the way back: rounded weights go back to the step arena. */
void bk_experts_close(bk_tape *t, bk_experts *x);
/* Not collective.  The rows of one chunk of the experts (x->dispatch->chunks) in out[R,C], from
 * those in x->received. */
void bk_experts_forward(bk_tape *t, const bk_experts *x, int64_t chunk, void *out);

/* Gradients behind the two maps of the experts, and their sums over the rows of each block. */
typedef struct bk_experts_back {
    const bk_experts *experts;
    const char *g;          /* [R,C] behind W2 */
    char *dx;               /* [R,C] */
    char *ga;               /* [R,F] behind the activation, then before it */
    const char *g_operand;  /* [R,C] g as products read it */
    const char *ga_operand; /* [R,F] and ga */
    char *db2, *db1;        /* [blocks,C], [blocks,F] */
} bk_experts_back;

/* Not collective.  Room on the scratch arena for the way back from g[R,C] = dL/d(out), borrowed, to
 * dx[R,C]. */
bk_experts_back bk_experts_back_open(bk_tape *t, const bk_experts *x, const void *g, void *dx);
/* Not collective.  Writes the rows of one chunk in dx; then its part of the rest: adds to the
 * gradients of the weights by the lane tree over the lanes of the expert-parallel group (empty
 * blocks count as zeros). */
void bk_experts_inputs_back(bk_tape *t, const bk_experts_back *b, int64_t chunk);
void bk_experts_weights_back(bk_tape *t, const bk_experts_back *b, int64_t chunk);

#endif
