#include "core/transport/sinkhorn.h"

#include "core/vector.h"

#include <math.h>
#include <string.h>

int bk_fixed_bits(int64_t terms)
{
    int log2 = 0;
    while (log2 < 62 && ((int64_t)1 << log2) < terms)
        log2++;
    return 62 - log2 < 40 ? 62 - log2 : 40;
}

int64_t bk_sinkhorn_lane(const bk_sinkhorn *p, int64_t i)
{
    int64_t l = 0;
    while (l + 1 < p->lanes->count && i >= p->lane_row[l + 1])
        l++;
    return l;
}

void bk_sinkhorn_sum(const bk_sinkhorn *p, int64_t n, const double *local, double *out)
{
    bk_reduce_vector(p->reducer, p->lanes, n, local, out, p->scratch);
}

/* x = exp(S_i + g - LSE) for one row; returns f_i = -LSE. */
static double row_softmax(const bk_sinkhorn_block *b, int64_t i, const double *g, double *x)
{
    const double *s = b->s + i * b->columns;
    for (int64_t j = 0; j < b->columns; j++)
        x[j] = s[j] + g[b->column + j];
    double most = bk_vector_kernels_f64.max(b->columns, x);
    double sum = bk_vector_kernels_f64.exp_sum(b->columns, x, most, x);
    bk_vector_kernels_f64.scale(b->columns, 1.0 / sum, x);
    return -(most + bk_log_one(sum));
}

/* ---- rule F3 ---- */

static void sweep_lanes(const bk_sinkhorn *p, const double *g, double *f, double *column)
{
    double *local = BK_ZNEW(p->scratch, double, p->lanes->count * p->columns);
    double *x = BK_NEW(p->scratch, double, p->columns);
    for (int64_t k = 0; k < p->blocks; k++) {
        const bk_sinkhorn_block *b = &p->block[k];
        for (int64_t i = 0; i < b->rows; i++) {
            f[b->first + i] = row_softmax(b, i, g, x);
            double *sum = local + bk_sinkhorn_lane(p, b->first + i) * p->columns + b->column;
            for (int64_t j = 0; j < b->columns; j++)
                sum[j] += x[j];
        }
    }
    bk_sinkhorn_sum(p, p->columns, local, column);
}

/* ---- rule F1 ---- */

static void sweep_fixed(const bk_sinkhorn *p, const double *g, double *f, double *column, double *q)
{
    int bits = bk_fixed_bits(p->terms);
    double unit = ldexp(1.0, bits);
    int64_t *sum = BK_ZNEW(p->scratch, int64_t, p->columns + 1);
    double *x = BK_NEW(p->scratch, double, p->columns);
    for (int64_t k = 0; k < p->blocks; k++) {
        const bk_sinkhorn_block *b = &p->block[k];
        for (int64_t i = 0; i < b->rows; i++) {
            f[b->first + i] = row_softmax(b, i, g, x);
            for (int64_t j = 0; j < b->columns; j++) {
                bool fits = x[j] <= 1.0 + 0x1p-20;
                sum[p->columns] += !fits;
                sum[b->column + j] += fits ? (int64_t)rint(x[j] * unit) : 0;
            }
            if (q)
                memcpy(q + (b->first + i) * p->columns, x, (size_t)b->columns * sizeof *x);
        }
    }
    bk_reduce_fixed(p->reducer, p->columns + 1, sum);
    BK_ASSERT(sum[p->columns] == 0, "%lld terms of a column sum are not in [0, 1]",
              (long long)sum[p->columns]);
    for (int64_t j = 0; j < p->columns; j++)
        column[j] = (double)(sum[j] > 1 ? sum[j] : 1) / unit;
}

void bk_sinkhorn_sweep(const bk_sinkhorn *p, const double *g, double *f, double *column, double *q)
{
    bk_arena_mark mark = bk_arena_get_mark(p->scratch);
    if (p->rule == BK_SUM_FIXED)
        sweep_fixed(p, g, f, column, q);
    else
        sweep_lanes(p, g, f, column);
    bk_arena_release(p->scratch, mark);
}

/* ---- columns with a maximum ---- */

static void column_maxima(const bk_sinkhorn *p, const double *f, double *most)
{
    for (int64_t j = 0; j < p->columns; j++)
        most[j] = -INFINITY;
    for (int64_t k = 0; k < p->blocks; k++) {
        const bk_sinkhorn_block *b = &p->block[k];
        for (int64_t i = 0; i < b->rows; i++)
            for (int64_t j = 0; j < b->columns; j++)
                most[b->column + j] =
                    fmax(most[b->column + j], b->s[i * b->columns + j] + f[b->first + i]);
    }
    bk_reduce_max(p->reducer, p->columns, most);
}

void bk_sinkhorn_shifted_columns(const bk_sinkhorn *p, const double *f, double *g)
{
    bk_arena_mark mark = bk_arena_get_mark(p->scratch);
    double *most = BK_NEW(p->scratch, double, p->columns),
           *sum = BK_NEW(p->scratch, double, p->columns);
    double *local = BK_ZNEW(p->scratch, double, p->lanes->count * p->columns);
    double *x = BK_NEW(p->scratch, double, p->columns);
    column_maxima(p, f, most);
    for (int64_t k = 0; k < p->blocks; k++) {
        const bk_sinkhorn_block *b = &p->block[k];
        for (int64_t i = 0; i < b->rows; i++) {
            for (int64_t j = 0; j < b->columns; j++)
                x[j] = b->s[i * b->columns + j] + f[b->first + i] - most[b->column + j];
            bk_exp_f64(b->columns, x, x);
            double *to = local + bk_sinkhorn_lane(p, b->first + i) * p->columns + b->column;
            for (int64_t j = 0; j < b->columns; j++)
                to[j] += x[j];
        }
    }
    bk_sinkhorn_sum(p, p->columns, local, sum);
    bk_log_f64(p->columns, sum, sum);
    for (int64_t j = 0; j < p->columns; j++)
        g[j] = -(most[j] + sum[j]);
    bk_arena_release(p->scratch, mark);
}
