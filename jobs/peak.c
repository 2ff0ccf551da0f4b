#include "jobs/peak.h"

#include "core/blas.h"
#include "core/fma.h"
#include "core/log.h"

#include <math.h>

double bk_measure_peak(void)
{
    double best = 0.0;
    for (int i = 0; i < 5; i++) {
        double start = bk_seconds();
        double flops = bk_fma_run(400000);
        best = fmax(best, flops / (bk_seconds() - start));
    }
    return best * bk_blas_threads();
}
