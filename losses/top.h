/* losses/top.h - teacher rows reduced to their k likeliest classes and one rest class.
 *
 * With S the k classes of largest logit (equal ones: the lowest class first), a row q of the
 * teacher becomes (q_v for v in S, sum of q_v outside S), and a row p of the student the same with
 * the teacher's S.  No loss on such rows exceeds that on the whole rows.  For the files of losses
 * alone. */
#ifndef BK_LOSSES_TOP_H
#define BK_LOSSES_TOP_H

#include "losses/loss.h"

#define BK_TOP_K(config_) \
    BK_OPTION_I64(config_, top_k, 0, 0, 1 << 30, "classes kept of a teacher row; 0 = all")

/* Of the teacher's rows at one temperature, on the step arena; rows that do not count hold
 * nothing. */
typedef struct bk_top {
    int64_t k;            /* 0: the rows are whole, and the rest is empty */
    const int32_t *index; /* [R,k] S of each row, largest logit first */
    const void *log_q;    /* [R,k+1] log q of the classes of S, then of the rest; as the logits */
} bk_top;

/* The teacher as a loss with this option and temperature sees it: *teacher are whole rows, or NULL
 * where the result has k > 0.  0 and values that leave nothing out mean whole rows; with a teacher
 * handed over as bk_teacher_top, 0 means all that was handed over.  That it holds so many classes
 * and the temperature is our duty: BK_ASSERT.  Where k > 0, adds the term `teacher_tail` of weight
 * 0 to the tape, the mean over the rows of q of the rest. */
bk_top bk_top_read(bk_tape *t, const bk_loss_args *args, int64_t option, double temperature,
                   const bk_tensor **teacher);

#endif
