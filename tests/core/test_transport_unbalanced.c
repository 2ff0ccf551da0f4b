/* test: labels=unit timeout=120 */
/* Unbalanced transport: the optimality conditions of the primal, the gap, and the balanced limit.
 */
#include "tests/support/transport.h"

#include <math.h>

enum { N = 12, M = 17 };

static bk_test_transport open_problem(double mass_a, double mass_b)
{
    bk_test_transport t = bk_test_transport_open(BK_F64, N, M, 81);
    bk_test_transport_masses(&t, 82, mass_a);
    for (int j = 0; j < M; j++)
        t.b[j] *= mass_b / mass_a;
    return t;
}

/* C + eps log(P/(ab')) + rho_a log(P1/a) + rho_b log(P'1/b), columns made to have mean 0 when their
 * side is hard (its multiplier is free), and rows alike: the greatest of them. */
static double stationarity(bk_test_transport *t, double epsilon, const double rho[2])
{
    double *plan = bk_test_transport_plan(t), row[N] = {0}, column[M] = {0}, x[N * M], worst = 0.0;
    for (int k = 0; k < N * M; k++) {
        row[k / M] += plan[k];
        column[k % M] += plan[k];
    }
    for (int k = 0; k < N * M; k++) {
        int i = k / M, j = k % M;
        x[k] = t->cost[k] + epsilon * log(plan[k] / (t->a[i] * t->b[j])) +
               (isinf(rho[0]) ? 0.0 : rho[0] * log(row[i] / t->a[i])) +
               (isinf(rho[1]) ? 0.0 : rho[1] * log(column[j] / t->b[j]));
    }
    for (int j = 0; isinf(rho[1]) && j < M; j++) {
        double mean = 0.0;
        for (int i = 0; i < N; i++)
            mean += x[i * M + j] / N;
        for (int i = 0; i < N; i++)
            x[i * M + j] -= mean;
    }
    for (int i = 0; isinf(rho[0]) && i < N; i++) {
        double mean = 0.0;
        for (int j = 0; j < M; j++)
            mean += x[i * M + j] / M;
        for (int j = 0; j < M; j++)
            x[i * M + j] -= mean;
    }
    for (int k = 0; k < N * M; k++)
        worst = fmax(worst, fabs(x[k]));
    return worst;
}

static void plans_are_stationary(void **state)
{
    static const struct {
        const char *options;
        double rho[2];
    } cases[] = {
        {"unbalanced=0.3", {0.3, 0.3}},        {"unbalanced=0.01", {0.01, 0.01}},
        {"unbalanced=2", {2.0, 2.0}},          {"unbalanced=0.3 unbalanced_b=4", {0.3, 4.0}},
        {"unbalanced_a=0.3", {0.3, INFINITY}}, {"unbalanced_b=0.3", {INFINITY, 0.3}}};
    static const char *const ways[] = {
        "tolerance=1e-13 iterations=20000", "method=newton tolerance=1e-14",
        "method=newton tolerance=1e-14 solver=cg cg_tolerance=1e-12"};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int way = 0; way < 3; way++) {
            bk_test_transport t = open_problem(1.0, 1.4); /* the sums need not be equal */
            const char *options =
                bk_arena_printf(t.arena, "epsilon=0.05 %s %s", cases[i].options, ways[way]);
            bk_test_transport_converge(&t, options);
            bk_check_error(stationarity(&t, 0.05, cases[i].rho), 1e-12, "%s", options);
            bk_check_error(fabs(t.result.gap), 1e-12, "gap of %s", options);
            if (isinf(cases[i].rho[0]))
                bk_check_error(t.result.residual_a, 1e-12, "hard rows of %s", options);
            if (isinf(cases[i].rho[1]))
                bk_check_error(t.result.residual_b, 1e-12, "hard columns of %s", options);
            bk_test_transport_close(&t);
        }
}

/* kl holds both penalties, each with the mass that it was made from. */
static void kl_holds_the_penalties(void **state)
{
    (void)state;
    bk_test_transport t = open_problem(1.0, 1.4);
    bk_test_transport_solve(&t, "epsilon=0.05 unbalanced=0.3 unbalanced_b=0.8 iterations=3");
    double *plan = bk_test_transport_plan(&t), kl = 0.0, row[N] = {0}, column[M] = {0};
    for (int k = 0; k < N * M; k++) {
        double ab = t.a[k / M] * t.b[k % M];
        kl += t.cost[k] * plan[k] + 0.05 * (plan[k] * log(plan[k] / ab) - plan[k] + ab);
        row[k / M] += plan[k];
        column[k % M] += plan[k];
    }
    for (int i = 0; i < N; i++)
        kl += 0.3 * (row[i] * log(row[i] / t.a[i]) - row[i] + t.a[i]);
    for (int j = 0; j < M; j++)
        kl += 0.8 * (column[j] * log(column[j] / t.b[j]) - column[j] + t.b[j]);
    bk_check_error(fabs(t.result.kl - kl), 1e-13, "kl");
    assert_true(t.result.gap > 1e-12); /* three sweeps: weak duality, strictly */
    bk_test_transport_close(&t);
}

/* Great rho: the plan, the potentials and the value of the balanced problem, in a few sweeps,
 * whether a gradient will be asked for or not. */
static void great_rho_is_balanced(void **state)
{
    static const char *const ways[] = {"", "method=newton"};
    (void)state;
    for (int way = 0; way < 4; way++) {
        bk_test_transport t = open_problem(1.0, 1.0);
        const char *options =
            bk_arena_printf(t.arena, "epsilon=0.05 tolerance=1e-9 %s", ways[way / 2]);
        bk_test_transport_converge(&t, options);
        double *plan = bk_test_transport_plan(&t), kl = t.result.kl;
        t.differentiate = way % 2;
        bk_test_transport_converge(&t, bk_arena_printf(t.arena, "unbalanced=1e9 %s", options));
        bk_check_error(bk_test_error(N * M, bk_test_transport_plan(&t), plan, 1e-30), 1e-8,
                       "plan, %s", options);
        bk_check_error(fabs(t.result.kl - kl), 1e-8, "kl, %s", options);
        assert_true(t.result.sweeps < 300);
        if (t.differentiate)
            bk_test_transport_gradient(&t, NULL, 1.0);
        bk_test_transport_close(&t);
    }
}

/* Scaled costs: rho, as epsilon, is in their units. */
static void rho_is_in_units_of_the_scaled_cost(void **state)
{
    (void)state;
    bk_test_transport t = open_problem(1.0, 1.4);
    double most = 0.0;
    for (int k = 0; k < N * M; k++)
        most = fmax(most, t.cost[k]);
    bk_test_transport_converge(&t, "epsilon=0.05 unbalanced=0.3 cost_scale=max tolerance=1e-13");
    bk_transport_result scaled = t.result;
    bk_test_transport_converge(&t, bk_arena_printf(t.arena,
                                                   "epsilon=%.17g unbalanced=%.17g tolerance=1e-13",
                                                   0.05 * most, 0.3 * most));
    bk_check_error(bk_test_error(N, scaled.f, t.result.f, 1e-30), 1e-11, "f");
    bk_check_error(bk_test_error(M, scaled.g, t.result.g, 1e-30), 1e-11, "g");
    bk_check_error(fabs(scaled.kl - t.result.kl), 1e-12, "kl");
    bk_test_transport_close(&t);
}

/* Rows and columns far apart for eps and rho: nearly nothing is moved, in finite numbers. */
static void dear_transport_is_left_undone(void **state)
{
    static const char *const ways[] = {"unbalanced=0.02", "unbalanced=0.02 method=newton",
                                       "unbalanced=0.1 epsilon=0.3"};
    (void)state;
    for (int way = 0; way < 3; way++) {
        bk_test_transport t = open_problem(1.0, 1.0);
        for (int k = 0; k < N * M; k++)
            t.cost[k] += 5.0;
        bk_test_transport_converge(&t, ways[way]);
        double mass = 0.0, *plan = bk_test_transport_plan(&t);
        for (int k = 0; k < N * M; k++)
            mass += plan[k];
        assert_true(mass > 0.0 && mass < 1e-4);
        assert_true(isfinite(t.result.kl) && fabs(t.result.gap) < 1e-10);
        bk_test_transport_close(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_are_stationary),
        cmocka_unit_test(kl_holds_the_penalties),
        cmocka_unit_test(great_rho_is_balanced),
        cmocka_unit_test(rho_is_in_units_of_the_scaled_cost),
        cmocka_unit_test(dear_transport_is_left_undone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
