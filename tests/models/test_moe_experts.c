/* test: labels=unit,grad timeout=60 */
/* The experts on the rows that arrived: the formula, differences, blocks that do not see each
 * other. */
#include "tests/support/check.h"

#include "core/blas.h"
#include "models/moe_experts.h"

#include <math.h>
#include <string.h>

enum { COUNT = 3, LANES = 2, C = 4, F = 6, R = 9 };

/* Rows of (expert, lane); expert 1 has none, lane 1 of expert 2 has none. */
static const bk_expert_block layout[COUNT * LANES] = {{0, 0, 3}, {0, 5, 2}, {1, 3, 0},
                                                      {1, 7, 0}, {2, 3, 2}, {2, 7, 2}};

typedef struct setting {
    bk_tape tape;
    bk_tensor *leaf[BK_EXPERT_WEIGHTS * COUNT];
    bk_expert_block block[COUNT * LANES];
    bk_dispatch dispatch;
    bk_experts experts;
    bk_tensor *x, *out, *g, *dx;
} setting;

static bool bf16; /* operands of products */

/* On the tape that the setting has, else (all zero) on a new one. */
static void open_setting(setting *s, bk_dtype dtype, bk_activation activation, bool biases)
{
    static const int64_t shape[BK_EXPERT_WEIGHTS][2] = {{F, C}, {F, 0}, {C, F}, {C, 0}};
    bk_tape tape = s->tape.arena ? s->tape : bk_test_tape(dtype, bk_lanes_single(R));
    bk_tape_begin(&tape);
    tape.bf16 = bf16;
    memset(s, 0, sizeof *s);
    s->tape = tape;
    for (int w = 0; w < BK_EXPERT_WEIGHTS; w++)
        for (int e = 0; e < COUNT && (biases || shape[w][1] > 0); e++)
            s->leaf[w * COUNT + e] = bk_test_fill(&s->tape, shape[w][1] > 0 ? 2 : 1, shape[w],
                                                  (uint64_t)(w * COUNT + e), -1.0, 1.0);
    memcpy(s->block, layout, sizeof layout);
    s->dispatch = (bk_dispatch){
        .received = R, .chunks = 1, .lanes = LANES, .block = s->block, .blocks = COUNT * LANES};
    s->x = bk_test_fill(&s->tape, BK_SHAPE(R, C), 30, -1.0, 1.0);
    s->g = bk_test_fill(&s->tape, BK_SHAPE(R, C), 31, -1.0, 1.0);
    s->out = bk_tape_variable(&s->tape, BK_SHAPE(R, C));
    s->dx = bk_tape_variable(&s->tape, BK_SHAPE(R, C));
    s->experts = (bk_experts){.dtype = dtype,
                              .count = COUNT,
                              .width = C,
                              .hidden = F,
                              .activation = activation,
                              .leaf = s->leaf,
                              .dispatch = &s->dispatch};
    bk_experts_precision(&s->tape, &s->experts);
    s->experts.received = bk_operand(&s->tape, dtype, bk_count(s->x), s->x->data, s->tape.arena);
}

static void run_forward(setting *s)
{
    bk_experts_open(&s->tape, &s->experts);
    for (int64_t chunk = 0; chunk < s->dispatch.chunks; chunk++)
        bk_experts_forward(&s->tape, &s->experts, chunk, s->out->data);
}

static void run_backward(setting *s)
{
    bk_experts_back back = bk_experts_back_open(&s->tape, &s->experts, s->g->data, s->dx->data);
    for (int64_t chunk = 0; chunk < s->dispatch.chunks; chunk++) {
        bk_experts_inputs_back(&s->tape, &back, chunk);
        bk_experts_weights_back(&s->tape, &back, chunk);
    }
    bk_experts_close(&s->tape, &s->experts);
}

static int expert_of_row(int row)
{
    for (int b = 0; b < COUNT * LANES; b++)
        if (row >= layout[b].first && row < layout[b].first + layout[b].rows)
            return (int)layout[b].expert;
    return -1;
}

static double activation_of(bk_activation kind, double x)
{
    switch (kind) {
    case BK_GELU:
        return 0.5 * x * (1.0 + erf(x / sqrt(2.0)));
    case BK_RELU:
        return fmax(x, 0.0);
    case BK_SILU:
        return x / (1.0 + exp(-x));
    default:
        return 0.5 * x * (1.0 + tanh(sqrt(2.0 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
    }
}

static double weight(const setting *s, bk_expert_weight w, int e, int i)
{
    const bk_tensor *x = s->leaf[(int)w * COUNT + e];
    return x ? bk_test_value(x, i) : 0.0;
}

/* Output c of a row, by the formula. */
static double formula(const setting *s, int row, int c)
{
    int e = expert_of_row(row);
    double y = weight(s, BK_EXPERT_B2, e, c);
    for (int f = 0; f < F; f++) {
        double inner = weight(s, BK_EXPERT_B1, e, f);
        for (int i = 0; i < C; i++)
            inner += weight(s, BK_EXPERT_W1, e, f * C + i) * bk_test_value(s->x, row * C + i);
        y += weight(s, BK_EXPERT_W2, e, c * F + f) * activation_of(s->experts.activation, inner);
    }
    return y;
}

static void outputs_are_the_formula(void **state)
{
    const bk_activation kinds[] = {BK_GELU, BK_GELU_TANH, BK_RELU, BK_SILU};
    setting s = {0};
    (void)state;
    for (int i = 0; i < 16; i++) {
        bk_dtype dtype = i % 2 ? BK_F64 : BK_F32;
        open_setting(&s, dtype, kinds[i / 4], i / 2 % 2);
        run_forward(&s);
        for (int j = 0; j < R * C; j++)
            bk_check_error(fabs(bk_test_value(s.out, j) - formula(&s, j / C, j % C)),
                           dtype == BK_F64 ? 1e-12 : 1e-5, "activation %d", i / 4);
        bk_test_tape_free(&s.tape);
        s = (setting){0};
    }
}

/* <g, out> with element i of leaf n (-1: of the rows) moved. */
static double moved(setting *s, int n, int i, double delta)
{
    double sum = 0.0;
    open_setting(s, BK_F64, BK_GELU, true);
    ((double *)(n < 0 ? s->x : s->leaf[n])->data)[i] += delta;
    run_forward(s);
    for (int j = 0; j < R * C; j++)
        sum += bk_test_value(s->g, j) * bk_test_value(s->out, j);
    return sum;
}

static void gradients_are_differences(void **state)
{
    const double step = 1e-5;
    setting s = {0}, other = {0};
    (void)state;
    open_setting(&s, BK_F64, BK_GELU, true);
    run_forward(&s);
    run_backward(&s);
    for (int n = -1; n < BK_EXPERT_WEIGHTS * COUNT; n++) {
        const bk_tensor *x = n < 0 ? s.x : s.leaf[n];
        for (int i = 0; i < bk_count(x); i++) {
            double numeric =
                       (moved(&other, n, i, step) - moved(&other, n, i, -step)) / (2.0 * step),
                   grad = n < 0 ? bk_test_value(s.dx, i) : bk_test_grad(x, i);
            bk_check_error(fabs(numeric - grad), 1e-8, "leaf %d", n);
        }
    }
    bk_test_tape_free(&s.tape);
    bk_test_tape_free(&other.tape);
}

/* An expert without rows has a gradient of zeros, not none. */
static void idle_experts_have_zeros(void **state)
{
    setting s = {0};
    (void)state;
    open_setting(&s, BK_F32, BK_GELU, true);
    run_forward(&s);
    run_backward(&s);
    for (int w = 0; w < BK_EXPERT_WEIGHTS; w++) {
        const bk_tensor *x = s.leaf[w * COUNT + 1];
        assert_non_null(x->grad);
        for (int i = 0; i < bk_count(x); i++)
            assert_true(bk_test_grad(x, i) == 0.0);
    }
    bk_test_tape_free(&s.tape);
}

static void hold_leaves(const setting *a, const setting *b)
{
    for (int i = 0; i < BK_EXPERT_WEIGHTS * COUNT; i++)
        assert_memory_equal(a->leaf[i]->grad, b->leaf[i]->grad,
                            (size_t)bk_count(a->leaf[i]) * sizeof(float));
}

/* Cut into chunks, one of which may be empty, the experts give the bits that they give at once. */
static void chunks_change_no_bit(void **state)
{
    setting whole = {0}, cut = {0};
    (void)state;
    open_setting(&whole, BK_F32, BK_GELU, true);
    run_forward(&whole);
    run_backward(&whole);
    for (int64_t chunks = 2; chunks <= COUNT + 1; chunks++) {
        open_setting(&cut, BK_F32, BK_GELU, true);
        cut.dispatch.chunks = chunks;
        run_forward(&cut);
        run_backward(&cut);
        assert_memory_equal(cut.out->data, whole.out->data, R * C * sizeof(float));
        assert_memory_equal(cut.dx->data, whole.dx->data, R * C * sizeof(float));
        hold_leaves(&cut, &whole);
    }
    bk_test_tape_free(&whole.tape);
    bk_test_tape_free(&cut.tape);
}

/* ---- operands in bf16 ---- */

static void run_both(setting *s, bool rounded, bk_gemm_library library)
{
    bf16 = rounded;
    assert_int_equal(bk_blas_setup(1, library), BK_OK);
    open_setting(s, BK_F32, BK_GELU, true);
    run_forward(s);
    run_backward(s);
    assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
    bf16 = false;
}

static double error_of(int64_t n, const float *x, const float *reference)
{
    double most = 1e-30, worst = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double error = fabs((double)x[i] - (double)reference[i]);
        most = fmax(most, fabs((double)reference[i]));
        worst = error > worst || isnan(error) ? error : worst;
    }
    return worst / most;
}

/* The largest error of outputs and gradients of a against b, relative to the largest entry of each
 * array. */
static double distance(const setting *a, const setting *b)
{
    double worst = fmax(error_of(R * C, a->out->data, b->out->data),
                        error_of(R * C, a->dx->data, b->dx->data));
    for (int i = 0; i < BK_EXPERT_WEIGHTS * COUNT; i++)
        worst = fmax(worst, error_of(bk_count(a->leaf[i]), a->leaf[i]->grad, b->leaf[i]->grad));
    return worst;
}

/* Two roundings of one part in 2^9 each stand behind every term; and they do stand there. */
static void rounded_operands_are_near(void **state)
{
    setting whole = {0}, rounded = {0};
    (void)state;
    run_both(&whole, false, BK_GEMM_AUTO);
    run_both(&rounded, true, BK_GEMM_AUTO);
    bk_check_error(distance(&rounded, &whole), 0.02, "bf16 against fp32");
    assert_true(distance(&rounded, &whole) > 1e-4);
    bk_test_tape_free(&whole.tape);
    bk_test_tape_free(&rounded.tape);
}

/* Products of bf16 numbers are those of the same numbers in fp32: rows, weights, activations and
 * gradients are rounded, sums and biases are not. */
static void rounded_operands_are_the_same_in_fp32(void **state)
{
    setting cblas = {0}, any = {0};
    (void)state;
    run_both(&cblas, true, BK_GEMM_CBLAS);
    run_both(&any, true, BK_GEMM_AUTO);
    bk_check_error(distance(&any, &cblas), 1e-5, "bf16 against rounded fp32");
    bk_test_tape_free(&cblas.tape);
    bk_test_tape_free(&any.tape);
}

static void double_precision_is_never_rounded(void **state)
{
    (void)state;
    bf16 = true;
    gradients_are_differences(state);
    bf16 = false;
}

static void chunks_change_no_bit_of_bf16(void **state)
{
    bf16 = true;
    chunks_change_no_bit(state);
    bf16 = false;
}

/* Rows of the other blocks move no bit of a block's outputs. */
static void blocks_do_not_see_each_other(void **state)
{
    setting a = {0}, b = {0};
    (void)state;
    open_setting(&a, BK_F32, BK_GELU, true);
    open_setting(&b, BK_F32, BK_GELU, true);
    for (int i = 0; i < 3 * C; i++)
        ((float *)b.x->data)[i] += 1.0f;
    run_forward(&a);
    run_forward(&b);
    assert_memory_equal((float *)a.out->data + 3 * C, (float *)b.out->data + 3 * C,
                        (R - 3) * C * sizeof(float));
    assert_memory_not_equal(a.out->data, b.out->data, 3 * C * sizeof(float));
    bk_test_tape_free(&a.tape);
    bk_test_tape_free(&b.tape);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outputs_are_the_formula),
        cmocka_unit_test(gradients_are_differences),
        cmocka_unit_test(idle_experts_have_zeros),
        cmocka_unit_test(chunks_change_no_bit),
        cmocka_unit_test(blocks_do_not_see_each_other),
        cmocka_unit_test(rounded_operands_are_near),
        cmocka_unit_test(rounded_operands_are_the_same_in_fp32),
        cmocka_unit_test(double_precision_is_never_rounded),
        cmocka_unit_test(chunks_change_no_bit_of_bf16),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
