/* test: labels=unit,mpi ranks=1,2,3 timeout=60 */
/* Row numbers and groups: on one rank or several, the same ones. */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "losses/sinkd.h"

#include <string.h>

static bk_tape tape; /* one lane a rank */

/* One call on this rank. */
typedef struct call {
    bk_sinkd_config config;
    bk_sinkd sinkd;
} call;

static void open_call(call *c, const char *group, int64_t rows, const int32_t *valid,
                      const int32_t *sequence)
{
    memset(c, 0, sizeof *c);
    bk_tape_begin(&tape);
    c->config.group = group;
    c->sinkd.config = &c->config;
    c->sinkd.args = (bk_loss_args){.comm = bk_test_world()->loss,
                                   .valid = valid,
                                   .sequence = sequence,
                                   .logits = bk_tape_variable(&tape, BK_SHAPE(rows, 2))};
    bk_sinkd_match_rows(&tape, &c->sinkd);
}

static void check_starts(const bk_sinkd *s, int64_t groups, const int64_t *start)
{
    assert_int_equal(s->groups, groups);
    for (int64_t g = 0; g <= groups; g++)
        assert_int_equal(s->start[g], start[g]);
}

/* Rank r holds r + 1 rows, every second of the whole batch is valid. */
static void valid_rows_are_numbered_over_ranks(void **state)
{
    call c;
    int32_t valid[8];
    int64_t rank = bk_mpi_rank(), size = bk_mpi_size(), before = rank * (rank + 1) / 2;
    (void)state;
    for (int i = 0; i < 8; i++)
        valid[i] = (before + i) % 2 == 0;
    open_call(&c, "global", rank + 1, valid, NULL);
    assert_int_equal(c.sinkd.total, (size * (size + 1) / 2 + 1) / 2);
    assert_int_equal(c.sinkd.first, (before + 1) / 2);
    for (int64_t i = 0; i < c.sinkd.rows; i++)
        assert_int_equal(before + c.sinkd.place[i], 2 * (c.sinkd.first + i));
    assert_int_equal(c.sinkd.lane_row[1], c.sinkd.rows);
    assert_int_equal(c.sinkd.shared, size > 1);
}

/* n = ceil(B/b) groups, rows floor(gB/n) .. */
static void sizes_differ_by_one_at_most(void **state)
{
    (void)state;
    for (int64_t rows = 0; rows <= 9; rows++)
        for (int64_t size = 1; size <= 11; size++) {
            call c;
            char group[8];
            int64_t start[16] = {0}, total = rows * bk_mpi_size();
            int64_t groups = (total + size - 1) / size;
            snprintf(group, sizeof group, "%d", (int)size);
            if (groups >= 16)
                continue;
            for (int64_t g = 1; g <= groups; g++)
                start[g] = g * total / groups;
            open_call(&c, group, rows, NULL, NULL);
            check_starts(&c.sinkd, groups, start);
        }
}

static void sequences_may_straddle(void **state)
{
    call c;
    int size = bk_mpi_size(), rank = bk_mpi_rank();
    int32_t sequence[] = {rank, rank, rank + 1}; /* the last row goes with the next rank's */
    int64_t start[6] = {0, 2};
    (void)state;
    for (int r = 1; r <= size; r++)
        start[r + 1] = r < size ? 2 + 3 * r : 3 * size;
    open_call(&c, "sequence", 3, NULL, sequence);
    check_starts(&c.sinkd, size + 1, start);
    assert_int_equal(c.sinkd.shared, size > 1);
    int64_t first = rank > 0 ? 3 * rank - 1 : 0, last = rank + 1 < size ? 3 * rank + 5 : 3 * size;
    assert_int_equal(c.sinkd.column, first); /* of the groups with own rows, no others */
    assert_int_equal(c.sinkd.columns, last - first);
}

/* Groups that end where ranks end need no messages and no other rank's teacher rows. */
static void whole_groups_stay_at_home(void **state)
{
    static const char *const groups[] = {"lane", "1", "2"};
    (void)state;
    for (int k = 0; k < 3; k++) {
        call c;
        open_call(&c, groups[k], 4, NULL, NULL);
        assert_false(c.sinkd.shared);
        assert_int_equal(c.sinkd.columns, 4);
        assert_int_equal(c.sinkd.column, 4 * bk_mpi_rank());
        assert_int_equal(c.sinkd.groups, (k == 0 ? 1 : k == 1 ? 4 : 2) * bk_mpi_size());
    }
}

/* A group on one rank is not shared, however many ranks have nothing. */
static void empty_ranks_share_nothing(void **state)
{
    (void)state;
    for (int owner = 0; owner < bk_mpi_size(); owner++) {
        call c;
        open_call(&c, "global", bk_mpi_rank() == owner ? 5 : 0, NULL, NULL);
        assert_false(c.sinkd.shared);
        assert_int_equal(c.sinkd.total, 5);
        assert_int_equal(c.sinkd.columns, bk_mpi_rank() == owner ? 5 : 0);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(valid_rows_are_numbered_over_ranks),
        cmocka_unit_test(sizes_differ_by_one_at_most),
        cmocka_unit_test(sequences_may_straddle),
        cmocka_unit_test(whole_groups_stay_at_home),
        cmocka_unit_test(empty_ranks_share_nothing),
    };
    bk_test_ranks_start(&argc, &argv);
    int rank = bk_mpi_rank(), size = bk_mpi_size();
    tape = bk_test_tape(BK_F64, bk_lanes_of_rank(size, size, rank, size));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_test_tape_free(&tape);
    return bk_test_ranks_stop(failed);
}
