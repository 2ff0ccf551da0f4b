/* test: labels=unit,mpi,io ranks=1,3 timeout=300 */
/* What is believed: the newest whole checkpoint, after every kind of damage; and checkpoints of
 * released versions for ever. */
#include "core/log.h"
#include "io/checkpoint_internal.h"
#include "io/files.h"
#include "tests/support/check.h"
#include "tests/support/checkpoint.h"
#include "tests/support/files.h"
#include "tests/support/some_ranks.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bk_arena *arena;
static bk_comm *comm;
static char shared[4096];

static int begin(void **state)
{
    int failed = bk_mpi_rank() == 0 ? bk_test_directory_make(state) : 0;
    if (bk_mpi_rank() == 0)
        snprintf(shared, sizeof shared, "%s", bk_test_path("x"));
    bk_test_broadcast(shared, sizeof shared);
    *strrchr(shared, '/') = '\0';
    bk_log_setup(BK_LOG_QUIET, bk_mpi_rank() == 0, false);
    comm = bk_test_comm_open(arena, bk_mpi_size());
    return failed;
}

static int end(void **state)
{
    bk_test_comm_close(comm);
    bk_test_barrier();
    return bk_mpi_rank() == 0 ? bk_test_directory_remove(state) : 0;
}

/* A directory with steps 9, 10 and 100000000 of versions 1, 2 and 3; names sort otherwise. */
static const char *fresh(const char *name)
{
    const char *path = bk_arena_printf(arena, "%s/%s", shared, name);
    bk_save_options o = bk_test_options(2);
    if (bk_mpi_rank() == 0)
        assert_int_equal(bk_make_directories(path), BK_OK);
    bk_test_barrier();
    bk_test_save(comm, arena, path, 9, 1, &o);
    bk_test_save(comm, arena, path, 10, 2, &o);
    bk_test_save(comm, arena, path, 100000000, 3, &o);
    bk_test_barrier();
    return path;
}

static const char *in_newest(const char *directory, const char *file)
{
    return bk_arena_printf(arena, "%s/step-100000000/%s", directory, file);
}

/* The last shard; with one rank it is the only one. */
static const char *last_shard(const char *directory)
{
    return in_newest(directory, bk_mpi_size() == 1 ? "shard-00000.h5" : "shard-00001.h5");
}

/* After damage: the step before is used; strict refuses, with the name and the reason. */
static void falls_back(const char *directory, const char *reason)
{
    bk_checkpoint *c;
    bk_test_barrier();
    bk_test_check_newest(comm, directory, 10, 2);
    assert_int_equal(
        bk_checkpoint_find(comm, arena, directory, (bk_find_options){.strict = true}, &c),
        BK_INPUT);
    if (!strstr(bk_status_text(), "step-100000000") || !strstr(bk_status_text(), reason))
        fail_msg("no '%s' in: %s", reason, bk_status_text());
    bk_test_barrier();
}

static void the_newest_by_number(void **state)
{
    (void)state;
    const char *directory = fresh("newest");
    bk_test_check_newest(comm, directory, 100000000, 3);
    bk_checkpoint *c;
    assert_int_equal(
        bk_checkpoint_find(comm, arena, directory, (bk_find_options){.strict = true}, &c), BK_OK);
    const bk_run_state *s = bk_checkpoint_state(c), wanted = bk_test_state(100000000);
    assert_int_equal(s->cursor, wanted.cursor);
    assert_string_equal(s->config, wanted.config);
    assert_int_equal(s->lanes, wanted.lanes);
    assert_int_equal(s->world_size, bk_mpi_size());
    assert_int_equal(bk_checkpoint_tensors(c), BK_TEST_TENSORS);
}

static void nothing_is_no_error(void **state)
{
    (void)state;
    bk_checkpoint *c;
    assert_int_equal(bk_checkpoint_find(comm, arena, bk_arena_printf(arena, "%s/none", shared),
                                        (bk_find_options){0}, &c),
                     BK_OK);
    assert_null(c);
    assert_int_equal(bk_checkpoint_open(comm, arena, bk_arena_printf(arena, "%s/none", shared),
                                        BK_CHECK_SHA256, &c),
                     BK_INPUT);
    assert_int_equal(bk_checkpoint_open(comm, arena, shared, BK_CHECK_SHA256, &c), BK_INPUT);
}

/* ---- damage, one kind after the other, each on a fresh directory ---- */

static void missing_and_short_files(void **state)
{
    (void)state;
    const char *a = fresh("missing-shard"), *b = fresh("short-shard"), *c = fresh("no-manifest"),
               *d = fresh("short-manifest"), *e = fresh("empty-manifest"), *f = fresh("long-shard");
    if (bk_mpi_rank() == 0) {
        unlink(last_shard(a));
        bk_test_cut(last_shard(b), (size_t)bk_file_size(last_shard(b)) - 1);
        unlink(in_newest(c, "manifest.json"));
        bk_test_cut(in_newest(d, "manifest.json"), 1000);
        bk_test_cut(in_newest(e, "manifest.json"), 0);
        bk_test_cut(last_shard(f), (size_t)bk_file_size(last_shard(f)) + 1);
    }
    falls_back(a, "is missing");
    falls_back(b, "bytes, the manifest says");
    falls_back(c, "manifest.json");
    falls_back(d, "damaged");
    falls_back(e, "damaged");
    falls_back(f, "bytes, the manifest says");
}

static void changed_files(void **state)
{
    (void)state;
    const char *a = fresh("flipped"), *b = fresh("other-step"), *c = fresh("renamed");
    if (bk_mpi_rank() == 0) {
        bk_test_flip(last_shard(a), (size_t)bk_file_size(last_shard(a)) / 2, 5);
        size_t bytes;
        char *data =
            bk_test_read(bk_arena_printf(arena, "%s/step-00000010/shard-00000.h5", b), &bytes);
        bk_test_write(in_newest(b, "shard-00000.h5"), data, bytes);
        free(data);
        bk_test_remove_tree(bk_arena_printf(arena, "%s/step-100000000", c));
        bk_test_copy_directory(bk_arena_printf(arena, "%s/step-00000009", c),
                               bk_arena_printf(arena, "%s/step-100000000", c));
    }
    falls_back(a, "digest differs");
    falls_back(b, "shard-00000.h5");
    falls_back(c, "of step 9");
}

/* ---- what is checked ---- */

static int64_t newest_by(const char *directory, bk_checkpoint_check check)
{
    bk_checkpoint *c;
    assert_int_equal(
        bk_checkpoint_find(comm, arena, directory, (bk_find_options){.check = check}, &c), BK_OK);
    return bk_checkpoint_state(c)->step;
}

/* Another digest of the first shard in the newest manifest, which stays whole otherwise. */
static void change_digest(const char *directory, bool fast)
{
    const char *path = bk_step_path(arena, directory, 100000000);
    bk_manifest m;
    assert_int_equal(bk_manifest_load(arena, path, &m), BK_OK);
    bk_file_digest *d = &m.shard[0].digest;
    char *first = fast ? d->xxh64 : d->sha256;
    *first = *first == '0' ? '1' : '0';
    bk_test_write_text(in_newest(directory, "manifest.json"), bk_manifest_text(arena, &m));
}

static void each_digest_by_itself(void **state)
{
    (void)state;
    const char *a = fresh("other-sha256"), *b = fresh("other-xxh64"), *c = fresh("flip");
    if (bk_mpi_rank() == 0) {
        change_digest(a, false);
        change_digest(b, true);
        bk_test_flip(last_shard(c), (size_t)bk_file_size(last_shard(c)) - 1, 5);
    }
    bk_test_barrier();
    assert_int_equal(newest_by(a, BK_CHECK_SHA256), 10);
    assert_int_equal(newest_by(a, BK_CHECK_XXH64), 100000000);
    assert_int_equal(newest_by(b, BK_CHECK_SHA256), 100000000);
    assert_int_equal(newest_by(b, BK_CHECK_XXH64), 10);
    assert_int_equal(newest_by(c, BK_CHECK_SHA256), 10);
    assert_int_equal(newest_by(c, BK_CHECK_XXH64), 10);
    assert_int_equal(newest_by(b, BK_CHECK_SIZE), 100000000);
}

/* A checkpoint of a former process, damaged, that was loaded by its sizes alone: it does not count
 * as one of the valid ones, and stays. */
static void sizes_are_no_reason_to_retain(void **state)
{
    (void)state;
    const char *directory = bk_arena_printf(arena, "%s/by-size", shared);
    const char *old = bk_arena_printf(arena, "%s/step-00000003", directory);
    bk_save_options o = bk_test_options(1);
    o.keep = 2;
    if (bk_mpi_rank() == 0) {
        bk_test_copy_directory(
            bk_arena_printf(arena, "%s/tests/golden/checkpoints/v1.0", getenv("BIRKHOFF_SOURCE")),
            old);
        bk_test_flip(bk_arena_printf(arena, "%s/shard-00000.h5", old), 9000, 3);
    }
    bk_test_barrier();
    assert_int_equal(newest_by(directory, BK_CHECK_SIZE), 3);
    for (int64_t step = 4; step <= 6; step++)
        bk_test_save(comm, arena, directory, step, 1, &o);
    bk_test_barrier();
    assert_true(bk_is_directory(old));
    assert_false(bk_is_directory(bk_step_path(arena, directory, 4)));
}

static void swapped_shards(void **state)
{
    (void)state;
    if (bk_mpi_size() == 1)
        return; /* there is only one */
    const char *a = fresh("swapped");
    if (bk_mpi_rank() == 0) {
        const char *x = in_newest(a, "shard-00000.h5"), *y = in_newest(a, "shard-00001.h5"),
                   *z = in_newest(a, "z");
        assert_int_equal(rename(x, z) | rename(y, x) | rename(z, y), 0);
    }
    falls_back(a, "shard-0000");
}

static void edited_manifest(void **state)
{
    (void)state;
    const char *a = fresh("edited");
    if (bk_mpi_rank() == 0) {
        size_t bytes;
        char *text = bk_test_read(in_newest(a, "manifest.json"), &bytes);
        strstr(text, "\"world_size\":")[strlen("\"world_size\":")] = '7';
        bk_test_write(in_newest(a, "manifest.json"), text, bytes);
        free(text);
    }
    falls_back(a, "its digest differs");
}

static void all_damaged_is_never_a_fresh_start(void **state)
{
    (void)state;
    const char *directory = fresh("all");
    if (bk_mpi_rank() == 0) {
        unlink(in_newest(directory, "manifest.json"));
        bk_test_cut(bk_arena_printf(arena, "%s/step-00000010/shard-00000.h5", directory), 5000);
        unlink(bk_arena_printf(arena, "%s/step-00000009/shard-00000.h5", directory));
    }
    bk_test_barrier();
    bk_checkpoint *c;
    assert_int_equal(bk_checkpoint_find(comm, arena, directory, (bk_find_options){0}, &c),
                     BK_INPUT);
    const char *const named[] = {"step-100000000", "step-00000010", "step-00000009", "5000 bytes"};
    for (int i = 0; i < 4; i++)
        if (!strstr(bk_status_text(), named[i]))
            fail_msg("no '%s' in: %s", named[i], bk_status_text());
}

/* `latest` is a hint, temporary and foreign names are never read. */
static void names_that_do_not_count(void **state)
{
    (void)state;
    const char *directory = fresh("names");
    if (bk_mpi_rank() == 0) {
        bk_test_write_text(bk_arena_printf(arena, "%s/latest", directory), "step-00000777\n");
        static const char *const other[] = {".tmp-step-200000000.aa.0", ".trash-step-200000001.a.1",
                                            "step-2000000000x", "step-7", "steps"};
        for (int i = 0; i < 5; i++)
            bk_test_copy_directory(bk_arena_printf(arena, "%s/step-100000000", directory),
                                   bk_arena_printf(arena, "%s/%s", directory, other[i]));
    }
    bk_test_barrier();
    bk_test_check_newest(comm, directory, 100000000, 3);
    if (bk_mpi_rank() == 0)
        bk_test_cut(bk_arena_printf(arena, "%s/latest", directory), 0);
    bk_test_barrier();
    bk_test_check_newest(comm, directory, 100000000, 3);
    if (bk_mpi_rank() == 0)
        unlink(bk_arena_printf(arena, "%s/latest", directory));
    bk_test_barrier();
    bk_test_check_newest(comm, directory, 100000000, 3);
}

/* Left between the two renames of a save that was killed: it is read where it stands. */
static void set_aside(void **state)
{
    (void)state;
    const char *directory = fresh("aside");
    const char *from = bk_step_path(arena, directory, 100000000),
               *to = bk_aside_path(arena, directory, 100000000);
    int64_t *steps;
    bk_checkpoint *c;
    if (bk_mpi_rank() == 0)
        assert_int_equal(rename(from, to), 0);
    bk_test_barrier();
    bk_test_check_newest(comm, directory, 100000000, 3);
    assert_int_equal(bk_checkpoint_open(comm, arena, directory, BK_CHECK_SHA256, &c), BK_OK);
    assert_string_equal(bk_checkpoint_path(c), to);
    assert_int_equal(bk_list_steps(arena, directory, &steps), 3);
    assert_int_equal(steps[0], 100000000);
    bk_test_barrier();
    assert_true(bk_is_directory(to) && !bk_is_directory(from));
    bk_test_barrier();
    if (bk_mpi_rank() == 0) /* its successor is in place */
        bk_test_copy_directory(to, from);
    bk_test_barrier();
    assert_int_equal(bk_list_steps(arena, directory, &steps), 3);
    assert_int_equal(bk_checkpoint_open(comm, arena, directory, BK_CHECK_SHA256, &c), BK_OK);
    assert_string_equal(bk_checkpoint_path(c), from);
}

/* It is believed as little as any other. */
static void damaged_aside(void **state)
{
    (void)state;
    const char *a = fresh("aside-flipped"), *b = fresh("aside-renamed");
    if (bk_mpi_rank() == 0) {
        bk_test_flip(last_shard(a), (size_t)bk_file_size(last_shard(a)) / 2, 5);
        rename(bk_step_path(arena, a, 100000000), bk_aside_path(arena, a, 100000000));
        bk_test_remove_tree(bk_step_path(arena, b, 100000000));
        bk_test_copy_directory(bk_step_path(arena, b, 9), bk_aside_path(arena, b, 100000000));
    }
    falls_back(a, "digest differs");
    falls_back(b, "of step 9");
}

static void steps_of_names(void **state)
{
    (void)state;
    assert_int_equal(bk_step_of("step-00000500"), 500);
    assert_int_equal(bk_step_of("step-123456789"), 123456789);
    static const char *const none[] = {
        "step-500", "step-00000500.h5",         ".tmp-step-00000500.a.0", "step-0000050a", "latest",
        "step-",    "step-99999999999999999999"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_int_equal(bk_step_of(none[i]), -1);
    assert_string_equal(bk_step_path(arena, "d", 7), "d/step-00000007");
}

/* ---- paths a user names ---- */

static void a_run_or_a_checkpoint(void **state)
{
    (void)state;
    const char *run = bk_arena_printf(arena, "%s/run", shared);
    const char *directory = fresh("run/checkpoints");
    bk_checkpoint *c;
    const char *const path[] = {run, directory,
                                bk_arena_printf(arena, "%s/step-00000010", directory)};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(bk_checkpoint_open(comm, arena, path[i], BK_CHECK_SHA256, &c), BK_OK);
        assert_int_equal(bk_checkpoint_state(c)->step, i < 2 ? 100000000 : 10);
    }
    bk_test_barrier();
    if (bk_mpi_rank() == 0)
        unlink(bk_arena_printf(arena, "%s/shard-00000.h5", path[2]));
    bk_test_barrier();
    assert_int_equal(bk_checkpoint_open(comm, arena, path[2], BK_CHECK_SHA256, &c), BK_INPUT);
    assert_non_null(strstr(bk_status_text(), "shard-00000.h5 is missing"));
}

/* ---- released versions ---- */

static void golden_checkpoints_load(void **state)
{
    (void)state;
    static const char digest[] = "490fb2d326e2394de6c3a72c153a718edac70a669bf9acfbe881eeb5b8e9272f";
    const char *path =
        bk_arena_printf(arena, "%s/tests/golden/checkpoints/v1.0", getenv("BIRKHOFF_SOURCE"));
    char payload[65];
    bk_checkpoint *c;
    if (bk_checkpoint_open(comm, arena, path, BK_CHECK_SHA256, &c) != BK_OK)
        fail_msg("%s", bk_status_text());
    assert_string_equal(bk_checkpoint_payload(c), digest);
    bk_test_payload(path, payload);
    assert_string_equal(payload, digest);
    assert_int_equal(bk_checkpoint_state(c)->step, 3);
    assert_int_equal(bk_checkpoint_state(c)->moments_from, 0); /* which it does not name */
    float w1[2 * 8 * 8];
    const bk_piece piece = {.name = "model/block0/moe/w1",
                            .dtype = BK_F32,
                            .dims = 3,
                            .global_shape = {2, 8, 8},
                            .count = 128,
                            .data = w1};
    if (bk_checkpoint_read(comm, c, &piece, 1, NULL) != BK_OK)
        fail_msg("%s", bk_status_text());
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_newest_by_number),
        cmocka_unit_test(nothing_is_no_error),
        cmocka_unit_test(missing_and_short_files),
        cmocka_unit_test(changed_files),
        cmocka_unit_test(each_digest_by_itself),
        cmocka_unit_test(sizes_are_no_reason_to_retain),
        cmocka_unit_test(swapped_shards),
        cmocka_unit_test(edited_manifest),
        cmocka_unit_test(all_damaged_is_never_a_fresh_start),
        cmocka_unit_test(names_that_do_not_count),
        cmocka_unit_test(set_aside),
        cmocka_unit_test(damaged_aside),
        cmocka_unit_test(steps_of_names),
        cmocka_unit_test(a_run_or_a_checkpoint),
        cmocka_unit_test(golden_checkpoints_load),
    };
    arena = bk_arena_new("test");
    return bk_test_run_ranks(argc, argv, tests, begin, end);
}
