/* test: labels=unit,golden,grad timeout=120 */
/* Column potentials: golden values, marginals, stopping, ranks, and the gradient through g(S). */
#include "core/transport/balance.h"

#include "core/blas.h"
#include "core/rng.h"
#include "tests/support/check.h"
#include "tests/support/threads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { T = 40, E = 5, LANES = 8 };

static double scores[T * E];

static void fill(double spread)
{
    for (int i = 0; i < T * E; i++)
        scores[i] = bk_fill((uint64_t)i, 1, -spread, spread) + 0.3 * spread * (i % E);
}

/* One solve over all rows, with an optional backward. */
typedef struct solve {
    const double *s;
    bk_balance_solver solver;
    int64_t rows, columns, iterations;
    double tolerance;
    const double *g0; /* start; NULL: zeros */
    const double *z0; /* dL/dS with g held; NULL: no backward */
    bk_balance_result result[BK_TEST_THREADS];
    double g[BK_TEST_THREADS][64], *q, *z; /* [rows,columns] of all ranks */
} solve;

static void run(void *context, int rank, int size, const bk_reducer *reducer)
{
    solve *x = context;
    bk_arena *scratch = bk_arena_new("scratch");
    bk_lanes lanes = bk_lanes_of_rank(LANES, x->rows, rank, size);
    int64_t first = bk_lanes_first_sample(&lanes), rows = bk_lanes_samples(&lanes), row[LANES + 1];
    for (int64_t l = 0; l <= lanes.count; l++)
        row[l] = bk_lane_row(&lanes, rows, l);
    bk_balance b = {.rows = rows,
                    .columns = x->columns,
                    .total = x->rows,
                    .s = x->s + first * x->columns,
                    .solver = x->solver,
                    .iterations = x->iterations,
                    .tolerance = x->tolerance,
                    .reducer = reducer,
                    .lanes = &lanes,
                    .lane_row = row,
                    .scratch = scratch};
    for (int64_t j = 0; j < x->columns; j++)
        x->g[rank][j] = x->g0 ? x->g0[j] : 0.0;
    double *q = x->q + first * x->columns, *z = x->z + first * x->columns;
    x->result[rank] = bk_balance_solve(&b, x->g[rank], q);
    if (x->z0) {
        memcpy(z, x->z0 + first * x->columns, (size_t)(rows * x->columns) * sizeof *z);
        bk_balance_implicit(&b, q, z);
    }
    bk_arena_free(scratch);
}

static void open_solve(solve *x, const double *s, int64_t rows, int64_t columns)
{
    *x = (solve){.s = s, .rows = rows, .columns = columns, .iterations = 1000, .tolerance = 1e-9};
    x->q = calloc((size_t)(rows * columns) + 1, sizeof(double));
    x->z = calloc((size_t)(rows * columns) + 1, sizeof(double));
    assert_non_null(x->q);
    assert_non_null(x->z);
}

static void close_solve(solve *x)
{
    free(x->q);
    free(x->z);
}

/* ---- golden values ---- */

static void check_numbers(const json_t *golden, const double *x, double limit, const char *what)
{
    int64_t n;
    double *reference = bk_test_numbers(golden, &n);
    bk_check_error(bk_test_error(n, x, reference, 1e-30), limit, "%s", what);
    free(reference);
}

static void golden_potentials(void **state)
{
    const struct {
        const char *name;
        double epsilon;
    } block[] = {{"sinkhorn", 1.0}, {"ssr_linear_1.0", 1.0}, {"ssr_linear_0.5", 0.5}};
    json_t *golden = bk_test_golden("ref_moe_golden.json");
    int64_t n;
    (void)state;
    for (int i = 0; i < 3; i++) {
        json_t *c = json_object_get(golden, block[i].name);
        double *logits = bk_test_numbers(json_object_get(golden, "logits"), &n);
        for (int64_t k = 0; k < n; k++)
            logits[k] /= block[i].epsilon;
        solve x;
        open_solve(&x, logits, 12, 4);
        run(&x, 0, 1, NULL);
        check_numbers(json_object_get(c, "bias"), x.g[0], 1e-8, block[i].name);
        assert_int_equal(x.result[0].iterations,
                         json_integer_value(json_object_get(c, "iterations")));
        assert_true(x.result[0].converged && x.result[0].residual <= 1e-9);
        if (json_object_get(c, "plan"))
            check_numbers(json_object_get(c, "plan"), x.q, 1e-8, "plan");
        close_solve(&x);
        free(logits);
    }
    json_decref(golden);
}

/* ---- the plan ---- */

static void check_plan(const solve *x)
{
    double residual = 0.0, mean = 0.0, mass = (double)x->rows / (double)x->columns;
    for (int64_t t = 0; t < x->rows; t++) {
        double sum = 0.0;
        for (int64_t j = 0; j < x->columns; j++)
            sum += x->q[t * x->columns + j];
        bk_check_error(fabs(sum - 1.0), 1e-12, "row %d", (int)t);
    }
    for (int64_t j = 0; j < x->columns; j++) {
        double sum = 0.0;
        for (int64_t t = 0; t < x->rows; t++)
            sum += x->q[t * x->columns + j];
        residual = fmax(residual, fabs(sum / mass - 1.0));
        mean += x->g[0][j] / (double)x->columns;
    }
    /* what is reported is the residual of the plan that is handed out, up to the fixed point */
    bk_check_error(fabs(x->result[0].residual - residual), 1e-10, "residual");
    assert_true(x->result[0].converged == (x->result[0].residual <= x->tolerance));
    bk_check_error(fabs(mean), 1e-12, "mean of g");
}

static void plans_have_their_marginals(void **state)
{
    (void)state;
    for (double spread = 0.5; spread < 30.0; spread *= 4.0) {
        solve x;
        fill(spread);
        open_solve(&x, scores, T, E);
        run(&x, 0, 1, NULL);
        assert_true(x.result[0].converged);
        check_plan(&x);
        close_solve(&x);
    }
}

static void the_stopping_rule(void **state)
{
    int64_t before = INT64_MAX;
    solve x;
    (void)state;
    fill(3.0);
    for (double tolerance = 1e-8; tolerance < 1.0; tolerance *= 10.0) { /* looser: fewer updates */
        open_solve(&x, scores, T, E);
        x.tolerance = tolerance;
        run(&x, 0, 1, NULL);
        assert_true(x.result[0].iterations < before && x.result[0].residual <= tolerance);
        before = x.result[0].iterations;
        check_plan(&x);
        close_solve(&x);
    }
    for (int64_t most = 0; most < 4; most++) { /* the cap: the plan is handed out all the same */
        open_solve(&x, scores, T, E);
        x.iterations = most;
        run(&x, 0, 1, NULL);
        assert_int_equal(x.result[0].iterations, most);
        assert_false(x.result[0].converged);
        check_plan(&x);
        close_solve(&x);
    }
}

static void a_balanced_start_needs_no_update(void **state)
{
    solve x, y;
    (void)state;
    fill(3.0);
    open_solve(&x, scores, T, E);
    run(&x, 0, 1, NULL);
    open_solve(&y, scores, T, E);
    y.g0 = x.g[0];
    y.tolerance = 2e-9;
    run(&y, 0, 1, NULL);
    assert_int_equal(y.result[0].iterations, 0);
    assert_memory_equal(y.g[0], x.g[0], E * sizeof(double));
    close_solve(&x);
    close_solve(&y);
}

/* spec: an expert 1000 logits below the others is reached in 34 iterations */
static void a_far_column_is_reached(void **state)
{
    double s[64 * 4] = {0};
    solve x;
    (void)state;
    for (int t = 0; t < 64; t++)
        s[t * 4 + 3] = -1000.0;
    open_solve(&x, s, 64, 4);
    x.iterations = 200;
    x.tolerance = 1e-6;
    run(&x, 0, 1, NULL);
    assert_true(x.result[0].converged);
    assert_int_equal(x.result[0].iterations, 34);
    close_solve(&x);
}

/* ---- newton ---- */

static void count_message(void *context, int64_t n, int64_t *x)
{
    (void)x;
    int64_t *seen = context;
    seen[0]++;
    seen[1] = n;
}

/* The plan of the other solver in fewer messages, each with the second moments. */
static void check_newton(double spread, int64_t most)
{
    int64_t seen[2] = {0};
    const bk_reducer counting = {.context = seen, .sum_fixed = count_message};
    solve slow, fast;
    fill(spread);
    open_solve(&slow, scores, T, E);
    open_solve(&fast, scores, T, E);
    slow.iterations = 100000;
    fast.solver = BK_BALANCE_NEWTON;
    run(&slow, 0, 1, NULL);
    run(&fast, 0, 1, &counting);
    assert_true(slow.result[0].converged && fast.result[0].converged);
    assert_in_range(fast.result[0].iterations, 1, most);
    assert_true(fast.result[0].iterations < slow.result[0].iterations);
    assert_int_equal(seen[0], fast.result[0].iterations + 1);
    assert_int_equal(seen[1], E + E * (E + 1) / 2);
    bk_check_error(bk_test_error(T * E, fast.q, slow.q, 1.0), 1e-7, "plan, spread %g", spread);
    check_plan(&fast);
    close_solve(&slow);
    close_solve(&fast);
}

static void newton_finds_the_same_plan(void **state)
{
    (void)state;
    check_newton(0.5, 6);
    check_newton(2.0, 8);
    check_newton(8.0, 20);
}

/* A cap in the midst of a line search: what was reached last is handed out. */
static void newton_stops_at_its_cap(void **state)
{
    (void)state;
    fill(8.0);
    for (int64_t most = 0; most < 12; most++) {
        solve x;
        open_solve(&x, scores, T, E);
        x.solver = BK_BALANCE_NEWTON;
        x.iterations = most;
        run(&x, 0, 1, NULL);
        assert_true(x.result[0].iterations <= most);
        check_plan(&x);
        close_solve(&x);
    }
}

/* Where the matrix is singular to rounding a step of the other solver leads on. */
static void newton_reaches_a_far_column(void **state)
{
    double s[64 * 4] = {0};
    solve x;
    (void)state;
    for (int t = 0; t < 64; t++)
        s[t * 4 + 3] = -1000.0;
    open_solve(&x, s, 64, 4);
    x.solver = BK_BALANCE_NEWTON;
    x.tolerance = 1e-6;
    run(&x, 0, 1, NULL);
    assert_true(x.result[0].converged);
    close_solve(&x);
}

/* ---- identities ---- */

static void shifts_of_rows_and_orders_change_nothing(void **state)
{
    double moved[T * E], turned[T * E];
    solve x, y;
    (void)state;
    fill(2.0);
    open_solve(&x, scores, T, E);
    run(&x, 0, 1, NULL);
    for (int i = 0; i < T * E; i++) {
        moved[i] = scores[i] + (double)(i / E % 7); /* the same number in a row */
        turned[i] = scores[(T - 1 - i / E) * E + i % E];
    }
    open_solve(&y, turned, T, E);
    run(&y, 0, 1, NULL);
    assert_memory_equal(y.g[0], x.g[0], E * sizeof(double));
    for (int t = 0; t < T; t++)
        assert_memory_equal(y.q + t * E, x.q + (T - 1 - t) * E, E * sizeof(double));
    close_solve(&y);
    open_solve(&y, moved, T, E);
    run(&y, 0, 1, NULL);
    bk_check_error(bk_test_error(E, y.g[0], x.g[0], 1.0), 1e-9, "g of shifted rows");
    close_solve(&y);
    close_solve(&x);
}

static void nothing_to_balance(void **state)
{
    solve x;
    (void)state;
    open_solve(&x, scores, 0, E);
    run(&x, 0, 1, NULL);
    assert_true(x.result[0].iterations == 0 && !x.result[0].converged);
    for (int j = 0; j < E; j++)
        assert_true(x.g[0][j] == 0.0);
    close_solve(&x);
    fill(1.0);
    open_solve(&x, scores, T, 1); /* one expert takes all */
    run(&x, 0, 1, NULL);
    assert_true(x.result[0].converged && x.result[0].iterations == 0 && x.g[0][0] == 0.0);
    close_solve(&x);
}

/* ---- backward ---- */

/* L = sum W (S + g(S)): with g held dL/dS is W, so the whole gradient can be had by differences. */
static double loss(const double *s, const double *weight)
{
    double sum = 0.0;
    solve x;
    open_solve(&x, s, T, E);
    x.tolerance = 1e-11;
    run(&x, 0, 1, NULL);
    for (int i = 0; i < T * E; i++)
        sum += weight[i] * (s[i] + x.g[0][i % E]);
    close_solve(&x);
    return sum;
}

static void the_gradient_goes_through_the_potentials(void **state)
{
    const double step = 1e-4;
    double weight[T * E], moved[T * E];
    solve x;
    (void)state;
    fill(1.5);
    for (int i = 0; i < T * E; i++)
        weight[i] = bk_fill((uint64_t)i, 3, -1.0, 1.0);
    open_solve(&x, scores, T, E);
    x.tolerance = 1e-11;
    x.z0 = weight;
    run(&x, 0, 1, NULL);
    for (int i = 0; i < T * E; i += 3) {
        memcpy(moved, scores, sizeof moved);
        moved[i] = scores[i] + step;
        double up = loss(moved, weight);
        moved[i] = scores[i] - step;
        double numeric = (up - loss(moved, weight)) / (2.0 * step);
        bk_check_error(fabs(numeric - x.z[i]) / fmax(1.0, fabs(numeric)), 1e-5, "element %d", i);
    }
    close_solve(&x);
}

/* ---- ranks ---- */

static void check_ranks(bk_balance_solver solver, int size, bool power_of_two)
{
    double weight[T * E];
    solve one, many;
    for (int i = 0; i < T * E; i++)
        weight[i] = bk_fill((uint64_t)i, 3, -1.0, 1.0);
    open_solve(&one, scores, T, E);
    open_solve(&many, scores, T, E);
    one.z0 = many.z0 = weight;
    one.solver = many.solver = solver;
    run(&one, 0, 1, NULL);
    bk_test_threads(size, run, &many);
    for (int r = 0; r < size; r++) {
        assert_memory_equal(many.g[r], one.g[0], E * sizeof(double));
        assert_int_equal(many.result[r].iterations, one.result[0].iterations);
        assert_true(many.result[r].residual == one.result[0].residual);
    }
    assert_memory_equal(many.q, one.q, sizeof scores);
    if (power_of_two)
        assert_memory_equal(many.z, one.z, sizeof scores);
    bk_check_error(bk_test_error(T * E, many.z, one.z, 1.0), 1e-12, "z on %d ranks", size);
    close_solve(&one);
    close_solve(&many);
}

static void ranks_have_equal_bits(void **state)
{
    (void)state;
    fill(3.0);
    for (int solver = BK_BALANCE_SINKHORN; solver <= BK_BALANCE_NEWTON; solver++) {
        check_ranks((bk_balance_solver)solver, 2, true);
        check_ranks((bk_balance_solver)solver, 4, true);
        check_ranks((bk_balance_solver)solver, 8, true);
        check_ranks((bk_balance_solver)solver, 3, false);
        check_ranks((bk_balance_solver)solver, 7, false);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_potentials),
        cmocka_unit_test(plans_have_their_marginals),
        cmocka_unit_test(the_stopping_rule),
        cmocka_unit_test(a_balanced_start_needs_no_update),
        cmocka_unit_test(a_far_column_is_reached),
        cmocka_unit_test(newton_finds_the_same_plan),
        cmocka_unit_test(newton_stops_at_its_cap),
        cmocka_unit_test(newton_reaches_a_far_column),
        cmocka_unit_test(shifts_of_rows_and_orders_change_nothing),
        cmocka_unit_test(nothing_to_balance),
        cmocka_unit_test(the_gradient_goes_through_the_potentials),
        cmocka_unit_test(ranks_have_equal_bits),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
