/* The cost of SinKD against teacher rows of k classes and a rest, and its way back.  Of p and h
 * there is one row a thread; k numbers of each teacher row travel. */
#include "core/blas.h"
#include "core/vector.h"
#include "losses/sinkd.h"
#include "losses/sinkd_top_kernel.h"

#include <string.h>

static bk_dtype dtype_of(const bk_sinkd *s)
{
    return s->args.logits->dtype;
}

static size_t element(const bk_sinkd *s)
{
    return bk_dtype_size(dtype_of(s));
}

/* ---- teacher rows ---- */

/* Own rows, masked ones left out, of an array with `bytes` a row; or rows held. */
static void *take_rows(bk_tape *t, const bk_sinkd *s, const void *from, size_t bytes)
{
    char *own = bk_arena_alloc(t->arena, (size_t)s->rows * bytes), *held = own;
    for (int64_t i = 0; i < s->rows; i++)
        memcpy(own + (size_t)i * bytes, (const char *)from + (size_t)s->place[i] * bytes, bytes);
    if (s->shared) {
        held = bk_arena_alloc(t->arena, (size_t)s->columns * bytes);
        bk_sinkd_exchange(t, s, bytes, own, held);
    }
    return held;
}

static bk_sinkd_top_row row_of(const bk_sinkd *s, int64_t column)
{
    return (bk_sinkd_top_row){.k = s->k,
                              .index = s->index + column * s->k,
                              .q = (const char *)s->q + (size_t)(column * (s->k + 1)) * element(s)};
}

/* ---- rows of the student, what threads share ---- */

typedef struct rows {
    bk_row_room p, h; /* one a thread */
    int64_t *block;   /* [rows] */
} rows;

static rows rows_new(bk_tape *t, const bk_sinkd *s)
{
    int64_t classes = bk_cols(s->args.logits);
    rows r = {.p = bk_row_room_new(t, dtype_of(s), classes),
              .h = bk_row_room_new(t, dtype_of(s), classes),
              .block = BK_NEW(t->scratch, int64_t, s->rows)};
    for (int64_t k = 0; k < s->blocks; k++)
        for (int64_t i = 0; i < s->block[k].rows; i++)
            r.block[s->block[k].first + i] = k;
    return r;
}

/* p[V] of own row i. */
static void fill_row(const bk_sinkd *s, int64_t i, char *p)
{
    int64_t classes = bk_cols(s->args.logits);
    bk_rows_of(dtype_of(s))
        ->softmax(classes, s->left->logits + (size_t)(s->place[i] * classes) * element(s),
                  s->config->temperature, s->left->own[i], p);
}

/* ---- cost ---- */

static void cost_row(const bk_sinkd *s, const rows *r, int64_t i, double *const *cost)
{
    const bk_sinkhorn_block *b = &s->block[r->block[i]];
    char *p = bk_row_room_own(&r->p);
    fill_row(s, i, p);
    for (int64_t j = 0; j < b->columns; j++) {
        bk_sinkd_top_row q = row_of(s, b->column + j);
        cost[r->block[i]][(i - b->first) * b->columns + j] =
            bk_sinkd_top_of(dtype_of(s))->distance(p, &q);
    }
}

void bk_sinkd_top_cost(bk_tape *t, bk_sinkd *s, const bk_top *top)
{
    double *const *cost = bk_sinkd_make_blocks(t, s);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    s->k = top->k;
    s->index = take_rows(t, s, top->index, (size_t)s->k * sizeof *top->index);
    void *q = take_rows(t, s, top->log_q, (size_t)(s->k + 1) * element(s));
    bk_vector(dtype_of(s))->exp(s->columns * (s->k + 1), q, q);
    s->q = q;
    rows r = rows_new(t, s);
#pragma omp parallel for schedule(dynamic, 4) num_threads(bk_blas_threads())
    for (int64_t i = 0; i < s->rows; i++)
        cost_row(s, &r, i, cost);
    bk_sinkd_scale_cost(s, cost);
    bk_arena_release(t->scratch, mark);
}

/* ---- back ---- */

static void back_row(const bk_sinkd *s, const rows *r, int64_t i, double *const *adjoint,
                     double factor, char *grad)
{
    const bk_sinkhorn_block *b = &s->block[r->block[i]];
    const double *g = adjoint[r->block[i]] + (i - b->first) * b->columns;
    int64_t classes = bk_cols(s->args.logits);
    char *p = bk_row_room_own(&r->p), *h = bk_row_room_own(&r->h);
    fill_row(s, i, p);
    memset(h, 0, (size_t)classes * element(s));
    for (int64_t j = 0; j < b->columns; j++) {
        bk_sinkd_top_row q = row_of(s, b->column + j);
        bk_sinkd_top_of(dtype_of(s))->add_signs(p, &q, g[j], h);
    }
    double inner = bk_rows_of(dtype_of(s))->product_add(classes, p, h, factor, grad);
    bk_vector(dtype_of(s))->axpy(classes, -factor * inner, p, grad);
}

void bk_sinkd_top_cost_back(bk_tape *t, const bk_sinkd *s, double *const *adjoint,
                            const double *seed)
{
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    rows r = rows_new(t, s);
    char *grad = bk_grad(t, s->args.logits);
    size_t bytes = (size_t)bk_cols(s->args.logits) * element(s);
#pragma omp parallel for schedule(dynamic, 4) num_threads(bk_blas_threads())
    for (int64_t i = 0; i < s->rows; i++) {
        double factor = s->weight * seed[bk_sinkhorn_lane(&s->problem, i)] / s->config->temperature;
        back_row(s, &r, i, adjoint, factor, grad + (size_t)s->place[i] * bytes);
    }
    bk_arena_release(t->scratch, mark);
}
