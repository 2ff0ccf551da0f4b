/* jobs/machine.h - the machine as the launcher handed it to this job, and what is wrong with that.
 * `doctor` prints it, `train` warns of it: one list of checks. */
#ifndef BK_JOBS_MACHINE_H
#define BK_JOBS_MACHINE_H

#include "dist/comm.h"
#include "dist/topology.h"
#include "io/storage.h"

enum { BK_PROBLEMS = 16 };

typedef struct bk_machine {
    bk_topology node; /* of rank 0 */
    int threads;      /* of a rank */
    /* over all ranks and nodes: */
    int least_cores, most_cores;      /* that a rank may run on */
    int least_used, node_cores;       /* cores that the ranks of a node reach, and those it has */
    int node_ranks;                   /* most on one node */
    int launched;                     /* processes that the launcher says it started */
    bool tasks_alone;                 /* srun started several, each alone */
    int64_t shared_spare;             /* least free bytes of /dev/shm; -1 unknown */
    bool copy_failed;                 /* a rank cannot read the memory of its neighbour */
    bk_storage shared;                /* /dev/shm of rank 0 */
    char interfaces[160];             /* network interfaces of rank 0, "eth0 ib0" */
    int interface_count;              /* most of a node */
    const char *problem[BK_PROBLEMS]; /* "what: advice" */
    int problems;
} bk_machine;

/* Collective.  Facts and problems, the same on all ranks; texts on `arena`.  threads: those of a
 * rank; 0: as training chooses them (bk_topology_threads). */
void bk_machine_read(bk_arena *arena, const bk_world *world, int threads, bk_machine *out);

/* Adds a problem, dropped when there are BK_PROBLEMS already. */
void bk_machine_add(bk_machine *m, const char *problem);

/* Collective.  One warning for each problem. */
void bk_machine_warn(const bk_world *world, int threads);

#endif
