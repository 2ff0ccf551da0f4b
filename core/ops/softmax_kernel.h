/* core/ops/softmax_kernel.h - masked softmax of one row: the plain form that the streaming kernel
 * is held against. */
#ifndef BK_CORE_OPS_SOFTMAX_KERNEL_H
#define BK_CORE_OPS_SOFTMAX_KERNEL_H

#include "core/real.h"

typedef struct bk_softmax_kernels {
    /* p[n] = softmax of s[n] over the entries with mask != 0 (mask NULL: all) among the first
     * `visible`; zeros elsewhere, and everywhere when there is none. */
    void (*forward)(int64_t n, const void *s, const int32_t *mask, int64_t visible, void *p);
    /* ds += p (dp - <p, dp>). */
    void (*backward)(int64_t n, const void *p, const void *dp, void *ds);
} bk_softmax_kernels;

BK_KERNEL_TABLES(bk_softmax_kernels);

#endif
