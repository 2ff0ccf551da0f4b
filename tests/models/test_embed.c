/* test: labels=unit timeout=60 */
/* From tokens or features to the residual stream, against the formulas. */
#include "tests/support/model.h"

#include "core/blas.h"

#include <math.h>
#include <string.h>

enum { BATCH = 4, N = 16, C = 12 };

static const bk_lanes two_lanes = {.total = 2, .count = 2, .batch = BATCH};

static const float *value_of(const bk_test_model *m, const char *name)
{
    return bk_parameter_value(m->slab, bk_test_parameter(m, name, -1));
}

/* Position i, channel c: a row of the table, sin(i / 10000^(2j/C)) and cos in turn, or nothing. */
static double position(const bk_test_model *m, int64_t i, int64_t c)
{
    double angle = (double)i / pow(10000.0, (double)(c - c % 2) / C);
    switch (m->model->config.positions) {
    case BK_POSITIONS_LEARNED:
        return (double)value_of(m, "model/embed/positions")[i * C + c];
    case BK_POSITIONS_SINUSOID:
        return c % 2 == 0 ? sin(angle) : cos(angle);
    default:
        return 0.0;
    }
}

static double symbol(const bk_test_model *m, int64_t sample, int64_t i, int64_t c)
{
    const bk_tensor *features = bk_bundle_get(&m->bundle, "features");
    if (!features) {
        int32_t token = bk_i32(bk_bundle_need(&m->bundle, "tokens"))[sample * N + i];
        double x = (double)value_of(m, "model/embed/tokens")[token * C + c];
        if (!m->model->segments)
            return x;
        int32_t segment = bk_i32(bk_bundle_need(&m->bundle, "segments"))[sample * N + i];
        return x + (double)value_of(m, "model/embed/segments")[segment * C + c];
    }
    int64_t channels = features->shape[2];
    const float *w = value_of(m, "model/embed/features") + c * channels;
    double sum = (double)value_of(m, "model/embed/bias")[c];
    for (int64_t k = 0; k < channels; k++)
        sum += (double)w[k] * (double)bk_f32(features)[(sample * N + i) * channels + k];
    return sum;
}

static void check_embedding(bk_test_model *m, const char *what)
{
    const bk_tensor *x = bk_embed_forward(m->model, &m->tape, &m->bundle);
    int64_t cls = m->model->cls != NULL;
    assert_true(x->dims == 3 && x->shape[0] == BATCH && x->shape[1] == N + cls && x->shape[2] == C);
    for (int64_t j = 0; j < bk_count(x); j++) {
        int64_t s = j / (C * (N + cls)), i = j / C % (N + cls), c = j % C;
        double front =
            cls && i == 0 ? (double)value_of(m, "model/embed/cls")[c] : symbol(m, s, i - cls, c);
        bk_check_error(fabs(front + position(m, i, c) - bk_test_value(x, j)), 1e-6, "%s", what);
    }
    bk_test_model_close(m);
}

static bk_test_model *open_tokens(const char *section, bool language)
{
    const bk_model_data data = language ? bk_test_language(N) : bk_test_classes(N);
    bk_test_model *m = bk_test_model_open(section, &data, bk_test_alone(), two_lanes);
    bk_test_model_batch(m, N, NULL, 0);
    return m;
}

static void tokens_and_positions(void **state)
{
    const char *section[] = {
        "{layers: 1, width: 12, heads: 2}",
        "{layers: 1, width: 12, heads: 2, positions: sinusoid}",
        "{layers: 1, width: 12, heads: 2, positions: none}",
        "{layers: 1, width: 12, heads: 2, positions: sinusoid, pool: cls}",
        "{layers: 1, width: 12, heads: 2, pool: cls}",
        "{layers: 1, width: 12, heads: 2, pool: first}",
    };
    (void)state;
    for (int i = 0; i < 6; i++)
        check_embedding(open_tokens(section[i], false), section[i]);
    check_embedding(open_tokens("{kind: decoder, layers: 1, width: 12, heads: 2}", true),
                    "decoder");
}

static void segments_of_pairs(void **state)
{
    const bk_model_data data = bk_test_pairs(N);
    const char *section[] = {"{layers: 1, width: 12, heads: 2}",
                             "{layers: 1, width: 12, heads: 2, pool: cls, positions: sinusoid}"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        bk_test_model *m = bk_test_model_open(section[i], &data, bk_test_alone(), two_lanes);
        assert_int_equal(bk_test_parameter(m, "model/embed/segments", -1)->count, 2 * C);
        bk_test_model_batch(m, N, NULL, 0);
        check_embedding(m, section[i]);
    }
    bk_test_model *single = open_tokens(section[0], false);
    assert_null(single->model->segments);
    bk_test_model_close(single);
}

static void features_and_positions(void **state)
{
    const bk_model_data data = {.channels = 5, .classes = 3, .max_length = N};
    const char *section[] = {"{layers: 1, width: 12, heads: 2}",
                             "{layers: 1, width: 12, heads: 2, pool: cls, positions: sinusoid}"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        bk_test_model *m = bk_test_model_open(section[i], &data, bk_test_alone(), two_lanes);
        bk_test_model_features(m, N, 5);
        check_embedding(m, section[i]);
    }
}

/* Dropout acts while training, on the embedding alone here. */
static void dropout_is_for_training(void **state)
{
    const char *section = "{layers: 1, width: 12, heads: 2, dropout: 0.5}";
    (void)state;
    bk_test_model *m = open_tokens(section, false);
    m->tape.training = false;
    check_embedding(m, section);
    m = open_tokens(section, false);
    const bk_tensor *x = bk_embed_forward(m->model, &m->tape, &m->bundle);
    int64_t zeros = 0;
    for (int64_t j = 0; j < bk_count(x); j++)
        zeros += bk_test_value(x, j) == 0.0;
    assert_in_range(zeros, bk_count(x) / 3, bk_count(x) * 2 / 3);
    bk_test_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_and_positions),
        cmocka_unit_test(segments_of_pairs),
        cmocka_unit_test(features_and_positions),
        cmocka_unit_test(dropout_is_for_training),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
