/* The plan of SinKD and its gradient in the direct domain: no exponential but those of K.
 *   K = exp(S);  u^n = 1/(K v^(n-1));  v^n = 1/(K^T u^n);  P = diag(u^N) K diag(v^N)
 * With S >= -2/epsilon >= -667, K and both vectors stay within the range of doubles: a row of K
 * spans at most that factor, and so do u and v. */
#include "core/blas.h"
#include "core/parallel.h"
#include "core/vector.h"
#include "losses/sinkd.h"

#include <string.h>

void bk_sinkd_make_kernel(bk_tape *t, bk_sinkd *s)
{
    s->kernel = BK_NEW(t->arena, double *, s->blocks + 1);
    for (int64_t k = 0; k < s->blocks; k++) {
        int64_t count = s->block[k].rows * s->block[k].columns;
        s->kernel[k] = BK_NEW(t->arena, double, count);
        bk_exp_f64(count, s->block[k].s, s->kernel[k]);
    }
}

/* ---- a matrix times a vector ---- */

typedef struct product {
    const bk_sinkd *s;
    double *const *matrix;
    const double *x;
    double *y;
} product;

static int64_t between(int64_t x, int64_t least, int64_t most)
{
    return x < least ? least : x > most ? most : x;
}

static void multiply_rows(void *context, int64_t first, int64_t last)
{
    const product *c = context;
    for (int64_t k = 0; k < c->s->blocks; k++) {
        const bk_sinkhorn_block *b = &c->s->block[k];
        int64_t end = between(last - b->first, 0, b->rows);
        for (int64_t i = between(first - b->first, 0, b->rows); i < end; i++)
            c->y[b->first + i] =
                bk_vector(BK_F64)->dot(b->columns, c->matrix[k] + i * b->columns, c->x + b->column);
    }
}

void bk_sinkd_multiply(const bk_sinkd *s, double *const *matrix, const double *x, double *y)
{
    bk_parallel(s->rows, 1, s->columns, multiply_rows, &(product){s, matrix, x, y});
}

/* Columns are shared out, so that each is summed over the rows in their order. */
static void multiply_columns(void *context, int64_t first, int64_t last)
{
    const product *c = context;
    const bk_sinkd *s = c->s;
    for (int64_t k = 0; k < s->blocks; k++) {
        const bk_sinkhorn_block *b = &s->block[k];
        int64_t j = between(first - b->column, 0, b->columns),
                n = between(last - b->column, 0, b->columns) - j;
        for (int64_t i = 0; n > 0 && i < b->rows; i++)
            bk_vector(BK_F64)->axpy(
                n, c->x[b->first + i], c->matrix[k] + i * b->columns + j,
                c->y + bk_sinkhorn_lane(&s->problem, b->first + i) * s->columns + b->column + j);
    }
}

void bk_sinkd_multiply_transposed(const bk_sinkd *s, double *const *matrix, const double *x,
                                  double *local, double *y)
{
    memset(local, 0, (size_t)(s->problem.lanes->count * s->columns) * sizeof *local);
    bk_parallel(s->columns, BK_PARALLEL_VECTOR, s->rows, multiply_columns,
                &(product){s, matrix, x, local});
    bk_sinkhorn_sum(&s->problem, s->columns, local, y);
}

static void invert(int64_t n, double *x)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = 1.0 / x[i];
}

void bk_sinkd_direct_step(bk_tape *t, const bk_sinkd *s, int64_t n)
{
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    double *local = BK_NEW(t->scratch, double, t->lanes.count * s->columns);
    bk_sinkd_multiply(s, s->kernel, s->g[n - 1], s->f[n]);
    invert(s->rows, s->f[n]);
    bk_sinkd_multiply_transposed(s, s->kernel, s->f[n], local, s->g[n]);
    invert(s->columns, s->g[n]);
    bk_arena_release(t->scratch, mark);
}

/* ---- back ---- */

/* What the normalisations add to G is K o (L^T R) / epsilon, two rank-one terms an iteration; so
 * many of them are multiplied out at a time. */
enum { DEPTH = 128 };

typedef struct terms {
    int64_t count;
    double *left, *right; /* [DEPTH,rows], [DEPTH,columns] */
} terms;

static void add_term(const bk_sinkd *s, terms *w, const double *left, const double *right)
{
    memcpy(w->left + w->count * s->rows, left, (size_t)s->rows * sizeof *left);
    memcpy(w->right + w->count * s->columns, right, (size_t)s->columns * sizeof *right);
    w->count++;
}

/* Own rows [first, last) of block k: one shape for any number of ranks, as rows of one lane are. */
static void add_product(bk_tape *t, const bk_sinkd *s, const terms *w, int64_t k, int64_t first,
                        int64_t last, double *adjoint)
{
    const bk_sinkhorn_block *b = &s->block[k];
    int64_t count = (last - first) * b->columns, at = (first - b->first) * b->columns;
    const double *kernel = s->kernel[k] + at;
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    double *sum = BK_NEW(t->scratch, double, count), scale = 1.0 / s->config->epsilon;
    bk_gemm_run(BK_F64, &(bk_gemm){.ta = BK_T,
                                   .m = last - first,
                                   .n = b->columns,
                                   .k = w->count,
                                   .alpha = scale,
                                   .a = w->left + first,
                                   .lda = s->rows,
                                   .b = w->right + b->column,
                                   .ldb = s->columns,
                                   .c = sum,
                                   .ldc = b->columns});
    for (int64_t i = 0; i < count; i++)
        adjoint[at + i] += kernel[i] * sum[i];
    bk_arena_release(t->scratch, mark);
}

static void multiply_out(bk_tape *t, const bk_sinkd *s, terms *w, double *const *adjoint)
{
    for (int64_t k = 0; k < s->blocks; k++)
        for (int64_t l = 0; l < t->lanes.count; l++) {
            const bk_sinkhorn_block *b = &s->block[k];
            int64_t first = between(s->lane_row[l], b->first, b->first + b->rows),
                    last = between(s->lane_row[l + 1], b->first, b->first + b->rows);
            if (first < last)
                add_product(t, s, w, k, first, last, adjoint[k]);
        }
    w->count = 0;
}

static void scale_by(int64_t n, const double *x, double *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] *= x[i];
}

void bk_sinkd_direct_unroll(bk_tape *t, const bk_sinkd *s, double *rows, double *columns,
                            double *const *adjoint)
{
    double *local = BK_NEW(t->scratch, double, t->lanes.count * s->columns),
           *next = BK_NEW(t->scratch, double, s->rows);
    terms w = {.left = BK_NEW(t->scratch, double, DEPTH * s->rows),
               .right = BK_NEW(t->scratch, double, DEPTH * s->columns)};
    for (int64_t n = s->iterations; n >= 1; n--) {
        scale_by(s->columns, s->g[n], columns);
        add_term(s, &w, s->f[n], columns);
        bk_sinkd_multiply(s, s->kernel, columns, next);
        for (int64_t i = 0; i < s->rows; i++) /* f[n-1] acts through g[n-1] alone */
            rows[i] = s->f[n][i] * ((n == s->iterations ? rows[i] : 0.0) - s->f[n][i] * next[i]);
        add_term(s, &w, rows, s->g[n - 1]);
        if (w.count == DEPTH || n == 1)
            multiply_out(t, s, &w, adjoint);
        if (n == 1) /* g[0] is constant */
            return;
        bk_sinkd_multiply_transposed(s, s->kernel, rows, local, columns);
        scale_by(s->columns, s->g[n - 1], columns);
        bk_vector(BK_F64)->scale(s->columns, -1.0, columns);
    }
}
