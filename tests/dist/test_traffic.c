/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
/* Every communicator counts for its own part of a step, and the parts add up. */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "dist/collective.h"

#include <string.h>

static const bk_world *w;

/* What a call adds to one part; no other part may grow. */
static bk_traffic grown(const bk_traffic *before, bk_traffic_part part)
{
    for (int i = 0; i < BK_TRAFFIC_PARTS; i++)
        if (i != (int)part)
            assert_int_equal(bk_traffic_minus(bk_traffic_of(i), before[i]).messages, 0);
    return bk_traffic_minus(bk_traffic_of(part), before[part]);
}

static void each_communicator_counts_apart(void **state)
{
    const bk_comm *comm[] = {w->ctl, w->loss, w->route, w->ep, w->data};
    const bk_traffic_part part[] = {BK_TRAFFIC_AGREE, BK_TRAFFIC_LOSS, BK_TRAFFIC_ROUTE,
                                    BK_TRAFFIC_EXPERT, BK_TRAFFIC_REST};
    (void)state;
    for (int k = 0; k < 5; k++) {
        bk_traffic before[BK_TRAFFIC_PARTS];
        int64_t x[3] = {1, 2, 3};
        for (int i = 0; i < BK_TRAFFIC_PARTS; i++)
            before[i] = bk_traffic_of(i);
        bk_sum_i64(comm[k], 3, x);
        bk_traffic more = grown(before, part[k]);
        bool sends = bk_comm_size(comm[k]) > 1;
        assert_int_equal(more.messages, sends ? 1 : 0);
        assert_int_equal(more.bytes, sends ? (int64_t)sizeof x : 0);
        assert_true(sends ? more.blocked > 0.0 : more.blocked == 0.0);
    }
}

static void parts_add_up(void **state)
{
    bk_traffic sum = {0}, all = bk_traffic_now();
    (void)state;
    for (int i = 0; i < BK_TRAFFIC_PARTS; i++) {
        bk_traffic one = bk_traffic_of(i);
        sum.bytes += one.bytes;
        sum.messages += one.messages;
        for (int j = 0; j < i; j++)
            assert_string_not_equal(bk_traffic_name(i), bk_traffic_name(j));
    }
    assert_int_equal(sum.bytes, all.bytes);
    assert_int_equal(sum.messages, all.messages);
    bk_traffic_add(BK_TRAFFIC_LOSS, 40);
    all = bk_traffic_minus(bk_traffic_now(), all);
    assert_int_equal(all.bytes, 40);
    assert_int_equal(all.messages, 1);
}

/* An all-gather sends the own part to each other rank. */
static void gathers_count_each_receiver(void **state)
{
    int64_t all[8], before = bk_traffic_now().bytes;
    (void)state;
    bk_gather_counts(w->data, w->rank, all);
    assert_int_equal(bk_traffic_now().bytes - before, 8 * (w->size - 1));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_communicator_counts_apart),
        cmocka_unit_test(parts_add_up),
        cmocka_unit_test(gathers_count_each_receiver),
    };
    bk_test_ranks_start(&argc, &argv);
    w = bk_test_world();
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
