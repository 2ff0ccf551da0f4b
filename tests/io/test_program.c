/* Another program: where it runs, what it writes, how it ends. */
#include "tests/support/check.h"
#include "tests/support/files.h"

#include "io/files.h"
#include "io/program.h"

#include <string.h>

static bk_arena *arena;
static const char *place;

static void refused(const char *const *argv, const char *text)
{
    assert_int_equal(bk_program_run(place, argv, "log"), BK_FAULT);
    if (!strstr(bk_status_text(), text))
        fail_msg("no '%s' in: %s", text, bk_status_text());
}

static void it_runs_there_and_writes_its_log(void **state)
{
    (void)state;
    char *text;
    size_t length;
    const char *const argv[] = {"sh", "-c", "echo out; echo err >&2; cat; echo $0 > made", "a $b",
                                NULL};
    assert_int_equal(bk_program_run(place, argv, "log"), BK_OK);
    assert_int_equal(bk_read_file(arena, bk_test_path("log"), &text, &length), BK_OK);
    assert_string_equal(text, "out\nerr\n"); /* and its input was empty */
    assert_int_equal(bk_read_file(arena, bk_test_path("made"), &text, &length), BK_OK);
    assert_string_equal(text, "a $b\n"); /* no shell between */
}

static void how_it_ends(void **state)
{
    (void)state;
    refused((const char *const[]){"sh", "-c", "echo first; echo no room; exit 3", NULL},
            "ended with 3 (sh): no room");
    refused((const char *const[]){"sh", "-c", "kill -9 $$", NULL},
            "was killed with 9 (sh): it wrote nothing");
    refused((const char *const[]){"no-such-program", NULL}, "cannot be started (no-such-program)");
    assert_int_equal(
        bk_program_run(bk_test_path("nowhere"), (const char *const[]){"true", NULL}, "log"),
        BK_FAULT);
}

static void what_is_found(void **state)
{
    (void)state;
    assert_true(bk_program_found("sh"));
    assert_false(bk_program_found("no-such-program"));
    assert_false(bk_program_found(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_runs_there_and_writes_its_log),
        cmocka_unit_test(how_it_ends),
        cmocka_unit_test(what_is_found),
    };
    arena = bk_arena_new("test");
    int failed = -1;
    if (bk_test_directory_make(NULL) == 0) {
        const char *file = bk_arena_strdup(arena, bk_test_path("x"));
        place = bk_arena_printf(arena, "%.*s", (int)strlen(file) - 2, file);
        failed = cmocka_run_group_tests(tests, NULL, bk_test_directory_remove);
    }
    bk_arena_free(arena);
    return failed;
}
