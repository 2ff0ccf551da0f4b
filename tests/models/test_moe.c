/* test: labels=unit,golden,grad,mpi ranks=1,2,3,4 timeout=120 */
/* The mixture-of-experts layer: golden values, differences, identities, and the same numbers for
 * every number of ranks, every expert-parallel degree and every number of chunks. */
#include "tests/support/moe.h"
#include "tests/support/ranks.h"

#include "core/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void ranks_degrees_and_chunks_change_no_bit(void **state)
{
    (void)state;
    bk_test_scene_check((bk_test_scene){.name = "seven experts"});
    bk_test_scene_check(
        (bk_test_scene){.name = "eight experts, no biases", .experts = 8, .unbiased = true});
    bk_test_scene_check(
        (bk_test_scene){.name = "losses", .aux = true, .z = true, .mask = bk_test_some_padding});
    bk_test_scene_check((bk_test_scene){
        .name = "sinkhorn", .router = "sinkhorn", .options = "weights=scores", .aux = true});
    bk_test_scene_check(
        (bk_test_scene){.name = "ssr",
                        .router = "ssr",
                        .mask = bk_test_some_padding,
                        .options = "probability=1 gradient=implicit tolerance=1e-6"});
    bk_test_scene_check((bk_test_scene){.name = "ssr, lanes alone",
                                        .router = "ssr",
                                        .mask = bk_test_some_padding,
                                        .options = "probability=1 gradient=implicit scope=local"});
    bk_test_scene_check(
        (bk_test_scene){.name = "the largest scores",
                        .capacity = {.factor = 0.8, .least = 2, .policy = BK_DROP_PROBS},
                        .mask = bk_test_some_padding,
                        .aux = true});
    bk_test_scene_check(
        (bk_test_scene){.name = "first choices",
                        .capacity = {.factor = 0.6, .least = 1, .policy = BK_DROP_POSITION},
                        .router = "ssr",
                        .options = "probability=1 gradient=implicit"});
    bk_test_scene_check((bk_test_scene){
        .name = "a shared expert", .shared = true, .mask = bk_test_some_padding, .aux = true});
    bk_test_scene_check((bk_test_scene){
        .name = "a gated shared expert", .shared = true, .shared_gate = true, .bf16 = true});
    bk_test_scene_check((bk_test_scene){.name = "straight", .hierarchy = BK_HIERARCHY_FLAT});
    bk_test_scene_check(
        (bk_test_scene){.name = "a short wire", .wire_bf16 = true, .mask = bk_test_some_padding});
    bk_test_scene_check((bk_test_scene){.name = "a short wire, bf16 products",
                                        .wire_bf16 = true,
                                        .bf16 = true,
                                        .width = 520, /* more than one piece of a row */
                                        .shared = true});
    bk_test_scene_check(
        (bk_test_scene){.name = "noise", .options = "noise=logits noise_scale=0.5"});
    for (int i = 0; i < 2; i++)
        bk_test_scene_check((bk_test_scene){.name = "three threads, every loop shared out",
                                            .bf16 = i == 1,
                                            .threads = 3,
                                            .tokens = 256,
                                            .experts = 64,
                                            .width = 256,
                                            .hidden = 32,
                                            .aux = true});
}

static void nothing_here_and_there_changes_no_bit(void **state)
{
    (void)state;
    bk_test_scene_check((bk_test_scene){
        .name = "a lane without tokens", .mask = bk_test_lane_1_is_empty, .aux = true});
    bk_test_scene_check((bk_test_scene){.name = "an expert without tokens", .avoided = 3});
    bk_test_scene_check((bk_test_scene){.name = "all tokens to one expert, straight",
                                        .wanted = 4,
                                        .k = 1,
                                        .hierarchy = BK_HIERARCHY_FLAT});
    bk_test_scene_check((bk_test_scene){
        .name = "far rows", .hierarchy = BK_HIERARCHY_TWO_LEVEL, .width = 40, .tokens = 40});
    bk_test_scene_check((bk_test_scene){.name = "all tokens to one expert", .wanted = 4, .k = 1});
    bk_test_scene_check((bk_test_scene){
        .name = "no token at all", .mask = bk_test_all_padding, .aux = true, .z = true});
    bk_test_scene_check((bk_test_scene){.name = "no token at all, of few",
                                        .mask = bk_test_all_padding,
                                        .capacity = {.factor = 0.1}});
    bk_test_scene_check((bk_test_scene){.name = "no token at all, by transport",
                                        .mask = bk_test_all_padding,
                                        .router = "ssr",
                                        .options = "probability=1 gradient=implicit"});
    bk_test_scene_check((bk_test_scene){.name = "one expert", .experts = 1, .k = 1});
    bk_test_scene_check((bk_test_scene){.name = "one token a lane", .tokens = 2, .width = 3});
    bk_test_scene_check((bk_test_scene){.name = "fewer lanes than ranks", .lanes = 1, .aux = true});
    bk_test_scene_check(
        (bk_test_scene){.name = "every expert for every token", .experts = 4, .k = 4});
}

/* ---- identities ---- */

static void check_identity(bk_test_scene given)
{
    given.identity = given.unbiased = true;
    const bk_test_scene whole = bk_test_scene_filled(given), *s = &whole;
    for (int ep = 1; ep < BK_TEST_DEGREES; ep++) {
        if (!bk_test_worlds[ep])
            continue;
        bk_test_layer *y = bk_test_layer_open(s, bk_test_worlds[ep]);
        bk_test_layer_run(y);
        const bk_tensor *x = y->args.x, *out = y->result.y;
        for (int64_t i = 0; i < bk_count(x); i++) {
            assert_true(fabs(bk_test_value(out, i) - bk_test_value(x, i)) < 1e-6);
            double dy = bk_fill((uint64_t)(y->args.first_token * s->width + i), 40, -1.0, 1.0);
            assert_true(fabs(bk_test_grad(x, i) - dy) < 2e-6);
        }
        bk_test_layer_close(y);
    }
}

static void identity_experts_change_nothing(void **state)
{
    (void)state;
    check_identity((bk_test_scene){.name = "identity experts"});
    check_identity((bk_test_scene){.name = "identity experts, one liked by all", .wanted = 2});
    check_identity((bk_test_scene){.name = "weights 1/k", .router = "uniform", .k = 4});
    check_identity((bk_test_scene){
        .name = "weights 1/k, straight", .router = "uniform", .hierarchy = BK_HIERARCHY_FLAT});
}

/* All rows to the holder of expert 4: P/EDP even shares of them.  No rank sends any, and all say
 * the same; with room for them nothing changes. */
static void too_many_rows_are_refused(void **state)
{
    const bk_test_scene s =
        bk_test_scene_filled((bk_test_scene){.name = "hot", .wanted = 4, .k = 1});
    (void)state;
    for (int ep = 1; ep < BK_TEST_DEGREES; ep++)
        for (int room = 0; bk_test_worlds[ep] && room < 2; room++) {
            bk_test_layer *y = bk_test_layer_open(&s, bk_test_worlds[ep]);
            y->args.max_receive_factor = room ? bk_mpi_size() : ep - 0.01;
            bk_test_layer_run(y);
            assert_int_equal(y->tape.status, room ? BK_OK : BK_FAULT);
            char text[64];
            snprintf(text, sizeof text, "rank %d would receive %d rows in layer 1",
                     bk_moe_owner(4, s.experts, ep), 48 * ep / bk_mpi_size());
            if (!room && bk_mpi_size() != 3)
                assert_non_null(strstr(bk_status_text(), text));
            for (int64_t i = 0; !room && i < bk_count(y->result.y); i++)
                assert_true(bk_test_value(y->result.y, i) == 0.0 && y->args.w1[0]->grad);
            bk_test_layer_close(y);
        }
}

/* With a gate of zeros every logit ties: experts 0 .. k-1 with weights 1/k. */
static void equal_logits_weigh_equally(void **state)
{
    const bk_test_scene s = bk_test_scene_filled(
        (bk_test_scene){.name = "equal logits", .identity = true, .unbiased = true, .k = 4});
    (void)state;
    bk_test_layer *y = bk_test_layer_open(&s, NULL);
    memset(y->args.gate->data, 0, (size_t)bk_count(y->args.gate) * sizeof(float));
    bk_test_layer_run(y);
    for (int64_t i = 0; i < bk_rows(y->args.x) * 4; i++) {
        assert_int_equal(y->result.route.index[i], i % 4);
        assert_true(y->result.route.weight[i] == 0.25);
    }
    const float *x = y->args.x->data, *out = y->result.y->data, *dx = y->args.x->grad;
    for (int64_t i = 0; i < bk_count(y->args.x); i++)
        assert_true(out[i] == x[i] && dx[i] == ((const float *)y->result.y->grad)[i]);
    bk_test_layer_close(y);
}

/* ---- golden values and differences, on one rank ---- */

static void check_array(const json_t *reference, int64_t count, const double *x, double limit,
                        const char *what)
{
    int64_t n;
    double *numbers = bk_test_numbers(reference, &n);
    assert_int_equal(n, count);
    bk_check_error(bk_test_error(n, x, numbers, 1e-30), limit, "%s", what);
    free(numbers);
}

static void check_tensor(const json_t *reference, bool grad, bk_tensor *const *x, int64_t count,
                         const char *what)
{
    double values[1024];
    int64_t n = 0;
    for (int64_t e = 0; e < count; e++)
        for (int64_t i = 0; i < bk_count(x[e]); i++)
            values[n++] = grad ? bk_test_grad(x[e], i) : bk_test_value(x[e], i);
    check_array(reference, n, values, x[0]->dtype == BK_F64 ? 1e-9 : 1e-5, what);
}

static bk_tensor **json_leaves(bk_tape *t, const json_t *array)
{
    bk_tensor **list = BK_NEW(t->arena, bk_tensor *, json_array_size(array));
    for (size_t e = 0; e < json_array_size(array); e++)
        list[e] = bk_test_json(t, json_array_get(array, e));
    return list;
}

static void check_golden(bk_dtype dtype)
{
    json_t *golden = bk_test_golden("ref_moe_golden.json"), *c = json_object_get(golden, "moe");
    bk_test_layer y = {.tape = bk_test_tape(dtype, bk_lanes_single(12))};
    bk_tape *t = &y.tape;
    const bk_test_scene plain =
        bk_test_scene_filled((bk_test_scene){.name = "golden", .experts = 4});
    bk_test_layer_options(&y, &plain);
    y.args = (bk_moe_args){.x = bk_test_json(t, json_object_get(golden, "x")),
                           .gate = bk_test_json(t, json_object_get(golden, "gate")),
                           .w1 = json_leaves(t, json_object_get(c, "w1")),
                           .b1 = json_leaves(t, json_object_get(c, "b1")),
                           .w2 = json_leaves(t, json_object_get(c, "w2")),
                           .b2 = json_leaves(t, json_object_get(c, "b2")),
                           .experts = 4,
                           .k = 2,
                           .count = 4,
                           .hidden = 5,
                           .router = bk_router_find("topk"),
                           .router_config = y.config,
                           .valid = 12};
    bk_tensor *out = bk_moe(t, &y.args).y, *grad = bk_test_json(t, json_object_get(c, "grad_y"));
    memcpy(bk_grad(t, out), grad->data, (size_t)bk_count(out) * bk_dtype_size(dtype));
    bk_tape_backward_seeded(t);
    check_tensor(json_object_get(c, "y"), false, &out, 1, "y");
    check_tensor(json_object_get(c, "grad_x"), true, &y.args.x, 1, "grad of x");
    check_tensor(json_object_get(c, "grad_gate"), true, &y.args.gate, 1, "grad of gate");
    check_tensor(json_object_get(c, "grad_w1"), true, y.args.w1, 4, "grad of w1");
    check_tensor(json_object_get(c, "grad_b1"), true, y.args.b1, 4, "grad of b1");
    check_tensor(json_object_get(c, "grad_w2"), true, y.args.w2, 4, "grad of w2");
    check_tensor(json_object_get(c, "grad_b2"), true, y.args.b2, 4, "grad of b2");
    bk_test_tape_free(t);
    json_decref(golden);
}

static void golden_layer(void **state)
{
    (void)state;
    check_golden(BK_F32);
    check_golden(BK_F64);
}

static bk_test_scene perturbed_scene;

enum { LEAVES = 11 };

/* Some are NULL. */
static void list_leaves(const bk_test_layer *y, bk_tensor *list[LEAVES])
{
    const bk_moe_args *a = &y->args;
    bk_tensor *const all[LEAVES] = {a->x,         a->gate,      a->w1[1],      a->b1[1],
                                    a->w2[1],     a->b2[1],     y->shared.w1,  y->shared.b1,
                                    y->shared.w2, y->shared.b2, y->shared.gate};
    memcpy(list, all, sizeof all);
}

/* <dy, y> + aux + z with element i of a leaf moved. */
static double moved(int leaf_number, int64_t i, double delta)
{
    bk_test_layer *y = bk_test_layer_open(&perturbed_scene, NULL);
    bk_tensor *leaves[LEAVES];
    double sum = 0.0;
    list_leaves(y, leaves);
    ((double *)leaves[leaf_number]->data)[i] += delta;
    bk_test_layer_run(y);
    for (int64_t j = 0; j < bk_count(y->result.y); j++)
        sum += bk_test_value(y->result.y, j) * bk_test_grad(y->result.y, j);
    for (int64_t l = 0; y->result.aux && l < y->tape.lanes.count; l++)
        sum += bk_f64(y->result.aux)[l] + bk_f64(y->result.z)[l];
    bk_test_layer_close(y);
    return sum;
}

static void check_layer_gradient(bk_test_scene given)
{
    const double step = 1e-5;
    perturbed_scene = bk_test_scene_filled(given);
    bk_test_layer *y = bk_test_layer_open(&perturbed_scene, NULL);
    bk_test_layer_run(y);
    bk_tensor *leaves[LEAVES];
    list_leaves(y, leaves);
    for (int n = 0; n < LEAVES; n++)
        for (int64_t i = 0; leaves[n] && i < bk_count(leaves[n]);
             i += 1 + bk_count(leaves[n]) / 12) {
            double numeric = (moved(n, i, step) - moved(n, i, -step)) / (2.0 * step);
            bk_check_error(fabs(numeric - bk_test_grad(leaves[n], i)) / fmax(1.0, fabs(numeric)),
                           1e-6, "%s, leaf %d", given.name, n);
        }
    bk_test_layer_close(y);
}

static void gradients_are_differences(void **state)
{
    (void)state;
    check_layer_gradient((bk_test_scene){
        .name = "topk", .dtype = BK_F64, .mask = bk_test_some_padding, .aux = true, .z = true});
    check_layer_gradient((bk_test_scene){.name = "a gated shared expert",
                                         .dtype = BK_F64,
                                         .shared = true,
                                         .shared_gate = true,
                                         .mask = bk_test_some_padding});
    check_layer_gradient((bk_test_scene){.name = "dropped choices",
                                         .dtype = BK_F64,
                                         .capacity = {.factor = 0.7, .least = 1},
                                         .mask = bk_test_some_padding,
                                         .aux = true,
                                         .z = true});
    check_layer_gradient(
        (bk_test_scene){.name = "ssr",
                        .dtype = BK_F64,
                        .router = "ssr",
                        .aux = true,
                        .z = true,
                        .options = BK_TEST_TIGHT "probability=1 gradient=implicit"});
}

/* ---- padding, strange input, shapes ---- */

static void padding_gives_zero_and_takes_nothing(void **state)
{
    const bk_test_scene s = bk_test_scene_filled((bk_test_scene){.name = "padding",
                                                                 .mask = bk_test_some_padding,
                                                                 .shared = true,
                                                                 .shared_gate = true,
                                                                 .aux = true,
                                                                 .z = true});
    bk_test_layer *y[2] = {bk_test_layer_open(&s, NULL), bk_test_layer_open(&s, NULL)};
    (void)state;
    for (int64_t i = 0; i < bk_count(y[1]->args.x); i++)
        if (!bk_test_some_padding(i / s.width))
            bk_test_set(y[1]->args.x, i, NAN);
    for (int i = 0; i < 2; i++)
        bk_test_layer_run(y[i]);
    assert_memory_equal(y[0]->result.y->data, y[1]->result.y->data,
                        (size_t)bk_count(y[0]->result.y) * sizeof(float));
    assert_memory_equal(y[0]->result.aux->data, y[1]->result.aux->data, 4 * sizeof(double));
    assert_memory_equal(y[0]->args.gate->grad, y[1]->args.gate->grad,
                        (size_t)bk_count(y[0]->args.gate) * sizeof(float));
    assert_memory_equal(y[0]->args.x->grad, y[1]->args.x->grad,
                        (size_t)bk_count(y[0]->args.x) * sizeof(float));
    for (int64_t i = 0; i < bk_count(y[1]->result.y); i++)
        if (!bk_test_some_padding(i / s.width))
            assert_true(bk_test_value(y[1]->result.y, i) == 0.0 &&
                        bk_test_grad(y[1]->args.x, i) == 0.0);
    bk_test_layer_close(y[0]);
    bk_test_layer_close(y[1]);
}

static void strange_logits_reach_no_weight(void **state)
{
    const bk_test_scene s = bk_test_scene_filled((bk_test_scene){.name = "strange logits"});
    (void)state;
    bk_test_layer *y = bk_test_layer_open(&s, NULL);
    bk_test_set(y->args.gate, 0, NAN); /* the logit of expert 0 is NaN for every token */
    bk_test_set(y->args.gate, s.width, INFINITY);
    bk_test_layer_run(y);
    for (int64_t i = 0; i < bk_rows(y->args.x) * s.k; i++)
        assert_true(y->result.route.index[i] > 0 && isfinite(y->result.route.weight[i]));
    for (int64_t i = 0; i < bk_count(y->result.y); i++)
        assert_true(isfinite(bk_test_value(y->result.y, i)));
    bk_test_layer_close(y);
}

/* The owner rule: contiguous, the first E mod EP coordinates hold one more. */
static void experts_have_one_owner(void **state)
{
    (void)state;
    for (int64_t experts = 1; experts < 20; experts++)
        for (int ep = 1; ep <= experts; ep++) {
            int64_t next = 0;
            for (int c = 0; c < ep; c++) {
                int64_t first, count;
                bk_moe_experts_of(c, experts, ep, &first, &count);
                assert_int_equal(first, next);
                assert_int_equal(count, experts / ep + (c < experts % ep));
                for (int64_t e = first; e < first + count; e++)
                    assert_int_equal(bk_moe_owner(e, experts, ep), c);
                next = first + count;
            }
            assert_int_equal(next, experts);
        }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_degrees_and_chunks_change_no_bit),
        cmocka_unit_test(nothing_here_and_there_changes_no_bit),
        cmocka_unit_test(identity_experts_change_nothing),
        cmocka_unit_test(too_many_rows_are_refused),
    };
    const struct CMUnitTest alone[] = {
        cmocka_unit_test(equal_logits_weigh_equally),
        cmocka_unit_test(golden_layer),
        cmocka_unit_test(gradients_are_differences),
        cmocka_unit_test(padding_gives_zero_and_takes_nothing),
        cmocka_unit_test(strange_logits_reach_no_weight),
        cmocka_unit_test(experts_have_one_owner),
    };
    bk_test_ranks_start(&argc, &argv);
    if (bk_mpi_size() == 4)
        setenv("BIRKHOFF_NODE_RANKS", "2", 1); /* two hops wherever not said otherwise */
    bk_test_worlds_open();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (bk_mpi_size() == 1)
        failed += cmocka_run_group_tests(alone, NULL, NULL);
    return bk_test_ranks_stop(failed);
}
