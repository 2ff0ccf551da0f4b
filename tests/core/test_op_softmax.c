/* Masked softmax against a plain double loop. */
#include "core/ops.h"
#include "tests/support/check.h"
#include "tests/support/child.h"

#include <math.h>
#include <string.h>

enum { B = 2, H = 2, N = 7, M = 9 };

/* Sample 1 has no keys in front, and then a hole. */
static const int32_t mask[B * M] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0};

static bool sees(bool masked, bool causal, int64_t row, int64_t key)
{
    int64_t sample = row / (H * N), query = row % N;
    return (!masked || mask[sample * M + key]) && (!causal || key <= query);
}

static void check_row(const bk_tensor *s, const bk_tensor *p, int64_t row, bool masked, bool causal)
{
    double most = -INFINITY, sum = 0.0, inner = 0.0, limit = s->dtype == BK_F64 ? 1e-14 : 1e-6;
    double expected[M];
    for (int64_t j = 0; j < M; j++)
        if (sees(masked, causal, row, j))
            most = fmax(most, bk_test_value(s, row * M + j));
    for (int64_t j = 0; j < M; j++)
        sum += expected[j] =
            sees(masked, causal, row, j) ? exp(bk_test_value(s, row * M + j) - most) : 0.0;
    for (int64_t j = 0; j < M; j++) {
        expected[j] = sum > 0.0 ? expected[j] / sum : 0.0;
        bk_check_error(fabs(bk_test_value(p, row * M + j) - expected[j]), limit, "p");
        if (!sees(masked, causal, row, j))
            assert_true(bk_test_value(p, row * M + j) == 0.0);
        inner += expected[j] * bk_test_grad(p, row * M + j);
    }
    for (int64_t j = 0; j < M; j++)
        bk_check_error(fabs(bk_test_grad(s, row * M + j) -
                            expected[j] * (bk_test_grad(p, row * M + j) - inner)),
                       limit, "ds");
}

static void check(bk_dtype dtype, double spread, bool masked, bool causal)
{
    bk_tape t = bk_test_tape(dtype, bk_lanes_single(B));
    bk_tensor *s = bk_test_fill(&t, BK_SHAPE(B, H, N, M), 1, -spread, spread), *m = NULL;
    if (masked) {
        m = bk_tape_constant(&t, BK_I32, BK_SHAPE(B, M));
        memcpy(m->data, mask, sizeof mask);
    }
    bk_tensor *p = bk_softmax_masked(&t, s, m, causal);
    bk_test_seed_fill(&t, p, 2, -1, 1);
    bk_tape_backward_seeded(&t);
    for (int64_t row = 0; row < B * H * N; row++)
        check_row(s, p, row, masked, causal);
    bk_test_tape_free(&t);
}

static void softmax_is_the_plain_loop(void **state)
{
    (void)state;
    for (int k = 0; k < 16; k++)
        check(k % 2 ? BK_F64 : BK_F32, k / 8 ? 1e4 : 3.0, k / 2 % 2, k / 4 % 2);
}

static void nan_is_shown(void **state)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(B));
    bk_tensor *s = bk_test_fill(&t, BK_SHAPE(B, H, N, M), 1, -1, 1);
    (void)state;
    ((float *)s->data)[3 * M + 4] = NAN;
    const bk_tensor *p = bk_softmax_masked(&t, s, NULL, false);
    for (int64_t i = 0; i < bk_count(p); i++)
        assert_true(isnan(bk_test_value(p, i)) == (i / M == 3));
    bk_test_tape_free(&t);
}

static void wrong_axes(void *unused)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(B));
    (void)unused;
    bk_softmax_masked(&t, bk_test_fill(&t, BK_SHAPE(B, N, M), 1, -1, 1), NULL, false);
}

static void mistakes_are_faults(void **state)
{
    (void)state;
    bk_test_dies(wrong_axes, NULL, "scores have 3 axes");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(softmax_is_the_plain_loop),
        cmocka_unit_test(nan_is_shown),
        cmocka_unit_test(mistakes_are_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
