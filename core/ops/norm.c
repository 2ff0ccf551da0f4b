/* LayerNorm (Ba et al. 2016) over the last axis, biased variance. */
#include "core/blas.h"
#include "core/ops.h"
#include "core/ops/norm_kernel.h"
#include "core/vector.h"

#include <string.h>

static const bk_norm_kernels *kernels(const bk_tensor *x)
{
    return BK_KERNEL_SELECT(bk_norm_kernels, x->dtype);
}

static void layernorm_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0];
    (void)t;
    BK_ASSERT(bk_count(n->in[1]) == bk_cols(x), "gain of %lld", (long long)bk_count(n->in[1]));
    n->out[0]->dtype = x->dtype;
    n->out[0]->dims = x->dims;
    memcpy(n->out[0]->shape, x->shape, sizeof x->shape);
}

static void layernorm_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0], *gain = n->in[1], *bias = n->in[2];
    int64_t rows = bk_rows(x), cols = bk_cols(x);
    size_t size = bk_dtype_size(x->dtype), row = (size_t)cols * size;
    char *stat = n->saved = bk_arena_alloc(t->arena, 2 * (size_t)rows * size);
    double epsilon = *(const double *)n->attributes;
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (rows * cols > 65536)
    for (int64_t i = 0; i < rows; i++)
        kernels(x)->forward(cols, (const char *)x->data + (size_t)i * row, gain->data,
                            bias ? bias->data : NULL, epsilon,
                            (char *)n->out[0]->data + (size_t)i * row, stat + 2 * (size_t)i * size);
}

typedef struct norm_lane {
    bk_tape *tape;
    const bk_node *node;
} norm_lane;

static void gain_of_lane(void *context, int64_t l, void *dgain)
{
    const norm_lane *c = context;
    const bk_tensor *x = c->node->in[0], *y = c->node->out[0];
    int64_t rows = bk_rows(x), cols = bk_cols(x), last = bk_lane_row(&c->tape->lanes, rows, l + 1);
    size_t size = bk_dtype_size(x->dtype), row = (size_t)cols * size;
    memset(dgain, 0, row);
    for (int64_t i = bk_lane_row(&c->tape->lanes, rows, l); i < last; i++)
        kernels(x)->gain(cols, (const char *)x->data + (size_t)i * row,
                         (const char *)y->grad + (size_t)i * row,
                         (const char *)c->node->saved + 2 * (size_t)i * size, dgain);
}

static void bias_of_lane(void *context, int64_t l, void *dbias)
{
    const norm_lane *c = context;
    const bk_tensor *y = c->node->out[0];
    int64_t rows = bk_rows(y), cols = bk_cols(y), last = bk_lane_row(&c->tape->lanes, rows, l + 1);
    size_t row = (size_t)cols * bk_dtype_size(y->dtype);
    memset(dbias, 0, row);
    for (int64_t i = bk_lane_row(&c->tape->lanes, rows, l); i < last; i++)
        bk_vector(y->dtype)->add(cols, (const char *)y->grad + (size_t)i * row, dbias);
}

static void layernorm_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *x = n->in[0], *gain = n->in[1], *bias = n->in[2];
    int64_t rows = bk_rows(x), cols = bk_cols(x);
    size_t size = bk_dtype_size(x->dtype), row = (size_t)cols * size;
    norm_lane context = {t, n};
    if (x->needs_grad) {
        char *grad = bk_grad(t, x);
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (rows * cols > 65536)
        for (int64_t i = 0; i < rows; i++)
            kernels(x)->backward(cols, (const char *)x->data + (size_t)i * row, gain->data,
                                 (const char *)n->out[0]->grad + (size_t)i * row,
                                 (const char *)n->saved + 2 * (size_t)i * size,
                                 grad + (size_t)i * row);
    }
    if (gain->needs_grad)
        bk_lane_gradient(t, &t->lanes, gain, gain_of_lane, &context);
    if (bias && bias->needs_grad)
        bk_lane_gradient(t, &t->lanes, bias, bias_of_lane, &context);
}

static bk_tensor *layernorm_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *x = bk_sample_input(s, BK_SHAPE(4, 2, 19)), *gain = bk_sample_input(s, BK_SHAPE(19));
    return bk_layernorm(t, x, gain, bk_sample_input(s, BK_SHAPE(19)), 1e-5);
}

const bk_op bk_op_layernorm = {.name = "layernorm",
                               .shape = layernorm_shape,
                               .forward = layernorm_forward,
                               .backward = layernorm_backward,
                               .sample = layernorm_sample};

bk_tensor *bk_layernorm(bk_tape *t, bk_tensor *x, bk_tensor *gain, bk_tensor *bias, double epsilon)
{
    bk_tensor *in[] = {x, gain, bias};
    return bk_apply(t, &bk_op_layernorm, 3, in, 1, &epsilon, sizeof epsilon)->out[0];
}
