/* dist/exchange.h - rows on their way between the ranks of a communicator while the ranks compute:
 * the poll hook of core moves them. */
#ifndef BK_DIST_EXCHANGE_H
#define BK_DIST_EXCHANGE_H

#include "dist/comm.h"

/* What the ranks of a node pass on for one another in exchanges of two hops: rows go to the
 * neighbour that has the receiver's place on its own node, and from it to the receiver's node.  So
 * a rank speaks to its neighbours and to one rank of each other node, in fewer and longer messages;
 * no row changes. */
typedef struct bk_relay bk_relay;

/* Collective over comm, which has levels (bk_comm_has_levels).  For `exchanges` of them:
 * count[exchanges,size] rows that this rank sends to each.  Lives on `arena`. */
bk_relay *bk_relay_new(const bk_comm *comm, bk_arena *arena, int64_t exchanges,
                       const int64_t *count);

/* Not collective.  The same for exchange 0 of one row from each rank to each. */
bk_relay *bk_relay_even(const bk_comm *comm, bk_arena *arena);

/* Which rows: those for rank r are send_count[r] of them from row send_place[r] of `send` on, and
 * likewise those from it.  Pieces of `receive` do not overlap. */
typedef struct bk_exchange_rows {
    size_t bytes; /* of a row */
    const void *send;
    const int64_t *send_count, *send_place; /* [size] rows */
    void *receive;
    const int64_t *receive_count, *receive_place; /* [size] rows */
    const bk_relay *relay;                        /* NULL: every rank sends to every rank */
    int64_t exchange;                             /* its number there */
} bk_exchange_rows;

typedef struct bk_exchange bk_exchange;

/* Collective; comm NULL = one rank.  Starts an exchange: `send` and the lists of counts and places
 * may not be written and `receive` not be read before bk_exchange_finish.  Any number may be on
 * their way; all ranks start them in the same order.  The result lives on `arena`, which must keep
 * it until it is finished. */
bk_exchange *bk_exchange_begin(const bk_comm *comm, bk_arena *arena, const bk_exchange_rows *rows);
/* Collective.  Waits for the rows to and from this rank; in any order.  More than 2^31 rows in one
 * exchange end the job with a message: MPI cannot count them. */
void bk_exchange_finish(bk_exchange *x);

/* Not collective.  Moves what is on its way; part of the poll hook. */
void bk_exchange_poll(void);

#endif
