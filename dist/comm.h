/* dist/comm.h - communicators: one duplicate per subsystem, so that traffic is never matched across
 * them. */
#ifndef BK_DIST_COMM_H
#define BK_DIST_COMM_H

#include "core/hooks.h"

typedef struct bk_comm bk_comm;

/* The grid of ranks: rank r = d EP + e; `ep` = ranks with the same d (neighbours), `edp` = ranks
 * with the same e. */
typedef struct bk_world {
    bk_comm *world;       /* gradient buckets of dense parameters */
    bk_comm *ctl;         /* agreement */
    bk_comm *loss;        /* batch-wise losses */
    bk_comm *route;       /* router sums */
    bk_comm *ep, *edp;    /* expert-parallel group; replicas of the own experts */
    bk_comm *edp_buckets; /* gradient buckets of experts */
    bk_comm *node;        /* ranks that share memory */
    bk_comm *data;        /* data sets */
    bk_comm *checkpoint;  /* blocks to the writers */
    bk_comm *between;     /* all ranks of the job, where they are two worlds; else NULL */
    int rank, size;
    int nodes;  /* that share no memory (or as BIRKHOFF_NODE_RANKS says) */
    int expert; /* EP */
} bk_world;

/* Collective.  Starts MPI (thread level FUNNELED), sets the hooks of abort and poll.  Called once,
 * before anything else of dist. */
BK_CHECKED bk_status bk_mpi_start(int *argc, char ***argv);
/* Collective.  Barrier on all ranks, then MPI_Finalize. */
void bk_mpi_stop(void);
/* Rank and number of ranks of the job; 0 and 1 before bk_mpi_start. */
int bk_mpi_rank(void);
int bk_mpi_size(void);
const char *bk_mpi_library(void); /* "Open MPI v4.1.4, ..." */

/* Collective.  Makes all communicators for an expert-parallel degree that divides the number of
 * ranks (else BK_USAGE). The world lives on `arena` (run arena) until bk_world_close. */
BK_CHECKED bk_status bk_world_open(bk_arena *arena, int expert, bk_world **world);
/* Collective over all ranks of the job.  Two worlds, one of the last `last` ranks (0 < last < size)
 * and one of those before them; *world is this rank's, and `between` joins both.  The degree
 * divides the ranks of the first (else BK_USAGE on all ranks); the second has the largest degree
 * that divides it and its own number of ranks. */
BK_CHECKED bk_status bk_world_open_two(bk_arena *arena, int last, int expert, bk_world **world);
void bk_world_close(bk_world *world); /* Collective. */

/* Not collective.  The largest expert-parallel degree that divides both of two positive numbers. */
int bk_common_degree(int64_t a, int64_t b);

/* True for a communicator (`ep` alone) whose ranks stand on several nodes, two or more and as many
 * on each, as do those of all other groups: then exchanges can go in two hops (dist/exchange.h).
 * BIRKHOFF_NODE_RANKS=N in the environment makes nodes of N ranks in a row, for tests on one
 * machine. */
bool bk_comm_has_levels(const bk_comm *comm);

int bk_comm_rank(const bk_comm *comm);
int bk_comm_size(const bk_comm *comm);
/* Ranks of the world that it belongs to, and this one among them; 1 and 0 for NULL. */
int bk_comm_world_size(const bk_comm *comm);
int bk_comm_world_rank(const bk_comm *comm);

/* The sums of core/hooks.h over this communicator; owned by the communicator. */
const bk_reducer *bk_comm_reducer(const bk_comm *comm);

#endif
