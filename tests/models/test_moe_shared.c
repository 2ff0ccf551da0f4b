/* The shared expert against its formula in double: values, gradients, and nothing from padding. */
#include "tests/support/check.h"

#include "core/rng.h"
#include "models/moe_shared.h"

#include <math.h>
#include <string.h>

enum { T = 7, C = 5, F = 6 };

/* W1, b1, W2, b2, gate, in the order of the leaves. */
static const int64_t sizes[] = {F * C, F, C *F, C, C};

typedef struct problem {
    bk_tape tape;
    bk_tensor *x, *leaf[5];
    const int32_t *mask;
    bool gated;
    bk_tensor *y;
} problem;

static bk_tensor *filled(bk_tape *t, uint64_t tag, int dims, const int64_t *shape)
{
    bk_tensor *x = bk_tape_variable(t, dims, shape);
    for (int64_t i = 0; i < bk_count(x); i++)
        bk_real_put(x->dtype, x->data, i, bk_fill((uint64_t)i, tag, -1.0, 1.0));
    return x;
}

static problem open_problem(bk_dtype dtype, bool gated, const int32_t *mask)
{
    problem p = {.tape = bk_test_tape(dtype, bk_lanes_single(T)), .gated = gated, .mask = mask};
    bk_tape *t = &p.tape;
    p.x = filled(t, 1, BK_SHAPE(T, C));
    p.leaf[0] = filled(t, 2, BK_SHAPE(F, C));
    p.leaf[1] = filled(t, 3, BK_SHAPE(F));
    p.leaf[2] = filled(t, 4, BK_SHAPE(C, F));
    p.leaf[3] = filled(t, 5, BK_SHAPE(C));
    p.leaf[4] = filled(t, 6, BK_SHAPE(C));
    return p;
}

static void run(problem *p)
{
    bk_tensor **w = p->leaf;
    bk_moe_shared shared = {w[0], w[1], w[2], w[3], p->gated ? w[4] : NULL};
    p->y = bk_moe_shared_expert(&p->tape, p->x, p->mask, BK_SILU, &shared);
    bk_grad(&p->tape, p->y);
    for (int64_t i = 0; i < T * C; i++)
        bk_real_put(p->y->dtype, p->y->grad, i, bk_fill((uint64_t)i, 9, -1.0, 1.0));
    bk_tape_backward_seeded(&p->tape);
}

static double w_of(const problem *p, int which, int64_t i)
{
    return bk_test_value(p->leaf[which], i);
}

/* Channel c of token t by the formula. */
static double formula(const problem *p, int64_t t, int64_t c)
{
    double sum = w_of(p, 3, c), score = 0.0;
    for (int64_t f = 0; f < F; f++) {
        double a = w_of(p, 1, f);
        for (int64_t i = 0; i < C; i++)
            a += w_of(p, 0, f * C + i) * bk_test_value(p->x, t * C + i);
        sum += w_of(p, 2, c * F + f) * a / (1.0 + exp(-a));
    }
    for (int64_t i = 0; i < C; i++)
        score += w_of(p, 4, i) * bk_test_value(p->x, t * C + i);
    return p->gated ? sum / (1.0 + exp(-score)) : sum;
}

static void every_token_goes_there(void **state)
{
    (void)state;
    for (int gated = 0; gated < 2; gated++)
        for (int wide = 0; wide < 2; wide++) {
            problem p = open_problem(wide ? BK_F64 : BK_F32, gated, NULL);
            run(&p);
            for (int64_t i = 0; i < T * C; i++)
                bk_check_error(fabs(bk_test_value(p.y, i) - formula(&p, i / C, i % C)),
                               wide ? 1e-13 : 2e-6, "y");
            bk_test_tape_free(&p.tape);
        }
}

/* <dy, y> over the valid tokens, with element i of a leaf (5: x) moved. */
static double moved(bool gated, const int32_t *mask, int which, int64_t i, double delta)
{
    problem p = open_problem(BK_F64, gated, mask);
    double sum = 0.0;
    ((double *)(which < 5 ? p.leaf[which] : p.x)->data)[i] += delta;
    for (int64_t j = 0; j < T * C; j++)
        if (mask[j / C])
            sum += bk_fill((uint64_t)j, 9, -1.0, 1.0) * formula(&p, j / C, j % C);
    bk_test_tape_free(&p.tape);
    return sum;
}

static void gradients_are_differences(void **state)
{
    const int32_t mask[T] = {1, 0, 1, 1, 0, 1, 1};
    (void)state;
    for (int gated = 0; gated < 2; gated++) {
        problem p = open_problem(BK_F64, gated, mask);
        run(&p);
        for (int which = 0; which < 6; which++)
            for (int64_t i = 0; i < (which < 5 ? sizes[which] : T * C); i++) {
                if (which == 4 && !gated)
                    continue;
                double numeric =
                    (moved(gated, mask, which, i, 1e-5) - moved(gated, mask, which, i, -1e-5)) /
                    2e-5;
                bk_tensor *x = which < 5 ? p.leaf[which] : p.x;
                bk_check_error(fabs(numeric - bk_test_grad(x, i)), 1e-8, "leaf %d", which);
            }
        bk_test_tape_free(&p.tape);
    }
}

static void padding_gives_nothing(void **state)
{
    const int32_t mask[T] = {1, 1, 0, 1, 1, 1, 0};
    (void)state;
    for (int gated = 0; gated < 2; gated++) {
        problem p = open_problem(BK_F32, gated, mask);
        for (int64_t i = 0; i < T * C; i++)
            if (!mask[i / C])
                ((float *)p.x->data)[i] = NAN;
        run(&p);
        for (int64_t i = 0; i < T * C; i++)
            assert_true(mask[i / C] ? isfinite(bk_test_value(p.y, i))
                                    : bk_test_value(p.y, i) == 0.0 && bk_test_grad(p.x, i) == 0.0);
        for (int which = 0; which < 4 + gated; which++)
            for (int64_t i = 0; i < sizes[which]; i++)
                assert_true(isfinite(bk_test_grad(p.leaf[which], i)));
        bk_test_tape_free(&p.tape);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_token_goes_there),
        cmocka_unit_test(gradients_are_differences),
        cmocka_unit_test(padding_gives_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
