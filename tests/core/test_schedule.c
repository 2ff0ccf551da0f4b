/* Learning rates at the start, at the end of the warm-up, in the middle and at the end. */
#include "core/schedule.h"

#include "tests/support/check.h"

#include <math.h>
#include <string.h>

static const bk_schedule_kind *kind(const char *name)
{
    for (int i = 0; bk_schedules[i]; i++)
        if (strcmp(bk_schedules[i]->name, name) == 0)
            return bk_schedules[i];
    fail_msg("no schedule %s", name);
    return NULL;
}

static void check(const char *name, int64_t step, int64_t steps, int64_t warmup, double floor,
                  double expected)
{
    double factor = kind(name)->factor(step, steps, warmup, floor);
    bk_check_error(fabs(factor - expected), 1e-15, "%s at %d of %d after %d", name, (int)step,
                   (int)steps, (int)warmup);
}

static void values_by_hand(void **state)
{
    (void)state;
    check("constant", 0, 100, 0, 0.1, 1.0);
    check("constant", 4, 100, 10, 0.1, 0.5);
    check("constant", 99, 100, 10, 0.1, 1.0);
    check("linear", 0, 100, 0, 0.0, 1.0);
    check("linear", 25, 100, 0, 0.0, 0.75);
    check("linear", 55, 100, 10, 0.2, 0.6);
    check("linear", 100, 100, 10, 0.2, 0.2);
    check("cosine", 0, 100, 0, 0.0, 1.0);
    check("cosine", 25, 100, 0, 0.0, 0.5 * (1.0 + sqrt(0.5)));
    check("cosine", 50, 100, 0, 0.0, 0.5);
    check("cosine", 55, 100, 10, 0.2, 0.6);
    check("cosine", 100, 100, 10, 0.2, 0.2);
    check("cosine", 99, 100, 0, 0.0, 0.5 * (1.0 - cos(acos(-1.0) / 100.0)));
}

static void every_schedule_rises_and_then_falls(void **state)
{
    (void)state;
    for (int i = 0; bk_schedules[i]; i++) {
        const bk_schedule_kind *k = bk_schedules[i];
        for (int64_t warmup = 0; warmup <= 20; warmup += 5) {
            double before = 0.0;
            for (int64_t step = 0; step < 100; step++) {
                double factor = k->factor(step, 100, warmup, 0.1);
                if (step < warmup)
                    assert_true(factor == (double)(step + 1) / (double)warmup);
                else if (step == warmup)
                    assert_true(factor == 1.0);
                else
                    assert_true(factor <= before && factor >= 0.1);
                before = factor;
            }
        }
        assert_true(strlen(k->summary) > 0);
    }
}

/* A warm-up as long as the run, or longer, divides nothing by 0. */
static void a_run_may_be_all_warm_up(void **state)
{
    (void)state;
    for (int i = 0; bk_schedules[i]; i++) {
        assert_true(bk_schedules[i]->factor(9, 10, 10, 0.0) == 1.0);
        assert_true(bk_schedules[i]->factor(9, 10, 20, 0.0) == 0.5);
        assert_true(isfinite(bk_schedules[i]->factor(10, 10, 10, 0.0)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_by_hand),
        cmocka_unit_test(every_schedule_rises_and_then_falls),
        cmocka_unit_test(a_run_may_be_all_warm_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
