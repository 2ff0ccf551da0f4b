/* test: labels=unit timeout=60 */
/* The model as a whole: its kinds, the names and shapes of parameters, counts, advice. */
#include "tests/support/model.h"

#include "core/blas.h"
#include "core/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bk_model *read_model(bk_arena *arena, const char *section, const bk_model_data *data)
{
    bk_model *m;
    if (bk_test_model_read(arena, section, data, bk_test_alone(), &m) != BK_OK)
        fail_msg("%s: %s", section, bk_status_text());
    return m;
}

/* ---- names and shapes: the format of checkpoints ---- */

static void shape_text(const bk_parameter *p, char text[128])
{
    int length = snprintf(text, 128, "%s", p->name);
    for (int i = 0; i < p->global_dims; i++)
        length +=
            snprintf(text + length, 128 - (size_t)length, " %lld", (long long)p->global_shape[i]);
}

/* Logical tensors in the order of declaration, slices of one tensor once. */
static void check_parameters(const char *section, const bk_model_data *data,
                             const char *const *expected)
{
    bk_arena *arena = bk_arena_new("run");
    const bk_slab *slab = bk_model_slab(read_model(arena, section, data));
    const char *seen[256] = {0};
    char text[128];
    int tensors = 0;
    for (int i = 0; i < slab->parameters; i++) {
        bool before = false;
        for (int j = 0; j < tensors && !before; j++)
            before = strcmp(seen[j], slab->parameter[i]->name) == 0;
        if (before)
            continue;
        seen[tensors] = slab->parameter[i]->name;
        shape_text(slab->parameter[i], text);
        assert_non_null(expected[tensors]);
        assert_string_equal(text, expected[tensors]);
        tensors++;
    }
    assert_null(expected[tensors]);
    bk_arena_free(arena);
}

static void encoder_parameters(void **state)
{
    const bk_model_data data = bk_test_classes(20);
    const char *const expected[] = {"model/embed/tokens 11 8",
                                    "model/embed/positions 33 8", /* 32 and the class position */
                                    "model/embed/cls 8",
                                    "model/block0/norm1/gain 8",
                                    "model/block0/norm1/bias 8",
                                    "model/block0/attention/wq 6 8",
                                    "model/block0/attention/wk 6 8",
                                    "model/block0/attention/wv 6 8",
                                    "model/block0/attention/wo 8 6",
                                    "model/block0/norm2/gain 8",
                                    "model/block0/norm2/bias 8",
                                    "model/block0/ffn/w1 32 8",
                                    "model/block0/ffn/b1 32",
                                    "model/block0/ffn/w2 8 32",
                                    "model/block0/ffn/b2 8",
                                    "model/block1/norm1/gain 8",
                                    "model/block1/norm1/bias 8",
                                    "model/block1/attention/wq 6 8",
                                    "model/block1/attention/wk 6 8",
                                    "model/block1/attention/wv 6 8",
                                    "model/block1/attention/wo 8 6",
                                    "model/block1/norm2/gain 8",
                                    "model/block1/norm2/bias 8",
                                    "model/block1/moe/gate 4 8",
                                    "model/block1/moe/w1 4 5 8",
                                    "model/block1/moe/b1 4 5",
                                    "model/block1/moe/w2 4 8 5",
                                    "model/block1/moe/b2 4 8",
                                    "model/norm/gain 8",
                                    "model/norm/bias 8",
                                    "model/head/w 3 8",
                                    "model/head/b 3",
                                    NULL};
    (void)state;
    check_parameters("{layers: 2, width: 8, heads: 2, qkv_width: 6, pool: cls, moe: {experts: 4, "
                     "hidden: 5, router: {kind: ssr}}}",
                     &data, expected);
}

static void decoder_parameters(void **state)
{
    const bk_model_data data = bk_test_language(20);
    const char *const expected[] = {"model/embed/tokens 11 8",
                                    "model/embed/positions 32 8",
                                    "model/block0/norm1/gain 8",
                                    "model/block0/norm1/bias 8",
                                    "model/block0/attention/wq 8 8",
                                    "model/block0/attention/bq 8",
                                    "model/block0/attention/wk 8 8",
                                    "model/block0/attention/bk 8",
                                    "model/block0/attention/wv 8 8",
                                    "model/block0/attention/bv 8",
                                    "model/block0/attention/wo 8 8",
                                    "model/block0/attention/bo 8",
                                    "model/block0/norm2/gain 8",
                                    "model/block0/norm2/bias 8",
                                    "model/block0/ffn/w1 32 8",
                                    "model/block0/ffn/b1 32",
                                    "model/block0/ffn/w2 8 32",
                                    "model/block0/ffn/b2 8",
                                    "model/norm/gain 8",
                                    "model/norm/bias 8",
                                    "model/head/w 11 8",
                                    NULL};
    (void)state;
    check_parameters("{kind: decoder, layers: 1, width: 8, heads: 2, tied: false}", &data,
                     expected);
}

static void feature_parameters(void **state)
{
    const bk_model_data data = {.channels = 5, .classes = 3, .max_length = 16};
    bk_arena *arena = bk_arena_new("run");
    (void)state;
    const bk_slab *slab = bk_model_slab(
        read_model(arena, "{layers: 1, width: 8, heads: 2, ffn: 4, positions: none}", &data));
    assert_string_equal(slab->parameter[0]->name, "model/embed/features");
    assert_string_equal(slab->parameter[1]->name, "model/embed/bias");
    assert_string_equal(slab->parameter[2]->name, "model/block0/norm1/gain");
    bk_arena_free(arena);
}

/* Weight decay: matrices of the blocks and the tied embedding; no norm, bias, table of positions.
 */
static void what_decays(void **state)
{
    const bk_model_data data = bk_test_language(16);
    bk_arena *arena = bk_arena_new("run");
    (void)state;
    const bk_slab *slab = bk_model_slab(read_model(
        arena, "{kind: decoder, layers: 1, width: 8, heads: 2, moe: {every: 1}}", &data));
    for (int i = 0; i < slab->parameters; i++) {
        const bk_parameter *p = slab->parameter[i];
        bool table = strstr(p->name, "positions") != NULL;
        assert_int_equal(p->decay, p->dims == 2 && !table);
        assert_int_equal(p->uses, strcmp(p->name, "model/embed/tokens") == 0 ? 2 : 1);
    }
    bk_arena_free(arena);
}

/* Potentials and counter of the routers that keep state, and of no other. */
static void router_state_is_in_the_registry(void **state)
{
    const bk_model_data data = bk_test_classes(16);
    char section[128];
    (void)state;
    for (int i = 0; bk_routers[i]; i++) {
        bk_arena *arena = bk_arena_new("run");
        snprintf(section, sizeof section,
                 "{layers: 1, width: 8, heads: 2, moe: {every: 1, experts: 5, router: {kind: %s}}}",
                 bk_routers[i]->name);
        const bk_slab *slab = bk_model_slab(read_model(arena, section, &data));
        bool keeps = bk_routers[i]->flags & BK_ROUTER_STATE;
        const bk_buffer *bias = bk_slab_find_buffer(slab, "model/block0/moe/router_bias"),
                        *steps = bk_slab_find_buffer(slab, "model/block0/moe/router_ot_steps");
        bool counts = bk_routers[i]->flags & BK_ROUTER_TRANSPORT;
        assert_true((bias != NULL) == keeps && (steps != NULL) == counts);
        assert_true(!keeps || (bias->dtype == BK_F64 && bias->count == 5));
        assert_true(!counts || (steps->dtype == BK_I64 && steps->count == 1));
        bk_arena_free(arena);
    }
}

/* ---- counts ---- */

static void gpt2_has_its_size(void **state)
{
    const bk_model_data data = {.vocabulary = 50257, .max_length = 1024};
    bk_arena *arena = bk_arena_new("run");
    (void)state;
    bk_model *m = read_model(
        arena, "{kind: decoder, layers: 12, width: 768, heads: 12, activation: gelu_tanh}", &data);
    bk_model_figures f = bk_model_measure(m);
    assert_int_equal(f.parameters, 124439808);
    assert_int_equal(f.active_parameters, 124439808);
    /* products of 1024 positions: 2 FLOP a weight of the blocks and of the output, and attention */
    double blocks = 2.0 * 1024 * 12 * 12 * 768.0 * 768, output = 2.0 * 1024 * 768 * 50257.0,
           scores = 12 * 4.0 * 1024 * 1024 * 768 * 0.5;
    bk_check_error(f.flops_per_sample / (blocks + output + scores) - 1.0, 1e-12, "FLOP");
    bk_arena_free(arena);
}

static void a_mixture_counts_active_parameters(void **state)
{
    const bk_model_data data = bk_test_classes(16);
    bk_arena *arena = bk_arena_new("run");
    (void)state;
    bk_model *m = read_model(arena,
                             "{layers: 4, width: 8, heads: 2, ffn: 24, moe: {experts: 6, k: 2, "
                             "hidden: 10}}",
                             &data);
    bk_model_figures f = bk_model_measure(m);
    int64_t expert = 10 * 8 + 10 + 8 * 10 + 8;
    assert_int_equal(f.parameters - f.active_parameters, 2 * 4 * expert);
    assert_int_equal(bk_model_moe_layers(m), 2);
    double dense = 2.0 * 16 * (4 * 8 * 8 + 2 * 8 * 24), mixed = 2.0 * 16 * (4 * 8 * 8 + 2 * 8 * 20),
           attention = 4.0 * 16 * 16 * 8;
    bk_check_error(f.flops_per_sample / (2 * dense + 2 * mixed + 4 * attention + 2.0 * 8 * 3) - 1.0,
                   1e-12, "FLOP");
    bk_arena_free(arena);
}

/* ---- advice ---- */

typedef struct advice {
    const bk_model *model;
    int64_t steps;
} advice;

static void give_advice(void *context)
{
    const advice *a = context;
    bk_model_advise(a->model, a->steps);
}

static void check_advice(const char *moe, int64_t steps, const char *expected)
{
    const bk_model_data data = bk_test_classes(16);
    bk_arena *arena = bk_arena_new("run");
    char section[256];
    snprintf(section, sizeof section, "{layers: 2, width: 8, heads: 2, moe: %s}", moe);
    advice a = {read_model(arena, section, &data), steps};
    char *text = bk_test_stderr_of(give_advice, &a);
    if (expected ? !strstr(text, expected) : *text != '\0')
        fail_msg("%s, %lld steps: '%s'", moe, (long long)steps, text);
    if (expected && strchr(text, '\n') != strrchr(text, '\n'))
        fail_msg("%s: more than one warning: %s", moe, text);
    free(text);
    bk_arena_free(arena);
}

static void advice_is_given_once(void **state)
{
    (void)state;
    check_advice("{}", 10, NULL);
    check_advice("{aux: switch}", 10, NULL);
    check_advice("{router: {kind: sinkhorn}}", 10, NULL);
    check_advice("{router: {kind: sinkhorn}, aux: switch}", 10, "two balancers");
    check_advice("{router: {kind: ssr}}", 9999, "about 99 of 9999 steps");
    check_advice("{router: {kind: ssr}}", 10000, NULL);
    check_advice("{router: {kind: ssr, probability: 0.1}, aux: switch}", 1000, "two balancers");
    check_advice("{router: {kind: ssr, probability: 1}, k: 1}", 1000, "k=1");
}

/* ---- the table ---- */

static void kinds_have_their_texts(void **state)
{
    int kinds = 0;
    (void)state;
    for (; bk_models[kinds]; kinds++)
        assert_true(bk_models[kinds]->name && bk_models[kinds]->summary &&
                    bk_models[kinds]->declare && bk_models[kinds]->forward);
    assert_true(kinds >= 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encoder_parameters),
        cmocka_unit_test(decoder_parameters),
        cmocka_unit_test(feature_parameters),
        cmocka_unit_test(what_decays),
        cmocka_unit_test(router_state_is_in_the_registry),
        cmocka_unit_test(gpt2_has_its_size),
        cmocka_unit_test(a_mixture_counts_active_parameters),
        cmocka_unit_test(advice_is_given_once),
        cmocka_unit_test(kinds_have_their_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
