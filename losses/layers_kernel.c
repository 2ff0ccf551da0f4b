#include "losses/layers_kernel.h"

#include "losses/sums_kernel.h"

enum { PIECE = 512 };

static double square(int64_t n, const void *x_, const void *y_)
{
    const real *x = x_, *y = y_;
    double a[WIDE] = {0};
    int64_t i = 0;
    for (; i + WIDE <= n; i += WIDE)
        for (int j = 0; j < WIDE; j++) {
            double d = (double)x[i + j] - (double)y[i + j];
            a[j] += d * d;
        }
    for (; i < n; i++)
        a[i % WIDE] += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    return tree(a);
}

static double inner(int64_t n, const void *x, const void *y)
{
    return dot(n, x, y);
}

static void combine(int64_t n, double a_, const void *x_, double b_, const void *y_, void *dx_)
{
    const real *x = x_, *y = y_, a = (real)a_, b = (real)b_;
    real *dx = dx_;
    for (int64_t i = 0; i < n; i++)
        dx[i] += a * x[i] + b * y[i];
}

static inline real log_of(real x)
{
    return bk_log(x < (real)BK_LAYERS_LEAST ? (real)BK_LAYERS_LEAST : x);
}

/* The terms are stored by the piece: in one loop with their sum they would be computed in vectors
 * of doubles. */
static double divergence(int64_t n, const void *x_, const void *y_)
{
    const real *x = x_, *y = y_;
    real term[PIECE];
    double total = 0.0;
    for (int64_t first = 0; first < n; first += PIECE) {
        int64_t m = n - first < PIECE ? n - first : PIECE;
        for (int64_t i = 0; i < m; i++)
            term[i] = y[first + i] * (log_of(y[first + i]) - log_of(x[first + i]));
        total += sum(m, term);
    }
    return total;
}

static void divergence_back(int64_t n, double factor_, const void *x_, const void *y_, void *dx_)
{
    const real *x = x_, *y = y_, factor = (real)factor_;
    real *dx = dx_;
    for (int64_t i = 0; i < n; i++) {
        real slope = factor * y[i] / x[i];
        dx[i] -= x[i] < (real)BK_LAYERS_LEAST ? 0 : slope;
    }
}

const bk_layers_kernels BK_KERNEL(bk_layers_kernels) = {
    .square = square,
    .dot = inner,
    .combine = combine,
    .divergence = divergence,
    .divergence_back = divergence_back,
};
