/* losses/sinkd_top_kernel.h - the distance of a whole row to one of k classes and a rest. */
#ifndef BK_LOSSES_SINKD_TOP_KERNEL_H
#define BK_LOSSES_SINKD_TOP_KERNEL_H

#include "core/real.h"

/* S, q of its classes and, behind them, q of the rest. */
typedef struct bk_sinkd_top_row {
    int64_t k;
    const int32_t *index; /* [k] */
    const void *q;        /* [k+1] reals */
} bk_sinkd_top_row;

typedef struct bk_sinkd_top_kernels {
    /* sum_{v in S} |p_v - q_v| + |p_rest - q_rest|, p_rest = max(0, 1 - sum_{v in S} p_v); sums in
     * double. */
    double (*distance)(const void *p, const bk_sinkd_top_row *row);
    /* h_v += g (sign(p_v - q_v) - sign(p_rest - q_rest)) for v in S. */
    void (*add_signs)(const void *p, const bk_sinkd_top_row *row, double g, void *h);
} bk_sinkd_top_kernels;

BK_KERNEL_TABLES(bk_sinkd_top_kernels);

static inline const bk_sinkd_top_kernels *bk_sinkd_top_of(bk_dtype dtype)
{
    return BK_KERNEL_SELECT(bk_sinkd_top_kernels, dtype);
}

#endif
