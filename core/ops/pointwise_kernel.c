#include "core/ops/pointwise_kernel.h"

#include "core/ops.h"
#include "core/vector_kernel.h"

static void add(int64_t n, const void *a_, const void *b_, void *y_)
{
    const real *a = a_, *b = b_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

static void mul(int64_t n, const void *a_, const void *b_, void *y_)
{
    const real *a = a_, *b = b_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] * b[i];
}

static void mul_add(int64_t n, const void *a_, const void *b_, void *y_)
{
    const real *a = a_, *b = b_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] += a[i] * b[i];
}

/* ---- activations ---- */

static const real root_two_over_pi = BK_R(0.79788456080286535588);

static inline real inner(real x)
{
    return root_two_over_pi * (x + BK_R(0.044715) * x * x * x);
}

static void activate(int kind, int64_t n, const void *x_, void *y_)
{
    const real *x = x_;
    real *y = y_;
    switch (kind) {
    case BK_GELU:
        for (int64_t i = 0; i < n; i++)
            y[i] = x[i] * bk_normal_cdf(x[i], bk_normal_bell(x[i]));
        break;
    case BK_GELU_TANH:
        for (int64_t i = 0; i < n; i++)
            y[i] = BK_R(0.5) * x[i] * (BK_R(1.0) + bk_tanh(inner(x[i])));
        break;
    case BK_RELU:
        for (int64_t i = 0; i < n; i++)
            y[i] = x[i] < BK_R(0.0) ? BK_R(0.0) : x[i];
        break;
    default:
        for (int64_t i = 0; i < n; i++)
            y[i] = x[i] * bk_sigmoid(x[i]);
    }
}

static inline real gelu_slope(real x)
{
    real bell = bk_normal_bell(x);
    return bk_normal_cdf(x, bell) + x * (BK_R(0.39894228040143267794) * bell);
}

static inline real gelu_tanh_slope(real x)
{
    real t = bk_tanh(inner(x));
    real slope = root_two_over_pi * (BK_R(1.0) + BK_R(3.0) * BK_R(0.044715) * x * x);
    return BK_R(0.5) * (BK_R(1.0) + t) + BK_R(0.5) * x * (BK_R(1.0) - t * t) * slope;
}

static inline real silu_slope(real x)
{
    real s = bk_sigmoid(x);
    return s * (BK_R(1.0) + x * (BK_R(1.0) - s));
}

static void activate_back(int kind, int64_t n, const void *x_, const void *dy_, void *dx_)
{
    const real *x = x_, *dy = dy_;
    real *dx = dx_;
    switch (kind) {
    case BK_GELU:
        for (int64_t i = 0; i < n; i++)
            dx[i] += dy[i] * gelu_slope(x[i]);
        break;
    case BK_GELU_TANH:
        for (int64_t i = 0; i < n; i++)
            dx[i] += dy[i] * gelu_tanh_slope(x[i]);
        break;
    case BK_RELU:
        for (int64_t i = 0; i < n; i++)
            dx[i] += x[i] > BK_R(0.0) ? dy[i] : BK_R(0.0);
        break;
    default:
        for (int64_t i = 0; i < n; i++)
            dx[i] += dy[i] * silu_slope(x[i]);
    }
}

static void times_slope(int kind, int64_t n, const void *x_, void *dx_)
{
    const real *x = x_;
    real *dx = dx_;
    switch (kind) {
    case BK_GELU:
        for (int64_t i = 0; i < n; i++)
            dx[i] *= gelu_slope(x[i]);
        break;
    case BK_GELU_TANH:
        for (int64_t i = 0; i < n; i++)
            dx[i] *= gelu_tanh_slope(x[i]);
        break;
    case BK_RELU:
        for (int64_t i = 0; i < n; i++)
            dx[i] = x[i] > BK_R(0.0) ? dx[i] : BK_R(0.0);
        break;
    default:
        for (int64_t i = 0; i < n; i++)
            dx[i] *= silu_slope(x[i]);
    }
}

/* ---- dropout ---- */

static void keep_add(int64_t n, const void *x_, const uint32_t *word, uint32_t threshold,
                     double scale_, void *y_)
{
    const real *x = x_, scale = (real)scale_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++) {
        real factor = word[i] >= threshold ? scale : BK_R(0.0);
        y[i] += x[i] * factor; /* one fused operation, in whole vectors and in the tail */
    }
}

const bk_pointwise_kernels BK_KERNEL(bk_pointwise_kernels) = {
    .add = add,
    .mul = mul,
    .mul_add = mul_add,
    .activate = activate,
    .activate_back = activate_back,
    .times_slope = times_slope,
    .keep_add = keep_add,
};
