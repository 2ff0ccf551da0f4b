/* models/moe_exchange.h - which rows go to which expert, and the way there and back. */
#ifndef BK_MODELS_MOE_EXCHANGE_H
#define BK_MODELS_MOE_EXCHANGE_H

#include "core/tape.h"
#include "dist/comm.h"
#include "models/router.h"

/* Rows of one (local expert, lane of the expert-parallel group): a contiguous piece of the received
 * rows. */
typedef struct bk_expert_block {
    int64_t expert; /* local */
    int64_t first, rows;
} bk_expert_block;

typedef struct bk_dispatch {
    const bk_comm *ep;
    int64_t sent, received; /* rows */
    int64_t *slot;      /* [sent] flat (token, slot) of each row, sorted by (expert, token, slot) */
    int64_t *place;     /* [T k] row of each (token, slot); -1: not sent */
    int64_t *to, *from; /* [size] rows for and from each rank of the group */
    int64_t lanes;      /* of the whole group, in rank order */
    bk_expert_block *block; /* [local experts, lanes] */
    int64_t blocks;
} bk_dispatch;

/* Collective over ep (NULL = one rank).  index[T,k], -1 = not sent.  Lives on the step arena. */
bk_dispatch bk_dispatch_make(bk_tape *t, const bk_comm *ep, const bk_route_args *a,
                             const int32_t *index);

/* Collective.  rows[sent] to their experts, received[received]; and the way back. */
void bk_dispatch_send(const bk_dispatch *d, size_t row_bytes, const void *rows, void *received);
void bk_dispatch_return(const bk_dispatch *d, size_t row_bytes, const void *received, void *rows);

#endif
