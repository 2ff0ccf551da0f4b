/* models/router_common.h - what the router kinds share: scores, weights, selection, noise,
 * transport.  Configurations nest by their first member: a kind's struct begins with
 * bk_score_config or with bk_transport_config, which begins with it, so that their rows stand in
 * every kind's table. */
#ifndef BK_MODELS_ROUTER_COMMON_H
#define BK_MODELS_ROUTER_COMMON_H

#include "models/router.h"

typedef struct bk_score_config {
    int score;       /* BK_SCORE_* */
    int renormalize; /* BK_AUTO, BK_TRUE, BK_FALSE */
    double scale;
    int noise; /* BK_NOISE_*; none for kinds without the option */
    double noise_scale;
    int64_t groups_of_experts, groups_kept; /* 0: no groups, of kinds without the option */
} bk_score_config;

enum { BK_SCORE_SOFTMAX, BK_SCORE_SIGMOID };
enum { BK_AUTO, BK_TRUE, BK_FALSE };
enum { BK_NOISE_NONE, BK_NOISE_LOGITS, BK_NOISE_COST };

#define BK_SCORE_OPTIONS(score_)                                                   \
    BK_OPTION_CHOICE(bk_score_config, score, score_, "softmax|sigmoid",            \
                     "what the weights are made of"),                              \
        BK_OPTION_CHOICE(bk_score_config, renormalize, BK_AUTO, "auto|true|false", \
                         "divide the kept weights by their sum"),                  \
        BK_OPTION_F64_ABOVE(bk_score_config, scale, 1.0, 0.0, 1e6, "factor on the weights")

#define BK_NOISE_OPTIONS(noises_)                                    \
    BK_OPTION_CHOICE(bk_score_config, noise, BK_NOISE_NONE, noises_, \
                     "normal noise while training"),                 \
        BK_OPTION_F64(bk_score_config, noise_scale, 0.1, 0.0, 1e6,   \
                      "standard deviation of the noise")

#define BK_GROUP_OPTIONS                                                             \
    BK_OPTION_I64(bk_score_config, groups_of_experts, 1, 1, 65536,                   \
                  "equal groups of consecutive experts; 1 = none"),                  \
        BK_OPTION_I64(bk_score_config, groups_kept, 1, 1, 65536,                     \
                      "groups that a token may choose from: those with the largest " \
                      "sums of their best scores")

enum { BK_SCOPE_GLOBAL, BK_SCOPE_LOCAL };

#define BK_SCOPE_OPTION(type_)                                      \
    BK_OPTION_CHOICE(type_, scope, BK_SCOPE_GLOBAL, "global|local", \
                     "tokens balanced together: of the step, or of a lane")

typedef struct bk_transport_config {
    bk_score_config base;
    int cost;     /* BK_COST_* */
    int gradient; /* BK_GRADIENT_* */
    int scope;    /* BK_SCOPE_* */
    int solver;   /* bk_balance_solver */
    double epsilon, tolerance;
    int64_t iterations;
    bool warm_start;
} bk_transport_config;

enum { BK_COST_LINEAR, BK_COST_SOFTMAX };
enum { BK_GRADIENT_DETACH, BK_GRADIENT_PARTIAL, BK_GRADIENT_IMPLICIT };

#define BK_TRANSPORT_OPTIONS                                                                       \
    BK_SCORE_OPTIONS(BK_SCORE_SOFTMAX), BK_NOISE_OPTIONS("none|logits|cost"),                      \
        BK_OPTION_CHOICE(bk_transport_config, cost, BK_COST_LINEAR, "linear|softmax",              \
                         "compatibility: the logits, or their softmax"),                           \
        BK_OPTION_F64(bk_transport_config, epsilon, 1.0, 1e-3, 1e3, "entropic regularisation"),    \
        BK_OPTION_I64(bk_transport_config, iterations, 100, 1, 100000,                             \
                      "most sweeps (newton: messages); the plan reached is used"),                 \
        BK_OPTION_CHOICE(bk_transport_config, solver, 0, "sinkhorn|newton",                        \
                         "newton: fewer messages, E^2/2 numbers in each; dear above 128 experts"), \
        BK_OPTION_F64(bk_transport_config, tolerance, 1e-4, 1e-9, 1.0,                             \
                      "largest relative error of a column sum"),                                   \
        BK_OPTION_BOOL(bk_transport_config, warm_start, true,                                      \
                       "scope global: start from the potentials of the former solve"),             \
        BK_OPTION_CHOICE(bk_transport_config, gradient, BK_GRADIENT_DETACH,                        \
                         "detach|partial|implicit", "through weights from the plan"),              \
        BK_SCOPE_OPTION(bk_transport_config)

/* ---- router_score.c ---- */

static inline bool bk_router_valid(const bk_route_args *a, int64_t t)
{
    return !a->mask || a->mask[t] != 0;
}

/* The blocks of the arguments; without any the own lanes, on the scratch arena. */
bk_route_blocks bk_router_blocks(const bk_route_args *a);

/* All tokens of the step as one block that the ranks share, or with scope=local the blocks. */
bk_route_blocks bk_router_scope(const bk_route_args *a, int scope);
/* Valid rows of block i of that scope over all ranks; collective when blocks of the arguments are
 * shared. */
int64_t bk_router_block_tokens(const bk_route_args *a, int scope, const bk_route_blocks *b,
                               int64_t i);
/* The valid ones of rows first .. last-1 of all[T,E], side by side on the scratch arena. */
double *bk_router_pack(const bk_route_args *a, int64_t first, int64_t last, const double *all,
                       int64_t *rows);

/* BK_USAGE for k=1 with renormalize=true and for groups that do not fit: `check` of kinds that have
 * no other options. */
bk_status bk_router_check_scores(const void *config, int64_t experts, int64_t k);
/* renormalize, where auto means k > 1. */
bool bk_router_renormalizes(const bk_score_config *c, int64_t k);

/* x[T,E], or a copy on a->arena where values that are not finite are the smallest finite one of
 * their row, 0 if there is none. */
const double *bk_router_finite(const bk_route_args *a, const double *x);

/* Makes the arrays of a decision and fills clean and seen, with noise=logits while training. */
void bk_router_begin(const bk_route_args *a, const bk_score_config *c, bk_route *out);

/* x[T,E] += scale N(0,1) (or the given draws) at valid tokens. */
void bk_router_add_noise(const bk_route_args *a, double scale, double *x);

/* p[n] = softmax of h[n], or its sigmoid: the scores of one row. */
void bk_router_scores(int score, int64_t n, const double *h, double *p);
/* p[T,E] = the scores of all rows of h[T,E]; 0 at padding. */
void bk_router_score_rows(const bk_route_args *a, int score, const double *h, double *p);
/* p[n] = the scores of one row over their sum. */
void bk_router_shares(int score, int64_t n, const double *h, double *p);
double bk_router_sigmoid(double x);

/* weight[T,k] from the scores of r->seen at the kept, 0 at masked tokens:
 *   renormalize: scale softmax over the kept of H or log sigmoid(H);  else scale p[kept]
 * and gH[T,E] += its gradient. */
void bk_router_weights(const bk_route_args *a, const bk_score_config *c, bool renormalize,
                       const bk_route *r, double *weight);
void bk_router_weights_back(const bk_route_args *a, const bk_score_config *c, bool renormalize,
                            const bk_route *r, const double *gw, double *gh);

/* Plain top-k routing: what every kind does in evaluation. */
void bk_router_plain(const bk_route_args *a, const bk_score_config *c, bool renormalize,
                     bk_route *out);

/* Routing by scores + bias; weights come from the scores alone.  Returns the scores [T,E] and their
 * sums with the bias, both on the scratch arena. */
typedef struct bk_biased_scores {
    double *score, *biased; /* [T,E], 0 at padding */
} bk_biased_scores;
bk_biased_scores bk_router_biased(const bk_route_args *a, const bk_score_config *c, bk_route *out);

/* `backward` of kinds whose weights are scores at the kept and renormalise as
 * bk_router_renormalizes says. */
void bk_router_scores_back(const bk_route_args *a, const bk_route *r, const bk_route_back *b);

/* ---- router_select.c ---- */

/* BK_USAGE for groups that do not fit E and k. */
bk_status bk_router_check_groups(const bk_score_config *c, int64_t experts, int64_t k);
/* index[T,k] = the k largest of score[T,E], falling, ties to the lower expert; -1 for masked
 * tokens.  With n groups of consecutive experts of which m are kept: among those of the m groups
 * with the largest sums of their max(1, floor(k/m)) largest scores, ties to the lower group. */
void bk_router_select(const bk_route_args *a, const bk_score_config *c, const double *score,
                      int32_t *index);

/* ---- router_transport.c ---- */

/* Collective with scope global.  Solves for the potentials and selects by S + g: fills all but the
 * weights. */
void bk_router_transport(const bk_route_args *a, const bk_transport_config *c, bk_route *out);
/* r->weight[T,k] = scale softmax over the kept of S + g = kept entries of the plan / their sum. */
void bk_router_plan_weights(const bk_route_args *a, double scale, bk_route *r);
/* Collective if implicit with scope global.  gH += gradient through those weights. */
void bk_router_plan_back(const bk_route_args *a, const bk_transport_config *c, const bk_route *r,
                         const double *gw, double *gh);

#endif
