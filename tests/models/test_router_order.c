/* test: labels=unit timeout=60 */
/* Every router of the table with every choice of its options: permuted experts are permuted, the
 * order of the tokens changes no bit. */
#include "tests/support/router.h"

#include "core/blas.h"

#include <math.h>
#include <string.h>

enum { T = 24, E = 5, K = 2 };

/* Kinds and options that look at places: draws, turns, experts in a row, tokens in a lane. */
static bool looks_at_places(const bk_router_kind *kind, const char *options)
{
    return kind->flags & (BK_ROUTER_BENCHMARK | BK_ROUTER_NOISE_GATE) ||
           strstr(options, "noise=l") || strstr(options, "noise=c");
}

typedef struct pair {
    bk_test_router *router[2]; /* in one order, in another */
    double h[2][T * E], bias[2][E];
} pair;

/* The state behind the step, the same way as a training makes it. */
static void next_state(const bk_test_router *p, double *bias)
{
    int64_t count[E] = {0};
    for (int i = 0; i < T * p->route.slots; i++)
        if (p->route.index[i] >= 0)
            count[p->route.index[i]]++;
    if (p->route.next)
        memcpy(bias, p->route.next, E * sizeof *bias);
    else if (p->kind->update)
        p->kind->update(p->config, E, count, bias);
}

static void route_both(pair *x, const char *kind, const char *options)
{
    for (int i = 0; i < 2; i++) {
        x->router[i] = bk_test_router_open(kind, options, T, E, x->h[i]);
        x->router[i]->args.bias = x->bias[i];
        bk_test_router_run(x->router[i]);
        next_state(x->router[i], x->bias[i]);
    }
}

static void close_both(pair *x)
{
    for (int i = 0; i < 2; i++)
        bk_test_router_close(x->router[i]);
}

static void check_tokens(const char *kind, const char *options)
{
    pair x = {.bias = {{0.1, -0.2, 0.0, 0.05, 0.05}, {0.1, -0.2, 0.0, 0.05, 0.05}}};
    if (looks_at_places(bk_router_find(kind), options) || strstr(options, "scope=local"))
        return;
    bk_test_spread(T * E, x.h[0], 6, 3.0);
    for (int t = 0; t < T; t++)
        memcpy(x.h[1] + t * E, x.h[0] + (T - 1 - t) * E, E * sizeof(double));
    route_both(&x, kind, options);
    for (int t = 0; t < T; t++)
        bk_test_same_routes(x.router[0], t, x.router[1], T - 1 - t, 1);
    assert_memory_equal(x.bias[0], x.bias[1], sizeof x.bias[0]);
    close_both(&x);
}

static void check_experts(const char *kind, const char *options)
{
    const int to[E] = {3, 0, 4, 1, 2};
    pair x = {.bias = {{0.1, -0.2, 0.0, 0.05, 0.05}}};
    double moved[E];
    if (looks_at_places(bk_router_find(kind), options))
        return;
    bk_test_spread(T * E, x.h[0], 6, 3.0);
    for (int i = 0; i < T * E; i++)
        x.h[1][i / E * E + to[i % E]] = x.h[0][i];
    for (int e = 0; e < E; e++)
        x.bias[1][to[e]] = x.bias[0][e];
    route_both(&x, kind, options);
    const bk_route *a = &x.router[0]->route, *b = &x.router[1]->route;
    bool experts_choose = x.router[0]->kind->flags & BK_ROUTER_EXPERTS;
    for (int i = 0; i < T * a->slots; i++) {
        int64_t at = experts_choose ? i / E * E + to[i % E] : i;
        assert_int_equal(b->index[at], a->index[i] < 0 ? -1 : to[a->index[i]]);
        assert_true(fabs(b->weight[at] - a->weight[i]) < 1e-9);
    }
    for (int e = 0; e < E; e++)
        moved[to[e]] = x.bias[0][e];
    bk_check_error(bk_test_error(E, x.bias[1], moved, 1e-30), 1e-9, "state of %s %s", kind,
                   options);
    close_both(&x);
}

static void the_order_of_tokens_changes_no_bit(void **state)
{
    (void)state;
    for (int i = 0; bk_routers[i]; i++)
        bk_test_router_variants(bk_routers[i], BK_TEST_TIGHT, true, check_tokens);
}

static void permuted_experts_are_permuted(void **state)
{
    (void)state;
    for (int i = 0; bk_routers[i]; i++)
        bk_test_router_variants(bk_routers[i], BK_TEST_TIGHT, true, check_experts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_order_of_tokens_changes_no_bit),
        cmocka_unit_test(permuted_experts_are_permuted),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
