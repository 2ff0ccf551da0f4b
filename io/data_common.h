/* io/data_common.h - what the makers of data sets share: growing lists of samples, seeded splits.
 */
#ifndef BK_IO_DATA_COMMON_H
#define BK_IO_DATA_COMMON_H

#include "io/data.h"

/* Samples of tokens that grow one by one, on `arena`. */
typedef struct bk_samples {
    bk_arena *arena;
    int32_t *tokens, *labels;
    int64_t *offsets;
    int64_t count, room, token_room;
} bk_samples;

void bk_samples_add(bk_samples *s, const int32_t *tokens, int64_t count, int32_t label);
/* Byte + 1, 0 stays for padding. */
void bk_samples_add_bytes(bk_samples *s, const char *bytes, int64_t count, int32_t label);
/* Fills samples, tokens, labels, offsets and max_length of a data set. */
void bk_samples_to(const bk_samples *s, bk_dataset *out);

/* Adds a split with its majority.  `index` is borrowed. */
void bk_split_add(bk_dataset *out, const char *name, const int64_t *index, int64_t count);

typedef struct bk_split_wish {
    double validation, test; /* a fraction below 1, else a count */
    int64_t seed;
} bk_split_wish;

/* A wish as a number of samples. */
int64_t bk_share_of(double wish, int64_t count);

/* Cuts `count` samples (numbers in `from`, NULL = 0..count-1) into train, validation and test by a
 * seeded permutation.  BK_USAGE when nothing is left to train on. */
BK_CHECKED bk_status bk_split_seeded(bk_dataset *out, bk_arena *arena, const int64_t *from,
                                     int64_t count, const bk_split_wish *wish);

#endif
