/* jobs/plot.h - panels of curves as one SVG. */
#ifndef BK_JOBS_PLOT_H
#define BK_JOBS_PLOT_H

#include "core/arena.h"

#include <stdio.h>

typedef struct bk_series {
    const char *name; /* borrowed */
    int64_t points, room;
    double *x, *y;
} bk_series;

enum { BK_PANEL_SERIES = 64 };

typedef struct bk_panel {
    const char *title, *axis; /* axis: what stands below x; borrowed */
    bool logarithmic;         /* y: values that are not positive are left out */
    bk_series series[BK_PANEL_SERIES];
    int count;
} bk_panel;

/* Adds a point to the series of that name, which is made when it is new.  What is not finite, and
 * series beyond BK_PANEL_SERIES, are left out. */
void bk_panel_add(bk_arena *arena, bk_panel *panel, const char *name, double x, double y);

/* The head of an SVG of that size with a title over it; the caller ends it. */
void bk_plot_begin(FILE *file, const char *title, int width, int height);
/* anchor: start, middle, end. */
void bk_plot_text(FILE *file, double x, double y, const char *anchor, const char *text);

/* The panels that hold points, in rows of three under `title`; curves go from blue to red in the
 * order of their series. */
void bk_plot_write(FILE *file, const char *title, const bk_panel *panel, int panels);

#endif
