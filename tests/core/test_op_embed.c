/* Tables by token and by position. */
#include "core/ops.h"
#include "core/rng.h"
#include "tests/support/check.h"
#include "tests/support/child.h"

#include <math.h>

enum { B = 4, N = 6, V = 5, C = 3 };

static bk_tensor *tokens_of(bk_tape *t)
{
    bk_tensor *tokens = bk_tape_constant(t, BK_I32, BK_SHAPE(B, N));
    for (int i = 0; i < B * N; i++) /* token 4 does not occur */
        ((int32_t *)tokens->data)[i] = (int32_t)bk_fill((uint64_t)i, 9, 0.0, 4.0);
    return tokens;
}

static void rows_are_looked_up_and_their_gradients_summed(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        bk_tape t = bk_test_tape(k ? BK_F64 : BK_F32, (bk_lanes){2, 0, 2, B});
        bk_tensor *tokens = tokens_of(&t), *table = bk_test_fill(&t, BK_SHAPE(V, C), 1, -1, 1);
        bk_tensor *y = bk_embed(&t, tokens, table);
        double sum[V * C] = {0};
        assert_true(y->dims == 3 && y->shape[0] == B && y->shape[1] == N && y->shape[2] == C);
        bk_test_seed_fill(&t, y, 2, -1, 1);
        bk_tape_backward_seeded(&t);
        for (int64_t i = 0; i < B * N * C; i++) {
            int64_t at = bk_i32(tokens)[i / C] * C + i % C;
            assert_true(bk_test_value(y, i) == bk_test_value(table, at));
            sum[at] += bk_test_grad(y, i);
        }
        for (int64_t i = 0; i < V * C; i++)
            bk_check_error(fabs(bk_test_grad(table, i) - sum[i]), k ? 1e-14 : 1e-5, "dtable");
        for (int64_t i = 4 * C; i < V * C; i++)
            assert_true(bk_test_grad(table, i) == 0.0);
        bk_test_tape_free(&t);
    }
}

static void positions_are_added_to_every_sample(void **state)
{
    enum { M = 8 };
    (void)state;
    for (int k = 0; k < 2; k++) {
        bk_tape t = bk_test_tape(k ? BK_F64 : BK_F32, (bk_lanes){4, 0, 4, B});
        bk_tensor *x = bk_test_fill(&t, BK_SHAPE(B, N, C), 1, -1, 1),
                  *p = bk_test_fill(&t, BK_SHAPE(M, C), 2, -1, 1);
        bk_tensor *y = bk_add_positions(&t, x, p);
        double sum[M * C] = {0}, limit = k ? 1e-14 : 1e-6;
        bk_test_seed_fill(&t, y, 3, -1, 1);
        bk_tape_backward_seeded(&t);
        for (int64_t i = 0; i < B * N * C; i++) {
            double expected = bk_test_value(x, i) + bk_test_value(p, i % (N * C));
            bk_check_error(fabs(bk_test_value(y, i) - expected), limit, "y");
            assert_true(bk_test_grad(x, i) == bk_test_grad(y, i));
            sum[i % (N * C)] += bk_test_grad(y, i);
        }
        for (int64_t i = 0; i < M * C; i++) /* positions behind the last are untouched */
            bk_check_error(fabs(bk_test_grad(p, i) - sum[i]), limit, "dp");
        bk_test_tape_free(&t);
    }
}

static void a_foreign_token(void *value)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(B));
    bk_tensor *tokens = tokens_of(&t);
    ((int32_t *)tokens->data)[7] = *(int32_t *)value;
    bk_embed(&t, tokens, bk_test_fill(&t, BK_SHAPE(V, C), 1, -1, 1));
}

static void too_few_positions(void *unused)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(B));
    (void)unused;
    bk_add_positions(&t, bk_test_fill(&t, BK_SHAPE(B, N, C), 1, -1, 1),
                     bk_test_fill(&t, BK_SHAPE(N - 1, C), 1, -1, 1));
}

static void mistakes_are_faults(void **state)
{
    int32_t negative = -1, large = V;
    (void)state;
    bk_test_dies(a_foreign_token, &negative, "token -1 of a vocabulary of 5");
    bk_test_dies(a_foreign_token, &large, "token 5 of a vocabulary of 5");
    bk_test_dies(too_few_positions, NULL, "5 positions for 6");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_looked_up_and_their_gradients_summed),
        cmocka_unit_test(positions_are_added_to_every_sample),
        cmocka_unit_test(mistakes_are_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
