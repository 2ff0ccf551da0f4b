/* dist/internal.h - what the files of dist share; nobody else includes it. */
#ifndef BK_DIST_INTERNAL_H
#define BK_DIST_INTERNAL_H

#include "core/tensor.h"
#include "dist/comm.h"
#include "dist/traffic.h"

#include <mpi.h>

struct bk_comm {
    MPI_Comm handle;
    int rank, size;
    bool all_ranks; /* of all ranks of its world, which make the same calls on it */
    const char *name;
    bk_traffic_part part; /* that its messages are counted for */
    bk_reducer reducer;
    bk_arena *scratch; /* for sums; reset by each */
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

/* The sums that make up a communicator's reducer (collective.c). */
void bk_reducer_vector(void *comm, const bk_lanes *lanes, int64_t n, const double *local,
                       double *out);
void bk_reducer_fixed(void *comm, int64_t n, int64_t *x);
void bk_reducer_max(void *comm, int64_t n, double *x);

#endif
