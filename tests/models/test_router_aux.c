/* test: labels=unit,grad timeout=60 */
/* The switch loss in its forms and the z loss: values, gradients, what is counted. */
#include "tests/support/router.h"

#include "core/blas.h"

#include <math.h>
#include <string.h>

enum { T = 24, E = 5, K = 2 };

static const int32_t some_padding[T] = {1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1,
                                        1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1};

/* form BK_AUX_NONE: the z loss.  The blocks are lanes, or of three those of the caller. */
static void check_loss_gradient(const char *kind, const char *options, bk_moe_aux form,
                                const int64_t *blocks)
{
    bool aux = form != BK_AUX_NONE;
    const double seed[4] = {1.0, -0.5, 2.0, 0.25}, step = 1e-4;
    double h[T * E], grad[T * E], numeric[T * E];
    bk_route_blocks parts = {.count = 3, .row = blocks};
    bk_test_spread(T * E, h, 3, 2.0);
    bk_test_router *p = bk_test_router_open(kind, options, T, E, h);
    bk_test_router_lanes(p, 4);
    p->args.aux = form;
    bk_test_router_mask(p, some_padding);
    p->args.blocks = blocks && form == BK_AUX_SWITCH ? &parts : NULL;
    p->args.sequences = blocks && form == BK_AUX_SEQ ? &parts : NULL;
    const bk_route base = *bk_test_router_run(p);
    bk_route_gradient(
        &p->args, &base,
        &(bk_route_back){.aux = aux ? seed : NULL, .z = aux ? NULL : seed, .logits = grad});
    for (int i = 0; i < T * E; i++) {
        double kept = h[i], value[2] = {0}, record[4];
        for (int side = 0; side < 2; side++) {
            h[i] = kept + (side ? step : -step);
            bk_route_measure(&p->args, bk_test_router_run(p),
                             &(bk_route_losses){aux ? record : NULL, aux ? NULL : record});
            for (int l = 0; l < 4; l++)
                value[side] += seed[l] * record[l];
        }
        h[i] = kept;
        numeric[i] = (value[1] - value[0]) / (2.0 * step);
    }
    bk_check_error(bk_test_error(T * E, grad, numeric, 1e-3), 1e-6, "loss %d of %s %s", (int)form,
                   kind, options);
    bk_test_router_close(p);
}

static void losses_have_their_gradient(void **state)
{
    const int64_t blocks[] = {0, 4, 13, T}, sequences[] = {0, 6, 15, T}; /* these nest in lanes */
    (void)state;
    check_loss_gradient("topk", "", BK_AUX_SWITCH, NULL);
    check_loss_gradient("topk", "score=sigmoid", BK_AUX_SWITCH, NULL);
    check_loss_gradient("topk", "score=sigmoid", BK_AUX_SWITCH, blocks);
    check_loss_gradient("topk", "", BK_AUX_SEQ, sequences);
    check_loss_gradient("topk", "groups_of_experts=5 groups_kept=3", BK_AUX_GLOBAL, NULL);
    check_loss_gradient("bias", "", BK_AUX_GLOBAL, NULL);
    check_loss_gradient("topk", "", BK_AUX_NONE, NULL);
}

static double sum_of_records(bk_test_router *p)
{
    double record[T], sum = 0.0;
    bk_route_measure(&p->args, &p->route, &(bk_route_losses){.aux = record});
    for (int64_t l = 0; l < p->lanes.count; l++)
        sum += record[l];
    return sum;
}

/* seq is switch over sequences; global over lanes is switch over one lane. */
static void forms_of_the_loss(void **state)
{
    const int64_t row[] = {0, 6, 15, T};
    const bk_route_blocks parts = {.count = 3, .row = row};
    double h[T * E];
    (void)state;
    bk_test_spread(T * E, h, 3, 2.0);
    bk_test_router *p = bk_test_router_open("topk", "", T, E, h);
    bk_test_router_mask(p, some_padding);
    bk_test_router_run(p);
    double whole = sum_of_records(p);
    bk_test_router_lanes(p, 4);
    double lanes = sum_of_records(p);
    p->args.aux = BK_AUX_GLOBAL;
    bk_check_error(fabs(sum_of_records(p) - whole), 1e-14, "global");
    p->args.aux = BK_AUX_SEQ;
    assert_true(sum_of_records(p) == lanes); /* without sequences the blocks are they */
    p->args.sequences = &parts;
    double sequences = sum_of_records(p);
    p->args.blocks = &parts;
    p->args.aux = BK_AUX_SWITCH;
    assert_true(sum_of_records(p) == sequences && sequences != lanes && lanes != whole);
    bk_test_router_close(p);
}

/* Counts are those of the plain top-k, unless the kind has a state of its own. */
static void what_is_counted(void **state)
{
    const double bias[E] = {5.0, 0.0, 0.0, 0.0, 4.0};
    double h[T * E];
    (void)state;
    bk_test_spread(T * E, h, 3, 2.0);
    const char *options[] = {"", "noise=logits noise_scale=9", "score=softmax"};
    const char *kinds[] = {"topk", "topk", "bias"};
    double value[3];
    for (int i = 0; i < 3; i++) {
        bk_test_router *p = bk_test_router_open(kinds[i], options[i], T, E, h);
        p->args.bias = bias;
        bk_test_router_run(p);
        value[i] = sum_of_records(p);
        bk_test_router_close(p);
    }
    assert_true(value[0] == value[1] && value[0] != value[2]);
}

static void balanced_switch_loss_is_one(void **state)
{
    double h[T * E], record[4], sum = 0.0;
    (void)state;
    for (int i = 0; i < T * E; i++) /* every expert is first of as many tokens */
        h[i] = i % E == i / E % E ? 1.0 : i % E == (i / E + 1) % E ? 1.0 - 1e-12 : 1.0 - 2e-12;
    bk_test_router *p = bk_test_router_open("topk", "", 20, E, h);
    bk_test_router_lanes(p, 4);
    bk_route_measure(&p->args, bk_test_router_run(p), &(bk_route_losses){.aux = record});
    for (int l = 0; l < 4; l++)
        sum += record[l];
    assert_true(fabs(sum - 1.0) < 1e-11);
    bk_test_router_close(p);
}

/* The parts of two ranks with shared blocks add up to what one rank measures. */
static void add_other_half(void *context, int64_t n, int64_t *x)
{
    for (int64_t i = 0; i < n; i++)
        x[i] += ((const int64_t *)context)[i];
}

static void shared_blocks_count_all_ranks(void **state)
{
    enum { HALF = T / 2 };
    double h[T * E], all, half;
    const int64_t whole_row[] = {0, T}, half_row[] = {0, HALF};
    int64_t other[E + 1] = {0};
    (void)state;
    bk_test_spread(T * E, h, 3, 2.0);
    bk_test_router *one = bk_test_router_open("topk", "", T, E, h),
                   *part = bk_test_router_open("topk", "", HALF, E, h),
                   *rest = bk_test_router_open("topk", "", HALF, E, h + HALF * E);
    one->args.blocks = &(const bk_route_blocks){.count = 1, .row = whole_row};
    bk_route_measure(&one->args, bk_test_router_run(one), &(bk_route_losses){.aux = &all});
    bk_test_router_run(rest);
    for (int i = 0; i < HALF * K; i++)
        other[rest->route.index[i]]++;
    other[E] = HALF;
    part->args.blocks = &(const bk_route_blocks){.count = 1, .row = half_row, .shared = true};
    part->args.valid = T;
    part->args.reducer = &(const bk_reducer){.context = other, .sum_fixed = add_other_half};
    bk_route_measure(&part->args, bk_test_router_run(part), &(bk_route_losses){.aux = &half});
    double expected = 0.0, p[E];
    for (int t = 0; t < HALF; t++) {
        bk_router_shares(BK_SCORE_SOFTMAX, E, h + t * E, p);
        for (int e = 0; e < E; e++) {
            int count = 0;
            for (int i = 0; i < T * K; i++)
                count += one->route.index[i] == e;
            expected += p[e] * count * E / (double)(K * T * T);
        }
    }
    assert_true(fabs(half - expected) < 1e-14 && half < all);
    bk_test_router_close(one);
    bk_test_router_close(part);
    bk_test_router_close(rest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_have_their_gradient),
        cmocka_unit_test(forms_of_the_loss),
        cmocka_unit_test(what_is_counted),
        cmocka_unit_test(balanced_switch_loss_is_one),
        cmocka_unit_test(shared_blocks_count_all_ranks),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
