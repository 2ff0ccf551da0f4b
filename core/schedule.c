#include "core/schedule.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double rise(int64_t step, int64_t warmup)
{
    return (double)(step + 1) / (double)warmup;
}

/* Share of the way from the end of the warm-up to the last step. */
static double progress(int64_t step, int64_t steps, int64_t warmup)
{
    return steps > warmup ? (double)(step - warmup) / (double)(steps - warmup) : 1.0;
}

static double constant(int64_t step, int64_t steps, int64_t warmup, double floor_,
                       const void *config)
{
    (void)config;
    (void)steps;
    (void)floor_;
    return step < warmup ? rise(step, warmup) : 1.0;
}

static double linear(int64_t step, int64_t steps, int64_t warmup, double floor_, const void *config)
{
    (void)config;
    return step < warmup ? rise(step, warmup)
                         : 1.0 - (1.0 - floor_) * progress(step, steps, warmup);
}

static double cosine(int64_t step, int64_t steps, int64_t warmup, double floor_, const void *config)
{
    (void)config;
    const double pi = 3.14159265358979323846;
    if (step < warmup)
        return rise(step, warmup);
    return floor_ + (1.0 - floor_) * 0.5 * (1.0 + cos(pi * progress(step, steps, warmup)));
}

/* ---- drop: a factor at given steps ---- */

typedef struct drop_config {
    const char *at;
    double factor;
} drop_config;

static const bk_option drop_options[] = {
    BK_OPTION_TEXT(drop_config, at, "", "steps at which the rate drops, in order: 16500 24200"),
    BK_OPTION_F64_ABOVE(drop_config, factor, 0.1, 0.0, 1.0, "of the rate at each of them"),
    BK_OPTION_END,
};

/* The number that begins at *text, and moves it behind; false: there is none. */
static bool next_step(const char **text, int64_t *step)
{
    char *end;
    *text += strspn(*text, " ,");
    *step = strtoll(*text, &end, 10);
    bool found = end > *text && *step >= 0 && strchr(" ,", *end);
    *text = found ? end : *text;
    return found;
}

static bk_status drop_check(const void *config)
{
    const char *all = ((const drop_config *)config)->at, *rest = all;
    int64_t step, before = -1;
    bool rising = true;
    for (; next_step(&rest, &step); before = step)
        rising = rising && step > before;
    if (rising && *rest == '\0' && (before >= 0 || *all == '\0'))
        return BK_OK;
    return bk_fail(
        BK_USAGE,
        "schedule.at=%s is no list of increasing steps: write schedule.at=\"16500 24200\"", all);
}

static double drop(int64_t step, int64_t steps, int64_t warmup, double floor_, const void *config)
{
    const drop_config *c = config;
    const char *rest = c->at;
    double factor = step < warmup ? rise(step, warmup) : 1.0;
    int64_t at;
    (void)steps;
    (void)floor_;
    while (next_step(&rest, &at) && step >= at)
        factor *= c->factor;
    return factor;
}

/* ---- the table ---- */

static const bk_schedule_kind constant_kind = {
    .name = "constant", .summary = "warm-up, then the peak", .factor = constant};
static const bk_schedule_kind linear_kind = {
    .name = "linear", .summary = "warm-up, then a straight line to the floor", .factor = linear};
static const bk_schedule_kind cosine_kind = {
    .name = "cosine", .summary = "warm-up, then half a cosine to the floor", .factor = cosine};
static const bk_schedule_kind drop_kind = {.name = "drop",
                                           .summary = "warm-up, the peak, and less at given steps",
                                           .factor = drop,
                                           .options = drop_options,
                                           .config_size = sizeof(drop_config),
                                           .check = drop_check};

const bk_schedule_kind *const bk_schedules[] = {&constant_kind, &linear_kind, &cosine_kind,
                                                &drop_kind, NULL};
