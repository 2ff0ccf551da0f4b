/* Routing by entropic transport (Sinkhorn balancing): potentials over the columns, selection by
 * S + g.  scope=global is one problem over all tokens of the step, scope=local one for each block;
 * each problem sees its valid rows packed. */
#include "core/transport/balance.h"
#include "core/vector.h"
#include "models/router_common.h"

#include <math.h>
#include <string.h>

/* ---- problems ---- */

typedef struct problem {
    bk_balance balance;
    int64_t *token; /* [rows] local token of each packed row */
} problem;

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Packs the valid rows first .. last-1; lane_row[m+1] counts in packed rows. */
static int64_t pack(const bk_route_args *a, int64_t first, int64_t last, int64_t *token,
                    int64_t *lane_row)
{
    int64_t rows = 0;
    lane_row[0] = 0;
    for (int64_t l = 0; l < a->lanes->count; l++) {
        int64_t end = bk_lane_row(a->lanes, a->tokens, l + 1);
        for (int64_t t = larger(first, bk_lane_row(a->lanes, a->tokens, l)); t < end && t < last;
             t++)
            if (bk_router_valid(a, t))
                token[rows++] = t;
        lane_row[l + 1] = rows;
    }
    return rows;
}

/* Problem i, on the scratch arena.  Collective when blocks are shared. */
static problem problem_of(const bk_route_args *a, const bk_transport_config *c,
                          const bk_route_blocks *b, int64_t i)
{
    int64_t *token = BK_NEW(a->scratch, int64_t, b->row[i + 1] - b->row[i]),
            *lane_row = BK_NEW(a->scratch, int64_t, a->lanes->count + 1);
    int64_t rows = pack(a, b->row[i], b->row[i + 1], token, lane_row), total = rows;
    if (c->scope == BK_SCOPE_GLOBAL)
        total = a->valid;
    else if (b->shared)
        bk_reduce_fixed(a->reducer, 1, &total);
    return (problem){.token = token,
                     .balance = {.rows = rows,
                                 .columns = a->experts,
                                 .total = total,
                                 .solver = (bk_balance_solver)c->solver,
                                 .iterations = c->iterations,
                                 .tolerance = c->tolerance,
                                 .reducer = b->shared ? a->reducer : NULL,
                                 .lanes = a->lanes,
                                 .lane_row = lane_row,
                                 .scratch = a->scratch}};
}

/* The problem's rows of all[T,E]. */
static double *gather_rows(const bk_route_args *a, const problem *p, const double *all)
{
    int64_t e = a->experts;
    double *rows = BK_NEW(a->scratch, double, p->balance.rows *e);
    for (int64_t i = 0; i < p->balance.rows; i++)
        memcpy(rows + i * e, all + p->token[i] * e, (size_t)e * sizeof *rows);
    return rows;
}

/* ---- forward ---- */

/* p[E] = softmax of one row of H. */
static void cost_row(int64_t experts, const double *h, double *p)
{
    bk_router_scores(BK_SCORE_SOFTMAX, experts, h, p);
}

/* S = D / epsilon, D = H or its softmax by row, with noise on D when asked for. */
static double *scaled_cost(const bk_route_args *a, const bk_transport_config *c, const double *h)
{
    int64_t n = a->tokens * a->experts;
    double *s = BK_NEW(a->arena, double, n);
    memcpy(s, h, (size_t)n * sizeof *s);
    for (int64_t t = 0; c->cost == BK_COST_SOFTMAX && t < a->tokens; t++)
        cost_row(a->experts, h + t * a->experts, s + t * a->experts);
    if (a->training && c->base.noise == BK_NOISE_COST)
        bk_router_add_noise(a, c->base.noise_scale, s);
    bk_vector(BK_F64)->scale(n, 1.0 / c->epsilon, s);
    return s;
}

/* Problem i: potentials g, the rows of the plan, S + g. */
static void solve(const bk_route_args *a, problem *p, double *g, bk_route *out, double *residual)
{
    int64_t e = a->experts;
    double *q = BK_ZNEW(a->scratch, double, p->balance.rows *e);
    p->balance.s = gather_rows(a, p, out->balanced);
    bk_balance_result r = bk_balance_solve(&p->balance, g, q);
    for (int64_t i = 0; i < p->balance.rows; i++) {
        memcpy(out->plan + p->token[i] * e, q + i * e, (size_t)e * sizeof *q);
        bk_vector(BK_F64)->add(e, g, out->balanced + p->token[i] * e);
    }
    *residual = r.residual;
    out->iterations = larger(out->iterations, r.iterations);
    out->residual = fmax(out->residual, r.residual);
}

/* The implicit gradient presumes a solved plan: elsewhere the potentials are held, as in
 * gradient=partial. */
static bool is_held(const bk_transport_config *c, double residual)
{
    return c->gradient == BK_GRADIENT_IMPLICIT && residual > 1e-3;
}

static void solve_all(const bk_route_args *a, const bk_transport_config *c, bk_route *out)
{
    int64_t e = a->experts;
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    bk_route_blocks b = bk_router_scope(a, c->scope);
    out->bias = BK_ZNEW(a->arena, double, b.count *e);
    out->residual_of = BK_ZNEW(a->arena, double, b.count);
    if (a->bias && c->warm_start && c->scope == BK_SCOPE_GLOBAL)
        memcpy(out->bias, a->bias, (size_t)e * sizeof *out->bias);
    for (int64_t i = 0; i < b.count; i++) {
        bk_arena_mark one = bk_arena_get_mark(a->scratch);
        problem p = problem_of(a, c, &b, i);
        solve(a, &p, out->bias + i * e, out, out->residual_of + i);
        out->held += is_held(c, out->residual_of[i]);
        bk_arena_release(a->scratch, one);
    }
    if (c->scope == BK_SCOPE_GLOBAL)
        out->next = out->bias;
    bk_arena_release(a->scratch, mark);
}

void bk_router_transport(const bk_route_args *a, const bk_transport_config *c, bk_route *out)
{
    bk_router_begin(a, &c->base, out);
    out->transport = true;
    out->plan = BK_ZNEW(a->arena, double, a->tokens * a->experts);
    out->balanced = scaled_cost(a, c, out->seen);
    solve_all(a, c, out);
    out->converged = out->residual <= c->tolerance;
    bk_router_select(a, &c->base, out->balanced, out->index);
    bk_attribute_set_integer(a->attributes, "iterations", out->iterations);
    bk_attribute_set(a->attributes, "residual", out->residual);
    bk_attribute_set_integer(a->attributes, "converged", out->converged);
    bk_attribute_set_integer(a->attributes, "messages",
                             c->scope == BK_SCOPE_GLOBAL ? out->iterations + 1 : 0);
}

/* ---- weights from the plan ---- */

void bk_router_plan_weights(const bk_route_args *a, double scale, bk_route *r)
{
    r->planned = true;
    memset(r->weight, 0, (size_t)(a->tokens * a->k) * sizeof *r->weight);
    for (int64_t t = 0; t < a->tokens; t++) {
        double *w = r->weight + t * a->k;
        if (!bk_router_valid(a, t))
            continue;
        for (int64_t s = 0; s < a->k; s++)
            w[s] = r->balanced[t * a->experts + r->index[t * a->k + s]];
        bk_router_shares(BK_SCORE_SOFTMAX, a->k, w, w);
        bk_vector(BK_F64)->scale(a->k, scale, w);
    }
}

/* Z[rows,E] = scatter of w (gw - <w,gw> / scale) at the kept. */
static double *kept_adjoint(const bk_route_args *a, const problem *p, double scale,
                            const bk_route *r, const double *gw)
{
    double *z = BK_ZNEW(a->scratch, double, p->balance.rows * a->experts);
    for (int64_t i = 0; i < p->balance.rows; i++) {
        int64_t at = p->token[i] * a->k;
        double inner = bk_vector(BK_F64)->dot(a->k, r->weight + at, gw + at) / scale;
        for (int64_t s = at; s < at + a->k; s++)
            z[i * a->experts + r->index[s]] += r->weight[s] * (gw[s] - inner);
    }
    return z;
}

/* gH += dL/dS through S = D/epsilon and D = H or softmax(H). */
static void cost_back(const bk_route_args *a, const bk_transport_config *c, const problem *p,
                      const double *seen, const double *z, double *gh)
{
    int64_t e = a->experts;
    double *prob = BK_NEW(a->scratch, double, e);
    for (int64_t i = 0; i < p->balance.rows; i++) {
        double *to = gh + p->token[i] * e;
        const double *from = z + i * e;
        if (c->cost == BK_COST_LINEAR) {
            bk_vector(BK_F64)->axpy(e, 1.0 / c->epsilon, from, to);
            continue;
        }
        cost_row(e, seen + p->token[i] * e, prob);
        double inner = bk_vector(BK_F64)->dot(e, prob, from);
        for (int64_t j = 0; j < e; j++)
            to[j] += prob[j] * (from[j] - inner) / c->epsilon;
    }
}

void bk_router_plan_back(const bk_route_args *a, const bk_transport_config *c, const bk_route *r,
                         const double *gw, double *gh)
{
    if (c->gradient == BK_GRADIENT_DETACH)
        return;
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    bk_route_blocks b = bk_router_scope(a, c->scope);
    for (int64_t i = 0; i < b.count; i++) {
        bk_arena_mark one = bk_arena_get_mark(a->scratch);
        problem p = problem_of(a, c, &b, i);
        double *z = kept_adjoint(a, &p, c->base.scale, r, gw);
        if (c->gradient == BK_GRADIENT_IMPLICIT && !is_held(c, r->residual_of[i]))
            bk_balance_implicit(&p.balance, gather_rows(a, &p, r->plan), z);
        cost_back(a, c, &p, r->seen, z, gh);
        bk_arena_release(a->scratch, one);
    }
    bk_arena_release(a->scratch, mark);
}
