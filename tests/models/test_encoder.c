/* test: labels=unit,grad timeout=120 */
/* The encoder: pooling, the class position, padding, and its gradient, parameter by parameter. */
#include "tests/support/model.h"

#include "core/blas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const bk_lanes four_lanes = {.total = 4, .count = 4, .batch = 8};

static bk_test_model *open_encoder(const char *section)
{
    const bk_model_data data = bk_test_classes(32);
    return bk_test_model_open(section, &data, bk_test_alone(), four_lanes);
}

static int64_t ragged(int64_t sample)
{
    return 1 + sample * 5 % 14;
}

/* ---- padding ---- */

/* The symbols in the padding move no bit of the logits; its amount moves them by rounding at most
 * (products of other row counts: the libraries' bits depend on them). */
static void check_padding(const char *section)
{
    bk_test_model *m = open_encoder(section);
    float logits[3][24];
    const int64_t length[] = {16, 16, 32};
    const int32_t filler[] = {0, 7, 3};
    for (int i = 0; i < 3; i++) {
        bk_test_model_batch(m, length[i], ragged, filler[i]);
        const bk_tensor *out = bk_test_model_forward(m);
        assert_true(out->dims == 2 && out->shape[0] == 8 && out->shape[1] == 3);
        memcpy(logits[i], out->data, sizeof logits[i]);
    }
    if (memcmp(logits[0], logits[1], sizeof logits[0]) != 0)
        fail_msg("%s: the content of padding moves logits", section);
    for (int i = 0; i < 24; i++)
        bk_check_error(fabs((double)logits[0][i] - (double)logits[2][i]), 1e-5,
                       "%s: the amount of padding", section);
    bk_test_model_close(m);
}

static void padding_moves_nothing(void **state)
{
    (void)state;
    check_padding("{layers: 2, width: 24, heads: 3, pool: mean}");
    check_padding("{layers: 2, width: 24, heads: 3, pool: cls, positions: sinusoid}");
    check_padding("{layers: 2, width: 24, heads: 3, pool: first, positions: none}");
    check_padding("{layers: 2, width: 24, heads: 3, moe: {experts: 4, router: {kind: sinkhorn}}}");
    check_padding("{layers: 2, width: 24, heads: 3, pool: cls, moe: {experts: 4, k: 1}}");
}

/* A batch without a mask is one whose positions are all real. */
static int64_t all(int64_t sample)
{
    (void)sample;
    return 16;
}

static void no_mask_means_all_real(void **state)
{
    const char *section[] = {"{layers: 1, width: 12, heads: 2, pool: mean}",
                             "{layers: 1, width: 12, heads: 2, pool: cls, moe: {every: 1}}"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        bk_test_model *m = open_encoder(section[i]);
        float logits[24];
        bk_test_model_batch(m, 16, NULL, 0);
        memcpy(logits, bk_test_model_forward(m)->data, sizeof logits);
        bk_test_model_batch(m, 16, all, 0);
        assert_memory_equal(logits, bk_test_model_forward(m)->data, sizeof logits);
        bk_test_model_close(m);
    }
}

/* ---- pooling ---- */

/* Without blocks in the way: `layers: 1` with all projections zero leaves x = embedding, so the
 * logits are head(pool(norm(embedding))). */
static void zero_blocks(bk_test_model *m)
{
    for (int i = 0; i < m->slab->parameters; i++) {
        const bk_parameter *p = m->slab->parameter[i];
        if (strstr(p->name, "/attention/wo") || strstr(p->name, "/ffn/w2") ||
            strstr(p->name, "/ffn/b2"))
            memset(m->slab->value + p->offset, 0, (size_t)p->count * sizeof(float));
    }
}

static const float *value_of(const bk_test_model *m, const char *name)
{
    return bk_parameter_value(m->slab, bk_test_parameter(m, name, -1));
}

enum { WIDTH = 12 };

/* y = norm(x) with the gain and bias of the last norm. */
static void normalise(const bk_test_model *m, const double *x, double *y)
{
    const float *gain = value_of(m, "model/norm/gain"), *bias = value_of(m, "model/norm/bias");
    double mean = 0.0, variance = 0.0;
    for (int c = 0; c < WIDTH; c++)
        mean += x[c] / WIDTH;
    for (int c = 0; c < WIDTH; c++)
        variance += (x[c] - mean) * (x[c] - mean) / WIDTH;
    for (int c = 0; c < WIDTH; c++)
        y[c] = (x[c] - mean) / sqrt(variance + 1e-5) * gain[c] + bias[c];
}

/* What stands at place i (the class position in front counts) of a sample before the blocks. */
static void embedding_of(const bk_test_model *m, int64_t sample, int64_t i, double *x)
{
    const int32_t *tokens = bk_i32(bk_bundle_need(&m->bundle, "tokens"));
    bool cls = m->model->cls != NULL;
    const float *row =
        cls && i == 0 ? value_of(m, "model/embed/cls")
                      : value_of(m, "model/embed/tokens") + tokens[sample * 16 + i - cls] * WIDTH;
    const float *position = value_of(m, "model/embed/positions") + i * WIDTH;
    for (int c = 0; c < WIDTH; c++)
        x[c] = (double)row[c] + (double)position[c];
}

static void check_pool(const char *section)
{
    bk_test_model *m = open_encoder(section);
    zero_blocks(m);
    bk_test_model_batch(m, 16, ragged, 0);
    const bk_tensor *logits = bk_test_model_forward(m);
    const float *w = value_of(m, "model/head/w"), *b = value_of(m, "model/head/b");
    for (int64_t s = 0; s < 8; s++) {
        int64_t places = m->model->config.pool == BK_POOL_MEAN ? ragged(s) : 1;
        double pooled[WIDTH] = {0}, x[WIDTH], y[WIDTH];
        for (int64_t i = 0; i < places; i++) {
            embedding_of(m, s, i, x);
            normalise(m, x, y);
            for (int c = 0; c < WIDTH; c++)
                pooled[c] += y[c] / (double)places;
        }
        for (int k = 0; k < 3; k++) {
            double expected = (double)b[k];
            for (int c = 0; c < WIDTH; c++)
                expected += (double)w[k * WIDTH + c] * pooled[c];
            bk_check_error(fabs(expected - bk_test_value(logits, s * 3 + k)), 1e-5, "%s", section);
        }
    }
    bk_test_model_close(m);
}

static void pools_are_their_formulas(void **state)
{
    (void)state;
    check_pool("{layers: 1, width: 12, heads: 2, pool: mean}");
    check_pool("{layers: 1, width: 12, heads: 2, pool: first}");
    check_pool("{layers: 1, width: 12, heads: 2, pool: cls}");
}

/* ---- gradients ---- */

static void every_parameter_has_its_gradient(void **state)
{
    (void)state;
    bk_test_model_check_gradient(open_encoder("{layers: 2, width: 12, heads: 2, pool: cls}"), 16,
                                 ragged);
    bk_test_model_check_gradient(
        open_encoder("{layers: 2, width: 12, heads: 2, activation: silu, attention: {bias: true}, "
                     "moe: {every: 1, experts: 3, k: 3, hidden: 7, aux: switch, aux_weight: 0.1, "
                     "z_weight: 0.01}}"),
        16, ragged);
    bk_test_model_check_gradient(
        open_encoder(
            "{layers: 1, width: 12, heads: 2, moe: {every: 1, experts: 3, k: 3, router: {kind: "
            "ssr, probability: 1, gradient: implicit, tolerance: 1e-9, iterations: "
            "1000, warm_start: false}}}"),
        16, ragged);
}

static void pairs_have_their_gradient(void **state)
{
    const bk_model_data data = bk_test_pairs(16);
    (void)state;
    bk_test_model *m = bk_test_model_open("{layers: 1, width: 12, heads: 2, pool: cls}", &data,
                                          bk_test_alone(), four_lanes);
    bk_test_model_check_gradient(m, 16, ragged);
}

static void features_have_their_gradient(void **state)
{
    const bk_model_data data = {.channels = 5, .classes = 3, .max_length = 16};
    (void)state;
    bk_test_model *m = bk_test_model_open("{layers: 1, width: 12, heads: 2, pool: mean}", &data,
                                          bk_test_alone(), four_lanes);
    bk_test_model_check_gradient(m, 0, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(padding_moves_nothing),
        cmocka_unit_test(no_mask_means_all_real),
        cmocka_unit_test(pools_are_their_formulas),
        cmocka_unit_test(every_parameter_has_its_gradient),
        cmocka_unit_test(pairs_have_their_gradient),
        cmocka_unit_test(features_have_their_gradient),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
