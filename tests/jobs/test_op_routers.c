/* test: labels=golden,mpi timeout=300 */
/* birkhoff op router.<kind> and moe: the golden values from a file, and the same over ranks. */
#include "tests/support/op.h"

#include <math.h>
#include <string.h>

static bk_test_op op;

static const json_t *part(const json_t *block, const char *key)
{
    const json_t *found = json_object_get(block, key);
    if (!found)
        fail_msg("no %s in the golden file", key);
    return found;
}

/* ---- routers ---- */

/* "grad_logits" of the file is grad/logits; limits of moe.md, section 13. */
typedef struct golden_call {
    const char *block, *arguments, *gradient;
    double limit; /* of the gradient in double */
} golden_call;

#define TIGHT " tolerance=1e-9 iterations=1000 warm_start=false"

static const golden_call calls[] = {
    {"topk", "router.topk", "grad_logits", 1e-9},
    {"topk_full", "router.topk renormalize=false", "grad_logits", 1e-9},
    {"topk_sigmoid", "router.topk score=sigmoid", "grad_logits", 1e-9},
    {"sinkhorn", "router.sinkhorn" TIGHT, "grad_logits", 1e-8},
    {"ssr_linear_1.0", "router.ssr probability=1 plan=true gradient=implicit" TIGHT,
     "grad_logits_implicit", 1e-8},
    {"ssr_linear_1.0", "router.ssr probability=1 plan=true gradient=partial" TIGHT,
     "grad_logits_partial", 1e-8},
    {"ssr_linear_0.5", "router.ssr probability=1 plan=true gradient=implicit epsilon=0.5" TIGHT,
     "grad_logits_implicit", 1e-8},
    {"ssr_linear_0.5", "router.ssr probability=1 plan=true gradient=partial epsilon=0.5" TIGHT,
     "grad_logits_partial", 1e-8},
    {"ssr_softmax_0.05",
     "router.ssr probability=1 plan=true gradient=implicit cost=softmax epsilon=0.05" TIGHT,
     "grad_logits_implicit", 1e-8},
    {"ssr_softmax_0.05",
     "router.ssr probability=1 plan=true gradient=partial cost=softmax epsilon=0.05" TIGHT,
     "grad_logits_partial", 1e-8},
};

static void hold_array(const json_t *block, const char *key, const char *name, double limit)
{
    if (json_object_get(block, key))
        bk_check_error(bk_test_op_error(&op, name, part(block, key), 1e-30), limit, "%s", name);
}

static void hold_router(const golden_call *c, bool wide)
{
    const json_t *block = part(op.golden, c->block);
    double limit = wide ? 1e-9 : 1e-5;
    hold_array(block, "index", "index", 0.0);
    hold_array(block, "weight", "weight", limit);
    hold_array(block, "bias", "bias", limit);
    hold_array(block, "plan", "plan", limit);
    hold_array(block, c->gradient, "grad/logits", wide ? c->limit : 1e-5);
    if (json_object_get(block, "iterations"))
        assert_int_equal(bk_test_op_attribute(&op, "iterations"),
                         json_integer_value(part(block, "iterations")));
}

static void put_logits(const char *gradient)
{
    bk_test_op_renew(&op);
    bk_test_op_json(&op, "logits", part(op.golden, "logits"));
    if (gradient)
        bk_test_op_json(&op, "grad/weight", part(op.golden, gradient));
}

static void golden_routers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        put_logits("grad_weight");
        bk_test_op_run(&op, 1, bk_arena_printf(op.arena, "%s dtype=f64", calls[i].arguments));
        hold_router(&calls[i], true);
        bk_test_op_run(&op, 1, calls[i].arguments);
        hold_router(&calls[i], false);
        bk_test_op_run(&op, 3, bk_arena_printf(op.arena, "%s dtype=f64", calls[i].arguments));
        hold_router(&calls[i], true);
    }
}

/* The unweighted losses; a missing gradient of one counts 1 when another is given. */
static void golden_losses(void **state)
{
    const json_t *aux = part(op.golden, "aux"), *z = part(op.golden, "z");
    (void)state;
    for (int ranks = 1; ranks <= 3; ranks += 2) {
        put_logits(NULL);
        bk_test_op_reals(&op, "grad/aux", 0, NULL, &(double){1.0});
        bk_test_op_run(&op, ranks, "router.topk aux=switch dtype=f64");
        bk_check_error(bk_test_op_error(&op, "aux", part(aux, "value"), 1e-30), 1e-9, "aux");
        hold_array(aux, "grad_logits", "grad/logits", 1e-9);
        put_logits(NULL);
        bk_test_op_reals(&op, "grad/aux", 0, NULL, &(double){0.0});
        bk_test_op_run(&op, ranks, "router.topk aux=switch z=true dtype=f64");
        bk_check_error(bk_test_op_error(&op, "z", part(z, "value"), 1e-30), 1e-9, "z");
        hold_array(z, "grad_logits", "grad/logits", 1e-9);
    }
}

/* Twelve choices of an expert's six go past both policies; dropped weights are 0 and have no
 * gradient, the others stay. */
static void golden_capacity(void **state)
{
    const char *const policy[] = {"probs", "position"};
    const json_t *block = part(op.golden, "capacity");
    (void)state;
    for (int i = 0; i < 2; i++)
        for (int ranks = 1; ranks <= 3; ranks++) {
            put_logits(NULL);
            bk_test_op_run(&op, ranks,
                           bk_arena_printf(op.arena,
                                           "router.topk capacity_factor=1 dtype=f64 "
                                           "drop_policy=%s",
                                           policy[i]));
            hold_array(block, bk_arena_printf(op.arena, "kept_%s", policy[i]), "kept", 0.0);
            double *kept = bk_test_op_numbers(&op, "kept"),
                   *weight = bk_test_op_numbers(&op, "weight");
            const json_t *whole = part(part(op.golden, "topk"), "weight");
            for (size_t t = 0; t < json_array_size(whole); t++)
                for (size_t s = 0; s < 2; s++) {
                    double w = json_real_value(json_array_get(json_array_get(whole, t), s));
                    assert_true(fabs(weight[2 * t + s] - kept[2 * t + s] * w) < 1e-12);
                }
            assert_true(fabs(bk_test_op_attribute(&op, "drop_rate") - 1.0 / 24.0) < 1e-15);
        }
}

/* ---- the layer ---- */

static const char *const layer_inputs[] = {"x", "gate", "w1", "b1", "w2", "b2"};

static void put_layer(void)
{
    const json_t *layer = part(op.golden, "moe");
    bk_test_op_renew(&op);
    for (int i = 0; i < 6; i++)
        bk_test_op_json(&op, layer_inputs[i], part(i < 2 ? op.golden : layer, layer_inputs[i]));
    bk_test_op_json(&op, "grad/y", part(layer, "grad_y"));
}

static void hold_layer(bool wide)
{
    const json_t *layer = part(op.golden, "moe");
    double limit = wide ? 1e-9 : 1e-5;
    hold_array(layer, "y", "y", limit);
    hold_array(part(op.golden, "topk"), "index", "index", 0.0);
    hold_array(part(op.golden, "topk"), "weight", "weight", limit);
    for (int i = 0; i < 6; i++)
        hold_array(layer, bk_arena_printf(op.arena, "grad_%s", layer_inputs[i]),
                   bk_arena_printf(op.arena, "grad/%s", layer_inputs[i]), limit);
}

static void golden_layer(void **state)
{
    (void)state;
    put_layer();
    for (int wide = 0; wide < 2; wide++) {
        const char *call = wide ? "moe dtype=f64" : "moe";
        bk_test_op_run(&op, 1, call);
        hold_layer(wide);
        bk_test_op_run(&op, 3, call);
        hold_layer(wide);
    }
}

/* ---- over ranks ---- */

enum { T = 37, E = 5, C = 6, F = 7, S = 3 };

static void put_random_layer(int64_t tokens)
{
    int64_t mask[T];
    for (int64_t i = 0; i < tokens; i++)
        mask[i] = i % 6 != 2;
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "x", BK_SHAPE(tokens, C), 1, -1.0, 1.0);
    bk_test_op_random(&op, "gate", BK_SHAPE(E, C), 2, -1.0, 1.0);
    bk_test_op_random(&op, "w1", BK_SHAPE(E, F, C), 3, -1.0, 1.0);
    bk_test_op_random(&op, "b1", BK_SHAPE(E, F), 4, -1.0, 1.0);
    bk_test_op_random(&op, "w2", BK_SHAPE(E, C, F), 5, -1.0, 1.0);
    bk_test_op_random(&op, "shared_w1", BK_SHAPE(S, C), 8, -1.0, 1.0);
    bk_test_op_random(&op, "shared_b1", BK_SHAPE(S), 9, -1.0, 1.0);
    bk_test_op_random(&op, "shared_w2", BK_SHAPE(C, S), 10, -1.0, 1.0);
    bk_test_op_random(&op, "shared_gate", BK_SHAPE(C), 11, -1.0, 1.0);
    bk_test_op_random(&op, "grad/y", BK_SHAPE(tokens, C), 7, -1.0, 1.0);
    bk_test_op_integers(&op, "mask", BK_SHAPE(tokens), mask);
}

/* Half a shared expert is none; too many rows for a rank are an error of all, with one line. */
static void what_the_layer_refuses(void **state)
{
    (void)state;
    put_random_layer(T);
    bk_test_op_refuses(&op, 70, 4, "times its even share",
                       "moe router=sinkhorn max_receive_factor=1");
    bk_test_op_run(&op, 4, "moe router=sinkhorn max_receive_factor=4");
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "x", BK_SHAPE(T, C), 1, -1.0, 1.0);
    bk_test_op_random(&op, "gate", BK_SHAPE(E, C), 2, -1.0, 1.0);
    bk_test_op_random(&op, "w1", BK_SHAPE(E, F, C), 3, -1.0, 1.0);
    bk_test_op_random(&op, "w2", BK_SHAPE(E, C, F), 5, -1.0, 1.0);
    bk_test_op_random(&op, "shared_w1", BK_SHAPE(S, C), 8, -1.0, 1.0);
    bk_test_op_refuses(&op, 2, 1, "shared_w1 is given without shared_w2", "moe");
    bk_test_op_refuses(&op, 2, 1, "max_receive_factor=0.5", "moe max_receive_factor=0.5");
}

/* Few tokens leave ranks empty; the last call has blocks that span ranks. */
static void layers_agree_over_ranks(void **state)
{
    const struct {
        int64_t tokens;
        int ranks;
        const char *call, *more;
        bool bits;
    } cases[] = {
        {T, 2, "moe router=sinkhorn aux=switch z=true", "expert=2", true},
        {T, 4, "moe router=ssr probability=1 gradient=implicit k=3 activation=relu", "", true},
        {3, 4, "moe router=sinkhorn aux=switch z=true", "expert=2 chunks=2", true},
        {T, 4, "moe router=ssr probability=1 gradient=implicit scope=local blocks=3", "expert=1",
         true},
        {T, 4, "moe router=sinkhorn capacity_factor=0.8 blocks=4", "expert=2", true},
        {T, 4, "moe router=sinkhorn wire=bf16", "expert=4 chunks=3", true},
        {T, 4, "moe router=ssr probability=1 capacity_factor=0.5 min_capacity=3", "", true},
        {T, 3, "moe router=sinkhorn noise=logits aux=switch blocks=4 seed=3", "", false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool same;
        put_random_layer(cases[i].tokens);
        if (!strstr(cases[i].call, "scope=local"))
            bk_test_op_random(&op, "bias", BK_SHAPE(E), 6, -1.0, 1.0);
        bk_check_error(bk_test_op_compare(&op, cases[i].ranks, cases[i].call, cases[i].more, &same),
                       1e-6, "%s", cases[i].call);
        assert_true(same || !cases[i].bits);
    }
}

static void figures_are_those_of_all_ranks(void **state)
{
    const char *const names[] = {"load_max_over_mean", "load_cv", "token_entropy",    "confidence",
                                 "soft_column_error",  "dead",    "nonfinite_logits", "iterations"};
    double lead[8];
    (void)state;
    for (int ranks = 1; ranks <= 3; ranks += 2) {
        bk_test_op_renew(&op);
        bk_test_op_random(&op, "logits", BK_SHAPE(T, E), 9, -1.0, 1.0);
        bk_test_op_run(&op, ranks, "router.sinkhorn");
        for (int i = 0; i < 8; i++) {
            double value = bk_test_op_attribute(&op, names[i]);
            lead[i] = ranks == 1 ? value : lead[i];
            assert_true(value == lead[i]);
        }
        assert_true(bk_test_op_attribute(&op, "ot") == 1.0);
        assert_true(bk_test_op_attribute(&op, "converged") == 1.0);
    }
}

static void evaluation_is_plain(void **state)
{
    (void)state;
    put_logits(NULL);
    bk_test_op_run(&op, 1, "router.ssr probability=1 training=false plan=true dtype=f64");
    hold_array(part(op.golden, "topk"), "index", "index", 0.0);
    hold_array(part(op.golden, "topk"), "weight", "weight", 1e-9);
    assert_true(bk_test_op_attribute(&op, "ot") == 0.0);
    assert_false(bk_test_op_has(&op, "plan"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_routers),
        cmocka_unit_test(golden_losses),
        cmocka_unit_test(golden_capacity),
        cmocka_unit_test(golden_layer),
        cmocka_unit_test(layers_agree_over_ranks),
        cmocka_unit_test(what_the_layer_refuses),
        cmocka_unit_test(figures_are_those_of_all_ranks),
        cmocka_unit_test(evaluation_is_plain),
    };
    return bk_test_op_tests(&op, "ref_moe_golden.json", tests, sizeof tests / sizeof *tests);
}
