#include "core/schedule.h"

#include <math.h>

static double rise(int64_t step, int64_t warmup)
{
    return (double)(step + 1) / (double)warmup;
}

/* Share of the way from the end of the warm-up to the last step. */
static double progress(int64_t step, int64_t steps, int64_t warmup)
{
    return steps > warmup ? (double)(step - warmup) / (double)(steps - warmup) : 1.0;
}

static double constant(int64_t step, int64_t steps, int64_t warmup, double floor_)
{
    (void)steps;
    (void)floor_;
    return step < warmup ? rise(step, warmup) : 1.0;
}

static double linear(int64_t step, int64_t steps, int64_t warmup, double floor_)
{
    return step < warmup ? rise(step, warmup)
                         : 1.0 - (1.0 - floor_) * progress(step, steps, warmup);
}

static double cosine(int64_t step, int64_t steps, int64_t warmup, double floor_)
{
    const double pi = 3.14159265358979323846;
    if (step < warmup)
        return rise(step, warmup);
    return floor_ + (1.0 - floor_) * 0.5 * (1.0 + cos(pi * progress(step, steps, warmup)));
}

static const bk_schedule_kind constant_kind = {"constant", "warm-up, then the peak", constant};
static const bk_schedule_kind linear_kind = {"linear", "warm-up, then a straight line to the floor",
                                             linear};
static const bk_schedule_kind cosine_kind = {"cosine", "warm-up, then half a cosine to the floor",
                                             cosine};

const bk_schedule_kind *const bk_schedules[] = {&constant_kind, &linear_kind, &cosine_kind, NULL};
