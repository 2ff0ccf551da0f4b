/* dist/internal.h - what the files of dist share; nobody else includes it. */
#ifndef BK_DIST_INTERNAL_H
#define BK_DIST_INTERNAL_H

#include "core/tensor.h"
#include "dist/comm.h"
#include "dist/exchange.h"
#include "dist/traffic.h"

#include <mpi.h>

/* A communicator whose ranks stand on several nodes, as many on each: rank[nodes,each] of it is the
 * one with a place among the nodes (the rank of `cross`) and on its node (that of `inner`). */
typedef struct bk_levels {
    struct bk_comm *inner; /* ranks of the same node */
    struct bk_comm *cross; /* ranks with the same place on their nodes */
    int nodes, each;
    const int *rank;
} bk_levels;

struct bk_comm {
    MPI_Comm handle;
    int rank, size;
    bool all_ranks; /* of all ranks of its world, which make the same calls on it */
    const char *name;
    bk_traffic_part part; /* that its messages are counted for */
    bk_reducer reducer;
    bk_arena *scratch; /* for sums; reset by each */
    const int *node;   /* [size] number of each rank's node; NULL: not known */
    bk_levels *levels; /* NULL: none (bk_comm_has_levels) */
};

/* A failed MPI call is fatal, with the call's name. */
void bk_mpi_check(int code, const char *call);
#define BK_MPI(call) bk_mpi_check((call), #call)

/* Ends the whole job; other threads than the main one may call it too. */
_Noreturn void bk_mpi_abort(int exit_code);

/* Elements above which one message is split. */
enum { BK_MESSAGE_MAX = 1 << 30 };

/* Largest power of two test. */
static inline bool bk_is_power_of_two(int64_t n)
{
    return n > 0 && (n & (n - 1)) == 0;
}

/* Place of a rank's segment in an array: halving with distance 1 first leaves them bit-reversed. */
static inline int bk_bit_reverse(int rank, int size)
{
    int reversed = 0;
    for (; size > 1; size /= 2, rank /= 2)
        reversed = 2 * reversed + rank % 2;
    return reversed;
}

/* Collective.  All-gather of x[n] in place after halving: each rank holds the segment of its
 * bit-reversed rank; P a power of two.  The time in it is the caller's to count. */
void bk_gather_halves(const bk_comm *c, bk_dtype dtype, int64_t n, void *x, int tag);

/* Not collective.  A type of one row for MPI, so that counts are rows: bytes would pass 2^31.
 * Returns the elements of a row.  The caller frees the type unless it is MPI_BYTE. */
int bk_row_type(size_t row_bytes, MPI_Datatype *row);

/* A number of rows, or of their elements, as MPI takes it; too many end the job. */
int bk_mpi_rows(int64_t rows);

/* Collective over the communicator that is split.  The new one lives on `arena`. */
bk_comm *bk_comm_split(bk_arena *arena, MPI_Comm of, int color, int key, const char *name,
                       bk_traffic_part part);

/* Collective. */
void bk_comm_close(bk_comm *comm);

/* ---- levels.c ---- */

/* Collective over a world; comm is one of several groups of its ranks, on_node its ranks on this
 * node.  Fills comm->node, and comm->levels in all groups or in none. */
void bk_levels_open(bk_arena *arena, bk_comm *comm, const bk_comm *on_node, const bk_comm *world);
/* Rows that the neighbour with place `local` passes through this rank to a node. */
int64_t bk_relay_rows(const bk_comm *comm, const struct bk_relay *relay, int64_t exchange,
                      int local, int node);
struct bk_relay {
    int64_t words; /* exchanges times nodes */
    int32_t *rows; /* [each,exchanges,nodes] */
};
/* Ranks that count as a node (BIRKHOFF_NODE_RANKS); 0: those that share memory. */
BK_CHECKED bk_status bk_node_ranks(int *ranks);

/* The sums that make up a communicator's reducer (collective.c). */
void bk_reducer_vector(void *comm, const bk_lanes *lanes, int64_t n, const double *local,
                       double *out);
void bk_reducer_fixed(void *comm, int64_t n, int64_t *x);
void bk_reducer_max(void *comm, int64_t n, double *x);

#endif
