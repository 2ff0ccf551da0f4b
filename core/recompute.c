#include "core/recompute.h"

#include "core/op.h"

#include <string.h>

typedef struct attributes {
    bk_stretch *stretch;
    void *context;
} attributes;

/* A tape for the stretch alone. */
static bk_tape inner_tape(const bk_tape *t, const bk_node *n, bool recording)
{
    bk_tape inner = *t;
    inner.segments = n->segment + 1; /* the stretch is a part of it */
    inner.arena = t->inner;
    inner.inner = NULL;
    inner.recording = recording;
    inner.last = NULL;
    inner.leaves = NULL;
    inner.terms = 0;
    return inner;
}

static bk_tensor *run(const bk_node *n, bk_tape *inner, bk_tensor *x)
{
    const attributes *a = n->attributes;
    bk_tensor *y = a->stretch(a->context, inner, x);
    BK_ASSERT(bk_same_shape(y, n->out[0]) && inner->terms == 0, "not a stretch");
    return y;
}

static void shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0];
    (void)t;
    n->out[0]->dtype = x->dtype;
    n->out[0]->dims = x->dims;
    memcpy(n->out[0]->shape, x->shape, sizeof x->shape);
}

static void forward(bk_tape *t, bk_node *n)
{
    bk_tape inner = inner_tape(t, n, false);
    const bk_tensor *y = run(n, &inner, n->in[0]);
    memcpy(n->out[0]->data, y->data, (size_t)bk_count(y) * bk_dtype_size(y->dtype));
    bk_arena_reset(t->inner);
}

/* A leaf in place of x, whose gradient is x's. */
static bk_tensor *leaf(bk_tape *t, bk_tensor *x)
{
    bk_tensor *y = bk_tensor_wrap(t->inner, x->dtype, x->dims, x->shape, x->data);
    double beta;
    y->needs_grad = x->needs_grad;
    if (x->needs_grad) {
        y->grad = bk_grad_slot(t, x, &beta);
        y->grad_fresh = beta == 0.0;
    }
    return y;
}

static void backward(bk_tape *t, bk_node *n)
{
    bk_tape inner = inner_tape(t, n, true);
    bk_tensor *x = leaf(t, n->in[0]), *y = run(n, &inner, x);
    y->grad = n->out[0]->grad;
    bk_tape_backward_seeded(&inner);
    if (x->needs_grad)
        bk_grad(&inner, x); /* zeros, if nothing flowed in */
    bk_tape_forget_uses(&inner);
    bk_arena_reset(t->inner);
}

/* Collective: parameters inside become ready on every rank. */
static const bk_op recompute = {.name = "recompute",
                                .shape = shape,
                                .forward = forward,
                                .backward = backward,
                                .forgets_output = true,
                                .collective = true};

bk_tensor *bk_recompute(bk_tape *t, bk_stretch *stretch, void *context, bk_tensor *x)
{
    if (!t->inner)
        return stretch(context, t, x);
    attributes a = {stretch, context};
    return bk_apply(t, &recompute, 1, &x, 1, &a, sizeof a)->out[0];
}
