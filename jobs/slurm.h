/* jobs/slurm.h - what Slurm says about the job that this process belongs to. */
#ifndef BK_JOBS_SLURM_H
#define BK_JOBS_SLURM_H

#include <stdbool.h>

enum { BK_SLURM_TEXT = 96 };

typedef struct bk_slurm {
    bool inside; /* SLURM_JOB_ID is set */
    char job[BK_SLURM_TEXT], nodes[BK_SLURM_TEXT];
    int restarts;
    /* "" when the commands of Slurm cannot tell: */
    char left[BK_SLURM_TEXT];    /* time left, "29:12", "UNLIMITED" */
    char requeue[BK_SLURM_TEXT]; /* "1": a stopped job is put back in the queue */
    char signal[BK_SLURM_TEXT];  /* that the job script asks for: "USR1@300" */
} bk_slurm;

/* Not collective.  Reads the environment and, inside a job, asks squeue and scontrol. */
void bk_slurm_read(bk_slurm *out);

/* True when srun started several tasks that do not see one another through MPI: each is alone in a
 * job of `ranks` = 1. */
bool bk_slurm_tasks_alone(int ranks);

#endif
