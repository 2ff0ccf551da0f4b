/* losses/layers.h - what the losses between layers of student and teacher share (hidden.c,
 * attention.c): which layer goes with which, and one tape node that compares rows.
 *
 *   L = 1/pairs sum over the pairs of layers of 1/(U M) sum over units u and real positions i of
 *       D(x_ui, y_ui)
 * x[B,H,N,W] of the student, y[B,H,N,W] of the teacher, constant; a unit is a head, or the mean
 * over the heads; M the real positions of the global batch.  Padded positions count nothing. */
#ifndef BK_LOSSES_LAYERS_H
#define BK_LOSSES_LAYERS_H

#include "losses/loss.h"

typedef enum bk_layer_measure {
    BK_LAYER_MEAN_SQUARE, /* 1/W sum (x - y)^2 */
    BK_LAYER_SQUARE,      /* sum (x - y)^2 */
    BK_LAYER_COSINE,      /* 1 - <x,y> / (|x| |y|); 1 where either is 0 */
    BK_LAYER_DIVERGENCE,  /* sum y log(y/x), of probabilities; x and y below 1e-30 count as that */
} bk_layer_measure;

/* What a model has to offer. */
typedef struct bk_layer_shape {
    int64_t layers, width, heads;
    int64_t front; /* positions that the model puts before those of a sample */
} bk_layer_shape;

/* Layers by number: hidden states 0 (what the blocks read) to `layers`, matrices 1 to `layers`. */
typedef struct bk_layer_plan {
    int pairs;
    int student[BK_LOSS_PAIRS], teacher[BK_LOSS_PAIRS];
    bool project; /* student rows go through a learned map to the teacher's width */
} bk_layer_plan;

#define BK_LAYERS_OPTION(config_)                                                              \
    BK_OPTION_TEXT(config_, layers, "uniform",                                                 \
                   "uniform: every layer of the student with that of the teacher at the same " \
                   "depth; last; or pairs student:teacher, \"2:4,4:8\"")

/* Reads a map from layer `least` of each model on.  BK_USAGE for one that cannot be read, names a
 * layer that is not there or has too many pairs, and for models whose positions differ. */
BK_CHECKED bk_status bk_layers_map(const char *kind, const char *map, int least,
                                   const bk_layer_shape *student, const bk_layer_shape *teacher,
                                   bk_layer_plan *out);

/* value[m] as above.  x[pairs]: the student's, [B,N,W] (H = 1) or [B,H,N,W], the teacher's in
 * args->layers; with `mean` a unit is the mean over the heads.  Not collective. */
bk_tensor *bk_layers_loss(bk_tape *t, const bk_loss_args *args, bk_tensor *const *x,
                          bk_layer_measure measure, bool mean, int reduction);

#endif
