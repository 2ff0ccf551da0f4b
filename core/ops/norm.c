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

/* ---- backward: one pass over the rows, by chunks that lie in one lane each ---- */

enum { CHUNK = 64 }; /* rows */

typedef struct chunk {
    int64_t first, last; /* rows */
} chunk;

typedef struct chunks {
    const bk_node *node;
    chunk *chunk;
    int64_t count, *of_lane; /* [lanes+1]: first chunk of each */
    char *sums;              /* of each chunk: dgain[C], dbias[C] */
} chunks;

static char *sums_of(const chunks *c, int64_t i, int which)
{
    const bk_tensor *x = c->node->in[0];
    return c->sums + (size_t)((2 * i + which) * bk_cols(x)) * bk_dtype_size(x->dtype);
}

static chunks cut(bk_tape *t, const bk_node *n)
{
    const bk_tensor *x = n->in[0];
    int64_t rows = bk_rows(x), most = rows / CHUNK + t->lanes.count + 1;
    chunks c = {.node = n,
                .chunk = BK_NEW(t->scratch, chunk, most),
                .of_lane = BK_ZNEW(t->scratch, int64_t, t->lanes.count + 1)};
    for (int64_t l = 0; l < t->lanes.count; l++) {
        int64_t last = bk_lane_row(&t->lanes, rows, l + 1);
        for (int64_t i = bk_lane_row(&t->lanes, rows, l); i < last; i += CHUNK)
            c.chunk[c.count++] = (chunk){i, i + CHUNK < last ? i + CHUNK : last};
        c.of_lane[l + 1] = c.count;
    }
    c.sums = bk_arena_alloc(t->scratch, (size_t)(2 * most * bk_cols(x)) * bk_dtype_size(x->dtype));
    return c;
}

static void sum_of_lane(const chunks *c, int64_t l, int which, void *out)
{
    const bk_tensor *x = c->node->in[0];
    memset(out, 0, (size_t)bk_cols(x) * bk_dtype_size(x->dtype));
    for (int64_t i = c->of_lane[l]; i < c->of_lane[l + 1]; i++)
        bk_vector(x->dtype)->add(bk_cols(x), sums_of(c, i, which), out);
}

static void gain_of_lane(void *context, int64_t l, void *dgain)
{
    sum_of_lane(context, l, 0, dgain);
}

static void bias_of_lane(void *context, int64_t l, void *dbias)
{
    sum_of_lane(context, l, 1, dbias);
}

/* The slopes of the rows, and the sums of each chunk. */
static void pass_rows(bk_tape *t, const chunks *c)
{
    const bk_node *n = c->node;
    bk_tensor *x = n->in[0];
    int64_t cols = bk_cols(x);
    size_t size = bk_dtype_size(x->dtype), row = (size_t)cols * size;
    double beta = 1.0;
    char *grad = x->needs_grad ? bk_grad_slot(t, x, &beta) : NULL;
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (c->count > 4)
    for (int64_t i = 0; i < c->count; i++) {
        const chunk *k = &c->chunk[i];
        size_t at = (size_t)k->first * row;
        bk_norm_back b = {.rows = k->last - k->first,
                          .n = cols,
                          .x = (const char *)x->data + at,
                          .gain = n->in[1]->data,
                          .dy = (const char *)n->out[0]->grad + at,
                          .stat = (const char *)n->saved + 2 * (size_t)k->first * size,
                          .dx = grad ? grad + at : NULL,
                          .fresh = beta == 0.0,
                          .dgain = sums_of(c, i, 0),
                          .dbias = sums_of(c, i, 1)};
        kernels(x)->backward(&b);
    }
}

static void layernorm_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *gain = n->in[1], *bias = n->in[2];
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    chunks c = cut(t, n);
    pass_rows(t, &c);
    if (gain->needs_grad)
        bk_lane_gradient(t, &t->lanes, gain, gain_of_lane, &c);
    if (bias && bias->needs_grad)
        bk_lane_gradient(t, &t->lanes, bias, bias_of_lane, &c);
    bk_arena_release(t->scratch, mark);
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
