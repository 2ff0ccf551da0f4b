/* Shared pieces of the routers.  All arithmetic is double, exp and log are the polynomials of
 * core/vector. */
#include "core/rng.h"
#include "core/vector.h"
#include "models/router_common.h"

#include <math.h>
#include <string.h>

#define ROUTER(kind) extern const bk_router_kind bk_router_##kind;
#include "models/router/kinds.def"
#undef ROUTER

#define ROUTER(kind) &bk_router_##kind,
const bk_router_kind *const bk_routers[] = {
#include "models/router/kinds.def"
    NULL};
#undef ROUTER

const bk_router_kind *bk_router_find(const char *name)
{
    for (int i = 0; bk_routers[i]; i++)
        if (strcmp(bk_routers[i]->name, name) == 0)
            return bk_routers[i];
    return NULL;
}

/* ---- logits ---- */

static double smallest_finite(int64_t n, const double *row)
{
    double least = INFINITY;
    for (int64_t j = 0; j < n; j++)
        least = isfinite(row[j]) && row[j] < least ? row[j] : least;
    return isfinite(least) ? least : 0.0;
}

double *bk_router_clean(const bk_route_args *a, int64_t *replaced)
{
    double *h = BK_NEW(a->arena, double, a->tokens * a->experts);
    *replaced = 0;
    memcpy(h, a->logits, (size_t)(a->tokens * a->experts) * sizeof *h);
    for (int64_t t = 0; t < a->tokens; t++) {
        double *row = h + t * a->experts, least = 0.0;
        bool known = false;
        for (int64_t j = 0; j < a->experts; j++) {
            if (isfinite(row[j]))
                continue;
            least = known ? least : smallest_finite(a->experts, a->logits + t * a->experts);
            known = true;
            row[j] = least;
            *replaced += 1;
        }
    }
    return h;
}

double bk_router_draw(const bk_route_args *a, int64_t token, int64_t expert)
{
    uint64_t first = BK_HASH64(a->seed, 2, (uint64_t)a->step, (uint64_t)a->layer, (uint64_t)token,
                               (uint64_t)expert);
    uint64_t second = bk_mix64(first + 0x9E3779B97F4A7C15u);
    return sqrt(-2.0 * log(1.0 - bk_unit(first))) *
           cos(2.0 * 3.14159265358979323846 * bk_unit(second));
}

void bk_router_add_noise(const bk_route_args *a, double scale, double *x)
{
    int64_t e = a->experts;
    for (int64_t t = 0; t < a->tokens; t++)
        for (int64_t j = 0; bk_router_valid(a, t) && j < e; j++)
            x[t * e + j] +=
                scale * (a->noise ? a->noise[t * e + j] : bk_router_draw(a, a->first_token + t, j));
}

/* ---- selection ---- */

/* Insertion into the k best so far: falling value, ties to the lower expert. */
static void select_row(int64_t experts, int64_t k, const double *score, const double *bias,
                       int32_t *index, double *best)
{
    int64_t kept = 0;
    for (int64_t j = 0; j < experts; j++) {
        double value = score[j] + (bias ? bias[j] : 0.0);
        if (kept == k && !(value > best[k - 1]))
            continue;
        int64_t at = kept < k ? kept++ : k - 1;
        for (; at > 0 && value > best[at - 1]; at--) {
            best[at] = best[at - 1];
            index[at] = index[at - 1];
        }
        best[at] = value;
        index[at] = (int32_t)j;
    }
}

void bk_router_select(const bk_route_args *a, const double *score, const double *bias,
                      int32_t *index)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    double *best = BK_NEW(a->scratch, double, a->k);
    for (int64_t t = 0; t < a->tokens; t++) {
        int32_t *row = index + t * a->k;
        if (bk_router_valid(a, t))
            select_row(a->experts, a->k, score + t * a->experts, bias, row, best);
        else
            for (int64_t s = 0; s < a->k; s++)
                row[s] = -1;
    }
    bk_arena_release(a->scratch, mark);
}

int32_t *bk_router_plain_index(const bk_route_args *a)
{
    int64_t replaced;
    int32_t *index = BK_NEW(a->arena, int32_t, a->tokens * a->k);
    bk_router_select(a, bk_router_clean(a, &replaced), NULL, index);
    return index;
}

/* ---- scores and weights ---- */

static double sigmoid(double x)
{
    return 1.0 / (1.0 + bk_exp_one(-x));
}

/* p = softmax or sigmoid of one row. */
static void scores(int score, int64_t n, const double *h, double *p)
{
    if (score == BK_SCORE_SIGMOID) {
        for (int64_t j = 0; j < n; j++)
            p[j] = sigmoid(h[j]);
        return;
    }
    double sum = bk_vector_kernels_f64.exp_sum(n, h, bk_vector_kernels_f64.max(n, h), p);
    for (int64_t j = 0; j < n; j++)
        p[j] /= sum;
}

static void softmax_kept(int64_t k, double *l)
{
    double most = bk_vector_kernels_f64.max(k, l),
           sum = bk_vector_kernels_f64.exp_sum(k, l, most, l);
    for (int64_t s = 0; s < k; s++)
        l[s] /= sum;
}

void bk_router_weights(const bk_route_args *a, const bk_score_config *c, bool renormalize,
                       const double *h, const int32_t *index, double *weight)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    double *p = BK_NEW(a->scratch, double, a->experts);
    for (int64_t t = 0; t < a->tokens; t++) {
        const double *row = h + t * a->experts;
        double *w = weight + t * a->k;
        memset(w, 0, (size_t)a->k * sizeof *w);
        if (!bk_router_valid(a, t))
            continue;
        if (!renormalize)
            scores(c->score, a->experts, row, p);
        for (int64_t s = 0; s < a->k; s++) {
            int32_t e = index[t * a->k + s];
            w[s] = !renormalize                   ? p[e]
                   : c->score == BK_SCORE_SOFTMAX ? row[e]
                                                  : -bk_log_one(1.0 + bk_exp_one(-row[e]));
        }
        if (renormalize)
            softmax_kept(a->k, w);
        for (int64_t s = 0; s < a->k; s++)
            w[s] *= c->scale;
    }
    bk_arena_release(a->scratch, mark);
}

/* Renormalised: gl = w (g - <w,g>) at the kept. */
static void renormalised_back(const bk_score_config *c, int64_t k, const double *h,
                              const int32_t *index, const double *w, const double *gw, double *gh)
{
    double inner = 0.0;
    for (int64_t s = 0; s < k; s++)
        inner += w[s] * gw[s];
    for (int64_t s = 0; s < k; s++) {
        double g = w[s] * (gw[s] - inner / c->scale);
        gh[index[s]] += c->score == BK_SCORE_SIGMOID ? g * (1.0 - sigmoid(h[index[s]])) : g;
    }
}

static void plain_scores_back(const bk_score_config *c, int64_t experts, int64_t k, const double *h,
                              const int32_t *index, const double *gw, double *gh, double *p)
{
    double inner = 0.0;
    scores(c->score, experts, h, p);
    for (int64_t s = 0; s < k; s++)
        inner += p[index[s]] * gw[s] * c->scale;
    for (int64_t s = 0; s < k; s++) {
        double g = gw[s] * c->scale, value = p[index[s]];
        gh[index[s]] += c->score == BK_SCORE_SIGMOID ? g * value * (1.0 - value) : value * g;
    }
    for (int64_t j = 0; c->score == BK_SCORE_SOFTMAX && j < experts; j++)
        gh[j] -= p[j] * inner;
}

void bk_router_weights_back(const bk_route_args *a, const bk_score_config *c, bool renormalize,
                            const bk_route *r, const double *gw, double *gh)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    double *p = BK_NEW(a->scratch, double, a->experts);
    for (int64_t t = 0; t < a->tokens; t++) {
        const int32_t *index = r->index + t * a->k;
        const double *row = r->seen + t * a->experts;
        if (!bk_router_valid(a, t))
            continue;
        if (renormalize)
            renormalised_back(c, a->k, row, index, r->weight + t * a->k, gw + t * a->k,
                              gh + t * a->experts);
        else
            plain_scores_back(c, a->experts, a->k, row, index, gw + t * a->k, gh + t * a->experts,
                              p);
    }
    bk_arena_release(a->scratch, mark);
}

void bk_router_plain(const bk_route_args *a, const bk_score_config *c, bool renormalize,
                     bk_route *out)
{
    int64_t replaced;
    out->index = BK_NEW(a->arena, int32_t, a->tokens * a->k);
    out->weight = BK_NEW(a->arena, double, a->tokens * a->k);
    out->seen = bk_router_clean(a, &replaced);
    if (a->training && c->noise == BK_NOISE_LOGITS)
        bk_router_add_noise(a, c->noise_scale, out->seen);
    bk_router_select(a, out->seen, NULL, out->index);
    bk_router_weights(a, c, renormalize, out->seen, out->index, out->weight);
}

/* ---- auxiliary losses ---- */

typedef struct lane {
    int64_t first, last, tokens; /* rows; valid ones */
} lane;

static lane lane_of(const bk_route_args *a, int64_t l)
{
    lane x = {.first = bk_lane_row(a->lanes, a->tokens, l),
              .last = bk_lane_row(a->lanes, a->tokens, l + 1)};
    for (int64_t t = x.first; t < x.last; t++)
        x.tokens += bk_router_valid(a, t);
    return x;
}

/* p normalised over the experts. */
static void shares(int score, int64_t experts, const double *h, double *p)
{
    scores(score, experts, h, p);
    if (score == BK_SCORE_SOFTMAX)
        return;
    double sum = bk_vector_kernels_f64.sum(experts, p);
    for (int64_t j = 0; j < experts; j++)
        p[j] /= sum;
}

/* c_j = E cnt_j / (k Tc T): the factor of sum_t p_tj, with T global. */
static void count_factors(const bk_route_args *a, const lane *x, const int32_t *index,
                          double *factor)
{
    memset(factor, 0, (size_t)a->experts * sizeof *factor);
    for (int64_t t = x->first; t < x->last; t++)
        for (int64_t s = 0; s < a->k; s++)
            if (index[t * a->k + s] >= 0)
                factor[index[t * a->k + s]] += 1.0;
    double unit = (double)a->experts / ((double)a->k * (double)x->tokens * (double)a->valid);
    for (int64_t j = 0; j < a->experts; j++)
        factor[j] *= unit;
}

void bk_router_switch(const bk_route_args *a, int score, const int32_t *index, double *value)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    double *p = BK_NEW(a->scratch, double, a->experts),
           *factor = BK_NEW(a->scratch, double, a->experts);
    for (int64_t l = 0; l < a->lanes->count; l++) {
        lane x = lane_of(a, l);
        value[l] = 0.0;
        if (x.tokens == 0)
            continue;
        count_factors(a, &x, index, factor);
        for (int64_t t = x.first; t < x.last; t++) {
            if (!bk_router_valid(a, t))
                continue;
            shares(score, a->experts, a->logits + t * a->experts, p);
            value[l] += bk_vector_kernels_f64.dot(a->experts, p, factor);
        }
    }
    bk_arena_release(a->scratch, mark);
}

static void switch_row_back(int score, int64_t experts, const double *h, const double *factor,
                            double seed, double *gh, double *p)
{
    shares(score, experts, h, p);
    double inner = bk_vector_kernels_f64.dot(experts, p, factor);
    for (int64_t j = 0; j < experts; j++) {
        double g = seed * p[j] * (factor[j] - inner);
        gh[j] += score == BK_SCORE_SIGMOID ? g * (1.0 - sigmoid(h[j])) : g;
    }
}

void bk_router_switch_back(const bk_route_args *a, int score, const int32_t *index,
                           const double *seed, double *gh)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    double *p = BK_NEW(a->scratch, double, a->experts),
           *factor = BK_NEW(a->scratch, double, a->experts);
    for (int64_t l = 0; l < a->lanes->count; l++) {
        lane x = lane_of(a, l);
        if (x.tokens == 0)
            continue;
        count_factors(a, &x, index, factor);
        for (int64_t t = x.first; t < x.last; t++)
            if (bk_router_valid(a, t))
                switch_row_back(score, a->experts, a->logits + t * a->experts, factor, seed[l],
                                gh + t * a->experts, p);
    }
    bk_arena_release(a->scratch, mark);
}

void bk_router_z(const bk_route_args *a, double *value)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    double *p = BK_NEW(a->scratch, double, a->experts);
    for (int64_t l = 0; l < a->lanes->count; l++) {
        lane x = lane_of(a, l);
        value[l] = 0.0;
        for (int64_t t = x.first; t < x.last; t++) {
            double lse =
                bk_router_valid(a, t) ? bk_lse_f64(a->experts, a->logits + t * a->experts, p) : 0.0;
            value[l] += lse * lse;
        }
        value[l] /= a->valid > 0 ? (double)a->valid : 1.0;
    }
    bk_arena_release(a->scratch, mark);
}

void bk_router_z_back(const bk_route_args *a, const double *seed, double *gh)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    double *p = BK_NEW(a->scratch, double, a->experts);
    for (int64_t l = 0; l < a->lanes->count; l++) {
        lane x = lane_of(a, l);
        for (int64_t t = x.first; t < x.last; t++) {
            if (!bk_router_valid(a, t))
                continue;
            const double *h = a->logits + t * a->experts;
            double lse = bk_lse_f64(a->experts, h, p);
            scores(BK_SCORE_SOFTMAX, a->experts, h, p);
            bk_vector_kernels_f64.axpy(a->experts, seed[l] * 2.0 / (double)a->valid * lse, p,
                                       gh + t * a->experts);
        }
    }
    bk_arena_release(a->scratch, mark);
}
