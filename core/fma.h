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

#endif
