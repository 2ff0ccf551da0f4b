/* Dropout: the mask is a function of (seed, layer, use, step, global sample position, index inside
 * the sample); one Philox call gives the eight 32-bit words of elements 8 i .. 8 i + 7.  It is made
 * again in backward, not stored. */
#include "core/blas.h"
#include "core/ops.h"
#include "core/ops/pointwise_kernel.h"

#include <string.h>

typedef struct dropout_attributes {
    double p;
    int layer;
    bk_use use;
} dropout_attributes;

static void dropout_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0];
    (void)t;
    BK_ASSERT(x->dims >= 1, "dropout of a scalar");
    n->out[0]->dtype = x->dtype;
    n->out[0]->dims = x->dims;
    memcpy(n->out[0]->shape, x->shape, sizeof x->shape);
}

enum { PIECE = 4096 };

/* One sample: `run` adds or writes from `x` to `y`. */
static void sample_pass(bk_tape *t, const dropout_attributes *a, int64_t sample, int64_t count,
                        bk_dtype dtype, const char *x, char *y)
{
    uint32_t word[PIECE];
    bk_philox_key key = bk_philox_for(t->seed, a->layer, a->use);
    uint32_t threshold = (uint32_t)(a->p * 4294967296.0);
    uint64_t place = (uint64_t)(bk_lanes_first_sample(&t->lanes) + sample);
    for (int64_t at = 0; at < count; at += PIECE) {
        int64_t length = count - at < PIECE ? count - at : PIECE;
        bk_philox_words(key, (uint64_t)t->step, place, (uint64_t)at / 8, (length + 7) / 8, word);
        size_t offset = (size_t)at * bk_dtype_size(dtype);
        bk_pointwise(dtype)->keep_add(length, x + offset, word, threshold, 1.0 / (1.0 - a->p),
                                      y + offset);
    }
}

static void all_samples(bk_tape *t, const bk_node *n, const void *from, void *to)
{
    const bk_tensor *x = n->in[0];
    int64_t samples = x->shape[0], count = samples > 0 ? bk_count(x) / samples : 0;
    size_t bytes = (size_t)count * bk_dtype_size(x->dtype);
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads())
    for (int64_t b = 0; b < samples; b++)
        sample_pass(t, n->attributes, b, count, x->dtype, (const char *)from + (size_t)b * bytes,
                    (char *)to + (size_t)b * bytes);
}

static void dropout_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *y = n->out[0];
    memset(y->data, 0, (size_t)bk_count(y) * bk_dtype_size(y->dtype));
    all_samples(t, n, n->in[0]->data, y->data);
}

static void dropout_backward(bk_tape *t, bk_node *n)
{
    all_samples(t, n, n->out[0]->grad, bk_grad(t, n->in[0]));
}

static bk_tensor *dropout_sample(bk_tape *t, bk_sample *s)
{
    t->training = true;
    return bk_dropout(t, bk_sample_input(s, BK_SHAPE(4, 11)), 0.4, 3, BK_USE_DROPOUT_EMBED);
}

const bk_op bk_op_dropout = {.name = "dropout",
                             .shape = dropout_shape,
                             .forward = dropout_forward,
                             .backward = dropout_backward,
                             .sample = dropout_sample};

bk_tensor *bk_dropout(bk_tape *t, bk_tensor *x, double p, int layer, bk_use use)
{
    if (!t->training || p <= 0.0)
        return x;
    dropout_attributes a = {p, layer, use};
    return bk_apply(t, &bk_op_dropout, 1, &x, 1, &a, sizeof a)->out[0];
}
