/* Named tensors: set, replace, need. */
#include "core/bundle.h"

#include "tests/support/check.h"
#include "tests/support/child.h"

static void names_find_their_tensor(void **state)
{
    bk_bundle b = {0};
    bk_tensor tokens = {0}, mask = {0}, other = {0};
    (void)state;
    assert_null(bk_bundle_get(&b, "tokens"));
    bk_bundle_set(&b, "tokens", &tokens);
    bk_bundle_set(&b, "mask", &mask);
    assert_ptr_equal(bk_bundle_get(&b, "tokens"), &tokens);
    assert_ptr_equal(bk_bundle_need(&b, "mask"), &mask);
    assert_null(bk_bundle_get(&b, "token"));
    bk_bundle_set(&b, "tokens", &other);
    assert_ptr_equal(bk_bundle_get(&b, "tokens"), &other);
    assert_int_equal(b.entries, 2);
}

static void need_nothing(void *bundle)
{
    bk_bundle_need(bundle, "labels");
}

static void overfill(void *bundle)
{
    static bk_tensor x;
    static char names[BK_BUNDLE_MAX + 1][8];
    for (int i = 0; i <= BK_BUNDLE_MAX; i++) {
        snprintf(names[i], sizeof names[i], "x%d", i);
        bk_bundle_set(bundle, names[i], &x);
    }
}

static void mistakes_are_faults(void **state)
{
    bk_bundle b = {0};
    (void)state;
    bk_test_dies(need_nothing, &b, "no tensor labels in the bundle");
    bk_test_dies(overfill, &b, "too many tensors in a bundle: x16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_find_their_tensor),
        cmocka_unit_test(mistakes_are_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
