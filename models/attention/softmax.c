/* models/attention/softmax.c - scaled dot-product attention (Vaswani et al. 2017), by streaming
 * tiles. Y[B,H,N,D] = softmax(c Q K^T) V over the real keys, c = 1/sqrt(D) unless given.   O(N^2
 * D), memory O(N).  Not collective. */
#include "core/attributes.h"
#include "core/ops/attention.h"
#include "models/attention.h"

#include <math.h>

typedef struct softmax_config {
    double scale;
    int64_t block;
    bool naive;
} softmax_config;

static const bk_option options[] = {
    BK_OPTION_F64(softmax_config, scale, 0.0, 0.0, 1e6, "factor of the logits; 0 = 1/sqrt(D)"),
    BK_OPTION_I64(softmax_config, block, 64, 1, 4096, "rows and columns of a tile"),
    BK_OPTION_BOOL(softmax_config, naive, false,
                   "the whole matrix instead of tiles (for comparison)"),
    BK_OPTION_END,
};

/* The mask of the queries: that of the keys when they are the same positions. */
static const bk_tensor *mask_of_queries(const bk_attention_args *a)
{
    return a->query_mask ? a->query_mask : a->q->shape[2] == a->k->shape[2] ? a->mask : NULL;
}

/* Query-key pairs that are evaluated. */
static int64_t count_pairs(const bk_attention_args *a)
{
    int64_t queries = a->q->shape[2], keys = a->k->shape[2], pairs = 0;
    const bk_tensor *rows = mask_of_queries(a);
    for (int64_t b = 0; b < a->q->shape[0]; b++)
        for (int64_t i = 0; i < queries; i++)
            for (int64_t j = 0; j < (a->causal ? i + 1 : keys); j++)
                pairs += (!rows || bk_i32(rows)[b * queries + i]) &&
                         (!a->mask || bk_i32(a->mask)[b * keys + j]);
    return pairs * a->q->shape[1];
}

/* Padded queries give 0: a factor of 0 or 1 for each row. */
static bk_tensor *zero_padded_queries(bk_tape *t, bk_tensor *out, const bk_tensor *mask)
{
    if (!mask)
        return out;
    bk_tensor *keep = bk_tape_constant(t, out->dtype, out->dims, out->shape);
    int64_t queries = out->shape[2], width = out->shape[3], one = out->shape[1] * queries * width;
    for (int64_t i = 0; i < bk_count(out); i++) {
        bool real_query = bk_i32(mask)[i / one * queries + i / width % queries] != 0;
        if (out->dtype == BK_F64)
            ((double *)keep->data)[i] = real_query;
        else
            ((float *)keep->data)[i] = real_query;
    }
    return bk_mul(t, out, keep);
}

/* P[B,H,N,M]; rows of padded queries are 0. */
static bk_tensor *matrix(bk_tape *t, const bk_attention_args *a, double scale)
{
    bk_tensor *s = bk_scale(t, bk_matmul_nt(t, a->q, a->k), scale);
    return zero_padded_queries(t, bk_softmax_masked(t, s, a->mask, a->causal), mask_of_queries(a));
}

static bk_tensor *attend(bk_tape *t, const bk_attention_args *a)
{
    const softmax_config *c = a->config;
    double width = (double)(a->heads > 0 ? a->q->shape[2] / a->heads : a->q->shape[3]),
           scale = c->scale > 0 ? c->scale : 1.0 / sqrt(width);
    bk_attention_options o = {.scale = scale,
                              .block = c->block,
                              .causal = a->causal,
                              .dropout = a->dropout,
                              .layer = a->layer,
                              .heads = a->heads};
    if (a->attributes) {
        int64_t pairs = count_pairs(a);
        bk_attribute_set_integer(a->attributes, "pairs", pairs);
        bk_attribute_set(a->attributes, "flop", 4.0 * width * (double)pairs);
    }
    if (a->matrix)
        *a->matrix = matrix(t, a, scale);
    if (!c->naive)
        return bk_attention(t, a->q, a->k, a->v, a->mask, a->query_mask, &o, a->lse);
    if (a->lse)
        bk_attention(t, a->q, a->k, a->v, a->mask, a->query_mask, &o, a->lse);
    return bk_matmul(t, matrix(t, a, scale), a->v);
}

/* What needs the whole matrix gets the heads apart. */
static bk_tensor *apply(bk_tape *t, const bk_attention_args *a)
{
    const softmax_config *c = a->config;
    if (a->heads == 0 || (!c->naive && !a->matrix && !a->attributes))
        return attend(t, a);
    bk_attention_args apart = *a;
    apart.heads = 0;
    apart.q = bk_split_heads(t, a->q, a->heads);
    apart.k = bk_split_heads(t, a->k, a->heads);
    apart.v = bk_split_heads(t, a->v, a->heads);
    return bk_merge_heads(t, attend(t, &apart));
}

const bk_attention_kind bk_attention_softmax = {
    .name = "softmax",
    .summary = "scaled dot-product attention, streaming tiles",
    .source = "Vaswani et al. 2017",
    .options = options,
    .config_size = sizeof(softmax_config),
    .apply = apply,
    .flags = BK_ATTENTION_CAUSAL | BK_ATTENTION_MASK | BK_ATTENTION_CROSS | BK_ATTENTION_DROPOUT |
             BK_ATTENTION_MATRIX | BK_ATTENTION_LSE | BK_ATTENTION_JOINED,
};
