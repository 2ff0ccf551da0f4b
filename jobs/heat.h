/* jobs/heat.h - maps of values over steps and experts as one SVG. */
#ifndef BK_JOBS_HEAT_H
#define BK_JOBS_HEAT_H

#include "core/arena.h"

#include <stdio.h>

typedef struct bk_heat {
    int64_t layer, experts;
    int64_t columns, room;
    double *step; /* [columns] where each ends; it begins where the one before ends */
    double *load; /* [columns,experts] shares, sum 1 */
} bk_heat;

/* Not collective.  Adds a column; load[experts] is copied to the arena.  A column whose values are
 * not all finite is left out. */
void bk_heat_add(bk_arena *arena, bk_heat *heat, double step, const double *load);

/* Not collective.  One map for each layer in rows of two under `title`: steps to the right, experts
 * upwards, load over its mean as colour: blue 0, white 1, red 2 and more.  What is finer than a map
 * can show is averaged. */
void bk_heat_write(FILE *file, const char *title, const bk_heat *heat, int maps);

#endif
