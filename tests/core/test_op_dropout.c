/* Dropout against its draws: which elements stay is a function of seed, layer, use, step and the
 * element's place in its sample. */
#include "core/blas.h"
#include "core/ops.h"
#include "tests/support/check.h"

#include <math.h>
#include <string.h>

enum { B = 4, N = 5000 }; /* more than one piece of a sample, and no multiple of 8 words */

typedef struct setting {
    uint64_t seed;
    int64_t step;
    int layer;
    bk_use use;
    double p;
    bk_lanes lanes;
} setting;

static const setting base = {1, 3, 2, BK_USE_DROPOUT_EMBED, 0.3, {1, 0, 1, B}};

static bk_tensor *run(const setting *s, bk_dtype dtype, bk_tape *t, bk_tensor **x)
{
    *t = bk_test_tape(dtype, s->lanes);
    t->training = true;
    t->seed = s->seed;
    t->step = s->step;
    *x = bk_test_fill(t, BK_SHAPE(bk_lanes_samples(&s->lanes), 1, N - 3), 1, 1, 2);
    return bk_dropout(t, *x, s->p, s->layer, s->use);
}

/* keep / (1 - p) of element i of a sample, by its own Philox call. */
static double factor(const setting *s, int64_t sample, int64_t i)
{
    uint64_t four[4];
    uint32_t word[8];
    bk_philox(bk_philox_for(s->seed, s->layer, s->use), (uint64_t)s->step, (uint64_t)sample,
              (uint64_t)i / 8, four);
    memcpy(word, four, sizeof word);
    return (double)word[i % 8] >= s->p * 4294967296.0 ? 1.0 / (1.0 - s->p) : 0.0;
}

static void elements_stay_by_their_draw(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        bk_tape t;
        bk_tensor *x, *y = run(&base, k ? BK_F64 : BK_F32, &t, &x);
        bk_test_seed_fill(&t, y, 2, -1, 1);
        bk_tape_backward_seeded(&t);
        for (int64_t i = 0; i < bk_count(x); i++) {
            double f = factor(&base, i / (N - 3), i % (N - 3)), unit = k ? 1e-15 : 2e-7;
            bk_check_error(fabs(bk_test_value(y, i) - f * bk_test_value(x, i)), 4 * unit, "y");
            bk_check_error(fabs(bk_test_grad(x, i) - f * bk_test_grad(y, i)), 4 * unit, "dx");
        }
        bk_test_tape_free(&t);
    }
}

static int differences(const setting *a, const setting *b)
{
    bk_tape t[2];
    bk_tensor *x, *y = run(a, BK_F32, &t[0], &x), *z = run(b, BK_F32, &t[1], &x);
    int count = 0;
    for (int64_t i = 0; i < bk_count(y); i++)
        count += bk_test_value(y, i) != bk_test_value(z, i);
    bk_test_tape_free(&t[0]);
    bk_test_tape_free(&t[1]);
    return count;
}

static void everything_in_the_key_counts(void **state)
{
    setting s = base;
    (void)state;
    assert_int_equal(differences(&base, &s), 0);
    s.seed = 2;
    assert_true(differences(&base, &s) > N);
    s = base, s.step = 4;
    assert_true(differences(&base, &s) > N);
    s = base, s.layer = 3;
    assert_true(differences(&base, &s) > N);
    s = base, s.use = BK_USE_DROPOUT_FFN_OUT;
    assert_true(differences(&base, &s) > N);
}

/* Lanes, and the rank that holds a sample, do not: sample 2 of the batch has the same mask. */
static void lanes_and_ranks_do_not_count(void **state)
{
    setting s = base;
    bk_tape t;
    bk_tensor *x;
    (void)state;
    s.lanes = (bk_lanes){4, 0, 4, B};
    assert_int_equal(differences(&base, &s), 0);
    s.lanes = (bk_lanes){4, 2, 1, B};
    const bk_tensor *y = run(&s, BK_F32, &t, &x);
    for (int64_t i = 0; i < bk_count(y); i++)
        assert_true((bk_test_value(y, i) != 0.0) == (factor(&base, 2, i) != 0.0));
    bk_test_tape_free(&t);
}

static void the_share_is_kept(void **state)
{
    (void)state;
    for (double p = 0.1; p < 1.0; p += 0.2) {
        setting s = base;
        bk_tape t;
        bk_tensor *x;
        double dropped = 0.0, count = (double)(B * (N - 3));
        s.p = p;
        const bk_tensor *y = run(&s, BK_F32, &t, &x);
        for (int64_t i = 0; i < bk_count(y); i++)
            dropped += bk_test_value(y, i) == 0.0;
        assert_true(fabs(dropped / count - p) < 4.0 * sqrt(p * (1.0 - p) / count));
        bk_test_tape_free(&t);
    }
}

static void nothing_is_dropped_without_need(void **state)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(1));
    bk_tensor *x = bk_test_fill(&t, BK_SHAPE(1, 3), 1, 0, 1);
    (void)state;
    assert_ptr_equal(bk_dropout(&t, x, 0.5, 0, BK_USE_DROPOUT_EMBED), x); /* evaluation */
    t.training = true;
    assert_ptr_equal(bk_dropout(&t, x, 0.0, 0, BK_USE_DROPOUT_EMBED), x);
    assert_ptr_not_equal(bk_dropout(&t, x, 0.5, 0, BK_USE_DROPOUT_EMBED), x);
    bk_test_tape_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(elements_stay_by_their_draw),
        cmocka_unit_test(everything_in_the_key_counts),
        cmocka_unit_test(lanes_and_ranks_do_not_count),
        cmocka_unit_test(the_share_is_kept),
        cmocka_unit_test(nothing_is_dropped_without_need),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
