/* Matrix products.  Rows are cut at lane boundaries, so that the shape of a product does not depend
 * on the rank count. */
#include "core/blas.h"
#include "core/ops.h"
#include "core/parallel.h"
#include "core/vector.h"

#include <string.h>

static void *at(const void *data, bk_dtype dtype, int64_t element)
{
    return (char *)(uintptr_t)data + (size_t)element * bk_dtype_size(dtype);
}

static size_t operand_bytes(const bk_tape *t, const bk_tensor *x)
{
    return (size_t)bk_count(x) * bk_dtype_size(bk_operand_dtype(t, x->dtype));
}

/* `data`: x's, or its gradient. */
static const void *operand(const bk_tape *t, const bk_tensor *x, const void *data, bk_arena *arena)
{
    return bk_operand(t, x->dtype, bk_count(x), data, arena);
}

/* ---- linear: y[R,O] = x[R,I] w[O,I]^T + b[O] ---- */

static void linear_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0], *w = n->in[1], *b = n->in[2];
    bk_tensor *y = n->out[0];
    (void)t;
    BK_ASSERT(w->dims == 2 && bk_cols(x) == w->shape[1], "x has %lld columns, w %lld",
              (long long)bk_cols(x), (long long)bk_cols(w));
    BK_ASSERT(!b || bk_count(b) == w->shape[0], "bias of %lld for %lld outputs",
              (long long)bk_count(b), (long long)w->shape[0]);
    y->dtype = x->dtype;
    y->dims = x->dims;
    memcpy(y->shape, x->shape, sizeof y->shape);
    y->shape[y->dims - 1] = w->shape[0];
}

/* The weights as they were rounded stay for backward. */
static void linear_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *x = n->in[0], *w = n->in[1], *b = n->in[2], *y = n->out[0];
    bk_dtype dtype = bk_operand_dtype(t, x->dtype);
    int64_t rows = bk_rows(x), in = w->shape[1], out = w->shape[0];
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    const void *from = operand(t, x, x->data, t->scratch),
               *weight = operand(t, w, w->data, t->recording ? t->arena : t->scratch);
    for (int64_t l = 0; l < t->lanes.count; l++) {
        int64_t first = bk_lane_row(&t->lanes, rows, l), last = bk_lane_row(&t->lanes, rows, l + 1);
        bk_gemm_run(dtype, &(bk_gemm){.tb = BK_T,
                                      .m = last - first,
                                      .n = out,
                                      .k = in,
                                      .alpha = 1.0,
                                      .a = at(from, dtype, first * in),
                                      .lda = in,
                                      .b = weight,
                                      .ldb = in,
                                      .c = at(y->data, y->dtype, first * out),
                                      .ldc = out,
                                      .bias = b ? b->data : NULL});
    }
    n->saved = (void *)(uintptr_t)weight;
    bk_arena_release(t->scratch, mark);
}

typedef struct linear_lane {
    bk_tape *tape;
    const bk_node *node;
    bk_dtype dtype;
    const void *x, *dy; /* operands */
} linear_lane;

/* dw of one lane: dy^T x. */
static void weight_of_lane(void *context, int64_t l, void *dw)
{
    const linear_lane *c = context;
    const bk_tensor *w = c->node->in[1];
    int64_t rows = bk_rows(c->node->in[0]), first = bk_lane_row(&c->tape->lanes, rows, l);
    bk_gemm_run(c->dtype, &(bk_gemm){.ta = BK_T,
                                     .m = w->shape[0],
                                     .n = w->shape[1],
                                     .k = bk_lane_row(&c->tape->lanes, rows, l + 1) - first,
                                     .alpha = 1.0,
                                     .a = at(c->dy, c->dtype, first * w->shape[0]),
                                     .lda = w->shape[0],
                                     .b = at(c->x, c->dtype, first * w->shape[1]),
                                     .ldb = w->shape[1],
                                     .c = dw,
                                     .ldc = w->shape[1]});
}

typedef struct column_sums {
    const bk_tensor *y;
    int64_t first, last; /* rows */
    void *out;
} column_sums;

static void sum_columns(void *context, int64_t first, int64_t last)
{
    const column_sums *c = context;
    bk_dtype dtype = c->y->dtype;
    void *out = at(c->out, dtype, first);
    memset(out, 0, (size_t)(last - first) * bk_dtype_size(dtype));
    for (int64_t i = c->first; i < c->last; i++)
        bk_vector(dtype)->add(last - first, at(c->y->grad, dtype, i * bk_cols(c->y) + first), out);
}

void bk_column_sums(const bk_tape *t, const bk_tensor *y, int64_t l, void *out)
{
    int64_t rows = bk_rows(y);
    column_sums c = {y, bk_lane_row(&t->lanes, rows, l), bk_lane_row(&t->lanes, rows, l + 1), out};
    bk_parallel(bk_cols(y), BK_PARALLEL_VECTOR, c.last - c.first, sum_columns, &c);
}

static void bias_of_lane(void *context, int64_t l, void *db)
{
    const linear_lane *c = context;
    bk_column_sums(c->tape, c->node->out[0], l, db);
}

void bk_lane_gradient(bk_tape *t, const bk_lanes *lanes, bk_tensor *x, bk_lane_product *product,
                      void *context)
{
    double beta;
    void *grad = bk_grad_slot(t, x, &beta);
    if (beta == 0.0) {
        bk_lane_tree(lanes, x->dtype, bk_count(x), grad, product, context, t->scratch);
        return;
    }
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    void *sum = bk_arena_alloc(t->scratch, (size_t)bk_count(x) * bk_dtype_size(x->dtype));
    bk_lane_tree(lanes, x->dtype, bk_count(x), sum, product, context, t->scratch);
    bk_vector(x->dtype)->add(bk_count(x), sum, grad);
    bk_arena_release(t->scratch, mark);
}

/* dx of one lane: dy w. */
static void input_of_lane(const linear_lane *c, int64_t l, double beta)
{
    const bk_tensor *x = c->node->in[0], *w = c->node->in[1];
    int64_t rows = bk_rows(x), first = bk_lane_row(&c->tape->lanes, rows, l);
    bk_gemm_run(c->dtype, &(bk_gemm){.m = bk_lane_row(&c->tape->lanes, rows, l + 1) - first,
                                     .n = w->shape[1],
                                     .k = w->shape[0],
                                     .alpha = 1.0,
                                     .a = at(c->dy, c->dtype, first * w->shape[0]),
                                     .lda = w->shape[0],
                                     .b = c->node->saved,
                                     .ldb = w->shape[1],
                                     .beta = beta,
                                     .c = at(x->grad, x->dtype, first * w->shape[1]),
                                     .ldc = w->shape[1]});
}

static void linear_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *x = n->in[0], *w = n->in[1], *b = n->in[2], *y = n->out[0];
    double beta;
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    linear_lane context = {.tape = t,
                           .node = n,
                           .dtype = bk_operand_dtype(t, x->dtype),
                           .dy = operand(t, y, y->grad, t->scratch)};
    if (x->needs_grad) {
        bk_grad_slot(t, x, &beta);
        for (int64_t l = 0; l < t->lanes.count; l++)
            input_of_lane(&context, l, beta);
    }
    if (bk_operands_rounded(t, w->dtype))
        bk_arena_give(t->arena, n->saved, operand_bytes(t, w));
    if (w->needs_grad) {
        context.x = operand(t, x, x->data, t->scratch);
        bk_lane_gradient(t, &t->lanes, w, weight_of_lane, &context);
    }
    if (b && b->needs_grad)
        bk_lane_gradient(t, &t->lanes, b, bias_of_lane, &context);
    bk_arena_release(t->scratch, mark);
}

static bk_tensor *linear_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *x = bk_sample_input(s, BK_SHAPE(4, 3, 5));
    bk_tensor *w = bk_sample_input(s, BK_SHAPE(6, 5)), *b = bk_sample_input(s, BK_SHAPE(6));
    return bk_linear(t, x, w, b);
}

const bk_op bk_op_linear = {.name = "linear",
                            .shape = linear_shape,
                            .forward = linear_forward,
                            .backward = linear_backward,
                            .forgets_output = true,
                            .sample = linear_sample};

bk_tensor *bk_linear(bk_tape *t, bk_tensor *x, bk_tensor *w, bk_tensor *b)
{
    bk_tensor *in[] = {x, w, b};
    return bk_apply(t, &bk_op_linear, 3, in, 1, NULL, 0)->out[0];
}

/* ---- matmul: batched over the leading axes ---- */

typedef struct matmul_attributes {
    bool transposed; /* b is [...,N,K] */
} matmul_attributes;

static int64_t batches(const bk_tensor *x)
{
    return bk_rows(x) / x->shape[x->dims - 2];
}

static void matmul_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *a = n->in[0], *b = n->in[1];
    const matmul_attributes *m = n->attributes;
    bk_tensor *c = n->out[0];
    int last = a->dims - 1;
    (void)t;
    BK_ASSERT(a->dims == b->dims && a->dims >= 2, "%d and %d axes", a->dims, b->dims);
    BK_ASSERT(a->shape[last] == b->shape[m->transposed ? last : last - 1], "inner axes differ");
    c->dtype = a->dtype;
    c->dims = a->dims;
    memcpy(c->shape, a->shape, sizeof c->shape);
    c->shape[last] = b->shape[m->transposed ? last - 1 : last];
    BK_ASSERT(a->shape[last - 1] == 0 || b->shape[last - 1] == 0 || batches(a) == batches(b),
              "leading axes differ");
}

/* One product for each matrix of the batch: `g` holds the first one, steps are in elements. */
static void run_batch(bk_tape *t, bk_dtype dtype, int64_t count, const bk_gemm *g,
                      const int64_t step[3])
{
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    bk_gemm *all = BK_NEW(t->scratch, bk_gemm, count);
    size_t size = bk_dtype_size(dtype);
    for (int64_t i = 0; i < count; i++) {
        all[i] = *g;
        all[i].a = (const char *)g->a + (size_t)(i * step[0]) * size;
        all[i].b = (const char *)g->b + (size_t)(i * step[1]) * size;
        all[i].c = (char *)g->c + (size_t)(i * step[2]) * size;
    }
    bk_gemm_batch(dtype, count, all);
    bk_arena_release(t->scratch, mark);
}

static void matmul_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *a = n->in[0], *b = n->in[1], *c = n->out[0];
    bool transposed = ((const matmul_attributes *)n->attributes)->transposed;
    int64_t rows = a->shape[a->dims - 2], k = bk_cols(a), cols = bk_cols(c);
    bk_gemm g = {.tb = transposed ? BK_T : BK_N,
                 .m = rows,
                 .n = cols,
                 .k = k,
                 .alpha = 1.0,
                 .a = a->data,
                 .lda = k,
                 .b = b->data,
                 .ldb = bk_cols(b),
                 .c = c->data,
                 .ldc = cols};
    if (bk_count(c) > 0)
        run_batch(t, a->dtype, batches(c), &g, (int64_t[]){rows * k, k * cols, rows * cols});
}

static void matmul_backward(bk_tape *t, bk_node *n)
{
    bk_tensor *a = n->in[0], *b = n->in[1], *c = n->out[0];
    bool transposed = ((const matmul_attributes *)n->attributes)->transposed;
    int64_t rows = a->shape[a->dims - 2], k = bk_cols(a), cols = bk_cols(c);
    if (bk_count(c) == 0)
        return;
    if (a->needs_grad) {
        bk_gemm g = {.tb = transposed ? BK_N : BK_T,
                     .m = rows,
                     .n = k,
                     .k = cols,
                     .alpha = 1.0,
                     .a = c->grad,
                     .lda = cols,
                     .b = b->data,
                     .ldb = bk_cols(b),
                     .ldc = k};
        g.c = bk_grad_slot(t, a, &g.beta);
        run_batch(t, a->dtype, batches(c), &g, (int64_t[]){rows * cols, k * cols, rows * k});
    }
    if (b->needs_grad) {
        const bk_tensor *left = transposed ? c : a, *right = transposed ? a : c;
        const void *l = transposed ? c->grad : a->data, *r = transposed ? a->data : c->grad;
        bk_gemm g = {.ta = BK_T,
                     .m = bk_cols(left),
                     .n = bk_cols(right),
                     .k = rows,
                     .alpha = 1.0,
                     .a = l,
                     .lda = bk_cols(left),
                     .b = r,
                     .ldb = bk_cols(right),
                     .ldc = bk_cols(b)};
        g.c = bk_grad_slot(t, b, &g.beta);
        run_batch(t, a->dtype, batches(c), &g,
                  (int64_t[]){rows * bk_cols(left), rows * bk_cols(right), k * cols});
    }
}

static bk_tensor *matmul_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *a = bk_sample_input(s, BK_SHAPE(4, 3, 2)),
              *b = bk_sample_input(s, BK_SHAPE(4, 2, 5));
    return bk_matmul_nt(t, bk_matmul(t, a, b), bk_sample_input(s, BK_SHAPE(4, 4, 5)));
}

const bk_op bk_op_matmul = {.name = "matmul",
                            .shape = matmul_shape,
                            .forward = matmul_forward,
                            .backward = matmul_backward,
                            .sample = matmul_sample};

static bk_tensor *matmul(bk_tape *t, bk_tensor *a, bk_tensor *b, bool transposed)
{
    bk_tensor *in[] = {a, b};
    matmul_attributes attributes = {transposed};
    return bk_apply(t, &bk_op_matmul, 2, in, 1, &attributes, sizeof attributes)->out[0];
}

bk_tensor *bk_matmul(bk_tape *t, bk_tensor *a, bk_tensor *b)
{
    return matmul(t, a, b, false);
}

bk_tensor *bk_matmul_nt(bk_tape *t, bk_tensor *a, bk_tensor *b)
{
    return matmul(t, a, b, true);
}
