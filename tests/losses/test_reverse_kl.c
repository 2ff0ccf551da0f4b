/* test: labels=unit,grad,golden timeout=60 */
#include "tests/support/check.h"
#include "tests/support/losses.h"

static void golden(void **state)
{
    (void)state;
    assert_int_equal(bk_test_loss_golden("reverse_kl"), 4);
}

static void gradients(void **state)
{
    (void)state;
    bk_test_loss_gradient("reverse_kl", "skew=0.1");
    bk_test_loss_gradient("reverse_kl", "skew=0.9 t_squared=false temperature=1");
}

/* kl of the two distributions exchanged. */
static void is_kl_backwards(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(5, 9);
    static const char *const options[] = {"", "skew=0.3"};
    for (int i = 0; i < 2; i++) {
        bk_test_way w = {.dtype = BK_F64, .options = options[i]};
        bk_test_batch swapped = b;
        swapped.student = b.teacher;
        swapped.teacher = b.student;
        double x = bk_test_loss_value("reverse_kl", &b, &w),
               y = bk_test_loss_value("kl", &swapped, &w);
        bk_check_error(bk_test_error(1, &x, &y, 1e-30), 1e-13, "exchanged %s", options[i]);
    }
    bk_test_batch_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),
        cmocka_unit_test(gradients),
        cmocka_unit_test(is_kl_backwards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
