/* test: labels=unit,golden timeout=120 */
/* Streaming attention against the golden values, a plain double loop and the composed form. */
#include "tests/support/attention.h"

#include "core/blas.h"
#include "core/ops.h"
#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- golden values ---- */

static int64_t size_at(const json_t *c, const char *input, size_t axis)
{
    return json_integer_value(
        json_array_get(json_object_get(json_object_get(c, "inputs"), input), axis));
}

/* In the cross case q is the first five positions of the array of twelve. */
static void cut_queries(bk_attention_run *r, const bk_attention_problem *p)
{
    for (int64_t i = 0; i < bk_count(r->q); i++) {
        int64_t row = i / (p->N * p->D), inside = i % (p->N * p->D);
        double value = bk_fill((uint64_t)(row * p->M * p->D + inside), 1, -1.5, 1.5);
        if (r->q->dtype == BK_F64)
            ((double *)r->q->data)[i] = value;
        else
            ((float *)r->q->data)[i] = (float)value;
    }
}

/* The golden numbers have twelve digits: half a unit of the last one is added to the limit. */
static void check_array(const char *name, const bk_tensor *x, bool gradient, const json_t *golden)
{
    int64_t n;
    double *reference = bk_test_numbers(golden, &n), most = 1.0;
    double limit = x->dtype == BK_F64 ? 1e-12 : 1e-5;
    assert_int_equal(n, bk_count(x));
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs(reference[i]));
    for (int64_t i = 0; i < n; i++) {
        double digit = 0.5 * pow(10.0, floor(log10(fabs(reference[i]) + 1e-30)) - 11.0);
        double value = gradient ? bk_test_grad(x, i) : bk_test_value(x, i);
        bk_check_error(fabs(value - reference[i]), limit * most + digit, "%s, element %d", name,
                       (int)i);
    }
    free(reference);
}

static void check_golden(const char *name, const json_t *c, const int32_t *mask, bk_dtype dtype,
                         int64_t block)
{
    bk_attention_problem p = {.B = size_at(c, "q", 0),
                              .H = size_at(c, "q", 1),
                              .N = size_at(c, "q", 2),
                              .M = size_at(c, "k", 2),
                              .D = size_at(c, "q", 3),
                              .mask = mask};
    p.o = (bk_attention_options){.scale = 1.0 / sqrt((double)p.D), .block = block};
    p.o.causal = json_is_true(json_object_get(json_object_get(c, "options"), "causal"));
    json_t *grad = json_object_get(c, "grad");
    bk_attention_run r;
    bk_attention_prepare(&p, dtype, &r);
    cut_queries(&r, &p);
    bk_attention_finish(&p, &r);
    check_array(name, r.out, false, json_object_get(c, "out"));
    check_array(name, r.q, true, json_object_get(grad, "q"));
    check_array(name, r.k, true, json_object_get(grad, "k"));
    check_array(name, r.v, true, json_object_get(grad, "v"));
    bk_attention_release(&r);
}

static void golden_cases(void **state)
{
    json_t *golden = bk_test_golden("ref_attention_golden.json"), *c;
    const char *name;
    int64_t n;
    int found = 0;
    double *numbers = bk_test_numbers(json_object_get(golden, "mask"), &n);
    int32_t mask[64];
    (void)state;
    for (int64_t i = 0; i < n; i++)
        mask[i] = (int32_t)numbers[i];
    json_object_foreach(json_object_get(golden, "cases"), name, c)
    {
        if (strcmp(json_string_value(json_object_get(c, "kind")), "softmax") != 0)
            continue;
        found++;
        for (int64_t block = 1; block <= 64; block *= 4)
            for (int k = 0; k < 2; k++)
                check_golden(name, c, mask, k ? BK_F64 : BK_F32, block);
    }
    assert_int_equal(found, 3);
    free(numbers);
    json_decref(golden);
}

/* spec: the first output row of `softmax`, printed there */
static void golden_row(void **state)
{
    const double row[] = {-0.109122033, 0.794647231, 0.553034750};
    bk_attention_problem p = {.B = 2, .H = 2, .N = 12, .M = 12, .D = 3};
    bk_attention_run r;
    (void)state;
    p.o = (bk_attention_options){.scale = 1.0 / sqrt(3.0), .block = 64};
    bk_attention_run_op(&p, BK_F64, &r);
    for (int i = 0; i < 3; i++)
        assert_true(fabs(bk_test_value(r.out, i) - row[i]) < 1e-9);
    bk_attention_release(&r);
}

/* ---- the plain loop, over shapes ---- */

static void lengths_around_a_tile(void **state)
{
    const int64_t length[] = {1, 2, 15, 16, 17, 33, 70};
    (void)state;
    for (int i = 0; i < 7; i++)
        for (int causal = 0; causal < 2; causal++)
            for (int masked = 0; masked < 2; masked++)
                bk_attention_check_both(
                    (bk_attention_problem){.B = 2,
                                           .H = 2,
                                           .N = length[i],
                                           .M = length[i],
                                           .D = 5,
                                           .o = {.scale = 0.6, .block = 16, .causal = causal},
                                           .holes = masked});
}

static void widths_around_a_vector(void **state)
{
    const int64_t width[] = {1, 7, 8, 9, 16, 24, 31, 64, 65};
    (void)state;
    for (int i = 0; i < 9; i++)
        bk_attention_check_both((bk_attention_problem){.B = 1,
                                                       .H = 1,
                                                       .N = 21,
                                                       .M = 21,
                                                       .D = width[i],
                                                       .o = {.scale = 0.2, .block = 8},
                                                       .holes = true});
}

static void tile_sizes_agree(void **state)
{
    const int64_t block[] = {1, 3, 16, 64, 128, 200};
    (void)state;
    for (int i = 0; i < 6; i++)
        bk_attention_check_both(
            (bk_attention_problem){.B = 1,
                                   .H = 2,
                                   .N = 150,
                                   .M = 150,
                                   .D = 12,
                                   .o = {.scale = 0.5, .block = block[i], .causal = i % 2},
                                   .holes = true});
}

static void cross_attention(void **state)
{
    int32_t *keys = bk_attention_holes(2, 30, 9), *queries = bk_attention_holes(2, 19, 3),
            *square = bk_attention_holes(2, 30, 4);
    (void)state;
    bk_attention_problem p = {
        .B = 2, .H = 2, .N = 19, .M = 30, .D = 5, .o = {.scale = 0.5, .block = 8}};
    bk_attention_check_both(p);
    p.mask = keys;
    bk_attention_check_both(p);
    p.query_mask = queries;
    bk_attention_check_both(p);
    p.mask = NULL;
    bk_attention_check_both(p);
    p.N = 30; /* queries and keys of equal number, masked apart */
    p.mask = keys;
    p.query_mask = square;
    bk_attention_check_both(p);
    free(keys);
    free(queries);
    free(square);
}

static void the_composed_form_agrees(void **state)
{
    enum { B = 2, H = 2, N = 23, D = 6 };
    int32_t *mask = bk_attention_holes(B, N, 5);
    (void)state;
    for (int causal = 0; causal < 2; causal++) {
        bk_attention_problem p = {.B = B, .H = H, .N = N, .M = N, .D = D, .mask = mask};
        p.o = (bk_attention_options){.scale = 0.7, .block = 8, .causal = causal};
        bk_attention_run r, c;
        bk_attention_run_op(&p, BK_F64, &r);
        bk_attention_prepare(&p, BK_F64, &c);
        bk_tensor *s = bk_scale(&c.tape, bk_matmul_nt(&c.tape, c.q, c.k), p.o.scale);
        c.out = bk_matmul(&c.tape, bk_softmax_masked(&c.tape, s, c.mask, causal), c.v);
        bk_test_seed_fill(&c.tape, c.out, 99, -1.0, 1.0);
        for (int64_t i = 0; i < bk_count(c.out); i++) /* it has no masked queries */
            if (!mask[i / (H * N * D) * N + i / D % N])
                ((double *)c.out->data)[i] = ((double *)c.out->grad)[i] = 0.0;
        bk_tape_backward_seeded(&c.tape);
        bk_check_error(bk_attention_error(r.out, false, bk_f64(c.out)), 1e-12, "out");
        bk_check_error(bk_attention_error(r.q, true, c.q->grad), 1e-12, "dq");
        bk_check_error(bk_attention_error(r.k, true, c.k->grad), 1e-12, "dk");
        bk_check_error(bk_attention_error(r.v, true, c.v->grad), 1e-12, "dv");
        bk_attention_release(&r);
        bk_attention_release(&c);
    }
    free(mask);
}

/* ---- dropout ---- */

static void dropout_has_its_draws(void **state)
{
    (void)state;
    for (int block = 2; block <= 32; block *= 4)
        for (int causal = 0; causal < 2; causal++)
            bk_attention_check_both((bk_attention_problem){
                .B = 2,
                .H = 2,
                .N = 37,
                .M = 37,
                .D = 4,
                .o = {.scale = 0.6, .block = block, .causal = causal, .dropout = 0.3, .layer = 2},
                .holes = true});
}

static void dropout_acts_in_training_only(void **state)
{
    bk_attention_problem p = {
        .B = 1, .H = 1, .N = 9, .M = 9, .D = 3, .o = {.scale = 1, .block = 4, .dropout = 0.5}};
    bk_attention_run r, plain_run_;
    (void)state;
    bk_attention_prepare(&p, BK_F32, &r);
    r.tape.training = false;
    bk_attention_finish(&p, &r);
    p.o.dropout = 0.0;
    bk_attention_run_op(&p, BK_F32, &plain_run_);
    bk_attention_check_bits(&r, &plain_run_);
    bk_attention_release(&r);
    bk_attention_release(&plain_run_);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_cases),
        cmocka_unit_test(golden_row),
        cmocka_unit_test(lengths_around_a_tile),
        cmocka_unit_test(widths_around_a_vector),
        cmocka_unit_test(tile_sizes_agree),
        cmocka_unit_test(cross_attention),
        cmocka_unit_test(the_composed_form_agrees),
        cmocka_unit_test(dropout_has_its_draws),
        cmocka_unit_test(dropout_acts_in_training_only),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
