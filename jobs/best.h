/* jobs/best.h - checkpoint.best: which figure of the evaluations is wanted small or large. */
#ifndef BK_JOBS_BEST_H
#define BK_JOBS_BEST_H

#include "jobs/job.h"

typedef struct bk_best {
    int metric;   /* -1: none */
    bool largest; /* max:METRIC */
} bk_best;

/* Reads checkpoint.best ("none", "max:accuracy", "min:cross_entropy", ...).  BK_USAGE for an
 * unknown metric, and for one of a teacher without a teacher. */
BK_CHECKED bk_status bk_best_read(const bk_config *config, bk_best *out);

/* BK_USAGE when the data have no classes, or too many, for the metric. */
BK_CHECKED bk_status bk_best_fits(const bk_best *best, const bk_job *job);

/* The evaluation at state->step is the best so far: notes its value and step in the state. */
bool bk_best_improved(const bk_best *best, const bk_evaluation *e, bk_run_state *state);

#endif
