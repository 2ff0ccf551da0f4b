/* io/labelled.h - what the makers of texts with classes share: classes by name, the split that
 * each text comes from, second texts of pairs. */
#ifndef BK_IO_LABELLED_H
#define BK_IO_LABELLED_H

#include "io/data_common.h"
#include "io/table.h"

enum { BK_LABELLED_CLASSES = 256 };

/* Where the source says that a text belongs; OTHER: a second validation set. */
enum {
    BK_LABELLED_ANY = -1,
    BK_LABELLED_TRAIN,
    BK_LABELLED_VALIDATION,
    BK_LABELLED_TEST,
    BK_LABELLED_OTHER
};

/* Samples in the order of reading. */
typedef struct bk_labelled {
    bk_arena *arena;
    bool pairs;
    bk_samples first, second; /* second: of pairs, as many; its labels are not used */
    const char *class_name[BK_LABELLED_CLASSES];
    int classes;
    const char *other; /* name of the split BK_LABELLED_OTHER */
    int8_t *split;     /* [first.count] */
    int64_t split_room;
} bk_labelled;

/* The number of a class by its name, a new one when it was not met.  BK_INPUT for an empty name,
 * one that is no text, or one too many; `where` stands in the message. */
BK_CHECKED bk_status bk_labelled_class(bk_labelled *x, const char *name, size_t length,
                                       const char *where, int32_t *label);

/* Adds a text, or both of a pair, as bytes + 1, cut to max_length bytes each (0: whole). */
void bk_labelled_add(bk_labelled *x, const bk_field *text, int64_t max_length, int32_t label,
                     int split);

/* The split that a word names ("dev" is validation), or that the first such word in the name of a
 * file does ("in_domain_dev.tsv"); BK_LABELLED_ANY for none. */
int bk_labelled_split_named(const char *word, size_t length);
int bk_labelled_split_of_file(const char *path);

/* "FILE:LINE" of the row just read, on the arena. */
const char *bk_labelled_place(const bk_labelled *x, const bk_table *t);

/* Choices of an option, and their numbers. */
#define BK_LABELLED_LAYOUTS "auto|tsv|csv"
enum { BK_LABELLED_AUTO, BK_LABELLED_TSV, BK_LABELLED_CSV };
/* Opens a table of a layout (auto: commas in a file named .csv, else tabs).  BK_INPUT. */
BK_CHECKED bk_status bk_labelled_open_table(bk_arena *arena, const char *path, int layout,
                                            bk_table *out);

/* Orders the classes by name (numbers by value), not by reading. */
void bk_labelled_sort_classes(bk_labelled *x);

/* Fills the data set: samples, classes, splits.  The source's splits stay; training is cut further
 * by `wish` where validation (or all) is missing.  BK_INPUT that names `source` when there are
 * fewer than two classes or nothing to train on. */
BK_CHECKED bk_status bk_labelled_finish(bk_labelled *x, const bk_split_wish *wish,
                                        const char *source, bk_dataset *out);

#endif
