/* core/ops/attention_kernel.h - streaming softmax attention of one (sample, head): forward and
 * backward by tiles. */
#ifndef BK_CORE_OPS_ATTENTION_KERNEL_H
#define BK_CORE_OPS_ATTENTION_KERNEL_H

#include "core/real.h"

/* Fills word[count] with the uniform 32-bit numbers of (query, key), (query, key + 1), ... */
typedef void bk_attention_words(const void *context, int64_t query, int64_t key, int64_t count,
                                uint32_t *word);

/* One (sample, head).  Arrays of real: q[queries,width], k, v[keys,width], ...; lse[queries]. */
typedef struct bk_attention_head {
    int64_t queries, keys, width, block;
    const int32_t *query_mask, *key_mask; /* NULL: all real */
    bool causal;
    double scale;
    const void *q, *k, *v;
    void *out, *lse; /* forward writes them, backward reads them */
    const void *dout;
    void *dq, *dk, *dv;        /* backward adds; NULL where not wanted */
    bk_attention_words *words; /* dropout; NULL without */
    const void *words_context;
    uint32_t threshold; /* kept where word >= threshold */
    double keep_scale;  /* 1 / (1 - p) */
    void *work;         /* work_size(...) bytes */
} bk_attention_head;

typedef struct bk_attention_kernels {
    size_t (*work_size)(int64_t queries, int64_t width, int64_t block);
    void (*forward)(const bk_attention_head *h);
    void (*backward)(const bk_attention_head *h);
} bk_attention_kernels;

BK_KERNEL_TABLES(bk_attention_kernels);

#endif
