/* Spectra known by hand. */
#include "core/blas.h"

#include "tests/support/check.h"

#include <math.h>

static void eigenvalues(void **state)
{
    (void)state;
    double cycle[9] = {0, 1, 0, 0, 0, 1, 1, 0, 0}, chain[4] = {0.9, 0.1, 0.2, 0.8},
           turn[9] = {0, -2, 0, 2, 0, 0, 0, 0, 5}, modulus[3];
    assert_int_equal(bk_eigenvalues(3, cycle, modulus), BK_OK);
    bk_check_error(bk_test_error(3, modulus, (const double[]){1, 1, 1}, 1e-30), 1e-14, "cycle");
    assert_int_equal(bk_eigenvalues(2, chain, modulus), BK_OK);
    bk_check_error(bk_test_error(2, modulus, (const double[]){1, 0.7}, 1e-30), 1e-14, "chain");
    assert_int_equal(bk_eigenvalues(3, turn, modulus), BK_OK);
    bk_check_error(bk_test_error(3, modulus, (const double[]){5, 2, 2}, 1e-30), 1e-14, "turn");
}

static void singular_values(void **state)
{
    (void)state;
    double diagonal[9] = {1, 0, 0, 0, -3, 0, 0, 0, 2}, one[4] = {1, 2, 2, 4}, value[3];
    assert_int_equal(bk_singular_values(3, diagonal, value), BK_OK);
    bk_check_error(bk_test_error(3, value, (const double[]){3, 2, 1}, 1e-30), 1e-14, "diagonal");
    assert_int_equal(bk_singular_values(2, one, value), BK_OK);
    bk_check_error(bk_test_error(2, value, (const double[]){5, 0}, 1e-30), 1e-14, "rank one");
}

static void what_is_not_finite(void **state)
{
    (void)state;
    double a[4] = {1, NAN, 2, 3}, b[4] = {1, NAN, 2, 3}, value[2];
    assert_int_equal(bk_eigenvalues(2, a, value), BK_FAULT);
    assert_int_equal(bk_singular_values(2, b, value), BK_FAULT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(eigenvalues),
        cmocka_unit_test(singular_values),
        cmocka_unit_test(what_is_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
