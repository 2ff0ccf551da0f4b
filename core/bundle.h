/* core/bundle.h - the narrow waist: a few named tensors.  Data fills a bundle, a model maps bundle
 * to bundle, a loss maps bundles to a term.
 *
 *   tokens    i32 [B,N]     symbols, 0 = padding
 *   segments  i32 [B,N]     of pairs, whose tokens are a first text, a separator, a second text:
 *                           1 = second text
 *   features  f32 [B,N,C]   instead of tokens
 *   mask      i32 [B,N]     1 = real position; absent: all real
 *   labels    i32 [R]       class of each row of the logits, -1 = ignored
 *   sequence  i32 [R]       sample of each row (non-decreasing)
 *   logits    f32 [R,V]     R = B for classifiers, B N for decoders
 *   teacher.logits  f32 [R,V]
 *     or teacher.index i32, teacher.value f32 [R,k], teacher.lse f32 [R,T]: the k largest of each
 *     row, and its log sum exp at T temperatures
 *
 * B counts the samples of this rank's lanes. */
#ifndef BK_CORE_BUNDLE_H
#define BK_CORE_BUNDLE_H

#include "core/tensor.h"

enum { BK_BUNDLE_MAX = 16, BK_BUNDLE_LAYERS = 64 };

/* What lies inside a model, for losses that look there.  Whoever asks sets `want`; the model fills
 * what it is asked for on its tape's arena. */
typedef struct bk_inside {
    bool want_hidden[BK_BUNDLE_LAYERS];  /* 0: what the blocks read, l: behind block l */
    bool want_matrix[BK_BUNDLE_LAYERS];  /* of block l, from 1 on */
    bk_tensor *hidden[BK_BUNDLE_LAYERS]; /* [B,N,C], N with the positions that the model adds */
    bk_tensor *matrix[BK_BUNDLE_LAYERS]; /* [B,H,N,N] */
    bk_tensor *mask;                     /* i32 [B,N]; NULL = all real */
    int64_t positions;                   /* global number of real ones */
} bk_inside;

typedef struct bk_bundle {
    struct {
        const char *name;
        bk_tensor *tensor;
    } entry[BK_BUNDLE_MAX];
    int entries;
    int64_t rows;         /* global number of valid label rows of this step, over all ranks */
    int64_t positions;    /* global number of real positions of this step (mask), over all ranks */
    bk_inside *inside;    /* of the model that runs on it; NULL: nothing is asked for */
    int64_t first_sample; /* global position of the first own sample: step * batch + its place in
                             the batch */
} bk_bundle;

/* Sets or replaces.  Names are borrowed. */
void bk_bundle_set(bk_bundle *bundle, const char *name, bk_tensor *tensor);
/* NULL when absent. */
bk_tensor *bk_bundle_get(const bk_bundle *bundle, const char *name);
/* Present or BK_ASSERT. */
bk_tensor *bk_bundle_need(const bk_bundle *bundle, const char *name);

#endif
