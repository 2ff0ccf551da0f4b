/* core/vector_kernel.h - exp, log, the normal distribution, sin, cos, tanh, sigmoid on `real` for
 * *_kernel.c files.
 *
 * Branch-free plain C, so that gcc and clang vectorise the loops that call them (-fno-math-errno
 * -fno-trapping-math). An element's bits depend on its value alone.  exp and log: at most 2 ulp;
 * exp(-inf) = 0, NaN stays NaN. */
#ifndef BK_CORE_VECTOR_KERNEL_H
#define BK_CORE_VECTOR_KERNEL_H

#include "core/real.h"

#include <math.h>
#include <string.h>

#if BK_REAL == 64
typedef int64_t bk_bits;
typedef uint64_t bk_word; /* arithmetic on bits wraps: NaN and negative arguments run through it */
enum { BK_MANTISSA = 52, BK_BIAS = 1023 };
#define BK_R(x) (x)
static const real bk_round_magic = 0x1.8p52;
static const real bk_exp_least = -746.0, bk_exp_most = 710.0, bk_exp_least_normal = -708.0;
static const real bk_ln2_high = 0x1.62e42fee00000p-1, bk_ln2_low = 0x1.a39ef35793c76p-33;
static const real bk_smallest_normal = 0x1p-1022, bk_denormal_scale = 0x1p54;
static const bk_bits bk_denormal_shift = 54, bk_sqrt_half = 0x3fe6a09e667f3bcd;
#else
typedef int32_t bk_bits;
typedef uint32_t bk_word;
enum { BK_MANTISSA = 23, BK_BIAS = 127 };
#define BK_R(x) (x##f)
static const real bk_round_magic = 0x1.8p23f;
static const real bk_exp_least = -105.0f, bk_exp_most = 89.0f, bk_exp_least_normal = -87.0f;
static const real bk_ln2_high = 0x1.62e4p-1f, bk_ln2_low = 0x1.7f7d1cp-20f;
static const real bk_smallest_normal = 0x1p-126f, bk_denormal_scale = 0x1p25f;
static const bk_bits bk_denormal_shift = 25, bk_sqrt_half = 0x3f3504f3;
#endif

static inline bk_bits bk_bits_of(real x)
{
    bk_bits b;
    memcpy(&b, &x, sizeof b);
    return b;
}

static inline real bk_of_bits(bk_bits b)
{
    real x;
    memcpy(&x, &b, sizeof x);
    return x;
}

/* 2^n for n between the normal exponents. */
static inline real bk_power_of_two(bk_bits n)
{
    return bk_of_bits((bk_bits)((bk_word)(n + BK_BIAS) << BK_MANTISSA));
}

/* e^r, |r| <= ln2/2. */
static inline real bk_exp_series(real r)
{
#if BK_REAL == 64
    real p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
#else
    real p = 1.0f / 5040.0f;
#endif
    p = p * r + BK_R(1.0) / BK_R(720.0);
    p = p * r + BK_R(1.0) / BK_R(120.0);
    p = p * r + BK_R(1.0) / BK_R(24.0);
    p = p * r + BK_R(1.0) / BK_R(6.0);
    p = p * r + BK_R(0.5);
    return p * r * r + r + BK_R(1.0);
}

/* e^x = 2^n e^r, n = round(x log2 e), |r| <= ln2/2, e^r by its series; 2^n in two factors, so that
 * results down to the denormals and up to infinity come out right. */
static inline real bk_exp(real x)
{
    real y = x < bk_exp_least ? bk_exp_least : x;
    y = y > bk_exp_most ? bk_exp_most : y;
    real shifted = y * BK_R(1.44269504088896340736) + bk_round_magic;
    bk_bits n = bk_bits_of(shifted) - bk_bits_of(bk_round_magic);
    real k = shifted - bk_round_magic;
    real r = (y - k * bk_ln2_high) - k * bk_ln2_low;
    real p = bk_exp_series(r);
    bk_bits half = n >> 1;
    return p * bk_power_of_two(half) * bk_power_of_two((bk_bits)(n - half));
}

/* The same for what softmax takes it of: x up to 1, say.  One factor 2^n, and 0 where the result
 * would be denormal. */
static inline real bk_exp_negative(real x)
{
    real shifted = x * BK_R(1.44269504088896340736) + bk_round_magic, k = shifted - bk_round_magic;
    bk_word n = (bk_word)bk_bits_of(shifted) - (bk_word)bk_bits_of(bk_round_magic);
    real r = (x - k * bk_ln2_high) - k * bk_ln2_low;
    real e = bk_exp_series(r) * bk_power_of_two((bk_bits)n);
    return x < bk_exp_least_normal ? BK_R(0.0) : e;
}

/* log x = e ln2 + log m, m in [sqrt(1/2), sqrt 2); with s = (m-1)/(m+1): log m = 2 (s + s^3/3 +
 * s^5/5 + ...). */
static inline real bk_log(real x)
{
    real y = x < bk_smallest_normal ? x * bk_denormal_scale : x;
    bk_bits shift = x < bk_smallest_normal ? bk_denormal_shift : 0;
    bk_word bits = (bk_word)bk_bits_of(y);
    bk_bits e = (bk_bits)(bits - (bk_word)bk_sqrt_half) >> BK_MANTISSA;
    real m = bk_of_bits((bk_bits)(bits - ((bk_word)e << BK_MANTISSA)));
    real f = m - BK_R(1.0), s = f / (BK_R(2.0) + f), z = s * s;
#if BK_REAL == 64
    real p = 2.0 / 23.0;
    p = p * z + 2.0 / 21.0;
    p = p * z + 2.0 / 19.0;
    p = p * z + 2.0 / 17.0;
    p = p * z + 2.0 / 15.0;
    p = p * z + 2.0 / 13.0;
    p = p * z + 2.0 / 11.0;
#else
    real p = 2.0f / 11.0f;
#endif
    p = p * z + BK_R(2.0) / BK_R(9.0);
    p = p * z + BK_R(2.0) / BK_R(7.0);
    p = p * z + BK_R(2.0) / BK_R(5.0);
    p = p * z + BK_R(2.0) / BK_R(3.0);
    /* log(1+f) = f - f^2/2 + s (f^2/2 + z p): the leading part is exact */
    real h = BK_R(0.5) * f * f;
    real k = (real)(e - shift);
    real result = k * bk_ln2_high - ((h - (s * (h + z * p) + k * bk_ln2_low)) - f);
    result = x > BK_R(0.0) ? result : (x == BK_R(0.0) ? -(real)INFINITY : (real)NAN);
    return x < (real)INFINITY ? result : x;
}

/* e^(x^2) erfc(x), x >= 0.  f64: t e^P(t), t = 2/(2+x), P a Chebyshev series in 2t - 1 (own fit to
 * 40 digits); f32: t Q(t), t = 1/(1 + 0.3 x), Q of degree 8 (own fit, relative error 2e-8). */
static inline real bk_erfc_scaled(real x)
{
#if BK_REAL == 64
    static const double c[26] = {
        -1.30265371978170943,     0.64196979235649026,     0.0194764732041858363,
        -0.00956151478680863164,  -9.46595344482036866e-4, 3.66839497852761452e-4,
        4.25233248069077716e-5,   -2.02785781125342432e-5, -1.62429000464702551e-6,
        1.3036558355805232e-6,    1.56264417220661432e-8,  -8.52380959149265425e-8,
        6.5290544390988515e-9,    5.05934349555146894e-9,  -9.91364156493033087e-10,
        -2.27365122293183586e-10, 9.6467911020155268e-11,  2.39403808303911474e-12,
        -6.8860275264975534e-12,  8.94487927309072572e-13, 3.13092139934295808e-13,
        -1.12708223613672524e-13, 3.81090525518923206e-16, 7.10609761360923699e-15,
        -1.5230282014571043e-15,  -9.457494571291234e-17};
    real t = 2.0 / (2.0 + x), y = 4.0 * t - 2.0, d = 0.0, dd = 0.0;
#pragma GCC unroll 26
    for (int j = 25; j > 0; j--) {
        real kept = d;
        d = y * d - dd + c[j];
        dd = kept;
    }
    return t * bk_exp(0.5 * (c[0] + y * d) - dd);
#else
    static const real q[9] = {0.169189349f,  0.170691019f,   0.148520543f,
                              0.214184487f,  -0.0928339773f, 0.54497962f,
                              -0.509784588f, 0.484308228f,   -0.129254686f};
    real t = 1.0f / (1.0f + 0.3f * x), y = q[8];
#pragma GCC unroll 8
    for (int j = 7; j >= 0; j--)
        y = y * t + q[j];
    return t * y;
#endif
}

/* e^(-x^2/2), which the normal density and the distribution function share. */
static inline real bk_normal_bell(real x)
{
    return bk_exp_negative(BK_R(-0.5) * x * x);
}

/* Phi(x) = erfc(-x / sqrt 2) / 2, the normal distribution function: the factor of gelu. */
static inline real bk_normal_cdf(real x, real bell)
{
    real a = (x < BK_R(0.0) ? -x : x) * BK_R(0.70710678118654752440);
    real tail = BK_R(0.5) * bell * bk_erfc_scaled(a);
    return x < BK_R(0.0) ? tail : BK_R(1.0) - tail;
}

#if BK_REAL == 64
static const real bk_half_pi[3] = {1.57079625129699707031, 7.54978941586159635336e-8,
                                   5.39030285815811905290e-15};
#else
static const real bk_half_pi[3] = {1.5703125f, 4.837512969970703125e-4f, 7.54978995489188216e-8f};
#endif

/* sin r / r and cos r by their series in z = r^2, |r| <= pi/4. */
static inline real bk_sin_series(real z)
{
#if BK_REAL == 64
    real p = 1.0 / 355687428096000.0;
    p = p * -z + 1.0 / 1307674368000.0;
    p = p * -z + 1.0 / 6227020800.0;
    p = p * -z + 1.0 / 39916800.0;
    p = p * -z + 1.0 / 362880.0;
#else
    real p = 1.0f / 362880.0f;
#endif
    p = p * -z + BK_R(1.0) / BK_R(5040.0);
    p = p * -z + BK_R(1.0) / BK_R(120.0);
    p = p * -z + BK_R(1.0) / BK_R(6.0);
    return p * -z + BK_R(1.0);
}

static inline real bk_cos_series(real z)
{
#if BK_REAL == 64
    real p = 1.0 / 20922789888000.0;
    p = p * -z + 1.0 / 87178291200.0;
    p = p * -z + 1.0 / 479001600.0;
    p = p * -z + 1.0 / 3628800.0;
    p = p * -z + 1.0 / 40320.0;
#else
    real p = 1.0f / 40320.0f;
#endif
    p = p * -z + BK_R(1.0) / BK_R(720.0);
    p = p * -z + BK_R(1.0) / BK_R(24.0);
    p = p * -z + BK_R(0.5);
    return p * -z + BK_R(1.0);
}

/* sin x and cos x = those of r = x - n pi/2, in the order and with the signs that n asks for; n
 * pi/2 is taken off in three parts.  Absolute accuracy of some ulp of 1 for |x| up to 1e4. */
static inline void bk_sincos(real x, real *sine, real *cosine)
{
    real shifted = x * BK_R(0.63661977236758134308) + bk_round_magic;
    bk_bits n = (bk_bits)((bk_word)bk_bits_of(shifted) - (bk_word)bk_bits_of(bk_round_magic));
    real turns = shifted - bk_round_magic;
    real r = ((x - turns * bk_half_pi[0]) - turns * bk_half_pi[1]) - turns * bk_half_pi[2];
    real u = r * bk_sin_series(r * r), v = bk_cos_series(r * r);
    real p = n & 1 ? v : u, q = n & 1 ? u : v;
    *sine = n & 2 ? -p : p;
    *cosine = (bk_bits)((bk_word)n + 1) & 2 ? -q : q;
}

static inline real bk_sigmoid(real x)
{
    return BK_R(1.0) / (BK_R(1.0) + bk_exp(-x));
}

/* tanh x = 1 - 2 / (e^2x + 1): absolute accuracy, which is what activations need. */
static inline real bk_tanh(real x)
{
    return BK_R(1.0) - BK_R(2.0) / (bk_exp(BK_R(2.0) * x) + BK_R(1.0));
}

#endif
