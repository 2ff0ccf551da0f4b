#include "core/parallel.h"

#include "core/blas.h"

enum { SMALL = 65536 };

void bk_parallel(int64_t n, int64_t unit, int64_t cost, bk_parallel_body *body, void *context)
{
    int64_t pieces = bk_blas_threads(), units = (n + unit - 1) / unit;
    if (pieces == 1 || n * cost < SMALL) {
        body(context, 0, n);
        return;
    }
#pragma omp parallel for schedule(static) num_threads((int)pieces)
    for (int64_t i = 0; i < pieces; i++) {
        int64_t last = units * (i + 1) / pieces * unit;
        body(context, units * i / pieces * unit, last < n ? last : n);
    }
}
