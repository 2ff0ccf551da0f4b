/* models/moe_gate.h - the gate of a mixture of experts: logits H = X gate^T and their way back to
 * the gate, in double, because one changed bit of a logit can move a token. */
#ifndef BK_MODELS_MOE_GATE_H
#define BK_MODELS_MOE_GATE_H

#include "core/tape.h"

typedef struct bk_gate {
    const bk_tensor *x;  /* [T,C] */
    bk_tensor *weight;   /* [E,C] */
    const int32_t *mask; /* [T], 0 = padding: passed over, whatever stands there; NULL = none */
} bk_gate;

/* Not collective.  h[T,E] on the step arena, 0 at padding.  An element's bits depend on its token
 * and its expert alone. */
double *bk_gate_logits(bk_tape *t, const bk_gate *gate);

/* Not collective.  Adds gh[T,E]^T X to the gradient of the gate: a sum in double for each lane,
 * rounded, then the lane tree.  gh is 0 at padding. */
void bk_gate_gradient(bk_tape *t, const bk_gate *gate, const double *gh);

#endif
