/* core/vector.h - array functions for code that is not a kernel: exp, log, sums, in double
 * (routers, transport) and by dtype.  Sums run in eight interleaved accumulators, then a fixed
 * tree: a fixed order for equal n. */
#ifndef BK_CORE_VECTOR_H
#define BK_CORE_VECTOR_H

#include "core/real.h"

typedef struct bk_vector_kernels {
    void (*exp)(int64_t n, const void *x, void *y);
    void (*exp_negative)(int64_t n, const void *x, void *y); /* of x <= 1; 0 for denormals */
    void (*log)(int64_t n, const void *x, void *y);
    void (*add)(int64_t n, const void *x, void *y);            /* y += x */
    void (*axpy)(int64_t n, double a, const void *x, void *y); /* y += a x */
    void (*scale)(int64_t n, double a, void *x);               /* x *= a */
    double (*max)(int64_t n, const void *x);                   /* -inf for n = 0; NaN when one is */
    double (*sum)(int64_t n, const void *x);                   /* in double */
    double (*dot)(int64_t n, const void *x, const void *y);    /* in double */
    double (*exp_sum)(int64_t n, const void *x, double shift,
                      void *y); /* y = exp(x - shift); returns the sum of y */
    void (*pack_bf16)(int64_t n, const void *x,
                      uint16_t *y); /* to nearest, ties to even; NaN stays */
    void (*unpack_bf16)(int64_t n, const uint16_t *x, void *y); /* exact */
    void (*round_bf16)(int64_t n, const void *x, void *y);      /* the same values as real */
} bk_vector_kernels;

BK_KERNEL_TABLES(bk_vector_kernels);

static inline const bk_vector_kernels *bk_vector(bk_dtype dtype)
{
    return BK_KERNEL_SELECT(bk_vector_kernels, dtype);
}

/* Double precision, the polynomials of vector_kernel.h. */
void bk_exp_f64(int64_t n, const double *x, double *y);
void bk_log_f64(int64_t n, const double *x, double *y);
double bk_exp_one(double x);
double bk_log_one(double x);
/* log sum exp x, max-shifted; -inf for an empty or all -inf row.  `scratch` [n] is overwritten by
 * exp(x - max). */
double bk_lse_f64(int64_t n, const double *x, double *scratch);

#endif
