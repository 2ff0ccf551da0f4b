/* dist/watchdog.h - a thread that ends the job when a rank no longer moves, and says which one.
 *
 * The main thread says where it is; calls of MPI (dist/trace.h) and segments of the tape
 * (core/hooks.h) come by themselves.  Once a second the thread writes that to
 * DIRECTORY/rank-R.state.  When nothing has changed for too long, it writes the main thread's
 * backtrace to rank-R.txt, and the first rank to do so reads the states of all, prints one error
 * line and aborts the job with BK_STALLED.  It makes no call of MPI but that one.  Time in which
 * the process is stopped does not count, and under a debugger nothing is too long. */
#ifndef BK_DIST_WATCHDOG_H
#define BK_DIST_WATCHDOG_H

#include <stdint.h>

typedef enum bk_phase {
    BK_PHASE_START, /* start and load may take twice as long as the others, a save four times, a
                       teacher's wait for its students eight times */
    BK_PHASE_LOAD,
    BK_PHASE_BATCH,
    BK_PHASE_FORWARD,
    BK_PHASE_BACKWARD,
    BK_PHASE_REDUCE,
    BK_PHASE_AGREE,
    BK_PHASE_UPDATE,
    BK_PHASE_EVALUATE,
    BK_PHASE_SAVE,
    BK_PHASE_WAIT,
    BK_PHASES
} bk_phase;

/* Not collective; the main thread.  Where it is from now on; the segment ends.  A few ns. */
void bk_watchdog_phase(bk_phase phase);
void bk_watchdog_step(int64_t step);

typedef struct bk_watchdog_options {
    const char *directory; /* RUN/stall, which is there; copied */
    const char *run_id;    /* the same on all ranks, another for every start; copied */
    double seconds;        /* without a change; 0: no thread, SIGUSR2 alone is served */
} bk_watchdog_options;

/* Not collective; the main thread, on every rank.  From now on SIGUSR2 appends what the main thread
 * does, with a backtrace, to rank-R.txt; the training goes on.  A directory that cannot be written
 * is a warning. */
void bk_watchdog_start(const bk_watchdog_options *options);
/* Not collective.  Ends the thread; fine without one.  Names that the main thread gave may go. */
void bk_watchdog_stop(void);

#endif
