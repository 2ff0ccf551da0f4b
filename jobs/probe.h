/* jobs/probe.h - figures of the attention matrices in the lines of evaluations (log.probe). */
#ifndef BK_JOBS_PROBE_H
#define BK_JOBS_PROBE_H

#include "jobs/job.h"

/* Collective.  Measures the attention matrices of the first log.probe samples of the evaluation
 * split and adds the list "probe", one object a layer, to the open line of `m` (rank 0; NULL
 * elsewhere): layer, birkhoff_distance, entropy, row_error, column_error, effective_rank,
 * product_rank, eigenvalues (models/probe.h).  Nothing with log.probe=0.  Looks for requests to
 * stop after each sample; with one it adds nothing.  *longest: seconds that this rank went at most
 * without a look, never less than before. */
bk_stop bk_job_probe(bk_job *job, bk_metrics *m, double *longest);

#endif
