/* test: labels=unit,grad timeout=60 */
/* The gate against plain sums in double: padding, lanes, and the same bits for every number of
 * threads. */
#include "tests/support/check.h"

#include "core/blas.h"
#include "core/rng.h"
#include "models/moe_gate.h"

#include <math.h>
#include <string.h>

enum { T = 300, E = 9, C = 70, LANES = 4 };

typedef struct setting {
    bk_tape tape;
    bk_gate gate;
    int32_t mask[T];
    double gh[T * E]; /* two experts of a token have one */
} setting;

static void open_setting(setting *s, bk_dtype dtype, bool masked)
{
    s->tape = bk_test_tape(dtype, bk_lanes_of_rank(LANES, T, 0, 1));
    s->gate = (bk_gate){.x = bk_test_fill(&s->tape, BK_SHAPE(T, C), 1, -1.0, 1.0),
                        .weight = bk_test_fill(&s->tape, BK_SHAPE(E, C), 2, -1.0, 1.0),
                        .mask = masked ? s->mask : NULL};
    for (int i = 0; i < T * E; i++) {
        int t = i / E, e = i % E;
        s->mask[t] = t % 5 != 3;
        s->gh[i] = (masked && !s->mask[t]) || (e != t % E && e != (t + 2) % E)
                       ? 0.0
                       : bk_fill((uint64_t)i, 3, -1.0, 1.0);
    }
}

static void logits_are_products(void **state)
{
    static setting s;
    (void)state;
    for (int i = 0; i < 4; i++) {
        open_setting(&s, i % 2 ? BK_F64 : BK_F32, i >= 2);
        const double *h = bk_gate_logits(&s.tape, &s.gate);
        for (int j = 0; j < T * E; j++) {
            double sum = 0.0;
            for (int c = 0; c < C && (!s.gate.mask || s.mask[j / E]); c++)
                sum += bk_test_value(s.gate.x, j / E * C + c) *
                       bk_test_value(s.gate.weight, j % E * C + c);
            assert_true(fabs(h[j] - sum) < 1e-13);
        }
        bk_test_tape_free(&s.tape);
    }
}

/* What stands at padding goes nowhere. */
static void padding_is_not_read(void **state)
{
    static setting s;
    (void)state;
    open_setting(&s, BK_F32, true);
    for (int i = 0; i < T * C; i++)
        if (!s.mask[i / C])
            ((float *)s.gate.x->data)[i] = NAN;
    const double *h = bk_gate_logits(&s.tape, &s.gate);
    bk_gate_gradient(&s.tape, &s.gate, s.gh);
    for (int i = 0; i < T * E; i++)
        assert_true(s.mask[i / E] ? isfinite(h[i]) : h[i] == 0.0);
    for (int i = 0; i < E * C; i++)
        assert_true(isfinite(bk_test_grad(s.gate.weight, i)));
    bk_test_tape_free(&s.tape);
}

static void gradient_is_a_sum_over_tokens(void **state)
{
    static setting s;
    (void)state;
    for (int i = 0; i < 4; i++) {
        open_setting(&s, i % 2 ? BK_F64 : BK_F32, i >= 2);
        bk_gate_gradient(&s.tape, &s.gate, s.gh);
        for (int j = 0; j < E * C; j++) {
            double sum = 0.0;
            for (int t = 0; t < T; t++)
                sum += s.gh[t * E + j / C] * bk_test_value(s.gate.x, t * C + j % C);
            bk_check_error(fabs(bk_test_grad(s.gate.weight, j) - sum), i % 2 ? 1e-12 : 1e-5,
                           "element %d", j);
        }
        bk_test_tape_free(&s.tape);
    }
}

static void threads_change_no_bit(void **state)
{
    static setting one, more;
    (void)state;
    open_setting(&one, BK_F32, true);
    const double *h = bk_gate_logits(&one.tape, &one.gate);
    bk_gate_gradient(&one.tape, &one.gate, one.gh);
    for (int threads = 2; threads <= 5; threads++) {
        assert_int_equal(bk_blas_setup(threads, BK_GEMM_AUTO), BK_OK);
        open_setting(&more, BK_F32, true);
        assert_memory_equal(h, bk_gate_logits(&more.tape, &more.gate), sizeof one.gh);
        bk_gate_gradient(&more.tape, &more.gate, more.gh);
        assert_memory_equal(one.gate.weight->grad, more.gate.weight->grad, E * C * sizeof(float));
        bk_test_tape_free(&more.tape);
    }
    bk_test_tape_free(&one.tape);
    assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_products),
        cmocka_unit_test(padding_is_not_read),
        cmocka_unit_test(gradient_is_a_sum_over_tokens),
        cmocka_unit_test(threads_change_no_bit),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
