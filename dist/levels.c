/* Which ranks of a communicator share a node, and communicators for the two levels. */
#include "core/log.h"
#include "dist/collective.h"
#include "dist/internal.h"

#include <stdlib.h>
#include <string.h>

/* Collective over comm.  Numbers the nodes by their first rank in comm; returns how many there are.
 */
static int number_nodes(const bk_comm *comm, int leader, int *node)
{
    int nodes = 0, *leaders = BK_NEW(comm->scratch, int, comm->size);
    BK_MPI(MPI_Allgather(&leader, 1, MPI_INT, leaders, 1, MPI_INT, comm->handle));
    for (int r = 0; r < comm->size; r++) {
        int same = 0;
        while (leaders[same] != leaders[r])
            same++;
        node[r] = same < r ? node[same] : nodes++;
    }
    return nodes;
}

/* How many ranks of the node of r stand before it in comm. */
static int local_of(const int *node, int r)
{
    int before = 0;
    for (int q = 0; q < r; q++)
        before += node[q] == node[r];
    return before;
}

/* rank[nodes,each]: the rank in comm of each (node, local rank).  False when nodes hold different
 * numbers of ranks. */
static bool place_ranks(const bk_comm *comm, int nodes, const int *node, int *rank)
{
    int each = comm->size / nodes;
    for (int r = 0; r < comm->size; r++) {
        int local = local_of(node, r);
        if (local >= each)
            return false;
        rank[node[r] * each + local] = r;
    }
    return nodes * each == comm->size;
}

/* Across the nodes every rank is one. */
static const int *numbers(bk_arena *arena, int n)
{
    int *x = BK_NEW(arena, int, n);
    for (int i = 0; i < n; i++)
        x[i] = i;
    return x;
}

/* Collective over the world, whose ranks make the same calls in all groups (dist/trace.h). */
static bool on_all_ranks(const bk_comm *world, bool fits)
{
    int all = fits;
    BK_MPI(MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_INT, MPI_MIN, world->handle));
    return all != 0;
}

void bk_levels_open(bk_arena *arena, bk_comm *comm, const bk_comm *on_node, const bk_comm *world)
{
    int leader = bk_mpi_rank();
    BK_MPI(MPI_Bcast(&leader, 1, MPI_INT, 0, on_node->handle));
    bk_arena_mark mark = bk_arena_get_mark(comm->scratch);
    int *node = BK_NEW(arena, int, comm->size), *rank = BK_NEW(arena, int, comm->size);
    int nodes = number_nodes(comm, leader, node);
    bk_arena_release(comm->scratch, mark);
    comm->node = node;
    bool fits = nodes > 1 && nodes < comm->size && place_ranks(comm, nodes, node, rank);
    if (!on_all_ranks(world, fits))
        return;
    int local = local_of(node, comm->rank);
    bk_levels *v = comm->levels = BK_NEW(arena, bk_levels, 1);
    *v = (bk_levels){.nodes = nodes, .each = comm->size / nodes, .rank = rank};
    v->inner = bk_comm_split(arena, comm->handle, node[comm->rank], local, "inner", comm->part);
    v->cross = bk_comm_split(arena, comm->handle, local, node[comm->rank], "cross", comm->part);
    v->cross->node = numbers(arena, nodes);
}

bool bk_comm_has_levels(const bk_comm *comm)
{
    return comm && comm->levels;
}

/* ---- what passes through this rank ---- */

bk_relay *bk_relay_new(const bk_comm *comm, bk_arena *arena, int64_t exchanges,
                       const int64_t *count)
{
    const bk_levels *v = comm->levels;
    int64_t words = exchanges * v->nodes;
    bk_relay *relay = BK_NEW(arena, bk_relay, 1);
    int32_t *mine = BK_NEW(arena, int32_t, words * v->each);
    *relay = (bk_relay){.words = words, .rows = BK_NEW(arena, int32_t, words * v->each)};
    for (int local = 0; local < v->each; local++)
        for (int64_t x = 0; x < exchanges; x++)
            for (int node = 0; node < v->nodes; node++)
                mine[local * words + x * v->nodes + node] =
                    (int32_t)count[x * comm->size + v->rank[node * v->each + local]];
    bk_alltoall_counts(v->inner, words, mine, relay->rows);
    return relay;
}

bk_relay *bk_relay_even(const bk_comm *comm, bk_arena *arena)
{
    const bk_levels *v = comm->levels;
    bk_relay *relay = BK_NEW(arena, bk_relay, 1);
    *relay = (bk_relay){.words = v->nodes, .rows = BK_NEW(arena, int32_t, comm->size)};
    for (int r = 0; r < comm->size; r++)
        relay->rows[r] = 1;
    return relay;
}

int64_t bk_relay_rows(const bk_comm *comm, const bk_relay *relay, int64_t exchange, int local,
                      int node)
{
    return relay->rows[local * relay->words + exchange * comm->levels->nodes + node];
}

/* ---- nodes for tests ---- */

/* BIRKHOFF_NODE_RANKS=N: so many ranks in a row count as a node, wherever they are; 0: not given.
 */
bk_status bk_node_ranks(int *ranks)
{
    const char *text = getenv("BIRKHOFF_NODE_RANKS");
    char *end = NULL;
    long value = text ? strtol(text, &end, 10) : 0;
    *ranks = (int)value;
    if (text && (*text == '\0' || *end != '\0' || value < 1 || value > INT32_MAX))
        return bk_fail(BK_USAGE,
                       "BIRKHOFF_NODE_RANKS is '%s': give the number of ranks that count as a node",
                       text);
    return BK_OK;
}
