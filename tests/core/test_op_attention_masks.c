/* test: labels=unit timeout=120 */
/* What attention must not depend on: padding, later positions, threads; and numbers at the edge. */
#include "tests/support/attention.h"

#include "core/blas.h"
#include "core/ops.h"
#include "core/rng.h"
#include "tests/support/child.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- masks ---- */

enum { REAL = 21, HEADS = 2, WIDTH = 5 };

/* Element `at` of an array whose positions beyond REAL and holes are padding: the fill counts the
 * real positions only. */
static float padded_value(const bk_attention_problem *p, int64_t at, uint64_t tag, float padding)
{
    int64_t head = at / (p->N * WIDTH), row = at / WIDTH % p->N;
    int64_t place = (head * REAL + row) * WIDTH + at % WIDTH;
    return p->mask[row] ? (float)bk_fill((uint64_t)place, tag, -1.5, 1.5) : padding;
}

/* The same real positions among `length`, with `padding` elsewhere, in the gradient too. */
static void run_padded(bk_attention_problem *p, const int32_t *real, int64_t length, float padding,
                       bk_attention_run *r)
{
    int32_t *mask = calloc((size_t)length, sizeof *mask);
    assert_non_null(mask);
    memcpy(mask, real, REAL * sizeof *mask);
    p->N = p->M = length;
    p->mask = mask;
    bk_attention_prepare(p, BK_F32, r);
    for (int64_t at = 0; at < bk_count(r->q); at++) {
        ((float *)r->q->data)[at] = padded_value(p, at, 1, padding);
        ((float *)r->k->data)[at] = padded_value(p, at, 2, padding);
        ((float *)r->v->data)[at] = padded_value(p, at, 3, padding);
    }
    r->out = bk_attention(&r->tape, r->q, r->k, r->v, r->mask, NULL, &p->o, &r->lse);
    float *grad = bk_grad(&r->tape, r->out);
    for (int64_t at = 0; at < bk_count(r->out); at++)
        grad[at] = padded_value(p, at, 99, padding);
    bk_tape_backward_seeded(&r->tape);
    free(mask);
}

static void check_padded(const bk_attention_run *a, const bk_attention_run *b, int64_t length)
{
    for (int64_t h = 0; h < HEADS; h++) {
        int64_t first = h * REAL * WIDTH, other = h * length * WIDTH, n = REAL * WIDTH;
        bk_attention_check_floats(a->out->data, first, b->out->data, other, n);
        bk_attention_check_floats(a->q->grad, first, b->q->grad, other, n);
        bk_attention_check_floats(a->k->grad, first, b->k->grad, other, n);
        bk_attention_check_floats(a->v->grad, first, b->v->grad, other, n);
        for (int64_t i = other + n; i < other + length * WIDTH; i++)
            assert_true(bk_test_value(b->out, i) == 0.0 && bk_test_grad(b->q, i) == 0.0 &&
                        bk_test_grad(b->k, i) == 0.0 && bk_test_grad(b->v, i) == 0.0);
    }
}

/* Whatever padding holds, and however much of it there is. */
static void padding_changes_no_real_row(void **state)
{
    const float paddings[] = {0.5f, -1e30f, INFINITY, NAN};
    int32_t *real = bk_attention_holes(1, REAL, 0);
    bk_attention_problem p = {.B = 1, .H = HEADS, .D = WIDTH, .o = {.scale = 0.6, .block = 16}};
    (void)state;
    real[REAL - 1] = 1;
    for (int i = 0; i < 4; i++)
        for (int64_t length = REAL; length < 60; length += 13) {
            bk_attention_run base, other;
            p.o.causal = !p.o.causal;
            run_padded(&p, real, REAL, 0.0f, &base);
            run_padded(&p, real, length, paddings[i], &other);
            check_padded(&base, &other, length);
            bk_attention_release(&base);
            bk_attention_release(&other);
        }
    free(real);
}

/* Sample 0 has no real position, sample 1 one hole that is its last but one. */
static void an_empty_sample_gives_zeros(void **state)
{
    const int32_t mask[] = {0, 0, 0, 0, 0, 1, 1, 1, 0, 1};
    bk_attention_problem p = {
        .B = 2, .H = 1, .N = 5, .M = 5, .D = 3, .mask = mask, .o = {.scale = 1, .block = 2}};
    bk_attention_run r;
    (void)state;
    bk_attention_check_both(p);
    bk_attention_run_op(&p, BK_F32, &r);
    for (int i = 0; i < 15; i++)
        assert_true(bk_test_value(r.out, i) == 0.0 && bk_test_grad(r.q, i) == 0.0 &&
                    bk_test_grad(r.k, i) == 0.0 && bk_test_grad(r.v, i) == 0.0);
    bk_attention_release(&r);
}

/* The first tiles hold no key at all; causal rows before the first key see nothing. */
static void rows_without_keys_give_zeros(void **state)
{
    enum { N = 40, FIRST = 19 };
    int32_t mask[N], real[N];
    (void)state;
    for (int i = 0; i < N; i++) {
        mask[i] = i >= FIRST;
        real[i] = 1;
    }
    for (int causal = 0; causal < 2; causal++)
        bk_attention_check_both(
            (bk_attention_problem){.B = 1,
                                   .H = 1,
                                   .N = N,
                                   .M = N,
                                   .D = 3,
                                   .mask = mask,
                                   .o = {.scale = 1, .block = 8, .causal = causal}});
    bk_attention_problem p = {
        .B = 1, .H = 1, .N = N, .M = N, .D = 3, .mask = mask, .query_mask = real};
    p.o = (bk_attention_options){.scale = 1, .block = 8, .causal = true};
    bk_attention_run r;
    bk_attention_run_op(&p, BK_F32, &r); /* real queries, keys only behind them */
    for (int64_t i = 0; i < FIRST * 3; i++)
        assert_true(bk_test_value(r.out, i) == 0.0 && bk_test_grad(r.q, i) == 0.0);
    for (int64_t i = 0; i < FIRST; i++)
        assert_true(bk_test_value(r.lse, i) == -INFINITY);
    assert_true(bk_test_value(r.out, FIRST * 3) == bk_test_value(r.v, FIRST * 3));
    bk_attention_release(&r);
}

static void later_positions_change_no_earlier_row(void **state)
{
    enum { H = 2, N = 50, D = 6 };
    bk_attention_problem p = {.B = 1, .H = H, .N = N, .M = N, .D = D};
    bk_attention_run base, other;
    (void)state;
    p.o = (bk_attention_options){.scale = 0.5, .block = 16, .causal = true, .dropout = 0.2};
    bk_attention_run_op(&p, BK_F32, &base);
    for (int64_t t = 1; t < N; t += 7) {
        bk_attention_prepare(&p, BK_F32, &other);
        bk_tensor *in[] = {other.q, other.k, other.v};
        for (int i = 0; i < 3; i++)
            for (int64_t j = 0; j < H * N * D; j++)
                if (j / D % N >= t)
                    ((float *)in[i]->data)[j] = (float)(j % 11) - 5.0f;
        bk_attention_finish(&p, &other);
        for (int64_t h = 0; h < H; h++)
            bk_attention_check_floats(base.out->data, h * N * D, other.out->data, h * N * D, t * D);
        bk_attention_release(&other);
    }
    bk_attention_release(&base);
}

/* ---- numbers at the edge ---- */

static void large_logits_are_no_trouble(void **state)
{
    enum { N = 70, D = 4 };
    bk_attention_problem p = {
        .B = 1, .H = 1, .N = N, .M = N, .D = D, .o = {.scale = 1e4, .block = 16}};
    bk_attention_run r;
    (void)state;
    for (int causal = 0; causal < 2; causal++) {
        p.o.causal = causal;
        bk_attention_run_op(&p, BK_F32, &r); /* logits up to 9e4 */
        for (int64_t i = 0; i < N * D; i++)
            assert_true(isfinite(bk_test_value(r.out, i)) && isfinite(bk_test_grad(r.q, i)) &&
                        isfinite(bk_test_grad(r.k, i)) && isfinite(bk_test_grad(r.v, i)));
        for (int64_t i = 0; i < N * D; i++)
            assert_true(fabs(bk_test_value(r.out, i)) <= 1.5 + 1e-5);
        bk_attention_release(&r);
        bk_attention_check_plain(&p, BK_F64);
    }
}

/* A NaN in q or k reaches every row that sees it, one in v its column. */
static void nan_is_never_hidden(void **state)
{
    enum { N = 40, D = 3 };
    bk_attention_problem p = {
        .B = 1, .H = 1, .N = N, .M = N, .D = D, .o = {.scale = 1, .block = 16}};
    (void)state;
    for (int input = 0; input < 3; input++) {
        bk_attention_run r;
        bk_attention_prepare(&p, BK_F32, &r);
        bk_tensor *in[] = {r.q, r.k, r.v};
        ((float *)in[input]->data)[20 * D + 1] = NAN;
        bk_attention_finish(&p, &r);
        for (int64_t i = 0; i < N * D; i++) {
            bool reached = input == 0 ? i / D == 20 : input == 1 ? true : i % D == 1;
            assert_true(isnan(bk_test_value(r.out, i)) == reached);
        }
        bk_attention_release(&r);
    }
}

/* ---- gradients that are not wanted, or not the first ---- */

static void constants_get_no_gradient(void **state)
{
    bk_attention_problem p = {
        .B = 1, .H = 2, .N = 9, .M = 9, .D = 3, .o = {.scale = 1, .block = 4}};
    bk_attention_run all, some;
    (void)state;
    bk_attention_run_op(&p, BK_F32, &all);
    for (int which = 0; which < 3; which++) {
        bk_attention_prepare(&p, BK_F32, &some);
        bk_tensor *in[] = {some.q, some.k, some.v}, *full[] = {all.q, all.k, all.v};
        for (int i = 0; i < 3; i++)
            in[i]->needs_grad = i == which;
        bk_attention_finish(&p, &some);
        for (int i = 0; i < 3; i++)
            if (i == which)
                bk_attention_check_floats(in[i]->grad, 0, full[i]->grad, 0, bk_count(in[i]));
            else
                assert_null(in[i]->grad);
        bk_attention_release(&some);
    }
    bk_attention_release(&all);
}

static void gradients_add_up(void **state)
{
    bk_attention_problem p = {
        .B = 1, .H = 1, .N = 9, .M = 9, .D = 3, .o = {.scale = 1, .block = 4}};
    bk_attention_run once, twice;
    (void)state;
    bk_attention_run_op(&p, BK_F64, &once);
    bk_attention_prepare(&p, BK_F64, &twice);
    bk_tensor *same[2];
    for (int i = 0; i < 2; i++)
        same[i] = bk_attention(&twice.tape, twice.q, twice.k, twice.v, NULL, NULL, &p.o, NULL);
    twice.out = bk_add(&twice.tape, same[0], same[1]);
    bk_test_seed_fill(&twice.tape, twice.out, 99, -1, 1);
    bk_tape_backward_seeded(&twice.tape);
    for (int64_t i = 0; i < bk_count(once.q); i++) {
        assert_true(fabs(bk_test_grad(twice.q, i) - 2.0 * bk_test_grad(once.q, i)) < 1e-14);
        assert_true(fabs(bk_test_grad(twice.k, i) - 2.0 * bk_test_grad(once.k, i)) < 1e-14);
        assert_true(fabs(bk_test_grad(twice.v, i) - 2.0 * bk_test_grad(once.v, i)) < 1e-14);
    }
    bk_attention_release(&once);
    bk_attention_release(&twice);
}

/* ---- threads, neighbours, memory ---- */

/* Nine heads are shared out whole, one head is cut into parts. */
static void threads_give_equal_bits(void **state)
{
    int32_t *mask = bk_attention_holes(3, 90, 20);
    (void)state;
    for (int heads = 1; heads <= 3; heads += 2)
        for (int causal = 0; causal < 2; causal++) {
            bk_attention_problem p = {.B = heads, .H = heads, .N = 90, .M = 90, .D = 9};
            bk_attention_run one, more;
            p.mask = mask + 90 * (3 - heads);
            p.o =
                (bk_attention_options){.scale = 0.4, .block = 16, .causal = causal, .dropout = 0.1};
            bk_attention_run_op(&p, BK_F32, &one);
            for (int threads = 2; threads < 8; threads += 3) {
                assert_int_equal(bk_blas_setup(threads, BK_GEMM_AUTO), BK_OK);
                bk_attention_run_op(&p, BK_F32, &more);
                bk_attention_check_bits(&one, &more);
                bk_attention_release(&more);
            }
            assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
            bk_attention_release(&one);
        }
    free(mask);
}

/* The gradient of an array that is q, k and v at once, with more threads than heads. */
static void one_array_for_all(void **state)
{
    bk_attention_problem p = {.B = 1, .H = 1, .N = 90, .M = 90, .D = 9};
    bk_attention_run apart, one;
    (void)state;
    p.o = (bk_attention_options){.scale = 0.4, .block = 16};
    assert_int_equal(bk_blas_setup(4, BK_GEMM_AUTO), BK_OK);
    bk_attention_prepare(&p, BK_F64, &apart);
    memcpy(apart.k->data, apart.q->data, 90 * 9 * sizeof(double));
    memcpy(apart.v->data, apart.q->data, 90 * 9 * sizeof(double));
    bk_attention_finish(&p, &apart);
    bk_attention_prepare(&p, BK_F64, &one);
    one.k = one.v = one.q;
    bk_attention_finish(&p, &one);
    for (int64_t i = 0; i < 90 * 9; i++) {
        double sum = bk_test_grad(apart.q, i) + bk_test_grad(apart.k, i) + bk_test_grad(apart.v, i);
        assert_true(fabs(bk_test_grad(one.q, i) - sum) < 1e-13);
    }
    assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
    bk_attention_release(&apart);
    bk_attention_release(&one);
}

/* Parts of the queries where one tile holds all keys, and the other way round. */
static void parts_of_cross_attention(void **state)
{
    (void)state;
    assert_int_equal(bk_blas_setup(3, BK_GEMM_AUTO), BK_OK);
    for (int64_t keys = 9; keys <= 90; keys += 81)
        bk_attention_check_both((bk_attention_problem){
            .B = 1, .H = 1, .N = 99 - keys, .M = keys, .D = 5, .o = {.scale = 0.5, .block = 16}});
    assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
}

/* 64 MiB beyond inputs, outputs and their gradients at 16,384 positions. */
static void memory_is_linear(void **state)
{
    enum { N = 16384, D = 4 };
    bk_attention_problem p = {.B = 1, .H = 1, .N = N, .M = N, .D = D};
    bk_attention_run r;
    (void)state;
    p.o = (bk_attention_options){.scale = 0.5, .block = 64, .causal = true};
    bk_attention_run_op(&p, BK_F32, &r);
    size_t arrays = (size_t)8 * N * D * sizeof(float); /* q, k, v, out and their gradients */
    size_t used = bk_arena_peak(r.tape.arena) + bk_arena_peak(r.tape.scratch);
    assert_true(used - arrays < (size_t)64 << 20);
    assert_true(isfinite(bk_test_value(r.out, N * D - 1)));
    bk_attention_release(&r);
}

/* A tile larger than the arrays costs no more than they do. */
static void large_tiles_are_cut(void **state)
{
    bk_attention_problem p = {.B = 1, .H = 1, .N = 20, .M = 20, .D = 3};
    bk_attention_run exact, large;
    (void)state;
    p.o = (bk_attention_options){.scale = 1, .block = 20};
    bk_attention_run_op(&p, BK_F32, &exact);
    p.o.block = (int64_t)1 << 40;
    bk_attention_run_op(&p, BK_F32, &large);
    bk_attention_check_bits(&exact, &large);
    assert_true(bk_arena_peak(large.tape.scratch) < (size_t)1 << 20);
    bk_attention_release(&exact);
    bk_attention_release(&large);
}

/* ---- mistakes ---- */

static void wrong_width(void *unused)
{
    bk_attention_problem p = {
        .B = 1, .H = 1, .N = 3, .M = 3, .D = 4, .o = {.scale = 1, .block = 4}};
    bk_attention_run r;
    (void)unused;
    bk_attention_prepare(&p, BK_F32, &r);
    r.k->shape[3] = r.v->shape[3] = 3;
    bk_attention_finish(&p, &r);
}

static void wrong_mask(void *unused)
{
    const int32_t mask[] = {1, 1, 1};
    bk_attention_problem p = {
        .B = 1, .H = 1, .N = 3, .M = 3, .D = 4, .mask = mask, .o = {.scale = 1, .block = 4}};
    bk_attention_run r;
    (void)unused;
    bk_attention_prepare(&p, BK_F32, &r);
    r.mask->shape[1] = 2;
    bk_attention_finish(&p, &r);
}

static void wrong_shapes_are_faults(void **state)
{
    (void)state;
    bk_test_dies(wrong_width, NULL, "q and k differ");
    bk_test_dies(wrong_mask, NULL, "mask[B,M]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(padding_changes_no_real_row),
        cmocka_unit_test(an_empty_sample_gives_zeros),
        cmocka_unit_test(rows_without_keys_give_zeros),
        cmocka_unit_test(later_positions_change_no_earlier_row),
        cmocka_unit_test(large_logits_are_no_trouble),
        cmocka_unit_test(nan_is_never_hidden),
        cmocka_unit_test(constants_get_no_gradient),
        cmocka_unit_test(gradients_add_up),
        cmocka_unit_test(threads_give_equal_bits),
        cmocka_unit_test(one_array_for_all),
        cmocka_unit_test(parts_of_cross_attention),
        cmocka_unit_test(memory_is_linear),
        cmocka_unit_test(large_tiles_are_cut),
        cmocka_unit_test(wrong_shapes_are_faults),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
