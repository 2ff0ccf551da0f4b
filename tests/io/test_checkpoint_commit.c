/* test: labels=unit,io,fault */
/* A step that is saved again: one of the two always stands, and what a killed save set aside comes
 * back.  What checkpoint.verify_write sees. */
#include "core/fault.h"
#include "core/log.h"
#include "io/checkpoint_internal.h"
#include "io/files.h"
#include "tests/support/check.h"
#include "tests/support/checkpoint.h"
#include "tests/support/files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { STEP = 5 };

static bk_arena *arena;

static bool syncs_fail;

/* In the place of the library's. */
int fsync(int file)
{
    errno = EIO;
    return syncs_fail ? -1 : (int)syscall(SYS_fsync, file);
}

static const char *names_in(const char *directory)
{
    const char *all = "";
    for (char **names = bk_list_directory(arena, directory); *names; names++)
        all = bk_arena_printf(arena, "%s%s%s", all, *all ? " " : "", *names);
    return all;
}

static const char *fresh(const char *name)
{
    const char *path = bk_arena_strdup(arena, bk_test_path("%s/checkpoints", name));
    bk_save_options o = bk_test_options(1);
    assert_int_equal(bk_make_directories(path), BK_OK);
    bk_test_save(NULL, arena, path, STEP, 1, &o);
    return path;
}

static bk_status save_by(const char *directory, int version, const bk_save_options *options)
{
    bk_piece list[BK_TEST_TENSORS];
    bk_run_state state = bk_test_state(STEP);
    bk_saved saved;
    int64_t count = bk_test_pieces(arena, 0, 1, version, list);
    return bk_checkpoint_save(NULL, directory, list, count, &state, options, &saved);
}

static bk_status save_again(const char *directory, int version)
{
    bk_save_options options = bk_test_options(1);
    return save_by(directory, version, &options);
}

static void arm(const char *fault)
{
    setenv("BIRKHOFF_FAULT", fault, 1);
    assert_int_equal(bk_faults_read(0), BK_OK);
}

static void a_replacement_that_fails_leaves_the_older_one(void **state)
{
    (void)state;
    static const char *const fault[] = {"save.manifest:0:enospc", "save.aside:0:eio",
                                        "save.rename:0:eio", "save.rename_sync:0:eio"};
    const char *directory = fresh("failing");
    for (size_t i = 0; i < sizeof fault / sizeof *fault; i++) {
        arm(fault[i]);
        assert_int_equal(save_again(directory, 2), BK_FAULT);
        bk_test_check_newest(NULL, directory, STEP, 1);
        assert_string_equal(names_in(directory), "latest step-00000005");
    }
    arm("");
    assert_int_equal(save_again(directory, 2), BK_OK);
    bk_test_check_newest(NULL, directory, STEP, 2);
    assert_string_equal(names_in(directory), "latest step-00000005");
}

/* One of a tensor, between the writing and the digests: only reading it again tells. */
static void a_byte_that_changes_on_the_way(void **state)
{
    (void)state;
    const char *directory = fresh("flipped");
    bk_save_options options = bk_test_options(1);
    options.verify_write = true;
    arm("save.digest:0:bitflip=9000");
    assert_int_equal(save_by(directory, 2, &options), BK_FAULT);
    assert_non_null(strstr(bk_status_text(), "shard-00000.h5"));
    bk_test_check_newest(NULL, directory, STEP, 1);
    assert_string_equal(names_in(directory), "latest step-00000005");
    assert_int_equal(save_by(directory, 2, &options), BK_OK); /* it happened once */
    bk_test_check_newest(NULL, directory, STEP, 2);
    arm("");
}

static void set_aside(const char *directory)
{
    assert_int_equal(
        rename(bk_step_path(arena, directory, STEP), bk_aside_path(arena, directory, STEP)), 0);
}

static void what_was_set_aside_comes_back(void **state)
{
    (void)state;
    const char *directory = fresh("aside");
    set_aside(directory);
    bk_checkpoint_sweep(directory); /* it is no litter */
    assert_string_equal(names_in(directory), ".aside-step-00000005 latest");
    bk_checkpoint_restore(directory);
    bk_test_check_newest(NULL, directory, STEP, 1);
    assert_string_equal(names_in(directory), "latest step-00000005");
}

static void a_successor_stays(void **state)
{
    (void)state;
    const char *directory = fresh("replaced");
    for (int version = 2; version <= 3; version++) {
        set_aside(directory);
        assert_int_equal(save_again(directory, version), BK_OK);
        bk_checkpoint_restore(directory);
        bk_test_check_newest(NULL, directory, STEP, version);
        assert_true(bk_is_directory(bk_aside_path(arena, directory, STEP)));
        if (version == 2)
            bk_checkpoint_sweep(directory);
        else
            assert_int_equal(save_again(directory, 4), BK_OK);
        assert_string_equal(names_in(directory), "latest step-00000005");
    }
    bk_test_check_newest(NULL, directory, STEP, 4);
}

/* Until the successor's name is on the disk a crash may bring the older one back: it stays. */
static void nothing_goes_before_its_successor_is_durable(void **state)
{
    (void)state;
    const char *directory = fresh("unsynced");
    set_aside(directory);
    assert_int_equal(save_again(directory, 2), BK_OK);
    syncs_fail = true;
    bk_checkpoint_restore(directory);
    bk_checkpoint_sweep(directory);
    syncs_fail = false;
    assert_string_equal(names_in(directory), ".aside-step-00000005 latest step-00000005");
    bk_checkpoint_sweep(directory);
    assert_string_equal(names_in(directory), "latest step-00000005");
    bk_test_check_newest(NULL, directory, STEP, 2);
}

static void names_that_are_none(void **state)
{
    (void)state;
    const char *directory = bk_arena_strdup(arena, bk_test_path("names/checkpoints"));
    const char *foreign = bk_arena_printf(arena, "%s/.aside-step-5", directory);
    assert_int_equal(bk_make_directories(foreign), BK_OK);
    bk_checkpoint_restore(directory);
    bk_checkpoint_sweep(directory);
    assert_string_equal(names_in(directory), ".aside-step-5");
    bk_checkpoint_restore(bk_arena_printf(arena, "%s/nowhere", directory));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_replacement_that_fails_leaves_the_older_one),
        cmocka_unit_test(a_byte_that_changes_on_the_way),
        cmocka_unit_test(what_was_set_aside_comes_back),
        cmocka_unit_test(a_successor_stays),
        cmocka_unit_test(nothing_goes_before_its_successor_is_durable),
        cmocka_unit_test(names_that_are_none),
    };
    arena = bk_arena_new("test");
    bk_log_setup(BK_LOG_QUIET, false, false);
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
