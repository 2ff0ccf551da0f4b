/* test: labels=unit,io timeout=60 */
/* File systems: their names, their room, and a commit in small. */
#include "tests/support/check.h"

#include "io/files.h"
#include "io/storage.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void types_and_room(void **state)
{
    (void)state;
    bk_storage s;
    bk_storage_read("/proc/self", &s);
    assert_string_equal(s.type, "proc");
    bk_storage_read(".", &s);
    assert_true(strcmp(s.type, "unknown") != 0 && strcmp(s.type, "proc") != 0);
    assert_true(s.spare >= 0 && s.spare <= s.total);
    bk_storage_read("/nowhere/at/all", &s);
    assert_true(s.total == -1 && s.spare == -1);
    assert_string_equal(s.type, "unknown");
}

static void a_small_commit(void **state)
{
    (void)state;
    char directory[] = "/tmp/birkhoff-storage-XXXXXX";
    double seconds = -1.0;
    bk_arena *arena = bk_arena_new("test");
    assert_non_null(mkdtemp(directory));
    assert_int_equal(bk_storage_try(directory, &seconds), BK_OK);
    assert_true(seconds >= 0.0);
    assert_null(bk_list_directory(arena, directory)[0]);
    assert_int_equal(rmdir(directory), 0);
    assert_int_equal(bk_storage_try(directory, &seconds), BK_USAGE);
    assert_non_null(strstr(bk_status_text(), "No such file"));
    assert_int_equal(bk_storage_try("/proc", &seconds), BK_USAGE);
    bk_arena_free(arena);
}

static void rates_of_a_directory(void **state)
{
    (void)state;
    char directory[] = "/tmp/birkhoff-storage-XXXXXX";
    double write = -1.0, read = -1.0;
    bk_arena *arena = bk_arena_new("test");
    assert_non_null(mkdtemp(directory));
    for (int64_t bytes = 1; bytes < 20000000;
         bytes = bytes * 40 + 7) { /* less, and more than 4 MiB */
        assert_int_equal(bk_storage_rates(directory, bytes, &write, &read), BK_OK);
        assert_true(write > 0.0 && read > 0.0);
    }
    assert_null(bk_list_directory(arena, directory)[0]);
    assert_int_equal(rmdir(directory), 0);
    assert_int_equal(bk_storage_rates(directory, 10, &write, &read), BK_USAGE);
    assert_non_null(strstr(bk_status_text(), "No such file"));
    bk_arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(types_and_room),
        cmocka_unit_test(a_small_commit),
        cmocka_unit_test(rates_of_a_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
