#include "dist/collective.h"

#include "core/log.h"
#include "dist/internal.h"
#include "dist/trace.h"

#include <string.h>

/* A blocking call that sends: counted, and the time in it too. */
static void count(const bk_comm *comm, int64_t bytes, double start)
{
    bk_traffic_add(comm->part, bytes);
    bk_traffic_blocked(comm->part, start);
}

void bk_barrier(const bk_comm *comm)
{
    if (!comm)
        return;
    bk_trace_enter(comm, BK_CALL_BARRIER, 0);
    BK_MPI(MPI_Barrier(comm->handle));
    bk_trace_leave();
}

static size_t piece(size_t left)
{
    return left < BK_MESSAGE_MAX ? left : BK_MESSAGE_MAX;
}

void bk_broadcast(const bk_comm *comm, int root, void *data, size_t bytes)
{
    if (!comm)
        return;
    bk_trace_enter(comm, BK_CALL_BROADCAST, (int64_t)bytes);
    for (size_t done = 0; done < bytes; done += piece(bytes - done))
        BK_MPI(
            MPI_Bcast((char *)data + done, (int)piece(bytes - done), MPI_BYTE, root, comm->handle));
    bk_trace_leave();
}

/* ---- sums ---- */

static void allreduce(const bk_comm *comm, int64_t n, void *x, MPI_Datatype type, size_t size,
                      MPI_Op op)
{
    if (!comm || comm->size == 1)
        return;
    bk_trace_enter(comm, op == MPI_SUM ? BK_CALL_SUM : BK_CALL_MAX, n * (int64_t)size);
    for (int64_t done = 0; done < n;) {
        int64_t some = (int64_t)piece((size_t)(n - done));
        double start = bk_seconds();
        BK_MPI(MPI_Allreduce(MPI_IN_PLACE, (char *)x + (size_t)done * size, (int)some, type, op,
                             comm->handle));
        count(comm, some * (int64_t)size, start);
        done += some;
    }
    bk_trace_leave();
}

void bk_sum_i64(const bk_comm *comm, int64_t n, int64_t *x)
{
    allreduce(comm, n, x, MPI_INT64_T, sizeof *x, MPI_SUM);
}

void bk_max_i64(const bk_comm *comm, int64_t n, int64_t *x)
{
    allreduce(comm, n, x, MPI_INT64_T, sizeof *x, MPI_MAX);
}

void bk_max_f64(const bk_comm *comm, int64_t n, double *x)
{
    allreduce(comm, n, x, MPI_DOUBLE, sizeof *x, MPI_MAX);
}

bool bk_lanes_exact(const bk_lanes *lanes, int size)
{
    return bk_is_power_of_two(size) && lanes->total % size == 0;
}

static void exchange(const bk_comm *comm, int partner, int tag, const void *send, void *receive,
                     int64_t bytes)
{
    for (int64_t done = 0; done < bytes;) {
        int some = (int)piece((size_t)(bytes - done));
        double start = bk_seconds();
        BK_MPI(MPI_Sendrecv((const char *)send + done, some, MPI_BYTE, partner, tag,
                            (char *)receive + done, some, MPI_BYTE, partner, tag, comm->handle,
                            MPI_STATUS_IGNORE));
        count(comm, some, start);
        done += some;
    }
}

/* Distance 1 first, lower index + higher index: the levels of the lane tree above the ranks. */
static void recursive_doubling(const bk_comm *comm, int64_t n, double *x)
{
    bk_arena_mark mark = bk_arena_get_mark(comm->scratch);
    double *other = BK_NEW(comm->scratch, double, n);
    bk_trace_enter(comm, BK_CALL_LANE_SUM, n * (int64_t)sizeof *x);
    for (int distance = 1; distance < comm->size; distance *= 2) {
        int partner = comm->rank ^ distance;
        exchange(comm, partner, distance, x, other, n * (int64_t)sizeof *x);
        for (int64_t i = 0; i < n; i++)
            x[i] += other[i];
    }
    bk_trace_leave();
    bk_arena_release(comm->scratch, mark);
}

/* Any other P: added in rank order on rank 0, so that all ranks hold the same bits. */
static void sum_on_root(const bk_comm *comm, int64_t n, double *x)
{
    bk_arena_mark mark = bk_arena_get_mark(comm->scratch);
    double *all = BK_NEW(comm->scratch, double, comm->rank == 0 ? n * comm->size : 1);
    BK_ASSERT(n < BK_MESSAGE_MAX, "a vector of %lld doubles", (long long)n);
    double start = bk_seconds();
    bk_trace_enter(comm, BK_CALL_GATHER, n * (int64_t)sizeof *x);
    BK_MPI(MPI_Gather(x, (int)n, MPI_DOUBLE, all, (int)n, MPI_DOUBLE, 0, comm->handle));
    bk_trace_leave();
    for (int r = 1; comm->rank == 0 && r < comm->size; r++)
        for (int64_t i = 0; i < n; i++)
            all[i] += all[(int64_t)r * n + i];
    if (comm->rank == 0)
        memcpy(x, all, (size_t)n * sizeof *x);
    bk_broadcast(comm, 0, x, (size_t)n * sizeof *x);
    count(comm, n * (int64_t)sizeof *x, start);
    bk_arena_release(comm->scratch, mark);
}

void bk_sum_lanes(const bk_comm *comm, const bk_lanes *lanes, int64_t n, const double *local,
                  double *out)
{
    BK_ASSERT(comm, "a sum without a communicator");
    bk_lane_tree_values(lanes->count, n, local, out, comm->scratch);
    if (comm->size == 1)
        return;
    if (bk_lanes_exact(lanes, comm->size))
        recursive_doubling(comm, n, out);
    else
        sum_on_root(comm, n, out);
}

void bk_reducer_vector(void *comm, const bk_lanes *lanes, int64_t n, const double *local,
                       double *out)
{
    bk_sum_lanes(comm, lanes, n, local, out);
}

void bk_reducer_fixed(void *comm, int64_t n, int64_t *x)
{
    bk_sum_i64(comm, n, x);
}

void bk_reducer_max(void *comm, int64_t n, double *x)
{
    bk_max_f64(comm, n, x);
}

/* ---- exchanges ---- */

void bk_gather_counts(const bk_comm *comm, int64_t mine, int64_t *all)
{
    if (!comm || comm->size == 1) {
        all[0] = mine;
        return;
    }
    double start = bk_seconds();
    bk_trace_enter(comm, BK_CALL_ALLGATHER, (int64_t)sizeof mine);
    BK_MPI(MPI_Allgather(&mine, 1, MPI_INT64_T, all, 1, MPI_INT64_T, comm->handle));
    bk_trace_leave();
    count(comm, (comm->size - 1) * (int64_t)sizeof mine, start);
}

/* Blocks of different length, each broadcast by its owner: no count or displacement that could pass
 * 2^31. */
void bk_allgather_bytes(const bk_comm *comm, const void *mine, int64_t bytes, const int64_t *length,
                        void *all)
{
    char *to = all;
    double start = bk_seconds();
    for (int r = 0; r < bk_comm_size(comm); r++) {
        if (r == bk_comm_rank(comm) && bytes > 0)
            memmove(to, mine, (size_t)bytes);
        if (bk_comm_size(comm) > 1)
            bk_broadcast(comm, r, to, (size_t)length[r]);
        to += length[r];
    }
    if (bk_comm_size(comm) > 1)
        count(comm, bytes * (comm->size - 1), start);
}

/* On other nodes, where that is known. */
static int ranks_elsewhere(const bk_comm *comm)
{
    int ranks = 0;
    for (int r = 0; comm->node && r < comm->size; r++)
        ranks += comm->node[r] != comm->node[comm->rank];
    return ranks;
}

void bk_alltoall_counts(const bk_comm *comm, int64_t per_rank, const int32_t *send,
                        int32_t *receive)
{
    if (bk_comm_size(comm) == 1) {
        memcpy(receive, send, (size_t)per_rank * sizeof *send);
        return;
    }
    double start = bk_seconds();
    bk_trace_enter(comm, BK_CALL_ALLTOALL, per_rank * (int64_t)sizeof *send);
    BK_MPI(MPI_Alltoall(send, (int)per_rank, MPI_INT32_T, receive, (int)per_rank, MPI_INT32_T,
                        comm->handle));
    bk_trace_leave();
    bk_traffic sent = {.bytes = per_rank * (int64_t)sizeof *send * (comm->size - 1),
                       .messages = 1,
                       .far = ranks_elsewhere(comm)};
    bk_traffic_add_all(comm->part, sent);
    bk_traffic_blocked(comm->part, start);
}

/* The simulator copies what is of a type of its own; there a row is its bytes. */
int bk_row_type(size_t row_bytes, MPI_Datatype *row)
{
#ifdef BIRKHOFF_SMPI
    *row = MPI_BYTE;
    return (int)row_bytes;
#else
    BK_MPI(MPI_Type_contiguous((int)row_bytes, MPI_BYTE, row));
    BK_MPI(MPI_Type_commit(row));
    return 1;
#endif
}

/* In elements of the type of a row; returns their number. */
static int64_t fill_counts(const bk_comm *comm, int unit, const int64_t *rows, int *counts,
                           int *places)
{
    int64_t place = 0;
    for (int r = 0; r < comm->size; r++) {
        counts[r] = bk_mpi_rows(rows[r] * unit);
        places[r] = bk_mpi_rows(place);
        place += rows[r] * unit;
    }
    return bk_mpi_rows(place);
}

void bk_alltoallv_rows(const bk_comm *comm, size_t row_bytes, const void *send,
                       const int64_t *send_count, void *receive, const int64_t *receive_count)
{
    if (bk_comm_size(comm) == 1) {
        BK_ASSERT(send_count[0] == receive_count[0], "rows to oneself differ");
        memcpy(receive, send, row_bytes * (size_t)send_count[0]);
        return;
    }
    bk_arena_mark mark = bk_arena_get_mark(comm->scratch);
    int *list = BK_NEW(comm->scratch, int, 4 * comm->size);
    double start = bk_seconds();
    MPI_Datatype row;
    int unit = bk_row_type(row_bytes, &row);
    int64_t rows = fill_counts(comm, unit, send_count, list, list + comm->size) / unit;
    fill_counts(comm, unit, receive_count, list + 2 * comm->size, list + 3 * comm->size);
    bk_trace_enter(comm, BK_CALL_ALLTOALLV, (int64_t)row_bytes * rows);
    BK_MPI(MPI_Alltoallv(send, list, list + comm->size, row, receive, list + 2 * comm->size,
                         list + 3 * comm->size, row, comm->handle));
    bk_trace_leave();
    if (row != MPI_BYTE)
        BK_MPI(MPI_Type_free(&row));
    count(comm, (int64_t)row_bytes * (rows - send_count[comm->rank]), start);
    bk_arena_release(comm->scratch, mark);
}

void bk_send_bytes(const bk_comm *comm, int to, int tag, const void *data, int64_t bytes)
{
    for (int64_t done = 0; done < bytes;) {
        int some = (int)piece((size_t)(bytes - done));
        double start = bk_seconds();
        bk_trace_enter(comm, BK_CALL_SEND, some);
        BK_MPI(MPI_Send((const char *)data + done, some, MPI_BYTE, to, tag, comm->handle));
        bk_trace_leave();
        count(comm, some, start);
        done += some;
    }
}

void bk_receive_bytes(const bk_comm *comm, int from, int tag, void *data, int64_t bytes)
{
    for (int64_t done = 0; done < bytes;) {
        int some = (int)piece((size_t)(bytes - done));
        bk_trace_enter(comm, BK_CALL_RECEIVE, some);
        BK_MPI(MPI_Recv((char *)data + done, some, MPI_BYTE, from, tag, comm->handle,
                        MPI_STATUS_IGNORE));
        bk_trace_leave();
        done += some;
    }
}
