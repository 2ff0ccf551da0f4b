#include "losses/sinkd_top_kernel.h"

#include "losses/sums_kernel.h"

static real distance_of(real x, real y)
{
    return x < y ? y - x : x - y;
}

static double rest_of(double kept)
{
    return kept > 1.0 ? 0.0 : 1.0 - kept; /* NaN stays */
}

static double distance(const void *p_, const bk_sinkd_top_row *row)
{
    const real *p = p_, *q = row->q;
    double far[WIDE] = {0}, kept[WIDE] = {0};
    int64_t j = 0;
    for (; j + WIDE <= row->k; j += WIDE)
        for (int l = 0; l < WIDE; l++) {
            real x = p[row->index[j + l]];
            far[l] += (double)distance_of(x, q[j + l]);
            kept[l] += (double)x;
        }
    for (; j < row->k; j++) {
        far[0] += (double)distance_of(p[row->index[j]], q[j]);
        kept[0] += (double)p[row->index[j]];
    }
    double gap = rest_of(tree(kept)) - (double)q[row->k];
    return tree(far) + (gap < 0 ? -gap : gap);
}

static void add_signs(const void *p_, const bk_sinkd_top_row *row, double g_, void *h_)
{
    const real *p = p_, *q = row->q, g = (real)g_;
    real *h = h_;
    double kept[WIDE] = {0};
    for (int64_t j = 0; j < row->k; j++)
        kept[j % WIDE] += (double)p[row->index[j]];
    double gap = rest_of(tree(kept)) - (double)q[row->k];
    int rest = (gap > 0) - (gap < 0);
    for (int64_t j = 0; j < row->k; j++) {
        real x = p[row->index[j]];
        h[row->index[j]] += g * (real)((x > q[j]) - (x < q[j]) - rest);
    }
}

const bk_sinkd_top_kernels BK_KERNEL(bk_sinkd_top_kernels) = {.distance = distance,
                                                              .add_signs = add_signs};
