/* jobs/transfer.h - losses between layers of student and teacher (BK_LOSS_LAYERS): what they ask of
 * both models, and the learned maps between widths, parameters of the student. */
#ifndef BK_JOBS_TRANSFER_H
#define BK_JOBS_TRANSFER_H

#include "jobs/job.h"

/* Behind the opening of the teacher and before the slab of the student is laid out: plans each such
 * loss, declares distill/hidden<i>/w [D,C] for its i-th map in the order of the configuration, and
 * sets job->transfer; nothing without such losses, and in an evaluation.  BK_USAGE. */
BK_CHECKED bk_status bk_transfer_plan(bk_job *job);

/* What a pass of the student, of the teacher is asked for; NULL: nothing. */
bk_inside *bk_transfer_student(const bk_job *job);
bk_inside *bk_transfer_teacher(const bk_job *job);

/* Whether matrices are asked for, which live inside blocks. */
bool bk_transfer_wants_matrices(const bk_job *job);

/* The layers of loss `place` behind both passes, on the tape's arena; NULL for other kinds. */
const bk_loss_layers *bk_transfer_layers(bk_job *job, int place);

#endif
