/* Gauge, residuals recomputed from the plan, values of the objective, potentials in cost units. */
#include "core/transport/internal.h"

#include <math.h>

/* Behind the column sums. */
enum {
    COST,       /* <C,P>, C as given */
    EXPONENT,   /* <P, log P> */
    LOG_B,      /* sum P log b */
    LOG_A,      /* sum r log a */
    MASS_P,     /* sum P */
    MASS_A,     /* sum a */
    RESIDUAL_A, /* sum |r - a| */
    A_U,        /* <a, u> */
    DUAL_A,     /* the rows' term of the dual */
    KL_A,       /* sum r log(r/a) - r + a */
    SUMS
};

/* u - log a in units of the penalty: rho (1 - exp(-f~/rho)) a, or f~ a when hard; over eps. */
static double dual_term(const bk_transport_working *w, int side, double mass, double relative)
{
    double rho = w->rho[side] * w->eta;
    return isinf(rho) ? mass * relative : -mass * rho * expm1(-relative / rho);
}

/* r log(r/a) - r + a, of r near a without cancellation: a great rho multiplies it. */
static double divergence(double r, double a)
{
    double d = (r - a) / a;
    if (fabs(d) < 0.5)
        return r * log1p(d) - a * d;
    return (r > 0.0 ? r * log(r / a) : 0.0) - r + a;
}

static void value_rows(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                       double *sum, double *buffer)
{
    double *row = buffer + 2 * w->columns, *extra = sum + w->columns;
    (void)context;
    for (int64_t i = first; i < last; i++) {
        const void *c = bk_transport_row(w, i, buffer);
        double moment[3] = {0}, r = 0.0, a = w->a[i];
        w->kernel->moments(w->columns, w->factor, c, w->v, w->u[i], w->log_b, row, moment);
        r = w->vector->sum(w->columns, row);
        w->kernel->accumulate(w->columns, 1.0, row, sum);
        extra[COST] += moment[0];
        extra[EXPONENT] += moment[1];
        extra[LOG_B] += moment[2];
        extra[LOG_A] += r * w->log_a[i];
        extra[MASS_P] += r;
        extra[MASS_A] += a;
        extra[RESIDUAL_A] += fabs(r - a);
        extra[A_U] += a * w->u[i];
        extra[DUAL_A] += dual_term(w, 0, a, w->u[i] - w->log_a[i]);
        extra[KL_A] += divergence(r, a);
    }
}

/* The columns' shares. */
typedef struct columns_part {
    double mass, residual, b_v, dual, kl;
} columns_part;

static columns_part columns_of(const bk_transport_working *w, const double *c)
{
    columns_part s = {0};
    for (int64_t j = 0; j < w->columns; j++) {
        s.mass += w->b[j];
        s.residual += fabs(c[j] - w->b[j]);
        s.b_v += w->b[j] * w->v[j];
        s.dual += dual_term(w, 1, w->b[j], w->v[j] - w->log_b[j]);
        s.kl += divergence(c[j], w->b[j]);
    }
    return s;
}

static double penalty(const bk_transport_working *w, int side, double divergence)
{
    return isinf(w->rho[side]) ? 0.0 : w->rho[side] * divergence;
}

static void values(bk_transport_working *w, const double *x, const columns_part *s)
{
    bk_transport_result *r = w->result;
    double unit = w->divisor, eps = unit / w->eta; /* in units of the cost as given */
    double overlap = x[MASS_A] * s->mass;
    r->residual_a = x[RESIDUAL_A];
    r->residual_b = s->residual;
    r->cost = x[COST];
    r->entropy = x[COST] + eps * x[EXPONENT];
    r->kl = x[COST] + eps * (x[EXPONENT] - x[LOG_A] - x[LOG_B] - x[MASS_P] + overlap) +
            unit * (penalty(w, 0, x[KL_A]) + penalty(w, 1, s->kl));
    r->dual = eps * (x[DUAL_A] + s->dual - x[MASS_P] + overlap);
    r->gap = r->kl - r->dual;
    r->epsilon = eps;
}

/* u + shift, v - shift with <a,u> = <b,v>. */
static void gauge(bk_transport_working *w, double a_u, double b_v, double mass)
{
    double shift = (b_v - a_u) / mass;
    if (!bk_transport_balanced(w) || !isfinite(shift))
        return;
    for (int64_t i = 0; i < w->rows; i++)
        w->u[i] += shift;
    for (int64_t j = 0; j < w->columns; j++)
        w->v[j] -= shift;
}

static void potentials(bk_transport_working *w)
{
    bk_transport_result *r = w->result;
    double eps = w->divisor / w->eta;
    r->f = BK_NEW(w->problem.arena, double, w->problem.rows);
    r->g = BK_NEW(w->problem.arena, double, w->problem.columns);
    for (int64_t i = 0; i < w->problem.rows; i++)
        r->f[i] = -INFINITY;
    for (int64_t j = 0; j < w->problem.columns; j++)
        r->g[j] = -INFINITY;
    for (int64_t i = 0; i < w->rows; i++)
        r->f[w->row[i]] = eps * w->u[i];
    for (int64_t j = 0; j < w->columns; j++)
        r->g[w->column[j]] = eps * w->v[j];
}

static bool values_finite(const bk_transport_result *r)
{
    return isfinite(r->residual_a) && isfinite(r->residual_b) && isfinite(r->kl) &&
           isfinite(r->dual);
}

void bk_transport_finish(bk_transport_working *w)
{
    double *sum = BK_NEW(w->problem.scratch, double, w->columns + SUMS), *x = sum + w->columns;
    bk_transport_sum(w, w->columns + SUMS, value_rows, NULL, sum);
    columns_part s = columns_of(w, sum);
    values(w, x, &s);
    gauge(w, x[A_U], s.b_v, x[MASS_A] + s.mass);
    potentials(w);
    w->result->half_steps = 2 * w->result->sweeps;
    if (!values_finite(w->result))
        w->result->status = BK_TRANSPORT_NOT_FINITE;
}
