/* exp and log to 2 ulp over the whole range, special values, bits that do not depend on the place,
 * and the reductions against plain twins; for each instruction set of this machine. */
#include "core/vector.h"

#include "core/rng.h"
#include "tests/support/check.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct instance {
    const char *name;
    const bk_vector_kernels *k;
    bool single, runs;
} instance;

static const instance *instances(void)
{
    static instance list[5];
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    list[0] = (instance){"f32", &bk_vector_kernels_f32, true, true};
    list[1] = (instance){"f32x", &bk_vector_kernels_f32x, true, wide};
    list[2] = (instance){"f64", &bk_vector_kernels_f64, false, true};
    list[3] = (instance){"f64x", &bk_vector_kernels_f64x, false, wide};
    return list; /* ended by an entry without a name */
}

enum { CHUNK = 4096 };

/* Numbers of an instance, in its own type. */
typedef union numbers {
    float f[CHUNK];
    double d[CHUNK];
} numbers;

static void put(const instance *at, numbers *x, int i, double value)
{
    if (at->single)
        x->f[i] = (float)value;
    else
        x->d[i] = value;
}

static double get(const instance *at, const numbers *x, int i)
{
    return at->single ? (double)x->f[i] : x->d[i];
}

static void *place(const instance *at, numbers *x, int i)
{
    return at->single ? (void *)(x->f + i) : (void *)(x->d + i);
}

static size_t size_of(const instance *at)
{
    return at->single ? sizeof(float) : sizeof(double);
}

/* ---- accuracy ---- */

/* |y - exact| in units of the last place of the nearest number of the type. */
static double ulps(const instance *at, double y, long double exact)
{
    long double most = at->single ? (long double)FLT_MAX : (long double)DBL_MAX;
    int digits = at->single ? FLT_MANT_DIG : DBL_MANT_DIG;
    int least = at->single ? FLT_MIN_EXP : DBL_MIN_EXP, exponent;
    if (fabsl(exact) > most)
        return isinf(y) && (y > 0) == (exact > 0) ? 0.0 : 1e9;
    frexpl(exact, &exponent);
    exponent = exponent > least ? exponent : least;
    return (double)fabsl(((long double)y - exact) / ldexpl(1.0L, exponent - digits));
}

typedef long double exact_function(long double x);

static double worst_of(const instance *at, void (*f)(int64_t, const void *, void *),
                       exact_function *exact, const numbers *x, int n)
{
    static numbers y;
    double worst = 0.0;
    f(n, x, &y);
    for (int i = 0; i < n; i++) {
        double error = ulps(at, get(at, &y, i), exact((long double)get(at, x, i)));
        worst = error > worst || isnan(error) ? error : worst;
    }
    return worst;
}

/* Every `stride`-th bit pattern of the type that is a finite number >= 0 (and its negative). */
static double worst_over_patterns(const instance *at, bool negative, exact_function *exact,
                                  void (*f)(int64_t, const void *, void *))
{
    static numbers x;
    const uint64_t end = at->single ? 0x7f800000u : 0x7ff0000000000000u;
    const uint64_t stride = at->single ? 1999 : end / 600011;
    double worst = 0.0;
    int n = 0;
    for (uint64_t bits = 0; bits < end; bits += stride) {
        uint32_t half = (uint32_t)bits | (negative ? 0x80000000u : 0);
        uint64_t whole = bits | (negative ? 0x8000000000000000u : 0);
        memcpy(place(at, &x, n), at->single ? (void *)&half : (void *)&whole, size_of(at));
        if (++n == CHUNK || bits + stride >= end) {
            worst = fmax(worst, worst_of(at, f, exact, &x, n));
            n = 0;
        }
    }
    return worst;
}

/* Most patterns are far from 1; this looks where the functions are used. */
static double worst_between(const instance *at, double lo, double hi, exact_function *exact,
                            void (*f)(int64_t, const void *, void *))
{
    static numbers x;
    double worst = 0.0;
    for (uint64_t chunk = 0; chunk < 50; chunk++) {
        for (int i = 0; i < CHUNK; i++)
            put(at, &x, i, bk_fill(chunk * CHUNK + (uint64_t)i, 1, lo, hi));
        worst = fmax(worst, worst_of(at, f, exact, &x, CHUNK));
    }
    return worst;
}

static void exp_is_within_two_ulps(void **state)
{
    (void)state;
    for (const instance *at = instances(); at->name; at++) {
        if (!at->runs)
            continue;
        double least = at->single ? -104.5 : -746.0, most = at->single ? 89.0 : 710.0;
        for (int negative = 0; negative < 2; negative++)
            bk_check_error(worst_over_patterns(at, negative, expl, at->k->exp), 2.0, "exp %s",
                           at->name);
        bk_check_error(worst_between(at, least, most, expl, at->k->exp), 2.0, "exp %s", at->name);
        bk_check_error(worst_between(at, least, least + 17.0, expl, at->k->exp), 2.0,
                       "denormal exp %s", at->name);
        bk_check_error(worst_between(at, -1.0, 1.0, expl, at->k->exp), 2.0, "exp %s", at->name);
    }
}

static void log_is_within_two_ulps(void **state)
{
    (void)state;
    for (const instance *at = instances(); at->name; at++) {
        if (!at->runs)
            continue;
        bk_check_error(worst_over_patterns(at, false, logl, at->k->log), 2.0, "log %s", at->name);
        bk_check_error(worst_between(at, 0.5, 2.0, logl, at->k->log), 2.0, "log %s", at->name);
        bk_check_error(worst_between(at, 0.999, 1.001, logl, at->k->log), 2.0, "log %s", at->name);
        bk_check_error(worst_between(at, 0.0, 1000.0, logl, at->k->log), 2.0, "log %s", at->name);
    }
}

/* ---- special values ---- */

static double apply(const instance *at, void (*f)(int64_t, const void *, void *), double value)
{
    static numbers x, y;
    for (int i = 0; i < 19; i++) /* whole vectors and a tail */
        put(at, &x, i, value);
    f(19, &x, &y);
    for (int i = 1; i < 19; i++)
        assert_memory_equal(place(at, &y, i), place(at, &y, 0), size_of(at));
    return get(at, &y, 0);
}

static void special_values(void **state)
{
    (void)state;
    for (const instance *at = instances(); at->name; at++) {
        if (!at->runs)
            continue;
        double most = at->single ? (double)FLT_MAX : DBL_MAX,
               denormal = at->single ? 0x1p-149 : 0x1p-1074;
        assert_true(apply(at, at->k->exp, 0.0) == 1.0 && apply(at, at->k->exp, -0.0) == 1.0);
        assert_true(apply(at, at->k->exp, -INFINITY) == 0.0);
        assert_true(!signbit(apply(at, at->k->exp, -INFINITY)));
        assert_true(apply(at, at->k->exp, -most) == 0.0);
        assert_true(apply(at, at->k->exp, INFINITY) == INFINITY);
        assert_true(apply(at, at->k->exp, most) == INFINITY);
        assert_true(isnan(apply(at, at->k->exp, NAN)) && isnan(apply(at, at->k->exp, -NAN)));
        assert_true(apply(at, at->k->exp, denormal) == 1.0);
        assert_true(apply(at, at->k->log, 1.0) == 0.0);
        assert_true(apply(at, at->k->log, 0.0) == -INFINITY);
        assert_true(apply(at, at->k->log, -0.0) == -INFINITY);
        assert_true(apply(at, at->k->log, INFINITY) == INFINITY);
        assert_true(isnan(apply(at, at->k->log, -1.0)) && isnan(apply(at, at->k->log, -denormal)));
        assert_true(isnan(apply(at, at->k->log, -INFINITY)) && isnan(apply(at, at->k->log, NAN)));
        bk_check_error(fabs(apply(at, at->k->log, denormal) - log(denormal)), 1e-4, "log %s",
                       at->name);
    }
}

static void exp_of_negatives_leaves_out_denormals(void **state)
{
    (void)state;
    for (const instance *at = instances(); at->name; at++) {
        if (!at->runs)
            continue;
        double least = at->single ? -87.0 : -708.0;
        bk_check_error(worst_between(at, least, 1.0, expl, at->k->exp_negative), 2.0, "exp %s",
                       at->name);
        bk_check_error(worst_between(at, -1e-3, 1e-3, expl, at->k->exp_negative), 2.0, "exp %s",
                       at->name);
        assert_true(apply(at, at->k->exp_negative, 0.0) == 1.0);
        assert_true(apply(at, at->k->exp_negative, 1.01 * least) == 0.0);
        assert_true(apply(at, at->k->exp_negative, at->single ? -FLT_MAX : -DBL_MAX) == 0.0);
        assert_true(apply(at, at->k->exp_negative, -INFINITY) == 0.0);
        assert_true(isnan(apply(at, at->k->exp_negative, NAN)));
    }
}

/* ---- places ---- */

typedef void one_array(const instance *at, int64_t n, const void *x, void *y);

static void run_exp(const instance *at, int64_t n, const void *x, void *y)
{
    at->k->exp(n, x, y);
}
static void run_log(const instance *at, int64_t n, const void *x, void *y)
{
    at->k->log(n, x, y);
}
static void run_add(const instance *at, int64_t n, const void *x, void *y)
{
    at->k->add(n, x, y);
}
static void run_axpy(const instance *at, int64_t n, const void *x, void *y)
{
    at->k->axpy(n, 0.7, x, y);
}
static void run_scale(const instance *at, int64_t n, const void *x, void *y)
{
    memcpy(y, x, (size_t)n * size_of(at));
    at->k->scale(n, 0.3, y);
}
static void run_exp_negative(const instance *at, int64_t n, const void *x, void *y)
{
    at->k->exp_negative(n, x, y);
}

static void run_exp_sum(const instance *at, int64_t n, const void *x, void *y)
{
    at->k->exp_sum(n, x, 0.25, y);
}

static one_array *const arrays[] = {run_exp,  run_exp_negative, run_log,    run_add,
                                    run_axpy, run_scale,        run_exp_sum};

enum { PLACES = 83 };

/* The result of each element alone, against arrays of every length at every offset in a vector. */
static void check_places(const instance *at, one_array *run)
{
    static numbers x, alone, y;
    for (int i = 0; i < PLACES; i++) {
        put(at, &x, i, bk_fill((uint64_t)i, 4, 0.001, 3.0));
        put(at, &alone, i, 0.125);
        run(at, 1, place(at, &x, i), place(at, &alone, i));
    }
    for (int first = 0; first < 17; first++)
        for (int n = 0; first + n < PLACES; n++) {
            for (int i = 0; i < PLACES; i++)
                put(at, &y, i, 0.125);
            run(at, n, place(at, &x, first), place(at, &y, first));
            assert_memory_equal(place(at, &y, first), place(at, &alone, first),
                                (size_t)n * size_of(at));
            for (int i = first + n; i < PLACES; i++) /* nothing beyond the end is touched */
                assert_true(get(at, &y, i) == 0.125);
        }
}

static void bits_do_not_depend_on_the_place(void **state)
{
    (void)state;
    for (const instance *at = instances(); at->name; at++)
        for (size_t i = 0; at->runs && i < sizeof arrays / sizeof *arrays; i++)
            check_places(at, arrays[i]);
}

/* ---- reductions: eight interleaved sums, then a fixed tree ---- */

static double plain_sum(const double *term, int n)
{
    double a[8] = {0};
    for (int i = 0; i < n; i++)
        a[i % 8] += term[i];
    return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
}

static void check_reductions(const instance *at, int n)
{
    static numbers x, y, e;
    double sum[PLACES], dot[PLACES], shifted[PLACES], most = -INFINITY, size = 0.0;
    for (int i = 0; i < n; i++) {
        put(at, &x, i, bk_fill((uint64_t)i, 5, -1.0, 1.0));
        put(at, &y, i, bk_fill((uint64_t)i, 6, -1e3, 1e3));
        sum[i] = get(at, &x, i);
        dot[i] = get(at, &x, i) * get(at, &y, i);
        size += fabs(dot[i]);
        most = fmax(most, sum[i]);
    }
    double got = at->k->sum(n, &x), expected = plain_sum(sum, n);
    assert_memory_equal(&got, &expected, sizeof got);
    bk_check_error(fabs(at->k->dot(n, &x, &y) - plain_sum(dot, n)), 1e-15 * size, "dot of %d", n);
    assert_true(at->k->max(n, &x) == most);
    got = at->k->exp_sum(n, &x, 0.5, &e);
    for (int i = 0; i < n; i++)
        shifted[i] = get(at, &e, i);
    expected = plain_sum(shifted, n);
    assert_memory_equal(&got, &expected, sizeof got);
    for (int i = 0; i < n; i++)
        bk_check_error(fabs(shifted[i] / exp(sum[i] - 0.5) - 1.0), at->single ? 3e-7 : 5e-16,
                       "exp_sum %s", at->name);
}

static void reductions_are_their_plain_twins(void **state)
{
    (void)state;
    for (const instance *at = instances(); at->name; at++)
        for (int n = 0; at->runs && n < PLACES; n++)
            check_reductions(at, n);
}

static void a_maximum_shows_what_is_no_number(void **state)
{
    static numbers x;
    (void)state;
    for (const instance *at = instances(); at->name; at++)
        for (int where = 0; at->runs && where < 21; where++) {
            for (int i = 0; i < 21; i++)
                put(at, &x, i, i);
            put(at, &x, where, NAN);
            assert_true(isnan(at->k->max(21, &x)));
            put(at, &x, where, INFINITY);
            assert_true(at->k->max(21, &x) == INFINITY);
            put(at, &x, where, -INFINITY);
            assert_true(at->k->max(21, &x) == (where == 20 ? 19.0 : 20.0));
        }
}

/* ---- bf16 ---- */

/* Eight bits of mantissa: 1 + 1/256 lies half way between 1 and 1 + 1/128. */
static const struct {
    double x, rounded;
} halves[] = {{1.0, 1.0},
              {1.0 + 1.0 / 256, 1.0},
              {1.0 + 3.0 / 256, 1.0 + 1.0 / 64},
              {1.0 + 1.0 / 256 + 1e-6, 1.0 + 1.0 / 128},
              {-1.0 - 3.0 / 256, -1.0 - 1.0 / 64},
              {3.1415927, 3.140625},
              {-0.0, -0.0},
              {3.4e38, INFINITY},
              {-INFINITY, -INFINITY}};

static void rounding_to_bf16(void **state)
{
    enum { COUNT = sizeof halves / sizeof *halves };
    static numbers x, y;
    uint16_t packed[COUNT + 1];
    (void)state;
    for (const instance *at = instances(); at->name; at++) {
        for (int i = 0; i < COUNT; i++)
            put(at, &x, i, halves[i].x);
        put(at, &x, COUNT, NAN);
        if (!at->runs)
            continue;
        at->k->round_bf16(COUNT + 1, &x, &y);
        at->k->pack_bf16(COUNT + 1, &x, packed);
        for (int i = 0; i < COUNT; i++) {
            float value = (float)halves[i].rounded;
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            assert_true(get(at, &y, i) == halves[i].rounded);
            assert_int_equal(packed[i], bits >> 16);
        }
        at->k->unpack_bf16(COUNT + 1, packed, &x);
        for (int i = 0; i < COUNT; i++)
            assert_true(get(at, &x, i) == halves[i].rounded);
        assert_true(isnan(get(at, &x, COUNT)) && isnan(get(at, &y, COUNT)));
        assert_true((packed[COUNT] & 0x7F80) == 0x7F80 && (packed[COUNT] & 0x7F) != 0);
    }
}

/* ---- doubles for callers that are no kernels ---- */

static void doubles(void **state)
{
    const double x[] = {-700.0, -1.0, 0.5, 3.0, 700.0};
    double y[5], back[5];
    (void)state;
    bk_exp_f64(5, x, y);
    bk_log_f64(5, y, back);
    for (int i = 0; i < 5; i++) {
        assert_true(bk_exp_one(x[i]) == y[i] && bk_log_one(y[i]) == back[i]);
        bk_check_error(fabs(back[i] - x[i]) / fabs(x[i]), 1e-15, "log exp %g", x[i]);
    }
}

static void log_sum_exp(void **state)
{
    double scratch[3];
    (void)state;
    assert_true(bk_lse_f64(0, NULL, scratch) == -INFINITY);
    assert_true(bk_lse_f64(2, (double[]){-INFINITY, -INFINITY}, scratch) == -INFINITY);
    assert_true(fabs(bk_lse_f64(2, (double[]){1000.0, 1000.0}, scratch) - 1000.0 - log(2.0)) <
                1e-12);
    assert_true(bk_lse_f64(3, (double[]){-1e4, -INFINITY, -1e5}, scratch) == -1e4);
    assert_true(fabs(bk_lse_f64(3, (double[]){1, 2, 3}, scratch) -
                     log(exp(1.0) + exp(2.0) + exp(3.0))) < 1e-15 * 4);
    assert_true(isnan(bk_lse_f64(2, (double[]){0.0, NAN}, scratch)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_is_within_two_ulps),
        cmocka_unit_test(exp_of_negatives_leaves_out_denormals),
        cmocka_unit_test(log_is_within_two_ulps),
        cmocka_unit_test(special_values),
        cmocka_unit_test(bits_do_not_depend_on_the_place),
        cmocka_unit_test(reductions_are_their_plain_twins),
        cmocka_unit_test(a_maximum_shows_what_is_no_number),
        cmocka_unit_test(rounding_to_bf16),
        cmocka_unit_test(doubles),
        cmocka_unit_test(log_sum_exp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
