/* models/moe_exchange.h - which rows go to which expert, and the way there and back. */
#ifndef BK_MODELS_MOE_EXCHANGE_H
#define BK_MODELS_MOE_EXCHANGE_H

#include "core/tape.h"
#include "dist/exchange.h"
#include "models/router.h"

/* Rows of one (local expert, lane of the expert-parallel group): a contiguous piece of the received
 * rows. */
typedef struct bk_expert_block {
    int64_t expert; /* local */
    int64_t first, rows;
} bk_expert_block;

/* Rows by expert and lane of the sender, on their way while rows are packed: for each peer, and
 * from it; room for the fullest. */
typedef struct bk_dispatch_counts {
    int64_t experts, lanes;  /* room */
    int32_t *send, *receive; /* [size,experts,lanes] */
    bk_exchange *under_way;
} bk_dispatch_counts;

typedef struct bk_dispatch {
    const bk_comm *ep;
    bk_dispatch_counts counts; /* on the scratch arena */
    int64_t slots;             /* of a token */
    int64_t sent, received;    /* rows */
    int64_t *slot;      /* [sent] flat (token, slot) of each row, sorted by (expert, token, slot) */
    int64_t *place;     /* [T,slots] row of each (token, slot); -1: not sent */
    int64_t chunks;     /* that the experts of every rank are cut into; each goes by itself */
    int64_t *to, *from; /* [chunks,size] rows for and from each rank of the group */
    int64_t *to_place, *from_place; /* [chunks,size] the first of them, of sent and of received */
    bool two_hops;
    const bk_relay *relay;  /* of two hops; NULL: straight */
    int64_t lanes;          /* of the whole group, in rank order */
    bk_expert_block *block; /* [local experts, lanes] */
    int64_t blocks;
} bk_dispatch;

/* The first of n experts that lies in a chunk or behind it; `chunk` = chunks: n. */
static inline int64_t bk_chunk_first(int64_t n, int64_t chunks, int64_t chunk)
{
    return n * chunk / chunks;
}

typedef struct bk_dispatch_options {
    const bk_comm *ep; /* NULL = one rank */
    int64_t chunks;    /* the same on all ranks; at least one is made (on one rank just that), at
                        * most as many as the fullest rank has experts: a rank with fewer has empty
                        * ones */
    bool two_hops;     /* rows and counts go in two hops (dist/exchange.h): ep has levels */
} bk_dispatch_options;

/* Collective over ep.  index[T,slots], -1 = not sent.  Knows what is sent (sent, slot, place) and
 * starts to tell the peers: bk_dispatch_finish waits for them.  Lives on the step arena, but for
 * what is under way: the caller keeps the scratch arena until then. */
bk_dispatch bk_dispatch_begin(bk_tape *t, const bk_dispatch_options *o, const bk_route_args *a,
                              const int32_t *index, int64_t slots);
/* Collective.  Fills the rest. */
void bk_dispatch_finish(bk_tape *t, bk_dispatch *d, const bk_route_args *a);

/* Collective.  Starts one chunk of rows[sent] on its way to the experts, received[received]; and on
 * the way back.  The result lives on t->scratch; bk_exchange_finish waits for it. */
bk_exchange *bk_dispatch_send(bk_tape *t, const bk_dispatch *d, int64_t chunk, size_t row_bytes,
                              const void *rows, void *received);
bk_exchange *bk_dispatch_return(bk_tape *t, const bk_dispatch *d, int64_t chunk, size_t row_bytes,
                                const void *received, void *rows);

#endif
