/* test: labels=unit,golden,grad timeout=120 */
/* Every router of the table with every choice of its options: gradient, mask, ties, strange logits,
 * evaluation; golden values; draws. */
#include "tests/support/router.h"

#include "core/blas.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { T = 24, E = 5, K = 2 };

static const int32_t some_padding[T] = {1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1,
                                        1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1};

/* ---- golden values ---- */

static json_t *golden;
static double *logits, *grad_weight;
static int64_t tokens, experts;

static int load(void **state)
{
    int64_t n;
    (void)state;
    golden = bk_test_golden("ref_moe_golden.json");
    logits = bk_test_numbers(json_object_get(golden, "logits"), &n);
    grad_weight = bk_test_numbers(json_object_get(golden, "grad_weight"), &n);
    tokens = json_integer_value(json_object_get(golden, "T"));
    experts = json_integer_value(json_object_get(golden, "E"));
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

static void golden_case(const char *block, const char *kind, const char *options,
                        const char *gradient, double limit)
{
    double grad[48] = {0}, bias[4] = {0};
    const json_t *c = json_object_get(golden, block);
    bk_test_router *p = bk_test_router_open(kind, options, tokens, experts, logits);
    p->args.bias = bias;
    const bk_route *r = bk_test_router_run(p);
    bk_route_gradient(
        &p->args, r,
        &(bk_route_back){.weight = grad_weight, .logits = grad, .noise_logits = p->grad_noise});
    check_index(json_object_get(c, "index"), r->index);
    check_numbers(json_object_get(c, "weight"), r->weight, 1e-9, block);
    check_numbers(json_object_get(c, gradient), grad, limit, block);
    if (json_object_get(c, "plan"))
        check_numbers(json_object_get(c, "plan"), r->plan, 1e-8, "plan");
    if (json_object_get(c, "iterations")) {
        check_numbers(json_object_get(c, "bias"), r->bias, 1e-8, "bias");
        assert_memory_equal(r->next, r->bias, sizeof bias);
        assert_int_equal(r->iterations, json_integer_value(json_object_get(c, "iterations")));
    }
    bk_test_router_close(p);
}

static void golden_topk(void **state)
{
    (void)state;
    golden_case("topk", "topk", "", "grad_logits", 1e-9);
    golden_case("topk_full", "topk", "renormalize=false", "grad_logits", 1e-9);
    golden_case("topk_sigmoid", "topk", "score=sigmoid", "grad_logits", 1e-9);
}

static void golden_transport(void **state)
{
    const char *const block[] = {"ssr_linear_1.0", "ssr_linear_0.5", "ssr_softmax_0.05"};
    const char *const cost[] = {"", "epsilon=0.5 ", "cost=softmax epsilon=0.05 "};
    char options[256];
    (void)state;
    golden_case("sinkhorn", "sinkhorn", BK_TEST_TIGHT, "grad_logits", 1e-8);
    for (int i = 0; i < 3; i++) {
        snprintf(options, sizeof options, BK_TEST_TIGHT "probability=1 %sgradient=implicit",
                 cost[i]);
        golden_case(block[i], "ssr", options, "grad_logits_implicit", 1e-8);
        snprintf(options, sizeof options, BK_TEST_TIGHT "probability=1 %sgradient=partial",
                 cost[i]);
        golden_case(block[i], "ssr", options, "grad_logits_partial", 1e-8);
    }
}

static void golden_losses(void **state)
{
    double value, grad[48], one = 1.0;
    const json_t *aux = json_object_get(golden, "aux"), *z = json_object_get(golden, "z");
    (void)state;
    bk_test_router *p = bk_test_router_open("topk", "", tokens, experts, logits);
    const bk_route *r = bk_test_router_run(p);
    bk_route_measure(&p->args, r, &(bk_route_losses){.aux = &value});
    check_numbers(json_object_get(aux, "value"), &value, 1e-9, "aux");
    bk_route_gradient(&p->args, r,
                      &(bk_route_back){.aux = &one, .logits = grad, .noise_logits = p->grad_noise});
    check_numbers(json_object_get(aux, "grad_logits"), grad, 1e-9, "grad of aux");
    bk_route_measure(&p->args, r, &(bk_route_losses){.z = &value});
    check_numbers(json_object_get(z, "value"), &value, 1e-9, "z");
    bk_route_gradient(&p->args, r,
                      &(bk_route_back){.z = &one, .logits = grad, .noise_logits = p->grad_noise});
    check_numbers(json_object_get(z, "grad_logits"), grad, 1e-9, "grad of z");
    bk_test_router_close(p);
}

static void golden_draws(void **state)
{
    const json_t *draws = json_object_get(golden, "draws"), *row;
    size_t i;
    int64_t n;
    (void)state;
    json_array_foreach(json_object_get(draws, "branch"), i, row)
    {
        double *x = bk_test_numbers(row, &n);
        assert_true(bk_route_draw_branch((uint64_t)x[0], (int64_t)x[1], (int)x[2]) == x[3]);
        free(x);
    }
    json_array_foreach(json_object_get(draws, "normal"), i, row)
    {
        double *x = bk_test_numbers(row, &n);
        double z = bk_route_draw_normal((uint64_t)x[0], (int64_t)x[1], (int)x[2], (int64_t)x[3],
                                        (int64_t)x[4]);
        assert_true(fabs(z - x[5]) < 1e-14);
        free(x);
    }
}

/* ---- every kind, every choice ---- */

typedef void variant_test(const char *kind, const char *options);

/* One test for every choice of every option of every kind, the others at their defaults, and all of
 * it once more with the shares (numbers of 0..1) at 1, so that branches taken by draw are taken. */
static void for_every_variant(variant_test *test, const char *fixed)
{
    for (int i = 0; bk_routers[i]; i++)
        for (int shares = 0; shares < 2; shares++)
            bk_test_router_variants(bk_routers[i], fixed, shares, test);
}

static void check_gradient(const char *kind, const char *options)
{
    const double step = 1e-4;
    double h[T * E], gw[T * E], grad[T * E], numeric[T * E] = {0};
    bk_test_spread(T * E, h, 3, 2.0);
    bk_test_spread(T * E, gw, 4, 1.0);
    bk_test_router *p = bk_test_router_open(kind, options, T, E, h);
    bk_test_router_lanes(p, 4);
    bk_test_router_mask(p, some_padding);
    const bk_route base = *bk_test_router_run(p);
    bk_route_gradient(
        &p->args, &base,
        &(bk_route_back){.weight = gw, .logits = grad, .noise_logits = p->grad_noise});
    for (int i = 0; i < T * E; i++) {
        double kept = h[i], value[2] = {0};
        for (int side = 0; side < 2; side++) {
            h[i] = kept + (side ? step : -step);
            const bk_route *r = bk_test_router_run(p);
            assert_memory_equal(r->index, base.index, (size_t)(T * r->slots) * sizeof *r->index);
            for (int s = 0; s < T * r->slots; s++)
                value[side] += gw[s] * r->weight[s];
        }
        h[i] = kept;
        numeric[i] = (value[1] - value[0]) / (2.0 * step);
    }
    bk_check_error(bk_test_error(T * E, grad, numeric, 1e-3), 1e-5, "%s %s", kind, options);
    bk_test_router_close(p);
}

static void every_gradient(void **state)
{
    (void)state;
    for_every_variant(check_gradient, BK_TEST_TIGHT "gradient=implicit ");
}

/* Padding is not routed, and what stands there changes nothing. */
static void check_padding(const char *kind, const char *options)
{
    double h[T * E], other[T * E], gw[T * E], grad[2][T * E];
    bk_test_spread(T * E, h, 3, 2.0);
    bk_test_spread(T * E, gw, 4, 1.0);
    for (int i = 0; i < T * E; i++)
        other[i] = some_padding[i / E] ? h[i] : i % 3 == 0 ? NAN : 100.0 * (i % 7);
    bk_test_router *p[2] = {bk_test_router_open(kind, options, T, E, h),
                            bk_test_router_open(kind, options, T, E, other)};
    for (int i = 0; i < 2; i++) {
        bk_test_router_lanes(p[i], 4);
        bk_test_router_mask(p[i], some_padding);
        const bk_route *r = bk_test_router_run(p[i]);
        bk_route_gradient(
            &p[i]->args, r,
            &(bk_route_back){.weight = gw, .logits = grad[i], .noise_logits = p[i]->grad_noise});
    }
    bk_test_same_routes(p[0], 0, p[1], 0, T);
    assert_memory_equal(grad[0], grad[1], sizeof grad[0]);
    for (int64_t i = 0, slots = p[0]->route.slots; i < T * slots; i++)
        assert_true(some_padding[i / slots] ||
                    (p[0]->route.index[i] == -1 && p[0]->route.weight[i] == 0.0));
    for (int i = 0; i < T * E; i++)
        assert_true(some_padding[i / E] || grad[0][i] == 0.0);
    bk_test_router_close(p[0]);
    bk_test_router_close(p[1]);
}

static void padding_is_left_alone(void **state)
{
    (void)state;
    for_every_variant(check_padding, "");
}

static void check_ties(const char *kind, const char *options)
{
    double h[T * E] = {0};
    bk_test_router *p = bk_test_router_open(kind, options, T, E, h);
    if (strstr(options, "noise=logits") || strstr(options, "noise=cost") ||
        p->kind->flags & (BK_ROUTER_BENCHMARK | BK_ROUTER_NOISE_GATE | BK_ROUTER_EXPERTS)) {
        bk_test_router_close(p);
        return;
    }
    const bk_route *r = bk_test_router_run(p);
    for (int t = 0; t < T; t++)
        assert_true(r->index[t * K] == 0 && r->index[t * K + 1] == 1);
    bk_test_router_close(p);
}

static void ties_go_to_the_lower_expert(void **state)
{
    (void)state;
    for_every_variant(check_ties, "");
}

/* Finite weights and gradients, distinct experts, whatever the logits. */
static void check_finite(const char *kind, const char *options, const double *h, int64_t experts_,
                         int64_t k)
{
    double gw[T * E], grad[T * E], one[4] = {1, 1, 1, 1}, record[4];
    bk_test_spread(T * E, gw, 4, 1.0);
    bk_test_router *p = bk_test_router_open(kind, options, T, experts_, h);
    p->args.k = k;
    bk_test_router_lanes(p, 4);
    if (p->kind->check(p->config, experts_, k) != BK_OK) { /* quantile needs k < E */
        bk_test_router_close(p);
        return;
    }
    const bk_route *r = bk_test_router_run(p);
    bool experts_choose = p->kind->flags & BK_ROUTER_EXPERTS;
    bk_route_measure(&p->args, r, &(bk_route_losses){.aux = experts_choose ? NULL : record});
    for (int l = 0; l < 4; l++)
        assert_true(experts_choose || isfinite(record[l]));
    bk_route_gradient(&p->args, r,
                      &(bk_route_back){.weight = gw,
                                       .aux = experts_choose ? NULL : one,
                                       .z = one,
                                       .logits = grad,
                                       .noise_logits = p->grad_noise});
    for (int64_t i = 0; i < T * r->slots; i++) {
        assert_true(experts_choose ? r->index[i] == -1 || r->index[i] == i % experts_
                                   : r->index[i] >= 0 && r->index[i] < experts_);
        for (int64_t s = i / k * k; s < i && !experts_choose; s++)
            assert_int_not_equal(r->index[s], r->index[i]);
        if (!isfinite(r->weight[i]))
            fail_msg("router %s %s: weight %g", kind, options, r->weight[i]);
    }
    for (int64_t i = 0; i < T * experts_; i++) {
        assert_true(isfinite(grad[i]));
        assert_true(isfinite(h[i]) || grad[i] == 0.0);
    }
    bk_test_router_close(p);
}

static void check_strange(const char *kind, const char *options)
{
    double h[T * E];
    bk_test_spread(T * E, h, 8, 1000.0);
    check_finite(kind, options, h, E, K);
    bk_test_spread(T * E, h, 8, 2.0);
    check_finite(kind, options, h, E, E);
    check_finite(kind, options, h, 1, 1);
    h[3] = NAN;
    h[E + 1] = INFINITY;
    h[3 * E] = -INFINITY;
    for (int e = 0; e < E; e++)
        h[2 * E + e] = e % 2 ? NAN : INFINITY;
    check_finite(kind, options, h, E, K);
    for (int i = 0; i < T * E; i++)
        h[i] = -900.0 - 300.0 * (i % E);
    check_finite(kind, options, h, E, K);
}

static void strange_logits_do_no_harm(void **state)
{
    (void)state;
    for_every_variant(check_strange, "iterations=30 gradient=implicit ");
}

static void one_token_and_none(void **state)
{
    const double h[E] = {0.3, -1.0, 2.0, 0.1, 0.0};
    double grad[E], gw[E] = {1.0, -1.0}, bias[E] = {0.25, 0.0, 0.0, 0.0, -0.25}, kept[E];
    (void)state;
    for (int i = 0; bk_routers[i]; i++) {
        bk_test_router *p = bk_test_router_open(bk_routers[i]->name, "", 1, E, h);
        p->args.bias = bias;
        const bk_route *r = bk_test_router_run(p);
        assert_true(r->index[0] >= 0 && r->index[1] >= 0 && r->index[0] != r->index[1]);
        bk_route_gradient(
            &p->args, r,
            &(bk_route_back){.weight = gw, .logits = grad, .noise_logits = p->grad_noise});
        memcpy(kept, bias, sizeof bias);
        p->args.tokens = p->args.valid = 0;
        p->lanes = (bk_lanes){.total = 4, .batch = 4};
        r = bk_test_router_run(p);
        assert_memory_equal(r->next ? r->next : bias, kept, sizeof bias);
        bk_test_router_close(p);
    }
}

/* Without noise a kind routes in evaluation as top-k with the same scores does. */
static void check_evaluation(const char *kind, const char *options)
{
    double h[T * E];
    bk_test_spread(T * E, h, 3, 2.0);
    bk_test_router *p = bk_test_router_open(kind, options, T, E, h);
    const bk_score_config *c = (const bk_score_config *)p->config;
    char plain[128];
    if (p->kind->flags & (BK_ROUTER_BENCHMARK | BK_ROUTER_EXPERTS)) {
        bk_test_router_close(p);
        return;
    }
    snprintf(plain, sizeof plain, "score=%s renormalize=%s",
             c->score == BK_SCORE_SIGMOID ? "sigmoid" : "softmax",
             c->renormalize == BK_TRUE ? "true" : "false");
    bk_test_router *topk = bk_test_router_open("topk", plain, T, E, h);
    p->args.training = false;
    p->args.reducer = &(const bk_reducer){0}; /* a message would crash */
    assert_false(bk_test_router_run(p)->transport);
    bk_test_router_run(topk);
    bk_test_same_routes(p, 0, topk, 0, T);
    bk_test_router_close(p);
    bk_test_router_close(topk);
}

static void evaluation_is_plain_topk(void **state)
{
    (void)state;
    for_every_variant(check_evaluation, "renormalize=true ");
    for_every_variant(check_evaluation, "renormalize=false ");
}

static void a_single_kept_weight_is_not_renormalised(void **state)
{
    double h[T * E];
    (void)state;
    bk_test_spread(T * E, h, 6, 2.0);
    for (int i = 0; bk_routers[i]; i++) {
        if (!bk_test_router_has(bk_routers[i], "renormalize"))
            continue;
        bk_test_router *p = bk_test_router_open(bk_routers[i]->name, "renormalize=true", T, E, h);
        assert_int_equal(p->kind->check(p->config, E, 1), BK_USAGE);
        assert_int_equal(p->kind->check(p->config, E, 2), BK_OK);
        bk_test_router_close(p);
        p = bk_test_router_open(bk_routers[i]->name, "", T, E, h);
        p->args.k = 1;
        assert_int_equal(p->kind->check(p->config, E, 1), BK_OK);
        const bk_route *r = bk_test_router_run(p);
        assert_true(r->weight[0] < 1.0);
        bk_test_router_close(p);
    }
}

static void the_table_and_the_folder_agree(void **state)
{
    const char *source = getenv("BIRKHOFF_SOURCE");
    char path[4096];
    int files = 0, kinds = 0;
    (void)state;
    snprintf(path, sizeof path, "%s/models/router", source ? source : ".");
    DIR *folder = opendir(path);
    assert_non_null(folder);
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        char name[64];
        if (sscanf(entry->d_name, "%63[a-z_0-9].c", name) != 1 || !strstr(entry->d_name, ".c"))
            continue;
        assert_non_null(bk_router_find(name));
        files++;
    }
    closedir(folder);
    for (; bk_routers[kinds]; kinds++)
        assert_true(bk_routers[kinds]->summary && bk_routers[kinds]->source);
    assert_int_equal(files, kinds);
    assert_null(bk_router_find("no such kind"));
}

/* ---- ssr ---- */

static void ssr_draws_its_share(void **state)
{
    const double h[E] = {0.3, -1.0, 2.0, 0.1, 0.0};
    int taken = 0;
    (void)state;
    bk_test_router *p = bk_test_router_open("ssr", "probability=0.1", 1, E, h);
    for (p->args.step = 0; p->args.step < 10000; p->args.step++) {
        bk_arena_mark mark = bk_arena_get_mark(p->arena);
        taken += bk_test_router_run(p)->transport;
        bk_arena_release(p->arena, mark);
    }
    assert_true(abs(taken - 1000) <= 90); /* 3 standard deviations */
    bk_test_router_close(p);
}

static void ssr_with_probability_0_is_topk(void **state)
{
    double h[T * E];
    (void)state;
    bk_test_spread(T * E, h, 3, 2.0);
    bk_test_router *p = bk_test_router_open("ssr", "probability=0", T, E, h),
                   *topk = bk_test_router_open("topk", "", T, E, h);
    bk_test_router_run(topk);
    for (p->args.step = 0; p->args.step < 50; p->args.step++) {
        assert_false(bk_test_router_run(p)->transport);
        bk_test_same_routes(p, 0, topk, 0, T);
    }
    bk_test_router_close(p);
    bk_test_router_close(topk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_topk),
        cmocka_unit_test(golden_transport),
        cmocka_unit_test(golden_losses),
        cmocka_unit_test(golden_draws),
        cmocka_unit_test(every_gradient),
        cmocka_unit_test(padding_is_left_alone),
        cmocka_unit_test(ties_go_to_the_lower_expert),
        cmocka_unit_test(strange_logits_do_no_harm),
        cmocka_unit_test(one_token_and_none),
        cmocka_unit_test(evaluation_is_plain_topk),
        cmocka_unit_test(a_single_kept_weight_is_not_renormalised),
        cmocka_unit_test(the_table_and_the_folder_agree),
        cmocka_unit_test(ssr_draws_its_share),
        cmocka_unit_test(ssr_with_probability_0_is_topk),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, load, unload);
}
