/* Ops that move data: where each element goes, and that its gradient comes back. */
#include "core/ops.h"
#include "tests/support/check.h"
#include "tests/support/child.h"

#include <math.h>

enum { B = 2, N = 3, H = 4, D = 5 };

/* Position of (b, n, h, d) in [B,N,H*D] and in [B,H,N,D]. */
static int64_t merged(int64_t b, int64_t n, int64_t h, int64_t d)
{
    return ((b * N + n) * H + h) * D + d;
}

static int64_t apart(int64_t b, int64_t n, int64_t h, int64_t d)
{
    return ((b * H + h) * N + n) * D + d;
}

static void heads_move_there_and_back(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        bk_tape t = bk_test_tape(k ? BK_F64 : BK_F32, bk_lanes_single(B));
        bk_tensor *x = bk_test_fill(&t, BK_SHAPE(B, N, H * D), 1, -1, 1);
        bk_tensor *y = bk_split_heads(&t, x, H), *z = bk_merge_heads(&t, y);
        assert_true(y->dims == 4 && y->shape[1] == H && y->shape[2] == N && y->shape[3] == D);
        assert_true(bk_same_shape(x, z));
        bk_test_seed_fill(&t, y, 2, -1, 1); /* a second reader of y */
        bk_test_seed_fill(&t, z, 3, -1, 1);
        bk_tape_backward_seeded(&t);
        for (int64_t i = 0; i < B * N * H * D; i++) {
            int64_t b = i / (N * H * D), n = i / (H * D) % N, h = i / D % H, d = i % D;
            assert_true(bk_test_value(y, apart(b, n, h, d)) ==
                        bk_test_value(x, merged(b, n, h, d)));
            assert_true(bk_test_value(z, i) == bk_test_value(x, i));
            assert_true(bk_test_grad(x, merged(b, n, h, d)) == bk_test_grad(y, apart(b, n, h, d)));
        }
        bk_test_tape_free(&t);
    }
}

static void gradients_of_moved_heads_add_up(void **state)
{
    bk_tape t = bk_test_tape(BK_F64, bk_lanes_single(B));
    bk_tensor *x = bk_test_fill(&t, BK_SHAPE(B, N, H * D), 1, -1, 1);
    bk_tensor *one = bk_split_heads(&t, x, H), *two = bk_split_heads(&t, x, H);
    (void)state;
    bk_test_seed_fill(&t, one, 2, -1, 1);
    bk_test_seed_fill(&t, two, 3, -1, 1);
    bk_tape_backward_seeded(&t);
    for (int64_t i = 0; i < B * N * H * D; i++) {
        int64_t at = apart(i / (N * H * D), i / (H * D) % N, i / D % H, i % D);
        assert_true(bk_test_grad(x, i) == bk_test_grad(one, at) + bk_test_grad(two, at));
    }
    bk_test_tape_free(&t);
}

static void a_row_stands_in_front(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        bk_tape t = bk_test_tape(k ? BK_F64 : BK_F32, bk_lanes_single(B));
        bk_tensor *x = bk_test_fill(&t, BK_SHAPE(B, N, D), 1, -1, 1),
                  *row = bk_test_fill(&t, BK_SHAPE(D), 2, -1, 1), *y = bk_prepend(&t, x, row);
        bk_test_seed_fill(&t, y, 3, -1, 1);
        bk_tape_backward_seeded(&t);
        for (int64_t b = 0; b < B; b++)
            for (int64_t i = 0; i < (N + 1) * D; i++) {
                int64_t at = b * (N + 1) * D + i, from = b * N * D + i - D;
                double expected = i < D ? bk_test_value(row, i) : bk_test_value(x, from);
                assert_true(bk_test_value(y, at) == expected);
                if (i >= D)
                    assert_true(bk_test_grad(x, from) == bk_test_grad(y, at));
            }
        for (int64_t d = 0; d < D; d++)
            bk_check_error(
                fabs(bk_test_grad(row, d) - bk_test_grad(y, d) - bk_test_grad(y, (N + 1) * D + d)),
                k ? 1e-15 : 1e-6, "drow");
        bk_test_tape_free(&t);
    }
}

static void a_reshape_shares_the_data(void **state)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(B));
    bk_tensor *x = bk_test_fill(&t, BK_SHAPE(B, N, D), 1, -1, 1),
              *y = bk_reshape(&t, x, BK_SHAPE(B * N, D));
    (void)state;
    assert_ptr_equal(y->data, x->data);
    assert_true(y->dims == 2 && y->shape[0] == B * N && y->shape[1] == D);
    bk_test_seed_fill(&t, x, 2, -1, 1); /* x is read elsewhere too */
    bk_test_seed_fill(&t, y, 3, -1, 1);
    float before = (float)bk_test_grad(x, 7);
    bk_tape_backward_seeded(&t);
    assert_true((float)bk_test_grad(x, 7) == before + (float)bk_test_grad(y, 7));
    bk_test_tape_free(&t);
}

static void wrong_heads(void *unused)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(B));
    (void)unused;
    bk_split_heads(&t, bk_test_fill(&t, BK_SHAPE(B, N, D), 1, -1, 1), 2);
}

static void wrong_count(void *unused)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(B));
    (void)unused;
    bk_reshape(&t, bk_test_fill(&t, BK_SHAPE(B, N, D), 1, -1, 1), BK_SHAPE(B, N, D + 1));
}

static void mistakes_are_faults(void **state)
{
    (void)state;
    bk_test_dies(wrong_heads, NULL, "2 heads");
    bk_test_dies(wrong_count, NULL, "another number of elements");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_move_there_and_back),
        cmocka_unit_test(gradients_of_moved_heads_add_up),
        cmocka_unit_test(a_row_stands_in_front),
        cmocka_unit_test(a_reshape_shares_the_data),
        cmocka_unit_test(mistakes_are_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
