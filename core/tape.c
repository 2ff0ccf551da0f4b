#include "core/hooks.h"
#include "core/log.h"
#include "core/op.h"
#include "core/param.h"

#include <string.h>

/* One use of a parameter in this step. */
typedef struct bk_leaf {
    bk_tensor *tensor;
    int use;
    bool ready;
    struct bk_leaf *next;
} bk_leaf;

void bk_tape_forget_uses(bk_tape *t)
{
    for (bk_leaf *leaf = t->leaves; leaf; leaf = leaf->next)
        leaf->tensor->parameter->uses_seen--;
    t->leaves = NULL;
}

void bk_tape_begin(bk_tape *t)
{
    bk_tape_forget_uses(t);
    bk_arena_reset(t->arena);
    bk_arena_reset(t->scratch);
    t->last = NULL;
    t->status = BK_OK;
    t->terms = 0;
    t->segments = 0;
}

bk_tensor *bk_tape_constant(bk_tape *t, bk_dtype dtype, int dims, const int64_t *shape)
{
    return bk_tensor_new(t->arena, dtype, dims, shape);
}

bk_tensor *bk_tape_variable(bk_tape *t, int dims, const int64_t *shape)
{
    bk_tensor *x = bk_tensor_new(t->arena, t->dtype, dims, shape);
    x->needs_grad = t->recording;
    return x;
}

bk_tensor *bk_tape_parameter(bk_tape *t, bk_parameter *p)
{
    BK_ASSERT(t->dtype == BK_F32, "parameters are fp32");
    if (t->parameter_needed)
        t->parameter_needed(t->parameter_context, p);
    bk_tensor *x = bk_tensor_wrap(t->arena, BK_F32, p->dims, p->shape, p->slab->value + p->offset);
    x->parameter = p;
    x->needs_grad = t->recording;
    if (!t->recording)
        return x;
    BK_ASSERT(p->uses_seen < p->uses, "%s is used more often than declared", p->name);
    bk_leaf *leaf = BK_NEW(t->arena, bk_leaf, 1);
    *leaf = (bk_leaf){.tensor = x, .use = p->uses_seen, .next = t->leaves};
    x->grad = p->slab->grad + p->grad_offset[p->uses_seen++];
    x->grad_fresh = true;
    t->leaves = leaf;
    return x;
}

/* ---- forward ---- */

static bool any_needs_grad(int inputs, bk_tensor *const *in)
{
    for (int i = 0; i < inputs; i++)
        if (in[i] && in[i]->needs_grad)
            return true;
    return false;
}

static bk_node *node_new(bk_tape *t, const bk_op *op, int inputs, bk_tensor *const *in, int outputs)
{
    bk_node *n = BK_NEW(t->arena, bk_node, 1);
    *n = (bk_node){.op = op, .inputs = inputs, .outputs = outputs, .segment = t->segments - 1};
    n->in = BK_NEW(t->arena, bk_tensor *, inputs + outputs);
    n->out = n->in + inputs;
    for (int i = 0; i < inputs; i++)
        n->in[i] = in[i];
    for (int i = 0; i < outputs; i++)
        n->out[i] = bk_tensor_wrap(t->arena, t->dtype, 0, NULL, NULL);
    return n;
}

static size_t bytes_of(const bk_tensor *x)
{
    return (size_t)bk_count(x) * bk_dtype_size(x->dtype);
}

static void allocate_outputs(bk_tape *t, bk_node *n)
{
    for (int i = 0; i < n->outputs; i++)
        if (!n->out[i]->data) {
            n->out[i]->data = bk_arena_alloc(t->arena, bytes_of(n->out[i]));
            n->out[i]->owned = true;
        }
}

static bool is_real(const bk_tensor *x)
{
    return x->dtype == BK_F32 || x->dtype == BK_F64;
}

static void record(bk_tape *t, bk_node *n)
{
    for (int i = 0; i < n->outputs; i++) {
        n->out[i]->producer = n;
        n->out[i]->needs_grad = is_real(n->out[i]);
    }
    for (int i = 0; i < n->inputs; i++)
        if (n->in[i])
            n->in[i]->consumers++;
    n->previous = t->last;
    t->last = n;
}

/* Forward or backward of one node, timed when somebody wants to know. */
static void run(bk_tape *t, bk_node *n, bool backward)
{
    double start = t->observe ? bk_seconds() : 0.0;
    (backward ? n->op->backward : n->op->forward)(t, n);
    if (t->observe)
        t->observe(t->observe_context, n->op, backward, bk_seconds() - start);
}

bk_node *bk_apply(bk_tape *t, const bk_op *op, int inputs, bk_tensor *const *in, int outputs,
                  const void *attributes, size_t size)
{
    bk_node *n = node_new(t, op, inputs, in, outputs);
    if (size > 0)
        n->attributes = memcpy(bk_arena_alloc(t->arena, size), attributes, size);
    op->shape(t, n);
    allocate_outputs(t, n);
    run(t, n, false);
    if (t->recording && op->backward && any_needs_grad(inputs, in))
        record(t, n);
    return n;
}

void bk_tape_segment(bk_tape *t, const char *name)
{
    BK_ASSERT(t->segments < BK_MAX_SEGMENTS, "too many segments");
    t->segment_name[t->segments++] = name;
    bk_place(name);
}

void bk_tape_add_term(bk_tape *t, const char *name, int layer, bk_tensor *value, double weight)
{
    BK_ASSERT(t->terms < BK_MAX_TERMS, "too many terms of the loss");
    BK_ASSERT(value->dtype == BK_F64, "term %s is not f64", name);
    value->kept = true;
    t->term[t->terms++] = (bk_term){.name = name, .layer = layer, .value = value, .weight = weight};
}

/* ---- backward ---- */

void *bk_grad_slot(bk_tape *t, bk_tensor *x, double *beta)
{
    BK_ASSERT(x->needs_grad, "gradient of a constant");
    if (!x->grad) {
        x->grad = bk_arena_alloc(t->arena, bytes_of(x));
        x->grad_fresh = true;
    }
    *beta = x->grad_fresh ? 0.0 : 1.0;
    x->grad_fresh = false;
    return x->grad;
}

void *bk_grad(bk_tape *t, bk_tensor *x)
{
    double beta;
    void *grad = bk_grad_slot(t, x, &beta);
    if (beta == 0.0)
        memset(grad, 0, bytes_of(x));
    return grad;
}

void *bk_grad_in_place(bk_tape *t, bk_tensor *x, double *beta)
{
    bool last = x->consumers == 1 && x->producer && x->producer->op->forgets_output;
    if (x->grad || !last || !x->owned || x->kept)
        return bk_grad_slot(t, x, beta);
    x->owned = false; /* the gradient owns it now */
    *beta = 0.0;
    return x->grad = x->data;
}

bool bk_grad_move(bk_tensor *out, bk_tensor *x)
{
    if (x->grad || out->kept)
        return false;
    x->grad = out->grad;
    out->grad = NULL;
    return true;
}

static void leaf_ready(bk_tape *t, bk_leaf *leaf)
{
    if (leaf->ready)
        return;
    bk_grad(t, leaf->tensor); /* nothing flowed in: zeros */
    leaf->ready = true;
    if (t->grad_ready)
        t->grad_ready(t->grad_ready_context, leaf->tensor->parameter, leaf->use);
}

static bk_leaf *leaf_of(const bk_tape *t, const bk_tensor *x)
{
    bk_leaf *leaf = t->leaves;
    while (leaf && leaf->tensor != x)
        leaf = leaf->next;
    return leaf;
}

static void release_inputs(bk_tape *t, bk_node *n)
{
    for (int i = 0; i < n->inputs; i++) {
        bk_tensor *x = n->in[i];
        if (x && --x->consumers == 0 && x->parameter && x->needs_grad)
            leaf_ready(t, leaf_of(t, x));
    }
}

static bool any_output_has_grad(const bk_node *n)
{
    for (int i = 0; i < n->outputs; i++)
        if (n->out[i]->grad)
            return true;
    return false;
}

static void release_outputs(bk_tape *t, bk_node *n)
{
    for (int i = 0; i < n->outputs; i++) {
        bk_tensor *x = n->out[i];
        if (x->kept)
            continue;
        if (x->grad)
            bk_arena_give(t->arena, x->grad, bytes_of(x));
        if (x->owned)
            bk_arena_give(t->arena, x->data, bytes_of(x));
        x->grad = x->data = NULL;
    }
}

static void node_backward(bk_tape *t, bk_node *n)
{
    if (any_output_has_grad(n) || n->op->collective) {
        for (int i = 0; i < n->outputs; i++)
            if (n->out[i]->needs_grad)
                bk_grad(t, n->out[i]);
        run(t, n, true);
    }
    release_outputs(t, n);
    release_inputs(t, n);
}

/* Whoever put a gradient in place may want to read what that node made. */
static void keep_seeded(bk_tape *t)
{
    for (bk_node *n = t->last; n; n = n->previous)
        for (int i = 0; any_output_has_grad(n) && i < n->outputs; i++)
            n->out[i]->kept = true;
}

void bk_tape_backward_seeded(bk_tape *t)
{
    keep_seeded(t);
    int segment = -1; /* none: nodes before the first */
    for (bk_node *n = t->last; n; n = n->previous) {
        if (n->segment != segment && n->segment >= 0)
            bk_place(t->segment_name[n->segment]);
        segment = n->segment;
        node_backward(t, n);
        if (!n->previous || n->previous->segment != n->segment)
            bk_poll();
    }
    for (bk_leaf *leaf = t->leaves; leaf; leaf = leaf->next)
        leaf_ready(t, leaf);
}

void bk_tape_backward(bk_tape *t)
{
    for (int i = 0; i < t->terms; i++) {
        bk_term *term = &t->term[i];
        if (!term->value->needs_grad)
            continue;
        double *seed = bk_grad(t, term->value);
        for (int64_t l = 0; l < bk_count(term->value); l++)
            seed[l] += term->weight;
    }
    bk_tape_backward_seeded(t);
}
