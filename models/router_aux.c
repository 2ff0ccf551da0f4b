/* The losses of a routing and the whole gradient. */
#include "core/vector.h"
#include "models/router_common.h"

#include <math.h>
#include <string.h>

static int score_of(const bk_route_args *a)
{
    return ((const bk_score_config *)a->config)->score;
}

/* The blocks whose choices are counted together. */
static bk_route_blocks counted_blocks(const bk_route_args *a)
{
    if (a->aux == BK_AUX_GLOBAL)
        return bk_router_scope(a, BK_SCOPE_GLOBAL);
    return a->aux == BK_AUX_SEQ && a->sequences ? *a->sequences : bk_router_blocks(a);
}

/* What losses count. */
static const int32_t *choices(const bk_route_args *a, const bk_route *r)
{
    if (r->counted)
        return r->index;
    int32_t *index = BK_NEW(a->scratch, int32_t, a->tokens * a->k);
    bk_router_select(a, a->config, r->clean, index);
    return index;
}

/* counts[blocks, E+1]: how often each expert was chosen, and the valid tokens. */
static int64_t *count_choices(const bk_route_args *a, const bk_route *r, const bk_route_blocks *b)
{
    int64_t width = a->experts + 1, *counts = BK_ZNEW(a->scratch, int64_t, b->count * width);
    const int32_t *index = choices(a, r);
    for (int64_t i = 0; i < b->count; i++)
        for (int64_t t = b->row[i]; t < b->row[i + 1]; t++) {
            counts[i * width + a->experts] += bk_router_valid(a, t);
            for (int64_t s = 0; bk_router_valid(a, t) && s < a->k; s++)
                counts[i * width + index[t * a->k + s]]++;
        }
    if (b->shared)
        bk_reduce_fixed(a->reducer, b->count * width, counts);
    return counts;
}

/* factor[blocks,E]: c_bj = E cnt_bj / (k T_b T), the factor of sum_t p_tj. */
static double *switch_factors(const bk_route_args *a, const bk_route *r, const bk_route_blocks *b)
{
    int64_t experts = a->experts, *counts = count_choices(a, r, b);
    double *factor = BK_ZNEW(a->scratch, double, b->count *experts);
    for (int64_t i = 0; i < b->count; i++) {
        const int64_t *count = counts + i * (experts + 1);
        double unit = (double)experts / ((double)a->k * (double)count[experts] * (double)a->valid);
        for (int64_t j = 0; count[experts] > 0 && j < experts; j++)
            factor[i * experts + j] = (double)count[j] * unit;
    }
    return factor;
}

/* One pass over the rows for one loss: fills the records of the own lanes, or adds the gradient of
 * <seed, records>. */
typedef struct loss_pass {
    const bk_route_args *args;
    const bk_route *route;
    const double *factor; /* [blocks,E] of the switch loss; NULL: the z loss */
    double *record;       /* [m], or NULL */
    const double *seed;   /* [m] with grad */
    double *grad;         /* [T,E], or NULL */
    double *p;            /* [E] room for the scores of a row */
} loss_pass;

static double switch_row(const loss_pass *x, int64_t t, int64_t block, double seed)
{
    int64_t experts = x->args->experts;
    int score = score_of(x->args);
    const double *h = x->route->clean + t * experts, *factor = x->factor + block * experts;
    bk_router_shares(score, experts, h, x->p);
    double inner = bk_vector(BK_F64)->dot(experts, x->p, factor);
    for (int64_t j = 0; x->grad && j < experts; j++) {
        double g = seed * x->p[j] * (factor[j] - inner);
        x->grad[t * experts + j] +=
            score == BK_SCORE_SIGMOID ? g * (1.0 - bk_router_sigmoid(h[j])) : g;
    }
    return inner;
}

static double z_row(const loss_pass *x, int64_t t, double seed)
{
    int64_t experts = x->args->experts;
    const double *h = x->route->clean + t * experts;
    double lse = bk_lse_f64(experts, h, x->p), valid = (double)x->args->valid;
    if (x->grad) {
        bk_router_scores(BK_SCORE_SOFTMAX, experts, h, x->p);
        bk_vector(BK_F64)->axpy(experts, seed * 2.0 / valid * lse, x->p, x->grad + t * experts);
    }
    return lse * lse / valid;
}

static void run_pass(loss_pass *x, const bk_route_blocks *b)
{
    const bk_route_args *a = x->args;
    x->p = BK_NEW(a->scratch, double, a->experts);
    for (int64_t l = 0, block = 0; l < a->lanes->count; l++) {
        double sum = 0.0, seed = x->seed ? x->seed[l] : 0.0;
        int64_t last = bk_lane_row(a->lanes, a->tokens, l + 1);
        for (int64_t t = bk_lane_row(a->lanes, a->tokens, l); t < last; t++) {
            while (t >= b->row[block + 1])
                block++;
            if (bk_router_valid(a, t))
                sum += x->factor ? switch_row(x, t, block, seed) : z_row(x, t, seed);
        }
        if (x->record)
            x->record[l] = sum;
    }
}

/* The balance loss: fills x->record or adds to x->grad as run_pass does. */
static void run_switch(loss_pass *x)
{
    bk_route_blocks b = counted_blocks(x->args);
    x->factor = switch_factors(x->args, x->route, &b);
    run_pass(x, &b);
}

void bk_route_measure(const bk_route_args *a, const bk_route *r, bk_route_losses *out)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    bk_route_blocks b = bk_router_blocks(a);
    loss_pass x = {.args = a, .route = r, .record = out->z};
    if (out->z)
        run_pass(&x, &b);
    x.record = out->aux;
    if (out->aux && a->aux == BK_AUX_CV)
        a->kind->measure(a, r, out->aux);
    else if (out->aux)
        run_switch(&x);
    bk_arena_release(a->scratch, mark);
}

/* ---- the whole gradient ---- */

static void clear_replaced(const bk_route_args *a, const double *logits, double *grad)
{
    for (int64_t i = 0; i < a->tokens * a->experts; i++)
        if (!isfinite(logits[i]))
            grad[i] = 0.0;
}

static void losses_back(const bk_route_args *a, const bk_route *r, const bk_route_back *b)
{
    bk_route_blocks all = bk_router_blocks(a);
    loss_pass x = {.args = a, .route = r, .seed = b->z, .grad = b->logits};
    if (b->z)
        run_pass(&x, &all);
    x.seed = b->aux;
    if (b->aux && a->aux == BK_AUX_CV)
        a->kind->measure_back(a, r, b);
    else if (b->aux)
        run_switch(&x);
}

void bk_route_gradient(const bk_route_args *a, const bk_route *r, const bk_route_back *b)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    size_t bytes = (size_t)(a->tokens * a->experts) * sizeof(double);
    memset(b->logits, 0, bytes);
    if (b->noise_logits)
        memset(b->noise_logits, 0, bytes);
    if (b->weight && a->kind->backward)
        a->kind->backward(a, r, b);
    losses_back(a, r, b);
    if (r->clean != a->logits)
        clear_replaced(a, a->logits, b->logits);
    if (b->noise_logits && a->noise_logits)
        clear_replaced(a, a->noise_logits, b->noise_logits);
    bk_arena_release(a->scratch, mark);
}
