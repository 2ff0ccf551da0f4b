/* test: labels=unit,grad,mpi ranks=1,3 timeout=120 */
/* The plan: what the iterations converge to, when they stop, and the gradients of both modes. */
#include "tests/support/check.h"
#include "tests/support/losses.h"
#include "tests/support/ranks.h"

#include <math.h>
#include <stdlib.h>

enum { B = 8, V = 5 };

/* The last step is a column step: columns sum to 1, rows nearly, and the mass is B. */
static void columns_sum_to_one(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    bk_test_result r = bk_test_loss("sinkd", &b, &(bk_test_way){.dtype = BK_F64, .plan = true});
    double violation = bk_test_figure(&r, "row_violation"), loss = 0.0, most = 0.0;
    for (int j = 0; j < B; j++) {
        double column = 0.0, row = 0.0;
        for (int i = 0; i < B; i++) {
            column += r.plan[i * B + j];
            row += r.plan[j * B + i];
            loss += r.plan[i * B + j] * r.cost[i * B + j] / B;
        }
        assert_true(fabs(column - 1.0) < 1e-14);
        most = fmax(most, fabs(row - 1.0));
    }
    assert_true(fabs(most - violation) < 1e-14);
    bk_check_error(bk_test_error(1, &r.loss, &loss, 1e-30), 1e-14, "<P,C>/B");
    bk_test_result_free(&r);
    bk_test_batch_free(&b);
}

static void entropic_value_follows_its_definition(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    bk_test_result r = bk_test_loss("sinkd", &b, &(bk_test_way){.dtype = BK_F64, .plan = true});
    double value = 0.0, own = bk_test_figure(&r, "entropic_value");
    for (int i = 0; i < B * B; i++)
        value += r.plan[i] * r.cost[i] + 0.1 * r.plan[i] * (log(r.plan[i]) - 1.0);
    bk_check_error(bk_test_error(1, &own, &value, 1e-30), 1e-12, "entropic value");
    bk_test_result_free(&r);
    bk_test_batch_free(&b);
}

/* Stops at the first iteration whose row sums are near enough, on every rank, wherever rows lie. */
static void tolerance_stops_all_ranks_alike(void **state)
{
    static const char *const groups[] = {"global", "3", "1"};
    const bk_comm *comm = bk_test_world()->loss;
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    for (int k = 0; k < 3; k++) {
        char options[128];
        snprintf(options, sizeof options, "tolerance=1e-3 iterations=1000 group=%s", groups[k]);
        bk_test_way w = {.options = options, .dtype = BK_F64, .comm = comm};
        bk_test_result r = bk_test_loss("sinkd", &b, &w);
        int n = (int)bk_test_figure(&r, "iterations");
        assert_true(bk_test_figure(&r, "row_violation") <= 1e-3);
        assert_true(k == 2 ? n == 1 : n > 1 && n < 1000);
        snprintf(options, sizeof options, "iterations=%d group=%s", n, groups[k]);
        bk_test_result fixed = bk_test_loss("sinkd", &b, &w);
        assert_true(r.loss == fixed.loss);
        assert_true(bk_test_grad_distance(&b, &r, &fixed) == 0.0);
        if (n > 1) {
            snprintf(options, sizeof options, "iterations=%d group=%s", n - 1, groups[k]);
            bk_test_result before = bk_test_loss("sinkd", &b, &w);
            assert_true(bk_test_figure(&before, "row_violation") > 1e-3);
            bk_test_result_free(&before);
        }
        bk_test_result_free(&fixed);
        bk_test_result_free(&r);
    }
    bk_test_batch_free(&b);
}

/* A NaN reaches the loss and hangs nobody. */
static void nan_ends_in_the_loss(void **state)
{
    const bk_comm *comm = bk_test_world()->loss;
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    b.student[1] = NAN;
    assert_true(isnan(bk_test_loss_value(
        "sinkd", &b, &(bk_test_way){.options = "tolerance=1e-9", .dtype = BK_F64, .comm = comm})));
    bk_test_batch_free(&b);
}

static void unrolled_is_the_derivative(void **state)
{
    (void)state;
    if (bk_mpi_size() > 1)
        skip();
    bk_test_loss_gradient("sinkd", "iterations=1");
    bk_test_loss_gradient("sinkd", "epsilon=0.05 iterations=7 temperature=1");
    bk_test_loss_gradient("sinkd", "group=2 reduction=sum");
    bk_test_loss_gradient("sinkd", "group=lane epsilon=1");
    bk_test_loss_gradient("sinkd", "tolerance=0.05");
}

/* envelope: differences of <P,C> + epsilon sum P (log P - 1) at convergence. */
static void envelope_is_the_derivative_of_the_entropic_value(void **state)
{
    const double step = 1e-6;
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    bk_test_way w = {.options = "gradient=envelope epsilon=0.5 iterations=100 reduction=sum",
                     .dtype = BK_F64};
    bk_test_result r = bk_test_loss("sinkd", &b, &w);
    assert_true(bk_test_figure(&r, "row_violation") < 1e-12);
    double differences[B * V];
    for (int i = 0; i < B * V; i++) {
        double x = b.student[i], side[2];
        for (int k = 0; k < 2; k++) {
            b.student[i] = x + (k ? step : -step);
            bk_test_result moved = bk_test_loss("sinkd", &b, &w);
            side[k] = bk_test_figure(&moved, "entropic_value");
            bk_test_result_free(&moved);
        }
        b.student[i] = x;
        differences[i] = (side[1] - side[0]) / (2.0 * step);
    }
    bk_check_error(bk_test_error(B * V, r.grad, differences, 1e-30), 1e-6, "envelope");
    bk_test_result_free(&r);
    bk_test_batch_free(&b);
}

/* epsilon down to its least value: finite in fp32, and near the f64 result. */
static void small_epsilon_is_finite(void **state)
{
    static const char *const options[] = {"epsilon=0.01", "epsilon=0.01 gradient=envelope",
                                          "epsilon=0.001", "epsilon=0.001 gradient=envelope"};
    const bk_comm *comm = bk_test_world()->loss;
    (void)state;
    for (int k = 0; k < 4; k++) {
        bk_test_batch b = bk_test_batch_new(16, 50);
        bk_test_way w = {.options = options[k], .comm = comm};
        bk_test_result rough = bk_test_loss("sinkd", &b, &w);
        w.dtype = BK_F64;
        bk_test_result exact = bk_test_loss("sinkd", &b, &w);
        assert_true(isfinite(rough.loss) && isfinite(exact.loss));
        for (int i = 0; i < 16 * 50; i++)
            assert_true(isfinite(rough.grad[i]) && isfinite(exact.grad[i]));
        if (k < 2)
            bk_test_same_loss(&b, &rough, &exact, 1e-6, 1e-5, options[k]);
        bk_test_result_free(&rough);
        bk_test_result_free(&exact);
        bk_test_batch_free(&b);
    }
}

/* Student rows all near one teacher row: the other columns of K underflow, and are still served. */
static void far_columns_are_served(void **state)
{
    enum { ROWS = 6, CLASSES = 8 };
    const bk_comm *comm = bk_test_world()->loss;
    (void)state;
    bk_test_batch b = bk_test_batch_new(ROWS, CLASSES);
    for (int i = 0; i < ROWS; i++)
        for (int v = 0; v < CLASSES; v++) {
            b.student[i * CLASSES + v] = (v == 0 ? 60.0 : 0.0) + 1e-3 * i * v;
            b.teacher[i * CLASSES + v] = v == i ? 60.0 : 0.0;
        }
    bk_test_result r = bk_test_loss(
        "sinkd", &b,
        &(bk_test_way){.options = "epsilon=0.001 iterations=10", .dtype = BK_F64, .comm = comm});
    /* five of six teacher rows lie at distance 2 of every student row */
    assert_true(fabs(r.loss - 10.0 / 6.0) < 1e-6);
    for (int i = 0; i < ROWS * CLASSES; i++)
        assert_true(isfinite(r.grad[i]));
    bk_test_result_free(&r);
    bk_test_batch_free(&b);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(columns_sum_to_one),
        cmocka_unit_test(entropic_value_follows_its_definition),
        cmocka_unit_test(tolerance_stops_all_ranks_alike),
        cmocka_unit_test(nan_ends_in_the_loss),
        cmocka_unit_test(unrolled_is_the_derivative),
        cmocka_unit_test(envelope_is_the_derivative_of_the_entropic_value),
        cmocka_unit_test(small_epsilon_is_finite),
        cmocka_unit_test(far_columns_are_served),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
