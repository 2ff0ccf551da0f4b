/* Gradients of a solution with respect to the cost and the marginals.
 *
 * envelope: the value is an optimum, so only its explicit dependence counts.  implicit: the
 * optimality conditions are differentiated, one solve with the matrix of a Newton step.  unrolled:
 * back through the sweeps as they were run, from the potentials that the solve recorded. */
#include "core/transport/internal.h"

#include <math.h>
#include <string.h>

/* One call.  Arrays over rows and columns with mass. */
typedef struct backward {
    const bk_transport_adjoint *adjoint;
    bk_transport_point *point;
    double eps;         /* of the cost as given */
    double row, column; /* rho of the sides in those units; 0 = hard: no term in the value */
    double *s;          /* [rows,columns] dL/dS */
    double *u, *v;      /* dL/du [rows], dL/dv [columns] */
    double *a, *b;      /* dL/da, dL/db, or with respect to their logarithms while unrolling */
    const double *u_next, *v_before; /* potentials around the sweep that is unrolled */
} backward;

/* ---- which gradient ---- */

static bool is_converged(const bk_transport_working *w)
{
    return w->result->status == BK_TRANSPORT_CONVERGED;
}

/* The optimum's own value: kl; balanced, entropy differs from it by a constant of a and b. */
static bool has_envelope(const bk_transport_working *w, const bk_transport_adjoint *adjoint)
{
    return !adjoint->plan && (w->config.value == BK_VALUE_KL ||
                              (w->config.value == BK_VALUE_ENTROPY && bk_transport_balanced(w)));
}

static int choose(const bk_transport_working *w, const bk_transport_adjoint *adjoint)
{
    if (w->config.gradient != BK_GRADIENT_AUTO)
        return w->config.gradient;
    if (is_converged(w))
        return has_envelope(w, adjoint) ? BK_GRADIENT_ENVELOPE : BK_GRADIENT_IMPLICIT;
    return BK_GRADIENT_UNROLLED;
}

static bk_status refuse(const bk_transport_working *w, const bk_transport_adjoint *adjoint,
                        int kind)
{
    const char *status = bk_transport_status_name(w->result->status);
    if (kind == BK_GRADIENT_ENVELOPE && !has_envelope(w, adjoint))
        return bk_fail(BK_USAGE, "gradient=envelope is that of value=kl, or value=entropy of a "
                                 "balanced problem, alone (transport): use implicit");
    if (kind == BK_GRADIENT_UNROLLED && !w->record)
        return bk_fail(BK_USAGE,
                       "the solve ended as %s and can only be differentiated when "
                       "converged (transport): allow more iterations",
                       status);
    if (kind != BK_GRADIENT_UNROLLED && !is_converged(w))
        return bk_fail(BK_USAGE,
                       "gradient=%s needs a converged solve, this one ended as %s "
                       "(transport): allow more iterations%s",
                       kind == BK_GRADIENT_ENVELOPE ? "envelope" : "implicit", status,
                       w->config.debias ? "" : ", or use gradient=unrolled");
    return BK_OK;
}

/* ---- between the problem's places and those with mass ---- */

static double *out_row(const bk_transport_working *w, const bk_transport_adjoint *adjoint,
                       int64_t i)
{
    return adjoint->cost + w->row[i] * w->problem.columns;
}

/* P_ij at a point that may be scaled. */
static double plan_at(const bk_transport_working *w, const bk_transport_point *p, int64_t i,
                      int64_t j)
{
    double x = p->plan[i * w->columns + j];
    return p->scaled ? x * sqrt(p->diagonal[i]) : x;
}

/* ---- dL/dP ---- */

/* d value / dP_ij for P_ij > 0. */
static double value_slope(const bk_transport_working *w, const backward *k, int64_t i, int64_t j,
                          double cost)
{
    const bk_transport_point *p = k->point;
    double exponent = p->u[i] + p->v[j] - w->factor * cost;
    if (w->config.value == BK_VALUE_COST)
        return cost;
    if (w->config.value == BK_VALUE_ENTROPY)
        return cost + k->eps * (exponent + 1.0);
    double slope = cost + k->eps * (exponent - w->log_a[i] - w->log_b[j]);
    if (k->row > 0.0)
        slope += k->row * log(p->r[i] / w->a[i]);
    return k->column > 0.0 ? slope + k->column * log(p->c[j] / w->b[j]) : slope;
}

/* G[columns] of row i, values included; 0 where the plan is 0. */
static void slopes_of_row(const bk_transport_working *w, const backward *k, int64_t i, double *g,
                          double *buffer)
{
    const double *c = bk_transport_row_f64(w, i, buffer), *plan = k->adjoint->plan;
    for (int64_t j = 0; j < w->columns; j++) {
        g[j] = 0.0;
        if (plan_at(w, k->point, i, j) == 0.0)
            continue;
        if (plan)
            g[j] = plan[w->row[i] * w->problem.columns + w->column[j]];
        if (k->adjoint->value != 0.0)
            g[j] += k->adjoint->value * value_slope(w, k, i, j, c[j]);
    }
}

/* W = G P into s; u = W 1, sum = W' 1. */
static void weigh_rows(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                       double *sum, double *buffer)
{
    const backward *k = context;
    double *g = buffer + 2 * w->columns;
    for (int64_t i = first; i < last; i++) {
        double *s = k->s + i * w->columns;
        slopes_of_row(w, k, i, g, buffer);
        k->u[i] = 0.0;
        for (int64_t j = 0; j < w->columns; j++) {
            s[j] = g[j] * plan_at(w, k->point, i, j);
            k->u[i] += s[j];
            sum[j] += s[j];
        }
    }
}

static backward open_backward(bk_transport_working *w, const bk_transport_adjoint *adjoint,
                              bool scaled)
{
    bk_arena *scratch = w->problem.scratch;
    double unit = w->divisor;
    backward k = {.adjoint = adjoint,
                  .point = bk_transport_point_new(w, scaled),
                  .eps = 1.0 / w->factor,
                  .row = isinf(w->rho[0]) ? 0.0 : w->rho[0] * unit,
                  .column = isinf(w->rho[1]) ? 0.0 : w->rho[1] * unit,
                  .s = BK_NEW(scratch, double, w->rows * w->columns),
                  .u = BK_NEW(scratch, double, w->rows),
                  .v = BK_NEW(scratch, double, w->columns),
                  .a = BK_ZNEW(scratch, double, w->rows),
                  .b = BK_ZNEW(scratch, double, w->columns)};
    memcpy(k.point->u, w->u, (size_t)w->rows * sizeof(double));
    memcpy(k.point->v, w->v, (size_t)w->columns * sizeof(double));
    bk_transport_evaluate(w, k.point);
    return k;
}

/* ---- explicit terms, and what is handed out ---- */

static double mass_of_rows(bk_transport_working *w, const double *x)
{
    const bk_lanes *lanes = w->problem.lanes;
    double *local = BK_ZNEW(w->problem.scratch, double, lanes->count), sum;
    for (int64_t l = 0; l < lanes->count; l++)
        for (int64_t i = w->lane_row[l]; i < w->lane_row[l + 1]; i++)
            local[l] += x ? x[i] : 1.0;
    bk_reduce_vector(w->problem.reducer, lanes, 1, local, &sum, w->problem.scratch);
    return sum;
}

/* kl depends on a and b beside the plan. */
static void add_explicit(bk_transport_working *w, backward *k)
{
    double value = k->adjoint->value, mass_a = mass_of_rows(w, w->a), mass_b = w->mass;
    if (value == 0.0 || w->config.value != BK_VALUE_KL)
        return;
    for (int64_t i = 0; i < w->rows; i++) {
        double share = k->point->r[i] / w->a[i];
        k->a[i] += value * (k->eps * (mass_b - share) + k->row * (1.0 - share));
    }
    for (int64_t j = 0; j < w->columns; j++) {
        double share = k->point->c[j] / w->b[j];
        k->b[j] += value * (k->eps * (mass_a - share) + k->column * (1.0 - share));
    }
}

/* Balanced: marginals live on simplices, their gradients sum to zero. */
static void project(bk_transport_working *w, backward *k)
{
    if (!bk_transport_balanced(w))
        return;
    double rows = mass_of_rows(w, NULL), mean = mass_of_rows(w, k->a) / rows, mean_b = 0.0;
    for (int64_t i = 0; i < w->rows; i++)
        k->a[i] -= mean;
    for (int64_t j = 0; j < w->columns; j++)
        mean_b += k->b[j] / (double)w->columns;
    for (int64_t j = 0; j < w->columns; j++)
        k->b[j] -= mean_b;
}

static void hand_out(bk_transport_working *w, backward *k)
{
    project(w, k);
    for (int64_t i = 0; k->adjoint->a && i < w->rows; i++)
        k->adjoint->a[w->row[i]] += k->a[i];
    for (int64_t j = 0; k->adjoint->b && j < w->columns; j++)
        k->adjoint->b[w->column[j]] += k->b[j];
}

/* dL/dC = -(1/eps) dL/dS + w P. */
static void hand_out_cost(bk_transport_working *w, const backward *k)
{
    for (int64_t i = 0; k->adjoint->cost && i < w->rows; i++) {
        double *out = out_row(w, k->adjoint, i);
        for (int64_t j = 0; j < w->columns; j++)
            out[w->column[j]] += k->adjoint->value * plan_at(w, k->point, i, j) -
                                 w->factor * k->s[i * w->columns + j];
    }
}

/* ---- envelope ---- */

/* d kl / da of one side at fixed potentials, without the explicit terms that it shares with the
 * others: f~ where hard, rho (1 - exp(-f~/rho)) where soft. */
static double dual_slope(double relative, double rho)
{
    return rho > 0.0 ? -rho * expm1(-relative / rho) : relative;
}

static void envelope(bk_transport_working *w, const bk_transport_adjoint *adjoint)
{
    backward k = open_backward(w, adjoint, false);
    bool kl = w->config.value == BK_VALUE_KL;
    double value = adjoint->value, soft_row = k.row, soft_column = k.column;
    memset(k.s, 0, (size_t)(w->rows * w->columns) * sizeof(double));
    k.row = k.column = 0.0; /* the penalties are in dual_slope */
    for (int64_t i = 0; i < w->rows; i++)
        k.a[i] = value * dual_slope(k.eps * (w->u[i] - (kl ? w->log_a[i] : 0.0)), soft_row);
    for (int64_t j = 0; j < w->columns; j++)
        k.b[j] = value * dual_slope(k.eps * (w->v[j] - (kl ? w->log_b[j] : 0.0)), soft_column);
    add_explicit(w, &k);
    hand_out_cost(w, &k);
    hand_out(w, &k);
}

/* ---- implicit ---- */

/* t (1 + eps/rho) / mass: what a unit of the multiplier moves a marginal's gradient by. */
static double share(double target, double mass, double soft)
{
    return target * (1.0 + soft) / mass;
}

static bk_status implicit(bk_transport_working *w, const bk_transport_adjoint *adjoint)
{
    bk_arena *scratch = w->problem.scratch;
    backward k = open_backward(w, adjoint, true);
    double *alpha = BK_NEW(scratch, double, w->rows), *beta = BK_NEW(scratch, double, w->columns);
    double soft_row = k.row > 0.0 ? k.eps / k.row : 0.0,
           soft_column = k.column > 0.0 ? k.eps / k.column : 0.0;
    bk_transport_sum(w, w->columns, weigh_rows, &k, k.v);
    if (!bk_transport_newton_solve(w, k.point, k.u, k.v, alpha, beta))
        return bk_fail(BK_FAULT, "the matrix of the implicit gradient is singular (transport): the "
                                 "plan falls apart; use gradient=unrolled or a larger epsilon");
    for (int64_t i = 0; i < w->rows; i++)
        for (int64_t j = 0; j < w->columns; j++)
            k.s[i * w->columns + j] -= plan_at(w, k.point, i, j) * (alpha[i] + beta[j]);
    for (int64_t i = 0; i < w->rows; i++)
        k.a[i] = alpha[i] * share(k.point->target[i], w->a[i], soft_row);
    for (int64_t j = 0; j < w->columns; j++)
        k.b[j] = beta[j] * share(k.point->target_b[j], w->b[j], soft_column);
    add_explicit(w, &k);
    hand_out_cost(w, &k);
    hand_out(w, &k);
    return BK_OK;
}

/* ---- unrolled ---- */

/* Row i through the column step and the row step of one sweep; sum += R' u. */
static void unroll_rows(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                        double *sum, double *buffer)
{
    const backward *k = context;
    const bk_transport_kernels *kernel = bk_transport_kernels_of(BK_F64);
    double kappa_a = bk_transport_kappa(w, 0), kappa_b = bk_transport_kappa(w, 1);
    double *x = buffer + 2 * w->columns;
    for (int64_t i = first; i < last; i++) {
        const double *c = bk_transport_row_f64(w, i, buffer);
        double *s = k->s + i * w->columns;
        kernel->plan(w->columns, w->factor, c, k->point->v, k->u_next[i], x);
        for (int64_t j = 0; j < w->columns; j++) {
            double flow = kappa_b * x[j] * k->v[j];
            s[j] -= flow;
            k->u[i] -= flow;
        }
        kernel->plan(w->columns, w->factor, c, k->v_before, (k->u_next[i] - w->log_a[i]) / kappa_a,
                     x);
        for (int64_t j = 0; j < w->columns; j++) {
            double flow = kappa_a * k->u[i] * x[j];
            s[j] -= flow;
            sum[j] -= flow;
        }
        k->a[i] += k->u[i];
        k->u[i] = 0.0;
    }
}

static void unroll(bk_transport_working *w, const bk_transport_adjoint *adjoint)
{
    backward k = open_backward(w, adjoint, false);
    double *fresh = BK_NEW(w->problem.scratch, double, w->columns),
           *start = BK_ZNEW(w->problem.scratch, double, w->columns);
    double *exponent = k.point->v, kappa_b = bk_transport_kappa(w, 1);
    bk_transport_sum(w, w->columns, weigh_rows, &k, k.v);
    double *plan_v = BK_NEW(w->problem.scratch, double, w->columns);
    memcpy(plan_v, exponent, (size_t)w->columns * sizeof(double));
    for (const bk_transport_record *t = w->last; t; t = t->before) {
        k.u_next = t->u;
        k.v_before = t->before ? t->before->v : start;
        for (int64_t j = 0; j < w->columns; j++) {
            k.b[j] += k.v[j];
            exponent[j] = (t->v[j] - w->log_b[j]) / kappa_b;
        }
        bk_transport_sum(w, w->columns, unroll_rows, &k, fresh);
        memcpy(k.v, fresh, (size_t)w->columns * sizeof(double));
    }
    memcpy(exponent, plan_v, (size_t)w->columns * sizeof(double));
    for (int64_t i = 0; i < w->rows; i++)
        k.a[i] /= w->a[i];
    for (int64_t j = 0; j < w->columns; j++)
        k.b[j] /= w->b[j];
    add_explicit(w, &k);
    hand_out_cost(w, &k);
    hand_out(w, &k);
}

/* ---- all of them ---- */

bk_status bk_transport_gradient(const bk_transport_result *result,
                                const bk_transport_adjoint *adjoint)
{
    bk_transport_working *w = result->working;
    bk_arena_mark mark = bk_arena_get_mark(w->problem.scratch);
    bk_status status = BK_OK;
    int kind = choose(w, adjoint);
    BK_TRY(refuse(w, adjoint, kind));
    if (kind == BK_GRADIENT_ENVELOPE)
        envelope(w, adjoint);
    else if (kind == BK_GRADIENT_IMPLICIT)
        status = implicit(w, adjoint);
    else
        unroll(w, adjoint);
    bk_arena_release(w->problem.scratch, mark);
    return status;
}
