/* core/transport/batch_kernel.h - the loops of core/transport/batch: problems side by side in the
 * slots of a vector, and one problem by itself. */
#ifndef BK_CORE_TRANSPORT_BATCH_KERNEL_H
#define BK_CORE_TRANSPORT_BATCH_KERNEL_H

#include "core/slots.h"

enum { BK_BATCH_MOST = 64 }; /* rows or columns */

/* Problems in slots; each array is [...][slot]. */
typedef struct bk_batch_block {
    int64_t rows, columns, half_steps; /* at most BK_BATCH_MOST rows and columns */
    const void *s;                     /* [rows,columns] */
    const void *a, *b;                 /* [rows], [columns] masses; 0 takes a row or column away */
    void *plan;                        /* [rows,columns] */
    void *factor; /* [half_steps, longer of rows and columns]: what each half step multiplied by */
    int wild[BK_SLOTS]; /* 1: the scores of a row lie so far apart that multiplication could lose
                           entries */
    /* backward alone: */
    bool last_only;
    const void *g; /* [rows,columns] dL/dplan */
    void *ds;      /* [rows,columns] dL/ds */
} bk_batch_block;

/* One problem with positive masses, in potentials. */
typedef struct bk_batch_single {
    int64_t rows, columns, half_steps;
    const void *s;      /* [rows,columns] */
    const void *a, *b;  /* [rows], [columns] masses */
    void *plan;         /* [rows,columns] */
    void *shift, *part; /* [half_steps, longer of rows and columns]: what each half step took off
                           the exponents of its rows or columns, and mass over sum */
    void *v;            /* [half_steps / 2 + 1, columns]: potentials behind the column steps */
    void *work;         /* rows + 2 columns elements */
    bool last_only;
    const void *g;
    void *ds;
} bk_batch_single;

typedef struct bk_batch_kernels {
    /* Fills wild, and, in slots that are not wild, plan and factor. */
    void (*forward)(bk_batch_block *k);
    /* Reads plan, which it overwrites, and factor; fills ds in slots that are not wild. */
    void (*backward)(const bk_batch_block *k);
    void (*single_forward)(const bk_batch_single *k);
    void (*single_backward)(const bk_batch_single *k); /* reads plan, shift, part, v */
} bk_batch_kernels;

BK_KERNEL_TABLES(bk_batch_kernels);

#endif
