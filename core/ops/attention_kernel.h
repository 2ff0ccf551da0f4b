/* core/ops/attention_kernel.h - streaming softmax attention of one (sample, head): forward and
 * backward by tiles. */
#ifndef BK_CORE_OPS_ATTENTION_KERNEL_H
#define BK_CORE_OPS_ATTENTION_KERNEL_H

#include "core/real.h"

/* Fills word[count] with the uniform 32-bit numbers of (query, key), (query, key + 1), ...; writes
 * at most BK_ATTENTION_SPARE elements behind them. */
enum { BK_ATTENTION_SPARE = 16 };
typedef void bk_attention_words(const void *context, int64_t query, int64_t key, int64_t count,
                                uint32_t *word);

typedef struct bk_attention_range {
    int64_t first, last;
} bk_attention_range;

/* One (sample, head).  Arrays of real: rows of `width` elements, `stride` apart; lse[queries]. */
typedef struct bk_attention_head {
    int64_t queries, keys, width, stride, block;
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
    void *work;         /* work_size(...) bytes, at a multiple of 64 */
} bk_attention_head;

/* A result does not depend on the ranges that it is made in, to the bit: a row of dq is the sum
 * over the keys in order, one of dk and dv over the queries. Ranges begin at multiples of block. */
typedef struct bk_attention_kernels {
    size_t (*work_size)(int64_t keys, int64_t width, int64_t block);
    /* Rows `query` of out and lse. */
    void (*forward)(const bk_attention_head *h, bk_attention_range query);
    /* What the pairs of `query` and `key` contribute to dq, dk and dv. */
    void (*backward)(const bk_attention_head *h, bk_attention_range query, bk_attention_range key);
} bk_attention_kernels;

BK_KERNEL_TABLES(bk_attention_kernels);

#endif
