#include "core/ops/norm_kernel.h"

#include <math.h>
#include <string.h>

enum { WIDE = 16 };

/* Sixteen interleaved accumulators, then a fixed tree: vectorises, and the order depends on n
 * alone. */
static real tree(real a[WIDE])
{
    for (int half = WIDE / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            a[j] += a[j + half];
    return a[0];
}

static real row_sum(int64_t n, const real *x)
{
    real a[WIDE] = {0};
    int64_t i = 0;
    for (; i + WIDE <= n; i += WIDE)
        for (int j = 0; j < WIDE; j++)
            a[j] += x[i + j];
    for (; i < n; i++)
        a[i % WIDE] += x[i];
    return tree(a);
}

static real row_squares(int64_t n, const real *x, real mean)
{
    real a[WIDE] = {0};
    int64_t i = 0;
    for (; i + WIDE <= n; i += WIDE)
        for (int j = 0; j < WIDE; j++)
            a[j] += (x[i + j] - mean) * (x[i + j] - mean);
    for (; i < n; i++)
        a[i % WIDE] += (x[i] - mean) * (x[i] - mean);
    return tree(a);
}

static void forward(int64_t n, const void *x_, const void *gain_, const void *bias_, double epsilon,
                    void *y_, void *stat_)
{
    const real *x = x_, *gain = gain_, *bias = bias_;
    real *y = y_, *stat = stat_;
    real mean = row_sum(n, x) / (real)n;
    real rstd = (real)1 / (real)sqrt((double)(row_squares(n, x, mean) / (real)n) + epsilon);
    stat[0] = mean;
    stat[1] = rstd;
    for (int64_t i = 0; i < n; i++)
        y[i] = (x[i] - mean) * rstd * gain[i];
    for (int64_t i = 0; bias && i < n; i++)
        y[i] += bias[i];
}

static void add(int64_t n, const void *x_, const void *r_, void *sum_)
{
    const real *x = x_, *r = r_;
    real *sum = sum_;
    for (int64_t i = 0; i < n; i++)
        sum[i] = x[i] + r[i];
}

static void row_slope(int64_t n, const real *x, const real *gain, const real *dy, const real *stat,
                      real *restrict dx)
{
    real mean = stat[0], rstd = stat[1], a[WIDE] = {0}, b[WIDE] = {0};
    int64_t i = 0;
    for (; i + WIDE <= n; i += WIDE)
        for (int j = 0; j < WIDE; j++) {
            real g = dy[i + j] * gain[i + j];
            a[j] += g;
            b[j] += g * (x[i + j] - mean);
        }
    for (; i < n; i++) {
        real g = dy[i] * gain[i];
        a[i % WIDE] += g;
        b[i % WIDE] += g * (x[i] - mean);
    }
    real along_one = tree(a) / (real)n, along_x = tree(b) * rstd * rstd / (real)n;
    for (i = 0; i < n; i++)
        dx[i] += rstd * (dy[i] * gain[i] - along_one - (x[i] - mean) * along_x);
}

static void row_sums(int64_t n, const real *x, const real *dy, const real *stat,
                     real *restrict dgain, real *restrict dbias)
{
    real mean = stat[0], rstd = stat[1];
    for (int64_t i = 0; i < n; i++) {
        dgain[i] += dy[i] * ((x[i] - mean) * rstd);
        dbias[i] += dy[i];
    }
}

static void hand_on(const bk_norm_back *b, int64_t i)
{
    int64_t n = b->n;
    const real *dx = (const real *)b->dx + i * n;
    for (int j = 0; j < 2; j++) {
        real *to = b->to[j].rows ? (real *)b->to[j].rows + i * n : NULL;
        if (to && b->to[j].fresh)
            memcpy(to, dx, (size_t)n * sizeof *to);
        else if (to)
            add(n, dx, to, to);
    }
}

static void backward(const bk_norm_back *b)
{
    const real *x = b->x, *dy = b->dy, *stat = b->stat;
    real *dx = b->dx;
    int64_t n = b->n;
    memset(b->dgain, 0, (size_t)n * sizeof *x);
    memset(b->dbias, 0, (size_t)n * sizeof *x);
    for (int64_t i = 0; i < b->rows; i++, x += n, dy += n, stat += 2) {
        if (dx && b->fresh)
            memset(dx + i * n, 0, (size_t)n * sizeof *dx);
        if (dx)
            row_slope(n, x, b->gain, dy, stat, dx + i * n);
        hand_on(b, i);
        row_sums(n, x, dy, stat, b->dgain, b->dbias);
    }
}

const bk_norm_kernels BK_KERNEL(bk_norm_kernels) = {
    .forward = forward, .add = add, .backward = backward};
