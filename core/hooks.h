/* core/hooks.h - the only three ways in which core calls upward; dist sets them. */
#ifndef BK_CORE_HOOKS_H
#define BK_CORE_HOOKS_H

#include "core/lanes.h"

/* Sums over all ranks with the same bits on every rank.  NULL where a caller takes one means one
 * rank. */
typedef struct bk_reducer {
    void *context;
    /* local[m,n] (one row for each own lane, doubles) -> out[n]: lane tree over all lanes of all
     * ranks (rule F3). */
    void (*sum_vector)(void *context, const bk_lanes *lanes, int64_t n, const double *local,
                       double *out);
    /* x[n] summed in place over the ranks; integers, so exact in any order (rule F1). */
    void (*sum_fixed)(void *context, int64_t n, int64_t *x);
    /* x[n] maximum in place. */
    void (*max)(void *context, int64_t n, double *x);
} bk_reducer;

/* Calls through a reducer that may be NULL. */
void bk_reduce_vector(const bk_reducer *r, const bk_lanes *lanes, int64_t n, const double *local,
                      double *out, bk_arena *scratch);
void bk_reduce_fixed(const bk_reducer *r, int64_t n, int64_t *x);
void bk_reduce_max(const bk_reducer *r, int64_t n, double *x);

/* Progress of messages under way: called by core/blas between panels and by the tape at segment
 * ends.  Does nothing before bk_set_poll, and at most once every 50 us by its own time stamp. */
void bk_set_poll(void (*poll)(void));
void bk_poll(void);

/* Where the work stands, for whoever watches it: the tape tells the segment that it enters, forward
 * and backward.  The name must outlast the watcher.  Does nothing before bk_set_place. */
void bk_set_place(void (*told)(const char *segment));
void bk_place(const char *segment);

#endif
