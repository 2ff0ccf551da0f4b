#include "core/transport/transport_kernel.h"

#include "core/vector_kernel.h"

enum { CHAINS = 16 }; /* sums and maxima run in as many chains, then a fixed tree */

static double sum_chains(double *chain)
{
    for (int width = CHAINS / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++)
            chain[j] += chain[j + width];
    return chain[0];
}

static double shift(int64_t n, double factor, const void *c_, const double *v, void *x_)
{
    const real *c = c_, f = (real)factor;
    real *x = x_, most[CHAINS];
    int64_t i = 0;
    for (int j = 0; j < CHAINS; j++)
        most[j] = -(real)INFINITY;
    for (; i + CHAINS <= n; i += CHAINS)
        for (int j = 0; j < CHAINS; j++) {
            real y = x[i + j] = (real)v[i + j] - f * c[i + j];
            most[j] = y > most[j] ? y : most[j];
        }
    for (; i < n; i++) {
        real y = x[i] = (real)v[i] - f * c[i];
        most[0] = y > most[0] ? y : most[0];
    }
    for (int j = 1; j < CHAINS; j++)
        most[0] = most[j] > most[0] ? most[j] : most[0];
    return (double)most[0];
}

static double plan(int64_t n, double factor, const void *c_, const double *v, double u, void *p_)
{
    const real *c = c_;
    real *p = p_;
    double sum[CHAINS] = {0};
    int64_t i = 0;
    for (; i + CHAINS <= n; i += CHAINS)
        for (int j = 0; j < CHAINS; j++) {
            p[i + j] = bk_exp((real)(v[i + j] + u - factor * (double)c[i + j]));
            sum[j] += (double)p[i + j];
        }
    for (; i < n; i++) {
        p[i] = bk_exp((real)(v[i] + u - factor * (double)c[i]));
        sum[0] += (double)p[i];
    }
    return sum_chains(sum);
}

static void accumulate(int64_t n, double a, const void *x_, double *sum)
{
    const real *x = x_;
    for (int64_t i = 0; i < n; i++)
        sum[i] += a * (double)x[i];
}

static double dot(int64_t n, const void *x_, const double *y)
{
    const real *x = x_;
    double sum[CHAINS] = {0};
    int64_t i = 0;
    for (; i + CHAINS <= n; i += CHAINS)
        for (int j = 0; j < CHAINS; j++)
            sum[j] += (double)x[i + j] * y[i + j];
    for (; i < n; i++)
        sum[0] += (double)x[i] * y[i];
    return sum_chains(sum);
}

static void column_max(int64_t n, double factor, const void *c_, double u, double *most)
{
    const real *c = c_;
    for (int64_t i = 0; i < n; i++) {
        double x = u - factor * (double)c[i];
        most[i] = x > most[i] ? x : most[i];
    }
}

static void column_sum(int64_t n, double factor, const void *c_, double u, const double *most,
                       double *sum)
{
    const real *c = c_;
    for (int64_t i = 0; i < n; i++)
        sum[i] += (double)bk_exp((real)(u - factor * (double)c[i] - most[i]));
}

static void moments(int64_t n, double factor, const void *c_, const double *v, double u,
                    const double *w, void *p_, double out[3])
{
    const real *c = c_;
    real *p = p_;
    double cost = 0.0, exponent = 0.0, weight = 0.0;
    plan(n, factor, c, v, u, p);
    for (int64_t i = 0; i < n; i++)
        if (p[i] > 0) {
            cost += (double)p[i] * (double)c[i];
            exponent += (double)p[i] * (v[i] + u - factor * (double)c[i]);
            weight += (double)p[i] * w[i];
        }
    out[0] += cost;
    out[1] += exponent;
    out[2] += weight;
}

static void widen(int64_t n, const void *x_, double *y)
{
    const real *x = x_;
    for (int64_t i = 0; i < n; i++)
        y[i] = (double)x[i];
}

/* ---- distances ---- */

static void add_squares(int64_t n, real x, const real *y, real *c)
{
    for (int64_t i = 0; i < n; i++)
        c[i] += (x - y[i]) * (x - y[i]);
}

static void add_magnitudes(int64_t n, real x, const real *y, real *c)
{
    for (int64_t i = 0; i < n; i++) {
        real difference = x - y[i];
        c[i] += difference < 0 ? -difference : difference;
    }
}

static void square_root(int64_t n, real *c)
{
    for (int64_t i = 0; i < n; i++)
        c[i] = sizeof(real) == sizeof(double) ? (real)sqrt((double)c[i]) : (real)sqrtf((float)c[i]);
}

static void distances(int64_t n, int64_t d, bk_metric metric, const void *x_, const void *y_,
                      void *c_)
{
    enum { PANEL = 512 };
    const real *x = x_, *y = y_;
    real *c = c_;
    for (int64_t first = 0; first < n; first += PANEL) {
        int64_t some = n - first < PANEL ? n - first : PANEL;
        for (int64_t i = 0; i < some; i++)
            c[first + i] = 0;
        for (int64_t k = 0; k < d; k++)
            (metric == BK_METRIC_L1 ? add_magnitudes : add_squares)(some, x[k], y + k * n + first,
                                                                    c + first);
        if (metric == BK_METRIC_EUCLIDEAN)
            square_root(some, c + first);
    }
}

const bk_transport_kernels BK_KERNEL(bk_transport_kernels) = {
    .shift = shift,
    .plan = plan,
    .accumulate = accumulate,
    .dot = dot,
    .column_max = column_max,
    .column_sum = column_sum,
    .moments = moments,
    .widen = widen,
    .distances = distances,
};
