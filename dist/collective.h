/* dist/collective.h - sums and exchanges whose results have the same bits on every rank.
 * All are collective over `comm`.  Counts are int64; messages above 2^30 elements are split. */
#ifndef BK_DIST_COLLECTIVE_H
#define BK_DIST_COLLECTIVE_H

#include "dist/comm.h"
#include "dist/traffic.h"

/* comm NULL: one rank; nothing is done, here and in the sums below. */
void bk_barrier(const bk_comm *comm);
void bk_broadcast(const bk_comm *comm, int root, void *data, size_t bytes);

/* x[n] summed in place (rule F1: integers are exact in any order). */
void bk_sum_i64(const bk_comm *comm, int64_t n, int64_t *x);
void bk_max_i64(const bk_comm *comm, int64_t n, int64_t *x);
void bk_max_f64(const bk_comm *comm, int64_t n, double *x);

/* True when the lane tree reaches over the ranks: P is a power of two that divides L.  Then sums
 * below have the same bits for every such P; for any other P they agree to rounding. */
bool bk_lanes_exact(const bk_lanes *lanes, int size);

/* local[m,n], one row for each own lane -> out[n] (rule F3: the lane tree over all lanes of all
 * ranks, in double). */
void bk_sum_lanes(const bk_comm *comm, const bk_lanes *lanes, int64_t n, const double *local,
                  double *out);

/* One int64 of each rank -> all[size]. */
void bk_gather_counts(const bk_comm *comm, int64_t mine, int64_t *all);
/* Every rank's `bytes` bytes (any number, 0 too), concatenated in rank order: all[sum of length],
 * length[size] the bytes of each rank. */
void bk_allgather_bytes(const bk_comm *comm, const void *mine, int64_t bytes, const int64_t *length,
                        void *all);

/* Rows of `row_bytes` bytes: send_count[size] rows to each rank from `send` in rank order,
 * receive_count[size] rows from each into `receive`. */
void bk_alltoall_counts(const bk_comm *comm, int64_t per_rank, const int32_t *send,
                        int32_t *receive);
void bk_alltoallv_rows(const bk_comm *comm, size_t row_bytes, const void *send,
                       const int64_t *send_count, void *receive, const int64_t *receive_count);

/* Point to point, for the writers of checkpoints: blocking, any size. */
void bk_send_bytes(const bk_comm *comm, int to, int tag, const void *data, int64_t bytes);
void bk_receive_bytes(const bk_comm *comm, int from, int tag, void *data, int64_t bytes);

#endif
