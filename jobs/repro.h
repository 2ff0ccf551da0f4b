/* jobs/repro.h - what it takes to look at a step that went wrong. */
#ifndef BK_JOBS_REPRO_H
#define BK_JOBS_REPRO_H

#include "jobs/job.h"

/* Not collective; rank 0 alone writes.  RUN/repro/step-%08lld.json for the step behind job->state,
 * which was not applied: its samples in order, seed, lanes and ranks, terms of the loss, norm of
 * the gradient, the newest checkpoint before it, the data set and the resolved configuration.
 * The newest eight up to this step are kept; those of later steps, which a run that was set back
 * left, go before them.  Failure is a warning. */
void bk_repro_write(const bk_job *job, const bk_step_result *r, int64_t checkpoint);

#endif
