/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "dist/agree.h"
#include "dist/collective.h"

#include <string.h>

static void ranks_are_numbered(void **state)
{
    bk_world *w = bk_test_world();
    const bk_comm *all[] = {w->world, w->ctl, w->loss, w->route, w->data, w->checkpoint};
    (void)state;
    assert_int_equal(w->rank, bk_mpi_rank());
    assert_int_equal(w->size, bk_mpi_size());
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        assert_int_equal(bk_comm_rank(all[i]), w->rank);
        assert_int_equal(bk_comm_size(all[i]), w->size);
        assert_int_equal(bk_comm_world_rank(all[i]), w->rank);
        assert_int_equal(bk_comm_world_size(all[i]), w->size);
        for (size_t j = 0; j < i; j++)
            assert_ptr_not_equal(all[i], all[j]);
    }
    assert_true(strlen(bk_mpi_library()) > 3);
}

static void no_communicator_is_one_rank(void **state)
{
    (void)state;
    assert_int_equal(bk_comm_rank(NULL), 0);
    assert_int_equal(bk_comm_size(NULL), 1);
    assert_int_equal(bk_comm_world_rank(NULL), 0);
    assert_int_equal(bk_comm_world_size(NULL), 1);
    assert_null(bk_comm_reducer(NULL));
}

/* r = d EP + e: `ep` = ranks with the same d, `edp` = ranks with the same e. */
static void grid_of_experts(void **state)
{
    int size = bk_mpi_size(), rank = bk_mpi_rank();
    (void)state;
    for (int expert = 1; expert <= size; expert++) {
        if (size % expert != 0)
            continue;
        bk_arena *arena = bk_arena_new("test");
        bk_world *w;
        assert_int_equal(bk_world_open(arena, expert, &w), BK_OK);
        assert_int_equal(w->expert, expert);
        assert_int_equal(bk_comm_size(w->ep), expert);
        assert_int_equal(bk_comm_rank(w->ep), rank % expert);
        const bk_comm *replicas[] = {w->edp, w->edp_buckets};
        for (int i = 0; i < 2; i++) {
            assert_int_equal(bk_comm_size(replicas[i]), size / expert);
            assert_int_equal(bk_comm_rank(replicas[i]), rank / expert);
        }
        int64_t sum = rank, groups = 0;
        for (int e = 0; e < expert; e++)
            groups += rank / expert * expert + e;
        bk_sum_i64(w->ep, 1, &sum);
        assert_int_equal(sum, groups);
        bk_world_close(w);
        bk_arena_free(arena);
    }
}

/* Every rank gets the same error: nobody waits for the others. */
static void wrong_degree_is_refused_everywhere(void **state)
{
    int size = bk_mpi_size();
    (void)state;
    for (int expert = -1; expert <= 2 * size + 1; expert++) {
        bk_arena *arena = bk_arena_new("test");
        bk_world *w = NULL;
        if (expert < 1 || size % expert != 0) {
            assert_int_equal(bk_world_open(arena, expert, &w), BK_USAGE);
            assert_non_null(strstr(bk_status_text(), "parallel.expert="));
            assert_null(w);
        }
        bk_arena_free(arena);
    }
}

static void degrees_divide_both(void **state)
{
    (void)state;
    for (int a = 1; a <= 12; a++)
        for (int b = 1; b <= 12; b++) {
            int largest = a;
            while (a % largest != 0 || b % largest != 0)
                largest--;
            assert_int_equal(bk_common_degree(a, b), largest);
        }
}

/* Two worlds, each with ranks, sums and agreement of its own, and one communicator of all. */
static void check_two(int last, int expert)
{
    int size = bk_mpi_size(), rank = bk_mpi_rank(), first = size - last;
    bool second = rank >= first;
    bk_arena *arena = bk_arena_new("test");
    bk_world *w;
    assert_int_equal(bk_world_open_two(arena, last, expert, &w), BK_OK);
    assert_int_equal(w->size, second ? last : first);
    assert_int_equal(w->rank, second ? rank - first : rank);
    assert_int_equal(bk_comm_size(w->ep), w->expert);
    assert_true(second || w->expert == expert);
    assert_int_equal(w->size % w->expert, 0);
    assert_int_equal(bk_comm_size(w->edp) * w->expert, w->size);
    assert_int_equal(bk_comm_world_rank(w->ep), w->rank);
    assert_int_equal(bk_comm_world_size(w->ep), w->size);
    assert_int_equal(bk_comm_size(w->between), size);
    assert_int_equal(bk_comm_rank(w->between), rank);
    for (int i = 0; i < (second ? 3 : 1); i++) { /* calls that the other world does not make */
        int64_t sum = 1;
        bk_sum_i64(w->loss, 1, &sum);
        assert_int_equal(sum, w->size);
        assert_int_equal(bk_agree(w->ctl, BK_OK), BK_OK);
    }
    assert_int_equal(bk_agree(w->between, BK_OK), BK_OK);
    bk_status worst = rank == size - 1 ? bk_fail(BK_INPUT, "one of them") : BK_OK;
    assert_int_equal(bk_agree(w->between, worst), BK_INPUT);
    assert_string_equal(bk_status_text(), "one of them");
    bk_world_close(w);
    bk_arena_free(arena);
}

static void two_worlds(void **state)
{
    int size = bk_mpi_size();
    (void)state;
    if (size == 1)
        skip();
    for (int last = 1; last < size; last++)
        for (int expert = 1; expert <= size; expert++) {
            bk_arena *arena = bk_arena_new("test");
            bk_world *w = NULL;
            if ((size - last) % expert == 0) {
                check_two(last, expert);
            } else {
                assert_int_equal(bk_world_open_two(arena, last, expert, &w), BK_USAGE);
                assert_non_null(strstr(bk_status_text(), "student ranks"));
                assert_null(w);
            }
            bk_arena_free(arena);
        }
}

/* Ranks of a node share memory; the nodes cover all ranks. */
static void nodes_cover_all_ranks(void **state)
{
    bk_world *w = bk_test_world();
    int64_t first = bk_comm_rank(w->node) == 0;
    (void)state;
    bk_sum_i64(w->world, 1, &first);
    assert_int_equal(first, w->nodes);
    int64_t ranks = bk_comm_rank(w->node) == 0 ? bk_comm_size(w->node) : 0;
    bk_sum_i64(w->world, 1, &ranks);
    assert_int_equal(ranks, w->size);
}

/* The same tag on two communicators: messages find their own. */
static void traffic_is_kept_apart(void **state)
{
    bk_world *w = bk_test_world();
    int next = (w->rank + 1) % w->size, before = (w->rank + w->size - 1) % w->size;
    int64_t sent[2] = {10 + w->rank, 20 + w->rank}, got[2] = {0};
    (void)state;
    if (w->size == 1)
        skip();
    bk_send_bytes(w->data, next, 5, &sent[0], sizeof sent[0]);
    bk_send_bytes(w->checkpoint, next, 5, &sent[1], sizeof sent[1]);
    bk_receive_bytes(w->checkpoint, before, 5, &got[1], sizeof got[1]);
    bk_receive_bytes(w->data, before, 5, &got[0], sizeof got[0]);
    assert_int_equal(got[0], 10 + before);
    assert_int_equal(got[1], 20 + before);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_are_numbered),
        cmocka_unit_test(no_communicator_is_one_rank),
        cmocka_unit_test(grid_of_experts),
        cmocka_unit_test(wrong_degree_is_refused_everywhere),
        cmocka_unit_test(nodes_cover_all_ranks),
        cmocka_unit_test(traffic_is_kept_apart),
        cmocka_unit_test(degrees_divide_both),
        cmocka_unit_test(two_worlds), /* after which the ranks have made other calls */
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
