/* test: labels=golden,mpi timeout=600 */
/* birkhoff op transport: the golden values from a file, over ranks, refusals and warnings. */
#include "tests/support/op.h"

#include "core/rng.h"

#include <math.h>
#include <string.h>

static bk_test_op op;

/* ---- inputs ---- */

static void put_golden(const char *name, const char *key)
{
    bk_test_op_json(&op, name, json_object_get(op.golden, key));
}

static void put_case(bool gradient)
{
    bk_test_op_renew(&op);
    put_golden("cost", "ot_cost");
    put_golden("a", "ot_a");
    put_golden("b", "ot_b");
    if (gradient)
        put_golden("grad/plan", "ot_G");
}

static void put_fill(const char *name, int64_t n, int64_t m, uint64_t tag, double lo, double hi)
{
    bk_test_op_random(&op, name, m > 1 ? 2 : 1, (const int64_t[]){n, m}, tag, lo, hi);
}

/* ---- golden values ---- */

static void hold(const char *array, const char *key, bool wide)
{
    bk_check_error(bk_test_op_error(&op, array, json_object_get(op.golden, key), 1e-30),
                   wide ? 1e-10 : 2e-5, "%s", key);
}

static void hold_case(const char *name, bool wide)
{
    static const char *const pairs[][2] = {
        {"plan", "plan"}, {"grad/cost", "dC"}, {"grad/a", "da"}, {"grad/b", "db"}};
    for (int i = 0; i < 4; i++)
        hold(pairs[i][0], bk_arena_printf(op.arena, "%s_%s", name, pairs[i][1]), wide);
}

static const char *precise(const char *options, bool wide)
{
    return bk_arena_printf(op.arena, "transport epsilon=0.1 %s %s", options,
                           wide ? "dtype=f64 tolerance=1e-13" : "tolerance=1e-6");
}

static void golden_plans(void **state)
{
    static const char *const ways[] = {"", "method=newton", "method=sns", "mode=absorbed value=kl",
                                       "omega=1.2 value=entropy"};
    static const char *const values[] = {"cost", "cost", "cost", "kl", "entropy"};
    (void)state;
    for (int wide = 0; wide < 2; wide++)
        for (int i = 0; i < 5; i++) {
            put_case(true);
            bk_test_op_run(&op, wide ? 1 + i % 4 : 1, precise(ways[i], wide));
            hold_case("ot", wide);
            hold("f", "ot_f", wide);
            hold("g", "ot_g", wide);
            hold("value", bk_arena_printf(op.arena, "ot_value_%s", values[i]), wide);
            assert_true(bk_test_op_attribute(&op, "converged") == 1.0);
            assert_true(bk_test_op_attribute(&op, "iterations") ==
                        bk_test_op_attribute(&op, i == 1 || i == 2 ? "newton_steps" : "sweeps"));
            assert_true(bk_test_op_attribute(&op, "residual") <= (wide ? 1e-12 : 1e-5));
            assert_false(bk_test_op_says(&op, "warning"));
        }
}

static void golden_others(void **state)
{
    (void)state;
    for (int wide = 0; wide < 2; wide++) {
        put_case(true);
        bk_test_op_run(&op, 1 + wide,
                       bk_arena_printf(op.arena,
                                       "transport epsilon=0.1 iterations=3 tolerance=0 dtype=%s",
                                       wide ? "f64" : "f32"));
        hold_case("ot3", wide);
        assert_true(bk_test_op_attribute(&op, "half_steps") == 6.0);
        assert_true(bk_test_op_attribute(&op, "converged") == 1.0);
        bk_test_op_run(&op, 2 - wide, precise("unbalanced=0.5", wide));
        hold_case("ub", wide);
        hold("f", "ub_f", wide);
        hold("g", "ub_g", wide);
        bk_test_op_renew(&op);
        put_golden("x", "div_x");
        put_golden("y", "div_y");
        bk_test_op_run(&op, 1 + 2 * wide,
                       bk_arena_printf(op.arena, "transport debias=true epsilon=0.5 %s",
                                       wide ? "dtype=f64 tolerance=1e-13" : "tolerance=1e-6"));
        hold("value", "div_value", wide);
        hold("grad/x", "div_dx", wide);
        assert_false(bk_test_op_has(&op, "plan"));
    }
}

/* Without an incoming gradient nothing goes back; what is not given has no gradient. */
static void backward_runs_when_asked(void **state)
{
    (void)state;
    put_case(false);
    bk_test_op_run(&op, 1, "transport");
    assert_true(bk_test_op_has(&op, "plan") && !bk_test_op_has(&op, "grad/cost"));
    bk_test_op_renew(&op);
    put_golden("cost", "ot_cost");
    bk_test_op_reals(&op, "grad/value", 0, NULL, &(double){-2.5});
    bk_test_op_run(&op, 1, "transport value=kl dtype=f64");
    assert_false(bk_test_op_has(&op, "grad/a") || bk_test_op_has(&op, "grad/b"));
    const double *plan = bk_test_op_numbers(&op, "plan"),
                 *cost = bk_test_op_numbers(&op, "grad/cost");
    for (int k = 0; k < 20; k++) /* the envelope */
        bk_check_error(fabs(cost[k] + 2.5 * plan[k]), 1e-15, "grad/cost[%d]", k);
}

/* ---- over ranks ---- */

static void put_problem(int64_t n, int64_t m, bool points)
{
    bk_test_op_renew(&op);
    if (points) {
        put_fill("x", n, 3, 121, -1.0, 1.0);
        put_fill("y", m, 3, 122, -1.0, 1.0);
    } else {
        put_fill("cost", n, m, 123, 0.0, 1.0);
    }
    put_fill("a", n, 1, 124, 0.5, 1.5);
    put_fill("b", m, 1, 125, 0.5, 1.5);
}

static void ranks_agree(void **state)
{
    static const char *const calls[] = {"method=newton", "method=newton solver=cg cost_scale=max",
                                        "gradient=unrolled iterations=5 tolerance=0",
                                        "mode=absorbed dtype=f64", "unbalanced=0.5 dtype=f64"};
    static const struct {
        int64_t n, m;
        int ranks;
    } cases[] = {{300, 20, 2}, {1000, 12, 4}, {3, 6, 4}, {300, 20, 3}};
    bool same;
    (void)state;
    for (int k = 0; k < 8; k++) {
        int64_t n = cases[k / 2].n, m = cases[k / 2].m;
        put_problem(n, m, k % 2);
        put_fill("grad/plan", n, m, 126, -1.0, 1.0);
        for (size_t i = (size_t)k % 2; i < sizeof calls / sizeof *calls; i += 2) {
            const char *call =
                bk_arena_printf(op.arena, "transport marginals=normalize epsilon=0.2 %s", calls[i]);
            bk_check_error(bk_test_op_compare(&op, cases[k / 2].ranks, call, "", &same), 1e-6, "%s",
                           call);
            assert_true(same || cases[k / 2].ranks == 3);
        }
        put_problem(n, m, true);
        bk_check_error(bk_test_op_compare(&op, cases[k / 2].ranks,
                                          "transport marginals=normalize epsilon=0.5 debias=true "
                                          "dtype=f64",
                                          "", &same),
                       1e-10, "divergence");
        assert_true(same || cases[k / 2].ranks == 3);
    }
}

/* ---- warnings ---- */

static void what_does_not_converge_warns(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 3; ranks += 2) {
        put_case(false);
        bk_test_op_run(&op, ranks, "transport iterations=1 tolerance=1e-12 dtype=f64");
        assert_true(bk_test_op_says(&op, "warning: transport ended as max_iterations, residual"));
        assert_true(bk_test_op_says(&op, "allow more (iterations=N)"));
        assert_true(bk_test_op_attribute(&op, "converged") == 0.0);
        assert_true(bk_test_op_attribute(&op, "status") == 2.0);
        assert_int_equal(bk_test_op_error_lines(&op), 0);
    }
    put_case(false);
    bk_test_op_run(&op, 1, "transport tolerance=1e-12 epsilon=0.01");
    assert_true(bk_test_op_says(&op, "ended as stagnated") && bk_test_op_says(&op, "dtype=f64"));
}

static void many_sweeps_to_unroll_warn(void **state)
{
    (void)state;
    put_case(true);
    bk_test_op_run(&op, 1, "transport gradient=unrolled iterations=1001");
    assert_true(bk_test_op_says(&op, "gradient=unrolled keeps up to 1001 sweeps"));
    bk_test_op_run(&op, 1, "transport gradient=unrolled iterations=1000");
    assert_false(bk_test_op_says(&op, "keeps up to"));
}

/* ---- refusals ---- */

static void refused(int status, int ranks, const char *text, const char *options)
{
    const char *arguments = bk_arena_printf(op.arena, "transport %s", options);
    bk_test_op_refuses(&op, status, ranks, text, arguments);
}

static void wrong_options_are_refused(void **state)
{
    (void)state;
    put_case(false);
    refused(2, 3, "did you mean newton", "method=newto");
    refused(2, 1, "epsilon", "epsilon=0");
    refused(2, 1, "omega", "omega=2");
    refused(2, 2, "method=sns is for balanced problems", "method=sns unbalanced=1");
    refused(2, 1, "tolerance=0", "method=newton tolerance=0");
    refused(2, 1, "tolerance=0", "method=sns tolerance=0");
    refused(2, 1, "gradient=unrolled", "gradient=unrolled method=newton");
    refused(2, 1, "gradient=unrolled", "gradient=unrolled omega=1.5");
    refused(2, 1, "gradient=unrolled", "gradient=unrolled scaling=doubling");
    refused(2, 1, "gradient=unrolled", "gradient=unrolled mode=absorbed");
    refused(2, 1, "gradient=envelope needs value=kl", "gradient=envelope");
    refused(2, 1, "debias=true needs x and y", "debias=true");
    refused(2, 1, "a is not read with marginals=uniform", "marginals=uniform");
    put_case(true);
    refused(2, 3, "grad/plan is given", "gradient=envelope value=kl");
    refused(2, 2, "needs a converged solve", "gradient=implicit iterations=1 tolerance=1e-12");
    refused(2, 1, "ended as max_iterations", "method=newton iterations=1 epsilon=0.001");
}

static void wrong_inputs_are_refused(void **state)
{
    const double masses[] = {0.1, 0.2, 0.3, 0.5}, wrong[] = {0.1, -0.2, 0.3, 0.8};
    (void)state;
    bk_test_op_renew(&op);
    put_golden("x", "div_x");
    refused(2, 1, "input y is missing", "");
    bk_test_op_renew(&op);
    put_golden("cost", "ot_cost");
    put_fill("y", 5, 2, 1, 0.0, 1.0);
    refused(2, 1, "y is not read by transport beside cost", "");
    bk_test_op_renew(&op);
    put_golden("a", "ot_a");
    refused(2, 1, "input cost is missing", "");
    put_case(false);
    bk_test_op_reals(&op, "grad/f", 1, (const int64_t[]){4}, masses);
    refused(2, 2, "grad/f is not read by transport", "");
    put_case(false);
    bk_test_op_reals(&op, "grad/g", 1, (const int64_t[]){4}, masses);
    refused(2, 1, "grad/g is not read by transport", "");
    bk_test_op_renew(&op);
    put_golden("cost", "ot_cost");
    refused(2, 1, "input a is missing", "marginals=given");
    bk_test_op_renew(&op);
    put_golden("x", "div_x");
    put_golden("y", "div_y");
    put_golden("grad/plan", "S");
    refused(2, 1, "grad/plan is not read", "debias=true");
    refused(2, 1, "one rho for both sides", "debias=true unbalanced_a=1");
    bk_test_op_renew(&op);
    put_golden("cost", "ot_cost");
    put_golden("b", "ot_b");
    bk_test_op_reals(&op, "a", 1, (const int64_t[]){4}, masses);
    refused(2, 3, "marginals=normalize", "");
    bk_test_op_run(&op, 1, "transport marginals=normalize");
    bk_test_op_run(&op, 1, "transport unbalanced=1");
    bk_test_op_renew(&op);
    put_golden("cost", "ot_cost");
    put_golden("b", "ot_b");
    bk_test_op_reals(&op, "a", 1, (const int64_t[]){4}, wrong);
    refused(3, 2, "a[1] is negative or not finite", "");
}

static void put_cost(int64_t n, int64_t m, int64_t place, double value, double row)
{
    double *x = BK_NEW(op.arena, double, n *m + 1);
    for (int64_t k = 0; k < n * m; k++)
        x[k] = k / m == 1 ? row : bk_fill((uint64_t)k, 3, 0.0, 1.0);
    x[place] = value;
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "cost", 2, (const int64_t[]){n, m}, x);
}

static void bad_numbers_are_refused(void **state)
{
    (void)state;
    put_cost(4, 5, 7, NAN, 1.0);
    refused(3, 3, "cost[1,2] is NaN or -inf", "");
    put_cost(4, 5, 19, -INFINITY, 1.0);
    refused(3, 1, "cost[3,4] is NaN or -inf", "method=newton");
    put_cost(4, 5, 0, 0.5, INFINITY);
    refused(3, 4, "row 1 has mass, but no finite cost", "");
    put_cost(0, 5, 0, 0.0, 0.0);
    refused(3, 2, "no mass", "");
    put_cost(4, 0, 0, 0.0, 0.0);
    refused(3, 1, "empty", "");
    put_cost(4, 5, 0, 0.5, 1.0);
    put_golden("b", "ot_a");
    refused(3, 2, "b has the shape [4]", "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_plans),
        cmocka_unit_test(golden_others),
        cmocka_unit_test(backward_runs_when_asked),
        cmocka_unit_test(ranks_agree),
        cmocka_unit_test(what_does_not_converge_warns),
        cmocka_unit_test(many_sweeps_to_unroll_warn),
        cmocka_unit_test(wrong_options_are_refused),
        cmocka_unit_test(wrong_inputs_are_refused),
        cmocka_unit_test(bad_numbers_are_refused),
    };
    return bk_test_op_tests(&op, "ref_ot_golden.json", tests, sizeof tests / sizeof *tests);
}
