/* dist/topology.h - the machine under this rank: cores, binding, neighbours.  hwloc is read here
 * and nowhere else. */
#ifndef BK_DIST_TOPOLOGY_H
#define BK_DIST_TOPOLOGY_H

#include "core/status.h"

typedef struct bk_topology {
    char host[64], cpu[96];    /* host name; processor model, "" when unknown */
    int packages, numa, cores; /* of this node */
    int threads;               /* hardware threads of this node */
    int bound_cores;           /* cores this process may run on */
    int bound_threads;         /* hardware threads this process may run on */
    int ranks, nodes;          /* of the job */
    int node_ranks;            /* ranks on this node */
    int sharing;               /* ranks on this node with the same binding, this one included */
    int64_t memory;            /* bytes of the node */
} bk_topology;

/* Collective once MPI has started; before, the job is one rank. */
void bk_topology_read(bk_topology *out);

/* Collective once MPI has started.  OpenMP threads for this rank: OMP_NUM_THREADS where the
 * user set it, else its cores / the ranks that share them, at least 1. */
int bk_topology_threads(void);

/* Not collective.  The rank that the launcher (mpirun, srun) gives this process, known before MPI
 * starts; 0 without a launcher. */
int bk_launch_rank(void);
/* The number of ranks the launcher started, 1 without a launcher.  More than bk_mpi_size() means
 * that launcher and library are of different MPIs. */
int bk_launch_size(void);

#endif
