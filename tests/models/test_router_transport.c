/* test: labels=unit,grad timeout=120 */
/* Routing by transport: the plan, its gradient, invariances, lanes, state. */
#include "tests/support/router.h"

#include "core/blas.h"

#include <math.h>
#include <string.h>

enum { T = 24, E = 5, K = 2 };

#define TIGHT BK_TEST_TIGHT

static bk_test_router *open_problem(const char *kind, const char *options, const double *logits)
{
    return bk_test_router_open(kind, options, T, E, logits);
}

/* ---- the plan ---- */

static void the_plan_has_its_marginals(void **state)
{
    double h[T * E];
    (void)state;
    bk_test_spread(T * E, h, 3, 3.0);
    bk_test_router *p = open_problem("sinkhorn", TIGHT, h);
    const bk_route *r = bk_test_router_run(p);
    assert_true(r->converged && r->residual <= 1e-9);
    for (int e = 0; e < E; e++) {
        double column = 0.0;
        for (int t = 0; t < T; t++)
            column += r->plan[t * E + e];
        assert_true(fabs(column * E / T - 1.0) < 2e-9);
    }
    for (int t = 0; t < T; t++) {
        double sum = 0.0;
        for (int e = 0; e < E; e++)
            sum += r->plan[t * E + e];
        assert_true(fabs(sum - 1.0) < 1e-12);
    }
    bk_test_router_close(p);
}

static void tolerance_saves_iterations(void **state)
{
    double h[T * E];
    (void)state;
    bk_test_spread(T * E, h, 3, 4.0);
    bk_test_router *a = open_problem("sinkhorn", "tolerance=1e-8 iterations=1000", h),
                   *b = open_problem("sinkhorn", "tolerance=1e-2 iterations=1000", h),
                   *c = open_problem("sinkhorn", "tolerance=1e-8 iterations=3", h);
    bk_test_router_run(a);
    bk_test_router_run(b);
    bk_test_router_run(c);
    assert_true(b->route.iterations < a->route.iterations);
    assert_true(a->route.residual <= 1e-8 && b->route.residual <= 1e-2);
    assert_int_equal(c->route.iterations, 3);
    assert_false(c->route.converged);
    bk_test_router_close(a);
    bk_test_router_close(b);
    bk_test_router_close(c);
}

static void a_far_expert_is_reached(void **state)
{
    double h[64 * 4] = {0};
    (void)state;
    for (int t = 0; t < 64; t++)
        h[t * 4 + 3] = -1000.0;
    bk_test_router *p = bk_test_router_open("sinkhorn", "tolerance=1e-6 iterations=200", 64, 4, h);
    const bk_route *r = bk_test_router_run(p);
    assert_true(r->residual <= 1e-6 && r->iterations <= 34);
    bk_test_router_close(p);
}

static void attributes_tell_what_happened(void **state)
{
    double h[T * E];
    bk_attributes a = {0};
    (void)state;
    bk_test_spread(T * E, h, 3, 3.0);
    bk_test_router *p = open_problem("ssr", "probability=1", h);
    p->args.attributes = &a;
    const bk_route *r = bk_test_router_run(p);
    const char *names[] = {"ot", "iterations", "residual", "converged", "messages"};
    double values[] = {1, (double)r->iterations, r->residual, 1, (double)r->iterations + 1};
    assert_int_equal(a.entries, 5);
    for (int i = 0; i < 5; i++) {
        assert_string_equal(a.entry[i].name, names[i]);
        assert_true(a.entry[i].value == values[i]);
    }
    bk_test_router_close(p);
}

/* ---- the gradient: <gw, w> with the routes held and the potentials solved anew ---- */

static double plan_objective(bk_test_router *p, const bk_route *base, const double *gw)
{
    bk_route r = *bk_test_router_run(p);
    double w[T * K], sum = 0.0;
    r.index = base->index;
    r.weight = w;
    bk_router_plan_weights(&p->args, 1.0, &r);
    for (int i = 0; i < T * K; i++)
        sum += gw[i] * w[i];
    return sum;
}

static void check_plan_gradient(const char *options, int64_t lanes, const int32_t *mask)
{
    const double step = 1e-4;
    double h[T * E], gw[T * K], grad[T * E] = {0}, numeric[T * E];
    bk_test_spread(T * E, h, 3, 2.0);
    bk_test_spread(T * K, gw, 4, 1.0);
    bk_test_router *p = open_problem("ssr", options, h);
    bk_test_router_lanes(p, lanes);
    bk_test_router_mask(p, mask);
    const bk_route base = *bk_test_router_run(p);
    assert_true(base.transport);
    p->kind->backward(&p->args, &base, &(bk_route_back){.weight = gw, .logits = grad});
    for (int i = 0; i < T * E; i++) {
        double kept = h[i];
        h[i] = kept + step;
        numeric[i] = plan_objective(p, &base, gw);
        h[i] = kept - step;
        numeric[i] = (numeric[i] - plan_objective(p, &base, gw)) / (2.0 * step);
        h[i] = kept;
    }
    bk_check_error(bk_test_error(T * E, grad, numeric, 1e-3), 1e-5, "%s", options);
    bk_test_router_close(p);
}

static const int32_t some_padding[T] = {1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1,
                                        1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1};

static void implicit_gradient_is_that_of_the_solved_plan(void **state)
{
    (void)state;
    check_plan_gradient(TIGHT "probability=1 gradient=implicit", 1, NULL);
    check_plan_gradient(TIGHT "probability=1 gradient=implicit epsilon=0.5", 4, some_padding);
    check_plan_gradient(TIGHT "probability=1 gradient=implicit cost=softmax epsilon=0.3", 2,
                        some_padding);
}

static void implicit_gradient_holds_in_every_lane(void **state)
{
    (void)state;
    check_plan_gradient(TIGHT "probability=1 gradient=implicit scope=local", 2, NULL);
    check_plan_gradient(TIGHT "probability=1 gradient=implicit scope=local", 4, some_padding);
}

/* Above a residual of 1e-3 the potentials are held: implicit equals partial. */
static void an_unsolved_plan_falls_back_to_partial(void **state)
{
    double h[T * E], gw[T * K], grad[3][T * E] = {0};
    const char *options[] = {"probability=1 iterations=1 gradient=partial",
                             "probability=1 iterations=1 gradient=implicit",
                             "probability=1 gradient=implicit"};
    (void)state;
    bk_test_spread(T * E, h, 3, 4.0);
    bk_test_spread(T * K, gw, 4, 1.0);
    for (int i = 0; i < 3; i++) {
        bk_test_router *p = open_problem("ssr", options[i], h);
        const bk_route *r = bk_test_router_run(p);
        assert_true(i == 2 || r->residual > 1e-3);
        assert_int_equal(r->held, i == 1);
        p->kind->backward(&p->args, r, &(bk_route_back){.weight = gw, .logits = grad[i]});
        bk_test_router_close(p);
    }
    assert_memory_equal(grad[0], grad[1], sizeof grad[0]);
    assert_memory_not_equal(grad[0], grad[2], sizeof grad[0]);
}

static void detached_weights_give_no_gradient(void **state)
{
    double h[T * E], gw[T * K], grad[T * E] = {0}, zero[T * E] = {0};
    (void)state;
    bk_test_spread(T * E, h, 6, 2.0);
    bk_test_spread(T * K, gw, 4, 1.0);
    bk_test_router *p = open_problem("ssr", "probability=1", h);
    p->kind->backward(&p->args, bk_test_router_run(p),
                      &(bk_route_back){.weight = gw, .logits = grad});
    assert_memory_equal(grad, zero, sizeof grad);
    bk_test_router_close(p);
}

static void a_gradient_needs_weights_of_the_plan(void **state)
{
    double h[T * E] = {0};
    (void)state;
    bk_test_router *p = open_problem("sinkhorn", "gradient=partial", h);
    assert_int_equal(p->kind->check(p->config, E, K), BK_USAGE);
    bk_test_router_close(p);
    p = open_problem("sinkhorn", "gradient=partial weights=plan", h);
    assert_int_equal(p->kind->check(p->config, E, K), BK_OK);
    bk_test_router_close(p);
}

/* ---- weights ---- */

/* Kept entries of the plan over their sum, also where the plan itself is 0. */
static void plan_weights_are_kept_entries_over_their_sum(void **state)
{
    double h[T * E];
    (void)state;
    bk_test_spread(T * E, h, 6, 2.0);
    bk_test_router *p = open_problem("sinkhorn", "weights=plan scale=2.5", h);
    const bk_route *r = bk_test_router_run(p);
    for (int t = 0; t < T; t++) {
        const double *q = r->plan + t * E;
        const int32_t *index = r->index + t * K;
        double sum = q[index[0]] + q[index[1]];
        for (int s = 0; s < K; s++)
            assert_true(fabs(r->weight[t * K + s] - 2.5 * q[index[s]] / sum) < 1e-12);
    }
    const int32_t last[K] = {E - 2, E - 1};
    double balanced[E] = {0.0, 0.0, 0.0, -900.0, -901.0}, w[K];
    bk_route far = {.index = (int32_t[K]){last[0], last[1]}, .weight = w, .balanced = balanced};
    p->args.tokens = 1;
    bk_router_plan_weights(&p->args, 1.0, &far);
    assert_true(far.planned);
    assert_true(fabs(w[0] - 1.0 / (1.0 + exp(-1.0))) < 1e-14 && fabs(w[0] + w[1] - 1.0) < 1e-14);
    bk_test_router_close(p);
}

/* ---- invariances ---- */

static void a_shifted_row_routes_the_same(void **state)
{
    double h[T * E], shifted[T * E];
    (void)state;
    bk_test_spread(T * E, h, 6, 3.0);
    for (int i = 0; i < T * E; i++)
        shifted[i] = h[i] + (double)(i / E % 7) - 3.0;
    bk_test_router *a = open_problem("ssr", TIGHT "probability=1", h),
                   *b = open_problem("ssr", TIGHT "probability=1", shifted);
    bk_test_router_run(a);
    bk_test_router_run(b);
    assert_memory_equal(a->route.index, b->route.index, T * K * sizeof *a->route.index);
    bk_check_error(bk_test_error(T * K, b->route.weight, a->route.weight, 1e-30), 1e-9,
                   "weights of shifted rows");
    bk_check_error(bk_test_error(E, b->route.bias, a->route.bias, 1e-30), 1e-9,
                   "potentials of shifted rows");
    bk_test_router_close(a);
    bk_test_router_close(b);
}

static void lanes_change_no_bit_of_a_global_plan(void **state)
{
    double h[T * E];
    (void)state;
    bk_test_spread(T * E, h, 6, 3.0);
    bk_test_router *a = open_problem("sinkhorn", "weights=plan", h),
                   *b = open_problem("sinkhorn", "weights=plan", h);
    bk_test_router_lanes(b, 8);
    bk_test_router_run(a);
    bk_test_router_run(b);
    assert_memory_equal(a->route.bias, b->route.bias, E * sizeof *a->route.bias);
    bk_test_same_routes(a, 0, b, 0, T);
    bk_test_router_close(a);
    bk_test_router_close(b);
}

static void a_local_plan_is_that_of_the_lane_alone(void **state)
{
    enum { PART = T / 4 };
    double h[T * E];
    (void)state;
    bk_test_spread(T * E, h, 6, 3.0);
    bk_test_router *all = open_problem("sinkhorn", TIGHT "scope=local weights=plan", h);
    bk_test_router_lanes(all, 4);
    bk_test_router_run(all);
    for (int l = 0; l < 4; l++) {
        bk_test_router *one =
            bk_test_router_open("sinkhorn", TIGHT "weights=plan", PART, E, h + l * PART * E);
        bk_test_router_run(one);
        assert_memory_equal(all->route.bias + l * E, one->route.bias, E * sizeof *one->route.bias);
        bk_test_same_routes(all, l * PART, one, 0, PART);
        bk_test_router_close(one);
    }
    bk_test_router_close(all);
}

/* Blocks of the caller's, here across lanes, take the place of lanes. */
static void blocks_take_the_place_of_lanes(void **state)
{
    const int64_t row[] = {0, 10, T};
    const bk_route_blocks blocks = {.count = 2, .row = row};
    double h[T * E];
    (void)state;
    bk_test_spread(T * E, h, 6, 3.0);
    bk_test_router *all = open_problem("sinkhorn", TIGHT "scope=local weights=plan", h);
    bk_test_router_lanes(all, 4);
    all->args.blocks = &blocks;
    bk_test_router_run(all);
    for (int b = 0; b < 2; b++) {
        bk_test_router *one = bk_test_router_open("sinkhorn", TIGHT "weights=plan",
                                                  row[b + 1] - row[b], E, h + row[b] * E);
        bk_test_router_run(one);
        bk_test_same_routes(all, row[b], one, 0, row[b + 1] - row[b]);
        bk_test_router_close(one);
    }
    bk_test_router_close(all);
}

/* ---- state ---- */

static void the_state_starts_the_next_solve(void **state)
{
    double h[T * E], bias[E] = {0}, sum = 0.0;
    (void)state;
    bk_test_spread(T * E, h, 6, 3.0);
    bk_test_router *p = open_problem("sinkhorn", "tolerance=1e-6 iterations=1000", h);
    p->args.bias = bias;
    const bk_route *r = bk_test_router_run(p);
    assert_true(r->iterations > 0);
    memcpy(bias, r->next, sizeof bias);
    for (int e = 0; e < E; e++)
        sum += bias[e];
    assert_true(fabs(sum) < 1e-12 && bias[0] != 0.0);
    assert_int_equal(bk_test_router_run(p)->iterations, 0);
    p->args.training = false;
    assert_null(bk_test_router_run(p)->next);
    bk_test_router_close(p);
    p = open_problem("sinkhorn", "tolerance=1e-6 iterations=1000 warm_start=false", h);
    p->args.bias = bias;
    assert_true(bk_test_router_run(p)->iterations > 0);
    bk_test_router_close(p);
}

/* ---- noise ---- */

static void noise_on_the_cost_moves_the_plan_alone(void **state)
{
    double h[T * E], noise[T * E], moved[T * E];
    (void)state;
    bk_test_spread(T * E, h, 6, 2.0);
    bk_test_spread(T * E, noise, 7, 2.0);
    for (int i = 0; i < T * E; i++)
        moved[i] = h[i] + 0.5 * noise[i];
    bk_test_router *a = open_problem("sinkhorn", "noise=cost noise_scale=0.5", h),
                   *b = open_problem("sinkhorn", "", moved);
    a->args.noise = noise;
    bk_test_router_run(a);
    bk_test_router_run(b);
    assert_memory_equal(a->route.plan, b->route.plan, T * E * sizeof *a->route.plan);
    assert_memory_equal(a->route.index, b->route.index, T * K * sizeof *a->route.index);
    assert_ptr_equal(a->route.seen, h); /* weights are scores of the logits without the noise */
    bk_test_router_close(a);
    bk_test_router_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_plan_has_its_marginals),
        cmocka_unit_test(tolerance_saves_iterations),
        cmocka_unit_test(a_far_expert_is_reached),
        cmocka_unit_test(attributes_tell_what_happened),
        cmocka_unit_test(implicit_gradient_is_that_of_the_solved_plan),
        cmocka_unit_test(implicit_gradient_holds_in_every_lane),
        cmocka_unit_test(an_unsolved_plan_falls_back_to_partial),
        cmocka_unit_test(detached_weights_give_no_gradient),
        cmocka_unit_test(a_gradient_needs_weights_of_the_plan),
        cmocka_unit_test(plan_weights_are_kept_entries_over_their_sum),
        cmocka_unit_test(a_shifted_row_routes_the_same),
        cmocka_unit_test(lanes_change_no_bit_of_a_global_plan),
        cmocka_unit_test(a_local_plan_is_that_of_the_lane_alone),
        cmocka_unit_test(blocks_take_the_place_of_lanes),
        cmocka_unit_test(the_state_starts_the_next_solve),
        cmocka_unit_test(noise_on_the_cost_moves_the_plan_alone),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
