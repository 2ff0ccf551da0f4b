/* test: labels=unit,mpi ranks=1,2,3,4,8 timeout=120 */
/* Every router of the table with every choice of its options: the rows shared out over the ranks
 * (not evenly, one rank without any) are routed to the bit as one rank routes them all. */
#include "tests/support/ranks.h"
#include "tests/support/router.h"

#include <stdio.h>
#include <string.h>

enum { T = 61, E = 7, K = 2, STEPS = 2 };

static bk_world *world;

/* First row of a rank: the rank in the middle has none when there are three or more. */
static int64_t cut(int rank, int size)
{
    static const int64_t weight[] = {5, 3, 4, 1, 2, 6, 3, 2};
    int64_t before = 0, all = 0;
    for (int r = 0; r < size; r++) {
        int64_t w = size > 2 && r == size / 2 ? 0 : weight[r];
        before += r < rank ? w : 0;
        all += w;
    }
    return T * before / all;
}

static int32_t mask_of(int64_t token)
{
    return token % 6 != 4;
}

typedef struct share {
    int64_t first, count;
    int32_t mask[T];
    double bias[E];
} share;

/* A lane for each row; rank `rank` of `size` holds its share of the rows. */
static bk_test_router *open_share(const char *kind, const char *options, share *s, int rank,
                                  int size)
{
    static double h[T * E], noise[T * E];
    bk_test_spread(T * E, h, 11, 3.0);
    bk_test_spread(T * E, noise, 2, 1.0);
    s->first = cut(rank, size);
    s->count = cut(rank + 1, size) - s->first;
    memset(s->bias, 0, sizeof s->bias);
    bk_test_router *p = bk_test_router_open(kind, options, s->count, E, h + s->first * E);
    for (int64_t t = 0; t < s->count; t++)
        s->mask[t] = mask_of(s->first + t);
    if (p->noise_logits)
        p->args.noise_logits = noise + s->first * E;
    p->lanes = (bk_lanes){.total = T, .first = s->first, .count = s->count, .batch = T};
    p->args.mask = s->mask;
    p->args.valid = 0;
    for (int64_t t = 0; t < T; t++)
        p->args.valid += mask_of(t);
    p->args.first_token = s->first;
    p->args.bias = p->kind->flags & BK_ROUTER_STATE ? s->bias : NULL;
    return p;
}

/* The state behind a step that counts. */
static void move_on(const bk_test_router *p, share *s)
{
    int64_t count[E] = {0};
    for (int64_t i = 0; i < s->count * K; i++)
        if (p->route.index[i] >= 0)
            count[p->route.index[i]]++;
    bk_reduce_fixed(p->args.reducer, E, count);
    if (p->route.next)
        memcpy(s->bias, p->route.next, sizeof s->bias);
    else if (p->kind->update)
        p->kind->update(p->config, E, count, s->bias);
}

static void check_routes(const char *kind, const char *options)
{
    share all, own;
    if (strstr(options, "scope=local")) /* one lane here, `size` lanes there: other problems */
        return;
    bk_test_router *one = open_share(kind, options, &all, 0, 1),
                   *part = open_share(kind, options, &own, world->rank, world->size);
    part->args.reducer = bk_comm_reducer(world->route);
    for (int64_t step = 0; step < STEPS; step++) {
        one->args.step = part->args.step = step;
        bk_test_router_run(one);
        bk_test_router_run(part);
        bk_test_same_routes(part, 0, one, own.first, own.count);
        move_on(one, &all);
        move_on(part, &own);
        assert_memory_equal(own.bias, all.bias, sizeof own.bias);
        assert_int_equal(part->route.iterations, one->route.iterations);
        assert_true(part->route.residual == one->route.residual);
    }
    bk_test_router_close(one);
    bk_test_router_close(part);
}

static void routes_do_not_depend_on_ranks(void **state)
{
    (void)state;
    for (int i = 0; bk_routers[i]; i++)
        for (int shares = 0; shares < 2; shares++)
            bk_test_router_variants(bk_routers[i], "", shares, check_routes);
}

/* A balance loss that looks at the tokens of all ranks. */
static bk_moe_aux widest_loss(const bk_router_kind *kind)
{
    return kind->flags & BK_ROUTER_EXPERTS ? BK_AUX_NONE
           : kind->measure                 ? BK_AUX_CV
                                           : BK_AUX_GLOBAL;
}

static double loss_of(bk_test_router *p)
{
    double record[T], sum;
    if (p->args.aux == BK_AUX_NONE)
        return 0.0;
    bk_route_measure(&p->args, &p->route, &(bk_route_losses){.aux = record});
    bk_reduce_vector(p->args.reducer, &p->lanes, 1, record, &sum, p->scratch);
    return sum;
}

/* grad[T,E] of the weights and of the loss, and what goes out through a noise gate. */
static void run_gradient(bk_test_router *p, const double *gw, double *grad)
{
    double seed[T];
    for (int t = 0; t < T; t++)
        seed[t] = 1.0;
    bk_route_gradient(&p->args, &p->route,
                      &(bk_route_back){.weight = gw,
                                       .aux = p->args.aux == BK_AUX_NONE ? NULL : seed,
                                       .logits = grad,
                                       .noise_logits = p->grad_noise});
}

/* Sums of doubles over the ranks: to rounding. */
static void check_gradient(const char *kind, const char *options)
{
    share all, own;
    double gw[T * E], grad[T * E], expected[T * E];
    if (strstr(options, "scope=local"))
        return;
    bk_test_spread(T * E, gw, 12, 1.0);
    bk_test_router *one = open_share(kind, options, &all, 0, 1),
                   *part = open_share(kind, options, &own, world->rank, world->size);
    part->args.reducer = bk_comm_reducer(world->route);
    one->args.aux = part->args.aux = widest_loss(one->kind);
    bk_test_router_run(one);
    bk_test_router_run(part);
    double whole = loss_of(one), parts = loss_of(part);
    bk_check_error(bk_test_error(1, &parts, &whole, 1e-3), 1e-12, "loss of %s %s", kind, options);
    run_gradient(one, gw, expected);
    run_gradient(part, gw + own.first * one->route.slots, grad);
    for (int64_t i = 0, at = own.first * E; i < own.count * E; i++) {
        bk_check_error(bk_test_error(1, &grad[i], &expected[at + i], 1e-3), 1e-9, "%s %s", kind,
                       options);
        if (part->grad_noise)
            bk_check_error(bk_test_error(1, &part->grad_noise[i], &one->grad_noise[at + i], 1e-3),
                           1e-9, "noise of %s %s", kind, options);
    }
    bk_test_router_close(one);
    bk_test_router_close(part);
}

static void gradients_do_not_depend_on_ranks(void **state)
{
    (void)state;
    for (int i = 0; bk_routers[i]; i++)
        bk_test_router_variants(bk_routers[i], BK_TEST_TIGHT "gradient=implicit ", true,
                                check_gradient);
}

/* Blocks of the caller's that span ranks: their plans and losses are those of one rank. */
static void shared_blocks_do_not_depend_on_ranks(void **state)
{
    const int64_t row[] = {0, 17, 40, T};
    int64_t local[4];
    share all, own;
    double grad[T * E], expected[T * E], gw[T * K], seed[T];
    (void)state;
    const char *options = BK_TEST_TIGHT "scope=local probability=1 gradient=implicit";
    bk_test_spread(T * K, gw, 12, 1.0);
    for (int t = 0; t < T; t++)
        seed[t] = 1.0;
    bk_test_router *one = open_share("ssr", options, &all, 0, 1),
                   *part = open_share("ssr", options, &own, world->rank, world->size);
    for (int i = 0; i < 4; i++) {
        int64_t at = row[i] - own.first;
        local[i] = at < 0 ? 0 : at > own.count ? own.count : at;
    }
    const bk_route_blocks whole = {.count = 3, .row = row},
                          parts = {.count = 3, .row = local, .shared = true};
    one->args.blocks = &whole;
    part->args.blocks = &parts;
    part->args.reducer = bk_comm_reducer(world->route);
    bk_test_router_run(one);
    bk_test_router_run(part);
    bk_test_same_routes(part, 0, one, own.first, own.count);
    assert_memory_equal(part->route.bias, one->route.bias, 3 * E * sizeof *one->route.bias);
    bk_route_gradient(
        &one->args, &one->route,
        &(bk_route_back){
            .weight = gw, .aux = seed, .logits = expected, .noise_logits = one->grad_noise});
    bk_route_gradient(&part->args, &part->route,
                      &(bk_route_back){.weight = gw + own.first * K, .aux = seed, .logits = grad});
    for (int64_t i = 0; i < own.count * E; i++)
        bk_check_error(bk_test_error(1, &grad[i], &expected[own.first * E + i], 1e-3), 1e-9,
                       "shared blocks");
    double aux[T], sum, whole_aux;
    bk_route_measure(&one->args, &one->route, &(bk_route_losses){.aux = aux});
    bk_reduce_vector(NULL, &one->lanes, 1, aux, &whole_aux, one->scratch);
    bk_route_measure(&part->args, &part->route, &(bk_route_losses){.aux = aux});
    bk_reduce_vector(part->args.reducer, &part->lanes, 1, aux, &sum, part->scratch);
    bk_check_error(bk_test_error(1, &sum, &whole_aux, 1e-3), 1e-12, "aux over ranks");
    bk_test_router_close(one);
    bk_test_router_close(part);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(routes_do_not_depend_on_ranks),
        cmocka_unit_test(gradients_do_not_depend_on_ranks),
        cmocka_unit_test(shared_blocks_do_not_depend_on_ranks),
    };
    bk_test_ranks_start(&argc, &argv);
    world = bk_test_world();
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
