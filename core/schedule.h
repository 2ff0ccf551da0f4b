/* core/schedule.h - the learning rate as a function of the step. */
#ifndef BK_CORE_SCHEDULE_H
#define BK_CORE_SCHEDULE_H

#include "core/option.h"

typedef struct bk_schedule_kind {
    const char *name, *summary;
    /* Factor on optim.lr for update `step` (0-based) of `steps`, after `warmup` steps that rise
     * linearly as (step+1)/warmup; `floor` is the fraction at the end. */
    double (*factor)(int64_t step, int64_t steps, int64_t warmup, double floor);
} bk_schedule_kind;

extern const bk_schedule_kind *const bk_schedules[]; /* constant, linear, cosine; ended by NULL */

#endif
