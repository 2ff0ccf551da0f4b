#include "core/transport/divergence.h"

#include "core/transport/internal.h"

#include <math.h>
#include <string.h>

struct bk_divergence_self {
    bk_transport problem; /* a against a, b against b */
    bk_transport_result result;
    bk_lanes lanes;
};

/* ---- everything on every rank ---- */

/* x[rows,width] of all ranks in `dtype`: the sum of zeros and one's own, exact. */
static void *replicate(const bk_transport *p, bk_dtype dtype, int64_t width, const void *x)
{
    bk_arena *scratch = p->scratch;
    int64_t n = p->total * width, first = bk_lanes_first_sample(p->lanes) * width;
    void *all = bk_arena_alloc(p->arena, (size_t)n * bk_dtype_size(dtype));
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    double *own = BK_ZNEW(scratch, double, n), *sum = BK_NEW(scratch, double, n);
    for (int64_t i = 0; i < p->rows * width; i++)
        own[first + i] = bk_real_get(dtype, x, i);
    bk_transport_sum_ranks(p, n, own, sum);
    for (int64_t i = 0; i < n; i++)
        bk_real_put(dtype, all, i, sum[i]);
    bk_arena_release(scratch, mark);
    return all;
}

static bk_transport rows_with_themselves(const bk_transport *p)
{
    bk_transport self = *p;
    self.columns = p->total;
    self.y = replicate(p, p->dtype, p->width, p->x);
    self.b = p->a ? replicate(p, BK_F64, 1, p->a) : NULL;
    return self;
}

/* marginals=ones: n/m for each column, not 1; NULL where the problem's own masses hold. */
static const double *masses_of_ones(const bk_transport *p, const bk_transport_config *config)
{
    if (config->marginals != BK_MARGINALS_ONES)
        return NULL;
    double *b = BK_NEW(p->arena, double, p->columns);
    for (int64_t j = 0; j < p->columns; j++)
        b[j] = (double)p->total / (double)p->columns;
    return b;
}

/* Solved by every rank for itself. */
static bk_transport columns_with_themselves(const bk_transport *p, const double *ones,
                                            bk_lanes *lanes)
{
    bk_transport self = *p;
    int64_t blocks = bk_transport_blocks(p->columns);
    *lanes = (bk_lanes){.total = blocks, .count = blocks, .batch = p->columns};
    self.total = self.rows = p->columns;
    self.x = p->y;
    self.a = self.b = ones ? ones : p->b;
    self.lanes = lanes;
    self.reducer = NULL;
    return self;
}

/* ---- OT(a,a): u <- (u + log a - kappa LSE(S + u)) / 2 ---- */

typedef struct halving {
    double *change; /* [rows] |du| */
} halving;

static void halve_rows(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                       double *sum, double *buffer)
{
    const halving *h = context;
    double kappa = bk_transport_kappa(w, 0);
    (void)sum;
    for (int64_t i = first; i < last; i++) {
        double total, lse = bk_transport_row_lse(w, i, buffer, &total);
        w->next_u[i] = 0.5 * (w->u[i] + w->log_a[i] - kappa * lse);
        h->change[i] = fabs(w->next_u[i] - w->u[i]);
    }
}

/* v[columns] = the u of all ranks. */
static void share(bk_transport_working *w)
{
    const bk_lanes *lanes = w->problem.lanes;
    bk_arena *scratch = w->problem.scratch;
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    double *own = BK_ZNEW(scratch, double, w->columns);
    int64_t first = bk_lanes_first_sample(lanes), column = 0;
    for (int64_t i = 0; i < w->rows; i++) {
        while (w->column[column] < first + w->row[i])
            column++;
        own[column] = w->next_u[i];
    }
    bk_transport_sum_ranks(&w->problem, w->columns, own, w->next_v);
    bk_arena_release(scratch, mark);
}

static double greatest(bk_transport_working *w, const double *change)
{
    double most = 0.0;
    for (int64_t i = 0; i < w->rows; i++)
        most = change[i] > most || isnan(change[i]) ? change[i] : most;
    if (isnan(most))
        most = INFINITY;
    bk_reduce_max(w->problem.reducer, 1, &most);
    return most;
}

static bk_transport_status iterate(bk_transport_working *w, int64_t *iterations)
{
    halving h = {BK_NEW(w->problem.scratch, double, w->rows)};
    while (*iterations < w->config.iterations) {
        bk_transport_sum(w, 0, halve_rows, &h, NULL);
        double change = greatest(w, h.change);
        if (!isfinite(change))
            return BK_TRANSPORT_NOT_FINITE;
        share(w);
        bk_transport_accept(w);
        ++*iterations;
        if (change <= w->config.tolerance)
            return BK_TRANSPORT_CONVERGED;
    }
    return w->config.tolerance == 0.0 ? BK_TRANSPORT_FIXED : BK_TRANSPORT_MAX_ITERATIONS;
}

static bk_status solve_self(const bk_transport *problem, const bk_transport_config *config,
                            struct bk_divergence_self *self, int64_t *iterations)
{
    bk_transport_working *w = bk_transport_open(problem, config, &self->result);
    bk_arena_mark mark = bk_arena_get_mark(problem->scratch);
    bk_status status = bk_transport_prepare(w);
    if (status == BK_OK) {
        self->result.status = iterate(w, iterations);
        bk_transport_finish(w);
    }
    bk_arena_release(problem->scratch, mark);
    return status;
}

/* ---- the divergence ---- */

static double mass(const bk_transport_result *r)
{
    return r->working->mass; /* of the columns */
}

static void combine(const bk_transport *p, bk_divergence_result *r)
{
    const bk_transport_result *aa = &r->self[0].result, *bb = &r->self[1].result;
    double excess = mass(aa) - mass(bb);
    r->value = r->between.dual - 0.5 * (aa->dual + bb->dual);
    if (!bk_transport_balanced(r->between.working))
        r->value += 0.5 * r->between.epsilon * excess * excess;
    r->f = BK_NEW(p->arena, double, p->rows);
    r->g = BK_NEW(p->arena, double, p->columns);
    for (int64_t i = 0; i < p->rows; i++)
        r->f[i] = isinf(aa->f[i]) ? -INFINITY : r->between.f[i] - aa->f[i];
    for (int64_t j = 0; j < p->columns; j++)
        r->g[j] = isinf(bb->f[j]) ? -INFINITY : r->between.g[j] - bb->f[j];
    r->converged = r->between.status <= BK_TRANSPORT_FIXED && aa->status <= BK_TRANSPORT_FIXED &&
                   bb->status <= BK_TRANSPORT_FIXED;
}

bk_status bk_divergence_solve(const bk_transport *problem, const bk_transport_config *config,
                              bk_divergence_result *result)
{
    BK_ASSERT(!problem->cost, "a divergence of a cost matrix");
    bk_transport_config own = *config;
    own.debias = true;
    own.value = BK_VALUE_KL;
    own.gradient = BK_GRADIENT_ENVELOPE;
    *result = (bk_divergence_result){.self = BK_ZNEW(problem->arena, struct bk_divergence_self, 2)};
    struct bk_divergence_self *aa = &result->self[0], *bb = &result->self[1];
    BK_TRY(bk_transport_solve(problem, &own, &result->between));
    own.method = BK_TRANSPORT_SINKHORN; /* halvings are sweeps, by number */
    aa->problem = rows_with_themselves(problem);
    const double *ones = masses_of_ones(problem, config);
    bb->problem = columns_with_themselves(problem, ones, &bb->lanes);
    BK_TRY(solve_self(&aa->problem, &own, aa, &result->self_iterations[0]));
    own.marginals = ones ? BK_MARGINALS_GIVEN : own.marginals;
    BK_TRY(solve_self(&bb->problem, &own, bb, &result->self_iterations[1]));
    combine(problem, result);
    return BK_OK;
}

/* ---- gradient ---- */

/* Adds weight dOT of one solution to points and masses.  OT(a,a)/2 depends on a on both sides
 * alike: it goes through its rows alone, with twice the weight. */
static bk_status add(const bk_transport_result *r, double weight, double *x, double *y, double *a,
                     double *b)
{
    const bk_transport_working *w = r->working;
    const bk_transport *p = &w->problem;
    double *cost = BK_ZNEW(p->arena, double, p->rows * p->columns);
    bk_transport_adjoint adjoint = {.value = weight, .cost = cost, .a = a, .b = b};
    BK_TRY(bk_transport_gradient(r, &adjoint));
    bk_transport_points_back(p, (bk_metric)w->config.metric, cost, x, y);
    return BK_OK;
}

/* (eps/2)(sum a - sum b)^2 of unbalanced problems. */
static void add_excess(const bk_divergence_result *r, double weight, double *a, double *b)
{
    const bk_transport *p = &r->between.working->problem;
    double slope =
        weight * r->between.epsilon * (mass(&r->self[0].result) - mass(&r->self[1].result));
    if (bk_transport_balanced(r->between.working))
        return;
    for (int64_t i = 0; a && i < p->rows; i++)
        a[i] += isinf(r->f[i]) ? 0.0 : slope;
    for (int64_t j = 0; b && j < p->columns; j++)
        b[j] -= isinf(r->g[j]) ? 0.0 : slope;
}

bk_status bk_divergence_gradient(const bk_divergence_result *r, double weight, double *x, double *y,
                                 double *a, double *b)
{
    BK_TRY(add(&r->between, weight, x, y, a, b));
    BK_TRY(add(&r->self[0].result, -weight, x, NULL, a, NULL));
    BK_TRY(add(&r->self[1].result, -weight, y, NULL, b, NULL));
    add_excess(r, weight, a, b);
    return BK_OK;
}
