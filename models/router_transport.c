/* Routing by entropic transport (moe: section 3): potentials over the columns, selection by S + g.
 */
#include "core/transport/balance.h"
#include "core/vector.h"
#include "models/router_common.h"

#include <math.h>
#include <string.h>

/* Valid tokens packed: place[i] = token of packed row i; lane_row[m+1] in packed rows. */
typedef struct packed {
    int64_t *place, *lane_row;
    int64_t rows;
} packed;

static packed pack(const bk_route_args *a)
{
    packed p = {.place = BK_NEW(a->scratch, int64_t, a->tokens),
                .lane_row = BK_NEW(a->scratch, int64_t, a->lanes->count + 1)};
    for (int64_t l = 0; l < a->lanes->count; l++) {
        p.lane_row[l] = p.rows;
        for (int64_t t = bk_lane_row(a->lanes, a->tokens, l);
             t < bk_lane_row(a->lanes, a->tokens, l + 1); t++)
            if (bk_router_valid(a, t))
                p.place[p.rows++] = t;
    }
    p.lane_row[a->lanes->count] = p.rows;
    return p;
}

/* S = D / epsilon of the packed rows, D = H or its softmax, with noise on D when asked for. */
static double *scaled_cost(const bk_route_args *a, const bk_transport_config *c,
                           const bk_score_config *noise, const double *h, double *all)
{
    int64_t n = a->tokens * a->experts, e = a->experts;
    memcpy(all, h, (size_t)n * sizeof *all);
    for (int64_t t = 0; c->cost == BK_COST_SOFTMAX && t < a->tokens; t++) {
        double *row = all + t * e,
               sum = bk_vector_kernels_f64.exp_sum(e, row, bk_vector_kernels_f64.max(e, row), row);
        for (int64_t j = 0; j < e; j++)
            row[j] /= sum;
    }
    if (a->training && noise->noise == BK_NOISE_COST)
        bk_router_add_noise(a, noise->noise_scale, all);
    bk_vector_kernels_f64.scale(n, 1.0 / c->epsilon, all);
    return all;
}

static bk_balance balance_of(const bk_route_args *a, const bk_transport_config *c)
{
    return (bk_balance){.columns = a->experts,
                        .iterations = c->iterations,
                        .tolerance = c->tolerance,
                        .lanes = a->lanes,
                        .scratch = a->scratch};
}

static double *gather_rows(const bk_route_args *a, const packed *p, const double *all)
{
    int64_t e = a->experts;
    double *rows = BK_NEW(a->scratch, double, p->rows *e);
    for (int64_t i = 0; i < p->rows; i++)
        memcpy(rows + i * e, all + p->place[i] * e, (size_t)e * sizeof *rows);
    return rows;
}

static void note_result(bk_route *out, const bk_balance_result *r)
{
    out->iterations = r->iterations > out->iterations ? r->iterations : out->iterations;
    out->residual = fmax(out->residual, r->residual);
}

/* One problem over all tokens of the step. */
static void solve_global(const bk_route_args *a, const bk_transport_config *c, const packed *p,
                         const double *rows, double *q, bk_route *out)
{
    bk_balance b = balance_of(a, c);
    b.rows = p->rows;
    b.total = a->valid;
    b.s = rows;
    b.reducer = a->reducer;
    b.lane_row = p->lane_row;
    bk_balance_result r = bk_balance_solve(&b, out->bias, q);
    note_result(out, &r);
}

/* One problem for each lane, without messages; potentials [m,E]. */
static void solve_local(const bk_route_args *a, const bk_transport_config *c, const packed *p,
                        const double *rows, double *q, bk_route *out)
{
    int64_t e = a->experts;
    for (int64_t l = 0; l < a->lanes->count; l++) {
        bk_balance b = balance_of(a, c);
        b.rows = b.total = p->lane_row[l + 1] - p->lane_row[l];
        b.s = rows + p->lane_row[l] * e;
        b.lane_row = p->lane_row + l;
        if (l > 0)
            memset(out->bias + l * e, 0, (size_t)e * sizeof *out->bias);
        bk_balance_result r = bk_balance_solve(&b, out->bias + l * e, q + p->lane_row[l] * e);
        note_result(out, &r);
    }
}

static void select_by_plan(const bk_route_args *a, const bk_transport_config *c, const double *s,
                           bk_route *out)
{
    if (c->scope == BK_SCOPE_GLOBAL) {
        bk_router_select(a, s, out->bias, out->index);
        return;
    }
    for (int64_t l = 0; l < a->lanes->count; l++) {
        int64_t first = bk_lane_row(a->lanes, a->tokens, l);
        bk_route_args one = *a;
        one.tokens = bk_lane_row(a->lanes, a->tokens, l + 1) - first;
        one.mask = a->mask ? a->mask + first : NULL;
        bk_router_select(&one, s + first * a->experts, out->bias + l * a->experts,
                         out->index + first * a->k);
    }
}

void bk_router_transport(const bk_route_args *a, const bk_transport_config *c,
                         const bk_score_config *noise, bk_route *out)
{
    int64_t e = a->experts, replaced, problems = c->scope == BK_SCOPE_LOCAL ? a->lanes->count : 1;
    double *h = bk_router_clean(a, &replaced);
    out->index = BK_NEW(a->arena, int32_t, a->tokens * a->k);
    out->weight = BK_NEW(a->arena, double, a->tokens * a->k);
    out->plan = BK_ZNEW(a->arena, double, a->tokens *e);
    out->scaled = BK_NEW(a->arena, double, a->tokens *e);
    out->bias = BK_ZNEW(a->arena, double, (problems > 0 ? problems : 1) * e);
    out->transport = true;
    if (a->training && noise->noise == BK_NOISE_LOGITS)
        bk_router_add_noise(a, noise->noise_scale, h);
    out->seen = h;
    scaled_cost(a, c, noise, h, out->scaled);
    if (a->bias && c->warm_start && c->scope == BK_SCOPE_GLOBAL)
        memcpy(out->bias, a->bias, (size_t)e * sizeof *out->bias);
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    packed p = pack(a);
    double *rows = gather_rows(a, &p, out->scaled), *q = BK_ZNEW(a->scratch, double, p.rows *e);
    if (c->scope == BK_SCOPE_GLOBAL)
        solve_global(a, c, &p, rows, q, out);
    else
        solve_local(a, c, &p, rows, q, out);
    for (int64_t i = 0; i < p.rows; i++)
        memcpy(out->plan + p.place[i] * e, q + i * e, (size_t)e * sizeof *q);
    bk_arena_release(a->scratch, mark);
    select_by_plan(a, c, out->scaled, out);
    if (a->bias && a->training && c->scope == BK_SCOPE_GLOBAL)
        memcpy(a->bias, out->bias, (size_t)e * sizeof *out->bias);
    bk_attribute_set_integer(a->attributes, "iterations", out->iterations);
    bk_attribute_set(a->attributes, "residual", out->residual);
    bk_attribute_set_integer(a->attributes, "converged", out->residual <= c->tolerance);
    bk_attribute_set_integer(a->attributes, "messages", out->iterations + 1);
}

/* ---- weights from the plan ---- */

/* The rows of the plan are Q = softmax(S + g); kept entries over their sum are the softmax over the
 * kept. */
void bk_router_plan_weights(const bk_route_args *a, const bk_route *r, double scale, double *weight)
{
    for (int64_t t = 0; t < a->tokens; t++) {
        const int32_t *index = r->index + t * a->k;
        double *w = weight + t * a->k, sum = 0.0;
        memset(w, 0, (size_t)a->k * sizeof *w);
        if (!bk_router_valid(a, t))
            continue;
        for (int64_t s = 0; s < a->k; s++)
            sum += w[s] = r->plan[t * a->experts + index[s]];
        for (int64_t s = 0; s < a->k; s++)
            w[s] *= scale / sum;
    }
}

/* Z = scatter of w (g - <w,g>) over the packed rows. */
static double *kept_adjoint(const bk_route_args *a, const packed *p, double scale,
                            const bk_route *r, const double *gw)
{
    double *z = BK_ZNEW(a->scratch, double, p->rows * a->experts);
    for (int64_t i = 0; i < p->rows; i++) {
        const int32_t *index = r->index + p->place[i] * a->k;
        const double *w = r->weight + p->place[i] * a->k, *g = gw + p->place[i] * a->k;
        double inner = 0.0;
        for (int64_t s = 0; s < a->k; s++)
            inner += w[s] / scale * g[s];
        for (int64_t s = 0; s < a->k; s++)
            z[i * a->experts + index[s]] += w[s] * (g[s] - inner);
    }
    return z;
}

static void implicit(const bk_route_args *a, const bk_transport_config *c, const packed *p,
                     const double *q, double *z)
{
    bk_balance b = balance_of(a, c);
    b.rows = p->rows;
    b.total = a->valid;
    b.reducer = a->reducer;
    b.lane_row = p->lane_row;
    bk_balance_implicit(&b, q, z);
}

/* gH += dL/dS through S = D/epsilon and D = H or softmax(H). */
static void cost_back(const bk_route_args *a, const bk_transport_config *c, const packed *p,
                      const double *seen, const double *z, double *gh)
{
    int64_t e = a->experts;
    double *prob = BK_NEW(a->scratch, double, e);
    for (int64_t i = 0; i < p->rows; i++) {
        double *to = gh + p->place[i] * e;
        const double *from = z + i * e, *h = seen + p->place[i] * e;
        if (c->cost == BK_COST_LINEAR) {
            bk_vector_kernels_f64.axpy(e, 1.0 / c->epsilon, from, to);
            continue;
        }
        double sum = bk_vector_kernels_f64.exp_sum(e, h, bk_vector_kernels_f64.max(e, h), prob);
        bk_vector_kernels_f64.scale(e, 1.0 / sum, prob);
        double inner = bk_vector_kernels_f64.dot(e, prob, from);
        for (int64_t j = 0; j < e; j++)
            to[j] += prob[j] * (from[j] - inner) / c->epsilon;
    }
}

void bk_router_plan_back(const bk_route_args *a, const bk_transport_config *c, double scale,
                         const bk_route *r, const double *gw, double *gh)
{
    if (c->gradient == BK_GRADIENT_DETACH)
        return;
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    packed p = pack(a);
    double *z = kept_adjoint(a, &p, scale, r, gw);
    if (c->gradient == BK_GRADIENT_IMPLICIT && r->residual <= 1e-3 && c->scope == BK_SCOPE_GLOBAL)
        implicit(a, c, &p, gather_rows(a, &p, r->plan), z);
    cost_back(a, c, &p, r->seen, z, gh);
    bk_arena_release(a->scratch, mark);
}
