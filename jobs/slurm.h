/* jobs/slurm.h - what Slurm says about the job that this process belongs to.  Not collective. */
#ifndef BK_JOBS_SLURM_H
#define BK_JOBS_SLURM_H

#include <stdbool.h>

enum { BK_SLURM_TEXT = 96 };

typedef struct bk_slurm {
    bool inside;               /* a job: SLURM_JOB_ID is set */
    char job[BK_SLURM_TEXT];   /* "17", of an array "17_3" */
    char nodes[BK_SLURM_TEXT]; /* "n[1-2]" */
    int restarts;
    double left; /* seconds until Slurm ends the job; INFINITY: no limit, -1: unknown */
    /* "" when the commands of Slurm cannot tell: */
    char batch[BK_SLURM_TEXT];   /* "1": a job script, which can be run again */
    char requeue[BK_SLURM_TEXT]; /* "1": a stopped job may be put back in the queue */
    char signal[BK_SLURM_TEXT];  /* of the directives of the job script: "USR1@180" */
    char output[BK_SLURM_TEXT];  /* likewise --open-mode: "append" */
} bk_slurm;

/* Reads the environment and, inside a job, asks squeue and scontrol, ten seconds each at most. */
void bk_slurm_read(bk_slurm *out);

/* Seconds until Slurm ends the job: SLURM_JOB_END_TIME, else squeue, asked for at most ten seconds.
 * INFINITY outside a job and without a limit; -1 when Slurm cannot tell. */
double bk_slurm_time_left(void);

/* Seconds in Slurm's text of a duration: "3:04", "2:03:04", "1-02:03:04"; INFINITY for "UNLIMITED";
 * -1 for anything else ("INVALID", "NOT_SET", ""). */
double bk_slurm_seconds(const char *text);

/* True when srun started several tasks that do not see one another through MPI: each is alone in a
 * job of `ranks` = 1. */
bool bk_slurm_tasks_alone(int ranks);

#endif
