/* The loop that measures the arithmetic limit counts its operations right. */
#include "core/fma.h"

#include "tests/support/check.h"

static void operations_are_proportional_to_rounds(void **state)
{
    (void)state;
    double one = bk_fma_run(1);
    /* 12 chains of vectors of 8 or 16 floats, 2 operations each */
    assert_true(one == (bk_cpu_avx512() ? 2.0 * 12 * 16 : 2.0 * 12 * 8));
    assert_true(bk_fma_run(0) == 0.0);
    assert_true(bk_fma_run(1000) == 1000.0 * one);
    assert_true(bk_fma_kernels_f64.run(10) == 10.0 * 2.0 * 12 * 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(operations_are_proportional_to_rounds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
