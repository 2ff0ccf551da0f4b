/* test: labels=unit,grad,golden timeout=60 */
#include "tests/support/check.h"
#include "tests/support/losses.h"

#include <math.h>

static void golden(void **state)
{
    (void)state;
    assert_int_equal(bk_test_loss_golden("tv"), 2);
}

static void gradients(void **state)
{
    (void)state;
    bk_test_loss_gradient("tv", "t_squared=true temperature=3");
}

/* Between 0 and 1, and 1 for distributions without a common class. */
static void is_at_most_one(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(1, 4);
    bk_test_way w = {.dtype = BK_F64};
    for (int v = 0; v < 4; v++) {
        b.student[v] = v == 1 ? 2000.0 : 0.0;
        b.teacher[v] = v == 2 ? 2000.0 : 0.0;
    }
    double loss = bk_test_loss_value("tv", &b, &w);
    assert_true(loss <= 1.0 && loss > 1.0 - 1e-12);
    bk_test_batch_free(&b);
}

/* sign(0) = 0: equal rows have no gradient. */
static void ties_have_no_slope(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(2, 5);
    for (int v = 0; v < 10; v++)
        b.teacher[v] = b.student[v];
    bk_test_result r = bk_test_loss("tv", &b, &(bk_test_way){.dtype = BK_F64});
    assert_true(r.loss == 0.0);
    for (int v = 0; v < 10; v++)
        assert_true(r.grad[v] == 0.0);
    bk_test_result_free(&r);
    bk_test_batch_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),
        cmocka_unit_test(gradients),
        cmocka_unit_test(is_at_most_one),
        cmocka_unit_test(ties_have_no_slope),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
