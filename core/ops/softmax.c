/* Masked softmax over the keys: the whole matrix, for the composed form of attention. */
#include "core/ops.h"
#include "core/ops/softmax_kernel.h"

#include <string.h>

static const bk_softmax_kernels *kernels(const bk_tensor *x)
{
    return BK_KERNEL_SELECT(bk_softmax_kernels, x->dtype);
}

static void softmax_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *s = n->in[0], *mask = n->in[1];
    (void)t;
    BK_ASSERT(s->dims == 4, "scores have %d axes", s->dims);
    BK_ASSERT(!mask || (mask->shape[0] == s->shape[0] && mask->shape[1] == s->shape[3]),
              "mask of another shape");
    n->out[0]->dtype = s->dtype;
    n->out[0]->dims = 4;
    memcpy(n->out[0]->shape, s->shape, sizeof s->shape);
}

static void softmax_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *s = n->in[0], *mask = n->in[1];
    int64_t heads = s->shape[1], queries = s->shape[2], keys = s->shape[3];
    bool causal = *(const bool *)n->attributes;
    size_t row = (size_t)keys * bk_dtype_size(s->dtype);
    (void)t;
    for (int64_t i = 0; i < bk_rows(s); i++) {
        const int32_t *real_keys = mask ? bk_i32(mask) + i / (heads * queries) * keys : NULL;
        kernels(s)->forward(keys, (const char *)s->data + (size_t)i * row, real_keys,
                            causal ? i % queries + 1 : keys,
                            (char *)n->out[0]->data + (size_t)i * row);
    }
}

static void softmax_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *s = n->in[0], *p = n->out[0];
    size_t row = (size_t)bk_cols(s) * bk_dtype_size(s->dtype);
    char *grad = bk_grad(t, s);
    for (int64_t i = 0; i < bk_rows(s); i++)
        kernels(s)->backward(bk_cols(s), (const char *)p->data + (size_t)i * row,
                             (const char *)p->grad + (size_t)i * row, grad + (size_t)i * row);
}

static bk_tensor *softmax_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *x = bk_sample_input(s, BK_SHAPE(4, 2, 5, 5)),
              *mask = bk_sample_mask(s, BK_SHAPE(4, 5));
    return bk_softmax_masked(t, bk_softmax_masked(t, x, mask, false), NULL, true);
}

const bk_op bk_op_softmax_masked = {.name = "softmax_masked",
                                    .shape = softmax_shape,
                                    .forward = softmax_forward,
                                    .backward = softmax_backward,
                                    .sample = softmax_sample};

bk_tensor *bk_softmax_masked(bk_tape *t, bk_tensor *s, bk_tensor *mask, bool causal)
{
    bk_tensor *in[] = {s, mask};
    return bk_apply(t, &bk_op_softmax_masked, 2, in, 1, &causal, sizeof causal)->out[0];
}
