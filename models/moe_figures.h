/* models/moe_figures.h - counters of one mixture-of-experts layer, and the figures made of them for
 * metrics.  Counters are integers (sums of reals in units of 2^-30, token by token), so that
 * figures have the same bits for every number of ranks. */
#ifndef BK_MODELS_MOE_FIGURES_H
#define BK_MODELS_MOE_FIGURES_H

#include "dist/comm.h"
#include "models/router.h"

/* Where the time of a layer goes, forward and backward. */
typedef enum bk_moe_phase {
    BK_MOE_ROUTE,    /* logits, router and its backward */
    BK_MOE_PACK,     /* sort, counts, rows in the order of dispatch */
    BK_MOE_EXCHANGE, /* rows there and back, waiting included */
    BK_MOE_GEMM,     /* experts */
    BK_MOE_COMBINE,  /* weighted sums at the source */
    BK_MOE_PHASES
} bk_moe_phase;

/* Counters of own tokens that are summed over the ranks. */
typedef enum bk_moe_counter {
    BK_MOE_TOKENS,
    BK_MOE_DROPPED, /* (token, slot) pairs above the capacity */
    BK_MOE_NONFINITE,
    BK_MOE_ENTROPY,
    BK_MOE_CONFIDENCE,
    BK_MOE_KEPT_MASS,
    BK_MOE_AUX,
    BK_MOE_Z,
    BK_MOE_BYTES,
    BK_MOE_COUNTERS
} bk_moe_counter;

/* Kept by the model; written by training steps only, so that loads of one routing are compared. */
typedef struct bk_moe_state {
    int64_t experts;
    int64_t counter[BK_MOE_COUNTERS]; /* of the last step */
    int64_t *load;                    /* [E] (token, slot) pairs of the last step */
    int64_t *column;  /* [E] column sums of the plan, or of softmax(H) on other steps */
    int64_t *since;   /* [E] (token, slot) pairs since the last figures */
    int64_t received; /* rows that came to the own experts in the last step */
    int64_t iterations;
    int64_t unconverged; /* transport steps since the last figures that ended above the tolerance */
    int64_t held;        /* plans since then whose implicit gradient held the potentials */
    double *share;       /* [E] room for the last figures */
    double seconds[BK_MOE_PHASES];
} bk_moe_state;

/* Not collective.  Zero counters; their arrays live on `arena`. */
void bk_moe_state_init(bk_moe_state *state, bk_arena *arena, int64_t experts);
/* Not collective.  Starts a step: takes the routing of the own tokens, and records of the losses
 * [lanes->count] (NULL: none). */
void bk_moe_state_count(bk_moe_state *state, const bk_route_args *a, const bk_route *r,
                        const double *aux, const double *z);

/* Figures of one layer over all ranks; loads are (token, slot) pairs of the last training step. */
typedef struct bk_moe_figures {
    int layer;
    int64_t experts;
    double load_max_over_mean, load_min_over_mean, load_cv;
    double load_entropy;            /* of the shares of the experts, / log E */
    double token_entropy;           /* mean entropy of softmax(H), / log E */
    double confidence;              /* mean of the largest softmax(H) */
    double drop_rate;               /* share of the (token, slot) pairs that is not sent */
    double kept_mass;               /* mean of the kept softmax(H), summed over the slots */
    double rank_load_max_over_mean; /* rows at the fullest rank */
    double soft_column_error;       /* max_j |column_j E/T - 1| of the plan, or of softmax(H) */
    double aux, z;                  /* unweighted; 0 without */
    int64_t dead;                   /* experts without a token since the last call */
    const double *share;            /* [E] of the pairs, sum 1 (0 without any); the state's */
    int64_t router_iterations;
    int64_t router_unconverged; /* transport steps above the tolerance since the last call */
    int64_t router_held;        /* plans since then whose implicit gradient held the potentials */
    int64_t ot_steps, nonfinite_logits, bytes_sent;
    double seconds[BK_MOE_PHASES]; /* of the slowest rank */
} bk_moe_figures;

/* Collective over `route`.  Fills all but layer and ot_steps, and starts anew what counts since the
 * last call. */
void bk_moe_state_figures(bk_moe_state *state, const bk_comm *route, bk_moe_figures *out);

#endif
