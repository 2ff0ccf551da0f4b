/* losses/sums_kernel.h - sums in double for *_kernel.c files of losses: in eight parts, element i
 * in part i mod 8, added as a tree, so that they vectorise and have one order. */
#ifndef BK_LOSSES_SUMS_KERNEL_H
#define BK_LOSSES_SUMS_KERNEL_H

#include "core/vector_kernel.h"

enum { WIDE = 8 };

static inline double tree(const double a[WIDE])
{
    return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
}

static inline double sum(int64_t n, const real *x)
{
    double a[WIDE] = {0};
    int64_t i = 0;
    for (; i + WIDE <= n; i += WIDE)
        for (int j = 0; j < WIDE; j++)
            a[j] += (double)x[i + j];
    for (; i < n; i++)
        a[i % WIDE] += (double)x[i];
    return tree(a);
}

static inline double dot(int64_t n, const real *x, const real *y)
{
    double a[WIDE] = {0};
    int64_t i = 0;
    for (; i + WIDE <= n; i += WIDE)
        for (int j = 0; j < WIDE; j++)
            a[j] += (double)x[i + j] * (double)y[i + j];
    for (; i < n; i++)
        a[i % WIDE] += (double)x[i] * (double)y[i];
    return tree(a);
}

#endif
