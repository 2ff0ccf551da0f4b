#include "core/vector_kernel.h"

#include "core/vector.h"

static void vexp(int64_t n, const void *x_, void *y_)
{
    const real *x = x_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] = bk_exp(x[i]);
}

static void exp_negative(int64_t n, const void *x_, void *y_)
{
    const real *x = x_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] = bk_exp_negative(x[i]);
}

static void vlog(int64_t n, const void *x_, void *y_)
{
    const real *x = x_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] = bk_log(x[i]);
}

static void add(int64_t n, const void *x_, void *y_)
{
    const real *x = x_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

static void axpy(int64_t n, double a_, const void *x_, void *y_)
{
    const real *x = x_, a = (real)a_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

static void scale(int64_t n, double a_, void *x_)
{
    const real a = (real)a_;
    real *x = x_;
    for (int64_t i = 0; i < n; i++)
        x[i] *= a;
}

/* In as many chains as two vectors have elements; a NaN is kept apart. */
static double max(int64_t n, const void *x_)
{
    enum { CHAINS = 16 };
    const real *x = x_;
    real most[CHAINS], nan[CHAINS] = {0}, all = -(real)INFINITY;
    int64_t i = 0;
    for (int j = 0; j < CHAINS; j++)
        most[j] = -(real)INFINITY;
    for (; i + CHAINS <= n; i += CHAINS)
        for (int j = 0; j < CHAINS; j++) {
            most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
            nan[j] = x[i + j] != x[i + j] ? x[i + j] : nan[j];
        }
    for (; i < n; i++) {
        most[0] = x[i] > most[0] ? x[i] : most[0];
        nan[0] = x[i] != x[i] ? x[i] : nan[0];
    }
    for (int j = 0; j < CHAINS; j++) {
        all = most[j] > all ? most[j] : all;
        nan[0] = nan[j] != nan[j] ? nan[j] : nan[0];
    }
    return nan[0] != nan[0] ? (double)nan[0] : (double)all;
}

static double tree(const double a[8])
{
    return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
}

static double sum(int64_t n, const void *x_)
{
    const real *x = x_;
    double a[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++)
            a[j] += (double)x[i + j];
    for (; i < n; i++)
        a[i % 8] += (double)x[i];
    return tree(a);
}

static double dot(int64_t n, const void *x_, const void *y_)
{
    const real *x = x_, *y = y_;
    double a[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++)
            a[j] += (double)x[i + j] * (double)y[i + j];
    for (; i < n; i++)
        a[i % 8] += (double)x[i] * (double)y[i];
    return tree(a);
}

static double exp_sum(int64_t n, const void *x_, double shift_, void *y_)
{
    const real *x = x_, shift = (real)shift_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] = bk_exp(x[i] - shift);
    return sum(n, y);
}

/* The bits of x as bf16 in the upper half: to nearest, ties to even; a NaN stays one. */
static inline uint32_t bf16_bits(float x)
{
    union {
        float value;
        uint32_t bits;
    } u = {.value = x};
    uint32_t rounded = u.bits + 0x7FFFu + ((u.bits >> 16) & 1u), quiet = u.bits | 0x400000u;
    return (x == x ? rounded : quiet) & 0xFFFF0000u;
}

static void pack_bf16(int64_t n, const void *x_, uint16_t *y)
{
    const real *x = x_;
    for (int64_t i = 0; i < n; i++)
        y[i] = (uint16_t)(bf16_bits((float)x[i]) >> 16);
}

static void unpack_bf16(int64_t n, const uint16_t *x, void *y_)
{
    real *y = y_;
    for (int64_t i = 0; i < n; i++) {
        union {
            uint32_t bits;
            float value;
        } u = {.bits = (uint32_t)x[i] << 16};
        y[i] = (real)u.value;
    }
}

static void round_bf16(int64_t n, const void *x_, void *y_)
{
    const real *x = x_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++) {
        union {
            uint32_t bits;
            float value;
        } u = {.bits = bf16_bits((float)x[i])};
        y[i] = (real)u.value;
    }
}

const bk_vector_kernels BK_KERNEL(bk_vector_kernels) = {
    .exp = vexp,
    .exp_negative = exp_negative,
    .log = vlog,
    .add = add,
    .axpy = axpy,
    .scale = scale,
    .max = max,
    .sum = sum,
    .dot = dot,
    .exp_sum = exp_sum,
    .pack_bf16 = pack_bf16,
    .unpack_bf16 = unpack_bf16,
    .round_bf16 = round_bf16,
};
