/* losses/loss.h - what a loss is.  One kind = one file losses/<kind>.c and one line in
 * losses/kinds.def.
 *
 * A loss maps rows of logits to one double per own lane: the part of the loss that this lane's rows
 * contribute, divided by the *global* count where the reduction is a mean.  The sum over all lanes
 * of all ranks is the loss.  Gradients follow the same rule and are summed over ranks, never
 * averaged.  B = 0 gives 0 and no gradient. */
#ifndef BK_LOSSES_LOSS_H
#define BK_LOSSES_LOSS_H

#include "core/op.h"
#include "core/option.h"
#include "dist/comm.h"

/* The k largest logits of each teacher row, and what all V of them sum to at the temperatures that
 * the losses use. */
typedef struct bk_teacher_top {
    int64_t k;
    const int32_t *index; /* [R,k] classes, largest logit first, equal ones in rising order */
    const void *value;    /* [R,k] raw logits, not divided by a temperature */
    int64_t temperatures;
    const double *temperature; /* [temperatures] */
    const void *lse;           /* [R,temperatures] log sum exp(t/T) over all V classes */
    bk_dtype dtype;            /* of value and lse: BK_F32 or BK_F64 */
} bk_teacher_top;

enum { BK_LOSS_PAIRS = 64 };

/* Layers of student and teacher, pair by pair, for losses that look inside the models. */
typedef struct bk_loss_layers {
    int pairs;
    bk_tensor *student[BK_LOSS_PAIRS]; /* hidden states [B,N,C], matrices [B,H,N,N] */
    bk_tensor *teacher[BK_LOSS_PAIRS]; /* [B,N,D], [B,H,N,N], constant */
    bk_tensor *weight[BK_LOSS_PAIRS];  /* [D,C] of a learned map; NULL: none */
    const bk_tensor *mask;             /* i32 [B,N]; NULL = all real */
    int64_t positions;                 /* global number of real positions */
} bk_loss_layers;

typedef struct bk_loss_args {
    /* [R,V] student, local rows in lane order; BK_F32 or BK_F64. */
    bk_tensor *logits;
    /* The teacher's rows, constant: [R,V] of the same dtype, or the largest logits alone; both NULL
     * for losses on labels. */
    bk_tensor *teacher;
    const bk_teacher_top *teacher_top;
    const int32_t *labels; /* [R], -1 = ignored; NULL for losses on a teacher */
    const int32_t *valid;  /* [R], 0 = row dropped before anything is computed; NULL = all */
    const int32_t
        *sequence;       /* [R] global sample of a row, non-decreasing; NULL: one row a sample */
    int64_t rows;        /* global number of valid rows (labels >= 0 and valid != 0) */
    int64_t step, steps; /* for annealing; steps = 0 outside training */
    const bk_comm *comm; /* all ranks that hold rows; NULL = one rank */
    const void *config;  /* of the kind's option table */
    /* Of kinds that have BK_LOSS_LAYERS, instead of logits and the teacher's rows. */
    const bk_loss_layers *layers;
    /* sinkd with one global group: not NULL: local rows of P and C, [B_r,B]. */
    bk_tensor **plan, **cost;
    struct bk_attributes *attributes; /* figures for `birkhoff op` and the log; NULL = not wanted */
} bk_loss_args;

enum {
    BK_LOSS_LABELS = 1,
    BK_LOSS_TEACHER = 2,
    BK_LOSS_COLLECTIVE = 4,
    BK_LOSS_GROUPS = 8,    /* matches rows in groups (option `group`): reads sequence, fills plan */
    BK_LOSS_LAYERS = 16,   /* looks at layers, not at logits: reads `layers` */
    BK_LOSS_MATRICES = 32, /* of those: at attention matrices, not at hidden states */
};

struct bk_layer_shape;
struct bk_layer_plan;

typedef struct bk_loss_kind {
    const char *name, *summary, *source;
    const bk_option *options;
    size_t config_size;
    int flags; /* BK_LOSS_* */
    /* Checks what the table cannot (combinations) for logits of `dtype`; BK_USAGE.  May be NULL. */
    bk_status (*check)(const void *config, bk_dtype dtype);
    /* The same against the model (sequences: a sample has many rows); BK_USAGE.  May be NULL. */
    bk_status (*fits)(const void *config, bool sequences);
    /* The option that needs all logits of the teacher, not the largest alone (bk_teacher_top);
     * NULL: none does.  May be NULL. */
    const char *(*whole)(const void *config);
    /* BK_LOSS_LAYERS: which layers go with which (losses/layers.h); BK_USAGE. */
    bk_status (*plan)(const void *config, const struct bk_layer_shape *student,
                      const struct bk_layer_shape *teacher, struct bk_layer_plan *out);
    /* Collective when BK_LOSS_COLLECTIVE.  Returns value[m] (BK_F64) on the step arena. */
    bk_tensor *(*apply)(bk_tape *t, const bk_loss_args *args);
} bk_loss_kind;

extern const bk_loss_kind *const bk_losses[];       /* in the order of kinds.def, ended by NULL */
const bk_loss_kind *bk_loss_find(const char *name); /* NULL: unknown */

#endif
