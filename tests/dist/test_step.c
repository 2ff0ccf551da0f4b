/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "core/rng.h"
#include "dist/collective.h"
#include "dist/step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TERMS = 3, BLOCKS = 2, MOST = 16 };

static int rank, size;
static const bk_comm *ctl;

static double term(int64_t lane, int64_t i)
{
    return ldexp(bk_fill((uint64_t)i, (uint64_t)(lane + 1), -1.0, 1.0), (int)(lane * 7 % 40) - 20);
}

/* The message of one rank and what comes back. */
typedef struct exchange {
    bk_lanes lanes;
    double record[MOST * TERMS], sum[TERMS], block[BLOCKS], all_blocks[MOST * BLOCKS];
    bk_step_message message;
} exchange;

static void prepare(exchange *x, int64_t lanes)
{
    memset(x, 0, sizeof *x);
    x->lanes = bk_lanes_of_rank(lanes, lanes, rank, size);
    for (int64_t l = 0; l < x->lanes.count; l++)
        for (int64_t i = 0; i < TERMS; i++)
            x->record[l * TERMS + i] = term(x->lanes.first + l, i);
    for (int64_t i = 0; i < BLOCKS; i++)
        x->block[i] = 10.0 * rank + (double)i;
    x->message = (bk_step_message){.terms = TERMS,
                                   .record = x->record,
                                   .sum = x->sum,
                                   .blocks = BLOCKS,
                                   .block = x->block,
                                   .all_blocks = x->all_blocks};
}

static double tree(int64_t lanes, int64_t lane, int64_t i)
{
    return lanes == 1 ? term(lane, i)
                      : tree(lanes / 2, lane, i) + tree(lanes / 2, lane + lanes / 2, i);
}

/* Lane records are added by the lane tree: the same bits for every P that divides L. */
static void terms_are_added_by_the_lane_tree(void **state)
{
    (void)state;
    for (int64_t lanes = 1; lanes <= MOST; lanes *= 2) {
        exchange x;
        prepare(&x, lanes);
        bk_step_agree(ctl, &x.lanes, &x.message);
        assert_int_equal(x.message.status, BK_OK);
        for (int64_t i = 0; i < TERMS; i++) {
            double want = tree(lanes, 0, i), scale = 0.0, first = x.sum[i];
            for (int64_t l = 0; l < lanes; l++)
                scale += fabs(term(l, i));
            if (bk_lanes_exact(&x.lanes, size))
                assert_memory_equal(&x.sum[i], &want, sizeof want);
            else
                assert_true(fabs(x.sum[i] - want) <= 1e-14 * scale);
            bk_broadcast(ctl, 0, &first, sizeof first);
            assert_memory_equal(&x.sum[i], &first, sizeof first);
        }
    }
}

static void blocks_arrive_in_rank_order(void **state)
{
    exchange x;
    (void)state;
    prepare(&x, 4);
    bk_step_agree(ctl, &x.lanes, &x.message);
    for (int r = 0; r < size; r++)
        for (int i = 0; i < BLOCKS; i++)
            assert_true(x.all_blocks[r * BLOCKS + i] == 10.0 * r + i);
}

static void flags_are_summed(void **state)
{
    exchange x;
    (void)state;
    prepare(&x, 4);
    x.message.flag[BK_STEP_NONFINITE] = 3 * rank + 1;
    x.message.flag[BK_STEP_TERM] = rank == size - 1;
    x.message.flag[BK_STEP_TIME] = 1;
    bk_step_agree(ctl, &x.lanes, &x.message);
    assert_int_equal(x.message.flag[BK_STEP_NONFINITE], 3 * size * (size - 1) / 2 + size);
    assert_int_equal(x.message.flag[BK_STEP_TERM], 1);
    assert_int_equal(x.message.flag[BK_STEP_USR1], 0);
    assert_int_equal(x.message.flag[BK_STEP_TIME], size);
}

/* Whoever failed, with the worst class: its status and text everywhere; the sums are whole. */
static void worst_status_reaches_all(void **state)
{
    (void)state;
    for (int failing = 0; failing < size; failing++) {
        exchange x;
        char text[32];
        prepare(&x, 4);
        if (rank == failing)
            x.message.status = bk_fail(BK_FAULT, "rank %d broke", failing);
        else if (rank == (failing + 1) % size)
            x.message.status = bk_fail(BK_INPUT, "rank %d cannot read", rank);
        bk_step_agree(ctl, &x.lanes, &x.message);
        snprintf(text, sizeof text, "rank %d broke", failing);
        assert_int_equal(x.message.status, BK_FAULT);
        assert_string_equal(bk_status_text(), text);
        double want = tree(4, 0, 1);
        assert_true(fabs(x.sum[1] - want) <= 1e-12 * fabs(want));
    }
}

static void nan_is_not_lost(void **state)
{
    exchange x;
    (void)state;
    prepare(&x, 4);
    if (rank == size - 1)
        x.record[(x.lanes.count - 1) * TERMS + 2] = NAN;
    bk_step_agree(ctl, &x.lanes, &x.message);
    assert_true(isfinite(x.sum[0]) && isfinite(x.sum[1]) && isnan(x.sum[2]));
}

/* One message a rank, whatever the statistics. */
static void costs_one_exchange(void **state)
{
    exchange x;
    (void)state;
    prepare(&x, 4);
    bk_traffic before = bk_traffic_now();
    bk_step_agree(ctl, &x.lanes, &x.message);
    assert_int_equal(bk_traffic_now().messages - before.messages, bk_comm_size(ctl) > 1);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(terms_are_added_by_the_lane_tree),
        cmocka_unit_test(blocks_arrive_in_rank_order),
        cmocka_unit_test(flags_are_summed),
        cmocka_unit_test(worst_status_reaches_all),
        cmocka_unit_test(nan_is_not_lost),
        cmocka_unit_test(costs_one_exchange),
    };
    bk_test_ranks_start(&argc, &argv);
    ctl = bk_test_world()->ctl;
    rank = bk_mpi_rank();
    size = bk_mpi_size();
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
