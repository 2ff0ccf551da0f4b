/* io/sampler.h - which samples make step s, and the bundle of this rank's lanes.  A function of
 * (seed, step) alone. */
#ifndef BK_IO_SAMPLER_H
#define BK_IO_SAMPLER_H

#include "core/bundle.h"
#include "core/lanes.h"
#include "io/dataset.h"

typedef struct bk_sampler bk_sampler;

typedef struct bk_sampler_options {
    int64_t batch;      /* global */
    int64_t length;     /* language models: window of length + 1; 0 otherwise */
    int64_t max_length; /* truncate samples (of a pair the longer text first); 0 = no */
    uint64_t seed;
    bool shuffle; /* training: a seeded permutation per epoch, the epoch's tail runs on into the
                     next epoch */
} bk_sampler_options;

/* Training: batch s takes positions s*batch .. of the endless sequence of epochs' permutations.
 * Evaluation (shuffle false): positions in order; positions past the end are filled with weight 0
 * (label -1). */
bk_sampler *bk_sampler_new(bk_arena *arena, const bk_dataset *d, const bk_split *split,
                           const bk_sampler_options *options);

/* Samples (windows) of one epoch; batches of one pass in evaluation. */
int64_t bk_sampler_samples(const bk_sampler *s);
int64_t bk_sampler_batches(const bk_sampler *s);

/* Fills tokens or features, segments of pairs, mask, labels, sequence, rows and first_sample for
 * batch `step`, for the samples of `lanes`, on `arena`.  Padded length of tokens: the longest
 * sample of the *global* batch, rounded up to a multiple of 16, so that shapes do not depend on the
 * rank.  Features are all as long: none is padded and there is no mask; what lies past the end is
 * zeros. */
void bk_sampler_batch(const bk_sampler *s, int64_t step, const bk_lanes *lanes, bk_arena *arena,
                      bk_bundle *out);

/* The samples of the data set that make the *global* batch `step`, in its order, -1 past the end of
 * an evaluation: out[batch]. */
void bk_sampler_indices(const bk_sampler *s, int64_t step, int64_t *out);

/* Rows of logits of each sample of batch `step`: the padded length of windows, else 1. */
int64_t bk_sampler_rows(const bk_sampler *s, int64_t step);
/* Rows of a whole sample of the data set: each of its tokens but the last predicts the next, else
 * 1. */
int64_t bk_sampler_sample_rows(const bk_sampler *s, int64_t sample);

/* Where the real rows of a unit of training stand among those of its sample. */
typedef struct bk_row_place {
    int64_t sample, first, count; /* sample -1, count 0: past the end of an evaluation */
} bk_row_place;
/* Of the samples of `lanes` in batch `step`: out[samples of the lanes]. */
void bk_sampler_places(const bk_sampler *s, int64_t step, const bk_lanes *lanes, bk_row_place *out);

#endif
