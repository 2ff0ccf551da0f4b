/* test: labels=unit,mpi timeout=240 */
/* birkhoff transport: the same answer as the operator's, from costs and from points, on 1, 2 and 3
 * ranks; the history; what is refused, and that nothing is left behind. */
#include "tests/support/op.h"

#include "core/rng.h"

#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { N = 300, M = 40, D = 3 };

static bk_test_op op;

static double *fill(int64_t count, uint64_t tag, double least)
{
    double *x = BK_NEW(op.arena, double, count);
    for (int64_t i = 0; i < count; i++)
        x[i] = bk_fill((uint64_t)i, tag, least, 1.0);
    return x;
}

/* Distances of D numbers a point, as the program makes them. */
static double *squares(const double *x, const double *y)
{
    double *cost = BK_ZNEW(op.arena, double, N *M);
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < M; j++)
            for (int64_t k = 0; k < D; k++)
                cost[i * M + j] += (x[i * D + k] - y[j * D + k]) * (x[i * D + k] - y[j * D + k]);
    return cost;
}

static void put_masses(void)
{
    bk_test_op_reals(&op, "a", BK_SHAPE(N), fill(N, 3, 0.1));
    bk_test_op_reals(&op, "b", BK_SHAPE(M), fill(M, 4, 0.1));
}

static void put_cost(void)
{
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "cost", BK_SHAPE(N, M),
                     squares(fill(N * D, 1, -1.0), fill(M * D, 2, -1.0)));
    put_masses();
}

static void put_points(void)
{
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "x", BK_SHAPE(N, D), fill(N * D, 1, -1.0));
    bk_test_op_reals(&op, "y", BK_SHAPE(M, D), fill(M * D, 2, -1.0));
    put_masses();
}

static void run(const char *command, int ranks, const char *arguments)
{
    op.command = command;
    bk_test_op_run(&op, ranks, arguments);
}

static const char keys[] = "marginals=normalize epsilon=0.05 method=newton tolerance=1e-11";

static void hold(const char *name, int64_t count, const double *reference)
{
    bk_check_error(bk_test_error(count, bk_test_op_numbers(&op, name), reference, 1e-30), 1e-9,
                   "%s", name);
}

static void equals_the_operator(void **state)
{
    char arguments[160];
    (void)state;
    put_cost();
    snprintf(arguments, sizeof arguments, "transport dtype=f64 %s", keys);
    run(NULL, 1, arguments);
    double *plan = bk_test_op_numbers(&op, "plan"), *f = bk_test_op_numbers(&op, "f"),
           *g = bk_test_op_numbers(&op, "g"), value = bk_test_op_numbers(&op, "value")[0];
    for (int points = 0; points < 2; points++)
        for (int ranks = 1; ranks <= 3; ranks++) {
            if (points)
                put_points();
            else
                put_cost();
            snprintf(arguments, sizeof arguments, "plan=true %s", keys);
            run("transport", ranks, arguments);
            hold("plan", (int64_t)N * M, plan);
            hold("f", N, f);
            hold("g", M, g);
            assert_true(fabs(bk_test_op_attribute(&op, "value") - value) < 1e-10);
            assert_true(bk_test_op_attribute(&op, "converged") == 1.0);
        }
}

/* One entry a sweep and a step; without plan=true there is no plan. */
static void history(void **state)
{
    (void)state;
    put_points();
    run("transport", 2, "marginals=normalize epsilon=0.05");
    double sweeps = bk_test_op_attribute(&op, "sweeps");
    int64_t entries = bk_count(bk_test_op_array(&op, "history/error"));
    assert_true((double)entries == sweeps && sweeps > 1.0);
    assert_true(bk_test_op_numbers(&op, "history/error")[entries - 1] <= 1e-9);
    assert_true(bk_test_op_numbers(&op, "history/epsilon")[0] == 0.05);
    assert_true(bk_test_op_numbers(&op, "history/newton")[0] == 0.0);
    assert_false(bk_test_op_has(&op, "plan"));
    run("transport", 1, "marginals=normalize epsilon=1e-3 method=newton");
    assert_true((double)bk_count(bk_test_op_array(&op, "history/error")) ==
                bk_test_op_attribute(&op, "sweeps") + bk_test_op_attribute(&op, "newton_steps"));
}

static void a_divergence(void **state)
{
    (void)state;
    put_points();
    run(NULL, 1, "transport dtype=f64 debias=true marginals=normalize epsilon=0.5 tolerance=1e-12");
    double value = bk_test_op_numbers(&op, "value")[0];
    for (int ranks = 1; ranks <= 3; ranks++) {
        run("transport", ranks, "debias=true marginals=normalize epsilon=0.5 tolerance=1e-12");
        assert_true(fabs(bk_test_op_attribute(&op, "value") - value) < 1e-12);
    }
}

static void refuse(int ranks, const char *arguments, int status, const char *says)
{
    op.command = "transport";
    unlink(op.out);
    assert_int_equal(bk_test_op_status(&op, ranks, arguments), status);
    assert_int_equal(bk_test_op_error_lines(&op), 1);
    if (!bk_test_op_says(&op, says))
        fail_msg("transport %s does not say '%s'", arguments, says);
    assert_int_not_equal(access(op.out, F_OK), 0);
}

static void refusals(void **state)
{
    (void)state;
    put_cost();
    refuse(1, "methd=newton", 2, "did you mean method?");
    refuse(1, "gradient=implicit", 2, "unknown key");
    refuse(2, "", 2, "marginals=normalize"); /* sums differ */
    refuse(1, "debias=true marginals=normalize", 2, "needs x and y");
    refuse(3, "method=sns unbalanced=1", 2, "balanced problems");
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "x", BK_SHAPE(N, D), fill(N * D, 1, -1.0));
    refuse(2, "", 3, "x without y");
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "cost", BK_SHAPE(N), fill(N, 1, -1.0));
    refuse(1, "", 3, "2 axes");
    put_points();
    bk_test_op_reals(&op, "cost", BK_SHAPE(N, M), fill((int64_t)N * M, 1, 0.0));
    refuse(1, "", 3, "cost and points");
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "cost", BK_SHAPE(N, M), fill((int64_t)N * M, 1, 0.0));
    bk_test_op_reals(&op, "a", BK_SHAPE(M), fill(M, 1, 0.0));
    refuse(2, "", 3, "a has 40 entries, the problem 300");
    put_cost();
    refuse(2, "marginals=uniform", 2, "a is not read with marginals=uniform");
    refuse(1, "scaling_factor=1", 2, "out of range");
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "cost", BK_SHAPE(N, M), fill((int64_t)N * M, 1, 0.0));
    refuse(1, "marginals=given", 2, "input a is missing");
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "cost", BK_SHAPE(N, M), fill((int64_t)N * M, 1, 0.0));
    bk_test_op_reals(&op, "A", BK_SHAPE(N), fill(N, 1, 0.0));
    refuse(2, "", 2, "A is not read by transport");
}

/* The output takes the place of no input, no device and no directory. */
static void outputs(void **state)
{
    char out[sizeof op.out];
    (void)state;
    put_points();
    memcpy(out, op.out, sizeof out);
    snprintf(op.out, sizeof op.out, "%s", op.in);
    op.command = "transport";
    assert_int_equal(bk_test_op_status(&op, 2, "marginals=normalize"), 2);
    assert_true(bk_test_op_says(&op, "one file"));
    snprintf(op.out, sizeof op.out, "%s/pipe", op.directory);
    assert_int_equal(mkfifo(op.out, 0600), 0);
    for (int i = 0; i < 2; i++) {
        op.command = i == 0 ? "transport" : NULL;
        const char *call = i == 0 ? "marginals=normalize" : "transport marginals=normalize";
        assert_int_equal(bk_test_op_status(&op, 1, call), 2);
        assert_true(bk_test_op_says(&op, "no plain file"));
    }
    unlink(op.out);
    memcpy(op.out, out, sizeof out);
}

/* A divergence that does not converge: a warning, no gradients unless they were asked for. */
static void an_open_divergence(void **state)
{
    (void)state;
    put_points();
    run(NULL, 1, "transport debias=true marginals=normalize epsilon=0.01 iterations=3 dtype=f64");
    assert_true(bk_test_op_attribute(&op, "converged") == 0.0);
    assert_false(bk_test_op_has(&op, "grad/x"));
    assert_true(bk_test_op_says(&op, "birkhoff: warning"));
    run("transport", 2, "debias=true marginals=normalize epsilon=0.01 iterations=3");
    assert_true(bk_test_op_attribute(&op, "converged") == 0.0);
    assert_true(bk_test_op_says(&op, "birkhoff: warning"));
    put_points();
    bk_test_op_reals(&op, "grad/value", 0, NULL, (const double[]){1.0});
    op.command = NULL;
    assert_int_equal(bk_test_op_status(&op, 1,
                                       "transport debias=true marginals=normalize "
                                       "epsilon=0.01 iterations=3"),
                     2);
    assert_true(bk_test_op_says(&op, "allow more iterations"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(equals_the_operator),
                                       cmocka_unit_test(history),
                                       cmocka_unit_test(a_divergence),
                                       cmocka_unit_test(refusals),
                                       cmocka_unit_test(outputs),
                                       cmocka_unit_test(an_open_divergence)};
    return bk_test_op_tests(&op, NULL, tests, sizeof tests / sizeof *tests);
}
