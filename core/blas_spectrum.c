#include "core/blas.h"

#include <lapacke.h>
#include <math.h>
#include <stdlib.h>

static double *room(int64_t count)
{
    double *x = malloc((size_t)(count + 1) * sizeof *x);
    if (!x)
        bk_fatal("out of memory: the spectrum of a matrix");
    return x;
}

static int falling(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

static bk_status unfound(const char *what, int64_t n, int info)
{
    return bk_fail(BK_FAULT, "the %s of a matrix of order %lld are not found (LAPACK %d)", what,
                   (long long)n, info);
}

bk_status bk_eigenvalues(int64_t n, double *a, double *modulus)
{
    double *re = room(2 * n), *im = re + n;
    int info = (int)LAPACKE_dgeev(LAPACK_ROW_MAJOR, 'N', 'N', (int)n, a, (int)n, re, im, NULL,
                                  (int)n, NULL, (int)n);
    for (int64_t i = 0; i < n && info == 0; i++)
        modulus[i] = hypot(re[i], im[i]);
    free(re);
    if (info != 0)
        return unfound("eigenvalues", n, info);
    qsort(modulus, (size_t)n, sizeof *modulus, falling);
    return BK_OK;
}

bk_status bk_singular_values(int64_t n, double *a, double *value)
{
    int info = (int)LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'N', (int)n, (int)n, a, (int)n, value, NULL,
                                   (int)n, NULL, (int)n);
    return info == 0 ? BK_OK : unfound("singular values", n, info);
}
