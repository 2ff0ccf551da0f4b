/* models/moe.h - the mixture-of-experts layer: y_t = sum_s w_ts FFN_{index_ts}(x_t), experts
 * sharded over ranks, and a shared expert beside them. */
#ifndef BK_MODELS_MOE_H
#define BK_MODELS_MOE_H

#include "core/ops.h"
#include "dist/comm.h"
#include "models/moe_capacity.h"
#include "models/moe_figures.h"
#include "models/moe_shared.h"

/* Rows go straight to the rank of their expert, or in two hops, through the neighbour with that
 * rank's place on its node (dist/exchange.h).  Auto: in two hops where messages would be short. */
typedef enum bk_moe_hierarchy {
    BK_HIERARCHY_AUTO,
    BK_HIERARCHY_FLAT,
    BK_HIERARCHY_TWO_LEVEL
} bk_moe_hierarchy;

/* Everything one call of the layer reads.  Local experts of this rank: first .. first+count-1
 * (owner rule: contiguous, the first E mod EP coordinates hold one more). */
typedef struct bk_moe_args {
    bk_tensor *x;          /* [T,C] local tokens in lane order */
    const int32_t *mask;   /* [T] or NULL */
    bk_tensor *gate;       /* [E,C] */
    bk_tensor *noise_gate; /* [E,C] of kinds with one; else NULL */
    bk_tensor **w1, **b1, **w2,
        **b2; /* [count] leaves of the local experts: [F,C], [F], [C,F], [C]; b1, b2 may be NULL */
    const bk_moe_shared *shared; /* NULL: none */
    int64_t experts, k, first, count;
    int64_t hidden; /* F */
    bk_activation activation;
    const bk_router_kind *router;
    const void *router_config;
    const double *bias;               /* [E] router state, or NULL */
    const double *noise;              /* [T,E] or NULL */
    const bk_route_blocks *blocks;    /* as in bk_route_args, here and below */
    const bk_route_blocks *sequences; /* NULL: the blocks */
    bk_capacity capacity;             /* zero: no limit */
    /* If some rank would receive more than this times T k / P rows, none is sent and t->status says
     * so on all ranks; 0: any number. */
    double max_receive_factor;
    bk_moe_aux aux;
    bool z;              /* records of the z loss are wanted */
    int64_t valid;       /* global valid tokens of the step */
    int64_t first_token; /* global position of the first local token */
    int layer;
    const bk_comm *ep; /* NULL = one rank */
    int64_t chunks; /* that the local experts are cut into: rows of one are under way while another
                     * is at work; 0, 1: all at once */
    bk_moe_hierarchy hierarchy; /* straight where ep has no levels */
    bool wire_bf16;          /* rows are rounded to bf16 on every way between tokens and experts */
    const bk_reducer *route; /* NULL = one rank */
    bk_moe_state *state;     /* counters that outlive the step, for figures; may be NULL */
    bk_attributes *attributes;
} bk_moe_args;

typedef struct bk_moe_result {
    bk_tensor *y;   /* [T,C] */
    bk_tensor *aux; /* double [m] records, unweighted; NULL without */
    bk_tensor *z;   /* double [m] records, unweighted; NULL without */
    bk_route route; /* on the step arena */
} bk_moe_result;

/* Collective over ep and route.  Terms are returned, not added to the tape: the caller adds them.
 */
bk_moe_result bk_moe(bk_tape *t, const bk_moe_args *a);

/* Expert-parallel coordinate of expert e, and first and number of experts of coordinate c. */
int bk_moe_owner(int64_t e, int64_t experts, int ep);
void bk_moe_experts_of(int coordinate, int64_t experts, int ep, int64_t *first, int64_t *count);

#endif
