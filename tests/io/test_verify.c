/* test: labels=unit,mpi,io ranks=1,3 timeout=180 */
/* verify: every finding is named, and nothing sound is blamed. */
#include "core/log.h"
#include "io/checkpoint_internal.h"
#include "io/dataset.h"
#include "io/files.h"
#include "tests/support/check.h"
#include "tests/support/checkpoint.h"
#include "tests/support/files.h"
#include "tests/support/some_ranks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
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

/* Runs verify with standard output in a file; what was printed (rank 0). */
static const char *verify(const char *path, bk_status wanted)
{
    const char *out = bk_arena_printf(arena, "%s/out.%d", shared, bk_mpi_rank());
    fflush(stdout);
    int kept = dup(STDOUT_FILENO);
    assert_non_null(freopen(out, "w", stdout));
    bk_status status = bk_verify(comm, path);
    fflush(stdout);
    dup2(kept, STDOUT_FILENO);
    close(kept);
    if (status != wanted)
        fail_msg("status %d, not %d: %s", status, wanted, bk_status_text());
    size_t bytes;
    char *text = bk_test_read(out, &bytes);
    const char *copy = bk_arena_strdup(arena, text);
    free(text);
    if (bk_mpi_rank() != 0)
        assert_int_equal(bytes, 0);
    return bk_mpi_rank() == 0 ? copy : NULL;
}

static void says(const char *text, const char *word)
{
    if (text && !strstr(text, word))
        fail_msg("no '%s' in: %s", word, text);
}

static const char *saved(const char *name, bk_piece *extra)
{
    const char *run = bk_arena_printf(arena, "%s/%s", shared, name);
    const char *directory = bk_arena_printf(arena, "%s/checkpoints", run);
    bk_piece list[BK_TEST_TENSORS + 1];
    bk_save_options o = bk_test_options(2);
    bk_run_state s = bk_test_state(5);
    bk_saved out;
    if (bk_mpi_rank() == 0)
        assert_int_equal(bk_make_directories(directory), BK_OK);
    bk_test_barrier();
    int64_t count = bk_test_pieces(arena, bk_mpi_rank(), bk_mpi_size(), 1, list);
    if (extra && bk_mpi_rank() == 0)
        list[count++] = *extra;
    assert_int_equal(bk_checkpoint_save(comm, directory, list, count, &s, &o, &out), BK_OK);
    bk_test_barrier();
    return run;
}

static void a_sound_run(void **state)
{
    (void)state;
    const char *run = saved("sound", NULL);
    const char *checkpoint = bk_arena_printf(arena, "%s/checkpoints/step-00000005", run);
    char payload[65];
    const char *text = verify(run, BK_OK);
    says(text, "shard-00000.h5");
    says(text, "valid");
    if (bk_mpi_rank() == 0) {
        bk_test_payload(checkpoint, payload);
        says(text, payload);
    }
    says(verify(bk_arena_printf(arena, "%s/checkpoints", run), BK_OK), "valid");
    says(verify(checkpoint, BK_OK), "valid");
    bk_test_barrier();
}

/* What a killed save set aside is the run's all the same. */
static void a_checkpoint_aside(void **state)
{
    (void)state;
    const char *run = saved("aside", NULL);
    const char *directory = bk_arena_printf(arena, "%s/checkpoints", run);
    const char *aside = bk_aside_path(arena, directory, 5);
    if (bk_mpi_rank() == 0)
        assert_int_equal(rename(bk_step_path(arena, directory, 5), aside), 0);
    bk_test_barrier();
    says(verify(run, BK_OK), aside);
    says(verify(directory, BK_OK), "valid");
    bk_test_barrier();
    if (bk_mpi_rank() == 0)
        bk_test_flip(bk_arena_printf(arena, "%s/shard-00000.h5", aside), 20000, 2);
    bk_test_barrier();
    says(verify(run, BK_INPUT), "finding: shard-00000.h5: digest differs");
}

static void findings_of_a_checkpoint(void **state)
{
    (void)state;
    const char *run = saved("flipped", NULL);
    const char *shard = bk_arena_printf(arena, "%s/checkpoints/step-00000005/shard-00000.h5", run);
    if (bk_mpi_rank() == 0)
        bk_test_flip(shard, 20000, 2);
    bk_test_barrier();
    const char *text = verify(run, BK_INPUT);
    says(text, "finding: shard-00000.h5: digest differs");
    says(text, "damaged");
    bk_test_barrier();
    if (bk_mpi_rank() == 0)
        unlink(shard);
    bk_test_barrier();
    says(verify(run, BK_INPUT), "shard-00000.h5 is missing");
}

static void a_parameter_that_is_not_a_number(void **state)
{
    (void)state;
    float bad[] = {1.0f, NAN, 2.0f};
    bk_piece piece = {.name = "model/zeta",
                      .dtype = BK_F32,
                      .dims = 1,
                      .global_shape = {3},
                      .count = 3,
                      .data = bad};
    says(verify(saved("nan", &piece), BK_INPUT), "/model/zeta is not finite at element 1");
}

/* A whole file whose content is not what the manifest says: the digest of the file is right. */
static void a_payload_that_differs(void **state)
{
    (void)state;
    const char *run = saved("payload", NULL);
    const char *path = bk_arena_printf(arena, "%s/checkpoints/step-00000005", run);
    if (bk_mpi_rank() == 0) {
        bk_manifest m;
        assert_int_equal(bk_manifest_read(arena, path, &m), BK_OK);
        memset(m.payload, '7', 64);
        assert_int_equal(bk_write_text(bk_arena_printf(arena, "%s/manifest.json", path),
                                       bk_manifest_text(arena, &m)),
                         BK_OK);
    }
    bk_test_barrier();
    says(verify(run, BK_INPUT), "payload_sha256 differs");
}

static void data_sets(void **state)
{
    (void)state;
    static const int32_t tokens[] = {1, 2, 3}, labels[] = {0, 1};
    static const int64_t offsets[] = {0, 1, 3}, index[] = {0, 1};
    const char *path = bk_arena_printf(arena, "%s/data.h5", shared);
    bk_dataset d = {.task = "classification",
                    .samples = 2,
                    .vocabulary = 4,
                    .classes = 2,
                    .tokens = tokens,
                    .offsets = offsets,
                    .labels = labels,
                    .splits = 1};
    d.split[0] = (bk_split){.name = "train", .index = index, .count = 2, .majority = NAN};
    if (bk_mpi_rank() == 0)
        assert_int_equal(bk_dataset_write(&d, path, 1, ""), BK_OK);
    bk_test_barrier();
    says(verify(path, BK_OK), "valid");
    bk_test_barrier();
    if (bk_mpi_rank() == 0)
        bk_test_cut(path, (size_t)bk_file_size(path) - 100);
    bk_test_barrier();
    says(verify(path, BK_INPUT), "truncated");
}

static void what_is_neither(void **state)
{
    (void)state;
    verify(bk_arena_printf(arena, "%s/nowhere", shared), BK_INPUT);
    const char *text = bk_arena_printf(arena, "%s/text", shared);
    if (bk_mpi_rank() == 0)
        bk_test_write_text(text, "a text");
    bk_test_barrier();
    says(verify(text, BK_INPUT), "not an HDF5 file");
    verify(shared, BK_INPUT);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sound_run),
        cmocka_unit_test(a_checkpoint_aside),
        cmocka_unit_test(findings_of_a_checkpoint),
        cmocka_unit_test(a_parameter_that_is_not_a_number),
        cmocka_unit_test(a_payload_that_differs),
        cmocka_unit_test(data_sets),
        cmocka_unit_test(what_is_neither),
    };
    arena = bk_arena_new("test");
    return bk_test_run_ranks(argc, argv, tests, begin, end);
}
