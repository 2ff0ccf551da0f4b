#include "core/fma.h"

#ifdef BK_AVX512
enum { BYTES = 64 };
#else
enum { BYTES = 32 };
#endif
typedef real vector __attribute__((vector_size(BYTES)));

enum { CHAINS = 12 }; /* latency 4, two units: at least 8 independent chains */

static double run(int64_t rounds)
{
    vector a[CHAINS], b, c;
    for (size_t i = 0; i < sizeof b / sizeof(real); i++) {
        b[i] = (real)0.999;
        c[i] = (real)1e-3;
    }
    for (int j = 0; j < CHAINS; j++)
        a[j] = b * (real)j;
    for (int64_t n = 0; n < rounds; n++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++)
            a[j] = a[j] * b + c;
    }
    vector sum = a[0];
    for (int j = 1; j < CHAINS; j++)
        sum += a[j];
    volatile real keep = sum[0];
    (void)keep;
    return 2.0 * (double)rounds * CHAINS * (double)(sizeof b / sizeof(real));
}

const bk_fma_kernels BK_KERNEL(bk_fma_kernels) = {.run = run};
