/* test: labels=unit,mpi ranks=1,2,3,4 timeout=120 */
/* The plan by Newton against sweeps run until nothing changes, with groups, masks and any number of
 * ranks; its gradient against differences; what is refused. */
#include "tests/support/check.h"
#include "tests/support/losses.h"
#include "tests/support/ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Every group is solved by both; epsilon where sweeps still end. */
static void agrees_with_long_sweeps(void **state)
{
    static const char *const groups[] = {"global", "3", "1", "sequence", "lane"};
    (void)state;
    bk_test_batch b = bk_test_batch_new(11, 19);
    b.sequence = calloc(11, sizeof *b.sequence);
    b.valid = calloc(11, sizeof *b.valid);
    for (int32_t i = 0; i < 11; i++) {
        b.sequence[i] = i / 4;
        b.valid[i] = i != 5;
    }
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        char newton[160], sweeps[160];
        bk_test_way w = {.dtype = BK_F64, .comm = bk_test_world()->loss, .lanes = 4};
        snprintf(newton, sizeof newton,
                 "solver=newton gradient=implicit tolerance=1e-12 iterations=100 group=%s",
                 groups[i]);
        snprintf(sweeps, sizeof sweeps, "tolerance=1e-13 iterations=10000 group=%s", groups[i]);
        w.options = newton;
        bk_test_result solved = bk_test_loss("sinkd", &b, &w);
        w.options = sweeps;
        bk_test_result swept = bk_test_loss("sinkd", &b, &w);
        bk_test_same_loss(&b, &solved, &swept, 1e-10, 1e-8, groups[i]);
        assert_true(bk_test_figure(&solved, "row_violation") < 1e-10);
        assert_true(bk_test_figure(&solved, "iterations") < 40);
        bk_test_result_free(&solved);
        bk_test_result_free(&swept);
    }
    bk_test_batch_free(&b);
}

/* Where sweeps take tens of thousands. */
static void small_epsilon(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(8, 50);
    bk_test_way w = {.dtype = BK_F64,
                     .comm = bk_test_world()->loss,
                     .options = "solver=newton gradient=implicit tolerance=1e-12 iterations=200 "
                                "epsilon=0.005"};
    bk_test_result r = bk_test_loss("sinkd", &b, &w);
    assert_true(bk_test_figure(&r, "row_violation") < 1e-10);
    bk_test_result_free(&r);
    bk_test_batch_free(&b);
}

static void differences(void **state)
{
    (void)state;
    if (bk_comm_rank(bk_test_world()->loss) > 0)
        return;
    bk_test_loss_gradient("sinkd",
                          "solver=newton gradient=implicit tolerance=1e-13 iterations=100");
    bk_test_loss_gradient("sinkd", "solver=newton gradient=implicit tolerance=1e-13 iterations=100 "
                                   "epsilon=0.02 group=3");
}

static void same_bits_on_powers_of_two(void **state)
{
    (void)state;
    int size = bk_comm_size(bk_test_world()->loss);
    bk_test_batch b = bk_test_batch_new(16, 19);
    bk_test_way w = {.dtype = BK_F64,
                     .lanes = 4,
                     .options = "solver=newton gradient=implicit tolerance=1e-12 iterations=100 "
                                "epsilon=0.05"};
    bk_test_result alone = bk_test_loss("sinkd", &b, &w);
    w.comm = bk_test_world()->loss;
    bk_test_result together = bk_test_loss("sinkd", &b, &w);
    if (size == 3) {
        bk_test_same_loss(&b, &together, &alone, 1e-12, 1e-10, "3 ranks");
    } else {
        assert_true(alone.loss == together.loss);
        assert_memory_equal(alone.grad, together.grad, 16 * 19 * sizeof(double));
    }
    bk_test_result_free(&alone);
    bk_test_result_free(&together);
    bk_test_batch_free(&b);
}

static void combinations_are_refused(void **state)
{
    static const struct {
        const char *key[2], *value[2], *says;
    } cases[] = {{{"solver", "gradient"}, {"newton", "implicit"}, "tolerance"},
                 {{"solver", "tolerance"}, {"newton", "1e-6"}, "unroll"},
                 {{"debias", "top_k"}, {"true", "4"}, "cancel"}};
    const bk_loss_kind *kind = bk_loss_find("sinkd");
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bk_arena *arena = bk_arena_new("test");
        void *config = bk_arena_zalloc(arena, kind->config_size);
        bk_value *map = bk_value_new(arena, BK_MAP, "test", 0);
        for (int k = 0; k < 2; k++)
            assert_int_equal(bk_value_set(arena, map, cases[i].key[k], cases[i].value[k]), BK_OK);
        assert_int_equal(bk_options_read(kind->options, config, map, "loss", arena), BK_OK);
        assert_int_equal(kind->check(config, BK_F64), BK_USAGE);
        assert_true(strstr(bk_status_text(), cases[i].says) != NULL);
        bk_arena_free(arena);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_long_sweeps), cmocka_unit_test(small_epsilon),
        cmocka_unit_test(differences), cmocka_unit_test(same_bits_on_powers_of_two),
        cmocka_unit_test(combinations_are_refused)};
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
