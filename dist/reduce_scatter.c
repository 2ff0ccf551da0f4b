#include "dist/reduce_scatter.h"

#include "core/log.h"
#include "dist/internal.h"
#include "dist/trace.h"

#include <string.h>

static MPI_Datatype type_of(bk_dtype dtype)
{
    BK_ASSERT(dtype == BK_F32 || dtype == BK_F64, "a sum of %s", bk_dtype_name(dtype));
    return dtype == BK_F64 ? MPI_DOUBLE : MPI_FLOAT;
}

static void add(bk_dtype dtype, int64_t n, void *into, const void *other)
{
    for (int64_t i = 0; i < n; i++)
        if (dtype == BK_F64)
            ((double *)into)[i] += ((const double *)other)[i];
        else
            ((float *)into)[i] += ((const float *)other)[i];
}

/* `count` elements at `send` to one rank, as many from another into `receive`. */
static void swap(const bk_comm *c, bk_dtype dtype, int64_t count, const int partner[2],
                 const void *send, void *receive)
{
    BK_ASSERT(count < BK_MESSAGE_MAX, "a piece of %lld elements", (long long)count);
    double start = bk_seconds();
    BK_MPI(MPI_Sendrecv(send, (int)count, type_of(dtype), partner[0], 0, receive, (int)count,
                        type_of(dtype), partner[1], 0, c->handle, MPI_STATUS_IGNORE));
    bk_traffic_add(BK_TRAFFIC_REDUCE, count * (int64_t)bk_dtype_size(dtype));
    bk_traffic_blocked(BK_TRAFFIC_REDUCE, start);
}

/* The rank whose bit is 0 keeps the lower half and sends the upper one. */
static int64_t halving(const bk_comm *c, bk_dtype dtype, int64_t n, char *x, char *incoming)
{
    size_t size = bk_dtype_size(dtype);
    int64_t lo = 0, half = n / 2;
    for (int distance = 1; distance < c->size; distance *= 2, half /= 2) {
        bool lower = (c->rank & distance) == 0;
        int64_t keep = lower ? lo : lo + half, give = lower ? lo + half : lo;
        int partner[] = {c->rank ^ distance, c->rank ^ distance};
        swap(c, dtype, half, partner, x + (size_t)give * size, incoming);
        add(dtype, half, x + (size_t)keep * size, incoming);
        lo = keep;
    }
    return lo;
}

/* Step s: segment r-s-1 goes to the right, segment r-s-2 comes from the left and is added. */
static int64_t ring(const bk_comm *c, bk_dtype dtype, int64_t n, char *x, char *incoming)
{
    int size = c->size, right = (c->rank + 1) % size, left = (c->rank + size - 1) % size;
    size_t bytes = (size_t)(n / size) * bk_dtype_size(dtype);
    for (int s = 0; s + 1 < size; s++) {
        int give = (c->rank - s - 1 + 2 * size) % size, take = (c->rank - s - 2 + 2 * size) % size;
        swap(c, dtype, n / size, (const int[]){right, left}, x + (size_t)give * bytes, incoming);
        add(dtype, n / size, x + (size_t)take * bytes, incoming);
    }
    return n / size * c->rank;
}

static int64_t library(const bk_comm *c, bk_dtype dtype, int64_t n, char *x, char *incoming)
{
    int64_t width = n / c->size, first = width * c->rank;
    size_t size = bk_dtype_size(dtype);
    BK_ASSERT(width < BK_MESSAGE_MAX, "a segment of %lld elements", (long long)width);
    double start = bk_seconds();
    BK_MPI(MPI_Reduce_scatter_block(x, incoming, (int)width, type_of(dtype), MPI_SUM, c->handle));
    memcpy(x + (size_t)first * size, incoming, (size_t)width * size);
    bk_traffic_add(BK_TRAFFIC_REDUCE, (n - width) * (int64_t)size);
    bk_traffic_blocked(BK_TRAFFIC_REDUCE, start);
    return first;
}

void bk_reduce_scatter(const bk_comm *comm, bk_reduce_algorithm algorithm, bk_dtype dtype,
                       int64_t n, void *x, int64_t *first)
{
    *first = 0;
    if (bk_comm_size(comm) == 1)
        return;
    BK_ASSERT(n % comm->size == 0, "%lld elements over %d ranks", (long long)n, comm->size);
    bk_arena_mark mark = bk_arena_get_mark(comm->scratch);
    char *incoming = bk_arena_alloc(comm->scratch, (size_t)n * bk_dtype_size(dtype));
    bk_trace_enter(comm, BK_CALL_REDUCE_SCATTER, n * (int64_t)bk_dtype_size(dtype));
    if (algorithm == BK_REDUCE_RING)
        *first = ring(comm, dtype, n, x, incoming);
    else if (algorithm == BK_REDUCE_TREE && bk_is_power_of_two(comm->size))
        *first = halving(comm, dtype, n, x, incoming);
    else
        *first = library(comm, dtype, n, x, incoming);
    bk_trace_leave();
    bk_arena_release(comm->scratch, mark);
}

/* The steps of halving backwards. */
void bk_gather_halves(const bk_comm *c, bk_dtype dtype, int64_t n, void *x, int tag)
{
    size_t size = bk_dtype_size(dtype);
    int64_t width = n / c->size, lo = width * bk_bit_reverse(c->rank, c->size);
    for (int distance = c->size / 2; distance >= 1; distance /= 2, width *= 2) {
        bool lower = (c->rank & distance) == 0;
        int64_t theirs = lower ? lo + width : lo - width;
        int partner = c->rank ^ distance;
        BK_MPI(MPI_Sendrecv((char *)x + (size_t)lo * size, (int)width, type_of(dtype), partner, tag,
                            (char *)x + (size_t)theirs * size, (int)width, type_of(dtype), partner,
                            tag, c->handle, MPI_STATUS_IGNORE));
        bk_traffic_add(BK_TRAFFIC_GATHER, width * (int64_t)size);
        lo = lower ? lo : theirs;
    }
}

/* Step s: segment r-s goes to the right, segment r-s-1 comes from the left. */
static void gather_ring(const bk_comm *c, bk_dtype dtype, int64_t n, char *x)
{
    int size = c->size, right = (c->rank + 1) % size, left = (c->rank + size - 1) % size;
    size_t bytes = (size_t)(n / size) * bk_dtype_size(dtype);
    for (int s = 0; s + 1 < size; s++) {
        int give = (c->rank - s + size) % size, take = (c->rank - s - 1 + size) % size;
        BK_MPI(MPI_Sendrecv(x + (size_t)give * bytes, (int)(n / size), type_of(dtype), right, 0,
                            x + (size_t)take * bytes, (int)(n / size), type_of(dtype), left, 0,
                            c->handle, MPI_STATUS_IGNORE));
        bk_traffic_add(BK_TRAFFIC_GATHER, (int64_t)bytes);
    }
}

void bk_reduce_gather(const bk_comm *comm, bk_reduce_algorithm algorithm, bk_dtype dtype, int64_t n,
                      void *x)
{
    if (bk_comm_size(comm) == 1)
        return;
    double start = bk_seconds();
    bk_trace_enter(comm, BK_CALL_ALLGATHER, n * (int64_t)bk_dtype_size(dtype));
    if (algorithm == BK_REDUCE_TREE && bk_is_power_of_two(comm->size)) {
        bk_gather_halves(comm, dtype, n, x, 0);
    } else if (algorithm == BK_REDUCE_RING) {
        gather_ring(comm, dtype, n, x);
    } else {
        int64_t width = n / comm->size;
        BK_MPI(MPI_Allgather(MPI_IN_PLACE, 0, type_of(dtype), x, (int)width, type_of(dtype),
                             comm->handle));
        bk_traffic_add(BK_TRAFFIC_GATHER, (n - width) * (int64_t)bk_dtype_size(dtype));
    }
    bk_trace_leave();
    bk_traffic_blocked(BK_TRAFFIC_GATHER, start);
}

void bk_allreduce(const bk_comm *comm, bk_reduce_algorithm algorithm, bk_dtype dtype, int64_t n,
                  void *x)
{
    int64_t first;
    if (algorithm != BK_REDUCE_MPI || bk_comm_size(comm) == 1) {
        bk_reduce_scatter(comm, algorithm, dtype, n, x, &first);
        bk_reduce_gather(comm, algorithm, dtype, n, x);
        return;
    }
    BK_ASSERT(n < BK_MESSAGE_MAX, "an array of %lld elements", (long long)n);
    double start = bk_seconds();
    bk_trace_enter(comm, BK_CALL_SUM, n * (int64_t)bk_dtype_size(dtype));
    BK_MPI(MPI_Allreduce(MPI_IN_PLACE, x, (int)n, type_of(dtype), MPI_SUM, comm->handle));
    bk_trace_leave();
    bk_traffic_add(BK_TRAFFIC_REDUCE, n * (int64_t)bk_dtype_size(dtype));
    bk_traffic_blocked(BK_TRAFFIC_REDUCE, start);
}
