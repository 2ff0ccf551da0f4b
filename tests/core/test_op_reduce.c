/* Pooling over positions. */
#include "core/ops.h"
#include "tests/support/check.h"
#include "tests/support/child.h"

#include <math.h>
#include <string.h>

enum { B = 3, N = 5, C = 4 };

static const int32_t mask[B * N] = {1, 1, 1, 1, 1, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0};

static bk_tensor *mask_of(bk_tape *t)
{
    bk_tensor *m = bk_tape_constant(t, BK_I32, BK_SHAPE(B, N));
    memcpy(m->data, mask, sizeof mask);
    return m;
}

static void check_mean(bk_dtype dtype, bool masked)
{
    bk_tape t = bk_test_tape(dtype, bk_lanes_single(B));
    bk_tensor *x = bk_test_fill(&t, BK_SHAPE(B, N, C), 1, -1, 1),
              *y = bk_pool_mean(&t, x, masked ? mask_of(&t) : NULL);
    double limit = dtype == BK_F64 ? 1e-15 : 1e-6;
    bk_test_seed_fill(&t, y, 2, -1, 1);
    bk_tape_backward_seeded(&t);
    for (int b = 0; b < B; b++)
        for (int c = 0; c < C; c++) {
            double sum = 0.0, count = 0.0;
            for (int i = b * N; i < (b + 1) * N; i++) {
                bool real = !masked || mask[i] != 0;
                sum += real ? bk_test_value(x, i * C + c) : 0.0;
                count += real;
            }
            double expected = count > 0.0 ? sum / count : 0.0;
            bk_check_error(fabs(bk_test_value(y, b * C + c) - expected), limit, "mean");
            for (int i = b * N; i < (b + 1) * N; i++) {
                double dx = !masked || mask[i] != 0 ? bk_test_grad(y, b * C + c) / count : 0.0;
                bk_check_error(fabs(bk_test_grad(x, i * C + c) - dx), limit, "dx");
            }
        }
    bk_test_tape_free(&t);
}

static void the_mean_is_over_real_positions(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++)
        check_mean(k % 2 ? BK_F64 : BK_F32, k / 2);
}

/* What padding holds is not even looked at. */
static void padding_may_hold_anything(void **state)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(B));
    bk_tensor *x = bk_test_fill(&t, BK_SHAPE(B, N, C), 1, -1, 1),
              *y = bk_pool_mean(&t, x, mask_of(&t));
    (void)state;
    for (int i = 0; i < B * N * C; i++)
        if (!mask[i / C])
            ((float *)x->data)[i] = i % 2 ? NAN : INFINITY;
    bk_tensor *z = bk_pool_mean(&t, x, mask_of(&t));
    assert_memory_equal(y->data, z->data, B * C * sizeof(float));
    bk_test_tape_free(&t);
}

static void the_first_position(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        bk_tape t = bk_test_tape(k ? BK_F64 : BK_F32, bk_lanes_single(B));
        bk_tensor *x = bk_test_fill(&t, BK_SHAPE(B, N, C), 1, -1, 1), *y = bk_pool_first(&t, x);
        bk_test_seed_fill(&t, y, 2, -1, 1);
        bk_tape_backward_seeded(&t);
        for (int i = 0; i < B * N * C; i++) {
            int64_t at = i / (N * C) * C + i % C;
            bool first = i / C % N == 0;
            if (first)
                assert_true(bk_test_value(y, at) == bk_test_value(x, i));
            assert_true(bk_test_grad(x, i) == (first ? bk_test_grad(y, at) : 0.0));
        }
        bk_test_tape_free(&t);
    }
}

static void no_positions(void *unused)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(B));
    (void)unused;
    bk_pool_first(&t, bk_test_fill(&t, BK_SHAPE(B, 0, C), 1, -1, 1));
}

static void mistakes_are_faults(void **state)
{
    (void)state;
    bk_test_dies(no_positions, NULL, "positions to pool");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_mean_is_over_real_positions),
        cmocka_unit_test(padding_may_hold_anything),
        cmocka_unit_test(the_first_position),
        cmocka_unit_test(mistakes_are_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
