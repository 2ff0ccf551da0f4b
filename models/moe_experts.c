#include "models/moe_experts.h"

#include "core/blas.h"
#include "core/ops/pointwise_kernel.h"
#include "core/parallel.h"
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

/* Column `first` of it. */
static char *at(const bk_experts *x, const void *data, int64_t i, int64_t width, int64_t first)
{
    return row(x, data, i, width) + (size_t)first * bk_dtype_size(x->dtype);
}

static size_t bytes_of(const bk_experts *x, int64_t rows, int64_t width)
{
    return (size_t)(rows * width) * bk_dtype_size(x->dtype);
}

/* ---- all blocks at once ---- */

/* to[rows,out] = from[rows,in] op(w): one product for each block, shared out together. */
static void multiply(bk_tape *t, const bk_experts *x, bk_expert_weight which, bk_transpose tb,
                     const char *from, char *to)
{
    const bk_dispatch *d = x->dispatch;
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    bk_gemm *product = BK_NEW(t->scratch, bk_gemm, d->blocks);
    int64_t count = 0;
    for (const bk_expert_block *b = d->block; b < d->block + d->blocks; b++) {
        const bk_tensor *w = leaf(x, which, b->expert);
        int64_t in = w->shape[tb == BK_T], out = w->shape[tb == BK_N];
        if (b->rows > 0)
            product[count++] = (bk_gemm){.tb = tb,
                                         .m = b->rows,
                                         .n = out,
                                         .k = in,
                                         .alpha = 1.0,
                                         .a = row(x, from, b->first, in),
                                         .lda = in,
                                         .b = w->data,
                                         .ldb = w->shape[1],
                                         .c = row(x, to, b->first, out),
                                         .ldc = out,
                                         .varying = true};
    }
    bk_gemm_batch(x->dtype, count, product);
    bk_arena_release(t->scratch, mark);
}

/* The rows first .. last-1 of a block, as [*first, *last): empty where it has none of them. */
static void cut(const bk_expert_block *b, int64_t *first, int64_t *last)
{
    *first = *first > b->first ? *first : b->first;
    *last = *last < b->first + b->rows ? *last : b->first + b->rows;
}

/* ---- forward ---- */

typedef struct forward {
    const bk_experts *experts;
    char *out; /* [R,C] */
} forward;

static void add_bias(const bk_experts *x, const bk_tensor *bias, char *to)
{
    if (bias)
        bk_vector(x->dtype)->add(bk_count(bias), bias->data, to);
}

/* inner += b1, active = act(inner). */
static void activate_rows(void *context, int64_t first, int64_t last)
{
    const bk_experts *x = ((const forward *)context)->experts;
    for (int64_t i = 0; i < x->dispatch->blocks; i++) {
        const bk_expert_block *b = &x->dispatch->block[i];
        int64_t r = first, end = last;
        for (cut(b, &r, &end); r < end; r++) {
            char *inner = row(x, x->inner, r, x->hidden);
            add_bias(x, leaf(x, BK_EXPERT_B1, b->expert), inner);
            bk_pointwise(x->dtype)->activate((int)x->activation, x->hidden, inner,
                                             row(x, x->active, r, x->hidden));
        }
    }
}

/* out += b2. */
static void finish_rows(void *context, int64_t first, int64_t last)
{
    const forward *c = context;
    const bk_experts *x = c->experts;
    for (int64_t i = 0; i < x->dispatch->blocks; i++) {
        const bk_expert_block *b = &x->dispatch->block[i];
        int64_t r = first, end = last;
        for (cut(b, &r, &end); r < end; r++)
            add_bias(x, leaf(x, BK_EXPERT_B2, b->expert), row(x, c->out, r, x->width));
    }
}

void bk_experts_forward(bk_tape *t, bk_experts *x, void *out)
{
    int64_t rows = x->dispatch->received;
    forward c = {x, out};
    x->inner = bk_arena_alloc(t->arena, bytes_of(x, rows, x->hidden));
    x->active = bk_arena_alloc(t->arena, bytes_of(x, rows, x->hidden));
    multiply(t, x, BK_EXPERT_W1, BK_T, x->received, x->inner);
    bk_parallel(rows, 1, x->hidden, activate_rows, &c);
    multiply(t, x, BK_EXPERT_W2, BK_T, x->active, out);
    bk_parallel(rows, 1, x->width, finish_rows, &c);
}

/* ---- backward ---- */

/* Gradients behind the two maps of the experts, their sums over the rows of each block, and the
 * weight whose gradient is wanted. */
typedef struct backward {
    const bk_experts *experts;
    const char *g;   /* [R,C] behind W2 */
    char *ga;        /* [R,F] behind the activation, then before it */
    char *db2, *db1; /* [blocks,C], [blocks,F] */
    int64_t expert;
    bk_expert_weight which;
} backward;

/* db2 of each block, columns first .. last-1. */
static void sum_outer(void *context, int64_t first, int64_t last)
{
    const backward *c = context;
    const bk_experts *x = c->experts;
    for (int64_t i = 0; i < x->dispatch->blocks; i++) {
        const bk_expert_block *b = &x->dispatch->block[i];
        char *sum = at(x, c->db2, i, x->width, first);
        memset(sum, 0, bytes_of(x, 1, last - first));
        for (int64_t r = b->first; r < b->first + b->rows; r++)
            bk_vector(x->dtype)->add(last - first, at(x, c->g, r, x->width, first), sum);
    }
}

/* ga *= act'(inner), and db1 of each block, columns first .. last-1. */
static void slope_and_sum(void *context, int64_t first, int64_t last)
{
    const backward *c = context;
    const bk_experts *x = c->experts;
    for (int64_t i = 0; i < x->dispatch->blocks; i++) {
        const bk_expert_block *b = &x->dispatch->block[i];
        char *sum = at(x, c->db1, i, x->hidden, first);
        memset(sum, 0, bytes_of(x, 1, last - first));
        for (int64_t r = b->first; r < b->first + b->rows; r++) {
            char *ga = at(x, c->ga, r, x->hidden, first);
            bk_pointwise(x->dtype)->times_slope((int)x->activation, last - first,
                                                at(x, x->inner, r, x->hidden, first), ga);
            bk_vector(x->dtype)->add(last - first, ga, sum);
        }
    }
}

/* One lane's part of a weight's gradient: ga^T x, sum ga, g^T h, sum g. */
static void gradient_of_lane(void *context, int64_t lane, void *out)
{
    const backward *c = context;
    const bk_experts *x = c->experts;
    int64_t i = c->expert * x->dispatch->lanes + lane;
    const bk_expert_block *b = &x->dispatch->block[i];
    bool first = c->which == BK_EXPERT_W1 || c->which == BK_EXPERT_B1;
    int64_t m = first ? x->hidden : x->width, n = first ? x->width : x->hidden;
    if (c->which == BK_EXPERT_B1 || c->which == BK_EXPERT_B2) {
        memcpy(out, row(x, first ? c->db1 : c->db2, i, m), bytes_of(x, 1, m));
        return;
    }
    bk_gemm_run(x->dtype, &(bk_gemm){.ta = BK_T,
                                     .m = m,
                                     .n = n,
                                     .k = b->rows,
                                     .alpha = 1.0,
                                     .a = row(x, first ? c->ga : c->g, b->first, m),
                                     .lda = m,
                                     .b = row(x, first ? x->received : x->active, b->first, n),
                                     .ldb = n,
                                     .c = out,
                                     .ldc = n,
                                     .varying = true});
}

static void weight_gradients(bk_tape *t, backward *c)
{
    const bk_experts *x = c->experts;
    int64_t lanes = x->dispatch->lanes;
    bk_lanes group = {.total = lanes, .count = lanes, .batch = lanes};
    for (c->expert = 0; c->expert < x->count; c->expert++)
        for (c->which = 0; c->which < BK_EXPERT_WEIGHTS; c->which++) {
            bk_tensor *w = leaf(x, c->which, c->expert);
            if (w && w->needs_grad)
                bk_lane_gradient(t, &group, w, gradient_of_lane, c);
        }
}

void bk_experts_backward(bk_tape *t, const bk_experts *x, const void *g, void *dx)
{
    const bk_dispatch *d = x->dispatch;
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    backward c = {.experts = x,
                  .g = g,
                  .ga = bk_arena_alloc(t->scratch, bytes_of(x, d->received, x->hidden)),
                  .db2 = bk_arena_alloc(t->scratch, bytes_of(x, d->blocks, x->width)),
                  .db1 = bk_arena_alloc(t->scratch, bytes_of(x, d->blocks, x->hidden))};
    bk_parallel(x->width, BK_PARALLEL_VECTOR, d->received, sum_outer, &c);
    multiply(t, x, BK_EXPERT_W2, BK_N, g, c.ga);
    bk_parallel(x->hidden, BK_PARALLEL_VECTOR, d->received, slope_and_sum, &c);
    multiply(t, x, BK_EXPERT_W1, BK_N, c.ga, dx);
    weight_gradients(t, &c);
    bk_arena_release(t->scratch, mark);
}
