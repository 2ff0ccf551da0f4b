/* test: labels=unit,golden timeout=120 */
/* The transport engine: golden values, one plan from every method and form, values, symmetries,
 * and the rule to stop. */
#include "tests/support/transport.h"

#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static json_t *golden;

static int open_golden(void **state)
{
    (void)state;
    golden = bk_test_golden("ref_ot_golden.json");
    return 0;
}

static int close_golden(void **state)
{
    (void)state;
    json_decref(golden);
    return 0;
}

/* ---- golden values ---- */

static double *numbers(bk_test_transport *t, const char *key)
{
    int64_t count;
    double *x = bk_test_numbers(json_object_get(golden, key), &count);
    double *y = BK_NEW(t->arena, double, count);
    memcpy(y, x, (size_t)count * sizeof *y);
    free(x);
    return y;
}

static void check(bk_test_transport *t, const char *key, int64_t n, const double *x,
                  const char *options)
{
    bk_check_error(bk_test_error(n, x, numbers(t, key), 1e-30), t->dtype == BK_F64 ? 1e-10 : 2e-5,
                   "%s with %s", key, options);
}

static bk_test_transport open_case(bk_dtype dtype)
{
    bk_test_transport t = bk_test_transport_open(dtype, 4, 5, 1);
    t.cost = numbers(&t, "ot_cost");
    t.a = numbers(&t, "ot_a");
    t.b = numbers(&t, "ot_b");
    t.differentiate = true;
    return t;
}

/* Plan and gradients of a case; keys NAME_plan, NAME_dC, NAME_da, NAME_db. */
static void check_case(bk_test_transport *t, const char *name, const char *options)
{
    bk_test_transport_solve(t, options);
    bk_test_gradient g = bk_test_transport_gradient(t, numbers(t, "ot_G"), 0.0);
    const struct {
        const char *what;
        int64_t n;
        const double *x;
    } part[] = {{"plan", 20, bk_test_transport_plan(t)},
                {"dC", 20, g.cost},
                {"da", 4, g.a},
                {"db", 5, g.b}};
    for (int i = 0; i < 4; i++)
        check(t, bk_arena_printf(t->arena, "%s_%s", name, part[i].what), part[i].n, part[i].x,
              options);
}

static const char *with_tolerance(bk_test_transport *t, const char *options)
{
    return bk_arena_printf(t->arena, "%s tolerance=%g", options, t->dtype == BK_F64 ? 1e-13 : 1e-6);
}

static void golden_balanced(void **state)
{
    static const char *const ways[] = {
        "mode=pform", "mode=absorbed",   "mode=log",
        "omega=1.2",  "method=newton",   "method=newton solver=cg cg_tolerance=1e-12",
        "method=sns", "scaling=doubling"};
    static const char *const values[] = {"cost", "kl", "entropy"};
    (void)state;
    for (int dtype = 0; dtype < 2; dtype++)
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
            bk_test_transport t = open_case(dtype ? BK_F32 : BK_F64);
            for (int k = 0; k < 3; k++) {
                const char *options =
                    bk_arena_printf(t.arena, "epsilon=0.1 gradient=implicit value=%s %s", values[k],
                                    with_tolerance(&t, ways[i]));
                check_case(&t, "ot", options);
                check(&t, "ot_f", 4, t.result.f, options);
                check(&t, "ot_g", 5, t.result.g, options);
                double value = bk_transport_value(&t.result);
                check(&t, bk_arena_printf(t.arena, "ot_value_%s", values[k]), 1, &value, options);
            }
            bk_test_transport_close(&t);
        }
}

static void golden_unrolled(void **state)
{
    static const char *const modes[] = {"auto", "pform", "log"};
    (void)state;
    for (int i = 0; i < 6; i++) {
        bk_test_transport t = open_case(i % 2 ? BK_F32 : BK_F64);
        check_case(
            &t, "ot3",
            bk_arena_printf(t.arena, "epsilon=0.1 tolerance=0 iterations=3 mode=%s", modes[i / 2]));
        assert_int_equal(t.result.status, BK_TRANSPORT_FIXED);
        assert_int_equal(t.result.half_steps, 6);
        bk_test_transport_close(&t);
    }
}

static void golden_unbalanced(void **state)
{
    static const char *const ways[] = {"method=sinkhorn", "method=newton"};
    (void)state;
    for (int i = 0; i < 4; i++) {
        bk_test_transport t = open_case(i % 2 ? BK_F32 : BK_F64);
        const char *options =
            bk_arena_printf(t.arena, "epsilon=0.1 gradient=implicit unbalanced=0.5 %s",
                            with_tolerance(&t, ways[i / 2]));
        check_case(&t, "ub", options);
        check(&t, "ub_f", 4, t.result.f, options);
        check(&t, "ub_g", 5, t.result.g, options);
        bk_test_transport_close(&t);
    }
}

/* ---- one plan ---- */

static void hold_ways(bk_dtype dtype, const char *const *way, const char *common, double limit)
{
    bk_test_transport t = bk_test_transport_open(dtype, 60, 47, 3);
    bk_test_transport_masses(&t, 4, 1.0);
    double *first = NULL;
    for (int i = 0; way[i]; i++) {
        bk_test_transport_converge(&t, bk_arena_printf(t.arena, "%s %s", common, way[i]));
        double *plan = bk_test_transport_plan(&t);
        first = first ? first : plan;
        bk_check_error(bk_test_error(t.n * t.m, plan, first, 1e-30), limit, "plan of %s", way[i]);
    }
    bk_test_transport_close(&t);
}

static void every_way_gives_one_plan(void **state)
{
    static const char *const wide[] = {"mode=pform",
                                       "mode=absorbed",
                                       "mode=log",
                                       "omega=1.5",
                                       "omega=auto",
                                       "scaling=doubling",
                                       "scaling=doubling mode=absorbed scaling_factor=3",
                                       "method=newton solver=dense",
                                       "method=newton solver=cg cg_tolerance=1e-12",
                                       "method=newton scaling=none stage_sweeps=20",
                                       "method=newton mode=log stage_sweeps=0 scaling_start=5",
                                       "method=sns keep=20",
                                       "method=sns mode=absorbed",
                                       NULL};
    static const char *const narrow[] = {
        "mode=pform",       "mode=absorbed", "mode=log",   "omega=1.5",
        "scaling=doubling", "method=newton", "method=sns", NULL};
    (void)state;
    hold_ways(BK_F64, wide, "epsilon=0.03 tolerance=1e-13 iterations=5000", 1e-11);
    hold_ways(BK_F32, narrow, "epsilon=0.1 tolerance=1e-5", 2e-4);
}

/* Sums over rows are taken by blocks; how many there are is a matter of rounding, and blocks may
 * be empty. */
static void blocks_change_rounding_only(void **state)
{
    static const char *const ways[] = {"mode=pform",    "mode=absorbed",           "mode=log",
                                       "method=newton", "method=newton solver=cg", "method=sns"};
    (void)state;
    for (int64_t n = 3; n <= 60; n += 57)
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
            bk_test_transport t = bk_test_transport_open(BK_F64, n, 20, 7);
            const char *options =
                bk_arena_printf(t.arena, "epsilon=0.1 tolerance=1e-12 %s", ways[i]);
            bk_test_transport_converge(&t, options);
            double *one = bk_test_transport_plan(&t);
            for (t.blocks = 2; t.blocks <= 16; t.blocks *= 2) {
                bk_test_transport_converge(&t, options);
                bk_check_error(bk_test_error(n * t.m, bk_test_transport_plan(&t), one, 1e-30),
                               1e-12, "%d blocks of %d rows, %s", (int)t.blocks, (int)n, ways[i]);
            }
            bk_test_transport_close(&t);
        }
}

/* ---- what is reported is what the plan says ---- */

typedef struct sums {
    double cost, entropy, kl, residual_a, residual_b;
} sums;

static sums sums_of(const bk_test_transport *t, const double *plan, double epsilon)
{
    sums s = {0};
    for (int64_t j = 0; j < t->m; j++) {
        double column = 0.0;
        for (int64_t i = 0; i < t->n; i++)
            column += plan[i * t->m + j];
        s.residual_b += fabs(column - t->b[j]);
    }
    for (int64_t i = 0; i < t->n; i++) {
        double row = 0.0;
        for (int64_t j = 0; j < t->m; j++) {
            double p = plan[i * t->m + j], c = t->cost[i * t->m + j], ab = t->a[i] * t->b[j];
            row += p;
            s.cost += c * p;
            s.entropy += c * p + epsilon * p * log(p);
            s.kl += c * p + epsilon * (p * log(p / ab) - p + ab);
        }
        s.residual_a += fabs(row - t->a[i]);
    }
    return s;
}

static void check_report(bk_test_transport *t, double epsilon)
{
    const bk_transport_result *r = &t->result;
    sums s = sums_of(t, bk_test_transport_plan(t), epsilon);
    bk_check_error(fabs(r->cost - s.cost), 1e-13, "cost");
    bk_check_error(fabs(r->entropy - s.entropy), 1e-13, "entropy");
    bk_check_error(fabs(r->kl - s.kl), 1e-13, "kl");
    bk_check_error(fabs(r->residual_a - s.residual_a), 1e-13, "residual of the rows");
    bk_check_error(fabs(r->residual_b - s.residual_b), 1e-13, "residual of the columns");
    bk_check_error(fabs(r->gap - (r->kl - r->dual)), 0.0, "gap");
    bk_check_error(fabs(r->epsilon / epsilon - 1.0), 1e-14, "epsilon");
    bk_check_error(fabs(bk_test_dot(t->n, r->f, t->a) - bk_test_dot(t->m, r->g, t->b)), 1e-13,
                   "gauge");
}

static void reports_follow_the_plan(void **state)
{
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, 23, 31, 9);
    bk_test_transport_masses(&t, 10, 1.0);
    bk_test_transport_solve(&t, "epsilon=0.05 tolerance=0 iterations=2");
    check_report(&t, 0.05);
    assert_true(t.result.residual_a > 1e-4); /* far from converged */
    assert_true(fabs(t.result.gap) > 1e-6);
    bk_test_transport_converge(&t, "epsilon=0.05 tolerance=1e-12 iterations=10000");
    check_report(&t, 0.05);
    bk_check_error(fabs(t.result.gap), 1e-12, "gap at the solution");
    double entropy = 0.0;
    for (int64_t i = 0; i < t.n; i++)
        entropy += t.a[i] * log(t.a[i]);
    for (int64_t j = 0; j < t.m; j++)
        entropy += t.b[j] * log(t.b[j]);
    bk_check_error(fabs(t.result.kl - t.result.entropy + 0.05 * entropy), 1e-12, "kl and entropy");
    bk_test_transport_close(&t);
}

/* Plan and value of scaled costs are those of the epsilon that it comes to. */
static void cost_scale_is_an_epsilon(void **state)
{
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, 12, 17, 9);
    double most = 0.0, mean = 0.0;
    for (int64_t k = 0; k < t.n * t.m; k++)
        t.cost[k] = 40.0 * t.cost[k] - 1.0;
    t.cost[5] = INFINITY;
    for (int64_t k = 0; k < t.n * t.m; k++)
        if (isfinite(t.cost[k])) {
            most = fmax(most, t.cost[k]);
            mean += t.cost[k] / (double)(t.n * t.m - 1);
        }
    for (int which = 0; which < 2; which++) {
        double unit = which ? mean : most;
        bk_test_transport_converge(&t, which ? "cost_scale=mean tolerance=1e-13"
                                             : "cost_scale=max tolerance=1e-13");
        bk_transport_result scaled = t.result;
        double *plan = bk_test_transport_plan(&t);
        bk_test_transport_converge(
            &t, bk_arena_printf(t.arena, "epsilon=%.17g tolerance=1e-13", 0.05 * unit));
        bk_check_error(bk_test_error(t.n * t.m, plan, bk_test_transport_plan(&t), 1e-30), 1e-11,
                       "plan");
        bk_check_error(bk_test_error(t.n, scaled.f, t.result.f, 1e-30), 1e-11, "f");
        bk_check_error(bk_test_error(1, &scaled.kl, &t.result.kl, 1e-30), 1e-11, "kl");
        bk_check_error(bk_test_error(1, &scaled.epsilon, &t.result.epsilon, 1e-30), 1e-14, "eps");
    }
    bk_test_transport_close(&t);
}

static void marginals_are_what_the_option_says(void **state)
{
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, 6, 9, 5);
    const struct {
        const char *option;
        double row, column; /* mass; 0: that of a, b over its sum */
    } cases[] = {{"auto", 1.0 / 6, 1.0 / 9}, {"uniform", 1.0 / 6, 1.0 / 9}, {"ones", 1.0, 6.0 / 9}};
    for (int i = 0; i < 3; i++) {
        bk_test_transport_converge(
            &t, bk_arena_printf(t.arena, "marginals=%s tolerance=1e-12", cases[i].option));
        double *plan = bk_test_transport_plan(&t), row = 0.0, column = 0.0;
        for (int j = 0; j < 9; j++)
            row += plan[j];
        for (int k = 0; k < 6; k++)
            column += plan[k * 9];
        bk_check_error(fabs(row - cases[i].row), 1e-11, "row of %s", cases[i].option);
        bk_check_error(fabs(column - cases[i].column), 1e-11, "column of %s", cases[i].option);
    }
    bk_test_transport_masses(&t, 6, 1.0);
    bk_test_transport_converge(&t, "tolerance=1e-12");
    double *plan = bk_test_transport_plan(&t);
    for (int j = 0; j < 9; j++)
        t.b[j] *= 7.0;
    bk_test_transport_converge(&t, "marginals=normalize tolerance=1e-12");
    bk_check_error(bk_test_error(54, bk_test_transport_plan(&t), plan, 1e-30), 1e-10, "normalize");
    bk_test_transport_close(&t);
}

/* ---- symmetries ---- */

static void a_constant_on_a_row_moves_f_alone(void **state)
{
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, 11, 8, 13);
    bk_test_transport_masses(&t, 14, 1.0);
    bk_test_transport_converge(&t, "tolerance=1e-13");
    bk_transport_result before = t.result;
    double *plan = bk_test_transport_plan(&t), moved = 3.25 * t.a[2] / 2.0;
    for (int j = 0; j < 8; j++)
        t.cost[2 * 8 + j] += 3.25;
    bk_test_transport_converge(&t, "tolerance=1e-13");
    bk_check_error(bk_test_error(88, bk_test_transport_plan(&t), plan, 1e-30), 1e-11, "plan");
    for (int i = 0; i < 11; i++) /* the gauge shares a constant between f and g */
        bk_check_error(fabs(t.result.f[i] - before.f[i] - (i == 2 ? 3.25 : 0.0) + moved), 1e-11,
                       "f[%d]", i);
    for (int j = 0; j < 8; j++)
        bk_check_error(fabs(t.result.g[j] - before.g[j] - moved), 1e-11, "g[%d]", j);
    bk_test_transport_close(&t);
}

static void permuted_rows_permute(void **state)
{
    enum { N = 11, M = 8 };
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, N, M, 13), s = t;
    bk_test_transport_masses(&t, 14, 1.0);
    s.cost = BK_NEW(t.arena, double, N *M);
    s.a = BK_NEW(t.arena, double, N);
    s.b = t.b;
    for (int i = 0; i < N; i++) {
        int from = (5 * i + 3) % N;
        s.a[i] = t.a[from];
        memcpy(s.cost + i * M, t.cost + from * M, M * sizeof(double));
    }
    bk_test_transport_converge(&t, "tolerance=1e-13");
    bk_test_transport_converge(&s, "tolerance=1e-13");
    double *plan = bk_test_transport_plan(&t), *permuted = bk_test_transport_plan(&s);
    for (int i = 0; i < N; i++)
        bk_check_error(bk_test_error(M, permuted + i * M, plan + (5 * i + 3) % N * M, 1e-30), 1e-11,
                       "row %d", i);
    bk_test_transport_close(&t);
}

static void transposing_swaps(void **state)
{
    enum { N = 11, M = 8 };
    static const char *const ways[] = {"tolerance=1e-13", "method=newton tolerance=1e-13",
                                       "unbalanced_a=0.3 unbalanced_b=2 tolerance=1e-13"};
    (void)state;
    for (int way = 0; way < 3; way++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, N, M, 13), s = t;
        bk_test_transport_masses(&t, 14, 1.0);
        s.n = M;
        s.m = N;
        s.a = t.b;
        s.b = t.a;
        s.cost = BK_NEW(t.arena, double, N *M);
        for (int k = 0; k < N * M; k++)
            s.cost[k % M * N + k / M] = t.cost[k];
        bk_test_transport_converge(&t, ways[way]);
        bk_test_transport_converge(&s, way < 2 ? ways[way]
                                               : "unbalanced_a=2 unbalanced_b=0.3 tolerance=1e-13");
        double *plan = bk_test_transport_plan(&t), *swapped = bk_test_transport_plan(&s);
        for (int k = 0; k < N * M; k++)
            bk_check_error(fabs(swapped[k % M * N + k / M] - plan[k]), 1e-13, "entry %d", k);
        bk_check_error(bk_test_error(N, s.result.g, t.result.f, 1e-30), 1e-11, "f becomes g");
        bk_test_transport_close(&t);
    }
}

/* ---- when it stops ---- */

static void sweeps_stop_at_the_tolerance(void **state)
{
    static const char *const ways[] = {"mode=pform", "mode=absorbed", "mode=log"};
    (void)state;
    for (int i = 0; i < 3; i++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 30, 20, 17);
        const char *way = bk_arena_printf(t.arena, "epsilon=0.02 %s", ways[i]);
        bk_test_transport_converge(&t, bk_arena_printf(t.arena, "%s tolerance=1e-6", way));
        bk_transport_result r = t.result;
        double *plan = bk_test_transport_plan(&t);
        assert_int_equal(r.steps, r.sweeps);
        for (int64_t k = 0; k < r.sweeps; k++)
            assert_true((r.step[k].error <= 1e-6) == (k == r.sweeps - 1) && !r.step[k].newton);
        bk_test_transport_solve(&t, bk_arena_printf(t.arena, "%s tolerance=1e-6 iterations=%d", way,
                                                    (int)r.sweeps - 1));
        assert_int_equal(t.result.status, BK_TRANSPORT_MAX_ITERATIONS);
        assert_int_equal(t.result.sweeps, r.sweeps - 1);
        bk_test_transport_solve(
            &t, bk_arena_printf(t.arena, "%s tolerance=0 iterations=%d", way, (int)r.sweeps));
        assert_int_equal(t.result.status, BK_TRANSPORT_FIXED);
        bk_check_error(bk_test_error(600, bk_test_transport_plan(&t), plan, 1e-30), 0.0,
                       "the same sweeps");
        bk_test_transport_close(&t);
    }
}

/* The tolerance is for mass 1. */
static void mass_scales_the_tolerance(void **state)
{
    static const char *const ways[] = {"tolerance=1e-8", "method=newton tolerance=1e-8",
                                       "method=sns tolerance=1e-8"};
    (void)state;
    for (int i = 0; i < 3; i++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 16, 12, 19);
        bk_test_transport_masses(&t, 20, 1.0);
        bk_test_transport_converge(&t, ways[i]);
        bk_transport_result one = t.result;
        double *plan = bk_test_transport_plan(&t);
        for (int64_t k = 0; k < t.n; k++)
            t.a[k] *= 4096.0;
        for (int64_t k = 0; k < t.m; k++)
            t.b[k] *= 4096.0;
        bk_test_transport_converge(&t, ways[i]);
        assert_int_equal(t.result.sweeps, one.sweeps);
        assert_int_equal(t.result.newton_steps, one.newton_steps);
        double *large = bk_test_transport_plan(&t);
        for (int64_t k = 0; k < t.n * t.m; k++)
            large[k] /= 4096.0;
        bk_check_error(bk_test_error(t.n * t.m, large, plan, 1e-30), 1e-8, "%s", ways[i]);
        bk_test_transport_close(&t);
    }
}

static void newton_stops_at_the_tolerance(void **state)
{
    static const char *const ways[] = {"method=newton", "method=sns"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 30, 20, 17);
        const char *way = bk_arena_printf(t.arena, "epsilon=0.01 %s", ways[i]);
        bk_test_transport_converge(&t, way);
        int64_t steps = t.result.newton_steps;
        assert_true(steps > 1);
        assert_true(t.result.residual_a + t.result.residual_b <= 1e-9);
        bk_test_transport_solve(&t,
                                bk_arena_printf(t.arena, "%s iterations=%d", way, (int)steps - 1));
        assert_int_equal(t.result.status, BK_TRANSPORT_MAX_ITERATIONS);
        assert_int_equal(t.result.newton_steps, steps - 1);
        assert_true(t.result.residual_a + t.result.residual_b > 1e-9);
        bk_test_transport_close(&t);
    }
}

/* Without stages, every step ends no lower on psi: the dual, up to a constant. */
static void psi_does_not_fall(void **state)
{
    static const char *const ways[] = {"method=newton scaling=none stage_sweeps=1",
                                       "method=newton scaling=none stage_sweeps=1 solver=cg",
                                       "method=sns warm_sweeps=1 keep=4",
                                       "method=newton scaling=none stage_sweeps=1 unbalanced=0.2"};
    (void)state;
    for (int i = 0; i < 4; i++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 40, 30, 23);
        double before = -INFINITY;
        int64_t steps = 1;
        for (int64_t k = 1; k == steps; k++) {
            bk_test_transport_solve(
                &t, bk_arena_printf(t.arena, "epsilon=0.005 %s iterations=%d", ways[i], (int)k));
            steps = t.result.newton_steps + (t.result.status == BK_TRANSPORT_MAX_ITERATIONS);
            assert_true(t.result.dual >= before - 1e-14);
            before = t.result.dual;
        }
        assert_int_equal(t.result.status, BK_TRANSPORT_CONVERGED);
        assert_true(t.result.newton_steps > 3);
        bk_test_transport_close(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_balanced),
        cmocka_unit_test(golden_unrolled),
        cmocka_unit_test(golden_unbalanced),
        cmocka_unit_test(every_way_gives_one_plan),
        cmocka_unit_test(blocks_change_rounding_only),
        cmocka_unit_test(reports_follow_the_plan),
        cmocka_unit_test(cost_scale_is_an_epsilon),
        cmocka_unit_test(marginals_are_what_the_option_says),
        cmocka_unit_test(a_constant_on_a_row_moves_f_alone),
        cmocka_unit_test(permuted_rows_permute),
        cmocka_unit_test(transposing_swaps),
        cmocka_unit_test(sweeps_stop_at_the_tolerance),
        cmocka_unit_test(mass_scales_the_tolerance),
        cmocka_unit_test(newton_stops_at_the_tolerance),
        cmocka_unit_test(psi_does_not_fall),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
