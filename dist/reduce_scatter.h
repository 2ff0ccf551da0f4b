/* dist/reduce_scatter.h - blocking reduce-scatter of arrays that are not gradients of the slab: the
 * tree of dist/bucket.h for any dtype, and the two algorithms it is measured against. */
#ifndef BK_DIST_REDUCE_SCATTER_H
#define BK_DIST_REDUCE_SCATTER_H

#include "core/tensor.h"
#include "dist/comm.h"

typedef enum bk_reduce_algorithm {
    BK_REDUCE_TREE, /* recursive halving, distance 1 first; MPI's for ranks no power of two */
    BK_REDUCE_RING, /* P-1 steps round the ring */
    BK_REDUCE_MPI,  /* MPI_Reduce_scatter_block */
} bk_reduce_algorithm;

/* Collective.  x[n], n a multiple of the ranks, BK_F32 or BK_F64: afterwards the own segment
 * [*first, *first + n/P) of x holds the sum over the ranks, the rest of x is undefined.  Sends
 * n (P-1)/P elements. */
void bk_reduce_scatter(const bk_comm *comm, bk_reduce_algorithm algorithm, bk_dtype dtype,
                       int64_t n, void *x, int64_t *first);

/* Collective.  The own segments of bk_reduce_scatter by the same algorithm, of all ranks, in place.
 * Sends n (P-1)/P elements. */
void bk_reduce_gather(const bk_comm *comm, bk_reduce_algorithm algorithm, bk_dtype dtype, int64_t n,
                      void *x);

/* Collective.  Both: x[n] summed over the ranks, in place.  BK_REDUCE_MPI: MPI_Allreduce. */
void bk_allreduce(const bk_comm *comm, bk_reduce_algorithm algorithm, bk_dtype dtype, int64_t n,
                  void *x);

#endif
