#include "core/hooks.h"

#include "core/log.h"

static void (*poll_hook)(void);
static double last_poll;
static void (*place_hook)(const char *segment);

void bk_reduce_vector(const bk_reducer *r, const bk_lanes *lanes, int64_t n, const double *local,
                      double *out, bk_arena *scratch)
{
    if (r)
        r->sum_vector(r->context, lanes, n, local, out);
    else
        bk_lane_tree_values(lanes->count, n, local, out, scratch);
}

void bk_reduce_fixed(const bk_reducer *r, int64_t n, int64_t *x)
{
    if (r)
        r->sum_fixed(r->context, n, x);
}

void bk_reduce_max(const bk_reducer *r, int64_t n, double *x)
{
    if (r)
        r->max(r->context, n, x);
}

void bk_set_poll(void (*poll)(void))
{
    poll_hook = poll;
}

void bk_poll(void)
{
    if (!poll_hook)
        return;
    double now = bk_seconds();
    if (now - last_poll < 50e-6)
        return;
    last_poll = now;
    poll_hook();
}

void bk_set_place(void (*told)(const char *segment))
{
    place_hook = told;
}

void bk_place(const char *segment)
{
    if (place_hook)
        place_hook(segment);
}
