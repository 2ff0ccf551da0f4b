/* io/metrics.h - metrics.jsonl: one JSON object a line, appended by rank 0 and flushed a line at a
 * time; and TensorBoard events of the same numbers when asked for. */
#ifndef BK_IO_METRICS_H
#define BK_IO_METRICS_H

#include "core/arena.h"

typedef struct bk_metrics bk_metrics;

/* Opens RUN/metrics.jsonl for appending.  After a resume lines of steps > `step` are dropped first
 * (rewritten through a temporary file), so that the file tells one story.  tensorboard: also
 * RUN/tb/. */
BK_CHECKED bk_status bk_metrics_open(bk_arena *arena, const char *run_directory, int64_t step,
                                     bool tensorboard, bk_metrics **out);
BK_CHECKED bk_status bk_metrics_close(bk_metrics *m);
/* The file has a line of that step with that field. */
bool bk_metrics_has(const bk_metrics *m, int64_t step, const char *field);

/* One line: begin, any number of fields, end.  Non-finite numbers are written as null.  A NULL m
 * does nothing. */
void bk_metrics_begin(bk_metrics *m, int64_t step, const char *split);
void bk_metrics_number(bk_metrics *m, const char *name, double value);
void bk_metrics_integer(bk_metrics *m, const char *name, int64_t value);
void bk_metrics_text(bk_metrics *m, const char *name, const char *value);
/* An array of numbers. */
void bk_metrics_numbers(bk_metrics *m, const char *name, int64_t count, const double *value);
/* An array of objects, one a layer: open, fields, next..., close. */
void bk_metrics_open_list(bk_metrics *m, const char *name);
void bk_metrics_next_item(bk_metrics *m);
void bk_metrics_close_list(bk_metrics *m);
void bk_metrics_end(bk_metrics *m);

#endif
