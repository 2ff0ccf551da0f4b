/* models/router.h - what a router is: a score function plus a balancer (selection by A + bias).
 * One kind = one file models/router/<kind>.c and one line in models/router/kinds.def.  All
 * arithmetic is double. */
#ifndef BK_MODELS_ROUTER_H
#define BK_MODELS_ROUTER_H

#include "core/attributes.h"
#include "core/hooks.h"
#include "core/option.h"
#include "core/tape.h"

/* Parts of the rows that scope=local and the switch loss treat one by one. */
typedef struct bk_route_blocks {
    int64_t count;
    const int64_t *row; /* [count+1] first local row of each */
    bool shared;        /* a block may span ranks: its sums go over the reducer */
} bk_route_blocks;

/* What the layer and `birkhoff op router.<kind>` share: everything a router reads. */
typedef struct bk_route_args {
    const double *logits; /* H[T,E] local tokens (T counts padding; masked rows are skipped) */
    const int32_t *mask;  /* [T], 0 = padding; NULL = all valid */
    int64_t tokens;       /* T */
    int64_t experts;      /* E */
    int64_t k;
    int64_t valid;       /* global number of valid tokens of the step, over all ranks */
    int64_t first_token; /* global position of the first local token, padding counted */
    const double *noise; /* [T,E] draws used instead of the generator; NULL */
    double *bias; /* [E] state in and out (warm start; zero at first); NULL for kinds without */
    const bk_reducer *reducer;     /* NULL = one rank */
    const bk_lanes *lanes;         /* lanes cut the rows: records of losses, vector sums */
    const bk_route_blocks *blocks; /* NULL: the own lanes */
    bool training;
    uint64_t seed;
    int64_t step;
    int layer;
    const void *config;
    bk_arena *arena; /* results live here (step arena) */
    bk_arena *scratch;
    bk_attributes *attributes; /* iterations, residual, converged, ot, messages; may be NULL */
} bk_route_args;

/* A decision, kept for backward and never recomputed. */
typedef struct bk_route {
    int32_t *index; /* [T,k], -1 = padding; by falling selection score, ties to the lower expert */
    double *weight; /* [T,k] */
    int32_t *kept;  /* [T,k] 1: sent to its expert, 0: dropped (moe_capacity.h); NULL: all are */
    bool planned;   /* weights are entries of the plan, else scores */
    const double *clean; /* [T,E] logits, those that are not finite replaced */
    const double *seen;  /* [T,E] what was routed: clean, with noise while training */
    /* on the transport branch, else zero: */
    bool transport;
    double *plan;        /* [T,E] rows sum to 1 */
    double *balanced;    /* [T,E] S + g, what was selected by; S = cost / epsilon */
    double *bias;        /* [E] potentials g; scope local: [blocks,E] */
    double *residual_of; /* [1] or [blocks] largest relative error of a column, of each problem */
    int64_t iterations;  /* the most of them */
    double residual;     /* the largest of them */
    bool converged;      /* all within the tolerance */
} bk_route;

enum { BK_ROUTER_STATE = 1, BK_ROUTER_COLLECTIVE = 2 };

/* A kind's configuration begins with a bk_score_config (router_common.h). */
typedef struct bk_router_kind {
    const char *name, *summary, *source;
    const bk_option *options;
    size_t config_size;
    int flags;
    /* BK_USAGE for combinations that the table cannot check. */
    bk_status (*check)(const void *config, int64_t experts, int64_t k);
    /* Warns about a valid configuration that does not do what it seems to over `steps` training
     * steps; may be NULL. */
    void (*advise)(const void *config, int64_t k, int64_t steps);
    /* Collective over the reducer when BK_ROUTER_COLLECTIVE: every rank calls it, with T = 0 too.
     */
    void (*route)(const bk_route_args *a, bk_route *out);
    /* grad_logits[T,E] += gradient of <grad_weight[T,k], weight> with routes held.  Collective if
     * implicit. */
    void (*backward)(const bk_route_args *a, const bk_route *r, const double *grad_weight,
                     double *grad_logits);
} bk_router_kind;

extern const bk_router_kind *const bk_routers[]; /* ended by NULL */
const bk_router_kind *bk_router_find(const char *name);

/* Records of the losses of one routing, one for each own lane, unweighted, normalised by the global
 * T; fields that are NULL are not made.
 *   aux:  sum over blocks of (T_b/T) E/(k T_b^2) sum_j cnt_bj sum_t p_tj,  p = scores / their row
 *         sum, cnt = counts of the unbiased top-k without gradient (Fedus et al. 2021, over blocks)
 *   z:    (1/T) sum_t lse_j(H_tj)^2 (Zoph et al. 2022) */
typedef struct bk_route_losses {
    double *aux, *z; /* [lanes->count] */
} bk_route_losses;
/* Collective only when the blocks are shared. */
void bk_route_measure(const bk_route_args *a, const bk_route *r, bk_route_losses *out);

/* Collective when the kind's backward is, or blocks are shared.  grad_logits[T,E] = gradient of
 * <grad_weight[T,k], weight> + <grad_aux[m], aux> + <grad_z[m], z>; each may be NULL.  0 at padding
 * and at logits that were replaced. */
void bk_route_gradient(const bk_router_kind *kind, const bk_route_args *a, const bk_route *r,
                       const double *grad_weight, const double *grad_aux, const double *grad_z,
                       double *grad_logits);

/* Draws, functions of what they are for: u in [0,1) of the branch of a (step, layer); the standard
 * normal of one (global token, expert). */
double bk_route_draw_branch(uint64_t seed, int64_t step, int layer);
double bk_route_draw_normal(uint64_t seed, int64_t step, int layer, int64_t token, int64_t expert);

#endif
