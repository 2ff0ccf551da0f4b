/* test: labels=unit timeout=60 */
/* The loops over the vocabulary, of every instruction set, against plain ones. */
#include "tests/support/check.h"

#include "losses/sinkd_kernel.h"

#include "core/rng.h"

#include <math.h>

enum { MOST = 300, WIDTH = 1056, LD = WIDTH + BK_SINKD_PAD };

typedef union matrix {
    double f64[MOST * LD];
    float f32[MOST * LD];
} matrix;

static matrix p, q, h;

typedef struct instance {
    const char *name;
    const bk_sinkd_kernels *kernels;
    bool wide; /* double */
} instance;

static instance instances[4];
static int count;

static int list_instances(void **state)
{
    (void)state;
    instances[count++] = (instance){"f64", &bk_sinkd_kernels_f64, true};
    instances[count++] = (instance){"f32", &bk_sinkd_kernels_f32, false};
    if (bk_cpu_avx512()) {
        instances[count++] = (instance){"f32x", &bk_sinkd_kernels_f32x, false};
        instances[count++] = (instance){"f64x", &bk_sinkd_kernels_f64x, true};
    }
    return 0;
}

static double get(const instance *k, const matrix *x, int64_t i, int64_t v)
{
    return k->wide ? x->f64[i * LD + v] : (double)x->f32[i * LD + v];
}

static void set(const instance *k, matrix *x, int64_t i, int64_t v, double value)
{
    if (k->wide)
        x->f64[i * LD + v] = value;
    else
        x->f32[i * LD + v] = (float)value;
}

/* Multiples of 1/64, so that sums are exact in any order and ties happen. */
static void fill(const instance *k, matrix *x, uint64_t tag)
{
    for (int64_t i = 0; i < MOST; i++)
        for (int64_t v = 0; v < LD; v++)
            set(k, x, i, v, floor(bk_fill((uint64_t)(i * LD + v), tag, 0.0, 64.0)) / 64.0);
}

static double sign(double x)
{
    return (double)(x > 0) - (double)(x < 0);
}

/* c += the sum of |p - q| over the columns of the vocabulary, for every number of rows. */
static void check_distances(const instance *k, int64_t rows, int64_t columns, int64_t width)
{
    enum { GUARD = 8 };
    static double cost[MOST * MOST + GUARD], p_sum[MOST], q_sum[MOST];
    bk_sinkd_tile t = {rows, columns, width, &p, &q, LD};
    for (int64_t i = 0; i < MOST; i++) {
        p_sum[i] = q_sum[i] = 0.0;
        for (int64_t v = 0; v < width; v++) {
            p_sum[i] += get(k, &p, i, v);
            q_sum[i] += get(k, &q, i, v);
        }
    }
    for (int64_t i = 0; i < rows * columns + GUARD; i++)
        cost[i] = 7.0;
    k->kernels->distances(&t, p_sum, q_sum, cost);
    for (int64_t i = 0; i < rows * columns + GUARD; i++) {
        double want = 7.0;
        for (int64_t v = 0; v < width && i < rows * columns; v++)
            want += fabs(get(k, &p, i / columns, v) - get(k, &q, i % columns, v));
        if (cost[i] != want)
            fail_msg("%s, %d x %d x %d: %g, not %g", k->name, (int)rows, (int)columns, (int)width,
                     cost[i], want);
    }
}

static void distances_are_added(void **state)
{
    (void)state;
    for (int c = 0; c < count; c++) {
        fill(&instances[c], &p, 1);
        fill(&instances[c], &q, 2);
        for (int64_t rows = 0; rows <= 9; rows++)
            for (int64_t columns = 0; columns <= 9; columns++)
                check_distances(&instances[c], rows, columns, 2 * BK_SINKD_PAD);
        check_distances(&instances[c], 3, MOST, WIDTH); /* more than one segment each way */
    }
}

/* h = the sum of g sign(p - q), 0 where they are equal. */
static void check_signs(const instance *k, int64_t rows, int64_t columns, int64_t width)
{
    static double g[MOST * MOST];
    int ties = 0;
    bk_sinkd_tile t = {rows, columns, width, &p, &q, LD};
    for (int64_t i = 0; i < rows * columns; i++)
        g[i] = floor(bk_fill((uint64_t)i, 3, -64.0, 64.0)) / 8.0;
    fill(k, &h, 4);
    double outside = get(k, &h, rows, 0);
    k->kernels->sign_sum(&t, g, &h);
    assert_true(get(k, &h, rows, 0) == outside);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t v = 0; v < width; v++) {
            double want = 0.0;
            for (int64_t j = 0; j < columns; j++) {
                double d = get(k, &p, i, v) - get(k, &q, j, v);
                want += g[i * columns + j] * sign(d);
                ties += d == 0;
            }
            assert_true(get(k, &h, i, v) == want);
        }
    assert_true(ties > 0 || rows * columns < 9);
}

static void signs_are_summed(void **state)
{
    (void)state;
    for (int c = 0; c < count; c++) {
        fill(&instances[c], &p, 1);
        fill(&instances[c], &q, 2);
        for (int64_t rows = 1; rows <= 9; rows++)
            for (int64_t columns = 1; columns <= 9; columns++)
                check_signs(&instances[c], rows, columns, 2 * BK_SINKD_PAD);
        check_signs(&instances[c], 3, MOST, WIDTH);
    }
}

/* The smallest differences there are, at both ends of [0,1], have their sign. */
static void near_neighbours_differ(void **state)
{
    (void)state;
    for (int c = 0; c < count; c++) {
        const instance *k = &instances[c];
        const double step = k->wide ? 0x1p-53 : 0x1p-24, normal = k->wide ? 0x1p-1022 : 0x1p-126;
        const double left[] = {1.0, 1.0 - step, 1.0, normal, 0.0, normal, normal * (1 + 2 * step)},
                     right[] = {1.0 - step, 1.0, 1.0, 0.0, normal, normal, normal};
        const double want[] = {1, -1, 0, 1, -1, 0, 1};
        for (int v = 0; v < BK_SINKD_PAD; v++) {
            set(k, &p, 0, v, v < 7 ? left[v] : 0.0);
            set(k, &q, 0, v, v < 7 ? right[v] : 0.0);
        }
        bk_sinkd_tile t = {1, 1, BK_SINKD_PAD, &p, &q, LD};
        k->kernels->sign_sum(&t, &(double){-3.0}, &h);
        for (int v = 0; v < BK_SINKD_PAD; v++)
            assert_true(get(k, &h, 0, v) == (v < 7 ? -3.0 * want[v] : 0.0));
    }
}

/* A pair's bits do not depend on the rows that share its block. */
static void neighbours_change_nothing(void **state)
{
    (void)state;
    for (int c = 0; c < count; c++) {
        const instance *k = &instances[c];
        size_t row = LD * (k->wide ? sizeof(double) : sizeof(float));
        double all[81] = {0}, zero[9] = {0}, g[81];
        for (int64_t i = 0; i < 9; i++)
            for (int64_t v = 0; v < LD; v++) {
                set(k, &p, i, v, bk_fill((uint64_t)(i * LD + v), 5, 0.0, 1.0));
                set(k, &q, i, v, bk_fill((uint64_t)(i * LD + v), 6, 0.0, 1.0));
            }
        for (int i = 0; i < 81; i++)
            g[i] = bk_fill((uint64_t)i, 7, -1.0, 1.0);
        bk_sinkd_tile t = {9, 9, WIDTH, &p, &q, LD};
        k->kernels->distances(&t, zero, zero, all);
        k->kernels->sign_sum(&t, g, &h);
        for (int i = 0; i < 9; i++) {
            static matrix alone;
            double one = 0.0;
            bk_sinkd_tile pair = {
                1, 1, WIDTH, (char *)&p + (size_t)i * row, (char *)&q + (size_t)(8 - i) * row, LD};
            k->kernels->distances(&pair, zero, zero, &one);
            assert_true(one == all[i * 9 + 8 - i]);
            bk_sinkd_tile band = {1, 9, WIDTH, pair.p, &q, LD};
            k->kernels->sign_sum(&band, g + (ptrdiff_t)(i * 9), &alone);
            for (int64_t v = 0; v < WIDTH; v++)
                assert_true(get(k, &alone, 0, v) == get(k, &h, i, v));
        }
    }
}

/* Ten vectors a round. */
static void limit_counts_its_elements(void **state)
{
    (void)state;
    assert_true(bk_sinkd_kernels_f64.min_add(10) == 10.0 * 10 * 4);
    assert_true(bk_sinkd_kernels_f32.min_add(10) == 10.0 * 10 * 8);
    if (bk_cpu_avx512())
        assert_true(bk_sinkd_kernels_f32x.min_add(1000) == 1000.0 * 10 * 16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(distances_are_added),       cmocka_unit_test(signs_are_summed),
        cmocka_unit_test(near_neighbours_differ),    cmocka_unit_test(neighbours_change_nothing),
        cmocka_unit_test(limit_counts_its_elements),
    };
    return cmocka_run_group_tests(tests, list_instances, NULL);
}
