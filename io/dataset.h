/* io/dataset.h - the one data set format that training reads (interface: section 4).
 *
 * Text attributes (`task`, `source`, `label_name`, `digest`, ...) stand in `texts`, too
 * (bk_h5_set_texts); files of other makers do without it.
 *
 * Tokens and offsets are read whole (a data set of this program fits in memory); `digest` names the
 * content. */
#ifndef BK_IO_DATASET_H
#define BK_IO_DATASET_H

#include "core/arena.h"
#include "core/tensor.h"
#include "io/hdf5.h"

typedef struct bk_split {
    const char *name;     /* "train" */
    const int64_t *index; /* samples */
    int64_t count;
    double majority;      /* share of the largest class; NaN when there are no labels */
    const double *ladder; /* [ladder_count] shortcut accuracies by visible depth (listops); NULL */
    int64_t ladder_count;
} bk_split;

enum { BK_DATASET_SPLITS = 8, BK_DATASET_CLASSES = 1 << 24 /* at most */ };

typedef struct bk_dataset {
    const char *path, *task, *source; /* task: classification, language_model, ... */
    int64_t samples;
    int64_t vocabulary;     /* 0: features */
    int64_t classes;        /* 0: none */
    const int32_t *tokens;  /* flat, widened to int32; NULL with features */
    const int64_t *offsets; /* [samples+1] */
    const int32_t *tokens2; /* second texts of pairs, like tokens; NULL: single texts */
    const int64_t *offsets2;
    const int32_t *labels; /* [samples] or NULL */
    const float *features; /* [samples, positions, channels] or NULL */
    /* Of a data set that is made, instead of features: fills the rows of samples first ..
     * first+count-1, so that they need not stand in memory all at once. */
    void (*draw)(const void *context, int64_t first, int64_t count, float *features);
    const void *draw_context;
    int64_t positions, channels;
    int64_t max_length; /* of the longest sample (bk_sample_length) */
    bk_split split[BK_DATASET_SPLITS];
    int splits;
    const char *note;        /* of its making, for the summary: "171 duplicates dropped"; NULL */
    const char *label_name;  /* names of classes, '\n'-separated, or NULL */
    const char *metric;      /* what tells how good a classifier is; NULL: accuracy */
    const uint8_t *subwords; /* [subword_bytes] the model that made tokens of texts
                                (io/subwords.h); NULL: none did */
    int64_t subword_bytes;
    char vocabulary_digest[65]; /* hex SHA-256 of subwords; "" without */
    char digest[65];            /* hex SHA-256 of the content (bk_dataset_digest) */
} bk_dataset;

/* Positions of a sample: of features, of tokens, or of both texts of a pair and the separator
 * between them. */
int64_t bk_sample_length(const bk_dataset *d, int64_t sample);
/* Symbols that samples are made of: the vocabulary and, for pairs, the separator behind it.  0:
 * features. */
int64_t bk_dataset_symbols(const bk_dataset *d);
/* Mean over all samples; 0 without any. */
double bk_mean_length(const bk_dataset *d);
/* Fills max_length. */
void bk_dataset_measure(bk_dataset *d);

/* Reads, checks sizes, offsets, label and token ranges; BK_INPUT with file, object, row and reason
 * otherwise. */
BK_CHECKED bk_status bk_dataset_read(bk_arena *arena, const char *path, bk_dataset **out);
/* Hex SHA-256 over all HDF5 datasets of a file in the order of their paths, for each: path, 0 byte,
 * dtype ("u16"), 0 byte, number of axes and axes as int64, elements; all little-endian.  Attributes
 * (`created`, `source`, ...) do not count.  Every chunk is read, so checksums are checked too. */
BK_CHECKED bk_status bk_dataset_digest(bk_h5 *file, char digest[65]);
/* Share of the largest class among the samples of a split; NaN without labels. */
double bk_majority(const bk_dataset *d, const bk_split *s);
/* BK_INPUT that lists the splits there are when the name is not among them. */
BK_CHECKED bk_status bk_dataset_split(const bk_dataset *d, const char *name, const bk_split **out);
/* Writes through a temporary name, fsync, rename; refuses nothing: an existing file is replaced.
 * d->digest is filled.  Majorities are computed from the labels when d->split[i].majority is NaN.
 * BK_USAGE when the path cannot be written at all, BK_FAULT when writing fails half-way. */
BK_CHECKED bk_status bk_dataset_write(bk_dataset *d, const char *path, int64_t seed,
                                      const char *options_text);

#endif
