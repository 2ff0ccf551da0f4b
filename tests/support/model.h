/* tests/support/model.h - a model from one line of configuration, with a batch to run it on. */
#ifndef BK_TESTS_SUPPORT_MODEL_H
#define BK_TESTS_SUPPORT_MODEL_H

#include "tests/support/check.h"

#include "models/internal.h"

typedef struct bk_test_model {
    bk_arena *arena;
    bk_model *model;
    bk_slab *slab;
    bk_tape tape;
    bk_bundle bundle;
} bk_test_model;

/* What the data of most tests look like: 11 symbols, 3 classes (none: a language model). */
bk_model_data bk_test_classes(int64_t max_length);
bk_model_data bk_test_language(int64_t max_length);
bk_model_data bk_test_pairs(int64_t max_length);

/* A world of one rank without messages. */
const bk_world *bk_test_alone(void);

/* Reads "{kind: encoder, layers: 2}" as the model section: the status of bk_model_new. */
bk_status bk_test_model_read(bk_arena *arena, const char *section, const bk_model_data *data,
                             const bk_world *world, bk_model **model);

/* The same, must be valid; parameters are initialised, then all of them moved a little so that
 * gains are not 1 and biases not 0.  `lanes`: own lanes and global batch. */
bk_test_model *bk_test_model_open(const char *section, const bk_model_data *data,
                                  const bk_world *world, bk_lanes lanes);
void bk_test_model_close(bk_test_model *m);

/* The parameter of that logical name (of an expert: that expert's slice), or fails. */
bk_parameter *bk_test_parameter(const bk_test_model *m, const char *name, int expert);

/* Empties the tape and makes the batch of step 0: tokens[B,N] of the own lanes, functions of the
 * global place; sample i has `real(i)` real positions (NULL: all are), the others hold `filler`. Of
 * pairs, the positions behind i % 5 are the second text. */
void bk_test_model_batch(bk_test_model *m, int64_t length, int64_t (*real)(int64_t sample),
                         int32_t filler);
/* Features [B,N,C] instead of tokens, all real. */
void bk_test_model_features(bk_test_model *m, int64_t length, int64_t channels);

/* Runs the model on the batch: the logits. */
bk_tensor *bk_test_model_forward(bk_test_model *m);

/* sum over own logits of weight times logit, weights functions of the global place, plus the terms
 * on the tape; and its gradient, which backward starts from. */
double bk_test_model_loss(const bk_test_model *m, const bk_tensor *logits);
void bk_test_model_backward(bk_test_model *m, bk_tensor *logits);

/* Every parameter's gradient against the difference of the loss along that gradient; closes the
 * model.  Routes must not change within the step: keep every expert (k = experts).  `length` 0:
 * features of 16 positions. */
void bk_test_model_check_gradient(bk_test_model *m, int64_t length,
                                  int64_t (*real)(int64_t sample));

/* Text that `speak` writes to standard error; released with free. */
char *bk_test_stderr_of(void (*speak)(void *context), void *context);

#endif
