#include "models/moe_figures.h"

#include "core/parallel.h"
#include "core/vector.h"
#include "dist/collective.h"
#include "models/moe_capacity.h"
#include "models/router_common.h"

#include <math.h>
#include <string.h>

static const double unit = 0x1p30;

static int64_t fixed(double x)
{
    return isfinite(x) ? (int64_t)rint((x < 0x1p32 ? x : 0x1p32) * unit) : 0;
}

static double real(int64_t x)
{
    return (double)x / unit;
}

void bk_moe_state_init(bk_moe_state *state, bk_arena *arena, int64_t experts)
{
    *state = (bk_moe_state){.experts = experts,
                            .load = BK_ZNEW(arena, int64_t, experts),
                            .column = BK_ZNEW(arena, int64_t, experts),
                            .since = BK_ZNEW(arena, int64_t, experts),
                            .share = BK_ZNEW(arena, double, experts)};
}

/* ---- counting ---- */

typedef struct counting {
    const bk_route_args *args;
    const bk_route *route;
    double *p, *log_p;                 /* [T,E] softmax(H) and its logarithm */
    int64_t *column;                   /* [E] */
    int64_t (*token)[BK_MOE_COUNTERS]; /* [T] what each token adds */
} counting;

static void count_tokens(void *context, int64_t first, int64_t last)
{
    const counting *c = context;
    const bk_route_args *a = c->args;
    int64_t experts = a->experts;
    for (int64_t t = first; t < last; t++) {
        double *p = c->p + t * experts, *log_p = c->log_p + t * experts, entropy = 0.0, kept = 0.0;
        int64_t *counter = c->token[t];
        memset(counter, 0, sizeof c->token[t]);
        if (!bk_router_valid(a, t))
            continue;
        bk_router_scores(BK_SCORE_SOFTMAX, experts, c->route->clean + t * experts, p);
        bk_log_f64(experts, p, log_p);
        for (int64_t e = 0; e < experts; e++) {
            entropy -= p[e] > 0 ? p[e] * log_p[e] : 0.0;
            counter[BK_MOE_NONFINITE] += !isfinite(a->logits[t * experts + e]);
        }
        for (int64_t s = t * c->route->slots; s < (t + 1) * c->route->slots; s++)
            if (c->route->index[s] >= 0) {
                kept += p[c->route->index[s]];
                counter[BK_MOE_DROPPED] += !bk_route_sends(c->route, s);
            }
        counter[BK_MOE_TOKENS] = 1;
        counter[BK_MOE_ENTROPY] = experts > 1 ? fixed(entropy / log((double)experts)) : 0;
        counter[BK_MOE_CONFIDENCE] = fixed(bk_vector(BK_F64)->max(experts, p));
        counter[BK_MOE_KEPT_MASS] = fixed(kept);
    }
}

static void count_columns(void *context, int64_t first, int64_t last)
{
    const counting *c = context;
    const bk_route_args *a = c->args;
    const double *p = c->route->transport ? c->route->plan : c->p;
    for (int64_t t = 0; t < a->tokens; t++)
        for (int64_t e = first; bk_router_valid(a, t) && e < last; e++)
            c->column[e] += fixed(p[t * a->experts + e]);
}

static void count_loads(bk_moe_state *state, const counting *c)
{
    for (int64_t s = 0; s < c->args->tokens * c->route->slots; s++) {
        int32_t expert = c->route->index[s];
        if (expert < 0)
            continue;
        state->load[expert]++;
        state->since[expert]++;
    }
    for (int64_t t = 0; t < c->args->tokens; t++)
        for (int i = 0; i < BK_MOE_COUNTERS; i++)
            state->counter[i] += c->token[t][i];
}

static int64_t fixed_sum(int64_t n, const double *x)
{
    int64_t sum = 0;
    for (int64_t i = 0; x && i < n; i++)
        sum += fixed(x[i]);
    return sum;
}

void bk_moe_state_count(bk_moe_state *state, const bk_route_args *a, const bk_route *r,
                        const double *aux, const double *z)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    counting c = {.args = a,
                  .route = r,
                  .p = BK_NEW(a->scratch, double, a->tokens * a->experts),
                  .log_p = BK_NEW(a->scratch, double, a->tokens * a->experts),
                  .column = state->column,
                  .token = bk_arena_alloc(a->scratch, (size_t)a->tokens * sizeof *c.token)};
    size_t bytes = (size_t)a->experts * sizeof(int64_t);
    memset(state->counter, 0, sizeof state->counter);
    memset(state->load, 0, bytes);
    memset(state->column, 0, bytes);
    bk_parallel(a->tokens, 1, a->experts, count_tokens, &c);
    bk_parallel(a->experts, 1, a->tokens, count_columns, &c);
    count_loads(state, &c);
    state->counter[BK_MOE_AUX] = fixed_sum(a->lanes->count, aux);
    state->counter[BK_MOE_Z] = fixed_sum(a->lanes->count, z);
    state->iterations = r->iterations;
    state->unconverged += r->transport && !r->converged;
    state->held += r->held;
    bk_arena_release(a->scratch, mark);
}

/* ---- figures ---- */

static void load_figures(const bk_moe_state *state, const int64_t *load, bk_moe_figures *out)
{
    int64_t experts = state->experts;
    double total = 0.0, squares = 0.0, most = 0.0, least = INFINITY;
    for (int64_t e = 0; e < experts; e++) {
        total += (double)load[e];
        most = fmax(most, (double)load[e]);
        least = fmin(least, (double)load[e]);
    }
    double mean = total / (double)experts;
    memset(state->share, 0, (size_t)experts * sizeof *state->share);
    out->share = state->share;
    out->experts = experts;
    if (total == 0.0)
        return;
    for (int64_t e = 0; e < experts; e++) {
        double share = state->share[e] = (double)load[e] / total, over = (double)load[e] - mean;
        squares += over * over;
        out->load_entropy -= share > 0 ? share * log(share) : 0.0;
    }
    out->load_max_over_mean = most / mean;
    out->load_min_over_mean = least / mean;
    out->load_cv = sqrt(squares / (double)experts) / mean;
    out->load_entropy /= experts > 1 ? log((double)experts) : 1.0;
}

static void token_figures(int64_t experts, const int64_t *counter, const int64_t *column,
                          bk_moe_figures *out)
{
    double tokens = (double)counter[BK_MOE_TOKENS];
    out->nonfinite_logits = counter[BK_MOE_NONFINITE];
    out->bytes_sent = counter[BK_MOE_BYTES];
    out->aux = real(counter[BK_MOE_AUX]);
    out->z = real(counter[BK_MOE_Z]);
    if (tokens == 0.0)
        return;
    out->token_entropy = real(counter[BK_MOE_ENTROPY]) / tokens;
    out->confidence = real(counter[BK_MOE_CONFIDENCE]) / tokens;
    out->kept_mass = real(counter[BK_MOE_KEPT_MASS]) / tokens;
    for (int64_t e = 0; e < experts; e++)
        out->soft_column_error =
            fmax(out->soft_column_error, fabs(real(column[e]) * (double)experts / tokens - 1.0));
}

/* What is largest on some rank. */
static void rank_figures(const bk_moe_state *state, const bk_comm *route, double rows,
                         bk_moe_figures *out)
{
    double most[4 + BK_MOE_PHASES] = {(double)state->received, (double)state->iterations,
                                      (double)state->unconverged, (double)state->held};
    memcpy(most + 4, state->seconds, sizeof state->seconds);
    bk_max_f64(route, 4 + BK_MOE_PHASES, most);
    out->rank_load_max_over_mean = rows > 0 ? most[0] * bk_comm_size(route) / rows : 0.0;
    out->router_iterations = (int64_t)most[1];
    out->router_unconverged = (int64_t)most[2];
    out->router_held = (int64_t)most[3];
    memcpy(out->seconds, most + 4, sizeof out->seconds);
}

void bk_moe_state_figures(bk_moe_state *state, const bk_comm *route, bk_moe_figures *out)
{
    int64_t experts = state->experts, rows = 0;
    bk_arena *scratch = bk_arena_new("moe figures");
    int64_t *sum = BK_NEW(scratch, int64_t, BK_MOE_COUNTERS + 3 * experts);
    int64_t *load = sum + BK_MOE_COUNTERS, *column = load + experts, *since = column + experts;
    memcpy(sum, state->counter, sizeof state->counter);
    memcpy(load, state->load, (size_t)experts * sizeof *sum);
    memcpy(column, state->column, (size_t)experts * sizeof *sum);
    memcpy(since, state->since, (size_t)experts * sizeof *sum);
    bk_sum_i64(route, BK_MOE_COUNTERS + 3 * experts, sum);
    *out = (bk_moe_figures){0};
    for (int64_t e = 0; e < experts; e++) {
        rows += load[e];
        out->dead += since[e] == 0;
    }
    load_figures(state, load, out);
    token_figures(experts, sum, column, out);
    out->drop_rate = rows > 0 ? (double)sum[BK_MOE_DROPPED] / (double)rows : 0.0;
    rank_figures(state, route, (double)(rows - sum[BK_MOE_DROPPED]), out);
    memset(state->since, 0, (size_t)experts * sizeof *state->since);
    state->unconverged = state->held = 0;
    bk_arena_free(scratch);
}
