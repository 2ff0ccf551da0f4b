/* The plan of SinKD and the gradient of its loss with respect to the cost.  In the log domain:
 *   g^0 = 0;  f^n_i = -LSE_j(S_ij + g^(n-1)_j);  g^n_j = -LSE_i(S_ij + f^n_i);
 *   P = exp(S + f^N + g^N) */
#include "core/vector.h"
#include "losses/sinkd.h"

#include <math.h>
#include <string.h>

/* x = exp(S_i + f[n]_i + g[k]), or K_i f[n]_i g[k]. */
static void plan_row(const bk_sinkd *s, const bk_sinkhorn_block *b, int64_t i, int64_t n, int64_t k,
                     double *x)
{
    const double *g = s->g[k] + b->column;
    const double *row = (s->direct ? s->kernel[b - s->block] : b->s) + i * b->columns;
    double f = s->f[n][b->first + i];
    for (int64_t j = 0; j < b->columns; j++)
        x[j] = s->direct ? row[j] * f * g[j] : row[j] + f + g[j];
    if (!s->direct)
        bk_exp_f64(b->columns, x, x);
}

void bk_sinkd_plan_row(const bk_sinkd *s, const bk_sinkhorn_block *b, int64_t i, double *x)
{
    plan_row(s, b, i, s->iterations, s->iterations, x);
}

/* ---- forward ---- */

/* fmax leaves a NaN out, so that all ranks see the same number and stop alike. */
double bk_sinkd_row_violation(bk_tape *t, const bk_sinkd *s)
{
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    double worst = 0.0, *x = BK_NEW(t->scratch, double, s->columns);
    for (int64_t k = 0; k < s->blocks; k++)
        for (int64_t i = 0; i < s->block[k].rows; i++) {
            bk_sinkd_plan_row(s, &s->block[k], i, x);
            worst = fmax(worst, fabs(bk_vector(BK_F64)->sum(s->block[k].columns, x) - 1.0));
        }
    bk_reduce_max(bk_comm_reducer(s->args.comm), 1, &worst);
    bk_arena_release(t->scratch, mark);
    return worst;
}

/* True for a column that other ranks add to. */
static bool is_sent(const bk_sinkd *s, int64_t j)
{
    return s->shared && s->message->place[j] >= 0;
}

/* Columns of this rank alone whose sum underflowed. */
static bool own_sunk(const bk_sinkd *s, const double *sum)
{
    for (int64_t j = 0; j < s->columns; j++)
        if (!is_sent(s, j) && sum[j] < BK_SINKD_LEAST)
            return true;
    return false;
}

/* The columns of this rank alone, again, with a maximum. */
static void shift_own(const bk_sinkd *s, const double *f, double *g)
{
    bk_arena_mark mark = bk_arena_get_mark(s->problem.scratch);
    double *shifted = BK_NEW(s->problem.scratch, double, s->columns);
    bk_sinkhorn alone = s->problem;
    alone.reducer = NULL;
    bk_sinkhorn_shifted_columns(&alone, f, shifted);
    for (int64_t j = 0; j < s->columns; j++)
        g[j] = is_sent(s, j) ? g[j] : shifted[j];
    bk_arena_release(s->problem.scratch, mark);
}

/* g holds column sums: g <- before - log(sums), or with a maximum where a sum underflows.  All
 * ranks hold the same sums of what they share, so they decide alike. */
static void column_step(const bk_sinkd *s, const double *f, const double *before, double *g)
{
    bool own = own_sunk(s, g);
    if (s->shared && s->message->sunk) {
        bk_sinkhorn_shifted_columns(&s->problem, f, g);
        return;
    }
    bk_log_f64(s->columns, g, g);
    for (int64_t j = 0; j < s->columns; j++)
        g[j] = before[j] - g[j];
    if (own)
        shift_own(s, f, g);
}

static void log_step(const bk_sinkd *s, int64_t n)
{
    bk_sinkhorn_sweep(&s->problem, s->g[n - 1], s->f[n], s->g[n], NULL);
    column_step(s, s->f[n], s->g[n - 1], s->g[n]);
}

static bool is_direct(const bk_sinkd *s)
{
    const bk_sinkd_config *c = s->config;
    return c->solver == BK_SINKD_SINKHORN &&
           (c->domain == BK_SINKD_DIRECT ||
            (c->domain == BK_SINKD_AUTO &&
             c->epsilon >= bk_sinkd_direct_bound(s->args.logits->dtype)));
}

void bk_sinkd_make_plan(bk_tape *t, bk_sinkd *s)
{
    const bk_sinkd_config *c = s->config;
    s->direct = is_direct(s);
    s->f = BK_NEW(t->arena, double *, c->iterations + 1);
    s->g = BK_NEW(t->arena, double *, c->iterations + 1);
    s->g[0] = BK_NEW(t->arena, double, s->columns);
    for (int64_t j = 0; j < s->columns; j++)
        s->g[0][j] = s->direct ? 1.0 : 0.0;
    if (c->solver == BK_SINKD_NEWTON) {
        bk_sinkd_newton(t, s);
        return;
    }
    if (s->direct)
        bk_sinkd_make_kernel(t, s);
    while (s->total > 0 && s->iterations < c->iterations) {
        int64_t n = ++s->iterations;
        s->f[n] = BK_NEW(t->arena, double, s->rows);
        s->g[n] = BK_NEW(t->arena, double, s->columns);
        if (s->direct)
            bk_sinkd_direct_step(t, s, n);
        else
            log_step(s, n);
        if (c->tolerance > 0 && bk_sinkd_row_violation(t, s) <= c->tolerance)
            return;
    }
}

/* ---- backward ---- */

/* Vectors of the reverse sweep. */
typedef struct sweep {
    double *rows;    /* [rows] adjoint of f[n] */
    double *columns; /* [columns] adjoint of g[n], the same on all ranks */
    double *local;   /* [m,columns] own share of the next `columns`, by lane */
    double *x;       /* [columns] one row of a plan */
} sweep;

static double *lane_share(const bk_sinkd *s, const sweep *w, const bk_sinkhorn_block *b, int64_t i)
{
    return w->local + bk_sinkhorn_lane(&s->problem, b->first + i) * s->columns + b->column;
}

static void clear_shares(const bk_sinkd *s, const sweep *w)
{
    memset(w->local, 0, (size_t)(s->problem.lanes->count * s->columns) * sizeof *w->local);
}

/* At n = N: rows_i = sum_j P_ij C_ij, columns_j = sum_i P_ij C_ij. */
static void start_sweep(const bk_sinkd *s, const sweep *w)
{
    clear_shares(s, w);
    for (int64_t k = 0; k < s->blocks; k++) {
        const bk_sinkhorn_block *b = &s->block[k];
        for (int64_t i = 0; i < b->rows; i++) {
            double *to = lane_share(s, w, b, i), sum = 0.0;
            bk_sinkd_plan_row(s, b, i, w->x);
            for (int64_t j = 0; j < b->columns; j++) {
                double part = w->x[j] * bk_sinkd_cost(s, b->s[i * b->columns + j]);
                to[j] += part;
                sum += part;
            }
            w->rows[b->first + i] = sum;
        }
    }
    bk_sinkhorn_sum(&s->problem, s->columns, w->local, w->columns);
}

/* One row back through the column step and the row step of iteration n; adjoint = its row of G. */
static void reverse_row(const bk_sinkd *s, const sweep *w, const bk_sinkhorn_block *b, int64_t i,
                        int64_t n, double *adjoint)
{
    const double *columns = w->columns + b->column;
    double scale = 1.0 / s->config->epsilon, sum = 0.0, *x = w->x, *to = lane_share(s, w, b, i);
    plan_row(s, b, i, n, n, x); /* columns sum to 1 */
    for (int64_t j = 0; j < b->columns; j++) {
        adjoint[j] += x[j] * columns[j] * scale;
        sum += x[j] * columns[j];
    }
    double f = w->rows[b->first + i] - sum;
    plan_row(s, b, i, n, n - 1, x); /* rows sum to 1 */
    for (int64_t j = 0; j < b->columns; j++) {
        adjoint[j] += x[j] * f * scale;
        to[j] -= x[j] * f;
    }
    w->rows[b->first + i] = 0.0; /* f[n-1] acts through g[n-1] alone */
}

/* Adds to G what flows through all 2N normalisations. */
static void unroll(bk_tape *t, const bk_sinkd *s, double *const *adjoint)
{
    sweep w = {.rows = BK_NEW(t->scratch, double, s->rows),
               .columns = BK_NEW(t->scratch, double, s->columns),
               .local = BK_NEW(t->scratch, double, t->lanes.count * s->columns),
               .x = BK_NEW(t->scratch, double, s->columns)};
    start_sweep(s, &w);
    if (s->direct) {
        bk_sinkd_direct_unroll(t, s, w.rows, w.columns, adjoint);
        return;
    }
    for (int64_t n = s->iterations; n >= 1; n--) {
        clear_shares(s, &w);
        for (int64_t k = 0; k < s->blocks; k++) {
            const bk_sinkhorn_block *b = &s->block[k];
            for (int64_t i = 0; i < b->rows; i++)
                reverse_row(s, &w, b, i, n, adjoint[k] + i * b->columns);
        }
        if (n > 1) /* g[0] is constant */
            bk_sinkhorn_sum(&s->problem, s->columns, w.local, w.columns);
    }
}

/* One block of P (envelope, implicit by sweeps), of P (1 - C/epsilon) (unrolled), or of zeros
 * (implicit by Newton). */
static double *start_adjoint(bk_tape *t, const bk_sinkd *s, const bk_sinkhorn_block *b)
{
    double *adjoint = BK_ZNEW(t->scratch, double, b->rows * b->columns);
    bool zeros = s->config->gradient == BK_SINKD_IMPLICIT && s->solution;
    for (int64_t i = 0; !zeros && i < b->rows; i++)
        bk_sinkd_plan_row(s, b, i, adjoint + i * b->columns);
    for (int64_t i = 0; s->config->gradient == BK_SINKD_UNROLLED && i < b->rows * b->columns; i++)
        adjoint[i] *= 1.0 + b->s[i];
    return adjoint;
}

double *const *bk_sinkd_plan_back(bk_tape *t, const bk_sinkd *s)
{
    double **adjoint = BK_NEW(t->scratch, double *, s->blocks + 1);
    for (int64_t k = 0; k < s->blocks; k++)
        adjoint[k] = start_adjoint(t, s, &s->block[k]);
    if (s->config->gradient == BK_SINKD_UNROLLED)
        unroll(t, s, adjoint);
    else if (s->config->gradient == BK_SINKD_IMPLICIT && s->solution)
        bk_sinkd_newton_back(t, s, adjoint);
    else if (s->config->gradient == BK_SINKD_IMPLICIT)
        bk_sinkd_implicit(t, s, adjoint);
    return adjoint;
}
