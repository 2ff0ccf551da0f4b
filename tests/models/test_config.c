/* test: labels=unit timeout=60 */
/* The model section: every wrong key or value is one clear line, every resolved section reads back
 * as itself. */
#include "tests/support/model.h"
#include "tests/support/router.h"

#include "core/blas.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct mistake {
    const char *section;
    const char *says[3]; /* parts of the message */
} mistake;

static void check_mistake(const mistake *m, const bk_model_data *data, const bk_world *world,
                          bk_status status)
{
    bk_arena *arena = bk_arena_new("run");
    bk_model *model;
    bk_status got = bk_test_model_read(arena, m->section, data, world, &model);
    const char *text = bk_status_text();
    if (got != status)
        fail_msg("%s: status %d, %d is expected", m->section, got, status);
    for (int i = 0; i < 3 && m->says[i]; i++)
        if (!strstr(text, m->says[i]))
            fail_msg("%s: the message is '%s', without '%s'", m->section, text, m->says[i]);
    if (strchr(text, '\n'))
        fail_msg("%s: '%s' is not one line", m->section, text);
    bk_arena_free(arena);
}

static void mistakes_are_named(void **state)
{
    const mistake list[] = {
        {"3", {"model is 3, not a mapping", "test.yaml:1"}},
        {"{kind: encodr}", {"unknown model kind 'encodr'", "test.yaml:1", "encoder"}},
        {"{kind: [encoder]}", {"model.kind is a list", "test.yaml"}},
        {"{layer: 3}", {"unknown key model.layer", "test.yaml:1", "layers"}},
        {"{layers: 0}", {"model.layers=0 is out of range", "[1, 1024]"}},
        {"{layers: two}", {"model.layers is 'two'", "an integer"}},
        {"{width: 10, heads: 3}", {"model.heads=3 does not divide", "(10)"}},
        {"{activation: swish}", {"model.activation=swish is not one of gelu|gelu_tanh|relu|silu"}},
        {"{tied: true}", {"model.tied is not an option of encoder", "it belongs to decoder"}},
        {"{attention: 3}", {"model.attention is 3, not a mapping"}},
        {"{attention: {kind: sotfmax}}",
         {"unknown attention kind 'sotfmax'", "test.yaml:1", "softmax"}},
        {"{attention: {blok: 3}}", {"unknown key model.attention.blok", "block"}},
        {"{attention: {block: 0}}", {"model.attention.block=0 is out of range"}},
        {"{layers: 2, attention: [{kind: softmax}]}",
         {"model.attention has 1 entries for 2 layers", "one for each layer"}},
        {"{layers: 1, attention: [{}, {}]}", {"model.attention has 2 entries for 1 layers"}},
        {"{layers: 2, attention: [{}, {dropout: 1}]}", {"model.attention.1.dropout=1"}},
        {"{moe: 3}", {"model.moe is 3, not a mapping"}},
        {"{moe: {expert: 4}}", {"unknown key model.moe.expert", "experts"}},
        {"{moe: {experts: 2, k: 3}}", {"model.moe.k=3", "model.moe.experts=2"}},
        {"{layers: 2, moe: {every: 3}}", {"model.moe.every=3", "2 layers"}},
        {"{moe: {chunks: 65}}", {"model.moe.chunks=65 is out of range", "[1, 64]"}},
        {"{moe: {aux: swich}}", {"model.moe.aux=swich", "none|switch"}},
        {"{moe: {capacity_factor: -1}}", {"model.moe.capacity_factor=-1 is out of range"}},
        {"{moe: {drop_policy: last}}", {"model.moe.drop_policy=last", "probs|position"}},
        {"{moe: {max_receive_factor: 0.5}}", {"model.moe.max_receive_factor=0.5", "at least 1"}},
        {"{moe: {shared_gate: true}}", {"model.moe.shared_gate=true", "model.moe.shared"}},
        {"{moe: {wire: fp16}}", {"model.moe.wire=fp16", "fp32|bf16"}},
    };
    const bk_model_data data = bk_test_classes(16);
    (void)state;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        check_mistake(&list[i], &data, bk_test_alone(), BK_USAGE);
}

static void mistakes_about_routers_are_named(void **state)
{
    const mistake list[] = {
        {"{moe: {router: topk}}", {"model.moe.router is topk, not a mapping"}},
        {"{moe: {router: {kind: top}}}", {"unknown router kind 'top'", "test.yaml:1", "topk"}},
        {"{moe: {drop_policy: position, router: {kind: expert_choice}}}",
         {"drop_policy does not go with router expert_choice", "remove it"}},
        {"{moe: {min_capacity: 2, router: {kind: expert_choice}}}", {"min_capacity does not go"}},
        {"{moe: {router: {epsilon: 1}}}",
         {"model.moe.router.epsilon is not an option of topk", "it belongs to sinkhorn, ssr"}},
        {"{moe: {router: {kind: ssr, weights: plan}}}",
         {"model.moe.router.weights is not an option of ssr", "it belongs to sinkhorn"}},
        {"{moe: {router: {kind: sinkhorn, probability: 1}}}",
         {"model.moe.router.probability is not an option of sinkhorn", "it belongs to ssr"}},
        {"{moe: {router: {kind: ssr, probabilty: 1}}}",
         {"unknown key model.moe.router.probabilty", "probability"}},
        {"{moe: {router: {kind: ssr, solver: newtn}}}", {"solver=newtn", "sinkhorn|newton"}},
        {"{moe: {aux: cv}}", {"aux=cv", "noisy_topk", "topk"}},
        {"{moe: {aux: cv, experts: 4, k: 4, router: {kind: noisy_topk}}}", {"k < experts"}},
        {"{moe: {aux: seq, router: {kind: expert_choice}}}", {"aux does not go with"}},
        {"{moe: {experts: 4, k: 4, router: {kind: quantile}}}", {"k < experts", "4 of 4"}},
        {"{moe: {router: {kind: ssr, groups_kept: 1}}}", {"topk, bias, quantile"}},
        {"{moe: {router: {kind: bias, noise: logits}}}", {"topk, sinkhorn, ssr"}},
        {"{moe: {router: {groups_of_experts: 3}}}", {"groups_of_experts=3", "8 experts"}},
        {"{moe: {router: {groups_of_experts: 2, groups_kept: 3}}}", {"groups_kept=3"}},
        {"{moe: {k: 3, router: {groups_of_experts: 4}}}", {"k=3", "the 2 experts"}},
        {"{moe: {k: 1, router: {renormalize: true}}}", {"renormalize=true with k=1"}},
        {"{moe: {router: {kind: sinkhorn, gradient: partial}}}",
         {"weights=scores", "weights=plan"}},
        {"{moe: {router: {noise: cost}}}", {"model.moe.router.noise=cost", "none|logits"}},
        {"{moe: {router: {scale: 0}}}", {"model.moe.router.scale=0 is out of range", "(0, "}},
        {"{moe: {router: {kind: ssr, tolerance: 1e-10}}}", {"tolerance=1e-10 is out of range"}},
    };
    const bk_model_data data = bk_test_classes(16);
    (void)state;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        check_mistake(&list[i], &data, bk_test_alone(), BK_USAGE);
}

static void mistakes_that_need_the_data_or_the_world(void **state)
{
    const bk_model_data classes = bk_test_classes(16), language = bk_test_language(16);
    const bk_world wide = {.size = 8, .expert = 8};
    (void)state;
    check_mistake(&(mistake){"{moe: {experts: 4}}", {"parallel.expert=8", "experts=4"}}, &classes,
                  &wide, BK_USAGE);
    check_mistake(&(mistake){"{max_length: 8}", {"16 positions", "max_length is 8"}}, &classes,
                  bk_test_alone(), BK_INPUT);
    check_mistake(&(mistake){"{kind: encoder}", {"classes", "decoder"}}, &language, bk_test_alone(),
                  BK_USAGE);
    check_mistake(&(mistake){"{kind: decoder}", {"language-model", "encoder"}}, &classes,
                  bk_test_alone(), BK_USAGE);
    check_mistake(&(mistake){"{kind: decoder, moe: {router: {kind: expert_choice}}}",
                             {"expert_choice does not go with model.kind=decoder"}},
                  &language, bk_test_alone(), BK_USAGE);
    check_mistake(&(mistake){"{kind: decoder, pool: cls}",
                             {"model.pool is not an option of decoder", "it belongs to encoder"}},
                  &language, bk_test_alone(), BK_USAGE);
}

static void defaults_are_those_of_the_specification(void **state)
{
    bk_arena *arena = bk_arena_new("run");
    const bk_model_data data = bk_test_classes(16);
    bk_model *m;
    (void)state;
    assert_int_equal(bk_test_model_read(arena, "{moe: {}}", &data, bk_test_alone(), &m), BK_OK);
    const bk_moe_config *c = m->moe;
    assert_true(m->config.layers == 4 && m->config.width == 256 && m->config.heads == 4);
    assert_true(m->config.ffn == 1024 && m->config.qkv_width == 256);
    assert_true(m->config.max_length == 16 && m->config.pool == BK_POOL_MEAN);
    assert_true(c->every == 2 && c->experts == 8 && c->k == 2 && c->hidden == 1024);
    assert_true(c->activation == BK_GELU && c->aux == BK_AUX_NONE && c->aux_weight == 0.01 &&
                c->z_weight == 0.0);
    assert_string_equal(c->router->name, "topk");
    for (int i = 0; i < 4; i++) {
        assert_string_equal(m->attention[i].kind->name, "softmax");
        assert_true((m->block[i].moe != NULL) == (i % 2 == 1));
    }
    bk_arena_free(arena);
}

static char *written(const bk_model *model)
{
    char *text = NULL;
    size_t length;
    FILE *stream = open_memstream(&text, &length);
    assert_non_null(stream);
    fputc('\n', stream);
    bk_model_write_options(model, 2, stream);
    fclose(stream);
    return text;
}

/* A resolved section has no defaults left to change: read again it resolves to the same text. */
static void check_round_trip(const char *section, const bk_model_data *data)
{
    bk_arena *arena = bk_arena_new("run");
    bk_model *first, *second;
    assert_int_equal(bk_test_model_read(arena, section, data, bk_test_alone(), &first), BK_OK);
    char *text = written(first);
    if (bk_test_model_read(arena, text, data, bk_test_alone(), &second) != BK_OK)
        fail_msg("%s resolved to\n%s\n%s", section, text, bk_status_text());
    char *again = written(second);
    assert_string_equal(text, again);
    free(text);
    free(again);
    bk_arena_free(arena);
}

static void resolved_sections_read_back(void **state)
{
    const bk_model_data classes = bk_test_classes(16), language = bk_test_language(16);
    char section[256];
    (void)state;
    check_round_trip("{layers: 2, width: 12, heads: 3, pool: cls, positions: sinusoid}", &classes);
    check_round_trip("{kind: decoder, layers: 1, tied: false, dropout: 0.1}", &language);
    check_round_trip("{layers: 2, attention: [{kind: softmax, scale: 0.5}, {block: 32}]}",
                     &classes);
    for (int i = 0; bk_routers[i]; i++) {
        snprintf(section, sizeof section,
                 "{layers: 2, moe: {experts: 4, k: 3, router: {kind: %s%s}}}", bk_routers[i]->name,
                 bk_test_router_has(bk_routers[i], "scale") ? ", scale: 1.5" : "");
        check_round_trip(section, &classes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(mistakes_about_routers_are_named),
        cmocka_unit_test(mistakes_that_need_the_data_or_the_world),
        cmocka_unit_test(defaults_are_those_of_the_specification),
        cmocka_unit_test(resolved_sections_read_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
