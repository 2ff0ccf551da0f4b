/* test: labels=unit,grad,golden timeout=60 */
#include "tests/support/check.h"
#include "tests/support/losses.h"

#include <math.h>
#include <stdlib.h>

static void golden(void **state)
{
    (void)state;
    assert_int_equal(bk_test_loss_golden("cross_entropy"), 2);
}

static void gradients(void **state)
{
    (void)state;
    bk_test_loss_gradient("cross_entropy", "label_smoothing=0.2");
    bk_test_loss_gradient("cross_entropy", "reduction=sum");
}

/* A row without a label: not counted, no gradient. */
static void unlabelled_rows_are_dropped(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(3, 4), one = bk_test_batch_new(1, 4);
    bk_test_way w = {.dtype = BK_F64, .options = "label_smoothing=0.1"};
    b.labels[0] = one.labels[0] = 2;
    b.labels[1] = b.labels[2] = -1;
    bk_test_result r = bk_test_loss("cross_entropy", &b, &w),
                   alone = bk_test_loss("cross_entropy", &one, &w);
    assert_true(r.loss == alone.loss);
    for (int v = 0; v < 12; v++)
        assert_true(r.grad[v] == (v < 4 ? alone.grad[v] : 0.0));
    b.labels[0] = -1;
    bk_test_result none = bk_test_loss("cross_entropy", &b, &w);
    assert_true(none.loss == 0.0);
    bk_test_result_free(&none);
    bk_test_result_free(&alone);
    bk_test_result_free(&r);
    bk_test_batch_free(&b);
    bk_test_batch_free(&one);
}

/* -log softmax stays right where softmax underflows. */
static void far_logits_are_finite(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(1, 3);
    b.student[0] = 1e4;
    b.student[1] = 0.0;
    b.student[2] = -1e4;
    b.labels[0] = 2;
    for (int k = 0; k < 2; k++) {
        bk_test_result r =
            bk_test_loss("cross_entropy", &b, &(bk_test_way){.dtype = k ? BK_F64 : BK_F32});
        assert_true(r.loss == 2e4);
        assert_true(r.grad[0] == 1.0 && r.grad[1] == 0.0 && r.grad[2] == -1.0);
        bk_test_result_free(&r);
    }
    bk_test_batch_free(&b);
}

/* The gradient is added to what other losses have left there. */
static void gradients_accumulate(void **state)
{
    (void)state;
    const bk_loss_kind *kind = bk_loss_find("cross_entropy");
    bk_tape t = bk_test_tape(BK_F64, bk_lanes_single(2));
    int32_t labels[] = {1, -1};
    bk_tensor *x = bk_test_fill(&t, BK_SHAPE(2, 5), 3, -1.0, 1.0);
    bk_loss_args a = {.logits = x,
                      .labels = labels,
                      .rows = 1,
                      .config = bk_test_loss_options(kind, "", BK_F64, t.arena)};
    bk_tape_add_term(&t, "first", -1, kind->apply(&t, &a), 1.0);
    bk_tape_add_term(&t, "second", -1, kind->apply(&t, &a), 0.5);
    bk_tape_backward(&t);
    for (int v = 0; v < 5; v++) {
        double sum = 0.0;
        for (int u = 0; u < 5; u++)
            sum += exp(bk_test_value(x, u) - bk_test_value(x, v));
        assert_true(fabs(bk_test_grad(x, v) - 1.5 * (1.0 / sum - (v == 1))) < 1e-14);
        assert_true(bk_test_grad(x, 5 + v) == 0.0);
    }
    bk_test_tape_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),
        cmocka_unit_test(gradients),
        cmocka_unit_test(unlabelled_rows_are_dropped),
        cmocka_unit_test(far_logits_are_finite),
        cmocka_unit_test(gradients_accumulate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
