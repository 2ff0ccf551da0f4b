#include "tests/support/attention.h"

#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bk_tensor *mask_tensor(bk_tape *t, const int32_t *mask, int64_t samples, int64_t positions)
{
    if (!mask)
        return NULL;
    bk_tensor *x = bk_tape_constant(t, BK_I32, BK_SHAPE(samples, positions));
    memcpy(x->data, mask, (size_t)(samples * positions) * sizeof *mask);
    return x;
}

void bk_attention_prepare(const bk_attention_problem *p, bk_dtype dtype, bk_attention_run *r)
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

void bk_attention_finish(const bk_attention_problem *p, bk_attention_run *r)
{
    r->out = bk_attention(&r->tape, r->q, r->k, r->v, r->mask, r->query_mask, &p->o, &r->lse);
    bk_test_seed_fill(&r->tape, r->out, 99, -1.0, 1.0);
    bk_tape_backward_seeded(&r->tape);
}

void bk_attention_run_op(const bk_attention_problem *p, bk_dtype dtype, bk_attention_run *r)
{
    bk_attention_prepare(p, dtype, r);
    bk_attention_finish(p, r);
}

void bk_attention_release(bk_attention_run *r)
{
    bk_test_tape_free(&r->tape);
}

int32_t *bk_attention_holes(int64_t samples, int64_t positions, int64_t padding)
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
    const bk_attention_problem *p;
    const bk_attention_run *r; /* q, k, v and the incoming gradient are read from it */
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

static bool sees(const bk_attention_problem *p, int64_t b, int64_t i, int64_t j)
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
    const bk_attention_problem *p = a->p;
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
    const bk_attention_problem *p = a->p;
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

static plain plain_run(const bk_attention_problem *p, const bk_attention_run *r)
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

double bk_attention_error(const bk_tensor *x, bool gradient, const double *reference)
{
    int64_t n = bk_count(x);
    double *own = zeros(n);
    for (int64_t i = 0; i < n; i++)
        own[i] = gradient ? bk_test_grad(x, i) : bk_test_value(x, i);
    double error = bk_test_error(n, own, reference, 1.0);
    free(own);
    return error;
}

static void check_lse(const bk_attention_run *r, const double *reference, double limit)
{
    for (int64_t i = 0; i < bk_count(r->lse); i++)
        if (reference[i] == -INFINITY)
            assert_true(bk_test_value(r->lse, i) == -INFINITY);
        else
            bk_check_error(fabs(bk_test_value(r->lse, i) - reference[i]),
                           limit * fmax(1.0, fabs(reference[i])), "lse");
}

void bk_attention_check_plain(const bk_attention_problem *p, bk_dtype dtype)
{
    double limit = dtype == BK_F64 ? 1e-12 : 1e-5;
    bk_attention_run r;
    bk_attention_run_op(p, dtype, &r);
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
        bk_check_error(bk_attention_error(pair[i].x, pair[i].gradient, pair[i].reference), limit,
                       "%s, N %d M %d D %d block %d", pair[i].name, (int)p->N, (int)p->M, (int)p->D,
                       (int)p->o.block);
    check_lse(&r, a.lse, limit);
    plain_free(&a);
    bk_attention_release(&r);
}

void bk_attention_check_both(bk_attention_problem p)
{
    int32_t *mask = p.holes ? bk_attention_holes(p.B, p.M, p.M / 4) : NULL;
    p.mask = mask ? mask : p.mask;
    bk_attention_check_plain(&p, BK_F64);
    bk_attention_check_plain(&p, BK_F32);
    free(mask);
}

void bk_attention_check_floats(const void *a, int64_t first_a, const void *b, int64_t first_b,
                               int64_t count)
{
    assert_memory_equal((const float *)a + first_a, (const float *)b + first_b,
                        (size_t)count * sizeof(float));
}

void bk_attention_check_bits(const bk_attention_run *a, const bk_attention_run *b)
{
    bk_attention_check_floats(a->out->data, 0, b->out->data, 0, bk_count(a->out));
    bk_attention_check_floats(a->lse->data, 0, b->lse->data, 0, bk_count(a->lse));
    bk_attention_check_floats(a->q->grad, 0, b->q->grad, 0, bk_count(a->q));
    bk_attention_check_floats(a->k->grad, 0, b->k->grad, 0, bk_count(a->k));
    bk_attention_check_floats(a->v->grad, 0, b->v->grad, 0, bk_count(a->v));
}
