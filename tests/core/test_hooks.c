/* The two ways upward: sums over ranks, and the poll that is called no more than every 50 us. */
#include "core/hooks.h"

#include "core/log.h"
#include "tests/support/check.h"

#include <unistd.h>

/* ---- sums ---- */

typedef struct calls {
    int vector, fixed, max;
} calls;

static void sum_vector(void *context, const bk_lanes *lanes, int64_t n, const double *local,
                       double *out)
{
    ((calls *)context)->vector++;
    for (int64_t j = 0; j < n; j++)
        out[j] = 100.0 * (double)lanes->count + local[j];
}

static void sum_fixed(void *context, int64_t n, int64_t *x)
{
    ((calls *)context)->fixed++;
    for (int64_t j = 0; j < n; j++)
        x[j] *= 2;
}

static void maximum(void *context, int64_t n, double *x)
{
    ((calls *)context)->max++;
    for (int64_t j = 0; j < n; j++)
        x[j] = 9.0;
}

static void one_rank_sums_its_lanes(void **state)
{
    const double local[3][2] = {{1e16, 1}, {1, 2}, {-1e16, 4}};
    double out[2], most[2] = {3, -4};
    int64_t fixed[2] = {5, -6};
    bk_lanes lanes = {.total = 4, .first = 1, .count = 3, .batch = 4};
    bk_arena *scratch = bk_arena_new("scratch");
    (void)state;
    bk_reduce_vector(NULL, &lanes, 2, local[0], out, scratch);
    assert_true(out[0] == (1e16 + 1.0) - 1e16 && out[1] == 7.0);
    bk_reduce_fixed(NULL, 2, fixed);
    assert_true(fixed[0] == 5 && fixed[1] == -6);
    bk_reduce_max(NULL, 2, most);
    assert_true(most[0] == 3 && most[1] == -4);
    bk_arena_free(scratch);
}

static void a_reducer_is_called(void **state)
{
    const double local[4] = {1, 2, 3, 4};
    double out[2], most[2] = {3, -4};
    int64_t fixed[2] = {5, -6};
    bk_lanes lanes = {.total = 4, .first = 0, .count = 2, .batch = 4};
    calls seen = {0};
    bk_reducer r = {&seen, sum_vector, sum_fixed, maximum};
    bk_arena *scratch = bk_arena_new("scratch");
    (void)state;
    bk_reduce_vector(&r, &lanes, 2, local, out, scratch);
    bk_reduce_fixed(&r, 2, fixed);
    bk_reduce_max(&r, 2, most);
    assert_true(seen.vector == 1 && seen.fixed == 1 && seen.max == 1);
    assert_true(out[0] == 201.0 && out[1] == 202.0);
    assert_true(fixed[0] == 10 && fixed[1] == -12 && most[0] == 9.0 && most[1] == 9.0);
    bk_arena_free(scratch);
}

/* ---- poll ---- */

static int polls;

static void count_poll(void)
{
    polls++;
}

static void polls_are_spaced(void **state)
{
    (void)state;
    bk_poll(); /* nothing to call yet */
    polls = 0;
    bk_set_poll(count_poll);
    double start = bk_seconds();
    while (bk_seconds() - start < 5e-3)
        bk_poll();
    double passed = bk_seconds() - start;
    bk_set_poll(NULL);
    assert_true(polls >= 1 && polls <= (int)(passed / 50e-6) + 1);
}

static void a_poll_after_a_pause_comes_through(void **state)
{
    (void)state;
    bk_set_poll(count_poll);
    for (int i = 0; i < 20; i++) {
        polls = 0;
        usleep(60);
        bk_poll();
        assert_int_equal(polls, 1);
    }
    bk_set_poll(NULL);
    usleep(60);
    bk_poll();
    assert_int_equal(polls, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_rank_sums_its_lanes),
        cmocka_unit_test(a_reducer_is_called),
        cmocka_unit_test(polls_are_spaced),
        cmocka_unit_test(a_poll_after_a_pause_comes_through),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
