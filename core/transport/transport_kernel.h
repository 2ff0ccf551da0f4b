/* core/transport/transport_kernel.h - one row of a transport problem at a time.
 *
 * c[n] is the row's cost in the arithmetic of the table, v[n] the column potentials in double;
 * `factor` turns costs into exponents: S_ij = -factor c_ij.  An infinite cost gives exp(-inf) = 0.
 * Not collective, any thread. */
#ifndef BK_CORE_TRANSPORT_TRANSPORT_KERNEL_H
#define BK_CORE_TRANSPORT_TRANSPORT_KERNEL_H

#include "core/real.h"

typedef enum bk_metric { BK_METRIC_SQEUCLIDEAN, BK_METRIC_EUCLIDEAN, BK_METRIC_L1 } bk_metric;

typedef struct bk_transport_kernels {
    /* x_j = v_j - factor c_j; returns the maximum, -inf when there is none.  A NaN is passed over;
     * it shows in the sum of the exponentials. */
    double (*shift)(int64_t n, double factor, const void *c, const double *v, void *x);
    /* p_j = exp(v_j + u - factor c_j); returns the sum. */
    double (*plan)(int64_t n, double factor, const void *c, const double *v, double u, void *p);
    /* sum_j += a x_j, and <x, y>, with x in the arithmetic of the table. */
    void (*accumulate)(int64_t n, double a, const void *x, double *sum);
    double (*dot)(int64_t n, const void *x, const double *y);
    /* most_j = max(most_j, u - factor c_j);  sum_j += exp(u - factor c_j - most_j). */
    void (*column_max)(int64_t n, double factor, const void *c, double u, double *most);
    void (*column_sum)(int64_t n, double factor, const void *c, double u, const double *most,
                       double *sum);
    /* Of p = exp(x), x_j = v_j + u - factor c_j, terms with p_j = 0 left out:
     *   out[0] += <c, p>;  out[1] += <p, x>;  out[2] += <p, w>. */
    void (*moments)(int64_t n, double factor, const void *c, const double *v, double u,
                    const double *w, void *p, double out[3]);
    /* y[j] = x[j] in double. */
    void (*widen)(int64_t n, const void *x, double *y);
    /* c_j = distance of x[d] from column j of y[d,n]. */
    void (*distances)(int64_t n, int64_t d, bk_metric metric, const void *x, const void *y,
                      void *c);
} bk_transport_kernels;

BK_KERNEL_TABLES(bk_transport_kernels);

static inline const bk_transport_kernels *bk_transport_kernels_of(bk_dtype dtype)
{
    return BK_KERNEL_SELECT(bk_transport_kernels, dtype);
}

#endif
