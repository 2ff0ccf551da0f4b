/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
/* The formulas by their numbers; measured costs are the same on every rank. */
#include "tests/support/check.h"
#include "tests/support/ranks.h"
#include "tests/support/slabs.h"

#include "dist/collective.h"
#include "dist/cost.h"

#include <math.h>
#include <string.h>

static void near(double x, double wanted)
{
    bk_check_error(fabs(x - wanted) / wanted, 1e-12, "%g", wanted);
}

static void allreduce_by_hand(void **state)
{
    const bk_cost c = {.alpha = 1e-5, .beta = 1e-9, .gamma = 1e-10};
    (void)state;
    /* P = 8, 1 MB: 6 messages, 1.75 MB sent, 0.875 MB added */
    near(bk_cost_allreduce(&c, BK_REDUCE_TREE, 8, 1e6), 6e-5 + 1.75e-3 + 0.0875e-3);
    near(bk_cost_allreduce(&c, BK_REDUCE_RING, 8, 1e6), 14e-5 + 1.75e-3 + 0.0875e-3);
    near(bk_cost_allreduce(&c, BK_REDUCE_MPI, 8, 1e6), 6e-5 + 1.75e-3 + 0.0875e-3);
    near(bk_cost_allreduce(&c, BK_REDUCE_MPI, 8, 8), 3e-5 + 3 * 8 * 1.1e-9); /* doubling */
    assert_true(bk_cost_allreduce(&c, BK_REDUCE_TREE, 1, 1e6) == 0.0);
}

static void buckets_by_their_messages(void **state)
{
    const bk_cost latency = {.alpha = 1.0}, bytes = {.beta = 1.0}, sums = {.gamma = 1.0};
    (void)state;
    bk_test_slab s = bk_test_slab_open(&(bk_test_layout){.lanes = 8, .bucket_floats = 100});
    const bk_reduction *r = s.reduction;
    bk_traffic reduce = bk_reduction_formula(r, BK_TRAFFIC_REDUCE);
    bk_traffic gather = bk_reduction_formula(r, BK_TRAFFIC_GATHER);
    bk_traffic last = bk_bucket_formula(r, s.slab->buckets - 1);
    assert_true(bk_cost_messages(&latency, r, BK_TRAFFIC_REDUCE) == (double)reduce.messages);
    assert_true(bk_cost_messages(&bytes, r, BK_TRAFFIC_GATHER) == (double)gather.bytes);
    assert_true(bk_cost_messages(&sums, r, BK_TRAFFIC_REDUCE) == 0.0);
    /* nothing hides; all but 10 bytes; all but the last bucket, the first of the gather; additions
     * never */
    double all = (double)(reduce.bytes + gather.bytes), ten = s.world->size > 1 ? 10.0 : 0.0,
           beside = fmax(0.0, (double)reduce.bytes - ten);
    assert_true(bk_cost_exposed(&bytes, r, 0.0, 0.0) == all);
    if (last.bytes < 10 && s.world->size > 1)
        fail_msg("a last bucket of %lld bytes", (long long)last.bytes);
    assert_true(bk_cost_exposed(&bytes, r, 0.0, beside) == (double)(last.bytes + gather.bytes));
    assert_true(bk_cost_exposed(&bytes, r, 0.0, 10.0) == all - ten);
    assert_true(bk_cost_exposed(&bytes, r, 10.0, 0.0) == all - ten);
    double most = bk_cost_exposed(&bytes, r, 1e9, 0.0) - (double)reduce.bytes;
    assert_true(most <= (double)gather.bytes && (most > 0.0) == (s.world->size > 1));
    assert_true(bk_cost_exposed(&sums, r, 1e9, 1e9) == (double)reduce.bytes);
    bk_test_slab_close(&s);
}

static void measured_costs_agree(void **state)
{
    const bk_world *w = bk_test_world();
    bk_cost c = bk_cost_measure(w->ctl, 3), first = c;
    (void)state;
    bk_broadcast(w->ctl, 0, &first, sizeof first);
    assert_memory_equal(&first, &c, sizeof c);
    assert_true(c.gamma > 0.0);
    assert_true(w->size == 1 ? c.alpha == 0.0 && c.beta == 0.0 : c.alpha > 0.0 && c.beta >= 0.0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(allreduce_by_hand),
        cmocka_unit_test(buckets_by_their_messages),
        cmocka_unit_test(measured_costs_agree),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
