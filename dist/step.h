/* dist/step.h - the one message of a step that decides everything: every decision (apply, skip,
 * stop, save, fail) is a pure function of the gathered message, so all ranks decide alike. */
#ifndef BK_DIST_STEP_H
#define BK_DIST_STEP_H

#include "dist/comm.h"

/* Flags that are summed over the ranks. */
typedef enum bk_step_flag {
    BK_STEP_NONFINITE, /* values found that are not finite */
    BK_STEP_TERM,      /* ranks that saw SIGTERM or SIGINT */
    BK_STEP_USR1,
    BK_STEP_TIME,        /* ranks whose time limit is near */
    BK_STEP_SAVE_DONE,   /* ranks whose part of a background save is done */
    BK_STEP_SAVE_FAILED, /* or has failed */
    BK_STEP_SAVE_DUE,    /* a checkpoint is due by rank 0's clock */
    BK_STEP_SAVE_DEAR,   /* one would cost too much so soon, by rank 0's clock */
    BK_STEP_FLAGS
} bk_step_flag;

typedef struct bk_step_message {
    bk_status status;            /* in: of this rank; out: the worst of all ranks (agreed text) */
    int64_t flag[BK_STEP_FLAGS]; /* in: of this rank; out: sums */
    int64_t terms;
    const double *record; /* [m,terms] one row for each own lane */
    double *sum;          /* [terms] out: lane tree over all lanes of all ranks */
    int64_t blocks;       /* the same on every rank */
    const double *block;  /* [blocks] squared norms by block (dist/bucket.h) */
    double *all_blocks;   /* [size,blocks] out, rank order */
} bk_step_message;

/* Collective over comm (`ctl`).  One MPI_Allgather.  The number and the hash of the calls so far
 * (dist/trace.h) travel too: BK_FAULT when they differ. */
void bk_step_agree(const bk_comm *comm, const bk_lanes *lanes, bk_step_message *message);

#endif
