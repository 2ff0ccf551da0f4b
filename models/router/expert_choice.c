/* models/router/expert_choice.c - experts choose tokens (Zhou et al. 2022): each takes its
 *   cap = min(T, ceil(T k factor / E))  best tokens by p = softmax(H), with weight p; ties to the
 * lower token.  factor = model.moe.capacity_factor, 0 counts as 1.  Balanced by construction, in
 * evaluation too; a token's route depends on all others, so a decoder cannot have it.  Collective
 * with scope=global: the choice is among all tokens of the step. */
#include "core/vector.h"
#include "models/radix.h"
#include "models/router_common.h"

#include <math.h>
#include <string.h>

typedef struct choice_config {
    bk_score_config base;
    int scope;
} choice_config;

static const bk_option options[] = {
    BK_SCOPE_OPTION(choice_config),
    BK_OPTION_END,
};

static bk_status check(const void *config, int64_t experts, int64_t k)
{
    (void)config;
    (void)experts;
    (void)k;
    return BK_OK;
}

static int64_t capacity(const bk_route_args *a, int64_t tokens)
{
    double factor = a->capacity_factor > 0.0 ? a->capacity_factor : 1.0;
    double cap = ceil((double)tokens * (double)a->k * factor / (double)a->experts);
    return cap < (double)tokens ? (int64_t)cap : tokens;
}

/* What an expert takes of a block: all above its threshold, and the first ties at it. */
typedef struct cut {
    double *threshold; /* [E] */
    int64_t *ties;     /* [E] taken at the threshold, over all ranks */
    int64_t *before;   /* [E] values there at lower tokens of other ranks, then of own ones too */
} cut;

/* Own values at the threshold, summed over the ranks before this one. */
static void count_before(const bk_route_args *a, const bk_route_blocks *b, int64_t i,
                         const double *p, const cut *c)
{
    int64_t experts = a->experts, ranks = a->lanes->total,
            *at = BK_ZNEW(a->scratch, int64_t, (ranks + 1) * experts);
    int64_t *own = at + (a->lanes->count > 0 ? a->lanes->first : ranks) * experts;
    for (int64_t t = b->row[i]; t < b->row[i + 1]; t++)
        for (int64_t e = 0; bk_router_valid(a, t) && e < experts; e++)
            own[e] += p[t * experts + e] == c->threshold[e];
    bk_reduce_fixed(a->reducer, ranks * experts, at);
    for (int64_t l = 0; l < a->lanes->first; l++)
        for (int64_t e = 0; e < experts; e++)
            c->before[e] += at[l * experts + e];
}

static bool takes(const cut *c, int64_t e, double p)
{
    return p > c->threshold[e] || (p == c->threshold[e] && c->before[e]++ < c->ties[e]);
}

static void choose(const bk_route_args *a, const bk_route_blocks *b, int64_t i, const double *p,
                   bk_route *out)
{
    int64_t experts = a->experts,
            tokens = bk_router_block_tokens(a, ((const choice_config *)a->config)->scope, b, i);
    cut c = {BK_NEW(a->scratch, double, experts), BK_NEW(a->scratch, int64_t, experts),
             BK_ZNEW(a->scratch, int64_t, experts)};
    bk_radix radix = {.columns = experts,
                      .wanted = capacity(a, tokens),
                      .reducer = b->shared ? a->reducer : NULL,
                      .scratch = a->scratch};
    if (radix.wanted == 0)
        return;
    radix.value = bk_router_pack(a, b->row[i], b->row[i + 1], p, &radix.rows);
    bk_radix_largest(&radix, c.threshold, c.ties);
    if (b->shared)
        count_before(a, b, i, p, &c);
    for (int64_t t = b->row[i]; t < b->row[i + 1]; t++)
        for (int64_t e = 0; bk_router_valid(a, t) && e < experts; e++)
            if (takes(&c, e, p[t * experts + e])) {
                out->index[t * experts + e] = (int32_t)e;
                out->weight[t * experts + e] = p[t * experts + e];
            }
}

static void route(const bk_route_args *a, bk_route *out)
{
    int64_t n = a->tokens * a->experts;
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    double *p = BK_NEW(a->scratch, double, n);
    out->slots = a->experts;
    out->index = BK_NEW(a->arena, int32_t, n);
    out->weight = BK_ZNEW(a->arena, double, n);
    out->clean = out->seen = bk_router_finite(a, a->logits);
    memset(out->index, -1, (size_t)n * sizeof *out->index);
    bk_router_score_rows(a, BK_SCORE_SOFTMAX, out->seen, p);
    bk_route_blocks b = bk_router_scope(a, ((const choice_config *)a->config)->scope);
    for (int64_t i = 0; i < b.count; i++) {
        bk_arena_mark one = bk_arena_get_mark(a->scratch);
        choose(a, &b, i, p, out);
        bk_arena_release(a->scratch, one);
    }
    bk_arena_release(a->scratch, mark);
}

/* gp = gw at what was chosen;  gH = p (gp - <p, gp>). */
static void backward(const bk_route_args *a, const bk_route *r, const bk_route_back *b)
{
    int64_t experts = a->experts;
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    double *p = BK_NEW(a->scratch, double, a->tokens *experts);
    bk_router_score_rows(a, BK_SCORE_SOFTMAX, r->seen, p);
    for (int64_t t = 0; t < a->tokens; t++) {
        const double *row = p + t * experts, *gw = b->weight + t * experts;
        const int32_t *index = r->index + t * experts;
        double *gh = b->logits + t * experts, inner = 0.0;
        for (int64_t e = 0; e < experts; e++)
            inner += index[e] >= 0 ? row[e] * gw[e] : 0.0;
        for (int64_t e = 0; e < experts; e++)
            gh[e] += row[e] * ((index[e] >= 0 ? gw[e] : 0.0) - inner);
    }
    bk_arena_release(a->scratch, mark);
}

const bk_router_kind bk_router_expert_choice = {
    .name = "expert_choice",
    .summary = "experts choose their best tokens; encoders only",
    .source = "Zhou et al. 2022",
    .options = options,
    .config_size = sizeof(choice_config),
    .flags = BK_ROUTER_COLLECTIVE | BK_ROUTER_EXPERTS,
    .check = check,
    .route = route,
    .backward = backward,
};
