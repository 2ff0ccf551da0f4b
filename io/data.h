/* io/data.h - makers and readers of data sets.  One kind = one file io/data/<kind>.c and one line
 * in io/data/kinds.def. */
#ifndef BK_IO_DATA_H
#define BK_IO_DATA_H

#include "core/option.h"
#include "io/dataset.h"

typedef struct bk_data_args {
    const char *const *input; /* file and directory arguments, NULL-ended */
    int inputs;
    const void *config;
    bk_arena *arena;
} bk_data_args;

typedef struct bk_data_kind {
    const char *name, *summary, *source;
    const char *usage; /* "TRAIN.tsv VALID.tsv TEST.tsv": the inputs, for help */
    const bk_option *options;
    size_t config_size;
    bk_status (*check)(const void *config); /* may be NULL */
    /* Not collective (rank 0 makes data sets).  Makes the data set on a->arena: samples, labels,
     * splits, majority, ladder, source text.  Prints nothing; the command prints the summary. */
    bk_status (*make)(const bk_data_args *a, bk_dataset *out);
} bk_data_kind;

extern const bk_data_kind *const bk_data_kinds[]; /* ended by NULL */
const bk_data_kind *bk_data_find(const char *name);

#endif
