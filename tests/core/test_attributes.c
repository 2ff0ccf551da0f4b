/* Named figures: set, replace, and a NULL that nobody wants filled. */
#include "core/attributes.h"

#include "tests/support/check.h"
#include "tests/support/child.h"

static void figures_are_set_and_replaced(void **state)
{
    bk_attributes a = {0};
    (void)state;
    bk_attribute_set(&a, "residual", 0.5);
    bk_attribute_set_integer(&a, "iterations", 12);
    assert_int_equal(a.entries, 2);
    assert_string_equal(a.entry[0].name, "residual");
    assert_true(a.entry[0].value == 0.5 && !a.entry[0].integer);
    assert_string_equal(a.entry[1].name, "iterations");
    assert_true(a.entry[1].value == 12.0 && a.entry[1].integer);
    bk_attribute_set_integer(&a, "residual", 3);
    assert_int_equal(a.entries, 2);
    assert_true(a.entry[0].value == 3.0 && a.entry[0].integer);
}

static void nobody_wants_them(void **state)
{
    (void)state;
    bk_attribute_set(NULL, "residual", 0.5);
    bk_attribute_set_integer(NULL, "iterations", 12);
}

static void overfill(void *attributes)
{
    static char names[BK_ATTRIBUTES_MAX + 1][8];
    for (int i = 0; i <= BK_ATTRIBUTES_MAX; i++) {
        snprintf(names[i], sizeof names[i], "x%d", i);
        bk_attribute_set(attributes, names[i], 0.0);
    }
}

static void too_many_are_a_fault(void **state)
{
    bk_attributes a = {0};
    (void)state;
    bk_test_dies(overfill, &a, "too many attributes: x48");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures_are_set_and_replaced),
        cmocka_unit_test(nobody_wants_them),
        cmocka_unit_test(too_many_are_a_fault),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
