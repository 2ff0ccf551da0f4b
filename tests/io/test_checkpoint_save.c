/* test: labels=unit,mpi,io ranks=1,3,4 timeout=300 */
/* Saving: any number of ranks and writers gives the same payload, in files that say what they are;
 * a save that fails leaves nothing behind. */
#include "core/fault.h"
#include "dist/collective.h"
#include "io/checkpoint_internal.h"
#include "io/files.h"
#include "tests/support/check.h"
#include "tests/support/checkpoint.h"
#include "tests/support/files.h"
#include "tests/support/some_ranks.h"

#include <dirent.h>
#include <hdf5.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static bk_arena *arena;
static char shared[4096];

/* All ranks work in rank 0's directory. */
static int make_shared(void **state)
{
    int failed = bk_mpi_rank() == 0 ? bk_test_directory_make(state) : 0;
    if (bk_mpi_rank() == 0)
        snprintf(shared, sizeof shared, "%s", bk_test_path("x"));
    bk_test_broadcast(shared, sizeof shared);
    *strrchr(shared, '/') = '\0';
    return failed;
}

static int remove_shared(void **state)
{
    bk_test_barrier();
    return bk_mpi_rank() == 0 ? bk_test_directory_remove(state) : 0;
}

/* A fresh directory, made by rank 0. */
static const char *fresh(const char *name)
{
    const char *path = bk_arena_printf(arena, "%s/%s", shared, name);
    if (bk_mpi_rank() == 0)
        assert_int_equal(bk_make_directories(path), BK_OK);
    bk_test_barrier();
    return path;
}

/* ---- P, W and P' ---- */

static void the_payload_depends_on_neither_ranks_nor_writers(void **state)
{
    (void)state;
    static char payload[65];
    for (int size = 1; size <= bk_mpi_size(); size++) {
        bk_comm *comm = bk_test_comm_open(arena, size);
        for (int writers = 1; writers <= size; writers++) {
            const char *directory = fresh(bk_arena_printf(arena, "p%d-w%d", size, writers));
            bk_save_options options = bk_test_options(writers);
            char again[65], text[65] = "";
            if (comm)
                snprintf(text, sizeof text, "%s",
                         bk_test_save(comm, arena, directory, 12, 1, &options));
            if (bk_mpi_rank() == 0) {
                bk_test_payload(bk_arena_printf(arena, "%s/step-00000012", directory), again);
                assert_string_equal(text, again);
                if (payload[0])
                    assert_string_equal(text, payload);
                snprintf(payload, sizeof payload, "%s", text);
            }
        }
        bk_test_comm_close(comm);
    }
}

static void any_number_of_ranks_reads_it(void **state)
{
    (void)state;
    for (int from = 1; from <= bk_mpi_size(); from++)
        for (int to = 1; to <= bk_mpi_size(); to++) {
            bk_comm *comm = bk_test_comm_open(arena, to);
            if (comm)
                bk_test_check_newest(comm, bk_arena_printf(arena, "%s/p%d-w%d", shared, from, from),
                                     12, 1);
            bk_test_comm_close(comm);
        }
}

/* ---- what the files say ---- */

static int64_t integer(hid_t object, const char *name, H5T_class_t kind, size_t bytes)
{
    int64_t value = -1;
    hid_t id = H5Aopen(object, name, H5P_DEFAULT);
    assert_true(id >= 0);
    hid_t type = H5Aget_type(id);
    assert_int_equal(H5Tget_class(type), kind);
    assert_int_equal(H5Tget_size(type), bytes);
    assert_true(H5Aread(id, H5T_NATIVE_INT64, &value) >= 0);
    H5Tclose(type);
    H5Aclose(id);
    return value;
}

static void text(hid_t object, const char *name, const char *wanted)
{
    char *found = NULL;
    hid_t id = H5Aopen(object, name, H5P_DEFAULT), type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    H5Tset_cset(type, H5T_CSET_UTF8);
    assert_true(id >= 0 && H5Aread(id, type, &found) >= 0);
    if (wanted)
        assert_string_equal(found, wanted);
    H5free_memory(found);
    H5Tclose(type);
    H5Aclose(id);
}

static void check_root(hid_t file, int shard, int shards)
{
    int32_t version[2];
    text(file, "format", "birkhoff-checkpoint");
    text(file, "birkhoff_version", BIRKHOFF_VERSION);
    text(file, "created", NULL);
    hid_t id = H5Aopen(file, "format_version", H5P_DEFAULT);
    assert_true(H5Aread(id, H5T_NATIVE_INT32, version) >= 0);
    H5Aclose(id);
    assert_int_equal(version[0], 1);
    assert_int_equal(version[1], 0);
    assert_int_equal(integer(file, "step", H5T_INTEGER, 8), 12);
    assert_int_equal(integer(file, "shard", H5T_INTEGER, 4), shard);
    assert_int_equal(integer(file, "shards", H5T_INTEGER, 4), shards);
    assert_int_equal(integer(file, "complete", H5T_INTEGER, 1), 1);
}

/* V110 bounds, Fletcher32, chunks of at most 1 MiB, no compression, no times. */
static herr_t check_settings(hid_t root, const char *name, const H5O_info_t *info, void *count)
{
    assert_true(info->mtime == 0 && info->ctime == 0);
    if (info->type != H5O_TYPE_DATASET || strcmp(name, "config") == 0)
        return 0;
    hid_t set = H5Dopen2(root, name, H5P_DEFAULT), list = H5Dget_create_plist(set);
    hsize_t chunk[BK_MAX_DIMS];
    unsigned flags, more;
    size_t values = 0;
    H5D_fill_time_t fill;
    H5D_alloc_time_t allocated;
    assert_int_equal(H5Pget_nfilters(list), 1);
    assert_int_equal(H5Pget_filter2(list, 0, &flags, &values, NULL, 0, NULL, &more),
                     H5Z_FILTER_FLETCHER32);
    assert_int_equal(H5Pget_chunk(list, 1, chunk), 1);
    assert_true(chunk[0] <= 1 << 18);
    H5Pget_fill_time(list, &fill);
    H5Pget_alloc_time(list, &allocated);
    assert_int_equal(fill, H5D_FILL_TIME_NEVER);
    assert_int_equal(allocated, H5D_ALLOC_TIME_INCR);
    text(set, "dtype", strstr(name, "count") ? "i64" : strstr(name, "router") ? "f64" : "f32");
    ++*(int *)count;
    H5Pclose(list);
    H5Dclose(set);
    return 0;
}

static void check_groups(hid_t file)
{
    static const struct {
        const char *group, *name;
        int64_t value;
    } wanted[] = {{"/step", "step", 12},           {"/step", "samples_seen", 768},
                  {"/step", "tokens_seen", 12000}, {"/step", "updates_skipped", 2},
                  {"/data", "epoch", 1},           {"/data", "cursor", 768},
                  {"/data", "seed", 42},           {"/rng", "seed", 42},
                  {"/schedule", "step", 12},       {"/metrics", "best_step", 3}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        hid_t group = H5Gopen2(file, wanted[i].group, H5P_DEFAULT);
        assert_int_equal(integer(group, wanted[i].name, H5T_INTEGER, 8), wanted[i].value);
        H5Gclose(group);
    }
    hid_t data = H5Gopen2(file, "/data", H5P_DEFAULT);
    text(data, "path", "listops.h5");
    text(data, "digest", "0123456789abcdef");
    H5Gclose(data);
}

static void shards_say_what_they_are(void **state)
{
    (void)state;
    int count = 0, shards = bk_mpi_size();
    for (int i = 0; i < shards && bk_mpi_rank() == 0; i++) {
        const char *path = bk_arena_printf(arena, "%s/p%d-w%d/step-00000012/shard-%05d.h5", shared,
                                           shards, shards, i);
        hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT),
              creation = H5Fget_create_plist(file);
        unsigned version;
        assert_true(file >= 0);
        assert_true(H5Pget_version(creation, &version, NULL, NULL, NULL) >= 0 && version == 3);
        check_root(file, i, shards);
        assert_true(
            H5Ovisit2(file, H5_INDEX_NAME, H5_ITER_INC, check_settings, &count, H5O_INFO_ALL) >= 0);
        assert_int_equal(H5Lexists(file, "/config", H5P_DEFAULT) > 0, i == 0);
        if (i == 0)
            check_groups(file);
        H5Pclose(creation);
        H5Fclose(file);
    }
    if (bk_mpi_rank() == 0)
        assert_true(count >= BK_TEST_TENSORS);
    bk_test_barrier();
}

/* Files of the same content have the same bytes but for `created`, so sizes are equal at least. */
static void manifests_name_files_and_digests(void **state)
{
    (void)state;
    bk_test_barrier();
    if (bk_mpi_rank() != 0)
        return;
    const char *path = bk_arena_printf(arena, "%s/p1-w1/step-00000012", shared);
    size_t bytes;
    json_error_t error;
    char *content = bk_test_read(bk_arena_printf(arena, "%s/manifest.json", path), &bytes);
    json_t *m = json_loads(content, 0, &error);
    assert_non_null(m);
    static const char *const keys[] = {
        "format",  "format_version", "birkhoff_version", "step",  "created",
        "run_id",  "config_sha256",  "world_size",       "lanes", "shards",
        "tensors", "payload_sha256", "manifest_sha256"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!json_object_get(m, keys[i]))
            fail_msg("the manifest has no %s", keys[i]);
    assert_int_equal(json_array_size(json_object_get(m, "tensors")), BK_TEST_TENSORS);
    const json_t *shard = json_array_get(json_object_get(m, "shards"), 0);
    bk_file_digest digest;
    assert_int_equal(bk_digest_file(bk_arena_printf(arena, "%s/shard-00000.h5", path), &digest),
                     BK_OK);
    assert_string_equal(json_string_value(json_object_get(shard, "sha256")), digest.sha256);
    assert_string_equal(json_string_value(json_object_get(shard, "xxh64")), digest.xxh64);
    assert_int_equal(json_integer_value(json_object_get(shard, "size")), digest.size);
    char config[65];
    bk_sha256_text(bk_test_state(12).config, strlen(bk_test_state(12).config), config);
    assert_string_equal(json_string_value(json_object_get(m, "config_sha256")), config);
    json_decref(m);
    free(content);
}

/* ---- options ---- */

static void writers_deflate_and_reread(void **state)
{
    (void)state;
    bk_comm *comm = bk_test_comm_open(arena, bk_mpi_size());
    const char *directory = fresh("options");
    bk_save_options options = bk_test_options(0); /* auto: one small file */
    options.deflate = 4;
    options.verify_write = true;
    bk_test_save(comm, arena, directory, 1, 1, &options);
    bk_test_check_newest(comm, directory, 1, 1);
    assert_true(bk_file_size(bk_arena_printf(arena, "%s/step-00000001/shard-00000.h5", directory)) >
                0);
    assert_int_equal(
        bk_file_size(bk_arena_printf(arena, "%s/step-00000001/shard-00001.h5", directory)), -1);
    options = bk_test_options(99); /* more than ranks: one each */
    bk_test_save(comm, arena, directory, 2, 2, &options);
    bk_test_check_newest(comm, directory, 2, 2);
    char *latest;
    size_t length;
    assert_int_equal(
        bk_read_file(arena, bk_arena_printf(arena, "%s/latest", directory), &latest, &length),
        BK_OK);
    assert_string_equal(latest, "step-00000002\n");
    bk_test_comm_close(comm);
}

/* ---- retention ---- */

static const char *names_in(const char *directory)
{
    const char *all = "";
    for (char **names = bk_list_directory(arena, directory); *names; names++)
        all = bk_arena_printf(arena, "%s%s%s", all, *all ? " " : "", *names);
    return all;
}

static void save_steps(const bk_comm *comm, const char *directory, int64_t from, int64_t to,
                       const bk_save_options *options)
{
    for (int64_t step = from; step <= to; step++)
        bk_test_save(comm, arena, directory, step, (int)step, options);
    bk_test_barrier();
}

static void retention_keeps_what_it_should(void **state)
{
    (void)state;
    bk_comm *comm = bk_test_comm_open(arena, bk_mpi_size());
    bk_save_options o = bk_test_options(1);
    const char *plain = fresh("keep");
    o.keep = 2;
    save_steps(comm, plain, 1, 4, &o);
    assert_string_equal(names_in(plain), "latest step-00000003 step-00000004");
    const char *every = fresh("keep-every");
    o.keep_every = 3;
    save_steps(comm, every, 1, 7, &o);
    assert_string_equal(names_in(every), "latest step-00000003 step-00000006 step-00000007");
    o.keep_every = 0;
    const char *resumed = fresh("started-from");
    save_steps(comm, resumed, 1, 2, &o);
    o.started_from = 1; /* set back: 2 is not yet older than what is saved */
    save_steps(comm, resumed, 3, 3, &o);
    assert_string_equal(names_in(resumed), "latest step-00000002 step-00000003");
    bk_test_comm_close(comm);
}

/* A damaged checkpoint counts for nothing: two valid ones stay beside it. */
static void retention_counts_valid_ones_only(void **state)
{
    (void)state;
    bk_comm *comm = bk_test_comm_open(arena, bk_mpi_size());
    bk_save_options o = bk_test_options(1);
    const char *directory = fresh("damaged");
    o.keep = 2;
    save_steps(comm, directory, 1, 1, &o);
    /* of a former process, of the right size, with one flipped bit */
    if (bk_mpi_rank() == 0) {
        const char *to = bk_arena_printf(arena, "%s/step-00000003", directory);
        bk_test_copy_directory(
            bk_arena_printf(arena, "%s/tests/golden/checkpoints/v1.0", getenv("BIRKHOFF_SOURCE")),
            to);
        bk_test_flip(bk_arena_printf(arena, "%s/shard-00000.h5", to), 9000, 3);
    }
    bk_test_barrier();
    save_steps(comm, directory, 2, 2, &o);
    save_steps(comm, directory, 4, 4, &o);
    assert_string_equal(names_in(directory), "latest step-00000002 step-00000003 step-00000004");
    bk_test_comm_close(comm);
}

/* ---- the same step again ---- */

static void a_step_that_is_there(void **state)
{
    (void)state;
    bk_comm *comm = bk_test_comm_open(arena, bk_mpi_size());
    bk_save_options o = bk_test_options(1);
    const char *directory = fresh("again");
    const char *shard = bk_arena_printf(arena, "%s/step-00000005/shard-00000.h5", directory);
    struct stat before, after;
    bk_test_save(comm, arena, directory, 5, 1, &o);
    stat(shard, &before);
    bk_test_save(comm, arena, directory, 5, 1, &o); /* the same payload: the old one stays */
    stat(shard, &after);
    assert_int_equal(before.st_ino, after.st_ino);
    bk_test_barrier();
    if (bk_mpi_rank() == 0)
        bk_test_flip(shard, 9000, 1); /* the same payload in its manifest, but damaged */
    bk_test_barrier();
    bk_test_save(comm, arena, directory, 5, 1, &o);
    bk_test_check_newest(comm, directory, 5, 1);
    bk_test_save(comm, arena, directory, 5, 2, &o); /* another payload replaces it */
    bk_test_check_newest(comm, directory, 5, 2);
    bk_test_barrier();
    assert_string_equal(names_in(directory), "latest step-00000005");
    bk_test_comm_close(comm);
}

/* ---- in the background ---- */

/* The phases, met as a training does: when no rank's part is under way. */
static bk_status to_the_end(const bk_comm *comm, bk_saver *v, bk_saved *saved)
{
    bk_status status = BK_OK;
    while (bk_saver_busy(v) && status == BK_OK) {
        int64_t waiting = bk_saver_part_of(v) == BK_PART_UNDER_WAY;
        bk_sum_i64(comm, 1, &waiting);
        if (waiting == 0)
            status = bk_saver_advance(v, saved);
    }
    return status;
}

/* What is saved is what was there at the beginning, twice from one saver, and the elements may
 * change meanwhile. */
static void elements_change_while_they_are_saved(void **state)
{
    (void)state;
    bk_comm *comm = bk_test_comm_open(arena, bk_mpi_size());
    bk_save_options o = bk_test_options(bk_comm_size(comm));
    const char *directory = fresh("beside"), *plain = fresh("plain");
    bk_saver *v = bk_saver_new(comm, directory, true);
    for (int64_t step = 1; step <= 2; step++) {
        bk_piece list[BK_TEST_TENSORS];
        bk_run_state s = bk_test_state(step);
        bk_saved saved = {0}, wanted = {0};
        int64_t count =
            bk_test_pieces(arena, bk_comm_rank(comm), bk_comm_size(comm), (int)step, list);
        assert_int_equal(bk_checkpoint_save(comm, plain, list, count, &s, &o, &wanted), BK_OK);
        assert_false(bk_saver_busy(v));
        assert_int_equal(bk_saver_begin(v, list, count, &s, &o), BK_OK);
        assert_true(bk_saver_busy(v));
        for (int64_t i = 0; i < count; i++)
            memset(list[i].data, 0x5a, (size_t)list[i].count * bk_dtype_size(list[i].dtype));
        assert_int_equal(to_the_end(comm, v, &saved), BK_OK);
        assert_string_equal(saved.payload, wanted.payload);
        assert_int_equal(saved.step, step);
        assert_true(saved.bytes > 0 && saved.stall <= saved.seconds);
        bk_test_check_newest(comm, directory, step, (int)step);
    }
    assert_int_equal(bk_saver_finish(v, NULL), BK_OK); /* nothing is under way */
    bk_saver_free(v);
    bk_test_comm_close(comm);
}

/* A failure on a thread is every rank's, nothing stays, and the saver works again. */
static void a_save_that_fails_beside(void **state)
{
    (void)state;
    bk_comm *comm = bk_test_comm_open(arena, bk_mpi_size());
    bk_save_options o = bk_test_options(bk_comm_size(comm));
    const char *directory = fresh("failing");
    bk_saver *v = bk_saver_new(comm, directory, true);
    bk_saved saved = {0};
    setenv("BIRKHOFF_FAULT", "save.sync:0:eio", 1);
    assert_int_equal(bk_faults_read(bk_mpi_rank()), BK_OK);
    for (int64_t step = 3; step <= 4; step++) {
        bk_piece list[BK_TEST_TENSORS];
        bk_run_state s = bk_test_state(step);
        int64_t count = bk_test_pieces(arena, bk_comm_rank(comm), bk_comm_size(comm), 1, list);
        assert_int_equal(bk_saver_begin(v, list, count, &s, &o), BK_OK);
        assert_int_equal(to_the_end(comm, v, &saved), step == 3 ? BK_FAULT : BK_OK);
        assert_false(bk_saver_busy(v));
    }
    unsetenv("BIRKHOFF_FAULT");
    assert_int_equal(bk_faults_read(bk_mpi_rank()), BK_OK);
    bk_test_barrier();
    assert_string_equal(names_in(directory), "latest step-00000004");
    bk_saver_free(v);
    bk_test_comm_close(comm);
}

/* ---- failures ---- */

static bk_status try_save(const bk_comm *comm, const char *directory)
{
    bk_piece list[BK_TEST_TENSORS];
    bk_run_state s = bk_test_state(7);
    bk_save_options options = bk_test_options(bk_comm_size(comm));
    bk_saved saved;
    int64_t count = bk_test_pieces(arena, bk_comm_rank(comm), bk_comm_size(comm), 1, list);
    return bk_checkpoint_save(comm, directory, list, count, &s, &options, &saved);
}

static void a_directory_that_is_not_there(void **state)
{
    (void)state;
    bk_comm *comm = bk_test_comm_open(arena, bk_mpi_size());
    assert_int_equal(try_save(comm, bk_arena_printf(arena, "%s/nowhere", shared)), BK_FAULT);
    assert_non_null(strstr(bk_status_text(), "nowhere"));
    bk_test_comm_close(comm);
}

/* A file system that is too small: the save fails as a whole, nothing stays, the next one works. */
static void a_full_disk(void **state)
{
    (void)state;
    const char *place = fresh("small");
    int mounted = 0;
    if (bk_mpi_rank() == 0)
        mounted = mount("tmpfs", place, "tmpfs", 0, "size=160k") == 0;
    bk_test_broadcast(&mounted, sizeof mounted);
    if (!mounted)
        skip(); /* mounting a file system of its own needs root */
    bk_comm *comm = bk_test_comm_open(arena, bk_mpi_size());
    bk_status status = try_save(comm, place);
    const char *reason = bk_arena_strdup(arena, bk_status_text());
    bk_test_barrier();
    const char *left = names_in(place);
    bk_test_barrier();
    if (bk_mpi_rank() == 0)
        assert_int_equal(mount("tmpfs", place, "tmpfs", MS_REMOUNT, "size=4m"), 0);
    bk_test_barrier();
    bk_status second = try_save(comm, place);
    bk_test_barrier();
    const char *then = names_in(place);
    bk_test_barrier();
    if (bk_mpi_rank() == 0)
        umount(place);
    assert_int_equal(status, BK_FAULT);
    assert_string_equal(left, "");
    assert_non_null(strstr(reason, ".tmp-step-00000007"));
    assert_int_equal(second, BK_OK);
    assert_string_equal(then, "latest step-00000007");
    bk_test_comm_close(comm);
}

static void what_a_killed_save_left(void **state)
{
    (void)state;
    bk_comm *comm = bk_test_comm_open(arena, bk_mpi_size());
    bk_save_options o = bk_test_options(1);
    const char *directory = fresh("stale");
    if (bk_mpi_rank() == 0) {
        const char *own = bk_arena_printf(arena, "%s/.tmp-step-00000003.%s.0", directory, o.run_id);
        const char *other = bk_arena_printf(arena, "%s/.tmp-step-00000002.ffff.0", directory);
        const char *trash = bk_arena_printf(arena, "%s/.trash-step-00000001.ffff.9", directory);
        assert_int_equal(mkdir(own, 0777) | mkdir(other, 0777) | mkdir(trash, 0777), 0);
        bk_test_write_text(bk_arena_printf(arena, "%s/shard-00000.h5", own), "half");
    }
    bk_test_barrier();
    bk_test_save(comm, arena, directory, 3, 1, &o);
    bk_test_barrier();
    /* another run's save may be at work: it is left alone for an hour */
    assert_string_equal(names_in(directory), ".tmp-step-00000002.ffff.0 latest step-00000003");
    bk_test_check_newest(comm, directory, 3, 1);
    bk_test_comm_close(comm);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_payload_depends_on_neither_ranks_nor_writers),
        cmocka_unit_test(any_number_of_ranks_reads_it),
        cmocka_unit_test(shards_say_what_they_are),
        cmocka_unit_test(manifests_name_files_and_digests),
        cmocka_unit_test(writers_deflate_and_reread),
        cmocka_unit_test(retention_keeps_what_it_should),
        cmocka_unit_test(retention_counts_valid_ones_only),
        cmocka_unit_test(a_step_that_is_there),
        cmocka_unit_test(elements_change_while_they_are_saved),
        cmocka_unit_test(a_save_that_fails_beside),
        cmocka_unit_test(a_directory_that_is_not_there),
        cmocka_unit_test(a_full_disk),
        cmocka_unit_test(what_a_killed_save_left),
    };
    arena = bk_arena_new("test");
    return bk_test_run_ranks(argc, argv, tests, make_shared, remove_shared);
}
