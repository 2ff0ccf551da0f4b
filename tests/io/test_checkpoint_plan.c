/* test: labels=unit,mpi ranks=1,2,4 timeout=180 */
/* The plan: cuts at multiples of 4096 elements, every element sent once, and pieces that do not
 * cover a tensor once are refused on every rank. */
#include "io/checkpoint_internal.h"
#include "tests/support/check.h"
#include "tests/support/checkpoint.h"
#include "tests/support/some_ranks.h"

#include <string.h>

static bk_arena *arena;
static bk_comm *comm;

static int begin(void **state)
{
    (void)state;
    comm = bk_test_comm_open(arena, bk_mpi_size());
    return 0;
}

static int end(void **state)
{
    (void)state;
    bk_test_comm_close(comm);
    return 0;
}

static bk_plan plan_of(int shards)
{
    bk_piece list[BK_TEST_TENSORS];
    bk_plan plan;
    int64_t count = bk_test_pieces(arena, bk_mpi_rank(), bk_mpi_size(), 1, list);
    assert_int_equal(bk_plan_make(comm, arena, list, count, shards, &plan), BK_OK);
    return plan;
}

static void pieces_are_leaves(void **state)
{
    (void)state;
    for (int shards = 1; shards <= 5; shards++) {
        bk_plan plan = plan_of(shards);
        const bk_manifest *m = plan.manifest;
        int64_t bytes[5] = {0}, all = 0;
        assert_int_equal(m->tensors, BK_TEST_TENSORS);
        assert_int_equal(bk_manifest_check(m, "plan"), BK_OK);
        for (int64_t i = 0; i < m->tensors; i++)
            for (int k = 0; k < m->tensor[i].pieces; k++) {
                const bk_stored_piece *p = &m->tensor[i].piece[k];
                assert_int_equal(p->offset % BK_LEAF, 0);
                bytes[p->shard] += p->length * (int64_t)bk_dtype_size(m->tensor[i].dtype);
            }
        for (int s = 0; s < shards; s++)
            all += bytes[s];
        for (int s = 0; s < shards; s++) /* about equal: within two leaves of 8 bytes */
            assert_in_range(bytes[s] - all / shards + 2 * 8 * BK_LEAF, 0, 4 * 8 * BK_LEAF);
    }
}

/* Every element of every stored piece comes from exactly one place. */
static void transfers_cover_the_pieces(void **state)
{
    (void)state;
    bk_plan plan = plan_of(3);
    const bk_manifest *m = plan.manifest;
    for (int64_t i = 0; i < m->tensors; i++)
        for (int k = 0; k < m->tensor[i].pieces; k++) {
            const bk_stored_piece *p = &m->tensor[i].piece[k];
            uint8_t *seen = BK_ZNEW(arena, uint8_t, p->length);
            for (int64_t t = 0; t < plan.transfers; t++) {
                const bk_transfer *x = &plan.transfer[t];
                if (x->tensor != i || x->piece != k)
                    continue;
                assert_int_equal(x->shard, p->shard);
                assert_true(x->to >= 0 && x->to + x->count <= p->length && x->count > 0);
                for (int64_t e = 0; e < x->count; e++)
                    seen[x->to + e]++;
            }
            for (int64_t e = 0; e < p->length; e++)
                assert_int_equal(seen[e], 1);
        }
}

static void writers_are_distinct(void **state)
{
    (void)state;
    for (int size = 1; size <= 9; size++)
        for (int shards = 1; shards <= size; shards++)
            for (int s = 0; s < shards; s++) {
                int rank = bk_writer_rank(s, shards, size);
                assert_in_range(rank, 0, size - 1);
                assert_true(s == 0 ? rank == 0 : rank > bk_writer_rank(s - 1, shards, size));
            }
}

static void refused(const bk_piece *list, int64_t count, const char *word)
{
    bk_plan plan;
    assert_int_equal(bk_plan_make(comm, arena, list, count, 1, &plan), BK_FAULT);
    if (!strstr(bk_status_text(), word) || !strstr(bk_status_text(), "model/embed/tokens"))
        fail_msg("no '%s' in: %s", word, bk_status_text());
}

static void pieces_that_do_not_cover(void **state)
{
    (void)state;
    bk_piece list[BK_TEST_TENSORS];
    bool last = bk_mpi_rank() == bk_mpi_size() - 1;
    int64_t count = bk_test_pieces(arena, bk_mpi_rank(), bk_mpi_size(), 1, list);
    const bk_piece whole = list[0];
    list[0].count -= last; /* the end is missing */
    refused(list, count, "nobody owns");
    list[0] = whole;
    list[0].offset -= last && bk_mpi_size() > 1; /* one element twice */
    list[0].count += last && bk_mpi_size() > 1;
    if (bk_mpi_size() > 1)
        refused(list, count, "exactly once");
    list[0] = whole;
    list[0].offset += bk_mpi_rank() == 0; /* the first is missing */
    list[0].count -= bk_mpi_rank() == 0;
    refused(list, count, "exactly once");
    list[0] = whole;
    list[0].global_shape[0] += last; /* the ranks disagree on the shape, or it is too long */
    refused(list, count, bk_mpi_size() > 1 ? "exactly once" : "nobody owns");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_are_leaves),
        cmocka_unit_test(transfers_cover_the_pieces),
        cmocka_unit_test(writers_are_distinct),
        cmocka_unit_test(pieces_that_do_not_cover),
    };
    arena = bk_arena_new("test");
    return bk_test_run_ranks(argc, argv, tests, begin, end);
}
