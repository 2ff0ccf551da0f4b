/* test: labels=unit,grad,golden timeout=60 */
#include "tests/support/check.h"
#include "tests/support/losses.h"

static void golden(void **state)
{
    (void)state;
    assert_int_equal(bk_test_loss_golden("kl"), 4);
}

static void gradients(void **state)
{
    (void)state;
    bk_test_loss_gradient("kl", "skew=0.1");
    bk_test_loss_gradient("kl", "entropy=false t_squared=false temperature=1");
    bk_test_loss_gradient("kl", "skew=0.7 temperature=0.5 reduction=sum");
}

/* Without the teacher's entropy: another value, the same gradient. */
static void entropy_is_a_constant(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(5, 9), other = bk_test_batch_new(5, 9);
    bk_test_way w = {.dtype = BK_F64}, without = {.dtype = BK_F64, .options = "entropy=false"};
    bk_test_result x = bk_test_loss("kl", &b, &w), y = bk_test_loss("kl", &b, &without);
    bk_check_error(bk_test_grad_distance(&b, &y, &x), 1e-15, "gradient without the entropy");
    for (int i = 0; i < 45; i++)
        other.student[i] *= -0.5;
    double gap = y.loss - x.loss, other_gap = bk_test_loss_value("kl", &other, &without) -
                                              bk_test_loss_value("kl", &other, &w);
    assert_true(gap > 0.1);
    bk_check_error(bk_test_error(1, &other_gap, &gap, 1e-30), 1e-12, "entropy of the teacher");
    bk_test_result_free(&x);
    bk_test_result_free(&y);
    bk_test_batch_free(&b);
    bk_test_batch_free(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),
        cmocka_unit_test(gradients),
        cmocka_unit_test(entropy_is_a_constant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
