#include "models/moe_experts.h"

#include "core/blas.h"
#include "core/ops/pointwise_kernel.h"
#include "core/vector.h"

#include <string.h>

static bk_tensor *leaf(const bk_experts *x, bk_expert_weight which, int64_t expert)
{
    return x->leaf[which * x->count + expert];
}

/* Row i of rows of `width` numbers. */
static char *row(const bk_experts *x, const void *data, int64_t i, int64_t width)
{
    return (char *)(uintptr_t)data + (size_t)(i * width) * bk_dtype_size(x->dtype);
}

static size_t bytes_of(const bk_experts *x, int64_t rows, int64_t width)
{
    return (size_t)(rows * width) * bk_dtype_size(x->dtype);
}

/* ---- forward ---- */

/* y[rows,out] = x[rows,in] w[out,in]^T + b. */
static void affine(const bk_experts *x, int64_t rows, const bk_tensor *w, const bk_tensor *b,
                   const void *from, char *to)
{
    int64_t out = w->shape[0], in = w->shape[1];
    bk_gemm_run(x->dtype, &(bk_gemm){.tb = BK_T,
                                     .m = rows,
                                     .n = out,
                                     .k = in,
                                     .alpha = 1.0,
                                     .a = from,
                                     .lda = in,
                                     .b = w->data,
                                     .ldb = in,
                                     .c = to,
                                     .ldc = out,
                                     .varying = true});
    for (int64_t i = 0; b && i < rows; i++)
        bk_vector(x->dtype)->add(out, b->data, row(x, to, i, out));
}

static void run_block(const bk_experts *x, const bk_expert_block *b, char *out)
{
    int64_t e = b->expert;
    char *inner = row(x, x->inner, b->first, x->hidden),
         *active = row(x, x->active, b->first, x->hidden);
    affine(x, b->rows, leaf(x, BK_EXPERT_W1, e), leaf(x, BK_EXPERT_B1, e),
           row(x, x->received, b->first, x->width), inner);
    bk_pointwise(x->dtype)->activate((int)x->activation, b->rows * x->hidden, inner, active);
    affine(x, b->rows, leaf(x, BK_EXPERT_W2, e), leaf(x, BK_EXPERT_B2, e), active,
           row(x, out, b->first, x->width));
}

void bk_experts_forward(bk_tape *t, bk_experts *x, void *out)
{
    const bk_dispatch *d = x->dispatch;
    x->inner = bk_arena_alloc(t->arena, bytes_of(x, d->received, x->hidden));
    x->active = bk_arena_alloc(t->arena, bytes_of(x, d->received, x->hidden));
    for (int64_t i = 0; i < d->blocks; i++)
        if (d->block[i].rows > 0)
            run_block(x, &d->block[i], out);
}

/* ---- backward ---- */

/* Gradients behind the two maps of the experts, and the weight whose gradient is wanted. */
typedef struct backward {
    const bk_experts *experts;
    const char *g; /* [R,C] behind W2 */
    char *ga;      /* [R,F] behind W1, before the activation */
    int64_t expert;
    bk_expert_weight which;
} backward;

static void sum_rows(const bk_experts *x, int64_t rows, int64_t width, const char *from, char *out)
{
    memset(out, 0, bytes_of(x, 1, width));
    for (int64_t i = 0; i < rows; i++)
        bk_vector(x->dtype)->add(width, row(x, from, i, width), out);
}

/* One lane's part of a weight's gradient: ga^T x, sum ga, g^T h, sum g. */
static void gradient_of_lane(void *context, int64_t lane, void *out)
{
    const backward *c = context;
    const bk_experts *x = c->experts;
    const bk_expert_block *b = &x->dispatch->block[c->expert * x->dispatch->lanes + lane];
    bool first = c->which == BK_EXPERT_W1 || c->which == BK_EXPERT_B1;
    int64_t m = first ? x->hidden : x->width, n = first ? x->width : x->hidden;
    const char *left = row(x, first ? c->ga : c->g, b->first, m),
               *right = row(x, first ? x->received : x->active, b->first, n);
    if (c->which == BK_EXPERT_B1 || c->which == BK_EXPERT_B2) {
        sum_rows(x, b->rows, m, left, out);
        return;
    }
    bk_gemm_run(x->dtype, &(bk_gemm){.ta = BK_T,
                                     .m = m,
                                     .n = n,
                                     .k = b->rows,
                                     .alpha = 1.0,
                                     .a = left,
                                     .lda = m,
                                     .b = right,
                                     .ldb = n,
                                     .c = out,
                                     .ldc = n,
                                     .varying = true});
}

/* y[rows,in] = x[rows,out] w[out,in]. */
static void through(const bk_experts *x, int64_t rows, const bk_tensor *w, const void *from,
                    void *to)
{
    int64_t out = w->shape[0], in = w->shape[1];
    bk_gemm_run(x->dtype, &(bk_gemm){.m = rows,
                                     .n = in,
                                     .k = out,
                                     .alpha = 1.0,
                                     .a = from,
                                     .lda = out,
                                     .b = w->data,
                                     .ldb = in,
                                     .c = to,
                                     .ldc = in,
                                     .varying = true});
}

/* ga = (g W2) act'(inner) and dx = ga W1 on one block; gh[R,F] is room. */
static void block_back(const backward *c, const bk_expert_block *b, char *gh, char *dx)
{
    const bk_experts *x = c->experts;
    char *ga = row(x, c->ga, b->first, x->hidden);
    through(x, b->rows, leaf(x, BK_EXPERT_W2, b->expert), row(x, c->g, b->first, x->width), gh);
    memset(ga, 0, bytes_of(x, b->rows, x->hidden));
    bk_pointwise(x->dtype)->activate_back((int)x->activation, b->rows * x->hidden,
                                          row(x, x->inner, b->first, x->hidden), gh, ga);
    through(x, b->rows, leaf(x, BK_EXPERT_W1, b->expert), ga, row(x, dx, b->first, x->width));
}

void bk_experts_backward(bk_tape *t, const bk_experts *x, const void *g, void *dx)
{
    const bk_dispatch *d = x->dispatch;
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    size_t bytes = bytes_of(x, d->received, x->hidden);
    backward c = {.experts = x, .g = g, .ga = bk_arena_alloc(t->scratch, bytes)};
    char *gh = bk_arena_alloc(t->scratch, bytes);
    for (int64_t i = 0; i < d->blocks; i++)
        if (d->block[i].rows > 0)
            block_back(&c, &d->block[i], gh, dx);
    bk_lanes group = {.total = d->lanes, .count = d->lanes, .batch = d->lanes};
    for (c.expert = 0; c.expert < x->count; c.expert++)
        for (c.which = 0; c.which < BK_EXPERT_WEIGHTS; c.which++) {
            bk_tensor *w = leaf(x, c.which, c.expert);
            if (w && w->needs_grad)
                bk_lane_gradient(t, &group, w, gradient_of_lane, &c);
        }
    bk_arena_release(t->scratch, mark);
}
