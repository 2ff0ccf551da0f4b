/* test: labels=unit,io timeout=180 */
/* The small groups of shard 0 come back as they were. */
#include "io/checkpoint_internal.h"
#include "tests/support/check.h"
#include "tests/support/checkpoint.h"
#include "tests/support/files.h"

#include <math.h>
#include <string.h>

static bk_arena *arena;

static bk_run_state round_trip(const bk_run_state *s, const char *name)
{
    bk_run_state out = {0};
    bk_h5 *file;
    const char *path = bk_test_path("%s", name);
    assert_int_equal(bk_h5_create(arena, path, &file), BK_OK);
    assert_int_equal(bk_state_write(file, s, "cafe"), BK_OK);
    assert_int_equal(bk_h5_close(file), BK_OK);
    assert_int_equal(bk_h5_open(arena, path, &file), BK_OK);
    assert_int_equal(bk_state_read(file, arena, &out), BK_OK);
    assert_int_equal(bk_h5_close(file), BK_OK);
    return out;
}

static void everything_comes_back(void **state)
{
    (void)state;
    bk_run_state s = bk_test_state(12);
    s.moments_from = 7;
    s.seed = UINT64_MAX; /* not representable as a double, nor as int64 */
    s.vocabulary_digest = "abc123";
    bk_run_state r = round_trip(&s, "a.h5");
    assert_int_equal(r.step, s.step);
    assert_int_equal(r.samples_seen, s.samples_seen);
    assert_int_equal(r.tokens_seen, s.tokens_seen);
    assert_int_equal(r.updates_skipped, s.updates_skipped);
    assert_int_equal(r.moments_from, s.moments_from);
    assert_int_equal(r.epoch, s.epoch);
    assert_int_equal(r.cursor, s.cursor);
    assert_true(r.seed == s.seed);
    assert_true(r.best_value == s.best_value);
    assert_int_equal(r.best_step, s.best_step);
    assert_string_equal(r.data_path, s.data_path);
    assert_string_equal(r.data_digest, s.data_digest);
    assert_string_equal(r.vocabulary_digest, s.vocabulary_digest);
    assert_string_equal(r.config, s.config); /* byte for byte */
    assert_non_null(strstr(r.machine, "P: 2"));
    assert_non_null(strstr(r.machine, "kernels: avx2"));
    assert_non_null(strstr(r.machine, "run_id: cafe"));
}

static void unusual_states(void **state)
{
    (void)state;
    bk_run_state s = {.best_value = NAN, .best_step = -1}; /* no texts at all */
    bk_run_state r = round_trip(&s, "b.h5");
    assert_true(isnan(r.best_value));
    assert_int_equal(r.best_step, -1);
    assert_string_equal(r.config, "");
    assert_string_equal(r.data_path, "");
    assert_string_equal(r.vocabulary_digest, "");
    char *config = bk_arena_zalloc(arena, 300001); /* longer than an attribute may be */
    memset(config, 'x', 300000);
    s.config = config;
    s.machine = "no colon here\n\nkey: value: more";
    r = round_trip(&s, "c.h5");
    assert_string_equal(r.config, config);
    assert_non_null(strstr(r.machine, "key: value: more"));
    assert_null(strstr(r.machine, "no colon"));
}

static void a_group_is_missing(void **state)
{
    (void)state;
    bk_run_state out;
    bk_h5 *file;
    assert_int_equal(bk_h5_create(arena, bk_test_path("d.h5"), &file), BK_OK);
    assert_int_equal(bk_h5_close(file), BK_OK);
    assert_int_equal(bk_h5_open(arena, bk_test_path("d.h5"), &file), BK_OK);
    assert_int_equal(bk_state_read(file, arena, &out), BK_INPUT);
    assert_non_null(strstr(bk_status_text(), "/step"));
    assert_int_equal(bk_h5_close(file), BK_INPUT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_comes_back),
        cmocka_unit_test(unusual_states),
        cmocka_unit_test(a_group_is_missing),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
