/* Tables: rows by token, and rows by position. */
#include "core/ops.h"
#include "core/vector.h"

#include <string.h>

typedef struct embed_lane {
    bk_tape *tape;
    const bk_node *node;
} embed_lane;

/* ---- embed ---- */

static void embed_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *tokens = n->in[0], *table = n->in[1];
    (void)t;
    BK_ASSERT(tokens->dims == 2 && tokens->dtype == BK_I32 && table->dims == 2,
              "tokens[B,N], table[V,C]");
    n->out[0]->dtype = table->dtype;
    n->out[0]->dims = 3;
    n->out[0]->shape[0] = tokens->shape[0];
    n->out[0]->shape[1] = tokens->shape[1];
    n->out[0]->shape[2] = table->shape[1];
}

static void embed_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *tokens = n->in[0], *table = n->in[1];
    size_t row = (size_t)bk_cols(table) * bk_dtype_size(table->dtype);
    (void)t;
    for (int64_t i = 0; i < bk_count(tokens); i++) {
        int32_t token = bk_i32(tokens)[i];
        BK_ASSERT(token >= 0 && token < table->shape[0], "token %d of a vocabulary of %lld", token,
                  (long long)table->shape[0]);
        memcpy((char *)n->out[0]->data + (size_t)i * row,
               (const char *)table->data + (size_t)token * row, row);
    }
}

static void table_of_lane(void *context, int64_t l, void *grad)
{
    const embed_lane *c = context;
    const bk_tensor *tokens = c->node->in[0], *table = c->node->in[1], *y = c->node->out[0];
    int64_t rows = bk_count(tokens), cols = bk_cols(table),
            last = bk_lane_row(&c->tape->lanes, rows, l + 1);
    size_t row = (size_t)cols * bk_dtype_size(table->dtype);
    memset(grad, 0, (size_t)table->shape[0] * row);
    for (int64_t i = bk_lane_row(&c->tape->lanes, rows, l); i < last; i++)
        bk_vector(table->dtype)
            ->add(cols, (const char *)y->grad + (size_t)i * row,
                  (char *)grad + (size_t)bk_i32(tokens)[i] * row);
}

static void embed_backward(bk_tape *t, bk_node *n)
{
    embed_lane context = {t, n};
    bk_lane_gradient(t, &t->lanes, n->in[1], table_of_lane, &context);
}

static bk_tensor *embed_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *tokens = bk_sample_index(s, 7, BK_SHAPE(4, 3));
    return bk_embed(t, tokens, bk_sample_input(s, BK_SHAPE(7, 5)));
}

const bk_op bk_op_embed = {.name = "embed",
                           .shape = embed_shape,
                           .forward = embed_forward,
                           .backward = embed_backward,
                           .sample = embed_sample};

bk_tensor *bk_embed(bk_tape *t, bk_tensor *tokens, bk_tensor *table)
{
    bk_tensor *in[] = {tokens, table};
    return bk_apply(t, &bk_op_embed, 2, in, 1, NULL, 0)->out[0];
}

/* ---- add_positions ---- */

static void positions_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0], *p = n->in[1];
    (void)t;
    BK_ASSERT(x->dims == 3 && p->dims == 2 && p->shape[1] == x->shape[2] &&
                  p->shape[0] >= x->shape[1],
              "%lld positions for %lld", (long long)p->shape[0], (long long)x->shape[1]);
    n->out[0]->dtype = x->dtype;
    n->out[0]->dims = 3;
    memcpy(n->out[0]->shape, x->shape, sizeof x->shape);
}

static void positions_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0], *p = n->in[1];
    int64_t one = x->shape[1] * x->shape[2];
    size_t bytes = (size_t)one * bk_dtype_size(x->dtype);
    (void)t;
    memcpy(n->out[0]->data, x->data, (size_t)x->shape[0] * bytes);
    for (int64_t b = 0; b < x->shape[0]; b++)
        bk_vector(x->dtype)->add(one, p->data, (char *)n->out[0]->data + (size_t)b * bytes);
}

static void positions_of_lane(void *context, int64_t l, void *grad)
{
    const embed_lane *c = context;
    const bk_tensor *x = c->node->in[0], *p = c->node->in[1];
    int64_t one = x->shape[1] * x->shape[2],
            last = bk_lane_row(&c->tape->lanes, x->shape[0], l + 1);
    size_t bytes = (size_t)one * bk_dtype_size(x->dtype);
    memset(grad, 0, (size_t)bk_count(p) * bk_dtype_size(p->dtype));
    for (int64_t b = bk_lane_row(&c->tape->lanes, x->shape[0], l); b < last; b++)
        bk_vector(x->dtype)->add(one, (const char *)c->node->out[0]->grad + (size_t)b * bytes,
                                 grad);
}

static void positions_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *x = n->in[0], *p = n->in[1];
    embed_lane context = {t, n};
    if (x->needs_grad)
        bk_vector(x->dtype)->add(bk_count(x), n->out[0]->grad, bk_grad(t, x));
    if (p->needs_grad)
        bk_lane_gradient(t, &t->lanes, p, positions_of_lane, &context);
}

static bk_tensor *positions_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *x = bk_sample_input(s, BK_SHAPE(4, 3, 5));
    return bk_add_positions(t, x, bk_sample_input(s, BK_SHAPE(6, 5)));
}

const bk_op bk_op_add_positions = {.name = "add_positions",
                                   .shape = positions_shape,
                                   .forward = positions_forward,
                                   .backward = positions_backward,
                                   .sample = positions_sample};

bk_tensor *bk_add_positions(bk_tape *t, bk_tensor *x, bk_tensor *p)
{
    bk_tensor *in[] = {x, p};
    return bk_apply(t, &bk_op_add_positions, 2, in, 1, NULL, 0)->out[0];
}
