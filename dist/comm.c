#include "dist/comm.h"

#include "core/log.h"
#include "dist/bucket.h"
#include "dist/exchange.h"
#include "dist/internal.h"
#include "dist/messages.h"
#include "dist/trace.h"

#include <stdlib.h>
#include <string.h>

static bool started;
static int world_rank;
static int world_size = 1;

void bk_mpi_check(int code, const char *call)
{
    if (code == MPI_SUCCESS)
        return;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    bk_fatal("MPI failed on rank %d (%.60s): %s", world_rank, call, text);
}

void bk_mpi_abort(int exit_code)
{
    if (started)
        MPI_Abort(MPI_COMM_WORLD, exit_code);
    _Exit(exit_code);
}

static void poll(void)
{
    bk_bucket_poll();
    bk_exchange_poll();
    bk_messages_poll();
}

/* The simulator (SMPI) has no threads and says so. */
#ifdef BIRKHOFF_SMPI
enum { THREADS = MPI_THREAD_SINGLE };
#else
enum { THREADS = MPI_THREAD_FUNNELED };
#endif

bk_status bk_mpi_start(int *argc, char ***argv)
{
    int given = 0;
    if (MPI_Init_thread(argc, argv, THREADS, &given) != MPI_SUCCESS)
        return bk_fail(BK_FAULT, "MPI did not start: run birkhoff doctor on this machine");
    if (given < THREADS)
        return bk_fail(
            BK_FAULT,
            "MPI gives thread level SINGLE (FUNNELED is needed): use an MPI built with threads");
    started = true;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    BK_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &world_rank));
    BK_MPI(MPI_Comm_size(MPI_COMM_WORLD, &world_size));
    bk_set_abort(bk_mpi_abort);
    bk_set_poll(poll);
    return BK_OK;
}

void bk_mpi_stop(void)
{
    if (!started)
        return;
    BK_MPI(MPI_Barrier(MPI_COMM_WORLD));
    MPI_Finalize();
    started = false;
    bk_set_abort(NULL);
    bk_set_poll(NULL);
}

int bk_mpi_rank(void)
{
    return world_rank;
}

int bk_mpi_size(void)
{
    return world_size;
}

const char *bk_mpi_library(void)
{
    static char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    if (MPI_Get_library_version(text, &length) != MPI_SUCCESS)
        return "unknown MPI";
    text[strcspn(text, "\n")] = '\0';
    return text;
}

/* ---- communicators ---- */

static bk_comm *wrap(bk_arena *arena, MPI_Comm handle, const char *name, bk_traffic_part part)
{
    bk_comm *c = BK_ZNEW(arena, bk_comm, 1);
    c->handle = handle;
    c->name = name;
    c->part = part;
    BK_MPI(MPI_Comm_set_errhandler(handle, MPI_ERRORS_RETURN));
    BK_MPI(MPI_Comm_rank(handle, &c->rank));
    BK_MPI(MPI_Comm_size(handle, &c->size));
    c->world_rank = world_rank;
    c->world_size = world_size;
    c->scratch = bk_arena_new(name);
    c->reducer = (bk_reducer){.context = c,
                              .sum_vector = bk_reducer_vector,
                              .sum_fixed = bk_reducer_fixed,
                              .max = bk_reducer_max};
    return c;
}

static bk_comm *duplicate(bk_arena *arena, MPI_Comm of, const char *name, bk_traffic_part part)
{
    MPI_Comm handle;
    BK_MPI(MPI_Comm_dup(of, &handle));
    return wrap(arena, handle, name, part);
}

/* Of all ranks of the world that is `base`: its calls are the same on each of them. */
static bk_comm *of_all(bk_arena *arena, MPI_Comm base, const char *name, bk_traffic_part part)
{
    bk_comm *c = duplicate(arena, base, name, part);
    c->all_ranks = true;
    return c;
}

bk_comm *bk_comm_split(bk_arena *arena, MPI_Comm of, int color, int key, const char *name,
                       bk_traffic_part part)
{
    MPI_Comm handle;
    BK_MPI(MPI_Comm_split(of, color, key, &handle));
    return wrap(arena, handle, name, part);
}

static bk_comm *split(bk_arena *arena, const bk_comm *base, int color, const char *name)
{
    return bk_comm_split(arena, base->handle, color, base->rank, name, BK_TRAFFIC_EXPERT);
}

/* `ranks` of the job in a row; 0: those that share memory. */
static bk_comm *split_by_node(bk_arena *arena, const bk_comm *base, int ranks)
{
    MPI_Comm handle;
    if (ranks > 0)
        return bk_comm_split(arena, base->handle, world_rank / ranks, base->rank, "node",
                             BK_TRAFFIC_REST);
    BK_MPI(MPI_Comm_split_type(base->handle, MPI_COMM_TYPE_SHARED, base->rank, MPI_INFO_NULL,
                               &handle));
    return wrap(arena, handle, "node", BK_TRAFFIC_REST);
}

static int count_nodes(const bk_comm *node, const bk_comm *base)
{
    int first = node->rank == 0, nodes;
    BK_MPI(MPI_Allreduce(&first, &nodes, 1, MPI_INT, MPI_SUM, base->handle));
    return nodes;
}

static bk_status check_degree(int expert, int size, const char *which)
{
    if (expert >= 1 && size % expert == 0)
        return BK_OK;
    return bk_fail(BK_USAGE,
                   "parallel.expert=%d does not divide the number of %sranks (%d): choose a "
                   "divisor of %d",
                   expert, which, size, size);
}

/* All but the one between two worlds. */
enum { COMMS = 10 };
static void list_comms(const bk_world *w, bk_comm *all[COMMS])
{
    bk_comm *list[COMMS] = {w->world, w->ctl,         w->loss, w->route, w->ep,
                            w->edp,   w->edp_buckets, w->node, w->data,  w->checkpoint};
    memcpy(all, list, sizeof list);
}

static void place_in_world(const bk_world *w)
{
    bk_comm *all[COMMS];
    list_comms(w, all);
    for (int i = 0; i < COMMS; i++) {
        all[i]->world_rank = w->rank;
        all[i]->world_size = w->size;
    }
}

/* Nodes of `node_ranks` (bk_node_ranks). */
static bk_world *open_on(bk_arena *arena, MPI_Comm base, int expert, int node_ranks)
{
    bk_world *w = BK_ZNEW(arena, bk_world, 1);
    w->world = of_all(arena, base, "world", BK_TRAFFIC_REDUCE);
    w->rank = w->world->rank;
    w->size = w->world->size;
    w->expert = expert;
    w->ctl = of_all(arena, base, "ctl", BK_TRAFFIC_AGREE);
    w->loss = of_all(arena, base, "loss", BK_TRAFFIC_LOSS);
    w->route = of_all(arena, base, "route", BK_TRAFFIC_ROUTE);
    w->ep = split(arena, w->world, w->rank / expert, "ep");
    w->edp = split(arena, w->world, w->rank % expert, "edp");
    w->edp_buckets = duplicate(arena, w->edp->handle, "edp_buckets", BK_TRAFFIC_REDUCE);
    w->node = split_by_node(arena, w->world, node_ranks);
    bk_levels_open(arena, w->ep, w->node, w->world);
    w->nodes = count_nodes(w->node, w->world);
    w->data = of_all(arena, base, "data", BK_TRAFFIC_REST);
    w->checkpoint = of_all(arena, base, "checkpoint", BK_TRAFFIC_REST);
    place_in_world(w);
    return w;
}

bk_status bk_world_open(bk_arena *arena, int expert, bk_world **world)
{
    int node_ranks;
    BK_TRY(bk_node_ranks(&node_ranks));
    BK_TRY(check_degree(expert, world_size, ""));
    *world = open_on(arena, MPI_COMM_WORLD, expert, node_ranks);
    return BK_OK;
}

int bk_common_degree(int64_t a, int64_t b)
{
    return b == 0 ? (int)a : bk_common_degree(b, a % b);
}

bk_status bk_world_open_two(bk_arena *arena, int last, int expert, bk_world **world)
{
    int node_ranks, second = world_rank >= world_size - last;
    BK_ASSERT(last > 0 && last < world_size, "%d of %d ranks", last, world_size);
    BK_TRY(bk_node_ranks(&node_ranks));
    BK_TRY(check_degree(expert, world_size - last, "student "));
    MPI_Comm base;
    bk_trace_restart();
    BK_MPI(MPI_Comm_split(MPI_COMM_WORLD, second, world_rank, &base));
    bk_world *w =
        open_on(arena, base, second ? bk_common_degree(expert, last) : expert, node_ranks);
    w->between = duplicate(arena, MPI_COMM_WORLD, "between", BK_TRAFFIC_TEACHER);
    BK_MPI(MPI_Comm_free(&base));
    *world = w;
    return BK_OK;
}

void bk_comm_close(bk_comm *c)
{
    if (c->levels) {
        bk_comm_close(c->levels->inner);
        bk_comm_close(c->levels->cross);
    }
    BK_MPI(MPI_Comm_free(&c->handle));
    bk_arena_free(c->scratch);
}

void bk_world_close(bk_world *w)
{
    bk_comm *all[COMMS];
    list_comms(w, all);
    for (int i = 0; i < COMMS; i++)
        bk_comm_close(all[i]);
    if (w->between)
        bk_comm_close(w->between);
}

int bk_comm_rank(const bk_comm *comm)
{
    return comm ? comm->rank : 0;
}

int bk_comm_size(const bk_comm *comm)
{
    return comm ? comm->size : 1;
}

int bk_comm_world_rank(const bk_comm *comm)
{
    return comm ? comm->world_rank : 0;
}

int bk_comm_world_size(const bk_comm *comm)
{
    return comm ? comm->world_size : 1;
}

const bk_reducer *bk_comm_reducer(const bk_comm *comm)
{
    return comm ? &comm->reducer : NULL;
}
