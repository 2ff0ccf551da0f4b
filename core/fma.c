#include "core/fma.h"

double bk_fma_run(int64_t rounds)
{
    return BK_KERNEL_SELECT(bk_fma_kernels, BK_F32)->run(rounds);
}
