/* LayerNorm (Ba et al. 2016) over the last axis, biased variance. */
#include "core/blas.h"
#include "core/ops.h"
#include "core/ops/norm_kernel.h"
#include "core/parallel.h"

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

typedef struct gain_sums {
    const bk_node *node;
    int64_t first, last; /* rows */
    char *out;
} gain_sums;

/* A piece of the columns, its rows in order. */
static void sum_gains(void *context, int64_t first, int64_t last)
{
    const gain_sums *c = context;
    const bk_tensor *x = c->node->in[0], *y = c->node->out[0];
    size_t size = bk_dtype_size(x->dtype), row = (size_t)bk_cols(x) * size,
           at = (size_t)first * size;
    memset(c->out + at, 0, (size_t)(last - first) * size);
    for (int64_t i = c->first; i < c->last; i++)
        kernels(x)->gain(last - first, (const char *)x->data + (size_t)i * row + at,
                         (const char *)y->grad + (size_t)i * row + at,
                         (const char *)c->node->saved + 2 * (size_t)i * size, c->out + at);
}

static void gain_of_lane(void *context, int64_t l, void *dgain)
{
    const norm_lane *c = context;
    int64_t rows = bk_rows(c->node->in[0]);
    gain_sums sums = {c->node, bk_lane_row(&c->tape->lanes, rows, l),
                      bk_lane_row(&c->tape->lanes, rows, l + 1), dgain};
    bk_parallel(bk_cols(c->node->in[0]), BK_PARALLEL_VECTOR, sums.last - sums.first, sum_gains,
                &sums);
}

static void bias_of_lane(void *context, int64_t l, void *dbias)
{
    const norm_lane *c = context;
    bk_column_sums(c->tape, c->node->out[0], l, dbias);
}

static void layernorm_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *x = n->in[0], *gain = n->in[1], *bias = n->in[2];
    int64_t rows = bk_rows(x), cols = bk_cols(x);
    size_t size = bk_dtype_size(x->dtype), row = (size_t)cols * size;
    norm_lane context = {t, n};
    if (x->needs_grad) {
        double beta;
        char *grad = bk_grad_slot(t, x, &beta);
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (rows * cols > 65536)
        for (int64_t i = 0; i < rows; i++) {
            if (beta == 0.0)
                memset(grad + (size_t)i * row, 0, row);
            kernels(x)->backward(cols, (const char *)x->data + (size_t)i * row, gain->data,
                                 (const char *)n->out[0]->grad + (size_t)i * row,
                                 (const char *)n->saved + 2 * (size_t)i * size,
                                 grad + (size_t)i * row);
        }
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
