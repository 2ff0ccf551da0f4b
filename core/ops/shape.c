/* Ops that move data and change nothing. */
#include "core/ops.h"
#include "core/parallel.h"
#include "core/vector.h"

#include <string.h>

/* ---- split and merge heads: [B,N,H*D] <-> [B,H,N,D] ---- */

typedef struct heads {
    int64_t samples, positions, heads, width;
} heads;

typedef struct move {
    heads heads;
    bk_dtype dtype;
    bool split, add;
    const char *from;
    char *to;
} move;

static void move_positions(void *context, int64_t first, int64_t last)
{
    const move *m = context;
    const heads *h = &m->heads;
    size_t row = (size_t)h->width * bk_dtype_size(m->dtype);
    for (int64_t i = first; i < last; i++)
        for (int64_t j = 0; j < h->heads; j++) {
            int64_t b = i / h->positions, n = i % h->positions;
            size_t merged = (size_t)(i * h->heads + j) * row;
            size_t apart = (size_t)((b * h->heads + j) * h->positions + n) * row;
            const char *source = m->from + (m->split ? merged : apart);
            char *target = m->to + (m->split ? apart : merged);
            if (m->add)
                bk_vector(m->dtype)->add(h->width, source, target);
            else
                memcpy(target, source, row);
        }
}

/* Rows of D between the two layouts: copied, or added to the other side. */
static void move_heads(const heads *h, bk_dtype dtype, bool split, bool add, const char *from,
                       char *to)
{
    move m = {*h, dtype, split, add, from, to};
    bk_parallel(h->samples * h->positions, 1, h->heads * h->width, move_positions, &m);
}

static void pass_heads(bk_tape *t, bk_node *n, const heads *h, bool split)
{
    double beta;
    bk_tensor *x = n->in[0];
    void *grad = bk_grad_slot(t, x, &beta);
    move_heads(h, x->dtype, split, beta != 0.0, n->out[0]->grad, grad);
}

static heads heads_of(const bk_tensor *apart)
{
    return (heads){apart->shape[0], apart->shape[2], apart->shape[1], apart->shape[3]};
}

static void split_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0];
    int64_t count = *(const int64_t *)n->attributes;
    (void)t;
    BK_ASSERT(x->dims == 3 && x->shape[2] % count == 0, "%lld heads", (long long)count);
    n->out[0]->dtype = x->dtype;
    n->out[0]->dims = 4;
    memcpy(n->out[0]->shape, (int64_t[]){x->shape[0], count, x->shape[1], x->shape[2] / count},
           4 * sizeof(int64_t));
}

static void split_forward(bk_tape *t, bk_node *n)
{
    heads h = heads_of(n->out[0]);
    (void)t;
    move_heads(&h, n->in[0]->dtype, true, false, n->in[0]->data, n->out[0]->data);
}

static void split_backward(bk_tape *t, bk_node *n)
{
    heads h = heads_of(n->out[0]);
    pass_heads(t, n, &h, false);
}

static bk_tensor *split_sample(bk_tape *t, bk_sample *s)
{
    return bk_split_heads(t, bk_sample_input(s, BK_SHAPE(4, 3, 6)), 2);
}

const bk_op bk_op_split_heads = {.name = "split_heads",
                                 .shape = split_shape,
                                 .forward = split_forward,
                                 .backward = split_backward,
                                 .sample = split_sample};

bk_tensor *bk_split_heads(bk_tape *t, bk_tensor *x, int64_t count)
{
    return bk_apply(t, &bk_op_split_heads, 1, &x, 1, &count, sizeof count)->out[0];
}

static void merge_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0];
    (void)t;
    BK_ASSERT(x->dims == 4, "heads have %d axes", x->dims);
    n->out[0]->dtype = x->dtype;
    n->out[0]->dims = 3;
    memcpy(n->out[0]->shape, (int64_t[]){x->shape[0], x->shape[2], x->shape[1] * x->shape[3]},
           3 * sizeof(int64_t));
}

static void merge_forward(bk_tape *t, bk_node *n)
{
    heads h = heads_of(n->in[0]);
    (void)t;
    move_heads(&h, n->in[0]->dtype, false, false, n->in[0]->data, n->out[0]->data);
}

static void merge_backward(bk_tape *t, bk_node *n)
{
    heads h = heads_of(n->in[0]);
    pass_heads(t, n, &h, true);
}

static bk_tensor *merge_sample(bk_tape *t, bk_sample *s)
{
    return bk_merge_heads(t, bk_sample_input(s, BK_SHAPE(4, 2, 3, 5)));
}

const bk_op bk_op_merge_heads = {.name = "merge_heads",
                                 .shape = merge_shape,
                                 .forward = merge_forward,
                                 .backward = merge_backward,
                                 .sample = merge_sample};

bk_tensor *bk_merge_heads(bk_tape *t, bk_tensor *x)
{
    return bk_apply(t, &bk_op_merge_heads, 1, &x, 1, NULL, 0)->out[0];
}

/* ---- prepend ---- */

static void prepend_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0];
    (void)t;
    BK_ASSERT(x->dims == 3 && bk_count(n->in[1]) == x->shape[2], "a row of %lld",
              (long long)bk_count(n->in[1]));
    n->out[0]->dtype = x->dtype;
    n->out[0]->dims = 3;
    memcpy(n->out[0]->shape, (int64_t[]){x->shape[0], x->shape[1] + 1, x->shape[2]},
           3 * sizeof(int64_t));
}

static void prepend_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0];
    size_t row = (size_t)x->shape[2] * bk_dtype_size(x->dtype), sample = (size_t)x->shape[1] * row;
    char *y = n->out[0]->data;
    (void)t;
    for (int64_t b = 0; b < x->shape[0]; b++) {
        memcpy(y + (size_t)b * (sample + row), n->in[1]->data, row);
        memcpy(y + (size_t)b * (sample + row) + row, (const char *)x->data + (size_t)b * sample,
               sample);
    }
}

typedef struct prepend_lane {
    bk_tape *tape;
    const bk_node *node;
} prepend_lane;

static void row_of_lane(void *context, int64_t l, void *grad)
{
    const prepend_lane *c = context;
    const bk_tensor *y = c->node->out[0];
    int64_t samples = y->shape[0], width = y->shape[2],
            last = bk_lane_row(&c->tape->lanes, samples, l + 1);
    size_t row = (size_t)width * bk_dtype_size(y->dtype);
    memset(grad, 0, row);
    for (int64_t b = bk_lane_row(&c->tape->lanes, samples, l); b < last; b++)
        bk_vector(y->dtype)->add(width, (const char *)y->grad + (size_t)(b * y->shape[1]) * row,
                                 grad);
}

static void prepend_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *x = n->in[0], *y = n->out[0];
    int64_t one = x->shape[1] * x->shape[2];
    size_t row = (size_t)x->shape[2] * bk_dtype_size(x->dtype), sample = (size_t)x->shape[1] * row;
    prepend_lane context = {t, n};
    for (int64_t b = 0; x->needs_grad && b < x->shape[0]; b++)
        bk_vector(x->dtype)->add(one, (const char *)y->grad + (size_t)b * (sample + row) + row,
                                 (char *)bk_grad(t, x) + (size_t)b * sample);
    if (n->in[1]->needs_grad)
        bk_lane_gradient(t, &t->lanes, n->in[1], row_of_lane, &context);
}

static bk_tensor *prepend_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *x = bk_sample_input(s, BK_SHAPE(4, 3, 5));
    return bk_prepend(t, x, bk_sample_input(s, BK_SHAPE(5)));
}

const bk_op bk_op_prepend = {.name = "prepend",
                             .shape = prepend_shape,
                             .forward = prepend_forward,
                             .backward = prepend_backward,
                             .sample = prepend_sample};

bk_tensor *bk_prepend(bk_tape *t, bk_tensor *x, bk_tensor *row)
{
    bk_tensor *in[] = {x, row};
    return bk_apply(t, &bk_op_prepend, 2, in, 1, NULL, 0)->out[0];
}

/* ---- reshape: the same bytes under another shape ---- */

typedef struct shape {
    int dims;
    int64_t size[BK_MAX_DIMS];
} shape;

static void reshape_shape(bk_tape *t, bk_node *n)
{
    const shape *to = n->attributes;
    (void)t;
    n->out[0]->dtype = n->in[0]->dtype;
    n->out[0]->dims = to->dims;
    memcpy(n->out[0]->shape, to->size, sizeof to->size);
    n->out[0]->data = n->in[0]->data;
    BK_ASSERT(bk_count(n->out[0]) == bk_count(n->in[0]), "another number of elements");
}

static void reshape_forward(bk_tape *t, bk_node *n)
{
    (void)t;
    (void)n;
}

static void reshape_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *x = n->in[0];
    if (!bk_grad_move(n->out[0], x))
        bk_vector(x->dtype)->add(bk_count(x), n->out[0]->grad, bk_grad(t, x));
}

static bk_tensor *reshape_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *x = bk_sample_input(s, BK_SHAPE(4, 6));
    return bk_reshape(t, x, BK_SHAPE(x->shape[0], 2, 3));
}

const bk_op bk_op_reshape = {.name = "reshape",
                             .shape = reshape_shape,
                             .forward = reshape_forward,
                             .backward = reshape_backward,
                             .sample = reshape_sample};

bk_tensor *bk_reshape(bk_tape *t, bk_tensor *x, int dims, const int64_t *size)
{
    shape to = {.dims = dims};
    memcpy(to.size, size, (size_t)dims * sizeof *size);
    return bk_apply(t, &bk_op_reshape, 1, &x, 1, &to, sizeof to)->out[0];
}
