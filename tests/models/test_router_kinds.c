/* test: labels=unit,golden,grad timeout=60 */
/* What single kinds promise: the states of bias and quantile, noisy top-k and its loss, experts
 * that choose, the uniform one. */
#include "tests/support/router.h"

#include "core/blas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { T = 24, E = 5, K = 2 };

static json_t *golden;

static int load(void **state)
{
    (void)state;
    golden = bk_test_golden("ref_moe_golden.json");
    return 0;
}

static int unload(void **state)
{
    (void)state;
    json_decref(golden);
    return 0;
}

static double *numbers(const char *block, const char *key)
{
    int64_t n;
    const json_t *from = block ? json_object_get(golden, block) : golden;
    return bk_test_numbers(json_object_get(from, key), &n);
}

static void check_numbers(const char *block, const char *key, const double *x)
{
    int64_t n;
    double *expected = bk_test_numbers(json_object_get(json_object_get(golden, block), key), &n);
    bk_check_error(bk_test_error(n, x, expected, 1e-30), 1e-9, "%s of %s", key, block);
    free(expected);
}

static void check_index(const char *block, const char *key, const int32_t *index)
{
    int64_t n;
    double *expected = bk_test_numbers(json_object_get(json_object_get(golden, block), key), &n);
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(index[i], (int)expected[i]);
    free(expected);
}

/* One run on the logits of the golden file, with the bias of that block. */
typedef struct golden_run {
    double *logits, *gw, *bias;
    bk_test_router *router;
    double grad[48];
} golden_run;

static void open_golden(golden_run *g, const char *block, const char *kind, const char *options)
{
    *g = (golden_run){.logits = numbers(NULL, "logits"), .gw = numbers(NULL, "grad_weight")};
    g->bias = json_object_get(json_object_get(golden, block), "bias_in") ? numbers(block, "bias_in")
                                                                         : NULL;
    g->router = bk_test_router_open(kind, options, 12, 4, g->logits);
    g->router->args.bias = g->bias;
}

static void close_golden(golden_run *g)
{
    bk_test_router_close(g->router);
    free(g->logits);
    free(g->gw);
    free(g->bias);
}

static void gradient(golden_run *g, const double *gw, const double *aux)
{
    bk_route_gradient(
        &g->router->args, &g->router->route,
        &(bk_route_back){
            .weight = gw, .aux = aux, .logits = g->grad, .noise_logits = g->router->grad_noise});
}

/* ---- bias and quantile ---- */

static void golden_bias(void **state)
{
    golden_run g;
    int64_t count[4] = {0};
    (void)state;
    open_golden(&g, "bias", "bias", "");
    const bk_route *r = bk_test_router_run(g.router);
    check_index("bias", "index", r->index);
    check_numbers("bias", "weight", r->weight);
    gradient(&g, g.gw, NULL);
    check_numbers("bias", "grad_logits", g.grad);
    for (int i = 0; i < 24; i++)
        count[r->index[i]]++;
    g.router->kind->update(g.router->config, 4, count, g.bias);
    check_numbers("bias", "bias", g.bias);
    close_golden(&g);
}

static void golden_quantile(void **state)
{
    golden_run g;
    (void)state;
    open_golden(&g, "quantile", "quantile", "");
    const bk_route *r = bk_test_router_run(g.router);
    check_index("quantile", "index", r->index);
    check_numbers("quantile", "weight", r->weight);
    check_numbers("quantile", "bias", r->next);
    g.router->args.training = false;
    r = bk_test_router_run(g.router);
    check_index("quantile", "index", r->index); /* by the bias there is */
    assert_null(r->next);
    close_golden(&g);
}

enum { MANY = 400, EXPERTS = 8, WIDTH = 12 };

/* X gate^T of normal draws, as in the reference, and later experts are liked better. */
static void correlated_logits(double *h)
{
    for (int t = 0; t < MANY; t++)
        for (int e = 0; e < EXPERTS; e++) {
            h[t * EXPERTS + e] = 0.2 * e;
            for (int c = 0; c < WIDTH; c++)
                h[t * EXPERTS + e] +=
                    0.5 * bk_route_draw_normal(1, 0, 0, t, c) * bk_route_draw_normal(1, 1, 0, e, c);
        }
}

static double max_over_mean(const bk_route *r, int64_t *count)
{
    double most = 0.0;
    memset(count, 0, EXPERTS * sizeof *count);
    for (int i = 0; i < MANY * K; i++)
        count[r->index[i]]++;
    for (int e = 0; e < EXPERTS; e++)
        most = fmax(most, (double)count[e]);
    return most * EXPERTS / (MANY * K);
}

static void check_balance(const char *kind, const char *options, int updates)
{
    double h[MANY * EXPERTS], bias[EXPERTS] = {0}, before = 0.0, after = 0.0;
    int64_t count[EXPERTS];
    correlated_logits(h);
    bk_test_router *p = bk_test_router_open(kind, options, MANY, EXPERTS, h);
    p->args.bias = bias;
    for (int i = 0; i <= updates; i++) {
        bk_arena_mark mark = bk_arena_get_mark(p->arena);
        const bk_route *r = bk_test_router_run(p);
        after = max_over_mean(r, count);
        before = i == 0 ? after : before;
        if (p->kind->update)
            p->kind->update(p->config, EXPERTS, count, bias);
        else
            memcpy(bias, r->next, sizeof bias);
        bk_arena_release(p->arena, mark);
    }
    assert_true(before > 1.3);
    bk_check_error(after, 1.1, "%s: max/mean", kind);
    bk_test_router_close(p);
}

static void states_balance(void **state)
{
    (void)state;
    check_balance("bias", "rate=5e-3", 400);
    check_balance("quantile", "", 20);
}

/* scope=local: the mean of what each lane alone would have; one without tokens keeps the old. */
static void a_local_quantile_is_the_mean_over_lanes(void **state)
{
    enum { LANES = 4, PART = T / LANES };
    double h[T * E], bias[E] = {0.2, -0.1, 0.0, -0.3, 0.2}, expected[E] = {0};
    int32_t mask[T];
    (void)state;
    bk_test_spread(T * E, h, 6, 3.0);
    for (int t = 0; t < T; t++)
        mask[t] = t / PART != 1 && t % 5 != 3;
    bk_test_router *all = bk_test_router_open("quantile", "scope=local", T, E, h);
    bk_test_router_lanes(all, LANES);
    bk_test_router_mask(all, mask);
    all->args.bias = bias;
    bk_test_router_run(all);
    for (int l = 0; l < LANES; l++) {
        bk_test_router *one = bk_test_router_open("quantile", "", PART, E, h + l * PART * E);
        bk_test_router_mask(one, mask + l * PART);
        one->args.bias = bias;
        bk_test_router_run(one);
        for (int e = 0; e < E; e++)
            expected[e] += one->route.next[e] / LANES;
        bk_test_router_close(one);
    }
    bk_check_error(bk_test_error(E, all->route.next, expected, 1e-30), 1e-14, "mean over lanes");
    bk_test_router_close(all);
}

/* ---- noisy top-k ---- */

static void golden_noisy_topk(void **state)
{
    golden_run g;
    double one = 1.0, aux;
    (void)state;
    open_golden(&g, "noisy_topk", "noisy_topk", "");
    double *noise_logits = numbers("noisy_topk", "noise_logits"),
           *z = numbers("noisy_topk", "noise");
    g.router->args.noise_logits = noise_logits;
    g.router->args.noise = z;
    g.router->args.aux = BK_AUX_CV;
    const bk_route *r = bk_test_router_run(g.router);
    check_index("noisy_topk", "index", r->index);
    check_numbers("noisy_topk", "weight", r->weight);
    bk_route_measure(&g.router->args, r, &(bk_route_losses){.aux = &aux});
    check_numbers("noisy_topk", "aux", &aux);
    gradient(&g, g.gw, &one);
    check_numbers("noisy_topk", "grad_logits", g.grad);
    check_numbers("noisy_topk", "grad_noise_logits", g.router->grad_noise);
    close_golden(&g);
    free(noise_logits);
    free(z);
}

static const int32_t some_padding[T] = {1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1,
                                        1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1};

/* <gw, w> + <seed, aux>, routes held by a small step. */
static double noisy_objective(bk_test_router *p, const double *gw, const double *seed)
{
    double record[4], sum = 0.0;
    const bk_route *r = bk_test_router_run(p);
    bk_route_measure(&p->args, r, &(bk_route_losses){.aux = record});
    for (int i = 0; i < T * K; i++)
        sum += gw[i] * r->weight[i];
    for (int l = 0; l < 4; l++)
        sum += seed[l] * record[l];
    return sum;
}

static void check_noisy_gradient(const char *options)
{
    const double seed[4] = {1.0, -0.5, 2.0, 0.25}, step = 1e-5;
    double h[T * E], gw[T * K], grad[T * E], numeric[2][T * E];
    bk_test_spread(T * E, h, 3, 2.0);
    bk_test_spread(T * K, gw, 4, 1.0);
    bk_test_router *p = bk_test_router_open("noisy_topk", options, T, E, h);
    double *moved[2] = {h, p->noise_logits};
    bk_test_router_lanes(p, 4);
    bk_test_router_mask(p, some_padding);
    p->args.aux = BK_AUX_CV;
    bk_test_router_run(p);
    bk_route_gradient(
        &p->args, &p->route,
        &(bk_route_back){.weight = gw, .aux = seed, .logits = grad, .noise_logits = p->grad_noise});
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < T * E; i++) {
            double kept = moved[which][i];
            moved[which][i] = kept + step;
            numeric[which][i] = noisy_objective(p, gw, seed);
            moved[which][i] = kept - step;
            numeric[which][i] = (numeric[which][i] - noisy_objective(p, gw, seed)) / (2.0 * step);
            moved[which][i] = kept;
        }
    bk_check_error(bk_test_error(T * E, grad, numeric[0], 1e-3), 1e-5, "logits, %s", options);
    bk_check_error(bk_test_error(T * E, p->grad_noise, numeric[1], 1e-3), 1e-5, "noise, %s",
                   options);
    bk_test_router_close(p);
}

static void noisy_topk_has_its_gradient(void **state)
{
    (void)state;
    check_noisy_gradient("");
    check_noisy_gradient("scope=local renormalize=false");
    check_noisy_gradient("score=sigmoid scale=1.5");
}

/* ---- experts choose ---- */

static void golden_expert_choice(void **state)
{
    golden_run g;
    double gw[48] = {0};
    (void)state;
    open_golden(&g, "expert_choice", "expert_choice", "");
    const bk_route *r = bk_test_router_run(g.router);
    double *token = numbers("expert_choice", "token"), *weight = numbers("expert_choice", "weight"),
           *seed = numbers("expert_choice", "grad_weight");
    int chosen = 0;
    for (int i = 0; i < 48; i++)
        chosen += r->index[i] >= 0;
    assert_int_equal(chosen, 24);
    for (int i = 0; i < 24; i++) {
        int at = (int)token[i] * 4 + i / 6;
        assert_int_equal(r->index[at], i / 6);
        assert_true(fabs(r->weight[at] - weight[i]) < 1e-15);
        gw[at] = seed[i];
    }
    gradient(&g, gw, NULL);
    check_numbers("expert_choice", "grad_logits", g.grad);
    free(token);
    free(weight);
    free(seed);
    close_golden(&g);
}

/* Every expert takes its capacity of the valid tokens: the lower ones where all are alike. */
static void experts_take_their_capacity(void **state)
{
    double h[T * E] = {0};
    (void)state;
    for (double factor = 0.0; factor < 6.0; factor += 0.75) {
        bk_test_router *p = bk_test_router_open("expert_choice", "", T, E, h);
        bk_test_router_mask(p, some_padding);
        p->args.capacity_factor = factor;
        double cap = ceil(20.0 * K * (factor > 0.0 ? factor : 1.0) / E);
        const bk_route *r = bk_test_router_run(p);
        for (int e = 0; e < E; e++)
            for (int t = 0, left = (int)fmin(cap, 20.0); t < T; t++) {
                bool taken = some_padding[t] && left-- > 0;
                assert_int_equal(r->index[t * E + e], taken ? e : -1);
                assert_true(r->weight[t * E + e] == (taken ? 0.2 : 0.0));
            }
        bk_test_router_close(p);
    }
}

/* ---- uniform ---- */

static void uniform_takes_turns(void **state)
{
    double h[T * E] = {0};
    (void)state;
    bk_test_router *p = bk_test_router_open("uniform", "", T, E, h);
    p->args.first_token = 7;
    const bk_route *r = bk_test_router_run(p);
    for (int i = 0; i < T * K; i++)
        assert_true(r->index[i] == (7 * K + i) % E && r->weight[i] == 0.5);
    bk_test_router_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_bias),
        cmocka_unit_test(golden_quantile),
        cmocka_unit_test(states_balance),
        cmocka_unit_test(a_local_quantile_is_the_mean_over_lanes),
        cmocka_unit_test(golden_noisy_topk),
        cmocka_unit_test(noisy_topk_has_its_gradient),
        cmocka_unit_test(golden_expert_choice),
        cmocka_unit_test(experts_take_their_capacity),
        cmocka_unit_test(uniform_takes_turns),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, load, unload);
}
