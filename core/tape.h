/* core/tape.h - the eager tape: computes now, records one node per op, runs backward once.
 *
 * The total loss is a sum of terms (bk_tape_add_term); each term is a double per own lane. Backward
 * seeds every term with its weight, walks the nodes in reverse, and fires grad_ready exactly once
 * for each use of a parameter. */
#ifndef BK_CORE_TAPE_H
#define BK_CORE_TAPE_H

#include "core/lanes.h"
#include "core/tensor.h"

typedef struct bk_op bk_op;
typedef struct bk_tape bk_tape;

typedef struct bk_node {
    const bk_op *op;
    bk_tensor **in, **out;
    int inputs, outputs;
    const void *attributes; /* copied to the step arena by bk_apply */
    void *saved;
    struct bk_node *previous;
    int segment;
} bk_node;

/* One term of the loss, or one figure that only travels (weight 0). */
typedef struct bk_term {
    const char *name; /* "cross_entropy", "moe_aux", ...; borrowed */
    int layer;        /* -1: not of a layer */
    bk_tensor *value; /* double [m]: the contribution of each own lane, normalised by the global
                         count, unweighted */
    double weight;
} bk_term;

enum { BK_MAX_TERMS = 256, BK_MAX_SEGMENTS = 1024 };

struct bk_tape {
    bk_arena *arena;   /* step arena: nodes, activations, gradients of activations */
    bk_arena *scratch; /* inside one op; ops take a mark and release it */
    bk_arena *inner;   /* of core/recompute.h; NULL: everything is kept */
    bk_dtype dtype; /* of real tensors: BK_F32, or BK_F64 in checks and `birkhoff op dtype=f64` */
    bool bf16;      /* operands of linear maps and experts are rounded to bf16 (run.precision) */
    bk_lanes lanes;
    bool training;  /* dropout, router noise and draws act */
    bool recording; /* false: no nodes are kept (evaluation, teacher) */
    uint64_t seed;
    int64_t step;
    /* Why an op gave its work up, by a decision that is the same on all ranks (bk_status_text); the
     * outputs are zeros then, and the step counts for nothing. */
    bk_status status;
    bk_term term[BK_MAX_TERMS];
    int terms;
    bk_node *last;
    const char *segment_name[BK_MAX_SEGMENTS];
    int segments;
    void (*grad_ready)(void *context, struct bk_parameter *parameter, int use);
    void *grad_ready_context;
    /* Told before each use of a parameter: its values may still be under way.  NULL: they are not.
     */
    void (*parameter_needed)(void *context, struct bk_parameter *parameter);
    void *parameter_context;
    /* Told the seconds of every forward and backward of an op; NULL: nobody measures. */
    void (*observe)(void *context, const bk_op *op, bool backward, double seconds);
    void *observe_context;
    struct bk_leaf *leaves; /* the parameter leaves of this step */
};

/* Empties the tape for a new step: resets both arenas' content allocated since the last begin,
 * keeps the settings. */
void bk_tape_begin(bk_tape *t);

/* The leaf of a parameter for one more use of it in this step: data in the slab, gradient in the
 * gradient slab (slot of that use).  needs_grad when the tape records and the parameter is
 * trainable. */
bk_tensor *bk_tape_parameter(bk_tape *t, struct bk_parameter *parameter);

/* The uses of parameters that this tape has seen count no more. */
void bk_tape_forget_uses(bk_tape *t);

/* A constant leaf of the tape's dtype or any other, uninitialised. */
bk_tensor *bk_tape_constant(bk_tape *t, bk_dtype dtype, int dims, const int64_t *shape);
/* A leaf that gets a gradient (inputs of `birkhoff op`, tests). */
bk_tensor *bk_tape_variable(bk_tape *t, int dims, const int64_t *shape);

/* Makes a node, runs shape, allocates the outputs, runs forward, records.  `attributes` of `size`
 * bytes are copied. Inputs may be NULL (optional ones).  Returns the node; its outputs are
 * node->out[0..outputs). */
bk_node *bk_apply(bk_tape *t, const bk_op *op, int inputs, bk_tensor *const *in, int outputs,
                  const void *attributes, size_t size);

/* Starts a named segment (a Transformer block): mark for profiling, polling, recomputation. */
void bk_tape_segment(bk_tape *t, const char *name);

/* Adds value[m] (BK_F64) as a term of the loss. */
void bk_tape_add_term(bk_tape *t, const char *name, int layer, bk_tensor *value, double weight);

/* Backward through everything recorded, seeded by the terms.  Parameters whose leaf got no gradient
 * get zeros. Polls (core/hooks.h) at segment ends.  Behind the backward of a node its outputs are
 * dead: data and gradients go back to the arena, but for terms and for what was seeded. */
void bk_tape_backward(bk_tape *t);
/* The same, seeded by gradients that the caller already put in place with bk_grad (tests, `birkhoff
 * op`). */
void bk_tape_backward_seeded(bk_tape *t);

/* The gradient of x to add to; zeroed at its first use.  x must need one. */
void *bk_grad(bk_tape *t, bk_tensor *x);
/* The same for code that can also overwrite: *beta is 0 at the first use (content undefined),
 * else 1. */
void *bk_grad_slot(bk_tape *t, bk_tensor *x, double *beta);
/* The same for a backward that reads each element of x before it writes that of the gradient:
 * where nobody needs x any more, the gradient takes the place of x (then it is x->data, *beta 0).
 */
void *bk_grad_in_place(bk_tape *t, bk_tensor *x, double *beta);
/* Makes the gradient of `out`, an output of the node that runs backward, that of x, which has none
 * yet.  False: it cannot be had, add it. */
bool bk_grad_move(bk_tensor *out, bk_tensor *x);

#endif
