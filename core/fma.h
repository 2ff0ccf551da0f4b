/* core/fma.h - a loop of fused multiply-adds in registers: the arithmetic limit of one core. */
#ifndef BK_CORE_FMA_H
#define BK_CORE_FMA_H

#include "core/real.h"

typedef struct bk_fma_kernels {
    /* Runs `rounds` rounds of independent vector FMAs; returns the FLOPs done. */
    double (*run)(int64_t rounds);
} bk_fma_kernels;

BK_KERNEL_TABLES(bk_fma_kernels);

/* fp32, in the widest instruction set in use. */
double bk_fma_run(int64_t rounds);
/* bf16 with sums in fp32 (AMX or AVX-512); 0 FLOPs where the machine multiplies none. */
double bk_fma_bf16_run(int64_t rounds);

#endif
