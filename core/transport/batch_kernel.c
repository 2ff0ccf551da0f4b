/* Problems in slots.  Behind the first half step, which takes exponentials, a half step multiplies
 * the plan by the row factors a/rowsum or the column factors b/colsum: the same numbers as
 * potentials give, without another exponential.  No entry can be lost to underflow as long as the
 * scores of a row span at most RANGE: v spans no more than that after a column step, so that a row
 * is a softmax of numbers within 2 RANGE. */
#include "core/transport/batch_kernel.h"

#include "core/vector_kernel.h"

#if BK_REAL == 64
static const real RANGE = 300.0, LEAST_SUM = 1e-280;
#else
static const real RANGE = 36.0f, LEAST_SUM = 1e-30f;
#endif

static void clear(int64_t n, slots *x)
{
    for (int64_t i = 0; i < n; i++)
        EACH x[i].x[s] = 0;
}

/* x / y, 0 where y is 0: rows and columns without mass. */
static inline real share(real x, real y)
{
    return y != 0 ? x / y : 0;
}

/* ---- forward ---- */

typedef struct span {
    slots most, least;
} span;

static void span_of_row(int64_t m, const slots *restrict row, const slots *restrict b, span *r)
{
    EACH r->most.x[s] = -(real)INFINITY;
    EACH r->least.x[s] = (real)INFINITY;
    for (int64_t j = 0; j < m; j++)
        EACH
        {
            real x = row[j].x[s], most = r->most.x[s], least = r->least.x[s];
            bool there = b[j].x[s] > 0;
            r->most.x[s] = there && !(x <= most) ? x : most;
            r->least.x[s] = there && !(x >= least) ? x : least;
        }
}

/* The first half step: p = a times the softmax of the row, over the columns with mass. */
static void first_row(int64_t m, const slots *restrict row, const real *restrict a,
                      const slots *restrict b, const real *restrict most, slots *restrict p)
{
    slots sum, factor;
    EACH sum.x[s] = 0;
    for (int64_t j = 0; j < m; j++)
        EACH
        {
            real e = bk_exp_negative(row[j].x[s] - most[s]);
            p[j].x[s] = b[j].x[s] > 0 ? e : 0;
            sum.x[s] += p[j].x[s];
        }
    EACH factor.x[s] = a[s] > 0 ? a[s] / sum.x[s] : 0;
    for (int64_t j = 0; j < m; j++)
        EACH p[j].x[s] = a[s] > 0 ? p[j].x[s] * factor.x[s] : 0;
}

static void add_row(int64_t m, const slots *restrict p, slots *restrict column)
{
    for (int64_t j = 0; j < m; j++)
        EACH column[j].x[s] += p[j].x[s];
}

static void first_rows(const bk_batch_block *k, slots *column, int *wild)
{
    const slots *score = k->s, *a = k->a;
    slots *plan = k->plan;
    span r;
    clear(k->columns, column);
    for (int s = 0; s < SLOTS; s++)
        wild[s] = 0;
    for (int64_t i = 0; i < k->rows; i++) {
        span_of_row(k->columns, score + i * k->columns, k->b, &r);
        EACH wild[s] |= a[i].x[s] > 0 && !(r.most.x[s] - r.least.x[s] <= RANGE);
        first_row(k->columns, score + i * k->columns, a[i].x, k->b, r.most.x,
                  plan + i * k->columns);
        add_row(k->columns, plan + i * k->columns, column);
    }
}

/* p *= factor of the row; the sums of the columns. */
static void scale_rows(int64_t n, int64_t m, const slots *restrict factor, slots *restrict p,
                       slots *restrict column)
{
    clear(m, column);
    for (int64_t i = 0; i < n; i++, p += m)
        for (int64_t j = 0; j < m; j++)
            EACH
            {
                real x = p[j].x[s] * factor[i].x[s];
                p[j].x[s] = x;
                column[j].x[s] += x;
            }
}

/* p *= factor of the column; the sums of the rows. */
static void scale_columns(int64_t n, int64_t m, const slots *restrict factor, slots *restrict p,
                          slots *restrict row)
{
    for (int64_t i = 0; i < n; i++, p += m) {
        slots sum;
        EACH sum.x[s] = 0;
        for (int64_t j = 0; j < m; j++)
            EACH
            {
                real x = p[j].x[s] * factor[j].x[s];
                p[j].x[s] = x;
                sum.x[s] += x;
            }
        EACH row[i].x[s] = sum.x[s];
    }
}

static void shares(int64_t n, const slots *restrict mass, const slots *restrict sum,
                   slots *restrict factor)
{
    for (int64_t i = 0; i < n; i++)
        EACH factor[i].x[s] = share(mass[i].x[s], sum[i].x[s]);
}

static int64_t longer(int64_t rows, int64_t columns)
{
    return rows > columns ? rows : columns;
}

static void forward(bk_batch_block *k)
{
    slots row[BK_BATCH_MOST], column[BK_BATCH_MOST];
    int64_t stride = longer(k->rows, k->columns);
    first_rows(k, column, k->wild);
    for (int64_t t = 1; t < k->half_steps; t++) {
        slots *factor = (slots *)k->factor + t * stride;
        if (t % 2 == 0) {
            shares(k->rows, k->a, row, factor);
            scale_rows(k->rows, k->columns, factor, k->plan, column);
        } else {
            shares(k->columns, k->b, column, factor);
            scale_columns(k->rows, k->columns, factor, k->plan, row);
        }
    }
}

/* ---- backward: from the last half step to the first, the plan before each by division ---- */

static void seed(const bk_batch_block *k, slots *restrict ub, slots *restrict vb)
{
    const slots *restrict g = k->g, *restrict p = k->plan;
    slots *restrict ds = k->ds;
    clear(k->rows, ub);
    clear(k->columns, vb);
    for (int64_t i = 0; i < k->rows; i++)
        for (int64_t j = 0; j < k->columns; j++, g++, p++, ds++)
            EACH
            {
                real w =
                    p->x[s] != 0 ? g->x[s] * p->x[s] : 0; /* nothing is read where no mass is */
                ds->x[s] = w;
                ub[i].x[s] += w;
                vb[j].x[s] += w;
            }
}

/* ds -= diag(ub) R, vb -= R' ub with R = diag(1/a) p; then p /= factor. */
static void undo_rows(const bk_batch_block *k, const slots *restrict factor, slots *restrict ub,
                      slots *restrict vb)
{
    const slots *restrict a = k->a;
    slots *restrict p = k->plan, *restrict ds = k->ds, weight, back;
    for (int64_t i = 0; i < k->rows; i++, p += k->columns, ds += k->columns) {
        EACH weight.x[s] = share(ub[i].x[s], a[i].x[s]);
        EACH back.x[s] = factor ? share(1, factor[i].x[s]) : 1;
        for (int64_t j = 0; j < k->columns; j++)
            EACH
            {
                real x = p[j].x[s], r = x * weight.x[s];
                ds[j].x[s] -= r;
                vb[j].x[s] -= r;
                p[j].x[s] = x * back.x[s];
            }
        EACH ub[i].x[s] = 0;
    }
}

/* ds -= K diag(vb), ub -= K vb with K = p diag(1/b); then p /= factor. */
static void undo_columns(const bk_batch_block *k, const slots *restrict factor, slots *restrict ub,
                         slots *restrict vb)
{
    const slots *restrict b = k->b;
    slots *restrict p = k->plan, *restrict ds = k->ds;
    slots weight[BK_BATCH_MOST], back[BK_BATCH_MOST];
    for (int64_t j = 0; j < k->columns; j++) {
        EACH weight[j].x[s] = share(vb[j].x[s], b[j].x[s]);
        EACH back[j].x[s] = share(1, factor[j].x[s]);
    }
    for (int64_t i = 0; i < k->rows; i++, p += k->columns, ds += k->columns)
        for (int64_t j = 0; j < k->columns; j++)
            EACH
            {
                real x = p[j].x[s], r = x * weight[j].x[s];
                ds[j].x[s] -= r;
                ub[i].x[s] -= r;
                p[j].x[s] = x * back[j].x[s];
            }
    clear(k->columns, vb);
}

static void backward(const bk_batch_block *k)
{
    slots ub[BK_BATCH_MOST], vb[BK_BATCH_MOST];
    int64_t stride = longer(k->rows, k->columns), first = k->last_only ? k->half_steps - 1 : 0;
    seed(k, ub, vb);
    for (int64_t t = k->half_steps - 1; t >= first; t--) {
        const slots *factor = (const slots *)k->factor + t * stride;
        if (t % 2 == 0)
            undo_rows(k, t > 0 ? factor : NULL, ub, vb);
        else
            undo_columns(k, factor, ub, vb);
    }
}

/* ---- one problem: potentials, a vector runs along a row ---- */

static real largest(int64_t n, const real *x)
{
    real most = -(real)INFINITY;
    for (int64_t j = 0; j < n; j++)
        most = x[j] > most ? x[j] : most;
    return most;
}

/* The sum in eight chains, in a fixed order. */
static real sum_of(int64_t n, const real *x)
{
    real part[8] = {0};
    int64_t j = 0;
    for (; j + 8 <= n; j += 8)
        for (int c = 0; c < 8; c++)
            part[c] += x[j + c];
    for (int c = 0; j < n; j++, c++)
        part[c] += x[j];
    return ((part[0] + part[1]) + (part[2] + part[3])) +
           ((part[4] + part[5]) + (part[6] + part[7]));
}

/* u_i = log a_i - LSE_j(s_ij + v_j), and column_j = sum_i exp(s_ij + u_i + v_j), of which no term
 * exceeds a_i: a column step needs no maximum (transport in P-form). */
static void single_rows(const bk_batch_single *k, const real *v, real *u, real *column, real *e)
{
    const real *a = k->a, *log_a = k->log_a, *score = k->s;
    int64_t m = k->columns;
    for (int64_t j = 0; j < m; j++)
        column[j] = 0;
    for (int64_t i = 0; i < k->rows; i++, score += m) {
        for (int64_t j = 0; j < m; j++)
            e[j] = score[j] + v[j];
        real most = largest(m, e);
        for (int64_t j = 0; j < m; j++)
            e[j] = bk_exp_negative(e[j] - most);
        real sum = sum_of(m, e), part = a[i] / sum;
        u[i] = log_a[i] - most - bk_log(sum);
        for (int64_t j = 0; j < m; j++)
            column[j] += e[j] * part;
    }
}

/* v_j = log b_j - LSE_i(s_ij + u_i), shifted by the maximum. */
static void single_columns_shifted(const bk_batch_single *k, const real *u, real *v, real *most,
                                   real *sum)
{
    const real *score = k->s, *log_b = k->log_b;
    int64_t m = k->columns;
    for (int64_t j = 0; j < m; j++) {
        most[j] = -(real)INFINITY;
        sum[j] = 0;
    }
    for (int64_t i = 0; i < k->rows; i++)
        for (int64_t j = 0; j < m; j++) {
            real x = score[i * m + j] + u[i];
            most[j] = x > most[j] ? x : most[j];
        }
    for (int64_t i = 0; i < k->rows; i++)
        for (int64_t j = 0; j < m; j++)
            sum[j] += bk_exp_negative(score[i * m + j] + u[i] - most[j]);
    for (int64_t j = 0; j < m; j++)
        v[j] = log_b[j] - most[j] - bk_log(sum[j]);
}

static void single_columns(const bk_batch_single *k, const real *u, real *v, real *column, real *e)
{
    const real *log_b = k->log_b;
    bool lost = false;
    for (int64_t j = 0; j < k->columns; j++)
        lost = lost || !(column[j] >= LEAST_SUM);
    if (lost) {
        single_columns_shifted(k, u, v, column, e);
        return;
    }
    for (int64_t j = 0; j < k->columns; j++)
        v[j] += log_b[j] - bk_log(column[j]);
}

static void copy(int64_t n, const real *from, real *to)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = from[i];
}

static void single_plan(const bk_batch_single *k, const real *u, const real *v)
{
    const real *score = k->s;
    real *plan = k->plan;
    int64_t m = k->columns;
    for (int64_t i = 0; i < k->rows; i++)
        for (int64_t j = 0; j < m; j++)
            plan[i * m + j] = bk_exp(score[i * m + j] + u[i] + v[j]);
}

static void single_forward(const bk_batch_single *k)
{
    int64_t stride = longer(k->rows, k->columns);
    real *u = k->work, *v = u + k->rows, *column = v + k->columns, *e = column + k->columns;
    real *potential = k->potential;
    for (int64_t j = 0; j < k->columns; j++)
        v[j] = 0;
    for (int64_t t = 0; t < k->half_steps; t++, potential += stride)
        if (t % 2 == 0) {
            single_rows(k, v, u, column, e);
            copy(k->rows, u, potential);
        } else {
            single_columns(k, u, v, column, e);
            copy(k->columns, v, potential);
        }
    single_plan(k, u, v);
}

static void single_seed(const bk_batch_single *k, real *ub, real *vb)
{
    const real *g = k->g, *p = k->plan;
    real *ds = k->ds;
    int64_t m = k->columns;
    for (int64_t j = 0; j < m; j++)
        vb[j] = 0;
    for (int64_t i = 0; i < k->rows; i++, g += m, p += m, ds += m) {
        for (int64_t j = 0; j < m; j++) {
            ds[j] = g[j] * p[j];
            vb[j] += ds[j];
        }
        ub[i] = sum_of(m, ds);
    }
}

static void single_undo_rows(const bk_batch_single *k, const real *u, const real *v, real *ub,
                             real *vb)
{
    const real *score = k->s, *log_a = k->log_a;
    real *ds = k->ds;
    int64_t m = k->columns;
    for (int64_t i = 0; i < k->rows; i++, score += m, ds += m) {
        real shift = u[i] - log_a[i], weight = ub[i];
        for (int64_t j = 0; j < m; j++) {
            real r = bk_exp_negative(score[j] + (v ? v[j] : 0) + shift) * weight;
            ds[j] -= r;
            vb[j] -= r;
        }
        ub[i] = 0;
    }
}

static void single_undo_columns(const bk_batch_single *k, const real *u, const real *v, real *ub,
                                real *vb)
{
    const real *score = k->s, *log_b = k->log_b;
    real *ds = k->ds, *r = (real *)k->work + k->rows + k->columns;
    int64_t m = k->columns;
    for (int64_t i = 0; i < k->rows; i++, score += m, ds += m) {
        for (int64_t j = 0; j < m; j++) {
            r[j] = bk_exp_negative(score[j] + u[i] + v[j] - log_b[j]) * vb[j];
            ds[j] -= r[j];
        }
        ub[i] -= sum_of(m, r);
    }
    for (int64_t j = 0; j < m; j++)
        vb[j] = 0;
}

static void single_backward(const bk_batch_single *k)
{
    int64_t stride = longer(k->rows, k->columns), first = k->last_only ? k->half_steps - 1 : 0;
    real *ub = k->work, *vb = ub + k->rows;
    single_seed(k, ub, vb);
    for (int64_t t = k->half_steps - 1; t >= first; t--) {
        const real *made = (const real *)k->potential + t * stride, *other = made - stride;
        if (t % 2 == 0)
            single_undo_rows(k, made, t > 0 ? other : NULL, ub, vb);
        else
            single_undo_columns(k, other, made, ub, vb);
    }
}

const bk_batch_kernels BK_KERNEL(bk_batch_kernels) = {
    .forward = forward,
    .backward = backward,
    .single_forward = single_forward,
    .single_backward = single_backward,
};
