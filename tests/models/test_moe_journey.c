/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
/* What travels in bf16 is rounded once on each way, wherever its expert is. */
#include "tests/support/moe.h"
#include "tests/support/ranks.h"

#include "core/rng.h"
#include "core/vector.h"

#include <math.h>

static double rounded(double x)
{
    float value = (float)x;
    uint16_t bits;
    bk_vector(BK_F32)->pack_bf16(1, &value, &bits);
    bk_vector(BK_F32)->unpack_bf16(1, &bits, &value);
    return (double)value;
}

/* Identity experts: y = sum_s w_s bf16(x), dx = sum_s bf16(w_s dy). */
static void check_values(bk_test_layer *y, const bk_test_scene *s)
{
    const bk_tensor *x = y->args.x;
    bool differs = bk_count(x) == 0;
    for (int64_t i = 0; i < bk_count(x); i++) {
        double *weight = y->result.route.weight + i / s->width * s->k;
        double dy = bk_fill((uint64_t)(y->args.first_token * s->width + i), 40, -1.0, 1.0);
        double there = rounded(bk_test_value(x, i)), back = 0.0;
        for (int64_t k = 0; k < s->k; k++)
            back += rounded((double)((float)weight[k] * (float)dy));
        differs = differs || there != bk_test_value(x, i);
        assert_true(fabs(bk_test_value(y->result.y, i) - there) < 1e-6);
        assert_true(fabs(bk_test_grad(x, i) - back) < 2e-6);
    }
    assert_true(differs);
}

static void rows_are_rounded_on_their_way(void **state)
{
    const bk_test_scene s = bk_test_scene_filled(
        (bk_test_scene){.name = "identity", .identity = true, .unbiased = true, .wire_bf16 = true});
    (void)state;
    for (int ep = 1; ep < BK_TEST_DEGREES; ep++)
        for (int64_t chunks = 1; bk_test_worlds[ep] && chunks < 4; chunks++) {
            bk_test_layer *y = bk_test_layer_open(&s, bk_test_worlds[ep]);
            y->args.chunks = chunks;
            bk_test_layer_run(y);
            check_values(y, &s);
            bk_test_layer_close(y);
        }
}

/* Half the bytes of the rows, the counts are not among them. */
static void half_the_bytes_travel(void **state)
{
    const bk_test_scene s = bk_test_scene_filled((bk_test_scene){.name = "bytes"});
    (void)state;
    for (int ep = 1; ep < BK_TEST_DEGREES; ep++) {
        int64_t bytes[2];
        for (int i = 0; bk_test_worlds[ep] && i < 2; i++) {
            bk_moe_state state_ = {0};
            bk_test_layer *y = bk_test_layer_open(&s, bk_test_worlds[ep]);
            bk_moe_state_init(&state_, y->tape.arena, s.experts);
            y->args.state = &state_;
            y->args.wire_bf16 = i == 1;
            bk_test_layer_run(y);
            bytes[i] = state_.counter[BK_MOE_BYTES];
            bk_test_layer_close(y);
        }
        if (bk_test_worlds[ep])
            assert_true(bytes[0] == 2 * bytes[1] && (bytes[0] > 0) == (ep > 1));
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_rounded_on_their_way),
        cmocka_unit_test(half_the_bytes_travel),
    };
    bk_test_ranks_start(&argc, &argv);
    bk_test_worlds_open();
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
