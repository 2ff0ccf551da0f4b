/* Which steps are left out for their gradient. */
#include "tests/support/check.h"

#include "jobs/spike.h"

/* About 1, with a deviation of 0.1. */
static double usual(int i)
{
    return 1.0 + (i % 2 ? 0.1 : -0.1);
}

static bk_spike_state after(int steps)
{
    bk_spike_state s = {0};
    for (int i = 0; i < steps; i++)
        assert_false(bk_spike_seen(&s, 6.0, usual(i)));
    return s;
}

static void usual_steps_make_mean_and_variance(void **state)
{
    (void)state;
    bk_spike_state s = after(90);
    bk_check_error(s.mean - 1.0, 1e-12, "mean");
    bk_check_error(s.variance - 0.01, 1e-12, "variance");
}

static void a_spike_is_left_out_and_not_learned(void **state)
{
    (void)state;
    bk_spike_state s = after(90), before = s;
    assert_false(bk_spike_seen(&s, 6.0, 1.59)); /* 5.9 deviations */
    s = before;
    assert_true(bk_spike_seen(&s, 6.0, 1.61));
    assert_true(s.mean == before.mean && s.variance == before.variance && s.seen == before.seen);
    assert_false(bk_spike_seen(&s, 6.0, 0.2)); /* small ones are none */
}

static void a_new_level_is_believed(void **state)
{
    (void)state;
    bk_spike_state s = after(90);
    for (int i = 0; i < BK_SPIKES_IN_A_ROW; i++)
        assert_true(bk_spike_seen(&s, 6.0, 50.0));
    assert_false(bk_spike_seen(&s, 6.0, 50.0));
    assert_true(s.mean > 1.4);
}

static void never_at_the_beginning_or_when_off(void **state)
{
    (void)state;
    bk_spike_state s = after(BK_SPIKE_WARMUP - 1), off = after(90);
    assert_false(bk_spike_seen(&s, 6.0, 1e6));
    assert_false(bk_spike_seen(&off, 0.0, 1e6));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(usual_steps_make_mean_and_variance),
        cmocka_unit_test(a_spike_is_left_out_and_not_learned),
        cmocka_unit_test(a_new_level_is_believed),
        cmocka_unit_test(never_at_the_beginning_or_when_off),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
