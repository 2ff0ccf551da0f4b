/* jobs/progress.h - what a person sees while a training runs: a bar on a terminal, plain lines
 * elsewhere. */
#ifndef BK_JOBS_PROGRESS_H
#define BK_JOBS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct bk_progress {
    bool terminal; /* a bar; mpirun makes isatty true everywhere, so a width is asked for too */
    double started;
    int64_t first, last; /* steps */
    double shown;
} bk_progress;

bk_progress bk_progress_start(int64_t first, int64_t last);

/* `text` is the state of the run ("loss 0.31  lr 3e-4  812 tokens/s"); due: a plain line is wanted
 * at this step. It is left out where the reader of a pipe does not read. */
void bk_progress_show(bk_progress *p, int64_t step, bool due, const char *text);

/* Ends the bar, so that other lines can follow. */
void bk_progress_break(bk_progress *p);

#endif
