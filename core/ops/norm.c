/* LayerNorm (Ba et al. 2016) over the last axis, biased variance; alone, and of a sum that is
 * formed in the same pass. */
#include "core/blas.h"
#include "core/ops.h"
#include "core/ops/norm_kernel.h"
#include "core/vector.h"

#include <string.h>

enum { X, GAIN, BIAS, RESIDUAL, INPUTS }; /* add_layernorm alone has the residual and the sum */
enum { Y, SUM, OUTPUTS };

static const bk_norm_kernels *kernels(const bk_tensor *x)
{
    return BK_KERNEL_SELECT(bk_norm_kernels, x->dtype);
}

/* The tensor whose rows are normalised. */
static bk_tensor *normed(const bk_node *n)
{
    return n->outputs == OUTPUTS ? n->out[SUM] : n->in[X];
}

static void layernorm_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[X];
    (void)t;
    BK_ASSERT(bk_count(n->in[GAIN]) == bk_cols(x), "gain of %lld",
              (long long)bk_count(n->in[GAIN]));
    BK_ASSERT(n->outputs < OUTPUTS || bk_same_shape(x, n->in[RESIDUAL]), "x and residual differ");
    for (int i = 0; i < n->outputs; i++) {
        n->out[i]->dtype = x->dtype;
        n->out[i]->dims = x->dims;
        memcpy(n->out[i]->shape, x->shape, sizeof x->shape);
    }
}

static void layernorm_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = normed(n), *bias = n->in[BIAS];
    int64_t rows = bk_rows(x), cols = bk_cols(x);
    size_t size = bk_dtype_size(x->dtype), row = (size_t)cols * size;
    char *stat = n->saved = bk_arena_alloc(t->arena, 2 * (size_t)rows * size);
    double epsilon = *(const double *)n->attributes;
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (rows * cols > 65536)
    for (int64_t i = 0; i < rows; i++) {
        size_t at = (size_t)i * row;
        if (n->outputs == OUTPUTS)
            kernels(x)->add(cols, (const char *)n->in[X]->data + at,
                            (const char *)n->in[RESIDUAL]->data + at, (char *)x->data + at);
        kernels(x)->forward(cols, (const char *)x->data + at, n->in[GAIN]->data,
                            bias ? bias->data : NULL, epsilon, (char *)n->out[Y]->data + at,
                            stat + 2 * (size_t)i * size);
    }
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

/* Where the slopes of the rows go: to the gradient of what is normalised, and with what stood
 * there on to the inputs of the sum. */
typedef struct slopes {
    char *rows;
    bool fresh;
    bk_tensor *to[2]; /* NULL: nobody */
    double beta[2];
} slopes;

/* The slopes of the rows, and the sums of each chunk. */
static void pass_rows(const chunks *c, const slopes *s)
{
    const bk_node *n = c->node;
    const bk_tensor *x = normed(n);
    int64_t cols = bk_cols(x);
    size_t size = bk_dtype_size(x->dtype), row = (size_t)cols * size;
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (c->count > 4)
    for (int64_t i = 0; i < c->count; i++) {
        const chunk *k = &c->chunk[i];
        size_t at = (size_t)k->first * row;
        bk_norm_back b = {.rows = k->last - k->first,
                          .n = cols,
                          .x = (const char *)x->data + at,
                          .gain = n->in[GAIN]->data,
                          .dy = (const char *)n->out[Y]->grad + at,
                          .stat = (const char *)n->saved + 2 * (size_t)k->first * size,
                          .dx = s->rows ? s->rows + at : NULL,
                          .fresh = s->fresh,
                          .dgain = sums_of(c, i, 0),
                          .dbias = sums_of(c, i, 1)};
        for (int j = 0; j < 2; j++)
            if (s->to[j]) {
                b.to[j].rows = (char *)s->to[j]->grad + at;
                b.to[j].fresh = s->beta[j] == 0.0;
            }
        kernels(x)->backward(&b);
    }
}

static void backward(bk_tape *t, bk_node *n, const slopes *s)
{
    bk_tensor *gain = n->in[GAIN], *bias = n->in[BIAS];
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    chunks c = cut(t, n);
    pass_rows(&c, s);
    if (gain->needs_grad)
        bk_lane_gradient(t, &t->lanes, gain, gain_of_lane, &c);
    if (bias && bias->needs_grad)
        bk_lane_gradient(t, &t->lanes, bias, bias_of_lane, &c);
    bk_arena_release(t->scratch, mark);
}

static void layernorm_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *x = n->in[X];
    double beta = 1.0;
    slopes s = {.rows = x->needs_grad ? bk_grad_slot(t, x, &beta) : NULL};
    s.fresh = beta == 0.0;
    backward(t, n, &s);
}

/* The gradient of the sum becomes that of x, where x has none yet. */
static void add_layernorm_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *x = n->in[X], *r = n->in[RESIDUAL], *sum = n->out[SUM];
    slopes s = {.rows = sum->grad};
    if (r->needs_grad) {
        s.to[0] = r;
        bk_grad_slot(t, r, &s.beta[0]);
    }
    if (x->needs_grad && !bk_grad_move(sum, x)) {
        s.to[1] = x;
        bk_grad_slot(t, x, &s.beta[1]);
    }
    backward(t, n, &s);
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

static bk_tensor *add_layernorm_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *x = bk_sample_input(s, BK_SHAPE(4, 2, 19)),
              *r = bk_sample_input(s, BK_SHAPE(4, 2, 19)), *gain = bk_sample_input(s, BK_SHAPE(19)),
              *bias = bk_sample_input(s, BK_SHAPE(19));
    bk_sum_and_norm z = bk_add_layernorm(t, x, r, gain, bias, 1e-5);
    return bk_add(t, z.sum, z.norm);
}

const bk_op bk_op_add_layernorm = {.name = "add_layernorm",
                                   .shape = layernorm_shape,
                                   .forward = layernorm_forward,
                                   .backward = add_layernorm_backward,
                                   .sample = add_layernorm_sample};

bk_tensor *bk_layernorm(bk_tape *t, bk_tensor *x, bk_tensor *gain, bk_tensor *bias, double epsilon)
{
    bk_tensor *in[] = {x, gain, bias};
    return bk_apply(t, &bk_op_layernorm, RESIDUAL, in, 1, &epsilon, sizeof epsilon)->out[Y];
}

bk_sum_and_norm bk_add_layernorm(bk_tape *t, bk_tensor *x, bk_tensor *residual, bk_tensor *gain,
                                 bk_tensor *bias, double epsilon)
{
    bk_tensor *in[INPUTS] = {x, gain, bias, residual};
    const bk_node *n =
        bk_apply(t, &bk_op_add_layernorm, INPUTS, in, OUTPUTS, &epsilon, sizeof epsilon);
    return (bk_sum_and_norm){.sum = n->out[SUM], .norm = n->out[Y]};
}
