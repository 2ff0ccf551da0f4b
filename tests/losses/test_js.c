/* test: labels=unit,grad,golden timeout=60 */
#include "tests/support/check.h"
#include "tests/support/losses.h"

#include <math.h>
#include <string.h>

static void golden(void **state)
{
    (void)state;
    assert_int_equal(bk_test_loss_golden("js"), 4);
}

static void gradients(void **state)
{
    (void)state;
    bk_test_loss_gradient("js", "beta=0.3");
    bk_test_loss_gradient("js", "beta=0.9 t_squared=false temperature=1 reduction=sum");
}

/* Distributions as far apart as they can be: log 2, and never more. */
static void is_at_most_log_two(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(1, 4);
    bk_test_way w = {.dtype = BK_F64, .options = "t_squared=false"};
    for (double scale = 1.0; scale < 1e4; scale *= 3.0) {
        for (int v = 0; v < 4; v++) {
            b.student[v] = v == 1 ? scale : 0.0;
            b.teacher[v] = v == 2 ? scale : 0.0;
        }
        assert_true(bk_test_loss_value("js", &b, &w) <= log(2.0) + 1e-15);
    }
    assert_true(fabs(bk_test_loss_value("js", &b, &w) - log(2.0)) < 1e-12);
    bk_test_batch_free(&b);
}

static void is_symmetric_at_one_half(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(5, 9), swapped = b;
    swapped.student = b.teacher;
    swapped.teacher = b.student;
    bk_test_way even = {.dtype = BK_F64}, uneven = {.dtype = BK_F64, .options = "beta=0.3"},
                mirror = {.dtype = BK_F64, .options = "beta=0.7"};
    double x = bk_test_loss_value("js", &b, &even), y = bk_test_loss_value("js", &swapped, &even);
    bk_check_error(bk_test_error(1, &x, &y, 1e-30), 1e-13, "beta 0.5");
    x = bk_test_loss_value("js", &b, &uneven);
    y = bk_test_loss_value("js", &swapped, &mirror);
    bk_check_error(bk_test_error(1, &x, &y, 1e-30), 1e-13, "beta 0.3 and 0.7");
    y = bk_test_loss_value("js", &swapped, &uneven);
    assert_true(fabs(x - y) > 1e-4);
    bk_test_batch_free(&b);
}

static void refuse(const char *beta, const char *other)
{
    const bk_loss_kind *js = bk_loss_find("js");
    bk_arena *arena = bk_arena_new("test");
    bk_value *map = bk_value_new(arena, BK_MAP, "test", 0);
    void *config = bk_arena_zalloc(arena, js->config_size);
    assert_int_equal(bk_value_set(arena, map, "beta", beta), BK_OK);
    assert_int_equal(bk_options_read(js->options, config, map, "loss", arena), BK_OK);
    assert_int_equal(js->check(config, BK_F32), BK_USAGE);
    assert_non_null(strstr(bk_status_text(), other));
    bk_arena_free(arena);
}

static void ends_of_beta_are_refused(void **state)
{
    (void)state;
    refuse("0", "js is kl");
    refuse("1", "js is reverse_kl");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),
        cmocka_unit_test(gradients),
        cmocka_unit_test(is_at_most_log_two),
        cmocka_unit_test(is_symmetric_at_one_half),
        cmocka_unit_test(ends_of_beta_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
