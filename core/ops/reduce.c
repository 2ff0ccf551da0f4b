/* Pooling over positions. */
#include "core/ops.h"
#include "core/vector.h"

#include <string.h>

static size_t row_bytes(const bk_tensor *x)
{
    return (size_t)bk_cols(x) * bk_dtype_size(x->dtype);
}

static void pool_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0];
    (void)t;
    BK_ASSERT(x->dims == 3 && x->shape[1] > 0, "positions to pool");
    n->out[0]->dtype = x->dtype;
    n->out[0]->dims = 2;
    n->out[0]->shape[0] = x->shape[0];
    n->out[0]->shape[1] = x->shape[2];
}

/* ---- first ---- */

static void first_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0];
    size_t row = row_bytes(x);
    (void)t;
    for (int64_t b = 0; b < x->shape[0]; b++)
        memcpy((char *)n->out[0]->data + (size_t)b * row,
               (const char *)x->data + (size_t)(b * x->shape[1]) * row, row);
}

static void first_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *x = n->in[0];
    char *grad = bk_grad(t, x);
    size_t row = row_bytes(x);
    for (int64_t b = 0; b < x->shape[0]; b++)
        bk_vector(x->dtype)->add(bk_cols(x), (const char *)n->out[0]->grad + (size_t)b * row,
                                 grad + (size_t)(b * x->shape[1]) * row);
}

static bk_tensor *first_sample(bk_tape *t, bk_sample *s)
{
    return bk_pool_first(t, bk_sample_input(s, BK_SHAPE(4, 3, 5)));
}

const bk_op bk_op_pool_first = {.name = "pool_first",
                                .shape = pool_shape,
                                .forward = first_forward,
                                .backward = first_backward,
                                .sample = first_sample};

bk_tensor *bk_pool_first(bk_tape *t, bk_tensor *x)
{
    return bk_apply(t, &bk_op_pool_first, 1, &x, 1, NULL, 0)->out[0];
}

/* ---- mean over the real positions ---- */

static int64_t real_positions(const bk_tensor *mask, int64_t b, int64_t positions)
{
    if (!mask)
        return positions;
    int64_t count = 0;
    for (int64_t i = 0; i < positions; i++)
        count += bk_i32(mask)[b * positions + i] != 0;
    return count;
}

static bool is_real(const bk_tensor *mask, int64_t row)
{
    return !mask || bk_i32(mask)[row] != 0;
}

static void mean_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0], *mask = n->in[1];
    const bk_vector_kernels *k = bk_vector(x->dtype);
    size_t row = row_bytes(x);
    (void)t;
    for (int64_t b = 0; b < x->shape[0]; b++) {
        char *y = (char *)n->out[0]->data + (size_t)b * row;
        int64_t count = real_positions(mask, b, x->shape[1]);
        memset(y, 0, row);
        for (int64_t i = b * x->shape[1]; i < (b + 1) * x->shape[1]; i++)
            if (is_real(mask, i))
                k->add(bk_cols(x), (const char *)x->data + (size_t)i * row, y);
        k->scale(bk_cols(x), count > 0 ? 1.0 / (double)count : 0.0, y);
    }
}

static void mean_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *x = n->in[0], *mask = n->in[1];
    char *grad = bk_grad(t, x);
    size_t row = row_bytes(x);
    for (int64_t b = 0; b < x->shape[0]; b++) {
        int64_t count = real_positions(mask, b, x->shape[1]);
        for (int64_t i = b * x->shape[1]; i < (b + 1) * x->shape[1]; i++)
            if (is_real(mask, i))
                bk_vector(x->dtype)->axpy(bk_cols(x), 1.0 / (double)count,
                                          (const char *)n->out[0]->grad + (size_t)b * row,
                                          grad + (size_t)i * row);
    }
}

static bk_tensor *mean_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *x = bk_sample_input(s, BK_SHAPE(4, 3, 5));
    return bk_pool_mean(t, x, bk_sample_mask(s, BK_SHAPE(4, 3)));
}

const bk_op bk_op_pool_mean = {.name = "pool_mean",
                               .shape = pool_shape,
                               .forward = mean_forward,
                               .backward = mean_backward,
                               .sample = mean_sample};

bk_tensor *bk_pool_mean(bk_tape *t, bk_tensor *x, bk_tensor *mask)
{
    bk_tensor *in[] = {x, mask};
    return bk_apply(t, &bk_op_pool_mean, 2, in, 1, NULL, 0)->out[0];
}
