/* models/router/noisy_topk.c - noisy top-k gating (Shazeer et al. 2017) while training; evaluation
 * is plain top-k.
 *   N = X noise_gate^T,  sd = softplus(N) + 0.01,  H' = H + z sd,  z ~ N(0,1);
 *   selection and weights from H'.
 * Its balance loss (aux=cv):  CV2(importance) + CV2(load),  CV2(x) = var(x) / (mean(x)^2 + 1e-10),
 *   importance_j = sum_t w_tj,  load_j = sum_t Phi((H_tj - thr_tj) / sd_tj),  thr = the (k+1)-th
 *   largest of row H' where j was selected, else the k-th.
 * Over all tokens of the step, or with scope=local of each block, weighed by its share of the
 * tokens.  Collective in that loss alone. */
#include "core/parallel.h"
#include "core/vector.h"
#include "models/router_common.h"

#include <math.h>
#include <string.h>

typedef struct noisy_config {
    bk_score_config base;
    int scope;
} noisy_config;

static const bk_option options[] = {
    BK_SCORE_OPTIONS(BK_SCORE_SOFTMAX),
    BK_SCOPE_OPTION(noisy_config),
    BK_OPTION_END,
};

/* What the way back needs. */
typedef struct kept {
    const double *noise_logits; /* [T,E] N, those that are not finite replaced */
    double *spread, *draw;      /* [T,E] sd and z */
} kept;

/* ---- routing ---- */

/* softplus(x) = max(x, 0) + log(1 + exp(-|x|)) */
static void make_spread(void *context, int64_t first, int64_t last)
{
    const kept *c = context;
    const double *n = c->noise_logits;
    double *sd = c->spread;
    for (int64_t i = first; i < last; i++)
        sd[i] = -fabs(n[i]);
    bk_exp_f64(last - first, sd + first, sd + first);
    for (int64_t i = first; i < last; i++)
        sd[i] += 1.0;
    bk_log_f64(last - first, sd + first, sd + first);
    for (int64_t i = first; i < last; i++)
        sd[i] += fmax(n[i], 0.0) + 1e-2;
}

/* Makes the arrays of a decision with H' as what is seen. */
static void begin(const bk_route_args *a, const bk_score_config *c, bk_route *out)
{
    int64_t n = a->tokens * a->experts;
    kept *own = BK_NEW(a->arena, kept, 1);
    double *seen = BK_NEW(a->arena, double, n);
    bk_router_begin(a, c, out);
    *own = (kept){bk_router_finite(a, a->noise_logits), BK_NEW(a->arena, double, n),
                  BK_ZNEW(a->arena, double, n)};
    bk_parallel(n, 1, 16, make_spread, own);
    bk_router_add_noise(a, 1.0, own->draw);
    for (int64_t i = 0; i < n; i++)
        seen[i] = out->clean[i] + own->draw[i] * own->spread[i];
    out->seen = seen;
    out->own = own;
}

static void route(const bk_route_args *a, bk_route *out)
{
    const bk_score_config *c = a->config;
    bool renormalize = bk_router_renormalizes(c, a->k);
    if (!a->training) {
        bk_router_plain(a, c, renormalize, out);
        return;
    }
    begin(a, c, out);
    bk_router_select(a, c, out->seen, out->index);
    bk_router_weights(a, c, renormalize, out, out->weight);
}

/* gsd = ph_a + gH' z reaches N through the sigmoid: gh[T,E] = gH' is added to both. */
static void noisy_logits_back(const bk_route_args *a, const bk_route *r, const double *gh,
                              const bk_route_back *b)
{
    const kept *own = r->own;
    int64_t n = a->tokens * a->experts;
    double *slope = BK_NEW(a->scratch, double, own ? n : 0);
    bk_vector(BK_F64)->add(n, gh, b->logits);
    if (!own)
        return;
    bk_router_scores(BK_SCORE_SIGMOID, n, own->noise_logits, slope);
    for (int64_t i = 0; i < n; i++)
        b->noise_logits[i] += gh[i] * own->draw[i] * slope[i];
}

static void weights_back(const bk_route_args *a, const bk_route *r, const double *gw,
                         const bk_route_back *b)
{
    const bk_score_config *c = a->config;
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    double *gh = BK_ZNEW(a->scratch, double, a->tokens * a->experts);
    bk_router_weights_back(a, c, bk_router_renormalizes(c, a->k), r, gw, gh);
    noisy_logits_back(a, r, gh, b);
    bk_arena_release(a->scratch, mark);
}

static void backward(const bk_route_args *a, const bk_route *r, const bk_route_back *b)
{
    weights_back(a, r, b->weight, b);
}

/* ---- the balance loss ---- */

/* The threshold of each entry: experts number k-1 and k of each row of H'. */
typedef struct thresholds {
    int32_t *order; /* [T,k+1] */
    int64_t k;
} thresholds;

static thresholds find_thresholds(const bk_route_args *a, const bk_route *r)
{
    bk_route_args more = *a;
    more.k = a->k + 1;
    thresholds x = {BK_NEW(a->scratch, int32_t, a->tokens * more.k), a->k};
    bk_router_select(&more, a->config, r->seen, x.order);
    return x;
}

static bool is_selected(const bk_route_args *a, const bk_route *r, int64_t t, int64_t e)
{
    for (int64_t s = t * a->k; s < (t + 1) * a->k; s++)
        if (r->index[s] == e)
            return true;
    return false;
}

/* The expert whose H' is the threshold of (t, e), and a = (H - thr) / sd. */
static int32_t threshold_of(const bk_route_args *a, const bk_route *r, const thresholds *x,
                            int64_t t, int64_t e, double *distance)
{
    int64_t row = t * a->experts;
    int32_t of = x->order[t * (x->k + 1) + (is_selected(a, r, t, e) ? x->k : x->k - 1)];
    *distance = (r->clean[row + e] - r->seen[row + of]) / ((const kept *)r->own)->spread[row + e];
    return of;
}

/* One token's part of importance[E] and load[E]. */
static void add_token(const bk_route_args *a, const bk_route *r, const thresholds *x, int64_t t,
                      double *importance, double *load)
{
    double distance;
    if (!bk_router_valid(a, t))
        return;
    for (int64_t s = t * a->k; s < (t + 1) * a->k; s++)
        importance[r->index[s]] += r->weight[s];
    for (int64_t e = 0; e < a->experts; e++) {
        threshold_of(a, r, x, t, e, &distance);
        load[e] += 0.5 * (1.0 + erf(distance * sqrt(0.5)));
    }
}

/* sum[blocks,2E]: importance and load of each block, by lanes where ranks share it. */
static double *sum_blocks(const bk_route_args *a, const bk_route *r, const thresholds *x,
                          const bk_route_blocks *b)
{
    int64_t experts = a->experts, lanes = b->shared ? a->lanes->count : 1,
            n = 2 * experts * b->count;
    double *local = BK_ZNEW(a->scratch, double, lanes *n), *sum = BK_NEW(a->scratch, double, n);
    for (int64_t l = 0; l < lanes; l++) {
        int64_t first = b->shared ? bk_lane_row(a->lanes, a->tokens, l) : 0,
                last = b->shared ? bk_lane_row(a->lanes, a->tokens, l + 1) : a->tokens;
        for (int64_t i = 0; i < b->count; i++) {
            double *to = local + l * n + 2 * experts * i;
            for (int64_t t = first; t < last; t++)
                if (t >= b->row[i] && t < b->row[i + 1])
                    add_token(a, r, x, t, to, to + experts);
        }
    }
    if (!b->shared)
        return local;
    bk_reduce_vector(a->reducer, a->lanes, n, local, sum, a->scratch);
    return sum;
}

/* CV2(x), and grad[E] = its gradient; grad may be NULL. */
static double variation(int64_t n, const double *x, double *grad)
{
    double mean = bk_vector(BK_F64)->sum(n, x) / (double)n, variance = 0.0;
    for (int64_t j = 0; j < n; j++)
        variance += (x[j] - mean) * (x[j] - mean) / (double)(n - 1);
    double q = mean * mean + 1e-10;
    for (int64_t j = 0; grad && j < n; j++)
        grad[j] = 2.0 * (x[j] - mean) / ((double)(n - 1) * q) -
                  2.0 * variance * mean / ((double)n * q * q);
    return variance / q;
}

/* Calls each lane's rows of each block. */
typedef void piece_body(void *context, int64_t lane, int64_t block, int64_t tokens);

static void for_each_piece(const bk_route_args *a, const bk_route_blocks *b, piece_body *body,
                           void *context)
{
    for (int64_t l = 0; l < a->lanes->count; l++)
        for (int64_t i = 0; i < b->count; i++) {
            int64_t first = bk_lane_row(a->lanes, a->tokens, l), tokens = 0,
                    last = bk_lane_row(a->lanes, a->tokens, l + 1);
            first = first > b->row[i] ? first : b->row[i];
            last = last < b->row[i + 1] ? last : b->row[i + 1];
            for (int64_t t = first; t < last; t++)
                tokens += bk_router_valid(a, t);
            body(context, l, i, tokens);
        }
}

/* Between records of lanes and losses of blocks: a token carries 1/T of its block's loss. */
typedef struct sharing {
    double valid;
    double *record;     /* [m] += shares of loss[blocks], or */
    const double *seed; /* [m], whose shares are added to */
    double *loss;       /* [blocks], or by lane [m,blocks]: */
    int64_t stride;     /* from lane to lane */
} sharing;

static void share_loss(void *context, int64_t lane, int64_t block, int64_t tokens)
{
    const sharing *c = context;
    if (tokens > 0)
        c->record[lane] += c->loss[block] * (double)tokens / c->valid;
}

static void share_seed(void *context, int64_t lane, int64_t block, int64_t tokens)
{
    const sharing *c = context;
    if (tokens > 0)
        c->loss[lane * c->stride + block] += c->seed[lane] * (double)tokens / c->valid;
}

static void measure(const bk_route_args *a, const bk_route *r, double *record)
{
    memset(record, 0, (size_t)a->lanes->count * sizeof *record);
    if (!r->own)
        return;
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    bk_route_blocks b = bk_router_scope(a, ((const noisy_config *)a->config)->scope);
    thresholds x = find_thresholds(a, r);
    const double *sum = sum_blocks(a, r, &x, &b);
    sharing c = {
        .valid = (double)a->valid, .record = record, .loss = BK_NEW(a->scratch, double, b.count)};
    for (int64_t i = 0; i < b.count; i++)
        c.loss[i] = variation(a->experts, sum + 2 * i * a->experts, NULL) +
                    variation(a->experts, sum + (2 * i + 1) * a->experts, NULL);
    for_each_piece(a, &b, share_loss, &c);
    bk_arena_release(a->scratch, mark);
}

/* ---- its way back ---- */

/* seed[blocks] of the losses of the blocks. */
static double *seeds_of_blocks(const bk_route_args *a, const bk_route_blocks *b, const double *seed)
{
    sharing c = {.valid = (double)a->valid,
                 .seed = seed,
                 .loss = BK_ZNEW(a->scratch, double, (a->lanes->count + 1) * b->count),
                 .stride = b->shared ? b->count : 0};
    for_each_piece(a, b, share_seed, &c);
    if (!b->shared)
        return c.loss;
    double *sum = BK_NEW(a->scratch, double, b->count);
    bk_reduce_vector(a->reducer, a->lanes, b->count, c.loss, sum, a->scratch);
    return sum;
}

typedef struct cv_back {
    const bk_route_args *args;
    const bk_route *route;
    const thresholds *thresholds;
    double *gw; /* [T,k] behind the weights */
    double *gh; /* [T,E] behind H' */
    const bk_route_back *out;
} cv_back;

/* What reaches one token through grad[E] = dL/dload: with ph = grad phi(a) / sd
 *   gH += ph,  gH'[threshold] -= ph,  gsd -= ph a. */
static void load_back(const cv_back *c, int64_t t, const double *grad)
{
    const double height = 1.0 / sqrt(2.0 * 3.14159265358979323846);
    const kept *own = c->route->own;
    for (int64_t e = 0; e < c->args->experts; e++) {
        int64_t i = t * c->args->experts + e;
        double distance;
        int32_t of = threshold_of(c->args, c->route, c->thresholds, t, e, &distance);
        double ph = grad[e] * height * bk_exp_one(-0.5 * distance * distance) / own->spread[i];
        c->out->logits[i] += ph;
        c->gh[t * c->args->experts + of] -= ph;
        c->out->noise_logits[i] -= ph * distance * bk_router_sigmoid(own->noise_logits[i]);
    }
}

/* grad[2E]: of importance and load of the block. */
static void block_back(const cv_back *c, int64_t first, int64_t last, const double *grad)
{
    int64_t k = c->args->k;
    for (int64_t t = first; t < last; t++) {
        if (!bk_router_valid(c->args, t))
            continue;
        for (int64_t s = t * k; s < (t + 1) * k; s++)
            c->gw[s] = grad[c->route->index[s]];
        load_back(c, t, grad + c->args->experts);
    }
}

static void measure_back(const bk_route_args *a, const bk_route *r, const bk_route_back *b)
{
    if (!r->own)
        return;
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    int64_t e = a->experts;
    bk_route_blocks blocks = bk_router_scope(a, ((const noisy_config *)a->config)->scope);
    thresholds x = find_thresholds(a, r);
    const double *sum = sum_blocks(a, r, &x, &blocks), *seed = seeds_of_blocks(a, &blocks, b->aux);
    cv_back c = {.args = a,
                 .route = r,
                 .thresholds = &x,
                 .gw = BK_ZNEW(a->scratch, double, a->tokens * a->k),
                 .gh = BK_ZNEW(a->scratch, double, a->tokens *e),
                 .out = b};
    double *grad = BK_NEW(a->scratch, double, 2 * e);
    for (int64_t i = 0; i < blocks.count; i++) {
        variation(e, sum + 2 * i * e, grad);
        variation(e, sum + (2 * i + 1) * e, grad + e);
        bk_vector(BK_F64)->scale(2 * e, seed[i], grad);
        block_back(&c, blocks.row[i], blocks.row[i + 1], grad);
    }
    noisy_logits_back(a, r, c.gh, b);
    weights_back(a, r, c.gw, b);
    bk_arena_release(a->scratch, mark);
}

const bk_router_kind bk_router_noisy_topk = {
    .name = "noisy_topk",
    .summary = "top-k of logits with learnt noise while training",
    .source = "Shazeer et al. 2017",
    .options = options,
    .config_size = sizeof(noisy_config),
    .flags = BK_ROUTER_NOISE_GATE,
    .check = bk_router_check_scores,
    .route = route,
    .backward = backward,
    .measure = measure,
    .measure_back = measure_back,
};
