/* test: labels=unit,golden timeout=120 */
/* Routers against the golden values, and the identities that need no reference. */
#include "tests/support/check.h"

#include "core/blas.h"
#include "core/rng.h"
#include "models/router_common.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct problem {
    bk_arena *arena, *scratch;
    bk_lanes lanes;
    bk_route_args args;
    const bk_router_kind *kind;
    char config[1024];
} problem;

/* `options` is "key=value key=value". */
static void open_problem(problem *p, const char *kind, const char *options, int64_t tokens,
                         int64_t experts, const double *logits)
{
    memset(p, 0, sizeof *p);
    p->arena = bk_arena_new("step");
    p->scratch = bk_arena_new("scratch");
    p->lanes = bk_lanes_single(tokens);
    p->kind = bk_router_find(kind);
    assert_non_null(p->kind);
    bk_value *map = bk_value_new(p->arena, BK_MAP, "test", 0);
    char *text = bk_arena_strdup(p->arena, options), *rest = NULL;
    for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        char *equal = strchr(word, '=');
        *equal = '\0';
        assert_int_equal(bk_value_set(p->arena, map, word, equal + 1), BK_OK);
    }
    assert_int_equal(bk_options_read(p->kind->options, p->config, map, "router", p->arena), BK_OK);
    p->args = (bk_route_args){.logits = logits,
                              .tokens = tokens,
                              .experts = experts,
                              .k = 2,
                              .valid = tokens,
                              .lanes = &p->lanes,
                              .training = true,
                              .seed = 1,
                              .config = p->config,
                              .arena = p->arena,
                              .scratch = p->scratch};
}

static void close_problem(problem *p)
{
    bk_arena_free(p->arena);
    bk_arena_free(p->scratch);
}

static void check_numbers(const json_t *reference, const double *x, double limit, const char *what)
{
    int64_t n;
    double *numbers = bk_test_numbers(reference, &n);
    bk_check_error(bk_test_error(n, x, numbers, 1e-30), limit, "%s", what);
    free(numbers);
}

static void check_index(const json_t *reference, const int32_t *index)
{
    int64_t n;
    double *numbers = bk_test_numbers(reference, &n);
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(index[i], (int)numbers[i]);
    free(numbers);
}

static json_t *golden;
static double *logits, *grad_weight;
static int64_t tokens = 12, experts = 4;

static int load(void **state)
{
    int64_t n;
    (void)state;
    golden = bk_test_golden("ref_moe_golden.json");
    logits = bk_test_numbers(json_object_get(golden, "logits"), &n);
    grad_weight = bk_test_numbers(json_object_get(golden, "grad_weight"), &n);
    return 0;
}

static int unload(void **state)
{
    (void)state;
    json_decref(golden);
    free(logits);
    free(grad_weight);
    return 0;
}

static void golden_case(const char *block, const char *kind, const char *options,
                        const char *gradient, double limit)
{
    problem p;
    bk_route r = {0};
    double grad[48] = {0}, bias[4] = {0};
    json_t *c = json_object_get(golden, block);
    open_problem(&p, kind, options, tokens, experts, logits);
    p.args.bias = bias;
    p.kind->route(&p.args, &r);
    p.kind->backward(&p.args, &r, grad_weight, grad);
    check_index(json_object_get(c, "index"), r.index);
    check_numbers(json_object_get(c, "weight"), r.weight, 1e-9, block);
    check_numbers(json_object_get(c, gradient), grad, limit, block);
    if (json_object_get(c, "plan"))
        check_numbers(json_object_get(c, "plan"), r.plan, 1e-8, "plan");
    if (json_object_get(c, "bias") && json_object_get(c, "iterations")) {
        check_numbers(json_object_get(c, "bias"), r.bias, 1e-8, "bias");
        assert_int_equal(r.iterations, json_integer_value(json_object_get(c, "iterations")));
    }
    close_problem(&p);
}

static void golden_topk(void **state)
{
    (void)state;
    golden_case("topk", "topk", "", "grad_logits", 1e-9);
    golden_case("topk_full", "topk", "renormalize=false", "grad_logits", 1e-9);
    golden_case("topk_sigmoid", "topk", "score=sigmoid", "grad_logits", 1e-9);
}

#define TIGHT "tolerance=1e-9 iterations=1000 warm_start=false "

static void golden_transport(void **state)
{
    (void)state;
    golden_case("sinkhorn", "sinkhorn", TIGHT, "grad_logits", 1e-8);
    golden_case("ssr_linear_1.0", "ssr", TIGHT "probability=1 gradient=implicit",
                "grad_logits_implicit", 1e-8);
    golden_case("ssr_linear_1.0", "ssr", TIGHT "probability=1 gradient=partial",
                "grad_logits_partial", 1e-8);
    golden_case("ssr_linear_0.5", "ssr", TIGHT "probability=1 epsilon=0.5 gradient=implicit",
                "grad_logits_implicit", 1e-8);
    golden_case("ssr_linear_0.5", "ssr", TIGHT "probability=1 epsilon=0.5 gradient=partial",
                "grad_logits_partial", 1e-8);
    golden_case("ssr_softmax_0.05", "ssr",
                TIGHT "probability=1 cost=softmax epsilon=0.05 gradient=implicit",
                "grad_logits_implicit", 1e-8);
    golden_case("ssr_softmax_0.05", "ssr",
                TIGHT "probability=1 cost=softmax epsilon=0.05 gradient=partial",
                "grad_logits_partial", 1e-8);
}

static void golden_losses(void **state)
{
    problem p;
    double value, grad[48] = {0}, one = 1.0;
    json_t *aux = json_object_get(golden, "aux"), *z = json_object_get(golden, "z");
    (void)state;
    open_problem(&p, "topk", "", tokens, experts, logits);
    const int32_t *index = bk_router_plain_index(&p.args);
    bk_router_switch(&p.args, BK_SCORE_SOFTMAX, index, &value);
    bk_router_switch_back(&p.args, BK_SCORE_SOFTMAX, index, &one, grad);
    check_numbers(json_object_get(aux, "value"), &value, 1e-9, "aux");
    check_numbers(json_object_get(aux, "grad_logits"), grad, 1e-9, "grad of aux");
    memset(grad, 0, sizeof grad);
    bk_router_z(&p.args, &value);
    bk_router_z_back(&p.args, &one, grad);
    check_numbers(json_object_get(z, "value"), &value, 1e-9, "z");
    check_numbers(json_object_get(z, "grad_logits"), grad, 1e-9, "grad of z");
    close_problem(&p);
}

static void golden_draws(void **state)
{
    json_t *draws = json_object_get(golden, "draws"), *row;
    size_t i;
    (void)state;
    json_array_foreach(json_object_get(draws, "branch"), i, row)
    {
        int64_t n;
        double *x = bk_test_numbers(row, &n);
        assert_true(bk_unit(BK_HASH64((uint64_t)x[0], 1, (uint64_t)x[1], (uint64_t)x[2])) == x[3]);
        free(x);
    }
    json_array_foreach(json_object_get(draws, "normal"), i, row)
    {
        int64_t n;
        double *x = bk_test_numbers(row, &n);
        bk_route_args a = {.seed = (uint64_t)x[0], .step = (int64_t)x[1], .layer = (int)x[2]};
        assert_true(fabs(bk_router_draw(&a, (int64_t)x[3], (int64_t)x[4]) - x[5]) < 1e-14);
        free(x);
    }
}

/* ---- identities ---- */

enum { T = 96, E = 8 };

static void fill(double *h, double spread)
{
    for (int i = 0; i < T * E; i++)
        h[i] = bk_fill((uint64_t)i, 5, -spread, spread);
}

static void plan_has_its_marginals(void **state)
{
    static double h[T * E];
    problem p;
    bk_route r = {0};
    (void)state;
    fill(h, 3.0);
    open_problem(&p, "sinkhorn", TIGHT, T, E, h);
    p.kind->route(&p.args, &r);
    for (int e = 0; e < E; e++) {
        double column = 0.0;
        for (int t = 0; t < T; t++)
            column += r.plan[t * E + e];
        assert_true(fabs(column * E / T - 1.0) < 2e-9);
    }
    for (int t = 0; t < T; t++) {
        double sum = 0.0;
        for (int e = 0; e < E; e++)
            sum += r.plan[t * E + e];
        assert_true(fabs(sum - 1.0) < 1e-12);
    }
    close_problem(&p);
}

static void token_order_changes_nothing(void **state)
{
    static double h[T * E], reversed[T * E];
    problem a, b;
    bk_route ra = {0}, rb = {0};
    (void)state;
    fill(h, 2.0);
    for (int t = 0; t < T; t++)
        memcpy(reversed + t * E, h + (T - 1 - t) * E, E * sizeof *h);
    open_problem(&a, "sinkhorn", TIGHT, T, E, h);
    open_problem(&b, "sinkhorn", TIGHT, T, E, reversed);
    a.kind->route(&a.args, &ra);
    b.kind->route(&b.args, &rb);
    assert_memory_equal(ra.bias, rb.bias, E * sizeof *ra.bias);
    for (int t = 0; t < T; t++)
        assert_memory_equal(ra.index + 2 * t, rb.index + 2 * (T - 1 - t), 2 * sizeof *ra.index);
    close_problem(&a);
    close_problem(&b);
}

static void tolerance_saves_iterations(void **state)
{
    static double h[T * E];
    problem a, b;
    bk_route ra = {0}, rb = {0};
    (void)state;
    fill(h, 4.0);
    open_problem(&a, "sinkhorn", "tolerance=1e-8 iterations=1000", T, E, h);
    open_problem(&b, "sinkhorn", "tolerance=1e-2 iterations=1000", T, E, h);
    a.kind->route(&a.args, &ra);
    b.kind->route(&b.args, &rb);
    assert_true(rb.iterations < ra.iterations);
    assert_true(ra.residual <= 1e-8 && rb.residual <= 1e-2);
    close_problem(&a);
    close_problem(&b);
}

static void ssr_draws_its_share(void **state)
{
    static double h[T * E];
    problem p;
    int taken = 0;
    (void)state;
    fill(h, 1.0);
    open_problem(&p, "ssr", "probability=0.1", T, E, h);
    for (p.args.step = 0; p.args.step < 3000; p.args.step++) {
        bk_route r = {0};
        bk_arena_reset(p.scratch);
        bk_arena_mark mark = bk_arena_get_mark(p.arena);
        p.kind->route(&p.args, &r);
        taken += r.transport;
        bk_arena_release(p.arena, mark);
    }
    assert_true(abs(taken - 300) <= 50); /* 3 standard deviations */
    close_problem(&p);
}

static void evaluation_is_plain_topk(void **state)
{
    static double h[T * E];
    problem a, b;
    bk_route ra = {0}, rb = {0};
    (void)state;
    fill(h, 2.0);
    open_problem(&a, "ssr", "probability=1", T, E, h);
    open_problem(&b, "topk", "", T, E, h);
    a.args.training = b.args.training = false;
    a.kind->route(&a.args, &ra);
    b.kind->route(&b.args, &rb);
    assert_false(ra.transport);
    assert_memory_equal(ra.index, rb.index, T * 2 * sizeof *ra.index);
    assert_memory_equal(ra.weight, rb.weight, T * 2 * sizeof *ra.weight);
    close_problem(&a);
    close_problem(&b);
}

static void padding_is_left_alone(void **state)
{
    static double h[T * E], other[T * E];
    static int32_t mask[T];
    problem a, b;
    bk_route ra = {0}, rb = {0};
    (void)state;
    fill(h, 2.0);
    for (int t = 0; t < T; t++)
        mask[t] = t % 5 != 0;
    memcpy(other, h, sizeof h);
    for (int t = 0; t < T; t += 5)
        for (int e = 0; e < E; e++)
            other[t * E + e] = 100.0 * e;
    open_problem(&a, "sinkhorn", TIGHT, T, E, h);
    open_problem(&b, "sinkhorn", TIGHT, T, E, other);
    a.args.mask = b.args.mask = mask;
    a.args.valid = b.args.valid = T - (T + 4) / 5;
    a.kind->route(&a.args, &ra);
    b.kind->route(&b.args, &rb);
    for (int t = 0; t < T; t++) {
        assert_memory_equal(ra.index + 2 * t, rb.index + 2 * t, 2 * sizeof *ra.index);
        if (!mask[t])
            assert_true(ra.index[2 * t] == -1 && ra.weight[2 * t] == 0.0);
    }
    close_problem(&a);
    close_problem(&b);
}

static void strange_logits_do_no_harm(void **state)
{
    static double h[T * E];
    problem p;
    bk_route r = {0};
    (void)state;
    fill(h, 500.0);
    h[3] = NAN;
    h[E + 1] = INFINITY;
    for (int e = 0; e < E; e++)
        h[2 * E + e] = NAN;
    open_problem(&p, "sinkhorn", "iterations=50", T, E, h);
    p.kind->route(&p.args, &r);
    for (int i = 0; i < 2 * T; i++) {
        assert_true(r.index[i] >= 0 && r.index[i] < E);
        assert_true(isfinite(r.weight[i]));
    }
    close_problem(&p);
}

static void a_far_expert_is_reached(void **state)
{
    static double h[64 * 4];
    problem p;
    bk_route r = {0};
    (void)state;
    for (int t = 0; t < 64; t++)
        h[t * 4 + 3] = -1000.0;
    open_problem(&p, "sinkhorn", "tolerance=1e-6 iterations=200", 64, 4, h);
    p.kind->route(&p.args, &r);
    assert_true(r.residual <= 1e-6);
    close_problem(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_topk),
        cmocka_unit_test(golden_transport),
        cmocka_unit_test(golden_losses),
        cmocka_unit_test(golden_draws),
        cmocka_unit_test(plan_has_its_marginals),
        cmocka_unit_test(token_order_changes_nothing),
        cmocka_unit_test(tolerance_saves_iterations),
        cmocka_unit_test(ssr_draws_its_share),
        cmocka_unit_test(evaluation_is_plain_topk),
        cmocka_unit_test(padding_is_left_alone),
        cmocka_unit_test(strange_logits_do_no_harm),
        cmocka_unit_test(a_far_expert_is_reached),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, load, unload);
}
