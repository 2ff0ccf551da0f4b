/* core/op.h - the one notion of work.  Shape rule, forward, backward and a sample for the automatic
 * gradient check stand together in one const struct in one file of core/ops (or in dist, models,
 * losses for collective ones). core/ops/kinds.def lists those of core; a test walks the list. */
#ifndef BK_CORE_OP_H
#define BK_CORE_OP_H

#include "core/tape.h"

/* A sample for the gradient check: the op asks for its inputs, the test perturbs them one element
 * at a time.  An input whose first axis is BK_SAMPLE_BATCH holds the samples of the global batch,
 * of which a rank is handed those of its lanes; parameters have another first axis. */
typedef struct bk_sample bk_sample;
enum { BK_SAMPLE_BATCH = 4 };

/* The i-th real input asked for, uniform in [-1, 1), a function of i and the flat index alone (in
 * the global batch); the test differentiates with respect to it. */
bk_tensor *bk_sample_input(bk_sample *s, int dims, const int64_t *shape);
/* int32 values 0..bound-1 that cover the range; not differentiated. */
bk_tensor *bk_sample_index(bk_sample *s, int64_t bound, int dims, const int64_t *shape);
/* An int32 mask with about one zero in four. */
bk_tensor *bk_sample_mask(bk_sample *s, int dims, const int64_t *shape);

struct bk_op {
    const char *name;
    /* Checks the inputs with BK_ASSERT and fills dtype, dims and shape of node->out[...]; data is
     * allocated after it. */
    void (*shape)(bk_tape *t, bk_node *n);
    /* Fills out[...]->data; may keep what backward needs in n->saved (step arena). */
    void (*forward)(bk_tape *t, bk_node *n);
    /* Adds to the gradients of those inputs that need one (bk_grad, bk_grad_slot); out[i]->grad is
     * there for every real output (zeros where nothing flowed in).  NULL when nondifferentiable. */
    void (*backward)(bk_tape *t, bk_node *n);
    bool nondifferentiable;
    bool forgets_output; /* backward reads no out[i]->data */
    bool collective; /* backward runs on every rank, whether or not a gradient reached the outputs
                        here */
    /* Runs the op on sample inputs and returns the output to differentiate.  NULL only when
     * nondifferentiable. */
    bk_tensor *(*sample)(bk_tape *t, bk_sample *s);
};

/* The ops of core/ops, in the order of kinds.def, ended by NULL. */
extern const bk_op *const bk_ops[];

#endif
