/* test: labels=unit,grad timeout=120 */
/* The decoder: later tokens change nothing, the tied embedding has both its gradients, padding. */
#include "tests/support/model.h"

#include "core/blas.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 4, LENGTH = 16, V = 11 };

static const bk_lanes two_lanes = {.total = 2, .count = 2, .batch = BATCH};

static bk_test_model *open_decoder(const char *section)
{
    const bk_model_data data = bk_test_language(32);
    return bk_test_model_open(section, &data, bk_test_alone(), two_lanes);
}

/* Logits of the batch with the token at `place` of every sample replaced. */
static void logits_with(bk_test_model *m, int64_t place, int32_t token, float *logits)
{
    bk_test_model_batch(m, LENGTH, NULL, 0);
    int32_t *tokens = bk_bundle_need(&m->bundle, "tokens")->data;
    for (int64_t s = 0; s < BATCH && place >= 0; s++)
        tokens[s * LENGTH + place] = token;
    const bk_tensor *out = bk_test_model_forward(m);
    assert_true(out->dims == 2 && out->shape[0] == BATCH * LENGTH && out->shape[1] == V);
    memcpy(logits, out->data, BATCH * LENGTH * V * sizeof *logits);
}

/* `limit` 0: to the bit. */
static void check_causality(const char *section, double limit)
{
    static float before[BATCH * LENGTH * V], after[BATCH * LENGTH * V];
    bk_test_model *m = open_decoder(section);
    logits_with(m, -1, 0, before);
    for (int64_t place = 1; place < LENGTH; place += 7) {
        bool later = false;
        logits_with(m, place, 10, after);
        for (int i = 0; i < BATCH * LENGTH * V; i++) {
            if (i / V % LENGTH >= place)
                later = later || before[i] != after[i];
            else if (!(fabs((double)before[i] - (double)after[i]) <= limit))
                fail_msg("%s: position %d sees position %d", section, i / V % LENGTH, (int)place);
        }
        assert_true(later);
    }
    bk_test_model_close(m);
}

static void later_tokens_change_no_bit(void **state)
{
    char section[256];
    (void)state;
    for (int i = 0; bk_attentions[i]; i++) {
        if (!(bk_attentions[i]->flags & BK_ATTENTION_CAUSAL))
            continue;
        snprintf(section, sizeof section,
                 "{kind: decoder, layers: 2, width: 24, heads: 3, attention: {kind: %s}}",
                 bk_attentions[i]->name);
        check_causality(section, 0.0);
    }
    check_causality("{kind: decoder, layers: 2, width: 24, heads: 3, tied: false, positions: "
                    "sinusoid, activation: gelu_tanh}",
                    0.0);
}

/* Routes of earlier tokens stay; the blocks of the experts have other shapes, so to rounding. */
static void later_tokens_move_no_earlier_route(void **state)
{
    (void)state;
    check_causality("{kind: decoder, layers: 2, width: 24, heads: 3, moe: {experts: 4}}", 1e-5);
}

/* ---- the tied embedding ---- */

static void copy_value(const bk_test_model *from, const char *name, const bk_test_model *to,
                       const char *as)
{
    const bk_parameter *p = bk_test_parameter(from, name, -1), *q = bk_test_parameter(to, as, -1);
    assert_int_equal(p->count, q->count);
    memcpy(to->slab->value + q->offset, from->slab->value + p->offset,
           (size_t)p->count * sizeof(float));
}

static void a_tied_embedding_has_both_gradients(void **state)
{
    const char *tied = "{kind: decoder, layers: 1, width: 24, heads: 3}",
               *untied = "{kind: decoder, layers: 1, width: 24, heads: 3, tied: false}";
    bk_test_model *m[2] = {open_decoder(tied), open_decoder(untied)};
    (void)state;
    for (int i = 0; i < m[0]->slab->parameters; i++)
        copy_value(m[0], m[0]->slab->parameter[i]->name, m[1], m[0]->slab->parameter[i]->name);
    copy_value(m[0], "model/embed/tokens", m[1], "model/head/w");
    for (int i = 0; i < 2; i++) {
        bk_test_model_batch(m[i], LENGTH, NULL, 0);
        bk_test_model_backward(m[i], bk_test_model_forward(m[i]));
    }
    const bk_parameter *both = bk_test_parameter(m[0], "model/embed/tokens", -1),
                       *input = bk_test_parameter(m[1], "model/embed/tokens", -1),
                       *output = bk_test_parameter(m[1], "model/head/w", -1);
    size_t bytes = (size_t)both->count * sizeof(float);
    assert_int_equal(both->uses, 2);
    assert_memory_equal(m[0]->slab->grad + both->grad_offset[0],
                        m[1]->slab->grad + input->grad_offset[0], bytes);
    assert_memory_equal(m[0]->slab->grad + both->grad_offset[1],
                        m[1]->slab->grad + output->grad_offset[0], bytes);
    bk_test_model_close(m[0]);
    bk_test_model_close(m[1]);
}

static int64_t ragged(int64_t sample)
{
    return 3 + sample * 4;
}

static void every_parameter_has_its_gradient(void **state)
{
    (void)state;
    bk_test_model_check_gradient(
        open_decoder("{kind: decoder, layers: 2, width: 12, heads: 2, activation: gelu_tanh}"),
        LENGTH, ragged);
    bk_test_model_check_gradient(
        open_decoder("{kind: decoder, layers: 1, width: 12, heads: 2, tied: false, positions: "
                     "none, moe: {every: 1, experts: 2, k: 2}}"),
        LENGTH, NULL);
}

/* ---- padding ---- */

/* Its content not a bit; its amount to rounding (products of other row counts). */
static void padding_moves_nothing(void **state)
{
    static float logits[3][BATCH * 32 * V];
    const int64_t length[] = {LENGTH, LENGTH, 32};
    const int32_t filler[] = {0, 7, 0};
    bk_test_model *m = open_decoder("{kind: decoder, layers: 2, width: 24, heads: 3}");
    (void)state;
    for (int i = 0; i < 3; i++) {
        bk_test_model_batch(m, length[i], ragged, filler[i]);
        const bk_tensor *out = bk_test_model_forward(m);
        memcpy(logits[i], out->data, (size_t)bk_count(out) * sizeof(float));
    }
    for (int64_t s = 0; s < BATCH; s++) {
        size_t bytes = (size_t)(ragged(s) * V) * sizeof(float);
        assert_memory_equal(logits[0] + s * LENGTH * V, logits[1] + s * LENGTH * V, bytes);
        for (int64_t i = 0; i < ragged(s) * V; i++)
            bk_check_error(
                fabs((double)logits[0][s * LENGTH * V + i] - (double)logits[2][s * 32 * V + i]),
                1e-5, "amount of padding");
    }
    bk_test_model_close(m);
}

/* ---- initialisation in the layout of GPT-2 ---- */

static double deviation(const bk_test_model *m, const char *name)
{
    const bk_parameter *p = bk_test_parameter(m, name, -1);
    double squares = 0.0;
    for (int64_t i = 0; i < p->count; i++)
        squares += pow((double)m->slab->value[p->offset + i], 2.0);
    return sqrt(squares / (double)p->count);
}

static void values_start_as_in_gpt2(void **state)
{
    bk_test_model *m = open_decoder("{kind: decoder, layers: 8, width: 96, heads: 3}");
    (void)state;
    bk_slab_initialise(m->slab, 3);
    bk_check_error(fabs(deviation(m, "model/block0/attention/wq") / 0.02 - 1.0), 0.05, "wq");
    bk_check_error(fabs(deviation(m, "model/block3/ffn/w1") / 0.02 - 1.0), 0.05, "w1");
    bk_check_error(fabs(deviation(m, "model/block3/ffn/w2") / 0.02 * 4.0 - 1.0), 0.05, "w2");
    bk_check_error(fabs(deviation(m, "model/block3/attention/wo") / 0.02 * 4.0 - 1.0), 0.05, "wo");
    bk_check_error(fabs(deviation(m, "model/embed/positions") / 0.02 - 1.0), 0.1, "positions");
    assert_true(deviation(m, "model/block3/ffn/b1") == 0.0);
    assert_true(deviation(m, "model/norm/gain") == 1.0);
    bk_test_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(later_tokens_change_no_bit),
        cmocka_unit_test(later_tokens_move_no_earlier_route),
        cmocka_unit_test(a_tied_embedding_has_both_gradients),
        cmocka_unit_test(every_parameter_has_its_gradient),
        cmocka_unit_test(padding_moves_nothing),
        cmocka_unit_test(values_start_as_in_gpt2),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
