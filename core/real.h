/* core/real.h - files compiled once for each arithmetic.
 *
 * Every file named *_kernel.c is compiled by CMake several times: BK_REAL 32 and 64 for x86-64-v3
 * (suffixes f32, f64) and with AVX-512 (f32x, f64x).  It holds plain loops over
 * `real`, no allocation, no MPI, and ends in one const table of function pointers named
 * BK_KERNEL(bk_<file>_kernels).  Pointers of the table's type take `void *`, so that one type
 * serves all arithmetics; ops pick the table by dtype with BK_KERNEL_SELECT. Only *_kernel.c files
 * include this header's `real`; the selector below is for everyone. */
#ifndef BK_CORE_REAL_H
#define BK_CORE_REAL_H

#include "core/tensor.h"

#ifdef BK_REAL
#if BK_REAL == 64
typedef double real;
#else
typedef float real;
#endif
#if BK_REAL == 64 && defined(BK_AVX512)
#define BK_KERNEL(name) name##_f64x
#elif BK_REAL == 64
#define BK_KERNEL(name) name##_f64
#elif defined(BK_AVX512)
#define BK_KERNEL(name) name##_f32x
#else
#define BK_KERNEL(name) name##_f32
#endif
#endif

/* Declares the four instances of a kernel table:  BK_KERNEL_TABLES(bk_norm_kernels); */
#define BK_KERNEL_TABLES(table) \
    extern const table table##_f32, table##_f32x, table##_f64, table##_f64x

/* The instance for a dtype on this machine:  const bk_norm_kernels *k =
 * BK_KERNEL_SELECT(bk_norm_kernels, x->dtype); */
#define BK_KERNEL_SELECT(table, dtype)                                  \
    ((dtype) == BK_F64 ? bk_cpu_avx512() ? &table##_f64x : &table##_f64 \
     : bk_cpu_avx512() ? &table##_f32x                                  \
                       : &table##_f32)

/* True when the AVX-512 instances are used: the machine has F, BW, DQ and VL and BIRKHOFF_ISA is
 * not "avx2". Decided once; part of the kernel set that checkpoints record. */
bool bk_cpu_avx512(void);

#endif
