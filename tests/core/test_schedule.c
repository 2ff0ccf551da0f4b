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

static bk_arena *arena;

/* The configuration of a kind, from "key=value" (NULL: defaults). */
static const void *config_of(const bk_schedule_kind *k, const char *key, const char *value)
{
    bk_value *map = bk_value_new(arena, BK_MAP, "test", 0);
    void *config = bk_arena_zalloc(arena, k->config_size + 1);
    if (key)
        assert_int_equal(bk_value_set(arena, map, key, value), BK_OK);
    if (k->options)
        assert_int_equal(bk_options_read(k->options, config, map, "schedule", arena), BK_OK);
    return config;
}

static double factor_of(const bk_schedule_kind *k, int64_t step, int64_t steps, int64_t warmup,
                        double floor)
{
    return k->factor(step, steps, warmup, floor, config_of(k, NULL, NULL));
}

static void check(const char *name, int64_t step, int64_t steps, int64_t warmup, double floor,
                  double expected)
{
    double factor = factor_of(kind(name), step, steps, warmup, floor);
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

static void drops_at_their_steps(void **state)
{
    (void)state;
    const bk_schedule_kind *k = kind("drop");
    const void *config = config_of(k, "at", "30, 45");
    static const struct {
        int64_t step;
        double factor;
    } row[] = {{0, 0.25}, {3, 1.0}, {29, 1.0}, {30, 0.1}, {44, 0.1}, {45, 0.01}, {99, 0.01}};
    assert_int_equal(k->check(config), BK_OK);
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        bk_check_error(fabs(k->factor(row[i].step, 100, 4, 0.0, config) - row[i].factor), 1e-15,
                       "drop at %d", (int)row[i].step);
    static const char *const good[] = {"", "7", "0 1", "3,4 5", " 3 "}, *const bad[] = {
                                                                            "5 5", "7 3", "-1",
                                                                            "x",   "3 x", "3x",
                                                                            "1.5", ","};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (k->check(config_of(k, "at", good[i])) != BK_OK)
            fail_msg("'%s': %s", good[i], bk_status_text());
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (k->check(config_of(k, "at", bad[i])) != BK_USAGE)
            fail_msg("'%s' is taken", bad[i]);
}

static void every_schedule_rises_and_then_falls(void **state)
{
    (void)state;
    for (int i = 0; bk_schedules[i]; i++) {
        const bk_schedule_kind *k = bk_schedules[i];
        for (int64_t warmup = 0; warmup <= 20; warmup += 5) {
            double before = 0.0;
            for (int64_t step = 0; step < 100; step++) {
                double factor = factor_of(k, step, 100, warmup, 0.1);
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
        assert_true(factor_of(bk_schedules[i], 9, 10, 10, 0.0) == 1.0);
        assert_true(factor_of(bk_schedules[i], 9, 10, 20, 0.0) == 0.5);
        assert_true(isfinite(factor_of(bk_schedules[i], 10, 10, 10, 0.0)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_by_hand),
        cmocka_unit_test(drops_at_their_steps),
        cmocka_unit_test(every_schedule_rises_and_then_falls),
        cmocka_unit_test(a_run_may_be_all_warm_up),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_arena_free(arena);
    return failed;
}
