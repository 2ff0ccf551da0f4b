/* models/radix.h - order statistics of columns over the rows of all ranks, exact and the same for
 * every number of ranks: radix selection on order-preserving bits, 8 rounds of 8 bits, each one
 * message of 256 counts a column. */
#ifndef BK_MODELS_RADIX_H
#define BK_MODELS_RADIX_H

#include "core/hooks.h"

typedef struct bk_radix {
    int64_t rows, columns;
    const double *value; /* [rows,columns] local rows, finite */
    int64_t wanted;      /* 1 = the largest; at most the rows of all ranks */
    const bk_reducer *reducer;
    bk_arena *scratch;
} bk_radix;

/* Collective over the reducer.  threshold[columns]: the wanted-th largest of each column;
 * ties[columns]: how many of the values equal to it are among the `wanted` largest; may be NULL. */
void bk_radix_largest(const bk_radix *r, double *threshold, int64_t *ties);

#endif
