/* core/schedule.h - the learning rate as a function of the step. */
#ifndef BK_CORE_SCHEDULE_H
#define BK_CORE_SCHEDULE_H

#include "core/option.h"

typedef struct bk_schedule_kind {
    const char *name, *summary;
    /* Factor on optim.lr for update `step` (0-based) of `steps`, after `warmup` steps that rise
     * linearly as (step+1)/warmup; `floor` is the fraction at the end. */
    double (*factor)(int64_t step, int64_t steps, int64_t warmup, double floor, const void *config);
    const bk_option *options; /* keys of this kind alone; NULL: none, and none of what follows */
    size_t config_size;
    bk_status (*check)(const void *config); /* BK_USAGE for what the table cannot check */
} bk_schedule_kind;

/* constant, linear, cosine, drop; ended by NULL */
extern const bk_schedule_kind *const bk_schedules[];

#endif
