/* dist/alltoall.h - differentiable exchange of rows between ranks. */
#ifndef BK_DIST_ALLTOALL_H
#define BK_DIST_ALLTOALL_H

#include "core/op.h"
#include "dist/comm.h"

/* Collective.  y[R,C] = the rows received when x[T,C] (in rank order, send_count[size] rows to each
 * rank, sum = T) goes out and receive_count[size] rows from each rank come in, in rank order.
 * Backward sends the gradient rows back. Zero rows are fine everywhere.  The counts are borrowed
 * until the tape is reset. */
bk_tensor *bk_alltoall_rows(bk_tape *t, const bk_comm *comm, bk_tensor *x,
                            const int64_t *send_count, const int64_t *receive_count);

/* Collective.  y[sum of counts, C] = the rows x[count[rank], C] of all ranks in rank order.
 * Backward: each rank gets the sum of the gradients of its rows, ranks added in rank order. */
bk_tensor *bk_allgather_rows(bk_tape *t, const bk_comm *comm, bk_tensor *x, const int64_t *count);

#endif
