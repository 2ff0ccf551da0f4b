/* tests/support/losses.h - runs a loss on a batch that every rank knows whole: on this rank alone,
 * or with the rows spread over the ranks, so that the two can be compared. */
#ifndef BK_TESTS_SUPPORT_LOSSES_H
#define BK_TESTS_SUPPORT_LOSSES_H

#include "core/attributes.h"
#include "losses/loss.h"

#include <jansson.h>

typedef struct bk_test_batch {
    int64_t rows, classes;
    double *student, *teacher;          /* [rows,classes] */
    int32_t *labels, *valid, *sequence; /* [rows]; valid and sequence may be NULL */
} bk_test_batch;

/* The closed-form logits of the golden file,
 *   s[i][v] = 2.5 sin(1 + 0.9 i + 0.37 v (i+1)), t[i][v] = 2.5 cos(0.5 + 0.6 i + 0.53 v (i+2)),
 * and labels that cover the classes and -1.  malloc'ed; no valid, no sequence. */
bk_test_batch bk_test_batch_new(int64_t rows, int64_t classes);
void bk_test_batch_free(bk_test_batch *b); /* frees valid and sequence too */

/* How a loss is computed; zero means: default options, BK_F32, one lane, this rank alone. */
typedef struct bk_test_way {
    const char *options; /* "key=value key=value" */
    bk_dtype dtype;
    const bk_comm *comm; /* not NULL: rows are spread over these ranks (collective) */
    const int64_t *cut;  /* [size+1] rank r holds rows cut[r] .. cut[r+1]-1; NULL: by lanes */
    int64_t lanes;       /* of the batch; 0: one a rank */
    int64_t step, steps;
    bool plan;   /* keep plan and cost (sinkd) */
    int64_t top; /* > 0: the teacher is handed over as its so many largest logits */
} bk_test_way;

/* The same numbers on every rank. */
typedef struct bk_test_result {
    double loss;         /* sum over all lanes */
    double *grad;        /* [rows,classes] dloss/dstudent of all rows */
    double *plan, *cost; /* [own rows, B]; NULL when not asked for */
    bk_attributes attributes;
} bk_test_result;

bk_test_result bk_test_loss(const char *kind, const bk_test_batch *b, const bk_test_way *way);
void bk_test_result_free(bk_test_result *r);
/* The loss alone. */
double bk_test_loss_value(const char *kind, const bk_test_batch *b, const bk_test_way *way);

/* The figure of a loss by name; fails when it is not there. */
double bk_test_figure(const bk_test_result *r, const char *name);

/* max |a - b| over the gradients, relative to the largest entry of b. */
double bk_test_grad_distance(const bk_test_batch *b, const bk_test_result *x,
                             const bk_test_result *reference);
/* Fails unless loss (relative, at least to 1e-12) and gradient (to the largest entry) agree. */
void bk_test_same_loss(const bk_test_batch *b, const bk_test_result *x,
                       const bk_test_result *reference, double loss_limit, double grad_limit,
                       const char *what);

/* Options of a kind, filled from "key=value key=value" on an arena. */
void *bk_test_loss_options(const bk_loss_kind *kind, const char *options, bk_dtype dtype,
                           bk_arena *arena);
bool bk_test_loss_has(const char *kind, const char *option);

/* A loss between layers as the only term of a tape of one lane, ready to go back. */
double bk_test_layers_loss(bk_tape *tape, const char *kind, const bk_loss_layers *layers,
                           const char *options);

/* Central differences of the loss (step 1e-6, f64) against its gradient, to 1e-6 of the largest
 * entry or of 1. */
void bk_test_loss_gradient(const char *kind, const char *options);

/* Every entry of "rows" of the golden file for a kind whose options exist, in f64 and f32; returns
 * their number. */
int bk_test_loss_golden(const char *kind);
/* Loss, first numbers of gradient row 0 and sum of absolute values against one golden entry;
 * `row0` names the entry's gradient. */
void bk_test_golden_entry(const char *kind, const json_t *entry, const bk_test_batch *b,
                          const char *options, const char *row0);

#endif
