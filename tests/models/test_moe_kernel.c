/* test: labels=unit timeout=60 */
/* The loops of the mixture layer that mix two arithmetics, against plain ones. */
#include "tests/support/check.h"

#include "core/rng.h"
#include "models/moe_kernel.h"

#include <math.h>
#include <string.h>

enum { E = 11, C = 69, T = 21 };

static const bk_dtype dtypes[] = {BK_F32, BK_F64};

typedef union array {
    float f[T * C];
    double d[T * C];
} array;

static void set(bk_dtype dtype, array *x, int i, double value)
{
    if (dtype == BK_F64)
        x->d[i] = value;
    else
        x->f[i] = (float)value;
}

static double get(bk_dtype dtype, const array *x, int i)
{
    return dtype == BK_F64 ? x->d[i] : (double)x->f[i];
}

static void fill(bk_dtype dtype, array *x, int n, uint64_t tag)
{
    for (int i = 0; i < n; i++)
        set(dtype, x, i, bk_fill((uint64_t)i, tag, -1.0, 1.0));
}

/* Whole blocks of tokens and what is left over. */
static void logits_are_products_in_double(void **state)
{
    array x, gate;
    double panel[BK_MOE_PANEL(E) * C], h[T * E];
    (void)state;
    for (int i = 0; i < 2; i++) {
        const bk_moe_kernels *k = bk_moe_of(dtypes[i]);
        fill(dtypes[i], &x, T * C, 1);
        fill(dtypes[i], &gate, E * C, 2);
        k->panels(E, C, &gate, panel);
        k->logits(T, C, E, &x, panel, h);
        for (int j = 0; j < T * E; j++) {
            double sum = 0.0;
            for (int c = 0; c < C; c++)
                sum += get(dtypes[i], &x, j / E * C + c) * get(dtypes[i], &gate, j % E * C + c);
            assert_true(fabs(h[j] - sum) < 1e-13);
        }
    }
}

/* A logit does not depend on the tokens and experts that stand beside it. */
static void logits_do_not_see_each_other(void **state)
{
    array x, gate;
    double all[BK_MOE_PANEL(E) * C], one[BK_MOE_PANEL(1) * C], h[T * E], alone;
    (void)state;
    fill(BK_F32, &x, T * C, 1);
    fill(BK_F32, &gate, E * C, 2);
    const bk_moe_kernels *k = bk_moe_of(BK_F32);
    k->panels(E, C, &gate, all);
    k->logits(T, C, E, &x, all, h);
    for (int j = 0; j < T * E; j++) {
        k->panels(1, C, gate.f + j % E * C, one);
        k->logits(1, C, 1, x.f + j / E * C, one, &alone);
        assert_memory_equal(&alone, &h[j], sizeof alone);
    }
}

static void gradients_are_added(void **state)
{
    array x, gate, dx, y;
    double g[E], sum[E * C];
    (void)state;
    for (int e = 0; e < E; e++)
        g[e] = e == 1 ? 0.0 : bk_fill((uint64_t)e, 3, -1.0, 1.0);
    for (int i = 0; i < 2; i++) {
        const bk_moe_kernels *k = bk_moe_of(dtypes[i]);
        double limit = dtypes[i] == BK_F64 ? 1e-14 : 1e-6;
        fill(dtypes[i], &x, C, 1);
        fill(dtypes[i], &gate, E * C, 2);
        fill(dtypes[i], &dx, C, 4);
        for (int j = 0; j < E * C; j++)
            sum[j] = 0.5;
        k->outer(E, C, C, g, &x, sum);
        k->input_back(E, C, g, &gate, &dx);
        k->weigh(C, 0.3, &x, &y);
        for (int c = 0; c < C; c++) {
            double expected = bk_fill((uint64_t)c, 4, -1.0, 1.0);
            for (int e = 0; e < E; e++) {
                assert_true(fabs(sum[e * C + c] - 0.5 - g[e] * get(dtypes[i], &x, c)) < 1e-15);
                expected += g[e] * get(dtypes[i], &gate, e * C + c);
            }
            assert_true(fabs(get(dtypes[i], &dx, c) - expected) < limit);
            assert_true(fabs(get(dtypes[i], &y, c) - 0.3 * get(dtypes[i], &x, c)) < limit);
        }
        k->round(E * C, sum, &y);
        for (int j = 0; j < E * C; j++)
            assert_true(fabs(get(dtypes[i], &y, j) - sum[j]) <= limit);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_products_in_double),
        cmocka_unit_test(logits_do_not_see_each_other),
        cmocka_unit_test(gradients_are_added),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
