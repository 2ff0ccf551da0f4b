/* test: labels=golden,mpi timeout=300 */
/* birkhoff op router.<kind> and moe for the kinds that keep a state, draw through a gate of their
 * own or let experts choose: golden values from a file, the same over ranks, what they refuse. */
#include "tests/support/op.h"

#include <math.h>
#include <string.h>

static bk_test_op op;

/* ---- golden values ---- */

/* A dataset of the input, or an array of the output, and where it stands in the block. */
typedef struct name_pair {
    const char *name, *key;
} name_pair;

typedef struct golden_call {
    const char *block, *arguments;
    const char *gradient; /* of the weights, in the block; NULL: grad_weight of the file */
    name_pair in[4], out[6];
} golden_call;

static const golden_call calls[] = {
    {"bias",
     "router.bias",
     NULL,
     {{"bias", "bias_in"}},
     {{"index", "index"}, {"weight", "weight"}, {"bias", "bias"}, {"grad/logits", "grad_logits"}}},
    {"quantile",
     "router.quantile",
     NULL,
     {{"bias", "bias_in"}},
     {{"index", "index"}, {"weight", "weight"}, {"bias", "bias"}}},
    {"noisy_topk",
     "router.noisy_topk aux=cv",
     NULL,
     {{"noise_logits", "noise_logits"}, {"noise", "noise"}},
     {{"index", "index"},
      {"weight", "weight"},
      {"aux", "aux"},
      {"grad/logits", "grad_logits"},
      {"grad/noise_logits", "grad_noise_logits"}}},
    {"expert_choice",
     "router.expert_choice",
     "grad_weight",
     {{0}},
     {{"token", "token"}, {"weight", "weight"}, {"grad/logits", "grad_logits"}}},
};

static void put_call(const golden_call *c, const json_t *block)
{
    bk_test_op_renew(&op);
    bk_test_op_json(&op, "logits", json_object_get(op.golden, "logits"));
    bk_test_op_json(&op, "grad/weight",
                    json_object_get(c->gradient ? block : op.golden, "grad_weight"));
    for (int i = 0; c->in[i].name; i++)
        bk_test_op_json(&op, c->in[i].name, json_object_get(block, c->in[i].key));
}

static void hold_call(const golden_call *c, const json_t *block, double limit)
{
    for (int i = 0; c->out[i].name; i++) {
        const json_t *expected = json_object_get(block, c->out[i].key);
        assert_non_null(expected);
        bk_check_error(bk_test_op_error(&op, c->out[i].name, expected, 1e-30), limit, "%s of %s",
                       c->out[i].name, c->block);
    }
}

static void golden_kinds(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        const golden_call *c = &calls[i];
        const json_t *block = json_object_get(op.golden, c->block);
        put_call(c, block);
        bk_test_op_run(&op, 1, c->arguments);
        hold_call(c, block, 1e-5);
        for (int ranks = 1; ranks <= 3; ranks += 2) {
            bk_test_op_run(&op, ranks, bk_arena_printf(op.arena, "%s dtype=f64", c->arguments));
            hold_call(c, block, 1e-9);
        }
    }
}

/* The state stays where nothing is trained; noise is for training. */
static void evaluation_moves_no_state(void **state)
{
    const json_t *block = json_object_get(op.golden, "bias");
    (void)state;
    put_call(&calls[0], block);
    bk_test_op_run(&op, 2, "router.bias training=false dtype=f64");
    bk_check_error(bk_test_op_error(&op, "index", json_object_get(block, "index"), 1e-30), 0.0,
                   "index");
    bk_check_error(bk_test_op_error(&op, "bias", json_object_get(block, "bias_in"), 1e-30), 0.0,
                   "bias");
    put_call(&calls[2], json_object_get(op.golden, "noisy_topk"));
    bk_test_op_run(&op, 1, "router.noisy_topk training=false dtype=f64");
    block = json_object_get(op.golden, "topk");
    bk_check_error(bk_test_op_error(&op, "index", json_object_get(block, "index"), 1e-30), 0.0,
                   "index");
    bk_check_error(bk_test_op_error(&op, "weight", json_object_get(block, "weight"), 1e-30), 1e-9,
                   "weight");
}

/* ---- over ranks ---- */

enum { T = 37, E = 5, C = 6, F = 7 };

static void put_layer(int64_t tokens, const char *more)
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
    bk_test_op_random(&op, "grad/y", BK_SHAPE(tokens, C), 7, -1.0, 1.0);
    bk_test_op_integers(&op, "mask", BK_SHAPE(tokens), mask);
    if (strcmp(more, "bias") == 0)
        bk_test_op_random(&op, more, BK_SHAPE(E), 6, -1.0, 1.0);
    if (strcmp(more, "noise_gate") == 0)
        bk_test_op_random(&op, more, BK_SHAPE(E, C), 8, -1.0, 1.0);
}

/* Few tokens leave ranks empty. */
static void layers_agree_over_ranks(void **state)
{
    const struct {
        int64_t tokens;
        int ranks;
        const char *input, *call, *more;
        bool bits;
    } cases[] = {
        {T, 4, "bias", "moe router=bias aux=global groups_of_experts=5 groups_kept=3", "expert=2",
         true},
        {3, 4, "bias", "moe router=quantile", "expert=4", true},
        {T, 2, "bias", "moe router=quantile aux=seq blocks=4 scope=local", "", true},
        {T, 4, "noise_gate", "moe router=noisy_topk aux=cv z=true", "expert=2", true},
        {T, 3, "noise_gate", "moe router=noisy_topk aux=cv scope=local blocks=3", "", false},
        {T, 4, "", "moe router=expert_choice z=true", "expert=2 chunks=2", true},
        {3, 4, "", "moe router=expert_choice capacity_factor=0.5 k=1", "", true},
        {T, 3, "", "moe router=expert_choice scope=local blocks=2", "", false},
        {T, 4, "bias", "moe router=sinkhorn solver=newton aux=switch", "", true},
        {T, 2, "", "moe router=uniform k=3", "", true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool same;
        put_layer(cases[i].tokens, cases[i].input);
        bk_check_error(bk_test_op_compare(&op, cases[i].ranks, cases[i].call, cases[i].more, &same),
                       1e-6, "%s", cases[i].call);
        if (cases[i].bits && !same)
            fail_msg("%s: other bits on %d ranks", cases[i].call, cases[i].ranks);
    }
}

/* ---- forms of the balance loss ---- */

static double aux_of(const char *arguments)
{
    bk_test_op_run(&op, 2, arguments);
    return bk_test_op_numbers(&op, "aux")[0];
}

/* With one block they are one; else global counts over all, switch and seq by block. */
static void forms_of_the_loss(void **state)
{
    (void)state;
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "logits", BK_SHAPE(T, E), 9, -1.0, 1.0);
    double whole = aux_of("router.topk aux=switch dtype=f64"),
           global = aux_of("router.topk aux=global blocks=5 dtype=f64"),
           parts = aux_of("router.topk aux=switch blocks=5 dtype=f64"),
           sequences = aux_of("router.topk aux=seq blocks=5 dtype=f64");
    assert_true(fabs(global - whole) < 1e-12);
    assert_true(parts == sequences && fabs(parts - whole) > 1e-6);
}

/* ---- refusals ---- */

static void mistakes_are_named(void **state)
{
    (void)state;
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "logits", BK_SHAPE(T, E), 9, -1.0, 1.0);
    bk_test_op_refuses(&op, 2, 1, "belongs to bias", "router.topk rate=1");
    bk_test_op_refuses(&op, 2, 1, "belongs to sinkhorn, ssr", "router.bias cost=linear");
    bk_test_op_refuses(&op, 2, 1, "belongs to sinkhorn, ssr", "router.topk plan=true");
    bk_test_op_refuses(&op, 2, 2, "drop_policy does not go with router expert_choice",
                       "router.expert_choice drop_policy=position");
    bk_test_op_refuses(&op, 2, 1, "min_capacity does not go with router expert_choice",
                       "router.expert_choice min_capacity=2");
    bk_test_op_refuses(&op, 2, 1, "noisy_topk", "router.topk aux=cv");
    bk_test_op_refuses(&op, 2, 1, "aux does not go with", "router.expert_choice aux=switch");
    bk_test_op_refuses(&op, 2, 1, "k < experts", "router.quantile k=5");
    bk_test_op_refuses(&op, 2, 1, "noise_logits is missing", "router.noisy_topk");
    bk_test_op_refuses(&op, 2, 1, "unknown operator", "router.uniform");
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "logits", BK_SHAPE(T, E), 9, -1.0, 1.0);
    bk_test_op_random(&op, "grad/weight", BK_SHAPE(E, 3), 9, -1.0, 1.0);
    bk_test_op_refuses(&op, 3, 1, "3 columns for 15 weights", "router.expert_choice");
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "logits", BK_SHAPE(T, E), 9, -1.0, 1.0);
    bk_test_op_random(&op, "bias", BK_SHAPE(E), 9, -1.0, 1.0);
    bk_test_op_refuses(&op, 2, 1, "bias is not read by router.sinkhorn with scope=local",
                       "router.sinkhorn scope=local");
    bk_test_op_refuses(&op, 2, 1, "bias is not read by router.ssr with warm_start=false",
                       "router.ssr warm_start=false");
}

/* A state that is no number is the file's mistake, as draws are; logits are replaced. */
static void numbers_are_wanted(void **state)
{
    const double bias[E] = {0.0, 0.0, NAN};
    double noise[T * E] = {0};
    (void)state;
    noise[T * E - 1] = INFINITY;
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "logits", BK_SHAPE(T, E), 9, -1.0, 1.0);
    bk_test_op_reals(&op, "noise", BK_SHAPE(T, E), noise);
    bk_test_op_refuses(&op, 3, 3, "noise is not finite in row 36", "router.topk noise=logits");
    bk_test_op_refuses(&op, 3, 1, "noise is not finite in row 36", "router.sinkhorn noise=cost");
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "logits", BK_SHAPE(T, E), 9, -1.0, 1.0);
    bk_test_op_reals(&op, "bias", BK_SHAPE(E), bias);
    bk_test_op_refuses(&op, 3, 3, "bias is not finite in row 2", "router.sinkhorn");
    bk_test_op_refuses(&op, 3, 1, "bias is not finite in row 2", "router.bias");
}

/* What a transport problem has no room for, where it solves one. */
static void numbers_have_a_size(void **state)
{
    double logits[T * E] = {0};
    (void)state;
    logits[T * E - 1] = 1e307;
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "logits", BK_SHAPE(T, E), logits);
    bk_test_op_refuses(&op, 3, 3, "logits is 1e+307 in row 36, beyond the 1e+297",
                       "router.sinkhorn epsilon=0.001");
    bk_test_op_run(&op, 1, "router.sinkhorn epsilon=0.001 cost=softmax");
    bk_test_op_run(&op, 1, "router.sinkhorn epsilon=0.001 training=false");
    bk_test_op_run(&op, 1, "router.topk");
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "logits", BK_SHAPE(T, E), 9, -1.0, 1.0);
    bk_test_op_random(&op, "bias", BK_SHAPE(E), 6, -1e308, 1e307);
    bk_test_op_refuses(&op, 3, 1, "bias is -", "router.ssr probability=1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_kinds),
        cmocka_unit_test(evaluation_moves_no_state),
        cmocka_unit_test(layers_agree_over_ranks),
        cmocka_unit_test(forms_of_the_loss),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(numbers_are_wanted),
        cmocka_unit_test(numbers_have_a_size),
    };
    return bk_test_op_tests(&op, "ref_moe_golden.json", tests, sizeof tests / sizeof *tests);
}
