/* jobs/saving.h - when a run saves, what becomes of it, and what people read of it. */
#ifndef BK_JOBS_SAVING_H
#define BK_JOBS_SAVING_H

#include "jobs/job.h"
#include "jobs/progress.h"

typedef struct bk_saving {
    bk_job *job;
    bk_progress *progress;
    double longest;           /* seconds of the longest save */
    double begun, last_stall; /* bk_seconds() of the last one; what it cost the training */
    int64_t failures;         /* in a row */
    int64_t skipped;          /* found the one before under way */
    int64_t step, saved_step; /* last begun and last committed; -1: none */
    bool advised;
} bk_saving;

/* Not collective.  Both pointers are borrowed. */
bk_saving bk_saving_of(bk_job *job, bk_progress *progress);

/* Not collective, the same on all ranks.  Whether a checkpoint is due behind this step. */
bool bk_saving_due(const bk_saving *s, const bk_step_result *r);

/* Collective.  Begins a checkpoint of the present step, and ends it without checkpoint.async.  One
 * that is still under way is waited for with `must`, else by checkpoint.async_busy.  A failure is
 * a warning; checkpoint.failures of them in a row are BK_FAULT. */
BK_CHECKED bk_status bk_saving_begin(bk_saving *s, bool must);
/* Collective.  Behind each step: moves on the save that is under way. */
BK_CHECKED bk_status bk_saving_move(bk_saving *s, const bk_step_result *r);
/* Collective.  Before the end of the program, without which the work would be lost: the present
 * step is saved when this returns BK_OK.  `again`: even if it is already. */
BK_CHECKED bk_status bk_saving_for_good(bk_saving *s, bool again);
/* Collective.  Nothing is under way any more. */
BK_CHECKED bk_status bk_saving_end(bk_saving *s);

#endif
