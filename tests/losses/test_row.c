/* test: labels=unit timeout=60 */
/* What the row-wise losses share, for each of them in kinds.def. */
#include "tests/support/check.h"
#include "tests/support/losses.h"

#include "losses/row.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static bool row_wise(const bk_loss_kind *kind)
{
    return kind->flags & BK_LOSS_TEACHER && !(kind->flags & (BK_LOSS_COLLECTIVE | BK_LOSS_LAYERS));
}

static void weights(void **state)
{
    (void)state;
    bk_loss_args a = {.rows = 8}, none = {.rows = 0};
    assert_true(bk_row_weight(&a, 0) == 0.125 && bk_row_weight(&a, 1) == 1.0);
    assert_true(bk_row_weight(&none, 0) == 0.0);
}

static void valid_rows(void **state)
{
    (void)state;
    int32_t labels[] = {0, -1, 3}, valid[] = {1, 1, 0};
    bk_tensor teacher = {0};
    bk_loss_args plain = {0}, by_label = {.labels = labels},
                 taught = {.labels = labels, .teacher = &teacher},
                 masked = {.labels = labels, .teacher = &teacher, .valid = valid};
    for (int i = 0; i < 3; i++) {
        assert_true(bk_row_valid(&plain, i) && bk_row_valid(&taught, i));
        assert_int_equal(bk_row_valid(&by_label, i), i != 1);
        assert_int_equal(bk_row_valid(&masked, i), i != 2);
    }
}

static void lanes_are_summed_in_order(void **state)
{
    (void)state;
    double value[6] = {1.0, 1e-17, 1e-17, 3.0, 4.0, 5.0}, out[3];
    bk_tape t = {.lanes = {.total = 4, .first = 0, .count = 3, .batch = 4}};
    bk_row_sum_lanes(&t, 6, value, out);
    assert_true(out[0] == 1.0 && out[1] == 3.0 && out[2] == 9.0);
    bk_row_sum_lanes(&t, 0, value, out);
    assert_true(out[0] == 0.0 && out[1] == 0.0 && out[2] == 0.0);
}

static void never_negative(void **state)
{
    (void)state;
    for (int64_t v = 2; v < 40; v += 9) {
        bk_test_batch b = bk_test_batch_new(1, v);
        for (int i = 0; bk_losses[i]; i++)
            for (double scale = 0.1; scale < 1e3 && row_wise(bk_losses[i]); scale *= 10.0) {
                bk_test_batch scaled = bk_test_batch_new(1, v);
                for (int j = 0; j < v; j++)
                    scaled.student[j] *= scale;
                assert_true(bk_test_loss_value(bk_losses[i]->name, &scaled,
                                               &(bk_test_way){.dtype = BK_F64}) > 0.0);
                bk_test_batch_free(&scaled);
            }
        bk_test_batch_free(&b);
    }
}

static void zero_for_a_perfect_student(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(6, 33);
    memcpy(b.student, b.teacher, 6 * 33 * sizeof *b.student);
    for (int i = 0; bk_losses[i]; i++) {
        if (!row_wise(bk_losses[i]))
            continue;
        bk_test_result r = bk_test_loss(bk_losses[i]->name, &b, &(bk_test_way){.dtype = BK_F64});
        assert_true(fabs(r.loss) < 1e-14);
        for (int j = 0; j < 6 * 33; j++)
            assert_true(fabs(r.grad[j]) < 1e-15);
        bk_test_result_free(&r);
    }
    bk_test_batch_free(&b);
}

/* Logits so far apart that probabilities underflow: finite, in both precisions. */
static void far_logits_are_finite(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(2, 3);
    for (int v = 0; v < 6; v++) {
        b.student[v] = 5e3 * (v % 3);
        b.teacher[v] = -5e3 * (v % 3);
    }
    for (int i = 0; bk_losses[i]; i++)
        for (int k = 0; k < 2 && row_wise(bk_losses[i]); k++) {
            bk_test_result r =
                bk_test_loss(bk_losses[i]->name, &b, &(bk_test_way){.dtype = k ? BK_F64 : BK_F32});
            assert_true(isfinite(r.loss));
            for (int j = 0; j < 6; j++)
                assert_true(isfinite(r.grad[j]));
            bk_test_result_free(&r);
        }
    bk_test_batch_free(&b);
}

/* T + (T_end - T) step / max(1, steps-1) in training; T outside. */
static void temperature_runs_to_its_end(void **state)
{
    static const struct {
        int64_t step, steps;
        double temperature;
    } cases[] = {{0, 5, 4.0}, {2, 5, 2.5}, {4, 5, 1.0}, {0, 1, 4.0}, {3, 0, 4.0}};
    (void)state;
    bk_test_batch b = bk_test_batch_new(3, 7);
    for (int i = 0; bk_losses[i]; i++)
        for (size_t k = 0; k < sizeof cases / sizeof *cases && row_wise(bk_losses[i]); k++) {
            char fixed[64];
            snprintf(fixed, sizeof fixed, "temperature=%g", cases[k].temperature);
            double x = bk_test_loss_value(bk_losses[i]->name, &b,
                                          &(bk_test_way){.options = "temperature=4 "
                                                                    "temperature_end=1",
                                                         .dtype = BK_F64,
                                                         .step = cases[k].step,
                                                         .steps = cases[k].steps}),
                   y = bk_test_loss_value(bk_losses[i]->name, &b,
                                          &(bk_test_way){.options = fixed, .dtype = BK_F64});
            assert_true(x == y);
        }
    bk_test_batch_free(&b);
}

static void temperature_squared_is_a_factor(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(3, 7);
    for (int i = 0; bk_losses[i]; i++) {
        if (!bk_test_loss_has(bk_losses[i]->name, "t_squared"))
            continue;
        bk_test_way with = {.dtype = BK_F64, .options = "temperature=3 t_squared=true"},
                    without = {.dtype = BK_F64, .options = "temperature=3 t_squared=false"};
        double x = bk_test_loss_value(bk_losses[i]->name, &b, &with),
               y = 9.0 * bk_test_loss_value(bk_losses[i]->name, &b, &without);
        bk_check_error(bk_test_error(1, &x, &y, 1e-30), 1e-14, "%s", bk_losses[i]->name);
    }
    bk_test_batch_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights),
        cmocka_unit_test(valid_rows),
        cmocka_unit_test(lanes_are_summed_in_order),
        cmocka_unit_test(never_negative),
        cmocka_unit_test(zero_for_a_perfect_student),
        cmocka_unit_test(far_logits_are_finite),
        cmocka_unit_test(temperature_runs_to_its_end),
        cmocka_unit_test(temperature_squared_is_a_factor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
