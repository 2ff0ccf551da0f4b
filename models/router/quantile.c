/* models/router/quantile.c - the dual of a balanced assignment: selection by score + bias with the
 * bias of the former step, then
 *   alpha_t = (k+1)-th largest of s_t + b,  m = floor(T k/E),
 *   b_j = -((m+1)-th largest over t of s_tj - alpha_t),  b -= mean(b).
 * Collective while training with scope=global: the order statistics are those of all tokens of the
 * step.  scope=local: of each lane alone, then the mean over the lanes. */
#include "core/vector.h"
#include "models/radix.h"
#include "models/router_common.h"

#include <string.h>

typedef struct quantile_config {
    bk_score_config base;
    int scope;
} quantile_config;

static const bk_option options[] = {
    BK_SCORE_OPTIONS(BK_SCORE_SOFTMAX),
    BK_GROUP_OPTIONS,
    BK_SCOPE_OPTION(quantile_config),
    BK_OPTION_END,
};

static bk_status check(const void *config, int64_t experts, int64_t k)
{
    if (k >= experts)
        return bk_fail(
            BK_USAGE,
            "router quantile needs k < experts, %lld of %lld (model.moe): choose a smaller k",
            (long long)k, (long long)experts);
    return bk_router_check_scores(config, experts, k);
}

/* margin[T,E] = s - alpha, in place of the scores; valid rows only. */
static void margins(const bk_route_args *a, const bk_biased_scores *s)
{
    static const bk_score_config plain = {0};
    bk_route_args more = *a;
    more.k = a->k + 1;
    int32_t *index = BK_NEW(a->scratch, int32_t, a->tokens * more.k);
    bk_router_select(&more, &plain, s->biased, index);
    for (int64_t t = 0; t < a->tokens; t++)
        for (int64_t e = 0; bk_router_valid(a, t) && e < a->experts; e++)
            s->score[t * a->experts + e] -= s->biased[t * a->experts + index[t * more.k + a->k]];
}

/* b[E] of block i; a block without tokens keeps the former one. */
static void bias_of_block(const bk_route_args *a, const bk_route_blocks *b, int64_t i,
                          const double *margin, double *bias)
{
    int64_t tokens = bk_router_block_tokens(a, ((const quantile_config *)a->config)->scope, b, i);
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    bk_radix radix = {.columns = a->experts,
                      .wanted = tokens * a->k / a->experts + 1,
                      .reducer = b->shared ? a->reducer : NULL,
                      .scratch = a->scratch};
    radix.value = bk_router_pack(a, b->row[i], b->row[i + 1], margin, &radix.rows);
    if (tokens > 0)
        bk_radix_largest(&radix, bias, NULL);
    double mean = bk_vector(BK_F64)->sum(a->experts, bias) / (double)a->experts;
    for (int64_t e = 0; tokens > 0 && e < a->experts; e++)
        bias[e] = mean - bias[e];
    if (tokens == 0 && a->bias)
        memcpy(bias, a->bias, (size_t)a->experts * sizeof *bias);
    bk_arena_release(a->scratch, mark);
}

/* The mean over the blocks that were given, or over all lanes. */
static void mean_of_blocks(const bk_route_args *a, const bk_route_blocks *b, const double *of,
                           double *mean)
{
    bool given = b->shared || a->blocks;
    int64_t count = given ? b->count : a->lanes->total;
    if (given)
        bk_lane_tree_values(count, a->experts, of, mean, a->scratch);
    else
        bk_reduce_vector(a->reducer, a->lanes, a->experts, of, mean, a->scratch);
    bk_vector(BK_F64)->scale(a->experts, 1.0 / (double)count, mean);
}

static const double *next_bias(const bk_route_args *a, const double *margin)
{
    const quantile_config *c = a->config;
    bk_route_blocks b = bk_router_scope(a, c->scope);
    double *of = BK_ZNEW(a->scratch, double, b.count * a->experts),
           *mean = BK_ZNEW(a->arena, double, a->experts);
    for (int64_t i = 0; i < b.count; i++)
        bias_of_block(a, &b, i, margin, of + i * a->experts);
    mean_of_blocks(a, &b, of, mean);
    return mean;
}

static void route(const bk_route_args *a, bk_route *out)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    bk_biased_scores s = bk_router_biased(a, a->config, out);
    if (a->training) {
        margins(a, &s);
        out->next = next_bias(a, s.score);
    }
    bk_arena_release(a->scratch, mark);
}

const bk_router_kind bk_router_quantile = {
    .name = "quantile",
    .summary = "balanced by a bias from column quantiles of the former step's scores",
    .source = "dual of the balanced assignment",
    .options = options,
    .config_size = sizeof(quantile_config),
    .flags = BK_ROUTER_STATE | BK_ROUTER_COLLECTIVE,
    .check = check,
    .route = route,
    .backward = bk_router_scores_back,
};
