/* test: labels=unit,grad timeout=120 */
/* Gradients of a transport: against differences, against each other, and which one is taken. */
#include "tests/support/transport.h"

#include <math.h>
#include <string.h>

enum { N = 12, M = 17 };

static bk_test_transport open_problem(void)
{
    bk_test_transport t = bk_test_transport_open(BK_F64, N, M, 31);
    bk_test_transport_masses(&t, 32, 1.0);
    t.differentiate = true;
    return t;
}

/* ---- differences ---- */

/* L = sum G P + value (the value); G NULL: the value alone. */
static double loss(bk_test_transport *t, const double *g, double value, const char *options)
{
    bk_test_transport_solve(t, options);
    double sum = value != 0.0 ? value * bk_transport_value(&t->result) : 0.0;
    return g ? sum + bk_test_dot(t->n * t->m, g, bk_test_transport_plan(t)) : sum;
}

/* A direction of zero sum, small enough to leave masses positive. */
static double *direction(bk_test_transport *t, int64_t n, uint64_t tag, double size, bool zero_sum)
{
    double *d = bk_test_transport_fill(t, n, tag, -size, size), mean = 0.0;
    for (int64_t i = 0; i < n; i++)
        mean += d[i] / (double)n;
    for (int64_t i = 0; zero_sum && i < n; i++)
        d[i] -= mean;
    return d;
}

/* Central difference of the loss along d in the array x[n]. */
static double difference(bk_test_transport *t, const double *g, double value, const char *options,
                         int64_t n, double *x, const double *d)
{
    const double step = 1e-5;
    double side[2], *kept = BK_NEW(t->arena, double, n);
    memcpy(kept, x, (size_t)n * sizeof *x);
    for (int k = 0; k < 2; k++) {
        for (int64_t i = 0; i < n; i++)
            x[i] = kept[i] + (k ? step : -step) * d[i];
        side[k] = loss(t, g, value, options);
    }
    memcpy(x, kept, (size_t)n * sizeof *x);
    return (side[1] - side[0]) / (2.0 * step);
}

static void check_differences(bk_test_transport *t, const double *g, double value, bool balanced,
                              const char *options)
{
    loss(t, g, value, options);
    bk_test_gradient own = bk_test_transport_gradient(t, g, value);
    const struct {
        int64_t n;
        double *x, *gradient, size;
        bool zero_sum;
    } side[] = {{N * M, t->cost, own.cost, 1.0, false},
                {N, t->a, own.a, 0.01, balanced},
                {M, t->b, own.b, 0.01, balanced}};
    for (uint64_t k = 0; k < 3; k++) {
        double *d = direction(t, side[k].n, 40 + k, side[k].size, side[k].zero_sum);
        double slope = bk_test_dot(side[k].n, side[k].gradient, d);
        double moved = difference(t, g, value, options, side[k].n, side[k].x, d);
        bk_check_error(fabs(moved - slope) / fabs(slope), 1e-5, "derivative %d of %s", (int)k,
                       options);
    }
}

static void derivatives_are_differences(void **state)
{
    static const char *const balanced[] = {"gradient=implicit",
                                           "gradient=implicit method=newton",
                                           "gradient=implicit method=newton solver=cg "
                                           "cg_tolerance=1e-13",
                                           "gradient=implicit method=sns",
                                           "gradient=implicit cost_scale=none mode=absorbed",
                                           "gradient=unrolled iterations=4 tolerance=0",
                                           "gradient=unrolled iterations=5 tolerance=0 mode=log"};
    static const char *const soft[] = {"gradient=implicit unbalanced=0.3",
                                       "gradient=implicit unbalanced_a=0.3",
                                       "gradient=implicit unbalanced_b=0.7 method=newton",
                                       "gradient=unrolled unbalanced=0.3 iterations=4 tolerance=0",
                                       "gradient=unrolled unbalanced_b=2 iterations=4 tolerance=0"};
    static const char *const values[] = {"cost", "kl", "entropy"};
    (void)state;
    for (size_t i = 0; i < sizeof balanced / sizeof *balanced; i++)
        for (int v = 0; v < 3; v++) {
            bk_test_transport t = open_problem();
            const char *tolerance = strstr(balanced[i], "tolerance=0") ? "" : "tolerance=1e-13";
            double *g = bk_test_transport_fill(&t, N * M, 35, -1.0, 1.0);
            check_differences(
                &t, g, 1.7, true,
                bk_arena_printf(t.arena, "value=%s %s %s", values[v], balanced[i], tolerance));
            bk_test_transport_close(&t);
        }
    for (size_t i = 0; i < sizeof soft / sizeof *soft; i++)
        for (int v = 0; v < 3; v++) {
            bk_test_transport t = open_problem();
            const char *tolerance = strstr(soft[i], "tolerance=0") ? "" : "tolerance=1e-13";
            double *g = bk_test_transport_fill(&t, N * M, 35, -1.0, 1.0);
            check_differences(
                &t, g, 1.7, false,
                bk_arena_printf(t.arena, "value=%s %s %s", values[v], soft[i], tolerance));
            bk_test_transport_close(&t);
        }
}

static void envelopes_are_differences(void **state)
{
    static const struct {
        const char *options;
        bool balanced;
    } cases[] = {{"value=kl", true},
                 {"value=entropy", true},
                 {"value=kl method=newton", true},
                 {"value=kl unbalanced=0.3", false},
                 {"value=kl unbalanced_a=0.3", false},
                 {"value=kl unbalanced_b=0.3 method=newton", false}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bk_test_transport t = open_problem();
        check_differences(
            &t, NULL, -0.6, cases[i].balanced,
            bk_arena_printf(t.arena, "gradient=envelope tolerance=1e-13 %s", cases[i].options));
        bk_test_transport_close(&t);
    }
}

/* ---- against each other ---- */

static void compare(const bk_test_gradient *x, const bk_test_gradient *y, double limit,
                    const char *what)
{
    bk_check_error(bk_test_error(N * M, x->cost, y->cost, 1e-30), limit, "cost, %s", what);
    bk_check_error(bk_test_error(N, x->a, y->a, 1e-30), limit, "a, %s", what);
    bk_check_error(bk_test_error(M, x->b, y->b, 1e-30), limit, "b, %s", what);
}

/* The gradients of both options agree; G or the value. */
static void hold_pair(const char *first, const char *second, const char *common, bool plan,
                      double limit)
{
    bk_test_transport t = open_problem();
    double *g = plan ? bk_test_transport_fill(&t, N * M, 35, -1.0, 1.0) : NULL;
    bk_test_transport_solve(&t, bk_arena_printf(t.arena, "%s %s", common, first));
    bk_test_gradient x = bk_test_transport_gradient(&t, g, 0.8);
    bk_test_transport_solve(&t, bk_arena_printf(t.arena, "%s %s", common, second));
    bk_test_gradient y = bk_test_transport_gradient(&t, g, 0.8);
    compare(&x, &y, limit, second);
    bk_test_transport_close(&t);
}

static void unrolled_tends_to_implicit(void **state)
{
    const char *unrolled = "gradient=unrolled tolerance=0 iterations=2000",
               *implicit = "gradient=implicit tolerance=1e-14 method=newton";
    (void)state;
    hold_pair(unrolled, implicit, "", true, 1e-10);
    hold_pair(unrolled, implicit, "value=kl", false, 1e-10);
    hold_pair(unrolled, implicit, "unbalanced=0.5", true, 1e-10);
    hold_pair(unrolled, implicit, "unbalanced_b=0.5 value=kl", true, 1e-10);
}

static void envelope_is_implicit(void **state)
{
    static const char *const common[] = {"value=kl",
                                         "value=entropy",
                                         "value=kl method=newton",
                                         "value=kl unbalanced=0.4",
                                         "value=kl unbalanced_a=0.4",
                                         "value=kl cost_scale=mean"};
    (void)state;
    for (size_t i = 0; i < sizeof common / sizeof *common; i++)
        hold_pair("gradient=envelope tolerance=1e-13", "gradient=implicit tolerance=1e-13",
                  common[i], false, 1e-9);
}

static void forms_have_one_unrolled_gradient(void **state)
{
    (void)state;
    hold_pair("mode=pform", "mode=log", "gradient=unrolled tolerance=0 iterations=6", true, 1e-11);
    hold_pair("solver=dense", "solver=cg cg_tolerance=1e-14",
              "method=newton gradient=implicit tolerance=1e-13", true, 1e-9);
}

/* The cost is divided by a constant: gradients are those of the epsilon that it comes to. */
static void scaled_costs_scale_gradients_back(void **state)
{
    static const char *const ways[] = {"gradient=implicit tolerance=1e-13",
                                       "gradient=unrolled iterations=4 tolerance=0"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        bk_test_transport t = open_problem();
        double *g = bk_test_transport_fill(&t, N * M, 35, -1.0, 1.0), most = 0.0;
        for (int k = 0; k < N * M; k++) {
            t.cost[k] *= 9.0;
            most = fmax(most, t.cost[k]);
        }
        bk_test_transport_solve(&t,
                                bk_arena_printf(t.arena, "cost_scale=max value=kl %s", ways[i]));
        bk_test_gradient scaled = bk_test_transport_gradient(&t, g, 0.8);
        bk_test_transport_solve(
            &t, bk_arena_printf(t.arena, "epsilon=%.17g value=kl %s", 0.05 * most, ways[i]));
        bk_test_gradient plain = bk_test_transport_gradient(&t, g, 0.8);
        compare(&scaled, &plain, 1e-11, ways[i]);
        bk_test_transport_close(&t);
    }
}

/* ---- shapes of a gradient ---- */

static void sums_are_zero(void **state)
{
    static const char *const ways[] = {"gradient=implicit", "gradient=unrolled"};
    (void)state;
    for (int way = 0; way < 2; way++) {
        bk_test_transport t = open_problem();
        bk_test_transport_converge(&t, bk_arena_printf(t.arena, "tolerance=1e-13 %s", ways[way]));
        bk_test_gradient g =
            bk_test_transport_gradient(&t, bk_test_transport_fill(&t, N * M, 35, -1.0, 1.0), 0.0);
        double a = 0.0, b = 0.0, column = 0.0;
        for (int i = 0; i < N; i++) {
            double row = 0.0;
            for (int j = 0; j < M; j++)
                row += g.cost[i * M + j];
            bk_check_error(fabs(row), 1e-11, "row %d", i);
            column += g.cost[i * M + 3];
            a += g.a[i];
        }
        for (int j = 0; j < M; j++)
            b += g.b[j];
        bk_check_error(fabs(column), 1e-11, "column");
        bk_check_error(fabs(a) + fabs(b), 1e-13, "sums of a and b");
        bk_test_transport_close(&t);
    }
}

/* Rows and columns without mass, and forbidden pairs, have none; the others as if those were not
 * there. */
static void what_has_no_mass_has_no_gradient(void **state)
{
    static const char *const ways[] = {"gradient=implicit value=kl tolerance=1e-13",
                                       "gradient=envelope value=kl tolerance=1e-13",
                                       "gradient=unrolled value=kl tolerance=0 iterations=6"};
    (void)state;
    for (int way = 0; way < 3; way++) {
        bk_test_transport t = open_problem(), s = t;
        double *plan = way == 1 ? NULL : bk_test_transport_fill(&t, N * M, 35, -1.0, 1.0);
        double *less = BK_NEW(t.arena, double, N *M);
        t.a[4] = t.b[0] = 0.0;
        t.cost[3] = INFINITY;
        s.n = N - 1;
        s.m = M - 1;
        s.a = BK_NEW(t.arena, double, N);
        s.b = t.b + 1;
        s.cost = BK_NEW(t.arena, double, N *M);
        for (int i = 0; i < N - 1; i++) {
            int from = i + (i >= 4);
            s.a[i] = t.a[from];
            memcpy(s.cost + i * (M - 1), t.cost + from * M + 1, (M - 1) * sizeof(double));
            if (plan)
                memcpy(less + i * (M - 1), plan + from * M + 1, (M - 1) * sizeof(double));
        }
        const char *options = bk_arena_printf(t.arena, "marginals=normalize %s", ways[way]);
        bk_test_transport_solve(&t, options);
        bk_test_transport_solve(&s, options);
        bk_test_gradient x = bk_test_transport_gradient(&t, plan, 0.7),
                         y = bk_test_transport_gradient(&s, plan ? less : NULL, 0.7);
        assert_true(x.a[4] == 0.0 && x.b[0] == 0.0 && x.cost[3] == 0.0);
        for (int j = 0; j < M; j++)
            assert_true(x.cost[4 * M + j] == 0.0);
        for (int i = 0; i < N - 1; i++) {
            int from = i + (i >= 4);
            assert_true(x.cost[from * M] == 0.0);
            bk_check_error(fabs(x.a[from] - y.a[i]), 1e-12, "a[%d] of %s", from, ways[way]);
            bk_check_error(bk_test_error(M - 1, x.cost + from * M + 1, y.cost + i * (M - 1), 1e-3),
                           1e-11, "row %d of %s", from, ways[way]);
        }
        bk_check_error(bk_test_error(M - 1, x.b + 1, y.b, 1e-3), 1e-11, "b of %s", ways[way]);
        bk_test_transport_close(&t);
    }
}

static void single_precision_is_near(void **state)
{
    static const char *const ways[] = {"gradient=implicit method=newton", "gradient=implicit",
                                       "gradient=unrolled iterations=4 tolerance=0"};
    (void)state;
    for (int i = 0; i < 3; i++) {
        bk_test_transport t = open_problem(), s = t;
        double *g = bk_test_transport_fill(&t, N * M, 35, -1.0, 1.0);
        s.dtype = BK_F32;
        bk_test_transport_solve(&t, ways[i]);
        bk_test_transport_solve(&s, ways[i]);
        bk_test_gradient x = bk_test_transport_gradient(&s, g, 0.8),
                         y = bk_test_transport_gradient(&t, g, 0.8);
        compare(&x, &y, 1e-3, ways[i]);
        bk_test_transport_close(&t);
    }
}

/* ---- points ---- */

static double *plan_loss_weights(bk_test_transport *t)
{
    return bk_test_transport_fill(t, N * M, 35, -1.0, 1.0);
}

static void points_move_with_their_costs(void **state)
{
    static const char *const metrics[] = {"sqeuclidean", "euclidean", "l1"};
    (void)state;
    for (int k = 0; k < 3; k++) {
        bk_test_transport t = open_problem();
        bk_test_transport_points(&t, 3, 60, 0.4);
        double *g = plan_loss_weights(&t), *x = BK_ZNEW(t.arena, double, N * 3),
               *y = BK_ZNEW(t.arena, double, M * 3);
        const char *options = bk_arena_printf(
            t.arena, "metric=%s epsilon=0.5 tolerance=1e-13 gradient=implicit value=kl",
            metrics[k]);
        bk_test_transport_converge(&t, options);
        bk_test_gradient own = bk_test_transport_gradient(&t, g, 0.8);
        bk_transport_points_back(&t.problem, (bk_metric)k, own.cost, x, y);
        double *dx = direction(&t, N * 3, 70, 1.0, false),
               *dy = direction(&t, M * 3, 71, 1.0, false);
        double slope[2] = {bk_test_dot(N * 3, x, dx), bk_test_dot(M * 3, y, dy)};
        double moved[2] = {difference(&t, g, 0.8, options, N * 3, t.x, dx),
                           difference(&t, g, 0.8, options, M * 3, t.y, dy)};
        for (int side = 0; side < 2; side++)
            bk_check_error(fabs(moved[side] / slope[side] - 1.0), 1e-5, "%s of %s",
                           side ? "y" : "x", metrics[k]);
        bk_test_transport_close(&t);
    }
}

static void coinciding_points_have_no_slope(void **state)
{
    const double one = 1.0;
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, 1, 1, 1);
    bk_test_transport_points(&t, 2, 60, 0.0);
    memcpy(t.y, t.x, 2 * sizeof(double));
    t.y[1] += 2.0;
    for (int k = 0; k < 3; k++) {
        double x[2] = {0.0, 0.0};
        bk_test_transport_converge(&t, "");
        bk_transport_points_back(&t.problem, (bk_metric)k, &one, x, NULL);
        assert_true(x[0] == 0.0 && x[1] == (k == 0 ? -4.0 : -1.0));
    }
    t.y[1] = t.x[1];
    double x[2] = {0.0, 0.0};
    bk_test_transport_converge(&t, "");
    bk_transport_points_back(&t.problem, BK_METRIC_EUCLIDEAN, &one, x, NULL);
    assert_true(x[0] == 0.0 && x[1] == 0.0);
    bk_test_transport_close(&t);
}

/* ---- which one ---- */

/* The gradient of `options` is that of `same` to the bit. */
static void takes(const char *options, const char *same, const char *common, bool plan)
{
    bk_test_transport t = open_problem();
    double *g = plan ? plan_loss_weights(&t) : NULL;
    bk_test_transport_solve(&t, bk_arena_printf(t.arena, "mode=pform %s %s", common, options));
    bk_test_gradient x = bk_test_transport_gradient(&t, g, 0.8);
    bk_test_transport_solve(&t, bk_arena_printf(t.arena, "mode=pform %s %s", common, same));
    bk_test_gradient y = bk_test_transport_gradient(&t, g, 0.8);
    assert_memory_equal(x.cost, y.cost, N * M * sizeof(double));
    assert_memory_equal(x.a, y.a, N * sizeof(double));
    assert_memory_equal(x.b, y.b, M * sizeof(double));
    bk_test_transport_close(&t);
}

static void auto_takes_what_applies(void **state)
{
    (void)state;
    takes("gradient=auto", "gradient=envelope", "value=kl", false);
    takes("gradient=auto", "gradient=envelope", "value=entropy", false);
    takes("gradient=auto", "gradient=implicit", "value=kl", true);
    takes("gradient=auto", "gradient=implicit", "value=cost", false);
    takes("gradient=auto", "gradient=unrolled", "iterations=3", false);
    takes("gradient=auto", "gradient=unrolled", "iterations=3 tolerance=0 value=kl", false);
}

static void refused(const char *options, bool plan, const char *text)
{
    bk_test_gradient g;
    bk_test_transport t = open_problem();
    bk_test_transport_solve(&t, options);
    assert_int_equal(
        bk_test_transport_try_gradient(&t, plan ? plan_loss_weights(&t) : NULL, 0.8, &g), BK_USAGE);
    if (!strstr(bk_status_text(), text))
        fail_msg("%s: %s", options, bk_status_text());
    bk_test_transport_close(&t);
}

static void what_cannot_be_differentiated_is_refused(void **state)
{
    (void)state;
    refused("method=newton iterations=1 epsilon=0.001", true, "max_iterations");
    refused("method=sns iterations=1 epsilon=0.02", true, "max_iterations");
    refused("gradient=implicit iterations=1", true, "needs a converged solve");
    refused("gradient=implicit iterations=3 tolerance=0", true, "ended as fixed");
    refused("gradient=envelope iterations=1 value=kl", false, "needs a converged solve");
    refused("gradient=envelope value=kl", true, "use implicit");
    refused("gradient=envelope value=entropy unbalanced=1", false, "use implicit");
    refused("iterations=1 omega=1.5", true, "max_iterations");
    refused("iterations=2 unbalanced=1", true,
            "max_iterations"); /* common shifts are not unrolled */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(derivatives_are_differences),
        cmocka_unit_test(envelopes_are_differences),
        cmocka_unit_test(unrolled_tends_to_implicit),
        cmocka_unit_test(envelope_is_implicit),
        cmocka_unit_test(forms_have_one_unrolled_gradient),
        cmocka_unit_test(scaled_costs_scale_gradients_back),
        cmocka_unit_test(sums_are_zero),
        cmocka_unit_test(what_has_no_mass_has_no_gradient),
        cmocka_unit_test(single_precision_is_near),
        cmocka_unit_test(points_move_with_their_costs),
        cmocka_unit_test(coinciding_points_have_no_slope),
        cmocka_unit_test(auto_takes_what_applies),
        cmocka_unit_test(what_cannot_be_differentiated_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
