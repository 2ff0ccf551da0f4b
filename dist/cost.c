#include "dist/cost.h"

#include "core/log.h"
#include "core/vector.h"
#include "dist/bucket_internal.h"
#include "dist/collective.h"

#include <math.h>
#include <stdlib.h>

enum { SMALL = 8, LARGE = 4 << 20, MOST = 1000 };

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(int n, double *x)
{
    qsort(x, (size_t)n, sizeof *x, by_size);
    return x[n / 2];
}

/* There and back between the first and the last rank. */
static void round_trip(const bk_comm *comm, int bytes, char *data)
{
    int last = comm->size - 1;
    if (comm->rank == 0) {
        BK_MPI(MPI_Send(data, bytes, MPI_BYTE, last, 0, comm->handle));
        BK_MPI(MPI_Recv(data, bytes, MPI_BYTE, last, 0, comm->handle, MPI_STATUS_IGNORE));
    } else if (comm->rank == last) {
        BK_MPI(MPI_Recv(data, bytes, MPI_BYTE, 0, 0, comm->handle, MPI_STATUS_IGNORE));
        BK_MPI(MPI_Send(data, bytes, MPI_BYTE, 0, 0, comm->handle));
    }
}

/* Seconds one way: many trips at once for small messages, which the clock cannot tell apart. */
static double one_way(const bk_comm *comm, int bytes, int repeats, char *data)
{
    double seconds[MOST];
    int trips = bytes == SMALL ? 16 : 1;
    for (int i = -1; i < repeats; i++) {
        bk_barrier(comm);
        double start = bk_seconds();
        for (int j = 0; j < trips; j++)
            round_trip(comm, bytes, data);
        seconds[i < 0 ? 0 : i] = (bk_seconds() - start) / (2.0 * trips);
    }
    return median(repeats, seconds);
}

static double addition(int repeats, float *data)
{
    double seconds[MOST];
    int64_t n = LARGE / (int64_t)sizeof(float);
    for (int i = -1; i < repeats; i++) {
        double start = bk_seconds();
        bk_vector(BK_F32)->add(n, data, data + n);
        seconds[i < 0 ? 0 : i] = bk_seconds() - start;
    }
    return median(repeats, seconds) / LARGE;
}

bk_cost bk_cost_measure(const bk_comm *comm, int repeats)
{
    BK_ASSERT(repeats > 0 && repeats <= MOST, "%d repeats", repeats);
    bk_arena *arena = bk_arena_new("cost");
    char *data = bk_arena_zalloc(arena, 2 * (size_t)LARGE);
    double cost[3] = {0.0, 0.0, addition(repeats, (float *)data)};
    if (bk_comm_size(comm) > 1) {
        cost[0] = one_way(comm, SMALL, repeats, data);
        cost[1] = fmax(one_way(comm, LARGE, repeats, data) - cost[0], 0.0) / LARGE;
        if (comm->rank > 0)
            cost[0] = cost[1] = 0.0;
        bk_max_f64(comm, 3, cost);
    }
    bk_arena_free(arena);
    return (bk_cost){cost[0], cost[1], cost[2]};
}

static double halving_and_gather(const bk_cost *c, double steps, double ranks, double bytes)
{
    return 2.0 * steps * c->alpha + (ranks - 1.0) / ranks * bytes * (2.0 * c->beta + c->gamma);
}

double bk_cost_allreduce(const bk_cost *c, bk_reduce_algorithm algorithm, int ranks, double bytes)
{
    double levels = ceil(log2(ranks));
    double tree = halving_and_gather(c, levels, ranks, bytes);
    if (algorithm == BK_REDUCE_TREE)
        return tree;
    double ring = halving_and_gather(c, ranks - 1.0, ranks, bytes);
    if (algorithm == BK_REDUCE_RING)
        return ring;
    return fmin(fmin(tree, ring), levels * (c->alpha + bytes * (c->beta + c->gamma)));
}

static double messages(const bk_cost *c, bk_traffic sent)
{
    return (double)sent.messages * c->alpha + (double)sent.bytes * c->beta;
}

double bk_cost_messages(const bk_cost *c, const bk_reduction *r, bk_traffic_part part)
{
    return messages(c, bk_reduction_formula(r, part));
}

/* The bucket that forward reads first. */
static double first_of_gather(const bk_cost *c, const bk_reduction *r)
{
    return r->gather.buckets > 0 ? messages(c, bk_bucket_formula(r, r->gather.order[0])) : 0.0;
}

double bk_cost_exposed(const bk_cost *c, const bk_reduction *r, double forward, double backward)
{
    bk_traffic sent = bk_reduction_formula(r, BK_TRAFFIC_REDUCE);
    double last = messages(c, bk_bucket_formula(r, r->slab->buckets - 1));
    double gather = bk_cost_messages(c, r, BK_TRAFFIC_GATHER);
    return fmax(last, messages(c, sent) - backward) + (double)sent.bytes * c->gamma +
           fmax(first_of_gather(c, r), gather - forward);
}
