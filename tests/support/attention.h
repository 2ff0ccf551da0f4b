/* tests/support/attention.h - one problem of attention, run by the op and by a plain double loop.
 */
#ifndef BK_TESTS_SUPPORT_ATTENTION_H
#define BK_TESTS_SUPPORT_ATTENTION_H

#include "core/ops/attention.h"
#include "tests/support/check.h"

typedef struct bk_attention_problem {
    int64_t B, H, N, M, D;
    bk_attention_options o;
    const int32_t *mask, *query_mask; /* [B,M], [B,N]; NULL: all real */
    bool holes;                       /* bk_attention_check_both makes a mask of its own */
} bk_attention_problem;

/* One run of the op, forward and backward; the tape trains, in step 5. */
typedef struct bk_attention_run {
    bk_tape tape;
    bk_tensor *q, *k, *v, *mask, *query_mask, *out, *lse;
} bk_attention_run;

/* q, k, v by fill(tag 1, 2, 3; -1.5, 1.5), as in the golden cases; then out and, for the incoming
 * gradient fill(tag 99; -1, 1), the gradients. */
void bk_attention_prepare(const bk_attention_problem *p, bk_dtype dtype, bk_attention_run *r);
void bk_attention_finish(const bk_attention_problem *p, bk_attention_run *r);
void bk_attention_run_op(const bk_attention_problem *p, bk_dtype dtype, bk_attention_run *r);
void bk_attention_release(bk_attention_run *r);

/* A mask with about one hole in five, and an end of `padding` zeros in the last sample; malloc'ed.
 */
int32_t *bk_attention_holes(int64_t samples, int64_t positions, int64_t padding);

/* Out, lse and all gradients against the plain loop: 1e-12 in f64, 1e-5 in f32, relative to
 * max(1, max|reference|). */
void bk_attention_check_plain(const bk_attention_problem *p, bk_dtype dtype);
void bk_attention_check_both(bk_attention_problem p);

/* max|x - reference| / max(1, max|reference|) of a tensor's data or gradient. */
double bk_attention_error(const bk_tensor *x, bool gradient, const double *reference);

/* Fail unless `count` floats of a from first_a on, or all arrays of two fp32 runs, have the same
 * bits. */
void bk_attention_check_floats(const void *a, int64_t first_a, const void *b, int64_t first_b,
                               int64_t count);
void bk_attention_check_bits(const bk_attention_run *a, const bk_attention_run *b);

#endif
