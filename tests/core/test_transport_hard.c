/* test: labels=unit timeout=300 */
/* Problems that are sharp, degenerate or impossible: what ends how, and what is refused. */
#include "tests/support/transport.h"

#include <math.h>
#include <string.h>

static bk_test_transport assignment(bk_dtype dtype, int64_t n)
{
    return bk_test_transport_open(dtype, n, n, 101);
}

/* ---- sharp ---- */

static void newton_solves_sharp_problems(void **state)
{
    (void)state;
    bk_test_transport t = assignment(BK_F64, 100);
    bk_test_transport_converge(&t, "method=newton epsilon=1e-5 tolerance=1e-12");
    assert_true(t.result.residual_a + t.result.residual_b <= 1e-12);
    assert_in_range(t.result.newton_steps, 12, 32);
    assert_in_range(t.result.sweeps, 60, 60); /* 12 stages of 5 */
    bk_check_error(fabs(t.result.gap), 1e-12, "gap");
    bk_test_transport_close(&t);
}

/* In f32 the engine says that it came no nearer; newton works in double all the same. */
static void single_precision_says_where_it_ends(void **state)
{
    (void)state;
    bk_test_transport t = assignment(BK_F32, 30);
    bk_test_transport_solve(&t, "epsilon=0.02 tolerance=1e-9 iterations=20000");
    assert_int_equal(t.result.status, BK_TRANSPORT_STAGNATED);
    assert_true(t.result.sweeps % 200 == 0 && t.result.sweeps < 20000);
    bk_test_transport_converge(&t, "epsilon=0.02 tolerance=1e-9 method=newton");
    bk_test_transport_close(&t);
}

/* A tolerance below what rounding allows: steps that gain nothing are not taken for ever. */
static void newton_says_where_it_ends(void **state)
{
    static const char *const ways[] = {
        "method=newton tolerance=1e-18", "method=newton solver=cg tolerance=1e-18",
        "method=sns tolerance=1e-18", "method=newton unbalanced=1e-12"};
    (void)state;
    for (int i = 0; i < 4; i++) {
        bk_test_transport t = assignment(BK_F64, 40);
        bk_test_transport_solve(&t, ways[i]);
        assert_int_equal(t.result.status, BK_TRANSPORT_STAGNATED);
        assert_in_range(t.result.newton_steps, 1, 60);
        assert_true(i == 3 || t.result.residual_a < 1e-13);
        bk_test_transport_close(&t);
    }
}

/* ---- the form of the sweeps ---- */

/* Two rows want the first column, which has next to no mass, and the lesser of them has nothing
 * left of its share once the column is scaled: its kernel row is 0 after the sweeps in P-form. */
static bk_test_transport underflowing_problem(void)
{
    bk_test_transport t = bk_test_transport_open(BK_F64, 4, 3, 103);
    t.a = bk_test_transport_fill(&t, 4, 1, 1.0, 1.0);
    t.b = bk_test_transport_fill(&t, 3, 1, 1.0, 1.0);
    t.a[0] = 1e-30;
    t.a[1] = 1e-5;
    t.b[0] = 1e-300;
    t.cost[0] = t.cost[3] = 0.0;
    for (int j = 1; j < 3; j++) {
        t.cost[j] += 1600.0;
        t.cost[3 + j] += 1600.0;
    }
    t.cost[6] = t.cost[9] = 1e4;
    return t;
}

/* The same for floats: a mass that is less than the least of them. */
static bk_test_transport underflowing_floats(void)
{
    bk_test_transport t = bk_test_transport_open(BK_F32, 4, 3, 103);
    t.a = bk_test_transport_fill(&t, 4, 1, 1.0, 1.0);
    t.b = bk_test_transport_fill(&t, 3, 1, 1.0, 1.0);
    t.a[0] = 1e-50;
    return t;
}

static void kernels_that_underflow_escalate(void **state)
{
    (void)state;
    for (int wide = 0; wide < 2; wide++) {
        bk_test_transport t = wide ? underflowing_problem() : underflowing_floats();
        const char *common = bk_arena_printf(t.arena, "epsilon=1 marginals=normalize tolerance=%g",
                                             wide ? 1e-12 : 1e-6);
        bk_test_transport_converge(&t, bk_arena_printf(t.arena, "mode=log %s", common));
        double *plan = bk_test_transport_plan(&t);
        assert_int_equal(t.result.escalations, 0);
        bk_test_transport_converge(&t, bk_arena_printf(t.arena, "mode=absorbed %s", common));
        assert_true(t.result.escalations > 0 && t.result.mode == BK_TRANSPORT_PFORM);
        bk_check_error(bk_test_error(12, bk_test_transport_plan(&t), plan, 1e-30),
                       wide ? 1e-11 : 1e-5, "plan");
        bk_test_transport_close(&t);
    }
}

/* Columns whose sums underflow behind exact rows take a maximum; the plan is that of the log form.
 */
static void small_columns_take_a_maximum(void **state)
{
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, 6, 5, 105);
    for (int i = 0; i < 6; i++)
        t.cost[i * 5 + 4] += 40.0;
    bk_test_transport_converge(&t, "epsilon=0.05 tolerance=1e-12 mode=log");
    double *plan = bk_test_transport_plan(&t);
    bk_test_transport_converge(&t, "epsilon=0.05 tolerance=1e-12 mode=pform");
    assert_true(t.result.shifted_sweeps > 0 && t.result.escalations == 0);
    bk_check_error(bk_test_error(30, bk_test_transport_plan(&t), plan, 1e-30), 1e-10, "plan");
    bk_test_transport_close(&t);
}

static void relaxation_is_guarded(void **state)
{
    (void)state;
    bk_test_transport t = assignment(BK_F64, 200);
    bk_test_transport_converge(&t, "epsilon=0.00333333 tolerance=1e-9 iterations=50000");
    int64_t plain = t.result.sweeps;
    double *plan = bk_test_transport_plan(&t);
    assert_int_equal(t.result.guard_events, 0);
    bk_test_transport_converge(&t, "epsilon=0.00333333 tolerance=1e-9 iterations=50000 omega=1.99");
    assert_true(t.result.guard_events > 0);
    bk_check_error(bk_test_error(200 * 200, bk_test_transport_plan(&t), plan, 1e-30), 1e-6, "1.99");
    bk_test_transport_converge(&t, "epsilon=0.00333333 tolerance=1e-9 iterations=50000 omega=auto");
    assert_true(t.result.sweeps < plain);
    bk_test_transport_converge(&t, "epsilon=0.00333333 tolerance=1e-9 iterations=50000 omega=1.5");
    assert_true(t.result.sweeps < plain);
    bk_test_transport_close(&t);
}

/* On a line, from its first half to its second: steps so long that the error overflows within ten
 * sweeps are taken back as well. */
static void relaxation_survives_overflow(void **state)
{
    enum { N = 20, M = 23 };
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, N, M, 101);
    bk_test_transport_masses(&t, 3, 1.0);
    for (int k = 0; k < N * M; k++)
        t.cost[k] = fabs((double)(k / M) / N - (double)(k % M) / M);
    for (int i = N / 2; i < N; i++)
        t.a[i] *= 1e-3;
    for (int j = 0; j < M / 2; j++)
        t.b[j] *= 1e-3;
    bk_test_transport_converge(&t, "epsilon=0.001 omega=1.9999 marginals=normalize");
    assert_int_equal(t.result.guard_events, 1);
    double *plan = bk_test_transport_plan(&t);
    bk_test_transport_converge(&t, "epsilon=0.001 method=newton marginals=normalize");
    bk_check_error(bk_test_error(N * M, plan, bk_test_transport_plan(&t), 1e-30), 1e-6, "plan");
    bk_test_transport_close(&t);
}

/* ---- stages that end early ---- */

static void stages_that_run_out_say_so(void **state)
{
    static const char *const ways[] = {"tolerance=0 iterations=3 scaling=doubling",
                                       "tolerance=1e-9 iterations=3 scaling=doubling",
                                       "tolerance=1e-9 iterations=1 method=newton"};
    (void)state;
    for (int i = 0; i < 3; i++) {
        bk_test_transport t = assignment(BK_F64, 40);
        bk_test_transport_solve(&t, bk_arena_printf(t.arena, "epsilon=1e-4 %s", ways[i]));
        assert_int_equal(t.result.status, BK_TRANSPORT_MAX_ITERATIONS);
        assert_true(t.result.epsilon > 1e-3); /* what was solved is another problem */
        bk_test_transport_close(&t);
    }
}

/* ---- degenerate ---- */

static const char *const methods[] = {"mode=pform",
                                      "mode=absorbed",
                                      "mode=log",
                                      "omega=1.5",
                                      "scaling=doubling",
                                      "method=newton",
                                      "method=newton solver=cg",
                                      "method=newton stage_sweeps=0",
                                      "method=sns",
                                      "unbalanced=1e4",
                                      "unbalanced=1e4 method=newton"};
enum { METHODS = sizeof methods / sizeof *methods, BALANCED = METHODS - 2 };

static void one_row_or_column_takes_it_all(void **state)
{
    (void)state;
    for (int shape = 0; shape < 3; shape++)
        for (int k = 0; k < BALANCED; k++) {
            int64_t n = shape == 0 ? 1 : shape == 1 ? 7 : 1, m = shape == 0 ? 7 : 1;
            bk_test_transport t = bk_test_transport_open(BK_F64, n, m, 107);
            bk_test_transport_masses(&t, 108, 1.0);
            t.differentiate = true;
            bk_test_transport_converge(
                &t, bk_arena_printf(t.arena, "tolerance=1e-12 gradient=implicit %s", methods[k]));
            bk_check_error(
                bk_test_error(n * m, bk_test_transport_plan(&t), shape == 0 ? t.b : t.a, 1e-30),
                1e-12, "%d x %d, %s", (int)n, (int)m, methods[k]);
            bk_test_gradient g = bk_test_transport_gradient(
                &t, bk_test_transport_fill(&t, n * m, 5, -1.0, 1.0), 0.0);
            for (int64_t i = 0; i < n * m; i++) /* the marginals leave no choice */
                bk_check_error(fabs(g.cost[i]), 1e-11, "gradient, %s", methods[k]);
            bk_test_transport_close(&t);
        }
}

static void flat_costs_give_the_product(void **state)
{
    static const double range[] = {0.0, 1e-30};
    (void)state;
    for (int which = 0; which < 2; which++)
        for (int k = 0; k < METHODS; k++) {
            bk_test_transport t = bk_test_transport_open(BK_F64, 9, 7, 107);
            bk_test_transport_masses(&t, 108, 1.0);
            for (int i = 0; i < 63; i++)
                t.cost[i] = which ? range[1] * t.cost[i] : 0.0;
            bk_test_transport_converge(&t,
                                       bk_arena_printf(t.arena, "tolerance=1e-12 %s", methods[k]));
            double *plan = bk_test_transport_plan(&t);
            for (int i = 0; i < 63; i++)
                bk_check_error(fabs(plan[i] - t.a[i / 7] * t.b[i % 7]), 1e-11, "%s", methods[k]);
            bk_test_transport_close(&t);
        }
}

static void a_range_of_nothing_can_be_scaled(void **state)
{
    static const char *const ways[] = {"cost_scale=max", "cost_scale=mean",
                                       "cost_scale=max method=newton"};
    (void)state;
    for (int k = 0; k < 6; k++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 9, 7, 107);
        for (int i = 0; i < 63; i++)
            t.cost[i] *= k % 2 ? 1e-30 : 0.0;
        bk_test_transport_converge(&t, ways[k / 2]);
        assert_true(isfinite(t.result.kl) && isfinite(t.result.f[0]));
        bk_test_transport_close(&t);
    }
}

/* Rows and columns without mass are as if they were not there; what they cost does not matter. */
static void zero_masses_are_left_out(void **state)
{
    enum { N = 8, M = 6 };
    (void)state;
    for (int k = 0; k < METHODS; k++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, N, M, 109), s = t;
        bk_test_transport_masses(&t, 110, 1.0);
        const char *options =
            bk_arena_printf(t.arena, "tolerance=1e-12 marginals=normalize %s", methods[k]);
        t.a[N - 1] = t.b[0] = 0.0;
        for (int j = 0; j < M; j++)
            t.cost[(N - 1) * M + j] = INFINITY;
        s.n = N - 1;
        s.m = M - 1;
        s.a = t.a;
        s.b = t.b + 1;
        s.cost = BK_NEW(t.arena, double, N *M);
        for (int i = 0; i < N - 1; i++)
            memcpy(s.cost + i * (M - 1), t.cost + i * M + 1, (M - 1) * sizeof(double));
        bk_test_transport_converge(&t, options);
        bk_test_transport_converge(&s, options);
        double *plan = bk_test_transport_plan(&t), *less = bk_test_transport_plan(&s);
        for (int i = 0; i < N; i++)
            for (int j = 0; j < M; j++) {
                bool live = i < N - 1 && j > 0;
                double other = live ? less[i * (M - 1) + j - 1] : 0.0;
                assert_true(live || plan[i * M + j] == 0.0);
                bk_check_error(fabs(plan[i * M + j] - other), 1e-12, "%s", methods[k]);
            }
        assert_true(t.result.f[N - 1] == -INFINITY && t.result.g[0] == -INFINITY);
        bk_check_error(bk_test_error(N - 1, t.result.f, s.result.f, 1e-30), 1e-10, "f");
        bk_check_error(fabs(t.result.kl - s.result.kl), 1e-12, "kl");
        bk_test_transport_close(&t);
    }
}

/* Forbidden pairs carry nothing; allowed ones carry what a high cost would leave them. */
static void infinite_costs_forbid(void **state)
{
    enum { N = 8, M = 8 };
    (void)state;
    for (int k = 0; k < METHODS; k++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, N, M, 111), s = t;
        const char *options =
            bk_arena_printf(t.arena, "epsilon=0.1 tolerance=1e-12 %s", methods[k]);
        s.cost = BK_NEW(t.arena, double, N *M);
        for (int i = 0; i < N * M; i++) {
            bool forbidden = i % M == (i / M + 2) % M || i % M == (i / M + 5) % M;
            t.cost[i] = forbidden ? INFINITY : t.cost[i];
            s.cost[i] = forbidden ? 100.0 : t.cost[i];
        }
        bk_test_transport_converge(&t, options);
        bk_test_transport_converge(&s, options);
        double *plan = bk_test_transport_plan(&t);
        for (int i = 0; i < N * M; i++)
            assert_true(isfinite(t.cost[i]) == (plan[i] > 0.0));
        bk_check_error(bk_test_error(N * M, plan, bk_test_transport_plan(&s), 1e-30), 1e-10, "%s",
                       methods[k]);
        assert_true(isfinite(t.result.cost) && isfinite(t.result.kl));
        bk_test_transport_close(&t);
    }
}

/* Every row and column has a finite cost, and yet no plan has these marginals. */
static void what_no_plan_meets_does_not_converge(void **state)
{
    (void)state;
    for (int k = 0; k < BALANCED; k++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 4, 4, 113);
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++)
                if (i < 3 && j > 0) /* three rows share one column */
                    t.cost[i * 4 + j] = INFINITY;
        bk_test_transport_solve(&t, methods[k]);
        assert_true(t.result.status == BK_TRANSPORT_STAGNATED ||
                    t.result.status == BK_TRANSPORT_MAX_ITERATIONS ||
                    t.result.status == BK_TRANSPORT_NOT_FINITE);
        bk_test_transport_close(&t);
    }
}

static void tiny_and_huge_masses_are_masses(void **state)
{
    static const double unit[] = {1e-300, 1e-310, 1e150};
    (void)state;
    for (int which = 0; which < 3; which++)
        for (int k = 0; k < BALANCED; k++) {
            bk_test_transport t = bk_test_transport_open(BK_F64, 6, 5, 115);
            bk_test_transport_masses(&t, 116, 1.0);
            bk_test_transport_converge(&t, "tolerance=1e-12");
            double *plan = bk_test_transport_plan(&t);
            for (int i = 0; i < 6; i++)
                t.a[i] *= unit[which];
            for (int j = 0; j < 5; j++)
                t.b[j] *= unit[which];
            bk_test_transport_converge(
                &t, bk_arena_printf(t.arena, "marginals=normalize tolerance=1e-12 %s", methods[k]));
            bk_check_error(bk_test_error(30, bk_test_transport_plan(&t), plan, 1e-30), 1e-10,
                           "masses of %g, %s", unit[which], methods[k]);
            bk_test_transport_close(&t);
        }
}

/* One mass of 1e-200 beside others takes part: its row is met in the same sense as the others. */
static void masses_may_differ_by_any_factor(void **state)
{
    (void)state;
    for (int k = 0; k < BALANCED; k++) {
        bool sweeps = !strstr(methods[k], "stage_sweeps=0"); /* each sweep meets the row itself */
        bk_test_transport t = bk_test_transport_open(BK_F64, 6, 5, 115);
        bk_test_transport_masses(&t, 116, 1.0);
        t.a[2] = 1e-200;
        bk_test_transport_converge(
            &t, bk_arena_printf(t.arena, "marginals=normalize tolerance=1e-9 %s", methods[k]));
        double *plan = bk_test_transport_plan(&t), row = 0.0;
        for (int j = 0; j < 5; j++)
            row += plan[10 + j];
        assert_true(row > 0.0 && row < (sweeps ? 1e-199 : 1e-9) && isfinite(t.result.f[2]));
        bk_test_transport_close(&t);
    }
}

/* ---- refused ---- */

static void refused(bk_test_transport *t, const char *options, bk_status status,
                    bk_transport_status ended, const char *text)
{
    bk_status own = bk_test_transport_try(t, options);
    if (own != status || t->result.status != ended || !strstr(bk_status_text(), text))
        fail_msg("%s: status %d, %s: %s", options, own, bk_transport_status_name(t->result.status),
                 bk_status_text());
    bk_test_transport_close(t);
}

static void bad_masses_are_refused(void **state)
{
    static const double wrong[] = {-1e-9, NAN, INFINITY};
    (void)state;
    for (int side = 0; side < 2; side++)
        for (int i = 0; i < 3; i++) {
            bk_test_transport t = bk_test_transport_open(BK_F64, 5, 5, 1);
            bk_test_transport_masses(&t, 2, 1.0);
            (side ? t.b : t.a)[3] = wrong[i];
            refused(&t, "", BK_INPUT, BK_TRANSPORT_BAD_INPUT,
                    side ? "b[3] is negative or not finite" : "a[3] is negative or not finite");
        }
    for (int k = 0; k < 3; k++) {
        static const char *const text[] = {"no mass", "sum of the masses overflows", "differ"};
        bk_test_transport t = bk_test_transport_open(BK_F64, 5, 5, 1);
        bk_test_transport_masses(&t, 2, 1.0);
        for (int i = 0; i < 5; i++)
            t.a[i] = k == 0 ? 0.0 : k == 1 ? 1e308 : t.a[i] * 1.00001;
        refused(&t, "", k == 2 ? BK_USAGE : BK_INPUT, BK_TRANSPORT_BAD_INPUT, text[k]);
    }
}

static void nearly_equal_sums_are_made_equal(void **state)
{
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, 5, 5, 1);
    bk_test_transport_masses(&t, 2, 1.0);
    for (int i = 0; i < 5; i++)
        t.a[i] *= 1.0 + 9e-7;
    bk_test_transport_converge(&t, "tolerance=1e-12");
    bk_test_transport_close(&t);
}

static void bad_costs_are_refused(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        bk_test_transport t = bk_test_transport_open(k % 2 ? BK_F32 : BK_F64, 5, 4, 1);
        t.cost[2 * 4 + 3] = k < 2 ? NAN : -INFINITY;
        refused(&t, "", BK_INPUT, BK_TRANSPORT_BAD_INPUT, "cost[2,3] is NaN or -inf");
    }
    bk_test_transport t = bk_test_transport_open(BK_F64, 5, 4, 1);
    t.cost[0] = 1.7e308;
    t.cost[1] = -1.7e308;
    refused(&t, "", BK_INPUT, BK_TRANSPORT_BAD_INPUT, "overflow");
    t = bk_test_transport_open(BK_F64, 5, 4, 1);
    bk_test_transport_points(&t, 2, 3, 0.0);
    t.y[5] = INFINITY;
    refused(&t, "", BK_INPUT, BK_TRANSPORT_BAD_INPUT, "a point of x or y is not finite");
}

static void infeasible_rows_and_columns_are_refused(void **state)
{
    (void)state;
    for (int side = 0; side < 2; side++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 5, 5, 1);
        for (int k = 0; k < 5; k++)
            t.cost[side ? k * 5 + 3 : 3 * 5 + k] = INFINITY;
        refused(&t, "", BK_INPUT, BK_TRANSPORT_INFEASIBLE,
                side ? "column 3 has mass, but no finite cost"
                     : "row 3 has mass, but no finite cost");
    }
    /* its only finite cost is in a column that has no mass */
    bk_test_transport t = bk_test_transport_open(BK_F64, 5, 5, 1);
    bk_test_transport_masses(&t, 2, 1.0);
    t.b[0] = 0.0;
    for (int k = 1; k < 5; k++)
        t.cost[5 + k] = INFINITY;
    refused(&t, "marginals=normalize", BK_INPUT, BK_TRANSPORT_INFEASIBLE, "row 1 has mass");
}

static void empty_problems_are_refused(void **state)
{
    (void)state;
    for (int k = 0; k < 3; k++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, k == 1 ? 4 : 0, k == 0 ? 4 : 0, 1);
        refused(&t, "", BK_INPUT, BK_TRANSPORT_BAD_INPUT, "no mass");
    }
}

static void wrong_options_are_refused(void **state)
{
    static const struct {
        const char *options, *text;
    } cases[] = {{"method=sns unbalanced=1", "for balanced problems"},
                 {"method=sns unbalanced_b=1", "for balanced problems"},
                 {"method=newton tolerance=0", "tolerance=0"},
                 {"method=sns tolerance=0", "tolerance=0"},
                 {"omega=1.5 unbalanced=1", "omega=1"},
                 {"omega=1.5 mode=pform", "mode=log or auto"},
                 {"unbalanced=1 mode=absorbed", "mode=log or auto"},
                 {"omega=1.5 method=newton", "over-relaxation of method=sinkhorn"},
                 {"omega=auto method=sns", "over-relaxation of method=sinkhorn"},
                 {"scaling=doubling method=sns", "works at one epsilon"},
                 {"gradient=unrolled method=newton", "gradient=unrolled"},
                 {"gradient=unrolled method=sns", "gradient=unrolled"},
                 {"gradient=unrolled omega=1.2", "gradient=unrolled"},
                 {"gradient=unrolled omega=auto", "gradient=unrolled"},
                 {"gradient=unrolled scaling=doubling", "gradient=unrolled"},
                 {"gradient=unrolled mode=absorbed", "gradient=unrolled"},
                 {"gradient=envelope", "gradient=envelope"},
                 {"debias=true gradient=implicit value=kl", "envelope"},
                 {"debias=true cost_scale=max", "cost_scale"},
                 {"debias=true unbalanced_a=1", "one rho for both sides"}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 5, 4, 1);
        refused(&t, cases[i].options, BK_USAGE, BK_TRANSPORT_BAD_INPUT, cases[i].text);
    }
}

/* ---- statuses ---- */

static void numbers_that_overflow_are_not_finite(void **state)
{
    static const char *const ways[] = {"mode=absorbed", "mode=pform", "mode=log", "method=newton",
                                       "method=sns"};
    (void)state;
    for (int k = 0; k < 5; k++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 5, 4, 1);
        for (int i = 0; i < 20; i++)
            t.cost[i] *= 1e200;
        bk_test_transport_solve(
            &t, bk_arena_printf(t.arena, "epsilon=1e-200 scaling=none %s", ways[k]));
        assert_int_equal(t.result.status, BK_TRANSPORT_NOT_FINITE);
        assert_true(k > 0 || t.result.escalations > 0);
        bk_test_transport_close(&t);
    }
}

static void every_status_has_a_name_and_a_sentence(void **state)
{
    static const char *const names[] = {"converged",  "fixed",      "max_iterations", "stagnated",
                                        "not_finite", "infeasible", "bad_input"};
    (void)state;
    for (int s = BK_TRANSPORT_CONVERGED; s <= BK_TRANSPORT_BAD_INPUT; s++) {
        assert_string_equal(bk_transport_status_name((bk_transport_status)s), names[s]);
        assert_true(strlen(bk_transport_status_sentence((bk_transport_status)s)) > 20);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(newton_solves_sharp_problems),
        cmocka_unit_test(single_precision_says_where_it_ends),
        cmocka_unit_test(newton_says_where_it_ends),
        cmocka_unit_test(kernels_that_underflow_escalate),
        cmocka_unit_test(small_columns_take_a_maximum),
        cmocka_unit_test(relaxation_is_guarded),
        cmocka_unit_test(relaxation_survives_overflow),
        cmocka_unit_test(stages_that_run_out_say_so),
        cmocka_unit_test(one_row_or_column_takes_it_all),
        cmocka_unit_test(flat_costs_give_the_product),
        cmocka_unit_test(a_range_of_nothing_can_be_scaled),
        cmocka_unit_test(zero_masses_are_left_out),
        cmocka_unit_test(infinite_costs_forbid),
        cmocka_unit_test(what_no_plan_meets_does_not_converge),
        cmocka_unit_test(tiny_and_huge_masses_are_masses),
        cmocka_unit_test(masses_may_differ_by_any_factor),
        cmocka_unit_test(bad_masses_are_refused),
        cmocka_unit_test(nearly_equal_sums_are_made_equal),
        cmocka_unit_test(bad_costs_are_refused),
        cmocka_unit_test(infeasible_rows_and_columns_are_refused),
        cmocka_unit_test(empty_problems_are_refused),
        cmocka_unit_test(wrong_options_are_refused),
        cmocka_unit_test(numbers_that_overflow_are_not_finite),
        cmocka_unit_test(every_status_has_a_name_and_a_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
