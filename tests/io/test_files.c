/* test: labels=unit,mpi ranks=1,2 timeout=180 */
/* Files and directories: what is read and written, and how trouble is told. */
#include "io/files.h"
#include "tests/support/check.h"
#include "tests/support/files.h"
#include "tests/support/some_ranks.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static bk_arena *arena;

static void says(const char *word)
{
    if (!strstr(bk_status_text(), word))
        fail_msg("no '%s' in: %s", word, bk_status_text());
}

static const char *path_of(const char *name)
{
    return bk_arena_strdup(arena, bk_test_path("%s", name));
}

static void directories(void **state)
{
    (void)state;
    const char *deep = path_of("a/b"), *file = path_of("file");
    deep = bk_arena_printf(arena, "%s/c/d//e", deep);
    assert_int_equal(bk_make_directories(deep), BK_OK);
    assert_int_equal(bk_make_directories(deep), BK_OK);
    assert_true(bk_is_directory(deep));
    bk_test_write_text(file, "x");
    assert_int_equal(bk_make_directories(bk_arena_printf(arena, "%s/below", file)), BK_USAGE);
    says("below");
    assert_int_equal(bk_make_directories(file), BK_USAGE);
    assert_false(bk_is_directory(file));
    assert_int_equal(bk_file_size(file), 1);
    assert_int_equal(bk_file_size(deep), -1);
    assert_int_equal(bk_file_size(path_of("nowhere")), -1);
    char *longest = bk_arena_zalloc(arena, 6001);
    memset(longest, 'x', 6000);
    assert_int_equal(bk_make_directories(longest), BK_USAGE);
    says("too long");
    assert_int_equal(bk_write_text(longest, "x"), BK_USAGE);
    assert_int_equal(bk_check_output(longest), BK_USAGE);
}

static void whole_files(void **state)
{
    (void)state;
    char *text;
    size_t length;
    const char *path = path_of("whole");
    bk_test_write(path, "a\0b\n", 4);
    assert_int_equal(bk_read_file(arena, path, &text, &length), BK_OK);
    assert_int_equal(length, 4);
    assert_memory_equal(text, "a\0b\n", 5);
    bk_test_write(path, "", 0);
    assert_int_equal(bk_read_file(arena, path, &text, &length), BK_OK);
    assert_int_equal(length, 0);
    assert_string_equal(text, "");
    assert_int_equal(bk_read_file(arena, path_of("nowhere"), &text, &length), BK_INPUT);
    says("No such file");
    const char *place = path_of("dir/x");
    assert_int_equal(bk_read_file(arena,
                                  bk_arena_printf(arena, "%.*s", (int)strlen(place) - 2, place),
                                  &text, &length),
                     BK_INPUT);
    says("not a plain file");
}

static void written_texts(void **state)
{
    (void)state;
    const char *path = path_of("text");
    size_t bytes;
    assert_int_equal(bk_write_text(path, "first"), BK_OK);
    assert_int_equal(bk_write_text(path, "second\n"), BK_OK);
    char *text = bk_test_read(path, &bytes);
    assert_string_equal(text, "second\n");
    free(text);
    assert_int_equal(bk_file_size(bk_arena_printf(arena, "%s.tmp", path)), -1);
    assert_int_equal(bk_write_text(bk_arena_printf(arena, "%s/x", path), "x"), BK_USAGE);
    says("Not a directory");
    /* a directory with the name: the rename fails, the temporary file is removed */
    const char *place = path_of("taken/x");
    const char *taken = bk_arena_printf(arena, "%.*s", (int)strlen(place) - 2, place);
    assert_int_equal(bk_write_text(taken, "x"), BK_USAGE);
    assert_int_equal(bk_file_size(bk_arena_printf(arena, "%s.tmp", taken)), -1);
}

static void outputs(void **state)
{
    (void)state;
    const char *place = path_of("out/x");
    const char *directory = bk_arena_printf(arena, "%.*s", (int)strlen(place) - 2, place);
    assert_int_equal(bk_check_output(place), BK_OK);
    assert_int_equal(bk_check_output(directory), BK_USAGE);
    says("is a directory");
    assert_int_equal(bk_check_output(bk_arena_printf(arena, "%s/none/x", directory)), BK_USAGE);
    says("does not exist");
    if (geteuid() == 0)
        return; /* root may write everywhere */
    assert_int_equal(chmod(directory, 0500), 0);
    assert_int_equal(bk_check_output(place), BK_USAGE);
    says("Permission denied");
    chmod(directory, 0700);
}

static void lists(void **state)
{
    (void)state;
    static const char *const names[] = {"b", "a", ".c", "d10", "d9"}, *const sorted[] = {".c", "a",
                                                                                         "b", "d10",
                                                                                         "d9"};
    for (int i = 0; i < 5; i++)
        bk_test_write_text(bk_test_path("list/%s", names[i]), "");
    const char *place = path_of("list/x");
    const char *directory = bk_arena_printf(arena, "%.*s", (int)strlen(place) - 2, place);
    char **found = bk_list_directory(arena, directory);
    for (int i = 0; i < 5; i++)
        assert_string_equal(found[i], sorted[i]);
    assert_null(found[5]);
    assert_null(bk_list_directory(arena, path_of("nowhere"))[0]);
    bk_remove_directory(directory);
    assert_false(bk_is_directory(directory));
    for (int i = 0; i < 200; i++)
        bk_test_write_text(bk_test_path("many/%d", i), "");
    place = path_of("many/x");
    found = bk_list_directory(arena, bk_arena_printf(arena, "%.*s", (int)strlen(place) - 2, place));
    for (int i = 0; i < 200; i++)
        assert_non_null(found[i]);
    assert_null(found[200]);
}

/* A second process does not get the lock; when the first ends, it is free. */
static void locks(void **state)
{
    (void)state;
    const char *path = path_of("run.lock");
    int ready[2], go[2], status;
    char byte = 0;
    assert_int_equal(pipe(ready) | pipe(go), 0);
    pid_t child = fork();
    if (child == 0) { /* holds the lock until it is told to end */
        byte = bk_lock_file(path, "child") == BK_OK;
        if (write(ready[1], &byte, 1) != 1 || read(go[0], &byte, 1) != 1)
            _exit(1);
        _exit(0);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_int_equal(byte, 1);
    assert_int_equal(bk_lock_file(path, "second"), BK_USAGE);
    says("another job");
    size_t bytes;
    char *owner = bk_test_read(path, &bytes);
    assert_int_equal(strncmp(owner, "child ", 6), 0);
    free(owner);
    assert_int_equal(write(go[1], &byte, 1), 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(bk_lock_file(path, "second"), BK_OK);
    for (int i = 0; i < 2; i++) {
        close(ready[i]);
        close(go[i]);
    }
}

static void durable_or_an_error(void **state)
{
    (void)state;
    const char *path = path_of("sync");
    bk_test_write_text(path, "x");
    assert_int_equal(bk_sync_file(path), BK_OK);
    assert_int_equal(bk_sync_parent(path), BK_OK);
    assert_int_equal(bk_sync_directory(path), BK_FAULT); /* not a directory */
    assert_int_equal(bk_sync_file(path_of("nowhere")), BK_FAULT);
    says("nowhere");
}

/* Collective: rank 0 reads for all. */
static void a_text_for_every_rank(void **state)
{
    (void)state;
    static char path[4096];
    char *text;
    if (bk_mpi_rank() == 0) {
        snprintf(path, sizeof path, "%s", path_of("everywhere"));
        bk_test_write_text(path, "run: {seed: 1}\n");
    }
    bk_test_broadcast(path, sizeof path);
    assert_int_equal(bk_read_text_everywhere(arena, path, &text), BK_OK);
    assert_string_equal(text, "run: {seed: 1}\n");
    strcat(path, "-not");
    assert_int_equal(bk_read_text_everywhere(arena, path, &text), BK_USAGE);
    says("everywhere-not");
    setenv("BIRKHOFF_NODE_RANKS", "none", 1); /* no communicators: no read */
    assert_int_equal(bk_read_text_everywhere(arena, path, &text), BK_USAGE);
    unsetenv("BIRKHOFF_NODE_RANKS");
    says("BIRKHOFF_NODE_RANKS is 'none'");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(directories),
        cmocka_unit_test(whole_files),
        cmocka_unit_test(written_texts),
        cmocka_unit_test(outputs),
        cmocka_unit_test(lists),
        cmocka_unit_test(locks),
        cmocka_unit_test(durable_or_an_error),
        cmocka_unit_test(a_text_for_every_rank),
    };
    arena = bk_arena_new("test");
    return bk_test_run_ranks(argc, argv, tests, bk_test_directory_make, bk_test_directory_remove);
}
