/* Scores, weights and noise, shared by the router kinds.  exp and log are the
 * polynomials of core/vector. */
#include "core/parallel.h"
#include "core/vector.h"
#include "models/router_common.h"

#include <math.h>
#include <string.h>

bk_route_blocks bk_router_blocks(const bk_route_args *a)
{
    if (a->blocks)
        return *a->blocks;
    int64_t *row = BK_NEW(a->scratch, int64_t, a->lanes->count + 1);
    for (int64_t l = 0; l <= a->lanes->count; l++)
        row[l] = bk_lane_row(a->lanes, a->tokens, l);
    return (bk_route_blocks){.count = a->lanes->count, .row = row};
}

bk_route_blocks bk_router_scope(const bk_route_args *a, int scope)
{
    if (scope == BK_SCOPE_LOCAL)
        return bk_router_blocks(a);
    int64_t *row = BK_NEW(a->scratch, int64_t, 2);
    row[0] = 0;
    row[1] = a->tokens;
    return (bk_route_blocks){.count = 1, .row = row, .shared = true};
}

int64_t bk_router_block_tokens(const bk_route_args *a, int scope, const bk_route_blocks *b,
                               int64_t i)
{
    int64_t tokens = 0;
    if (scope == BK_SCOPE_GLOBAL)
        return a->valid;
    for (int64_t t = b->row[i]; t < b->row[i + 1]; t++)
        tokens += bk_router_valid(a, t);
    if (b->shared)
        bk_reduce_fixed(a->reducer, 1, &tokens);
    return tokens;
}

double *bk_router_pack(const bk_route_args *a, int64_t first, int64_t last, const double *all,
                       int64_t *rows)
{
    double *packed = BK_NEW(a->scratch, double, (last - first) * a->experts);
    *rows = 0;
    for (int64_t t = first; t < last; t++)
        if (bk_router_valid(a, t))
            memcpy(packed + (*rows)++ * a->experts, all + t * a->experts,
                   (size_t)a->experts * sizeof *packed);
    return packed;
}

/* ---- checks ---- */

bk_status bk_router_check_scores(const void *config, int64_t experts, int64_t k)
{
    const bk_score_config *c = config;
    if (k == 1 && c->renormalize == BK_TRUE)
        return bk_fail(
            BK_USAGE,
            "renormalize=true with k=1 gives the gate no gradient (model.moe.router): use false");
    return bk_router_check_groups(c, experts, k);
}

bool bk_router_renormalizes(const bk_score_config *c, int64_t k)
{
    return c->renormalize == BK_TRUE || (c->renormalize == BK_AUTO && k > 1);
}

/* ---- logits ---- */

static double smallest_finite(int64_t n, const double *row)
{
    double least = INFINITY;
    for (int64_t j = 0; j < n; j++)
        least = isfinite(row[j]) && row[j] < least ? row[j] : least;
    return isfinite(least) ? least : 0.0;
}

static bool all_finite(int64_t n, const double *x)
{
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

const double *bk_router_finite(const bk_route_args *a, const double *x)
{
    int64_t experts = a->experts, n = a->tokens * experts;
    if (all_finite(n, x))
        return x;
    double *clean = BK_NEW(a->arena, double, n);
    for (int64_t i = 0; i < n; i++)
        clean[i] = isfinite(x[i]) ? x[i] : smallest_finite(experts, x + i / experts * experts);
    return clean;
}

typedef struct noise {
    const bk_route_args *args;
    double scale;
    double *x;
} noise;

static void add_noise(void *context, int64_t first, int64_t last)
{
    const noise *c = context;
    const bk_route_args *a = c->args;
    for (int64_t i = first; i < last; i++) {
        int64_t token = i / a->experts, expert = i % a->experts;
        if (bk_router_valid(a, token))
            c->x[i] += c->scale * (a->noise ? a->noise[i]
                                            : bk_route_draw_normal(a->seed, a->step, a->layer,
                                                                   a->first_token + token, expert));
    }
}

void bk_router_add_noise(const bk_route_args *a, double scale, double *x)
{
    bk_parallel(a->tokens * a->experts, 1, 1, add_noise, &(noise){a, scale, x});
}

void bk_router_begin(const bk_route_args *a, const bk_score_config *c, bk_route *out)
{
    int64_t n = a->tokens * a->experts;
    out->slots = a->k;
    out->index = BK_NEW(a->arena, int32_t, a->tokens * a->k);
    out->weight = BK_NEW(a->arena, double, a->tokens * a->k);
    out->clean = out->seen = bk_router_finite(a, a->logits);
    if (!a->training || c->noise != BK_NOISE_LOGITS)
        return;
    double *noisy = BK_NEW(a->arena, double, n);
    memcpy(noisy, out->clean, (size_t)n * sizeof *noisy);
    bk_router_add_noise(a, c->noise_scale, noisy);
    out->seen = noisy;
}

/* ---- scores ---- */

double bk_router_sigmoid(double x)
{
    return 1.0 / (1.0 + bk_exp_one(-x));
}

/* Without a power that overflows: log sigmoid(x) = min(x, 0) - log(1 + exp(-|x|)). */
static double log_sigmoid(double x)
{
    return fmin(x, 0.0) - bk_log_one(1.0 + bk_exp_one(-fabs(x)));
}

/* x[n] -> softmax of it. */
static void softmax(int64_t n, const double *x, double *p)
{
    double sum = bk_vector(BK_F64)->exp_sum(n, x, bk_vector(BK_F64)->max(n, x), p);
    for (int64_t j = 0; j < n; j++)
        p[j] /= sum;
}

void bk_router_scores(int score, int64_t n, const double *h, double *p)
{
    if (score == BK_SCORE_SOFTMAX) {
        softmax(n, h, p);
        return;
    }
    for (int64_t j = 0; j < n; j++)
        p[j] = -h[j];
    bk_exp_f64(n, p, p);
    for (int64_t j = 0; j < n; j++)
        p[j] = 1.0 / (1.0 + p[j]);
}

typedef struct scoring {
    const bk_route_args *args;
    int score;
    const double *h;
    double *p;
} scoring;

static void score_rows(void *context, int64_t first, int64_t last)
{
    const scoring *c = context;
    int64_t experts = c->args->experts;
    for (int64_t t = first; t < last; t++)
        if (bk_router_valid(c->args, t))
            bk_router_scores(c->score, experts, c->h + t * experts, c->p + t * experts);
        else
            memset(c->p + t * experts, 0, (size_t)experts * sizeof *c->p);
}

void bk_router_score_rows(const bk_route_args *a, int score, const double *h, double *p)
{
    bk_parallel(a->tokens, 1, 8 * a->experts, score_rows, &(scoring){a, score, h, p});
}

/* Sigmoids over their sum are the softmax of their logarithms, which cannot be 0/0. */
void bk_router_shares(int score, int64_t n, const double *h, double *p)
{
    for (int64_t j = 0; j < n; j++)
        p[j] = score == BK_SCORE_SOFTMAX ? h[j] : log_sigmoid(h[j]);
    softmax(n, p, p);
}

/* ---- weights ---- */

static void renormalised_weights(const bk_score_config *c, int64_t k, const double *h,
                                 const int32_t *index, double *w)
{
    for (int64_t s = 0; s < k; s++)
        w[s] = h[index[s]];
    bk_router_shares(c->score, k, w, w);
}

/* All rows, forward or backward. */
typedef struct weighing {
    const bk_route_args *args;
    const bk_score_config *config;
    bool renormalize;
    const bk_route *route;
    double *weight;   /* [T,k] */
    const double *gw; /* [T,k] */
    double *gh;       /* [T,E] */
    double *p;        /* [T,E] room for the scores */
} weighing;

/* Renormalised weights need no scores but those of the kept. */
static double *room_for_scores(const bk_route_args *a, bool renormalize)
{
    return BK_NEW(a->scratch, double, renormalize ? 0 : a->tokens * a->experts);
}

static void weigh_rows(void *context, int64_t first, int64_t last)
{
    const weighing *c = context;
    const bk_route_args *a = c->args;
    for (int64_t t = first; t < last; t++) {
        const double *h = c->route->seen + t * a->experts;
        const int32_t *index = c->route->index + t * a->k;
        double *w = c->weight + t * a->k, *p = c->renormalize ? NULL : c->p + t * a->experts;
        if (!bk_router_valid(a, t)) {
            memset(w, 0, (size_t)a->k * sizeof *w);
            continue;
        }
        if (c->renormalize)
            renormalised_weights(c->config, a->k, h, index, w);
        else
            bk_router_scores(c->config->score, a->experts, h, p);
        for (int64_t s = 0; s < a->k; s++)
            w[s] = c->config->scale * (c->renormalize ? w[s] : p[index[s]]);
    }
}

void bk_router_weights(const bk_route_args *a, const bk_score_config *c, bool renormalize,
                       const bk_route *r, double *weight)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    weighing all = {.args = a,
                    .config = c,
                    .renormalize = renormalize,
                    .route = r,
                    .weight = weight,
                    .p = room_for_scores(a, renormalize)};
    bk_parallel(a->tokens, 1, a->experts, weigh_rows, &all);
    bk_arena_release(a->scratch, mark);
}

/* One valid row on the way back. */
typedef struct row_back {
    const bk_score_config *config;
    int64_t experts, k;
    const double *h;      /* [E] */
    const int32_t *index; /* [k] */
    const double *w, *gw; /* [k] */
    double *gh;           /* [E] */
    double *p;            /* [E] room */
} row_back;

/* gl = w (g - <w,g>) at the kept. */
static void renormalised_back(const row_back *r)
{
    const bk_score_config *c = r->config;
    double inner = bk_vector(BK_F64)->dot(r->k, r->w, r->gw) / c->scale;
    for (int64_t s = 0; s < r->k; s++) {
        int32_t e = r->index[s];
        double g = r->w[s] * (r->gw[s] - inner);
        r->gh[e] += c->score == BK_SCORE_SIGMOID ? g * (1.0 - bk_router_sigmoid(r->h[e])) : g;
    }
}

/* gp = scale gw at the kept;  softmax: gH = p (gp - <p,gp>), sigmoid: gH = gp p (1-p). */
static void plain_back(const row_back *r)
{
    const bk_score_config *c = r->config;
    double inner = 0.0;
    bk_router_scores(c->score, r->experts, r->h, r->p);
    for (int64_t s = 0; s < r->k; s++) {
        int32_t e = r->index[s];
        double g = c->scale * r->gw[s] * r->p[e];
        r->gh[e] += c->score == BK_SCORE_SIGMOID ? g * (1.0 - r->p[e]) : g;
        inner += g;
    }
    if (c->score == BK_SCORE_SOFTMAX)
        bk_vector(BK_F64)->axpy(r->experts, -inner, r->p, r->gh);
}

static void rows_back(void *context, int64_t first, int64_t last)
{
    const weighing *c = context;
    const bk_route_args *a = c->args;
    for (int64_t t = first; t < last; t++) {
        row_back row = {.config = c->config,
                        .experts = a->experts,
                        .k = a->k,
                        .h = c->route->seen + t * a->experts,
                        .index = c->route->index + t * a->k,
                        .w = c->route->weight + t * a->k,
                        .gw = c->gw + t * a->k,
                        .gh = c->gh + t * a->experts,
                        .p = c->renormalize ? NULL : c->p + t * a->experts};
        if (!bk_router_valid(a, t))
            continue;
        if (c->renormalize)
            renormalised_back(&row);
        else
            plain_back(&row);
    }
}

void bk_router_weights_back(const bk_route_args *a, const bk_score_config *c, bool renormalize,
                            const bk_route *r, const double *gw, double *gh)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    weighing all = {.args = a,
                    .config = c,
                    .renormalize = renormalize,
                    .route = r,
                    .gw = gw,
                    .gh = gh,
                    .p = room_for_scores(a, renormalize)};
    bk_parallel(a->tokens, 1, a->experts, rows_back, &all);
    bk_arena_release(a->scratch, mark);
}

void bk_router_plain(const bk_route_args *a, const bk_score_config *c, bool renormalize,
                     bk_route *out)
{
    bk_router_begin(a, c, out);
    bk_router_select(a, c, out->seen, out->index);
    bk_router_weights(a, c, renormalize, out, out->weight);
}

bk_biased_scores bk_router_biased(const bk_route_args *a, const bk_score_config *c, bk_route *out)
{
    int64_t n = a->tokens * a->experts;
    bk_biased_scores s = {BK_NEW(a->scratch, double, n), BK_NEW(a->scratch, double, n)};
    bk_router_begin(a, c, out);
    out->counted = true;
    bk_router_score_rows(a, c->score, out->seen, s.score);
    memcpy(s.biased, s.score, (size_t)n * sizeof *s.biased);
    for (int64_t t = 0; a->bias && t < a->tokens; t++)
        bk_vector(BK_F64)->add(a->experts, a->bias, s.biased + t * a->experts);
    bk_router_select(a, c, s.biased, out->index);
    bk_router_weights(a, c, bk_router_renormalizes(c, a->k), out, out->weight);
    return s;
}

void bk_router_scores_back(const bk_route_args *a, const bk_route *r, const bk_route_back *b)
{
    const bk_score_config *c = a->config;
    bk_router_weights_back(a, c, bk_router_renormalizes(c, a->k), r, b->weight, b->logits);
}
