#include "models/moe_shared.h"

#include "core/parallel.h"
#include "core/vector.h"
#include "models/moe_gate.h"
#include "models/moe_kernel.h"
#include "models/router_common.h"

#include <string.h>

/* ---- y_t = r_t s_t, 0 at padding ---- */

enum { S, X, GATE, INPUTS };

typedef struct saved {
    bk_gate gate;
    double *factor; /* [T] r, 0 at padding */
} saved;

/* Rows of one pass. */
typedef struct pass {
    const bk_node *node;
    const double *factor; /* [T] */
    double *gh;           /* [T] behind the gate; NULL: without */
    double beta;          /* 0: the gradient of s is written, 1: added to */
} pass;

static char *row(const void *data, const bk_tensor *like, int64_t i)
{
    return (char *)(uintptr_t)data + (size_t)(i * bk_cols(like)) * bk_dtype_size(like->dtype);
}

static void scale_rows(void *context, int64_t first, int64_t last)
{
    const pass *p = context;
    const bk_tensor *s = p->node->in[S], *y = p->node->out[0];
    for (int64_t i = first; i < last; i++) {
        if (p->factor[i] == 0.0)
            memset(row(y->data, y, i), 0, (size_t)bk_cols(y) * bk_dtype_size(y->dtype));
        else
            bk_moe_of(s->dtype)->weigh(bk_cols(s), p->factor[i], row(s->data, s, i),
                                       row(y->data, y, i));
    }
}

/* ds_t += r_t dy_t; gh_t = <dy_t, s_t> r_t (1 - r_t). */
static void scale_rows_back(void *context, int64_t first, int64_t last)
{
    const pass *p = context;
    const bk_tensor *s = p->node->in[S], *y = p->node->out[0];
    for (int64_t i = first; i < last; i++) {
        double r = p->factor[i];
        char *ds = row(s->grad, s, i);
        const char *dy = row(y->grad, y, i);
        if (p->beta == 0.0)
            memset(ds, 0, (size_t)bk_cols(s) * bk_dtype_size(s->dtype));
        if (r != 0.0)
            bk_vector(s->dtype)->axpy(bk_cols(s), r, dy, ds);
        if (p->gh && r != 0.0)
            p->gh[i] = bk_vector(s->dtype)->dot(bk_cols(s), dy, row(s->data, s, i)) * r * (1.0 - r);
    }
}

static void shape(bk_tape *t, bk_node *n)
{
    (void)t;
    n->out[0]->dtype = n->in[S]->dtype;
    n->out[0]->dims = n->in[S]->dims;
    memcpy(n->out[0]->shape, n->in[S]->shape, sizeof n->in[S]->shape);
}

static void forward(bk_tape *t, bk_node *n)
{
    const int32_t *mask = *(const int32_t *const *)n->attributes;
    int64_t rows = bk_rows(n->in[S]);
    saved *kept = n->saved = BK_ZNEW(t->arena, saved, 1);
    kept->gate = (bk_gate){.x = n->in[X], .weight = n->in[GATE], .mask = mask};
    kept->factor = BK_NEW(t->arena, double, rows);
    const double *h = n->in[GATE] ? bk_gate_logits(t, &kept->gate) : NULL;
    for (int64_t i = 0; i < rows; i++)
        kept->factor[i] = mask && mask[i] == 0 ? 0.0 : h ? bk_router_sigmoid(h[i]) : 1.0;
    bk_parallel(rows, 1, bk_cols(n->in[S]), scale_rows, &(pass){.node = n, .factor = kept->factor});
}

typedef struct inputs {
    const bk_gate *gate;
    const double *gh;
    bk_tensor *x;
} inputs;

/* dx_t += gh_t gate. */
static void gate_inputs(void *context, int64_t first, int64_t last)
{
    const inputs *c = context;
    const bk_tensor *x = c->x;
    for (int64_t i = first; i < last; i++)
        bk_moe_of(x->dtype)->input_back(1, bk_cols(x), c->gh + i, c->gate->weight->data,
                                        row(x->grad, x, i));
}

static void gate_back(bk_tape *t, bk_node *n, const double *gh)
{
    const saved *kept = n->saved;
    bk_tensor *x = n->in[X];
    if (n->in[GATE]->needs_grad)
        bk_gate_gradient(t, &kept->gate, gh);
    if (!x->needs_grad)
        return;
    bk_grad(t, x);
    bk_parallel(bk_rows(x), 1, bk_cols(x), gate_inputs, &(inputs){&kept->gate, gh, x});
}

static void backward(bk_tape *t, bk_node *n)
{
    const saved *kept = n->saved;
    int64_t rows = bk_rows(n->in[S]);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    pass p = {.node = n, .factor = kept->factor};
    if (n->in[GATE])
        p.gh = BK_ZNEW(t->scratch, double, rows);
    if (n->in[S]->needs_grad) {
        bk_grad_slot(t, n->in[S], &p.beta);
        bk_parallel(rows, 1, bk_cols(n->in[S]), scale_rows_back, &p);
    }
    if (p.gh)
        gate_back(t, n, p.gh);
    bk_arena_release(t->scratch, mark);
}

static const bk_op scale = {
    .name = "moe_shared", .shape = shape, .forward = forward, .backward = backward};

/* gate, mask: NULL where there is none. */
static bk_tensor *scaled(bk_tape *t, bk_tensor *s, bk_tensor *x, bk_tensor *gate,
                         const int32_t *mask)
{
    bk_tensor *const in[INPUTS] = {s, gate ? x : NULL, gate};
    return gate || mask ? bk_apply(t, &scale, INPUTS, in, 1, &mask, sizeof mask)->out[0] : s;
}

/* ---- the expert ---- */

bk_tensor *bk_moe_shared_expert(bk_tape *t, bk_tensor *x, const int32_t *mask,
                                bk_activation activation, const bk_moe_shared *shared)
{
    bk_tensor *real = scaled(t, x, NULL, NULL, mask);
    bk_tensor *h = bk_activate(t, bk_linear(t, real, shared->w1, shared->b1), activation);
    return scaled(t, bk_linear(t, h, shared->w2, shared->b2), real, shared->gate, mask);
}
