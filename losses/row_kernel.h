/* losses/row_kernel.h - loops of the row-wise losses: one row of V classes. */
#ifndef BK_LOSSES_ROW_KERNEL_H
#define BK_LOSSES_ROW_KERNEL_H

#include "core/real.h"

typedef enum bk_divergence { BK_KL, BK_REVERSE_KL, BK_JS, BK_TV } bk_divergence;

typedef struct bk_divergence_options {
    bk_divergence kind;
    double temperature, skew, beta;
    bool entropy;
} bk_divergence_options;

/* A teacher row of k classes and a rest. */
typedef struct bk_coarse_row {
    int64_t k;
    const int32_t *index; /* [k] */
    const void *log_q;    /* [k+1] reals, the rest last */
} bk_coarse_row;

typedef struct bk_row_norm {
    double most, inverse; /* the largest x, 1 / sum exp((x - most) / T) */
} bk_row_norm;

typedef struct bk_row_kernels {
    /* -sum y log softmax(x), y = (1-e) onehot(label) + e/V; *lse = log sum exp x. */
    double (*cross_entropy)(int64_t n, const void *x, int32_t label, double smoothing, double *lse);
    /* dx (+)= weight (softmax(x) - y); `add` false overwrites. */
    void (*cross_entropy_back)(int64_t n, const void *x, double lse, int32_t label,
                               double smoothing, double weight, bool add, void *dx);
    /* D(p, q) for p = softmax(s/T), q = softmax(t/T); work[3 n] reals. */
    double (*divergence)(int64_t n, const void *s, const void *t, const bk_divergence_options *o,
                         void *work);
    /* ds += weight p (h - <p,h>) / T, h = dD/dp; work[3 n] reals. */
    void (*divergence_back)(int64_t n, const void *s, const void *t, const bk_divergence_options *o,
                            double weight, void *work, void *ds);
    /* The k < n classes of largest x, largest first, equal ones in rising order. */
    void (*select)(int64_t n, const void *x, int64_t k, int32_t *index);
    /* out[k+1]: log softmax(x/T) of the classes index[k], then of all others together, summed over
     * them; k < n, work[n] reals. */
    void (*coarse_logs)(int64_t n, const void *x, double temperature, int64_t k,
                        const int32_t *index, void *work, void *out);
    /* The divergence of rows reduced to k+1 classes: p as coarse_logs reduces it, log_q[k+1].
     * work[3 n] reals. */
    double (*coarse)(int64_t n, const void *s, const bk_coarse_row *q,
                     const bk_divergence_options *o, void *work);
    /* ds += weight p (h - <p,h>) / T, h_v = h_rest for every class outside index[k]; work[4 n]. */
    void (*coarse_back)(int64_t n, const void *s, const bk_coarse_row *q,
                        const bk_divergence_options *o, double weight, void *work, void *ds);
    /* What makes any part of a row of softmax(x/T). */
    bk_row_norm (*normalise)(int64_t n, const void *x, double temperature);
    /* p = softmax(x/T) of n classes of that row, 0 where it is no normal number; returns their
     * sum. */
    double (*softmax)(int64_t n, const void *x, double temperature, bk_row_norm norm, void *p);
    /* y += factor softmax(x/T). */
    void (*softmax_add)(int64_t n, const void *x, double temperature, bk_row_norm norm,
                        double factor, void *y);
    /* y += factor p h, elementwise; returns <p,h>. */
    double (*product_add)(int64_t n, const void *p, const void *h, double factor, void *y);
} bk_row_kernels;

BK_KERNEL_TABLES(bk_row_kernels);

static inline const bk_row_kernels *bk_rows_of(bk_dtype dtype)
{
    return BK_KERNEL_SELECT(bk_row_kernels, dtype);
}

#endif
