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

/* ---- one problem: a vector runs along a row ----
 *
 * A half step normalises the very exponentials that it summed, so that its side is exact whatever
 * the size of the scores, whose rounding is in v:
 *   behind a row step     P_ij = row.part_i E_ij,  E_ij = exp(s_ij + v_j - row.shift_i)
 *   behind a column step  P_ij = row.part_i column.part_j exp(s_ij + v_j - row.shift_i -
 *                                                             column.shift_j)
 * with the v that the row step before it read.  Backward makes the same exponentials anew. */

/* What half step t left of its rows or columns, and the v that it reads. */
typedef struct single_step {
    const real *v;
    real *shift, *part;
} single_step;

static single_step step_at(const bk_batch_single *k, int64_t t)
{
    int64_t stride = longer(k->rows, k->columns);
    return (single_step){.v = (const real *)k->v + t / 2 * k->columns,
                         .shift = (real *)k->shift + t * stride,
                         .part = (real *)k->part + t * stride};
}

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

/* column_j = sum_i P_ij, of which no term exceeds a_i: a column step needs no shift of its own
 * (transport in P-form).  The last step leaves its plan. */
static void single_rows(const bk_batch_single *k, int64_t t, real *column, real *work)
{
    bool last = t == k->half_steps - 1;
    single_step r = step_at(k, t);
    const real *a = k->a, *score = k->s, *v = r.v;
    int64_t m = k->columns;
    for (int64_t j = 0; j < m; j++)
        column[j] = 0;
    for (int64_t i = 0; i < k->rows; i++, score += m) {
        real *e = last ? (real *)k->plan + i * m : work;
        for (int64_t j = 0; j < m; j++)
            e[j] = score[j] + v[j];
        real most = largest(m, e);
        for (int64_t j = 0; j < m; j++)
            e[j] = bk_exp_negative(e[j] - most);
        real part = a[i] / sum_of(m, e);
        for (int64_t j = 0; j < m; j++) {
            e[j] *= part;
            column[j] += e[j];
        }
        r.shift[i] = most;
        r.part[i] = part;
    }
}

/* Where columns are lost to underflow: each by its own largest exponent. */
static void single_columns_shifted(const bk_batch_single *k, const single_step *r, real *shift,
                                   real *sum)
{
    const real *score = k->s, *v = r->v;
    int64_t m = k->columns;
    for (int64_t j = 0; j < m; j++) {
        shift[j] = -(real)INFINITY;
        sum[j] = 0;
    }
    for (int64_t i = 0; i < k->rows; i++)
        for (int64_t j = 0; j < m; j++) {
            real x = score[i * m + j] + v[j] - r->shift[i];
            shift[j] = x > shift[j] ? x : shift[j];
        }
    for (int64_t i = 0; i < k->rows; i++)
        for (int64_t j = 0; j < m; j++)
            sum[j] +=
                r->part[i] * bk_exp_negative(score[i * m + j] + v[j] - r->shift[i] - shift[j]);
}

/* v_j += log b_j - log sum_i P_ij */
static void single_columns(const bk_batch_single *k, int64_t t, real *column)
{
    single_step r = step_at(k, t - 1), c = step_at(k, t);
    real *v = (real *)k->v + (t / 2 + 1) * k->columns;
    const real *b = k->b;
    bool lost = false;
    for (int64_t j = 0; j < k->columns; j++) {
        c.shift[j] = 0;
        lost = lost || !(column[j] >= LEAST_SUM);
    }
    if (lost)
        single_columns_shifted(k, &r, c.shift, column);
    for (int64_t j = 0; j < k->columns; j++) {
        c.part[j] = b[j] / column[j];
        v[j] = c.v[j] + (bk_log(c.part[j]) - c.shift[j]);
    }
}

/* to_j = exp(s_ij + v_j - row.shift_i - column.shift_j) of row i; no column step: c is NULL. */
static void single_line(const bk_batch_single *k, const single_step *r, const single_step *c,
                        int64_t i, real *to)
{
    const real *score = (const real *)k->s + i * k->columns, *v = r->v;
    real shift = r->shift[i];
    for (int64_t j = 0; j < k->columns; j++) {
        real x = score[j] + v[j] - shift;
        to[j] = bk_exp_negative(c ? x - c->shift[j] : x);
    }
}

static void single_columns_plan(const bk_batch_single *k)
{
    single_step r = step_at(k, k->half_steps - 2), c = step_at(k, k->half_steps - 1);
    real *plan = k->plan;
    for (int64_t i = 0; i < k->rows; i++, plan += k->columns) {
        single_line(k, &r, &c, i, plan);
        for (int64_t j = 0; j < k->columns; j++)
            plan[j] *= r.part[i] * c.part[j];
    }
}

static void single_forward(const bk_batch_single *k)
{
    real *column = k->work, *e = column + k->columns, *v = k->v;
    for (int64_t j = 0; j < k->columns; j++)
        v[j] = 0;
    for (int64_t t = 0; t < k->half_steps; t++)
        if (t % 2 == 0)
            single_rows(k, t, column, e);
        else
            single_columns(k, t, column);
    if (k->half_steps % 2 == 0)
        single_columns_plan(k);
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

/* ds -= diag(ub / a) P, vb -= P' (ub / a) with the plan behind row step t. */
static void single_undo_rows(const bk_batch_single *k, int64_t t, real *ub, real *vb, real *e)
{
    single_step r = step_at(k, t);
    const real *a = k->a;
    real *ds = k->ds;
    for (int64_t i = 0; i < k->rows; i++, ds += k->columns) {
        real weight = ub[i] / a[i] * r.part[i];
        single_line(k, &r, NULL, i, e);
        for (int64_t j = 0; j < k->columns; j++) {
            real x = e[j] * weight;
            ds[j] -= x;
            vb[j] -= x;
        }
        ub[i] = 0;
    }
}

/* ds -= P diag(vb / b), ub -= P (vb / b) with the plan behind column step t. */
static void single_undo_columns(const bk_batch_single *k, int64_t t, real *ub, real *vb, real *e)
{
    single_step r = step_at(k, t - 1), c = step_at(k, t);
    const real *b = k->b;
    real *ds = k->ds;
    int64_t m = k->columns;
    for (int64_t j = 0; j < m; j++)
        vb[j] = vb[j] / b[j] * c.part[j];
    for (int64_t i = 0; i < k->rows; i++, ds += m) {
        single_line(k, &r, &c, i, e);
        for (int64_t j = 0; j < m; j++) {
            e[j] *= r.part[i] * vb[j];
            ds[j] -= e[j];
        }
        ub[i] -= sum_of(m, e);
    }
    for (int64_t j = 0; j < m; j++)
        vb[j] = 0;
}

static void single_backward(const bk_batch_single *k)
{
    int64_t first = k->last_only ? k->half_steps - 1 : 0;
    real *ub = k->work, *vb = ub + k->rows, *e = vb + k->columns;
    single_seed(k, ub, vb);
    for (int64_t t = k->half_steps - 1; t >= first; t--)
        if (t % 2 == 0)
            single_undo_rows(k, t, ub, vb, e);
        else
            single_undo_columns(k, t, ub, vb, e);
}

const bk_batch_kernels BK_KERNEL(bk_batch_kernels) = {
    .forward = forward,
    .backward = backward,
    .single_forward = single_forward,
    .single_backward = single_backward,
};
