/* Ops that touch each element once. */
#include "core/blas.h"
#include "core/ops.h"
#include "core/ops/pointwise_kernel.h"
#include "core/parallel.h"
#include "core/vector.h"

#include <string.h>

static void same_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0];
    (void)t;
    n->out[0]->dtype = x->dtype;
    n->out[0]->dims = x->dims;
    memcpy(n->out[0]->shape, x->shape, sizeof x->shape);
}

static void both_same_shape(bk_tape *t, bk_node *n)
{
    BK_ASSERT(bk_same_shape(n->in[0], n->in[1]), "operands differ in shape");
    same_shape(t, n);
}

/* ---- add ---- */

static void add_piece(void *context, int64_t first, int64_t last)
{
    const bk_node *n = context;
    size_t at = (size_t)first * bk_dtype_size(n->in[0]->dtype);
    bk_pointwise(n->in[0]->dtype)
        ->add(last - first, (const char *)n->in[0]->data + at, (const char *)n->in[1]->data + at,
              (char *)n->out[0]->data + at);
}

static void add_forward(bk_tape *t, bk_node *n)
{
    (void)t;
    bk_parallel(bk_count(n->in[0]), BK_PARALLEL_VECTOR, 1, add_piece, n);
}

typedef struct passing {
    bk_dtype dtype;
    bool copy;
    const char *from;
    char *to;
} passing;

static void pass_piece(void *context, int64_t first, int64_t last)
{
    const passing *p = context;
    size_t size = bk_dtype_size(p->dtype), at = (size_t)first * size;
    if (p->copy)
        memcpy(p->to + at, p->from + at, (size_t)(last - first) * size);
    else
        bk_vector(p->dtype)->add(last - first, p->from + at, p->to + at);
}

/* x's gradient grows by `from`; the first contribution is copied. */
static void pass_on(bk_tape *t, bk_tensor *x, const void *from)
{
    double beta;
    passing p = {.dtype = x->dtype, .from = from, .to = bk_grad_slot(t, x, &beta)};
    p.copy = beta == 0.0;
    bk_parallel(bk_count(x), BK_PARALLEL_VECTOR, 1, pass_piece, &p);
}

static void add_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *a = n->in[0], *b = n->in[1], *y = n->out[0];
    if (b->needs_grad)
        pass_on(t, b, y->grad);
    if (a->needs_grad && !bk_grad_move(y, a))
        pass_on(t, a, y->grad);
}

static bk_tensor *add_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *a = bk_sample_input(s, BK_SHAPE(4, 5));
    return bk_add(t, bk_add(t, a, bk_sample_input(s, BK_SHAPE(4, 5))), a);
}

const bk_op bk_op_add = {.name = "add",
                         .shape = both_same_shape,
                         .forward = add_forward,
                         .backward = add_backward,
                         .sample = add_sample};

bk_tensor *bk_add(bk_tape *t, bk_tensor *a, bk_tensor *b)
{
    bk_tensor *in[] = {a, b};
    return bk_apply(t, &bk_op_add, 2, in, 1, NULL, 0)->out[0];
}

/* ---- mul ---- */

static void mul_forward(bk_tape *t, bk_node *n)
{
    (void)t;
    bk_pointwise(n->in[0]->dtype)
        ->mul(bk_count(n->in[0]), n->in[0]->data, n->in[1]->data, n->out[0]->data);
}

static void mul_backward(bk_tape *t, bk_node *n)
{
    const bk_pointwise_kernels *k = bk_pointwise(n->in[0]->dtype);
    for (int i = 0; i < 2; i++)
        if (n->in[i]->needs_grad)
            k->mul_add(bk_count(n->in[i]), n->out[0]->grad, n->in[1 - i]->data,
                       bk_grad(t, n->in[i]));
}

static bk_tensor *mul_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *a = bk_sample_input(s, BK_SHAPE(4, 5));
    return bk_mul(t, bk_mul(t, a, bk_sample_input(s, BK_SHAPE(4, 5))), a);
}

const bk_op bk_op_mul = {.name = "mul",
                         .shape = both_same_shape,
                         .forward = mul_forward,
                         .backward = mul_backward,
                         .sample = mul_sample};

bk_tensor *bk_mul(bk_tape *t, bk_tensor *a, bk_tensor *b)
{
    bk_tensor *in[] = {a, b};
    return bk_apply(t, &bk_op_mul, 2, in, 1, NULL, 0)->out[0];
}

/* ---- scale ---- */

static void scale_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0], *y = n->out[0];
    (void)t;
    memcpy(y->data, x->data, (size_t)bk_count(x) * bk_dtype_size(x->dtype));
    bk_vector(x->dtype)->scale(bk_count(x), *(const double *)n->attributes, y->data);
}

static void scale_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *x = n->in[0];
    bk_vector(x->dtype)->axpy(bk_count(x), *(const double *)n->attributes, n->out[0]->grad,
                              bk_grad(t, x));
}

static bk_tensor *scale_sample(bk_tape *t, bk_sample *s)
{
    return bk_scale(t, bk_sample_input(s, BK_SHAPE(4, 5)), -1.5);
}

const bk_op bk_op_scale = {.name = "scale",
                           .shape = same_shape,
                           .forward = scale_forward,
                           .backward = scale_backward,
                           .sample = scale_sample};

bk_tensor *bk_scale(bk_tape *t, bk_tensor *x, double factor)
{
    return bk_apply(t, &bk_op_scale, 1, &x, 1, &factor, sizeof factor)->out[0];
}

/* ---- activations: large arrays are cut in fixed pieces for the threads ---- */

enum { PIECE = 16384 };

static int64_t piece_length(int64_t count, int64_t i)
{
    return count - i * PIECE < PIECE ? count - i * PIECE : PIECE;
}

static void activate_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0], *y = n->out[0];
    int64_t count = bk_count(x), pieces = (count + PIECE - 1) / PIECE;
    size_t size = bk_dtype_size(x->dtype);
    (void)t;
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (pieces > 1)
    for (int64_t i = 0; i < pieces; i++)
        bk_pointwise(x->dtype)->activate(*(const int *)n->attributes, piece_length(count, i),
                                         (const char *)x->data + (size_t)(i * PIECE) * size,
                                         (char *)y->data + (size_t)(i * PIECE) * size);
}

static void activate_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *x = n->in[0], *y = n->out[0];
    int64_t count = bk_count(x), pieces = (count + PIECE - 1) / PIECE;
    size_t size = bk_dtype_size(x->dtype);
    double beta;
    char *grad = bk_grad_slot(t, x, &beta);
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (pieces > 1)
    for (int64_t i = 0; i < pieces; i++) {
        size_t at = (size_t)(i * PIECE) * size;
        if (beta == 0.0)
            memset(grad + at, 0, (size_t)piece_length(count, i) * size);
        bk_pointwise(x->dtype)->activate_back(*(const int *)n->attributes, piece_length(count, i),
                                              (const char *)x->data + at,
                                              (const char *)y->grad + at, grad + at);
    }
}

static bk_tensor *activate_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *y = bk_activate(t, bk_sample_input(s, BK_SHAPE(4, 5)), BK_GELU);
    y = bk_add(t, y, bk_activate(t, bk_sample_input(s, BK_SHAPE(4, 5)), BK_GELU_TANH));
    y = bk_add(t, y, bk_activate(t, bk_sample_input(s, BK_SHAPE(4, 5)), BK_RELU));
    return bk_add(t, y, bk_activate(t, bk_sample_input(s, BK_SHAPE(4, 5)), BK_SILU));
}

const bk_op bk_op_activate = {.name = "activate",
                              .shape = same_shape,
                              .forward = activate_forward,
                              .backward = activate_backward,
                              .sample = activate_sample};

bk_tensor *bk_activate(bk_tape *t, bk_tensor *x, bk_activation kind)
{
    int attribute = (int)kind;
    return bk_apply(t, &bk_op_activate, 1, &x, 1, &attribute, sizeof attribute)->out[0];
}
