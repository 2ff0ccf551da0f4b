/* core/ops.h - the builders of the ops in core/ops, by family.  None is collective.  R = rows of
 * this rank (samples times positions, in lane order), lanes cut rows.  All shapes are BK_ASSERTed.
 * Results live on the step arena. Sums over rows (gradients of weights, biases, gains, tables) are
 * per lane, then the lane tree. */
#ifndef BK_CORE_OPS_H
#define BK_CORE_OPS_H

#include "core/op.h"
#include "core/rng.h"

/* For ops whose parameter gradient is a sum over rows: x's gradient grows by the lane tree over
 * product(l). */
void bk_lane_gradient(bk_tape *t, const bk_lanes *lanes, bk_tensor *x, bk_lane_product *product,
                      void *context);

/* out[C] = the columns of y's gradient over the rows of own lane l, in row order: the gradient of a
 * bias. */
void bk_column_sums(const bk_tape *t, const bk_tensor *y, int64_t l, void *out);

/* ---- operands.c ---- */
/* Whether products read arrays of `dtype` rounded to bf16 (t->bf16), and the type they then read.
 */
bool bk_operands_rounded(const bk_tape *t, bk_dtype dtype);
bk_dtype bk_operand_dtype(const bk_tape *t, bk_dtype dtype);
/* data[n] as products read it: itself, or a rounded copy on `arena`. */
const void *bk_operand(const bk_tape *t, bk_dtype dtype, int64_t n, const void *data,
                       bk_arena *arena);

/* ---- linear.c ---- */
/* y[R,O] = x[R,I] w[O,I]^T + b[O].  b may be NULL.  x may have more leading axes; y keeps them. */
bk_tensor *bk_linear(bk_tape *t, bk_tensor *x, bk_tensor *w, bk_tensor *b);
/* c[...,M,N] = a[...,M,K] b[...,K,N], leading axes equal (batched). */
bk_tensor *bk_matmul(bk_tape *t, bk_tensor *a, bk_tensor *b);
/* c[...,M,N] = a[...,M,K] b[...,N,K]^T. */
bk_tensor *bk_matmul_nt(bk_tape *t, bk_tensor *a, bk_tensor *b);

/* ---- pointwise.c ---- */
bk_tensor *bk_add(bk_tape *t, bk_tensor *a, bk_tensor *b); /* same shape */
bk_tensor *bk_mul(bk_tape *t, bk_tensor *a, bk_tensor *b); /* same shape */
bk_tensor *bk_scale(bk_tape *t, bk_tensor *x, double factor);
/* y[B,N,C] = x[B,N,C] + p[M,C] at positions 0..N-1, M >= N. */
bk_tensor *bk_add_positions(bk_tape *t, bk_tensor *x, bk_tensor *p);

typedef enum bk_activation { BK_GELU, BK_GELU_TANH, BK_RELU, BK_SILU } bk_activation;
/* gelu: x Phi(x), Phi by erf; gelu_tanh: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); silu: x
 * sigmoid(x). */
bk_tensor *bk_activate(bk_tape *t, bk_tensor *x, bk_activation kind);

/* y = x keep / (1-p) while training and p > 0, else x itself.  x[B,...]: keep is a function of
 * (seed, layer, use, step, global sample position, index inside the sample); regenerated in
 * backward. */
bk_tensor *bk_dropout(bk_tape *t, bk_tensor *x, double p, int layer, bk_use use);

/* ---- norm.c ---- */
/* y = (x - mean) / sqrt(var + epsilon) * gain[C] + bias[C] over the last axis (biased variance);
 * bias may be NULL. */
bk_tensor *bk_layernorm(bk_tape *t, bk_tensor *x, bk_tensor *gain, bk_tensor *bias, double epsilon);

/* sum = x + residual (same shape) and norm = layernorm(sum), to the bits of bk_add and
 * bk_layernorm, in one pass over memory forward and one backward. */
typedef struct bk_sum_and_norm {
    bk_tensor *sum, *norm;
} bk_sum_and_norm;

bk_sum_and_norm bk_add_layernorm(bk_tape *t, bk_tensor *x, bk_tensor *residual, bk_tensor *gain,
                                 bk_tensor *bias, double epsilon);

/* ---- softmax.c ---- */
/* P = softmax over the last axis of s[B,H,N,M] where key m of sample b is real (mask[B,M] i32, NULL
 * = all) and, if causal, m <= n.  A row without keys gives zeros and no gradient. */
bk_tensor *bk_softmax_masked(bk_tape *t, bk_tensor *s, bk_tensor *mask, bool causal);

/* ---- embed.c ---- */
/* y[B,N,C] = table[V,C] at tokens[B,N] i32. */
bk_tensor *bk_embed(bk_tape *t, bk_tensor *tokens, bk_tensor *table);

/* ---- shape.c ---- */
/* [B,N,H*D] -> [B,H,N,D] and back. */
bk_tensor *bk_split_heads(bk_tape *t, bk_tensor *x, int64_t heads);
bk_tensor *bk_merge_heads(bk_tape *t, bk_tensor *x);
/* y[B,N+1,C]: row[C] in front of each sample. */
bk_tensor *bk_prepend(bk_tape *t, bk_tensor *x, bk_tensor *row);
/* Same data, other shape. */
bk_tensor *bk_reshape(bk_tape *t, bk_tensor *x, int dims, const int64_t *shape);

/* ---- reduce.c ---- */
/* y[B,C] = x[B,0,C]. */
bk_tensor *bk_pool_first(bk_tape *t, bk_tensor *x);
/* y[B,C] = mean over the real positions of x[B,N,C] (mask[B,N] i32, NULL = all); no real position:
 * 0. */
bk_tensor *bk_pool_mean(bk_tape *t, bk_tensor *x, bk_tensor *mask);

#endif
