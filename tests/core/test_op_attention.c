/* test: labels=unit,golden timeout=120 */
/* Streaming attention against the golden values, a plain double loop and the composed form; masks,
 * causality, dropout, threads and memory. */
#include "core/ops/attention.h"

#include "core/blas.h"
#include "core/ops.h"
#include "core/rng.h"
#include "tests/support/check.h"
#include "tests/support/child.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct problem {
    int64_t B, H, N, M, D;
    bk_attention_options o;
    const int32_t *mask, *query_mask; /* [B,M], [B,N]; NULL: all real */
    bool holes;                       /* mask made by the fill */
} problem;

/* One run of the op, forward and backward. */
typedef struct run {
    bk_tape tape;
    bk_tensor *q, *k, *v, *mask, *query_mask, *out, *lse;
} run;

static bk_tensor *mask_tensor(bk_tape *t, const int32_t *mask, int64_t samples, int64_t positions)
{
    if (!mask)
        return NULL;
    bk_tensor *x = bk_tape_constant(t, BK_I32, BK_SHAPE(samples, positions));
    memcpy(x->data, mask, (size_t)(samples * positions) * sizeof *mask);
    return x;
}

static void prepare(const problem *p, bk_dtype dtype, run *r)
{
    r->tape = bk_test_tape(dtype, bk_lanes_single(p->B));
    r->tape.training = true;
    r->tape.step = 5;
    r->q = bk_test_fill(&r->tape, BK_SHAPE(p->B, p->H, p->N, p->D), 1, -1.5, 1.5);
    r->k = bk_test_fill(&r->tape, BK_SHAPE(p->B, p->H, p->M, p->D), 2, -1.5, 1.5);
    r->v = bk_test_fill(&r->tape, BK_SHAPE(p->B, p->H, p->M, p->D), 3, -1.5, 1.5);
    r->mask = mask_tensor(&r->tape, p->mask, p->B, p->M);
    r->query_mask = mask_tensor(&r->tape, p->query_mask, p->B, p->N);
}

static void finish(const problem *p, run *r)
{
    r->out = bk_attention(&r->tape, r->q, r->k, r->v, r->mask, r->query_mask, &p->o, &r->lse);
    bk_test_seed_fill(&r->tape, r->out, 99, -1.0, 1.0);
    bk_tape_backward_seeded(&r->tape);
}

static void run_op(const problem *p, bk_dtype dtype, run *r)
{
    prepare(p, dtype, r);
    finish(p, r);
}

static void release(run *r)
{
    bk_test_tape_free(&r->tape);
}

/* Ones with about one hole in five, and an end of `padding` zeros in the last sample. */
static int32_t *holes(int64_t samples, int64_t positions, int64_t padding)
{
    int32_t *mask = malloc((size_t)(samples * positions) * sizeof *mask);
    assert_non_null(mask);
    for (int64_t i = 0; i < samples * positions; i++) {
        bool end = i >= samples * positions - padding;
        mask[i] = !end && bk_fill((uint64_t)i, 8, 0.0, 1.0) > 0.2;
    }
    return mask;
}

/* ---- the plain loop ---- */

typedef struct plain {
    const problem *p;
    const run *r; /* q, k, v and the incoming gradient are read from it */
    double *out, *lse, *dq, *dk, *dv;
} plain;

static double *zeros(int64_t n)
{
    double *x = calloc((size_t)n + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

/* keep / (1 - p) of (head, query, key) by its own Philox call. */
static double keep(const plain *a, int64_t b, int64_t h, int64_t i, int64_t j)
{
    uint64_t index = ((uint64_t)h << 40) + ((uint64_t)i << 20) + (uint64_t)j, four[4];
    uint32_t word[8];
    if (a->p->o.dropout == 0.0)
        return 1.0;
    bk_philox(bk_philox_for(a->r->tape.seed, a->p->o.layer, BK_USE_DROPOUT_ATTENTION),
              (uint64_t)a->r->tape.step, (uint64_t)b, index / 8, four);
    memcpy(word, four, sizeof word);
    return (double)word[index % 8] >= a->p->o.dropout * 4294967296.0 ? 1.0 / (1.0 - a->p->o.dropout)
                                                                     : 0.0;
}

static bool sees(const problem *p, int64_t b, int64_t i, int64_t j)
{
    bool cross = p->query_mask || p->N != p->M;
    const int32_t *query_mask = cross ? p->query_mask : p->mask;
    return (!p->mask || p->mask[b * p->M + j]) && (!query_mask || query_mask[b * p->N + i]) &&
           (!p->o.causal || j <= i);
}

static double dot(const bk_tensor *x, int64_t i, const bk_tensor *y, int64_t j, bool gradient)
{
    int64_t D = bk_cols(x);
    double sum = 0.0;
    for (int64_t d = 0; d < D; d++)
        sum += (gradient ? bk_test_grad(x, i * D + d) : bk_test_value(x, i * D + d)) *
               bk_test_value(y, j * D + d);
    return sum;
}

/* One row: probabilities, out, lse. */
static void plain_forward(const plain *a, int64_t b, int64_t h, int64_t i, double *probability)
{
    const problem *p = a->p;
    int64_t query = (b * p->H + h) * p->N + i, first = (b * p->H + h) * p->M;
    double most = -INFINITY, sum = 0.0;
    for (int64_t j = 0; j < p->M; j++) {
        probability[j] = sees(p, b, i, j)
                             ? p->o.scale * dot(a->r->q, query, a->r->k, first + j, false)
                             : -INFINITY;
        most = fmax(most, probability[j]);
    }
    for (int64_t j = 0; j < p->M; j++)
        sum += probability[j] = most == -INFINITY ? 0.0 : exp(probability[j] - most);
    a->lse[query] = most + log(sum);
    for (int64_t j = 0; j < p->M && sum > 0.0; j++) {
        probability[j] /= sum;
        for (int64_t d = 0; d < p->D; d++)
            a->out[query * p->D + d] += probability[j] * keep(a, b, h, i, j) *
                                        bk_test_value(a->r->v, (first + j) * p->D + d);
    }
}

static void plain_backward(const plain *a, int64_t b, int64_t h, int64_t i,
                           const double *probability)
{
    const problem *p = a->p;
    int64_t query = (b * p->H + h) * p->N + i, first = (b * p->H + h) * p->M, D = p->D;
    double delta = 0.0;
    for (int64_t d = 0; d < D; d++)
        delta += bk_test_grad(a->r->out, query * D + d) * a->out[query * D + d];
    for (int64_t j = 0; j < p->M; j++) {
        double kept = keep(a, b, h, i, j),
               dp = dot(a->r->out, query, a->r->v, first + j, true) * kept,
               ds = p->o.scale * probability[j] * (dp - delta);
        for (int64_t d = 0; d < D; d++) {
            a->dq[query * D + d] += ds * bk_test_value(a->r->k, (first + j) * D + d);
            a->dk[(first + j) * D + d] += ds * bk_test_value(a->r->q, query * D + d);
            a->dv[(first + j) * D + d] +=
                probability[j] * kept * bk_test_grad(a->r->out, query * D + d);
        }
    }
}

static plain plain_run(const problem *p, const run *r)
{
    int64_t queries = p->B * p->H * p->N, keys = p->B * p->H * p->M;
    plain a = {p,
               r,
               zeros(queries * p->D),
               zeros(queries),
               zeros(queries * p->D),
               zeros(keys * p->D),
               zeros(keys * p->D)};
    double *probability = zeros(p->M);
    for (int64_t b = 0; b < p->B; b++)
        for (int64_t h = 0; h < p->H; h++)
            for (int64_t i = 0; i < p->N; i++) {
                plain_forward(&a, b, h, i, probability);
                plain_backward(&a, b, h, i, probability);
            }
    free(probability);
    return a;
}

static void plain_free(plain *a)
{
    free(a->out);
    free(a->lse);
    free(a->dq);
    free(a->dk);
    free(a->dv);
}

/* ---- comparison ---- */

static double error_of(const bk_tensor *x, bool gradient, const double *reference)
{
    int64_t n = bk_count(x);
    double *own = zeros(n);
    for (int64_t i = 0; i < n; i++)
        own[i] = gradient ? bk_test_grad(x, i) : bk_test_value(x, i);
    double error = bk_test_error(n, own, reference, 1.0);
    free(own);
    return error;
}

static void check_lse(const run *r, const double *reference, double limit)
{
    for (int64_t i = 0; i < bk_count(r->lse); i++)
        if (reference[i] == -INFINITY)
            assert_true(bk_test_value(r->lse, i) == -INFINITY);
        else
            bk_check_error(fabs(bk_test_value(r->lse, i) - reference[i]),
                           limit * fmax(1.0, fabs(reference[i])), "lse");
}

static void check_plain(const problem *p, bk_dtype dtype)
{
    double limit = dtype == BK_F64 ? 1e-12 : 1e-5;
    run r;
    run_op(p, dtype, &r);
    plain a = plain_run(p, &r);
    const struct {
        const char *name;
        const bk_tensor *x;
        bool gradient;
        const double *reference;
    } pair[] = {{"out", r.out, false, a.out},
                {"dq", r.q, true, a.dq},
                {"dk", r.k, true, a.dk},
                {"dv", r.v, true, a.dv}};
    for (int i = 0; i < 4; i++)
        bk_check_error(error_of(pair[i].x, pair[i].gradient, pair[i].reference), limit,
                       "%s, N %d M %d D %d block %d", pair[i].name, (int)p->N, (int)p->M, (int)p->D,
                       (int)p->o.block);
    check_lse(&r, a.lse, limit);
    plain_free(&a);
    release(&r);
}

static void check_both(problem p)
{
    int32_t *mask = p.holes ? holes(p.B, p.M, p.M / 4) : NULL;
    p.mask = mask ? mask : p.mask;
    check_plain(&p, BK_F64);
    check_plain(&p, BK_F32);
    free(mask);
}

/* Bits of `count` elements of two arrays. */
static void check_bits(const bk_tensor *x, const void *a, const bk_tensor *y, const void *b,
                       int64_t first_x, int64_t first_y, int64_t count)
{
    size_t size = bk_dtype_size(x->dtype);
    assert_int_equal(x->dtype, y->dtype);
    assert_memory_equal((const char *)a + (size_t)first_x * size,
                        (const char *)b + (size_t)first_y * size, (size_t)count * size);
}

static void check_all_bits(const run *a, const run *b)
{
    check_bits(a->out, a->out->data, b->out, b->out->data, 0, 0, bk_count(a->out));
    check_bits(a->lse, a->lse->data, b->lse, b->lse->data, 0, 0, bk_count(a->lse));
    check_bits(a->q, a->q->grad, b->q, b->q->grad, 0, 0, bk_count(a->q));
    check_bits(a->k, a->k->grad, b->k, b->k->grad, 0, 0, bk_count(a->k));
    check_bits(a->v, a->v->grad, b->v, b->v->grad, 0, 0, bk_count(a->v));
}

/* ---- golden values ---- */

static int64_t size_at(const json_t *c, const char *input, size_t axis)
{
    return json_integer_value(
        json_array_get(json_object_get(json_object_get(c, "inputs"), input), axis));
}

/* In the cross case q is the first five positions of the array of twelve. */
static void cut_queries(run *r, const problem *p)
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
    problem p = {.B = size_at(c, "q", 0),
                 .H = size_at(c, "q", 1),
                 .N = size_at(c, "q", 2),
                 .M = size_at(c, "k", 2),
                 .D = size_at(c, "q", 3),
                 .mask = mask};
    p.o = (bk_attention_options){.scale = 1.0 / sqrt((double)p.D), .block = block};
    p.o.causal = json_is_true(json_object_get(json_object_get(c, "options"), "causal"));
    json_t *grad = json_object_get(c, "grad");
    run r;
    prepare(&p, dtype, &r);
    cut_queries(&r, &p);
    finish(&p, &r);
    check_array(name, r.out, false, json_object_get(c, "out"));
    check_array(name, r.q, true, json_object_get(grad, "q"));
    check_array(name, r.k, true, json_object_get(grad, "k"));
    check_array(name, r.v, true, json_object_get(grad, "v"));
    release(&r);
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
    problem p = {.B = 2, .H = 2, .N = 12, .M = 12, .D = 3};
    run r;
    (void)state;
    p.o = (bk_attention_options){.scale = 1.0 / sqrt(3.0), .block = 64};
    run_op(&p, BK_F64, &r);
    for (int i = 0; i < 3; i++)
        assert_true(fabs(bk_test_value(r.out, i) - row[i]) < 1e-9);
    release(&r);
}

/* ---- the plain loop, over shapes ---- */

static void lengths_around_a_tile(void **state)
{
    const int64_t length[] = {1, 2, 15, 16, 17, 33, 70};
    (void)state;
    for (int i = 0; i < 7; i++)
        for (int causal = 0; causal < 2; causal++)
            for (int masked = 0; masked < 2; masked++)
                check_both((problem){.B = 2,
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
        check_both((problem){.B = 1,
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
        check_both((problem){.B = 1,
                             .H = 2,
                             .N = 150,
                             .M = 150,
                             .D = 12,
                             .o = {.scale = 0.5, .block = block[i], .causal = i % 2},
                             .holes = true});
}

static void cross_attention(void **state)
{
    int32_t *keys = holes(2, 30, 9), *queries = holes(2, 19, 3), *square = holes(2, 30, 4);
    (void)state;
    problem p = {.B = 2, .H = 2, .N = 19, .M = 30, .D = 5, .o = {.scale = 0.5, .block = 8}};
    check_both(p);
    p.mask = keys;
    check_both(p);
    p.query_mask = queries;
    check_both(p);
    p.mask = NULL;
    check_both(p);
    p.N = 30; /* queries and keys of equal number, masked apart */
    p.mask = keys;
    p.query_mask = square;
    check_both(p);
    free(keys);
    free(queries);
    free(square);
}

static void the_composed_form_agrees(void **state)
{
    enum { B = 2, H = 2, N = 23, D = 6 };
    int32_t *mask = holes(B, N, 5);
    (void)state;
    for (int causal = 0; causal < 2; causal++) {
        problem p = {.B = B, .H = H, .N = N, .M = N, .D = D, .mask = mask};
        p.o = (bk_attention_options){.scale = 0.7, .block = 8, .causal = causal};
        run r, c;
        run_op(&p, BK_F64, &r);
        prepare(&p, BK_F64, &c);
        bk_tensor *s = bk_scale(&c.tape, bk_matmul_nt(&c.tape, c.q, c.k), p.o.scale);
        c.out = bk_matmul(&c.tape, bk_softmax_masked(&c.tape, s, c.mask, causal), c.v);
        bk_test_seed_fill(&c.tape, c.out, 99, -1.0, 1.0);
        for (int64_t i = 0; i < bk_count(c.out); i++) /* it has no masked queries */
            if (!mask[i / (H * N * D) * N + i / D % N])
                ((double *)c.out->data)[i] = ((double *)c.out->grad)[i] = 0.0;
        bk_tape_backward_seeded(&c.tape);
        bk_check_error(error_of(r.out, false, bk_f64(c.out)), 1e-12, "out");
        bk_check_error(error_of(r.q, true, c.q->grad), 1e-12, "dq");
        bk_check_error(error_of(r.k, true, c.k->grad), 1e-12, "dk");
        bk_check_error(error_of(r.v, true, c.v->grad), 1e-12, "dv");
        release(&r);
        release(&c);
    }
    free(mask);
}

/* ---- dropout ---- */

static void dropout_has_its_draws(void **state)
{
    (void)state;
    for (int block = 2; block <= 32; block *= 4)
        for (int causal = 0; causal < 2; causal++)
            check_both((problem){
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
    problem p = {
        .B = 1, .H = 1, .N = 9, .M = 9, .D = 3, .o = {.scale = 1, .block = 4, .dropout = 0.5}};
    run r, plain_run_;
    (void)state;
    prepare(&p, BK_F32, &r);
    r.tape.training = false;
    finish(&p, &r);
    p.o.dropout = 0.0;
    run_op(&p, BK_F32, &plain_run_);
    check_all_bits(&r, &plain_run_);
    release(&r);
    release(&plain_run_);
}

/* ---- masks ---- */

enum { REAL = 21, HEADS = 2, WIDTH = 5 };

/* Element `at` of an array whose positions beyond REAL and holes are padding: the fill counts the
 * real positions only. */
static float padded_value(const problem *p, int64_t at, uint64_t tag, float padding)
{
    int64_t head = at / (p->N * WIDTH), row = at / WIDTH % p->N;
    int64_t place = (head * REAL + row) * WIDTH + at % WIDTH;
    return p->mask[row] ? (float)bk_fill((uint64_t)place, tag, -1.5, 1.5) : padding;
}

/* The same real positions among `length`, with `padding` elsewhere, in the gradient too. */
static void run_padded(problem *p, const int32_t *real, int64_t length, float padding, run *r)
{
    int32_t *mask = calloc((size_t)length, sizeof *mask);
    assert_non_null(mask);
    memcpy(mask, real, REAL * sizeof *mask);
    p->N = p->M = length;
    p->mask = mask;
    prepare(p, BK_F32, r);
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

static void check_padded(const run *a, const run *b, int64_t length)
{
    for (int64_t h = 0; h < HEADS; h++) {
        int64_t first = h * REAL * WIDTH, other = h * length * WIDTH, n = REAL * WIDTH;
        check_bits(a->out, a->out->data, b->out, b->out->data, first, other, n);
        check_bits(a->q, a->q->grad, b->q, b->q->grad, first, other, n);
        check_bits(a->k, a->k->grad, b->k, b->k->grad, first, other, n);
        check_bits(a->v, a->v->grad, b->v, b->v->grad, first, other, n);
        for (int64_t i = other + n; i < other + length * WIDTH; i++)
            assert_true(bk_test_value(b->out, i) == 0.0 && bk_test_grad(b->q, i) == 0.0 &&
                        bk_test_grad(b->k, i) == 0.0 && bk_test_grad(b->v, i) == 0.0);
    }
}

/* Whatever padding holds, and however much of it there is. */
static void padding_changes_no_real_row(void **state)
{
    const float paddings[] = {0.5f, -1e30f, INFINITY, NAN};
    int32_t *real = holes(1, REAL, 0);
    problem p = {.B = 1, .H = HEADS, .D = WIDTH, .o = {.scale = 0.6, .block = 16}};
    (void)state;
    real[REAL - 1] = 1;
    for (int i = 0; i < 4; i++)
        for (int64_t length = REAL; length < 60; length += 13) {
            run base, other;
            p.o.causal = !p.o.causal;
            run_padded(&p, real, REAL, 0.0f, &base);
            run_padded(&p, real, length, paddings[i], &other);
            check_padded(&base, &other, length);
            release(&base);
            release(&other);
        }
    free(real);
}

/* Sample 0 has no real position, sample 1 one hole that is its last but one. */
static void an_empty_sample_gives_zeros(void **state)
{
    const int32_t mask[] = {0, 0, 0, 0, 0, 1, 1, 1, 0, 1};
    problem p = {
        .B = 2, .H = 1, .N = 5, .M = 5, .D = 3, .mask = mask, .o = {.scale = 1, .block = 2}};
    run r;
    (void)state;
    check_both(p);
    run_op(&p, BK_F32, &r);
    for (int i = 0; i < 15; i++)
        assert_true(bk_test_value(r.out, i) == 0.0 && bk_test_grad(r.q, i) == 0.0 &&
                    bk_test_grad(r.k, i) == 0.0 && bk_test_grad(r.v, i) == 0.0);
    release(&r);
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
        check_both((problem){.B = 1,
                             .H = 1,
                             .N = N,
                             .M = N,
                             .D = 3,
                             .mask = mask,
                             .o = {.scale = 1, .block = 8, .causal = causal}});
    problem p = {.B = 1, .H = 1, .N = N, .M = N, .D = 3, .mask = mask, .query_mask = real};
    p.o = (bk_attention_options){.scale = 1, .block = 8, .causal = true};
    run r;
    run_op(&p, BK_F32, &r); /* real queries, keys only behind them */
    for (int64_t i = 0; i < FIRST * 3; i++)
        assert_true(bk_test_value(r.out, i) == 0.0 && bk_test_grad(r.q, i) == 0.0);
    for (int64_t i = 0; i < FIRST; i++)
        assert_true(bk_test_value(r.lse, i) == -INFINITY);
    assert_true(bk_test_value(r.out, FIRST * 3) == bk_test_value(r.v, FIRST * 3));
    release(&r);
}

static void later_positions_change_no_earlier_row(void **state)
{
    enum { H = 2, N = 50, D = 6 };
    problem p = {.B = 1, .H = H, .N = N, .M = N, .D = D};
    run base, other;
    (void)state;
    p.o = (bk_attention_options){.scale = 0.5, .block = 16, .causal = true, .dropout = 0.2};
    run_op(&p, BK_F32, &base);
    for (int64_t t = 1; t < N; t += 7) {
        prepare(&p, BK_F32, &other);
        bk_tensor *in[] = {other.q, other.k, other.v};
        for (int i = 0; i < 3; i++)
            for (int64_t j = 0; j < H * N * D; j++)
                if (j / D % N >= t)
                    ((float *)in[i]->data)[j] = (float)(j % 11) - 5.0f;
        finish(&p, &other);
        for (int64_t h = 0; h < H; h++)
            check_bits(base.out, base.out->data, other.out, other.out->data, h * N * D, h * N * D,
                       t * D);
        release(&other);
    }
    release(&base);
}

/* ---- numbers at the edge ---- */

static void large_logits_are_no_trouble(void **state)
{
    enum { N = 70, D = 4 };
    problem p = {.B = 1, .H = 1, .N = N, .M = N, .D = D, .o = {.scale = 1e4, .block = 16}};
    run r;
    (void)state;
    for (int causal = 0; causal < 2; causal++) {
        p.o.causal = causal;
        run_op(&p, BK_F32, &r); /* logits up to 9e4 */
        for (int64_t i = 0; i < N * D; i++)
            assert_true(isfinite(bk_test_value(r.out, i)) && isfinite(bk_test_grad(r.q, i)) &&
                        isfinite(bk_test_grad(r.k, i)) && isfinite(bk_test_grad(r.v, i)));
        for (int64_t i = 0; i < N * D; i++)
            assert_true(fabs(bk_test_value(r.out, i)) <= 1.5 + 1e-5);
        release(&r);
        check_plain(&p, BK_F64);
    }
}

/* A NaN in q or k reaches every row that sees it, one in v its column. */
static void nan_is_never_hidden(void **state)
{
    enum { N = 40, D = 3 };
    problem p = {.B = 1, .H = 1, .N = N, .M = N, .D = D, .o = {.scale = 1, .block = 16}};
    (void)state;
    for (int input = 0; input < 3; input++) {
        run r;
        prepare(&p, BK_F32, &r);
        bk_tensor *in[] = {r.q, r.k, r.v};
        ((float *)in[input]->data)[20 * D + 1] = NAN;
        finish(&p, &r);
        for (int64_t i = 0; i < N * D; i++) {
            bool reached = input == 0 ? i / D == 20 : input == 1 ? true : i % D == 1;
            assert_true(isnan(bk_test_value(r.out, i)) == reached);
        }
        release(&r);
    }
}

/* ---- gradients that are not wanted, or not the first ---- */

static void constants_get_no_gradient(void **state)
{
    problem p = {.B = 1, .H = 2, .N = 9, .M = 9, .D = 3, .o = {.scale = 1, .block = 4}};
    run all, some;
    (void)state;
    run_op(&p, BK_F32, &all);
    for (int which = 0; which < 3; which++) {
        prepare(&p, BK_F32, &some);
        bk_tensor *in[] = {some.q, some.k, some.v}, *full[] = {all.q, all.k, all.v};
        for (int i = 0; i < 3; i++)
            in[i]->needs_grad = i == which;
        finish(&p, &some);
        for (int i = 0; i < 3; i++)
            if (i == which)
                check_bits(in[i], in[i]->grad, full[i], full[i]->grad, 0, 0, bk_count(in[i]));
            else
                assert_null(in[i]->grad);
        release(&some);
    }
    release(&all);
}

static void gradients_add_up(void **state)
{
    problem p = {.B = 1, .H = 1, .N = 9, .M = 9, .D = 3, .o = {.scale = 1, .block = 4}};
    run once, twice;
    (void)state;
    run_op(&p, BK_F64, &once);
    prepare(&p, BK_F64, &twice);
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
    release(&once);
    release(&twice);
}

/* ---- threads, neighbours, memory ---- */

static void threads_give_equal_bits(void **state)
{
    int32_t *mask = holes(3, 90, 20);
    problem p = {.B = 3, .H = 3, .N = 90, .M = 90, .D = 9, .mask = mask};
    run one, two;
    (void)state;
    p.o = (bk_attention_options){.scale = 0.4, .block = 16, .causal = true, .dropout = 0.1};
    run_op(&p, BK_F32, &one);
    assert_int_equal(bk_blas_setup(2, BK_GEMM_AUTO), BK_OK);
    run_op(&p, BK_F32, &two);
    assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
    check_all_bits(&one, &two);
    release(&one);
    release(&two);
    free(mask);
}

/* 64 MiB beyond inputs, outputs and their gradients at 16,384 positions. */
static void memory_is_linear(void **state)
{
    enum { N = 16384, D = 4 };
    problem p = {.B = 1, .H = 1, .N = N, .M = N, .D = D};
    run r;
    (void)state;
    p.o = (bk_attention_options){.scale = 0.5, .block = 64, .causal = true};
    run_op(&p, BK_F32, &r);
    size_t arrays = (size_t)8 * N * D * sizeof(float); /* q, k, v, out and their gradients */
    size_t used = bk_arena_peak(r.tape.arena) + bk_arena_peak(r.tape.scratch);
    assert_true(used - arrays < (size_t)64 << 20);
    assert_true(isfinite(bk_test_value(r.out, N * D - 1)));
    release(&r);
}

/* ---- mistakes ---- */

static void wrong_width(void *unused)
{
    problem p = {.B = 1, .H = 1, .N = 3, .M = 3, .D = 4, .o = {.scale = 1, .block = 4}};
    run r;
    (void)unused;
    prepare(&p, BK_F32, &r);
    r.k->shape[3] = r.v->shape[3] = 3;
    finish(&p, &r);
}

static void wrong_mask(void *unused)
{
    const int32_t mask[] = {1, 1, 1};
    problem p = {
        .B = 1, .H = 1, .N = 3, .M = 3, .D = 4, .mask = mask, .o = {.scale = 1, .block = 4}};
    run r;
    (void)unused;
    prepare(&p, BK_F32, &r);
    r.mask->shape[1] = 2;
    finish(&p, &r);
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
        cmocka_unit_test(golden_cases),
        cmocka_unit_test(golden_row),
        cmocka_unit_test(lengths_around_a_tile),
        cmocka_unit_test(widths_around_a_vector),
        cmocka_unit_test(tile_sizes_agree),
        cmocka_unit_test(cross_attention),
        cmocka_unit_test(the_composed_form_agrees),
        cmocka_unit_test(dropout_has_its_draws),
        cmocka_unit_test(dropout_acts_in_training_only),
        cmocka_unit_test(padding_changes_no_real_row),
        cmocka_unit_test(an_empty_sample_gives_zeros),
        cmocka_unit_test(rows_without_keys_give_zeros),
        cmocka_unit_test(later_positions_change_no_earlier_row),
        cmocka_unit_test(large_logits_are_no_trouble),
        cmocka_unit_test(nan_is_never_hidden),
        cmocka_unit_test(constants_get_no_gradient),
        cmocka_unit_test(gradients_add_up),
        cmocka_unit_test(threads_give_equal_bits),
        cmocka_unit_test(memory_is_linear),
        cmocka_unit_test(wrong_shapes_are_faults),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
