/* models/router.h - what a router is: a score function plus a balancer (selection by A + bias).
 * One kind = one file models/router/<kind>.c and one line in models/router/kinds.def.  All
 * arithmetic is double. */
#ifndef BK_MODELS_ROUTER_H
#define BK_MODELS_ROUTER_H

#include "core/attributes.h"
#include "core/hooks.h"
#include "core/option.h"
#include "core/tape.h"

/* Parts of the rows that are treated one by one. */
typedef struct bk_route_blocks {
    int64_t count;
    const int64_t *row; /* [count+1] first local row of each */
    bool shared;        /* a block may span ranks: its sums go over the reducer */
} bk_route_blocks;

/* Balance losses: over which tokens choices are counted and scores are summed (bk_route_measure).
 */
typedef enum bk_moe_aux {
    BK_AUX_NONE,
    BK_AUX_SWITCH, /* those of a block */
    BK_AUX_SEQ,    /* those of a sequence */
    BK_AUX_GLOBAL, /* choices of all tokens of the step */
    BK_AUX_CV      /* the kind's own loss */
} bk_moe_aux;

typedef struct bk_router_kind bk_router_kind;

/* What the layer and `birkhoff op router.<kind>` share: everything a router reads. */
typedef struct bk_route_args {
    const bk_router_kind *kind;
    const double *logits; /* H[T,E] local tokens (T counts padding; masked rows are skipped) */
    const double *noise_logits; /* [T,E] of the noise gate, for kinds with one while training */
    const int32_t *mask;        /* [T], 0 = padding; NULL = all valid */
    int64_t tokens;             /* T */
    int64_t experts;            /* E */
    int64_t k;
    int64_t valid;                 /* global number of valid tokens of the step, over all ranks */
    int64_t first_token;           /* global position of the first local token, padding counted */
    const double *noise;           /* [T,E] draws used instead of the generator; NULL */
    const double *bias;            /* [E] state (zero at first); NULL: zeros, or a kind without */
    const bk_reducer *reducer;     /* NULL = one rank */
    const bk_lanes *lanes;         /* lanes cut the rows: records of losses, vector sums */
    const bk_route_blocks *blocks; /* for scope=local and aux=switch; NULL: the own lanes */
    const bk_route_blocks *sequences; /* for aux=seq; they nest in lanes; NULL: the blocks */
    bk_moe_aux aux;
    double capacity_factor; /* where experts choose; 0 counts as 1 */
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
    int64_t slots;  /* of a token: k; E where experts choose */
    int32_t *index; /* [T,slots] by falling selection score, ties to the lower expert; where experts
                     * choose slot e is expert e; -1: padding, or not chosen */
    double *weight; /* [T,slots] */
    int32_t *kept; /* [T,slots] 1: sent to its expert, 0: dropped (moe_capacity.h); NULL: all are */
    bool planned;  /* weights are entries of the plan, else scores */
    const double *clean; /* [T,E] logits, those that are not finite replaced */
    const double *seen;  /* [T,E] what was routed: clean, with noise while training */
    const double *next;  /* [E] the state behind this step, which the caller keeps once the step
                          * counts; NULL: as it was */
    bool counted;        /* balance losses count this selection, not the plain top-k */
    void *own;           /* what the kind keeps for its way back */
    /* on the transport branch, else zero: */
    bool transport;
    double *plan;        /* [T,E] rows sum to 1 */
    double *balanced;    /* [T,E] S + g, what was selected by; S = cost / epsilon */
    double *bias;        /* [E] potentials g; scope local: [blocks,E] */
    double *residual_of; /* [1] or [blocks] largest relative error of a column, of each problem */
    int64_t iterations;  /* the most of them */
    double residual;     /* the largest of them */
    bool converged;      /* all within the tolerance */
    int64_t held; /* problems too far from solved for an implicit gradient: g is held there */
} bk_route;

enum {
    BK_ROUTER_STATE = 1, /* keeps bias[E] between steps, and so balances */
    BK_ROUTER_COLLECTIVE = 2,
    BK_ROUTER_TRANSPORT = 4,  /* its state are potentials; counts its transport steps */
    BK_ROUTER_NOISE_GATE = 8, /* reads noise_logits, of a parameter of its own */
    BK_ROUTER_EXPERTS = 16,   /* experts choose tokens: balanced, and later tokens decide too */
    BK_ROUTER_BENCHMARK = 32  /* routes without looking at the logits: not an operator */
};

/* What comes in from behind and what goes out: */
typedef struct bk_route_back {
    const double *weight;  /* in: [T,slots]; NULL: none, here and below */
    const double *aux, *z; /* in: [m], of the records of the losses */
    double *logits;        /* out: [T,E] */
    double *noise_logits;  /* out: [T,E] of kinds with a noise gate; NULL elsewhere */
} bk_route_back;

/* A kind's configuration begins with a bk_score_config (router_common.h). */
struct bk_router_kind {
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
    /* b->logits and b->noise_logits += gradient of <b->weight, weight> with routes held; looks at
     * no loss.  Collective if implicit; NULL: none. */
    void (*backward)(const bk_route_args *a, const bk_route *r, const bk_route_back *b);
    /* The balance loss of aux=cv, its records [m] and the gradient of <b->aux, records>, in the
     * manner of bk_route_measure and backward; both NULL: the kind has none. */
    void (*measure)(const bk_route_args *a, const bk_route *r, double *record);
    void (*measure_back)(const bk_route_args *a, const bk_route *r, const bk_route_back *b);
    /* bias[E] behind a step that was applied, from count[E], the choices of its tokens over all
     * ranks; NULL: the state is a route's `next`. */
    void (*update)(const void *config, int64_t experts, const int64_t *count, double *bias);
};

extern const bk_router_kind *const bk_routers[]; /* ended by NULL */
const bk_router_kind *bk_router_find(const char *name);

/* BK_USAGE for a balance loss that does not go with the kind, E or k. */
BK_CHECKED bk_status bk_router_check_aux(const bk_router_kind *kind, bk_moe_aux aux,
                                         int64_t experts, int64_t k);

/* Records of the losses of one routing, one for each own lane, unweighted, normalised by the global
 * T; fields that are NULL are not made.
 *
 *   aux=switch, seq:  sum over blocks of (T_b/T) E/(k T_b^2) sum_j cnt_bj sum_t p_tj
 *   aux=global:       E/(k T^2) sum_j cnt_j sum_t p_tj, cnt of all ranks
 *   aux=cv:           the kind's own
 *   z:                (1/T) sum_t lse_j(H_tj)^2
 *
 * (Fedus et al. 2021; z: Zoph et al. 2022), p = scores / their row sum, cnt without gradient:
 * choices of the plain top-k, or of the selection where the kind says so. */
typedef struct bk_route_losses {
    double *aux, *z; /* [lanes->count] */
} bk_route_losses;
/* Collective over the reducer when blocks are shared, aux=global, and aux=cv with scope=global. */
void bk_route_measure(const bk_route_args *a, const bk_route *r, bk_route_losses *out);

/* Collective when the kind's backward or the measure of the loss is.  Writes b->logits and
 * b->noise_logits = gradient of <b->weight, weight> + <b->aux, aux> + <b->z, z>.  0 at padding and
 * at logits that were replaced. */
void bk_route_gradient(const bk_route_args *a, const bk_route *r, const bk_route_back *b);

/* Draws, functions of what they are for: u in [0,1) of the branch of a (step, layer); the standard
 * normal of one (global token, expert). */
double bk_route_draw_branch(uint64_t seed, int64_t step, int layer);
double bk_route_draw_normal(uint64_t seed, int64_t step, int layer, int64_t token, int64_t expert);

#endif
