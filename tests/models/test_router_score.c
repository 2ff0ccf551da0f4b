/* test: labels=unit,grad timeout=60 */
/* Scores, weights and noise that the router kinds share. */
#include "tests/support/router.h"

#include "core/blas.h"

#include <math.h>
#include <string.h>

enum { T = 24, E = 5, K = 2 };

/* ---- scores ---- */

static void scores_are_their_formulas(void **state)
{
    const double h[E] = {0.5, -2.0, 3.0, 0.0, 40.0};
    double p[E], sum = 0.0;
    (void)state;
    for (int e = 0; e < E; e++)
        sum += exp(h[e] - 40.0);
    bk_router_scores(BK_SCORE_SOFTMAX, E, h, p);
    for (int e = 0; e < E; e++)
        assert_true(fabs(p[e] - exp(h[e] - 40.0) / sum) < 1e-15);
    bk_router_scores(BK_SCORE_SIGMOID, E, h, p);
    sum = 0.0;
    for (int e = 0; e < E; e++) {
        assert_true(fabs(p[e] - 1.0 / (1.0 + exp(-h[e]))) < 1e-15);
        sum += p[e];
    }
    double shares[E];
    bk_router_shares(BK_SCORE_SIGMOID, E, h, shares);
    for (int e = 0; e < E; e++)
        assert_true(fabs(shares[e] - p[e] / sum) < 1e-15);
}

/* Sigmoids that underflow still have a ratio: e^-900 to e^-901 is e. */
static void far_sigmoids_keep_their_ratio(void **state)
{
    const double h[E] = {-900.0, -901.0, -1700.0, -1800.0, -1900.0};
    double p[E];
    (void)state;
    bk_router_shares(BK_SCORE_SIGMOID, E, h, p);
    assert_true(fabs(p[0] / p[1] - exp(1.0)) < 1e-12);
    assert_true(fabs(p[0] + p[1] - 1.0) < 1e-14);
    double rows[T * E];
    for (int i = 0; i < T * E; i++)
        rows[i] = -900.0 - i % E;
    bk_test_router *a = bk_test_router_open("topk", "score=sigmoid", T, E, rows);
    const bk_route *r = bk_test_router_run(a);
    for (int t = 0; t < T; t++) {
        assert_true(fabs(r->weight[t * K] / r->weight[t * K + 1] - exp(1.0)) < 1e-12);
        assert_true(fabs(r->weight[t * K] + r->weight[t * K + 1] - 1.0) < 1e-14);
    }
    bk_test_router_close(a);
}

/* ---- weights ---- */

static double objective(bk_test_router *p, const bk_route *base, const double *gw)
{
    const bk_score_config *c = (const bk_score_config *)p->config;
    double w[T * K], sum = 0.0;
    const bk_route held = {.index = base->index, .seen = p->args.logits};
    bk_router_weights(&p->args, c, bk_router_renormalizes(c, K), &held, w);
    for (int i = 0; i < T * K; i++)
        sum += gw[i] * w[i];
    return sum;
}

static void weights_have_their_gradient(void **state)
{
    const char *options[] = {"renormalize=true scale=1.7", "renormalize=false scale=1.7",
                             "score=sigmoid renormalize=true scale=1.7",
                             "score=sigmoid renormalize=false scale=1.7"};
    const double step = 1e-4;
    double h[T * E], gw[T * K];
    (void)state;
    bk_test_spread(T * E, h, 3, 2.0);
    bk_test_spread(T * K, gw, 4, 1.0);
    for (int i = 0; i < 4; i++) {
        double grad[T * E] = {0}, numeric[T * E];
        bk_test_router *p = bk_test_router_open("topk", options[i], T, E, h);
        const bk_route base = *bk_test_router_run(p);
        p->kind->backward(&p->args, &base, &(bk_route_back){.weight = gw, .logits = grad});
        for (int j = 0; j < T * E; j++) {
            double kept = h[j];
            h[j] = kept + step;
            numeric[j] = objective(p, &base, gw);
            h[j] = kept - step;
            numeric[j] = (numeric[j] - objective(p, &base, gw)) / (2.0 * step);
            h[j] = kept;
        }
        bk_check_error(bk_test_error(T * E, grad, numeric, 1e-3), 1e-6, "%s", options[i]);
        bk_test_router_close(p);
    }
}

static void auto_renormalises_above_one(void **state)
{
    (void)state;
    bk_score_config c = {.renormalize = BK_AUTO};
    assert_true(bk_router_renormalizes(&c, 2) && !bk_router_renormalizes(&c, 1));
    c.renormalize = BK_FALSE;
    assert_false(bk_router_renormalizes(&c, 2));
}

/* ---- logits that are not finite ---- */

static void replaced_by_the_smallest_of_the_row(void **state)
{
    const double h[2 * E] = {1.0, NAN, -3.0, INFINITY, 2.0, NAN, NAN, -INFINITY, NAN, INFINITY};
    const double clean[2 * E] = {1.0, -3.0, -3.0, -3.0, 2.0};
    (void)state;
    bk_test_router *p = bk_test_router_open("topk", "", 2, E, h);
    const bk_route *r = bk_test_router_run(p);
    assert_memory_equal(r->clean, clean, sizeof clean);
    assert_true(r->index[0] == 4 && r->index[1] == 0 && r->index[2] == 0 && r->index[3] == 1);
    bk_test_router_close(p);
}

/* ---- noise ---- */

static void given_noise_moves_the_logits(void **state)
{
    double h[T * E], noise[T * E], moved[T * E];
    (void)state;
    bk_test_spread(T * E, h, 6, 2.0);
    bk_test_spread(T * E, noise, 7, 2.0);
    for (int i = 0; i < T * E; i++)
        moved[i] = h[i] + 0.5 * noise[i];
    for (int i = 0; bk_routers[i]; i++) {
        const char *kind = bk_routers[i]->name;
        if (!bk_test_router_has(bk_routers[i], "noise"))
            continue;
        bk_test_router *a = bk_test_router_open(kind, "noise=logits noise_scale=0.5", T, E, h),
                       *b = bk_test_router_open(kind, "", T, E, moved);
        a->args.noise = noise;
        bk_test_router_run(a);
        bk_test_router_run(b);
        bk_test_same_routes(a, 0, b, 0, T);
        assert_ptr_equal(a->route.clean, h);
        bk_test_router_close(a);
        bk_test_router_close(b);
    }
}

static void noise_stays_out_of_evaluation_and_other_branches(void **state)
{
    double h[T * E];
    (void)state;
    bk_test_spread(T * E, h, 6, 2.0);
    bk_test_router *plain = bk_test_router_open("topk", "", T, E, h);
    bk_test_router *noisy[] = {
        bk_test_router_open("topk", "noise=logits noise_scale=3", T, E, h),
        bk_test_router_open("ssr", "noise=logits noise_scale=3 noise_branch=ot probability=0", T, E,
                            h),
        bk_test_router_open("ssr", "noise=cost noise_scale=3 probability=0", T, E, h)};
    noisy[0]->args.training = false;
    bk_test_router_run(plain);
    for (int i = 0; i < 3; i++) {
        bk_test_router_run(noisy[i]);
        bk_test_same_routes(noisy[i], 0, plain, 0, T);
        bk_test_router_close(noisy[i]);
    }
    bk_test_router *acts = bk_test_router_open("topk", "noise=logits noise_scale=3", T, E, h);
    bk_test_router_run(acts);
    assert_memory_not_equal(acts->route.weight, plain->route.weight,
                            T * K * sizeof *plain->route.weight);
    bk_test_router_close(acts);
    bk_test_router_close(plain);
}

/* A rank that holds the second half draws what one rank draws there. */
static void draws_follow_the_global_token(void **state)
{
    enum { HALF = T / 2 };
    double h[T * E];
    (void)state;
    bk_test_spread(T * E, h, 6, 1.0);
    bk_test_router *all = bk_test_router_open("topk", "noise=logits noise_scale=2", T, E, h),
                   *half = bk_test_router_open("topk", "noise=logits noise_scale=2", HALF, E,
                                               h + HALF * E);
    half->args.first_token = HALF;
    bk_test_router_run(all);
    bk_test_router_run(half);
    bk_test_same_routes(half, 0, all, HALF, HALF);
    half->args.step++;
    bk_test_router_run(half);
    assert_memory_not_equal(half->route.weight, all->route.weight + HALF * K,
                            HALF * K * sizeof *half->route.weight);
    bk_test_router_close(all);
    bk_test_router_close(half);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_are_their_formulas),
        cmocka_unit_test(far_sigmoids_keep_their_ratio),
        cmocka_unit_test(weights_have_their_gradient),
        cmocka_unit_test(auto_renormalises_above_one),
        cmocka_unit_test(replaced_by_the_smallest_of_the_row),
        cmocka_unit_test(given_noise_moves_the_logits),
        cmocka_unit_test(noise_stays_out_of_evaluation_and_other_branches),
        cmocka_unit_test(draws_follow_the_global_token),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
