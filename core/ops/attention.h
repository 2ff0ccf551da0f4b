/* core/ops/attention.h - streaming softmax attention as one op, memory linear in N (spec: the tile
 * recurrence). out[B,H,N,D] = softmax over the allowed keys of (scale q k^T) v;  a query without
 * keys gives 0, lse = -inf. */
#ifndef BK_CORE_OPS_ATTENTION_H
#define BK_CORE_OPS_ATTENTION_H

#include "core/op.h"

typedef struct bk_attention_options {
    double scale;   /* multiplies the logits */
    int64_t block;  /* rows of a tile */
    bool causal;    /* key j is seen by queries i >= j */
    double dropout; /* on probabilities, while the tape trains */
    int layer;      /* for the random counter */
    int64_t heads;  /* 0: arrays are [B,H,N,D]; H: they are [B,N,H*D], head h in columns h D .. */
} bk_attention_options;

/* Not collective.  q[B,H,N,D], k, v[B,H,M,D], or [B,N,H*D] and [B,M,H*D] as a projection leaves
 * them, and the result like q; mask[B,M] i32 (0 = not a key) and query_mask[B,N] or
 * NULL. A sample is computed as if its arrays ended at its last real position.  *lse[B,H,N] when
 * lse is not NULL. */
bk_tensor *bk_attention(bk_tape *t, bk_tensor *q, bk_tensor *k, bk_tensor *v, bk_tensor *mask,
                        bk_tensor *query_mask, const bk_attention_options *options,
                        bk_tensor **lse);

#endif
