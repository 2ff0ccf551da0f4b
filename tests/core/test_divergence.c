/* test: labels=unit,golden,grad timeout=120 */
/* The debiased divergence: golden values, zero for equal clouds, symmetry, sign, gradients. */
#include "tests/support/transport.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double diverge(bk_test_transport *t, const char *options)
{
    bk_test_transport_diverge(t, options);
    if (!t->divergence.converged)
        fail_msg("%s: not converged", options);
    return t->divergence.value;
}

static void golden_values(void **state)
{
    json_t *golden = bk_test_golden("ref_ot_golden.json");
    int64_t n;
    (void)state;
    for (int wide = 0; wide < 2; wide++) {
        bk_test_transport t = bk_test_transport_open(wide ? BK_F64 : BK_F32, 4, 4, 1);
        double *x = bk_test_numbers(json_object_get(golden, "div_x"), &n),
               *y = bk_test_numbers(json_object_get(golden, "div_y"), &n),
               *dx = bk_test_numbers(json_object_get(golden, "div_dx"), &n), own[8] = {0};
        t.cost = NULL;
        t.width = 2;
        t.x = x;
        t.y = y;
        double value =
                   diverge(&t, wide ? "epsilon=0.5 tolerance=1e-13" : "epsilon=0.5 tolerance=1e-6"),
               reference = json_number_value(json_object_get(golden, "div_value"));
        double limit = wide ? 1e-10 : 2e-5;
        bk_check_error(bk_test_error(1, &value, &reference, 1e-30), limit, "value");
        assert_int_equal(bk_divergence_gradient(&t.divergence, 1.0, own, NULL, NULL, NULL), BK_OK);
        bk_check_error(bk_test_error(8, own, dx, 1e-30), limit, "dx");
        free(x);
        free(y);
        free(dx);
        bk_test_transport_close(&t);
    }
    json_decref(golden);
}

static const char *const metrics[] = {"sqeuclidean", "euclidean", "l1"};
static const char *const sides[] = {"", "unbalanced=0.7", "method=newton",
                                    "method=newton unbalanced=2"};
enum { METRICS = 3, SIDES = 4 };

static const char *options_of(bk_test_transport *t, int metric, int side)
{
    return bk_arena_printf(t->arena, "epsilon=0.2 tolerance=1e-12 iterations=20000 metric=%s %s",
                           metrics[metric], sides[side]);
}

static void equal_clouds_are_at_zero(void **state)
{
    (void)state;
    for (int k = 0; k < METRICS * SIDES; k++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 9, 9, 1);
        bk_test_transport_points(&t, 2, 90, 0.0);
        bk_test_transport_masses(&t, 91, 1.0);
        t.y = t.x;
        t.b = t.a;
        const char *options = options_of(&t, k % METRICS, k / METRICS);
        bk_check_error(fabs(diverge(&t, options)), 1e-10, "%s", options);
        for (int i = 0; i < 9; i++)
            bk_check_error(fabs(t.divergence.f[i]) + fabs(t.divergence.g[i]), 1e-9, "f, g");
        bk_test_transport_close(&t);
    }
}

static void swapping_the_clouds_changes_nothing(void **state)
{
    (void)state;
    for (int k = 0; k < METRICS * SIDES; k++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 9, 13, 1), s = t;
        bk_test_transport_points(&t, 2, 90, 0.5);
        bk_test_transport_masses(&t, 91, 1.0);
        s.n = t.m;
        s.m = t.n;
        s.cost = NULL;
        s.width = 2;
        s.x = t.y;
        s.y = t.x;
        s.a = t.b;
        s.b = t.a;
        const char *options = options_of(&t, k % METRICS, k / METRICS);
        bk_check_error(fabs(diverge(&t, options) - diverge(&s, options)), 1e-10, "%s", options);
        bk_test_transport_close(&t);
    }
}

/* Over clouds that are near and far, of equal and of different masses. */
static void divergences_are_not_negative(void **state)
{
    static const double shift[] = {0.0, 1e-3, 0.1, 1.0};
    (void)state;
    for (int k = 0; k < METRICS * SIDES; k++)
        for (int i = 0; i < 4; i++) {
            bk_test_transport t = bk_test_transport_open(BK_F64, 8, 8, 1);
            bk_test_transport_points(&t, 2, 90, 0.0);
            bk_test_transport_masses(&t, 91, 1.0);
            memcpy(t.y, t.x, 16 * sizeof(double));
            for (int j = 0; j < 16; j++)
                t.y[j] += shift[i];
            memcpy(t.b, t.a, 8 * sizeof(double));
            for (int j = 0; strstr(sides[k / METRICS], "unbalanced") && j < 8; j++)
                t.b[j] *= 1.0 + shift[i];
            const char *options = options_of(&t, k % METRICS, k / METRICS);
            double value = diverge(&t, options);
            assert_true(value >= (i == 0 ? -1e-11 : 0.0));
            assert_true(i < 2 || value > 1e-4);
            bk_test_transport_close(&t);
        }
}

/* The three problems have the masses of the option, also where clouds differ in number. */
static void ones_are_masses_of_one_and_of_n_over_m(void **state)
{
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, 6, 9, 1);
    bk_test_transport_points(&t, 2, 90, 0.5);
    double ones = diverge(&t, "epsilon=0.2 tolerance=1e-12 marginals=ones");
    t.a = bk_test_transport_fill(&t, 6, 1, 1.0, 1.0);
    t.b = bk_test_transport_fill(&t, 9, 1, 6.0 / 9.0, 6.0 / 9.0);
    bk_check_error(fabs(ones - diverge(&t, "epsilon=0.2 tolerance=1e-12")), 1e-10, "value");
    bk_test_transport_close(&t);
}

static void points_without_mass_do_not_count(void **state)
{
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, 7, 9, 1);
    bk_test_transport_points(&t, 2, 90, 0.5);
    bk_test_transport_masses(&t, 91, 1.0);
    t.a[6] = t.b[8] = 0.0;
    double x[14] = {0}, y[18] = {0}, a[7] = {0}, b[9] = {0};
    const char *options = "epsilon=0.2 tolerance=1e-12 marginals=normalize";
    double with = diverge(&t, options);
    assert_true(isinf(t.divergence.f[6]) && isinf(t.divergence.g[8]));
    assert_int_equal(bk_divergence_gradient(&t.divergence, 1.0, x, y, a, b), BK_OK);
    assert_true(x[12] == 0.0 && x[13] == 0.0 && y[16] == 0.0 && a[6] == 0.0 && b[8] == 0.0);
    t.n = 6;
    t.m = 8;
    bk_check_error(fabs(diverge(&t, options) - with), 1e-12, "value");
    bk_test_transport_close(&t);
}

/* ---- gradients ---- */

typedef struct slopes {
    double x[18], y[26], a[9], b[13];
} slopes;

static double moved(bk_test_transport *t, const char *options, int64_t n, double *x,
                    const double *d, double step)
{
    for (int64_t i = 0; i < n; i++)
        x[i] += step * d[i];
    double value = diverge(t, options);
    for (int64_t i = 0; i < n; i++)
        x[i] -= step * d[i];
    return value;
}

static void check_side(bk_test_transport *t, const char *options, int64_t n, double *x,
                       const double *slope, double size, bool zero_sum, const char *what)
{
    double *d = bk_test_transport_fill(t, n, 97, -size, size), mean = 0.0;
    for (int64_t i = 0; i < n; i++)
        mean += d[i] / (double)n;
    for (int64_t i = 0; zero_sum && i < n; i++)
        d[i] -= mean;
    double difference =
        (moved(t, options, n, x, d, 1e-5) - moved(t, options, n, x, d, -1e-5)) / 2e-5;
    double own = bk_test_dot(n, slope, d);
    bk_check_error(fabs(difference / own - 1.0), 1e-5, "%s of %s", what, options);
}

static void gradients_are_differences(void **state)
{
    (void)state;
    for (int k = 0; k < METRICS * SIDES; k++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 9, 13, 1);
        bk_test_transport_points(&t, 2, 90, 0.5);
        bk_test_transport_masses(&t, 91, 1.0);
        bool soft = strstr(sides[k / METRICS], "unbalanced=") != NULL;
        for (int j = 0; soft && j < 13; j++)
            t.b[j] *= 1.3;
        const char *options = options_of(&t, k % METRICS, k / METRICS);
        slopes s = {0};
        diverge(&t, options);
        assert_int_equal(bk_divergence_gradient(&t.divergence, 1.0, s.x, s.y, s.a, s.b), BK_OK);
        bool balanced = k / METRICS % 2 == 0;
        check_side(&t, options, 18, t.x, s.x, 1.0, false, "x");
        check_side(&t, options, 26, t.y, s.y, 1.0, false, "y");
        check_side(&t, options, 9, t.a, s.a, 0.02, balanced, "a");
        check_side(&t, options, 13, t.b, s.b, 0.02, balanced, "b");
        bk_test_transport_close(&t);
    }
}

static void unconverged_gradients_are_refused(void **state)
{
    double x[18] = {0};
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, 9, 13, 1);
    bk_test_transport_points(&t, 2, 90, 0.5);
    bk_test_transport_diverge(&t, "epsilon=0.01 iterations=2");
    assert_false(t.divergence.converged);
    assert_int_equal(bk_divergence_gradient(&t.divergence, 1.0, x, NULL, NULL, NULL), BK_USAGE);
    bk_test_transport_close(&t);
}

static void one_rho_serves_both_sides(void **state)
{
    bk_divergence_result r;
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, 9, 13, 1);
    bk_test_transport_points(&t, 2, 90, 0.5);
    bk_test_transport_solve(&t, "unbalanced_a=0.7");
    assert_int_equal(bk_divergence_solve(&t.problem, &t.config, &r), BK_USAGE);
    assert_non_null(strstr(bk_status_text(), "one rho for both sides"));
    bk_test_transport_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_values),
        cmocka_unit_test(equal_clouds_are_at_zero),
        cmocka_unit_test(swapping_the_clouds_changes_nothing),
        cmocka_unit_test(divergences_are_not_negative),
        cmocka_unit_test(ones_are_masses_of_one_and_of_n_over_m),
        cmocka_unit_test(points_without_mass_do_not_count),
        cmocka_unit_test(one_rho_serves_both_sides),
        cmocka_unit_test(gradients_are_differences),
        cmocka_unit_test(unconverged_gradients_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
