/* models/router_common.h - what the router kinds share: scores, weights, selection, auxiliary
 * losses, draws. */
#ifndef BK_MODELS_ROUTER_COMMON_H
#define BK_MODELS_ROUTER_COMMON_H

#include "models/router.h"

/* Options that most kinds have; a kind's configuration starts with it. */
typedef struct bk_score_config {
    int score;       /* BK_SCORE_* */
    int renormalize; /* auto, true, false */
    double scale;
    int noise; /* BK_NOISE_* */
    double noise_scale;
} bk_score_config;

enum { BK_SCORE_SOFTMAX, BK_SCORE_SIGMOID };
enum { BK_AUTO, BK_TRUE, BK_FALSE };
enum { BK_NOISE_NONE, BK_NOISE_LOGITS, BK_NOISE_COST };

/* Rows of an option table of `config_` whose member `base` is a bk_score_config. */
#define BK_SCORE_OPTIONS(config_, noises)                                                         \
    {.name = "score",                                                                             \
     .type = BK_OPT_CHOICE,                                                                       \
     .offset = offsetof(config_, base.score),                                                     \
     .text = "softmax|sigmoid",                                                                   \
     .help = "what the weights are made of"},                                                     \
        {.name = "renormalize",                                                                   \
         .type = BK_OPT_CHOICE,                                                                   \
         .offset = offsetof(config_, base.renormalize),                                           \
         .text = "auto|true|false",                                                               \
         .help = "divide the kept weights by their sum"},                                         \
        {.name = "scale",                                                                         \
         .type = BK_OPT_F64,                                                                      \
         .offset = offsetof(config_, base.scale),                                                 \
         .preset = 1.0,                                                                           \
         .most = 1e6,                                                                             \
         .open_least = true,                                                                      \
         .help = "factor on the weights"},                                                        \
        {.name = "noise",                                                                         \
         .type = BK_OPT_CHOICE,                                                                   \
         .offset = offsetof(config_, base.noise),                                                 \
         .text = noises,                                                                          \
         .help = "normal noise while training"},                                                  \
    {                                                                                             \
        .name = "noise_scale", .type = BK_OPT_F64, .offset = offsetof(config_, base.noise_scale), \
        .preset = 0.1, .most = 1e6, .help = "standard deviation of the noise"                     \
    }

/* Rows for a member `transport` that is a bk_transport_config. */
#define BK_TRANSPORT_OPTIONS(config_)                                                         \
    {.name = "cost",                                                                          \
     .type = BK_OPT_CHOICE,                                                                   \
     .offset = offsetof(config_, transport.cost),                                             \
     .text = "linear|softmax",                                                                \
     .help = "compatibility: the logits, or their softmax"},                                  \
        {.name = "epsilon",                                                                   \
         .type = BK_OPT_F64,                                                                  \
         .offset = offsetof(config_, transport.epsilon),                                      \
         .preset = 1.0,                                                                       \
         .least = 1e-3,                                                                       \
         .most = 1e3,                                                                         \
         .help = "entropic regularisation"},                                                  \
        {.name = "iterations",                                                                \
         .type = BK_OPT_I64,                                                                  \
         .offset = offsetof(config_, transport.iterations),                                   \
         .preset = 100,                                                                       \
         .least = 1,                                                                          \
         .most = 100000,                                                                      \
         .help = "most sweeps; the plan reached is used"},                                    \
        {.name = "tolerance",                                                                 \
         .type = BK_OPT_F64,                                                                  \
         .offset = offsetof(config_, transport.tolerance),                                    \
         .preset = 1e-4,                                                                      \
         .least = 1e-9,                                                                       \
         .most = 1.0,                                                                         \
         .help = "largest relative error of a column sum"},                                   \
        {.name = "warm_start",                                                                \
         .type = BK_OPT_BOOL,                                                                 \
         .offset = offsetof(config_, transport.warm_start),                                   \
         .preset = 1,                                                                         \
         .most = 1,                                                                           \
         .help = "start from the potentials of the former solve"},                            \
        {.name = "gradient",                                                                  \
         .type = BK_OPT_CHOICE,                                                               \
         .offset = offsetof(config_, transport.gradient),                                     \
         .text = "detach|partial|implicit",                                                   \
         .help = "through weights from the plan"},                                            \
    {                                                                                         \
        .name = "scope", .type = BK_OPT_CHOICE, .offset = offsetof(config_, transport.scope), \
        .text = "global|local", .help = "tokens balanced together: of the step, or of a lane" \
    }

/* H with non-finite logits replaced by the smallest finite one of their row (0 if there is none),
 * on the arena; *replaced counts them. */
double *bk_router_clean(const bk_route_args *a, int64_t *replaced);

/* index[T,k] = the k largest of score[T,E] + bias[E] (NULL: 0), falling, ties to the lower expert;
 * -1 for masked tokens. */
void bk_router_select(const bk_route_args *a, const double *score, const double *bias,
                      int32_t *index);

/* weight[T,k] from the scores at the kept (moe: section 2), and gH[T,E] += its gradient. */
void bk_router_weights(const bk_route_args *a, const bk_score_config *c, bool renormalize,
                       const double *h, const int32_t *index, double *weight);
void bk_router_weights_back(const bk_route_args *a, const bk_score_config *c, bool renormalize,
                            const bk_route *r, const double *gw, double *gh);

/* The standard normal draw of one (global token, expert), the same on every rank. */
double bk_router_draw(const bk_route_args *a, int64_t token, int64_t expert);

/* Adds noise_scale N(0,1) (or the given draws) to x[T,E] for valid tokens. */
void bk_router_add_noise(const bk_route_args *a, double scale, double *x);

static inline bool bk_router_valid(const bk_route_args *a, int64_t t)
{
    return !a->mask || a->mask[t] != 0;
}

/* Plain top-k routing: what every kind does in evaluation. */
void bk_router_plain(const bk_route_args *a, const bk_score_config *c, bool renormalize,
                     bk_route *out);

/* ---- auxiliary losses (moe: section 5), records by own lane, normalised by the global number of
 * valid tokens ---- */

/* Switch form over each lane's tokens: value[m]; backward adds seed[l] dL/dH. */
void bk_router_switch(const bk_route_args *a, int score, const int32_t *index, double *value);
void bk_router_switch_back(const bk_route_args *a, int score, const int32_t *index,
                           const double *seed, double *gh);
/* z: (1/T) sum_t lse_j(H_tj)^2. */
void bk_router_z(const bk_route_args *a, double *value);
void bk_router_z_back(const bk_route_args *a, const double *seed, double *gh);

/* The switch loss counts the unbiased top-k of H and p from `score`, whatever the kind. */
int32_t *bk_router_plain_index(const bk_route_args *a);

/* ---- routing by transport: sinkhorn and ssr ---- */

typedef struct bk_transport_config {
    int cost;     /* BK_COST_* */
    int gradient; /* BK_GRADIENT_* */
    int scope;    /* BK_SCOPE_* */
    double epsilon, tolerance;
    int64_t iterations;
    bool warm_start;
} bk_transport_config;

enum { BK_COST_LINEAR, BK_COST_SOFTMAX };
enum { BK_GRADIENT_DETACH, BK_GRADIENT_PARTIAL, BK_GRADIENT_IMPLICIT };
enum { BK_SCOPE_GLOBAL, BK_SCOPE_LOCAL };

/* Collective.  Solves for the potentials and selects by S + g: index, plan, bias, iterations,
 * residual of `out`. */
void bk_router_transport(const bk_route_args *a, const bk_transport_config *c,
                         const bk_score_config *noise, bk_route *out);
/* weight = softmax over the kept of S + g. */
void bk_router_plan_weights(const bk_route_args *a, const bk_route *r, double scale,
                            double *weight);
/* Collective if implicit.  gH += gradient through those weights. */
void bk_router_plan_back(const bk_route_args *a, const bk_transport_config *c, double scale,
                         const bk_route *r, const double *gw, double *gh);

#endif
