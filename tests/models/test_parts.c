/* test: labels=unit timeout=60 */
/* Linear maps and norms: how they are declared, where they start, what they compute. */
#include "tests/support/model.h"

#include "core/blas.h"

#include <math.h>
#include <string.h>

static bk_model *empty_model(bk_arena *arena, bool language)
{
    bk_model *m = BK_ZNEW(arena, bk_model, 1);
    m->arena = arena;
    m->slab = bk_slab_new(arena);
    m->data = language ? bk_test_language(16) : bk_test_classes(16);
    m->config = (bk_model_config){.width = 8, .layers = 2, .norm_epsilon = 1e-5};
    return m;
}

static void scales_are_xavier_or_gpt2(void **state)
{
    bk_arena *arena = bk_arena_new("run");
    bk_model *encoder = empty_model(arena, false), *decoder = empty_model(arena, true);
    (void)state;
    assert_true(bk_init_kind(encoder) == BK_INIT_UNIFORM);
    assert_true(bk_init_kind(decoder) == BK_INIT_NORMAL);
    assert_true(fabs(bk_init_scale(encoder, 30, 24, 1.0) - 1.0 / 3.0) < 1e-15);
    assert_true(bk_init_scale(decoder, 30, 24, 0.5) == 0.01);
    assert_true(bk_model_causal(decoder) && !bk_model_causal(encoder));
    bk_arena_free(arena);
}

static void declarations_say_what_they_are(void **state)
{
    bk_arena *arena = bk_arena_new("run");
    bk_model *m = empty_model(arena, false);
    (void)state;
    bk_linear_part linear = bk_declare_linear(m, "model/w", "model/b", 5, 8, 1, 0.25),
                   bare = bk_declare_linear(m, "model/v", NULL, 5, 8, 1, 0.25);
    bk_norm_part norm = bk_declare_norm(m, "model/gain", "model/bias", 2);
    assert_true(linear.w->dims == 2 && linear.w->shape[0] == 5 && linear.w->shape[1] == 8);
    assert_true(linear.w->decay && linear.w->init == BK_INIT_UNIFORM &&
                linear.w->init_scale == 0.25 && linear.w->layer == 1);
    assert_true(linear.b->count == 5 && !linear.b->decay && linear.b->init == BK_INIT_ZERO);
    assert_null(bare.b);
    assert_true(norm.gain->count == 8 && norm.gain->init == BK_INIT_ONE && !norm.gain->decay);
    assert_true(norm.bias->init == BK_INIT_ZERO && norm.bias->layer == 2);
    assert_true(linear.w->expert == -1 && norm.gain->expert == -1 && linear.w->uses == 1);
    bk_arena_free(arena);
}

static void parts_compute_their_formulas(void **state)
{
    enum { R = 3, I = 8, O = 5 };
    bk_arena *arena = bk_arena_new("run");
    bk_model *m = empty_model(arena, false);
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(R));
    (void)state;
    bk_linear_part linear = bk_declare_linear(m, "model/w", "model/b", O, I, 0, 0.25);
    bk_norm_part norm = bk_declare_norm(m, "model/gain", "model/bias", 0);
    bk_slab_layout(m->slab, 1024, 16);
    bk_slab_want_gradients(m->slab);
    for (int64_t i = 0; i < m->slab->values; i++)
        m->slab->value[i] = (float)i / 64.0f - 1.0f;
    bk_tensor *x = bk_test_fill(&t, BK_SHAPE(R, I), 4, -1.0, 1.0);
    const bk_tensor *y = bk_part_linear(&t, &linear, x), *z = bk_part_norm(m, &t, &norm, x);
    const float *w = bk_parameter_value(m->slab, linear.w),
                *b = bk_parameter_value(m->slab, linear.b),
                *gain = bk_parameter_value(m->slab, norm.gain),
                *bias = bk_parameter_value(m->slab, norm.bias);
    for (int r = 0; r < R; r++) {
        double mean = 0.0, variance = 0.0;
        for (int i = 0; i < I; i++)
            mean += bk_test_value(x, r * I + i) / I;
        for (int i = 0; i < I; i++)
            variance += pow(bk_test_value(x, r * I + i) - mean, 2.0) / I;
        for (int o = 0; o < O; o++) {
            double sum = (double)b[o];
            for (int i = 0; i < I; i++)
                sum += (double)w[o * I + i] * bk_test_value(x, r * I + i);
            bk_check_error(fabs(sum - bk_test_value(y, r * O + o)), 1e-6, "linear");
        }
        for (int i = 0; i < I; i++) {
            double scaled = (bk_test_value(x, r * I + i) - mean) / sqrt(variance + 1e-5);
            bk_check_error(
                fabs(scaled * (double)gain[i] + (double)bias[i] - bk_test_value(z, r * I + i)),
                1e-5, "norm");
        }
    }
    bk_test_tape_free(&t);
    bk_arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scales_are_xavier_or_gpt2),
        cmocka_unit_test(declarations_say_what_they_are),
        cmocka_unit_test(parts_compute_their_formulas),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
