#include "jobs/peak.h"

#include "core/blas.h"
#include "core/fma.h"
#include "core/log.h"

#include <math.h>

double bk_measure_peak(bool bf16)
{
    enum { RUNS = 5, ROUNDS = 400000 };
    double best = 0.0;
    bool has = bf16 && bk_fma_bf16_run(1) > 0.0;
    for (int i = 0; i < RUNS; i++) {
        double start = bk_seconds();
        double flops = has ? bk_fma_bf16_run(ROUNDS / 4) : bk_fma_run(ROUNDS);
        best = fmax(best, flops / (bk_seconds() - start));
    }
    return best * bk_blas_threads();
}
