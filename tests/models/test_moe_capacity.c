/* Which choices an expert takes: against the rule written down slowly, and where nothing may be
 * dropped. */
#include "tests/support/router.h"

#include "models/moe_capacity.h"

#include <math.h>
#include <string.h>

enum { T = 60, E = 5, K = 2, LANES = 4 };

static double logits[T * E];

/* The routing of all tokens with a limit; `score` is left in score[T,K]. */
static const bk_route *limited(bk_test_router *p, bk_capacity c)
{
    static bk_route r;
    r = *bk_test_router_run(p);
    bk_route_limit(&p->args, &c, &r);
    return &r;
}

static double score_of(const bk_route *r, int64_t i)
{
    double sum = 0.0;
    const double *h = r->seen + i / K * E;
    if (r->planned)
        return r->plan[i / K * E + r->index[i]];
    for (int e = 0; e < E; e++)
        sum += exp(h[e] - h[r->index[i]]);
    return 1.0 / sum;
}

/* Choice i stays when fewer than `most` of its expert in its lane come before it. */
static bool stays(const bk_route *r, int64_t i, int64_t most, bk_drop_policy policy)
{
    int64_t lane = i / (T / LANES * K), ahead = 0;
    for (int64_t j = lane * (T / LANES * K); j < (lane + 1) * (T / LANES * K); j++) {
        if (j == i || r->index[j] != r->index[i])
            continue;
        double mine = score_of(r, i), other = score_of(r, j);
        bool first = policy == BK_DROP_POSITION
                         ? j % K < i % K || (j % K == i % K && j < i)
                         : other > mine * (1 + 1e-12) || (fabs(other - mine) <= 1e-12 && j < i);
        ahead += first;
    }
    return ahead < most;
}

static int64_t valid_of(const bk_test_router *p, int64_t lane)
{
    int64_t valid = 0;
    for (int64_t t = lane * (T / LANES); t < (lane + 1) * (T / LANES); t++)
        valid += !p->args.mask || p->args.mask[t];
    return valid;
}

static void check_limit(bk_test_router *p, bk_capacity c)
{
    const bk_route *r = limited(p, c);
    int64_t dropped = 0;
    for (int64_t i = 0; i < T * K; i++) {
        double share = ceil((double)valid_of(p, i / (T / LANES * K)) * K * c.factor / E);
        int64_t most = share > (double)c.least ? (int64_t)share : c.least;
        bool expected = r->index[i] >= 0 && stays(r, i, most, c.policy);
        assert_int_equal(r->kept[i], expected);
        assert_true(bk_route_sends(r, i) == expected);
        dropped += r->index[i] >= 0 && !expected;
    }
    assert_true(dropped > 0 && dropped < T * K);
}

static void an_expert_takes_its_best(void **state)
{
    const char *const options[] = {"", "renormalize=false", "noise=logits"};
    int32_t mask[T];
    (void)state;
    for (int i = 0; i < T; i++)
        mask[i] = i % 7 != 3;
    for (int i = 0; i < 3; i++)
        for (int policy = 0; policy < 2; policy++) {
            bk_test_router *p = bk_test_router_open("topk", options[i], T, E, logits);
            bk_test_router_lanes(p, LANES);
            check_limit(p, (bk_capacity){0.7, 1, (bk_drop_policy)policy});
            bk_test_router_mask(p, mask);
            check_limit(p, (bk_capacity){0.5, 4, (bk_drop_policy)policy});
            bk_test_router_close(p);
        }
}

/* On the transport branch the scores are entries of the plan. */
static void the_plan_decides_where_it_weighs(void **state)
{
    bk_test_router *p = bk_test_router_open("ssr", "probability=1", T, E, logits);
    (void)state;
    bk_test_router_lanes(p, LANES);
    check_limit(p, (bk_capacity){0.8, 1, BK_DROP_PROBS});
    assert_true(limited(p, (bk_capacity){.factor = 1.0})->planned);
    bk_test_router_close(p);
}

/* Raw logits would lose to the zeros of other rows; scores cannot. */
static void enough_room_drops_nothing(void **state)
{
    double below[T * E];
    (void)state;
    for (int i = 0; i < T * E; i++)
        below[i] = logits[i] - 100.0;
    for (int policy = 0; policy < 2; policy++) {
        bk_test_router *p = bk_test_router_open("topk", "score=sigmoid", T, E, below);
        bk_test_router_lanes(p, LANES);
        const bk_route *r = limited(p, (bk_capacity){E, 1, (bk_drop_policy)policy});
        for (int i = 0; i < T * K; i++)
            assert_int_equal(r->kept[i], 1);
        assert_null(limited(p, (bk_capacity){.factor = 0.0})->kept);
        bk_test_router_close(p);
    }
}

static void capacities(void **state)
{
    (void)state;
    assert_int_equal(bk_capacity_of(&(bk_capacity){.factor = 1.0, .least = 1}, 12, 2, 4), 6);
    assert_int_equal(bk_capacity_of(&(bk_capacity){.factor = 1.1, .least = 1}, 12, 2, 4), 7);
    assert_int_equal(bk_capacity_of(&(bk_capacity){.factor = 1.1, .least = 9}, 12, 2, 4), 9);
    assert_int_equal(bk_capacity_of(&(bk_capacity){.factor = 2.0, .least = 3}, 0, 2, 4), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_expert_takes_its_best),
        cmocka_unit_test(the_plan_decides_where_it_weighs),
        cmocka_unit_test(enough_room_drops_nothing),
        cmocka_unit_test(capacities),
    };
    bk_test_spread(T * E, logits, 5, 2.0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
