#include "models/moe_kernel.h"

static void logits(int64_t channels, int64_t experts, const void *x_, const double *gate_t,
                   double *h)
{
    const real *x = x_;
    for (int64_t e = 0; e < experts; e++)
        h[e] = 0.0;
    for (int64_t c = 0; c < channels; c++) {
        double value = (double)x[c];
        const double *row = gate_t + c * experts;
        for (int64_t e = 0; e < experts; e++)
            h[e] += value * row[e];
    }
}

static void transpose(int64_t experts, int64_t channels, const void *gate_, double *gate_t)
{
    const real *gate = gate_;
    for (int64_t c = 0; c < channels; c++)
        for (int64_t e = 0; e < experts; e++)
            gate_t[c * experts + e] = (double)gate[e * channels + c];
}

static void outer(int64_t experts, int64_t channels, const double *g, const void *x_, double *sum)
{
    const real *x = x_;
    for (int64_t e = 0; e < experts; e++)
        for (int64_t c = 0; c < channels; c++)
            sum[e * channels + c] += g[e] * (double)x[c];
}

static void input_back(int64_t experts, int64_t channels, const double *g, const void *gate_,
                       void *dx_)
{
    const real *gate = gate_;
    real *dx = dx_;
    for (int64_t e = 0; e < experts; e++) {
        real factor = (real)g[e];
        for (int64_t c = 0; c < channels; c++)
            dx[c] += factor * gate[e * channels + c];
    }
}

static void round_to(int64_t n, const double *x, void *y_)
{
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] = (real)x[i];
}

static void weigh(int64_t n, double w_, const void *x_, void *y_)
{
    const real *x = x_, w = (real)w_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] = w * x[i];
}

const bk_moe_kernels BK_KERNEL(bk_moe_kernels) = {
    .logits = logits,
    .transpose = transpose,
    .outer = outer,
    .input_back = input_back,
    .round = round_to,
    .weigh = weigh,
};
