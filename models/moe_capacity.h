/* models/moe_capacity.h - how many tokens of a lane an expert takes, and which. */
#ifndef BK_MODELS_MOE_CAPACITY_H
#define BK_MODELS_MOE_CAPACITY_H

#include "models/router.h"

/* BK_DROP_PROBS keeps the largest routing score (softmax or sigmoid of the logits, or the entry of
 * the plan, before they are renormalised and scaled), ties to the lower token, then the lower slot;
 * BK_DROP_POSITION slot 0 of all tokens before slot 1, then the lower token. */
typedef enum bk_drop_policy { BK_DROP_PROBS, BK_DROP_POSITION } bk_drop_policy;

typedef struct bk_capacity {
    double factor; /* 0: no limit */
    int64_t least;
    bk_drop_policy policy;
} bk_capacity;

/* BK_USAGE for limits that the kind does not read: where experts choose, the factor alone says how
 * many tokens they take. */
BK_CHECKED bk_status bk_capacity_check(const bk_capacity *c, const bk_router_kind *kind);

/* max(least, ceil(T k factor / E)): what one expert takes of T valid tokens. */
int64_t bk_capacity_of(const bk_capacity *c, int64_t tokens, int64_t k, int64_t experts);

/* Collective only when the blocks are shared (else they are whole on this rank, as lanes are).
 * Fills r->kept[T,k], on a->arena, for each expert in each block of a->blocks (NULL: the own
 * lanes); leaves it NULL without a limit, and where experts choose.  Weights stay as they are:
 * those of dropped choices count as 0, the others are not renormalised. */
void bk_route_limit(const bk_route_args *a, const bk_capacity *c, bk_route *r);

/* Whether the choice of flat place i = (token, slot) is sent to an expert. */
static inline bool bk_route_sends(const bk_route *r, int64_t i)
{
    return r->index[i] >= 0 && (!r->kept || r->kept[i] != 0);
}

#endif
