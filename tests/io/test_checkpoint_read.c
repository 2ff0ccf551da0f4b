/* test: labels=unit,mpi,io ranks=1,2 timeout=180 */
/* Reading slices: what does not fit is named, on every rank. */
#include "io/checkpoint.h"
#include "io/files.h"
#include "tests/support/check.h"
#include "tests/support/checkpoint.h"
#include "tests/support/files.h"
#include "tests/support/some_ranks.h"

#include <string.h>

static bk_arena *arena;
static bk_comm *comm;
static bk_checkpoint *checkpoint;
static char shared[4096];

static int begin(void **state)
{
    int failed = bk_mpi_rank() == 0 ? bk_test_directory_make(state) : 0;
    if (bk_mpi_rank() == 0)
        snprintf(shared, sizeof shared, "%s", bk_test_path("x"));
    bk_test_broadcast(shared, sizeof shared);
    *strrchr(shared, '/') = '\0';
    comm = bk_test_comm_open(arena, bk_mpi_size());
    bk_save_options o = bk_test_options(2);
    bk_test_save(comm, arena, shared, 1, 1, &o);
    return failed || bk_checkpoint_find(comm, arena, shared, (bk_find_options){.strict = true},
                                        &checkpoint) != BK_OK;
}

static int end(void **state)
{
    bk_test_comm_close(comm);
    bk_test_barrier();
    return bk_mpi_rank() == 0 ? bk_test_directory_remove(state) : 0;
}

static void any_slice(void **state)
{
    (void)state;
    bk_piece list[BK_TEST_TENSORS];
    bk_test_wishes(arena, bk_mpi_rank(), bk_mpi_size(), list);
    static const int64_t range[][2] = {{0, 1},     {4095, 1},  {4096, 1},    {4090, 20}, {0, 15000},
                                       {14999, 1}, {1, 14998}, {8191, 4098}, {15000, 0}};
    for (size_t i = 0; i < sizeof range / sizeof *range; i++) {
        bk_piece p = list[0];
        p.offset = range[i][0];
        p.count = range[i][1];
        p.data = bk_arena_alloc(arena, (size_t)p.count * sizeof(float));
        assert_int_equal(bk_checkpoint_read(comm, checkpoint, &p, 1, NULL), BK_OK);
        bk_test_check_pieces(&p, 1, 1);
    }
}

static void refused(const bk_piece *list, int64_t count, const char *complete, const char *word)
{
    assert_int_equal(bk_checkpoint_read(comm, checkpoint, list, count, complete), BK_INPUT);
    if (!strstr(bk_status_text(), word))
        fail_msg("no '%s' in: %s", word, bk_status_text());
}

static void misfits_are_named(void **state)
{
    (void)state;
    bk_piece list[BK_TEST_TENSORS];
    int64_t count = bk_test_wishes(arena, bk_mpi_rank(), bk_mpi_size(), list);
    const bk_piece whole = list[0];
    list[0].name = "model/embed/symbols";
    refused(list, count, NULL, "model/embed/symbols is missing");
    refused(list, count, "model/", "model/embed/tokens is unexpected");
    list[0] = whole;
    list[0].global_shape[0] = 4999;
    refused(list, count, NULL, "model/embed/tokens is f32[5000,3], not f32[4999,3]");
    list[0] = whole;
    list[0].dims = 1;
    refused(list, count, NULL, "not f32[5000]");
    list[0] = whole;
    list[0].dtype = BK_F64;
    refused(list, count, NULL, "not f64[5000,3]");
    /* one rank alone is wrong: all of them hear of it */
    list[0] = whole;
    list[0].name = bk_mpi_rank() == bk_mpi_size() - 1 ? "model/none" : whole.name;
    refused(list, count, NULL, "model/none is missing");
    list[0] = whole;
    assert_int_equal(bk_checkpoint_read(comm, checkpoint, list, count, "model/"), BK_OK);
    /* without the moments: they are not part of the model */
    assert_int_equal(bk_checkpoint_read(comm, checkpoint, list, count - 2, "model/"), BK_OK);
    refused(list, count - 2, "", "optim/m/embed/tokens is unexpected");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_slice),
        cmocka_unit_test(misfits_are_named),
    };
    arena = bk_arena_new("test");
    return bk_test_run_ranks(argc, argv, tests, begin, end);
}
