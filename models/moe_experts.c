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

static const void *operand_of_weight(const bk_experts *x, bk_expert_weight which, int64_t expert)
{
    return x->weight[(which == BK_EXPERT_W2) * x->count + expert];
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

/* Row i of operands. */
static char *operand(const bk_experts *x, const void *data, int64_t i, int64_t width)
{
    return (char *)(uintptr_t)data + (size_t)(i * width) * bk_dtype_size(x->operands);
}

static size_t operand_bytes(const bk_experts *x, int64_t rows, int64_t width)
{
    return (size_t)(rows * width) * bk_dtype_size(x->operands);
}

static size_t bytes_of(const bk_experts *x, int64_t rows, int64_t width)
{
    return (size_t)(rows * width) * bk_dtype_size(x->dtype);
}

/* ---- the blocks of a chunk together ---- */

typedef struct part {
    const bk_experts *experts;
    const bk_expert_block *first, *last;
    int64_t rows;
} part;

static part part_of(const bk_experts *x, int64_t chunk)
{
    const bk_dispatch *d = x->dispatch;
    part p = {.experts = x,
              .first = d->block + bk_chunk_first(x->count, d->chunks, chunk) * d->lanes,
              .last = d->block + bk_chunk_first(x->count, d->chunks, chunk + 1) * d->lanes};
    for (const bk_expert_block *b = p.first; b < p.last; b++)
        p.rows += b->rows;
    return p;
}

/* Rows of a block: those of first .. last-1 of the part, of which `before` stand before it. */
static void cut(const bk_expert_block *b, int64_t before, int64_t *first, int64_t *last)
{
    *first = b->first + (*first > before ? *first - before : 0);
    *last = b->first + (*last - before < b->rows ? *last - before : b->rows);
}

typedef struct rounding {
    part part;
    int64_t width;
    const char *from; /* [R,width] */
    char *to;         /* operands */
} rounding;

static void round_rows(void *context, int64_t first, int64_t last)
{
    const rounding *c = context;
    const bk_experts *x = c->part.experts;
    int64_t before = 0;
    for (const bk_expert_block *b = c->part.first; b < c->part.last; before += b->rows, b++) {
        int64_t r = first, end = last;
        for (cut(b, before, &r, &end); r < end; r++)
            bk_blas_round(c->width, (const float *)(const void *)row(x, c->from, r, c->width),
                          operand(x, c->to, r, c->width));
    }
}

/* The rows of a part as products read them; without rounding `to` is `from`. */
static void round_part(const part *p, int64_t width, const char *from, const char *to)
{
    rounding c = {*p, width, from, (char *)(uintptr_t)to};
    if (p->experts->rounded)
        bk_parallel(p->rows, 1, width, round_rows, &c);
}

/* to[rows,out] = from[rows,in] op(w): one product for each block, shared out together. */
static void multiply(bk_tape *t, const part *p, bk_expert_weight which, bk_transpose tb,
                     const char *from, char *to)
{
    const bk_experts *x = p->experts;
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    bk_gemm *product = BK_NEW(t->scratch, bk_gemm, p->last - p->first);
    int64_t count = 0;
    for (const bk_expert_block *b = p->first; b < p->last; b++) {
        const bk_tensor *w = leaf(x, which, b->expert);
        int64_t in = w->shape[tb == BK_T], out = w->shape[tb == BK_N];
        if (b->rows > 0)
            product[count++] = (bk_gemm){.tb = tb,
                                         .m = b->rows,
                                         .n = out,
                                         .k = in,
                                         .alpha = 1.0,
                                         .a = operand(x, from, b->first, in),
                                         .lda = in,
                                         .b = operand_of_weight(x, which, b->expert),
                                         .ldb = w->shape[1],
                                         .c = row(x, to, b->first, out),
                                         .ldc = out,
                                         .varying = true};
    }
    bk_gemm_batch(x->operands, count, product);
    bk_arena_release(t->scratch, mark);
}

/* ---- forward ---- */

typedef struct forward {
    part part;
    char *out; /* [R,C] */
} forward;

static void add_bias(const bk_experts *x, const bk_tensor *bias, char *to)
{
    if (bias)
        bk_vector(x->dtype)->add(bk_count(bias), bias->data, to);
}

/* active[F] = act(inner[F]), rounded where products want it. */
static void activate(const bk_experts *x, const char *inner, char *active)
{
    enum { PIECE = 512 };
    float piece[PIECE];
    if (!x->rounded) {
        bk_pointwise(x->dtype)->activate((int)x->activation, x->hidden, inner, active);
        return;
    }
    for (int64_t f = 0; f < x->hidden; f += PIECE) {
        int64_t n = x->hidden - f < PIECE ? x->hidden - f : PIECE;
        bk_pointwise(x->dtype)->activate((int)x->activation, n, inner + bytes_of(x, 1, f), piece);
        bk_blas_round(n, piece, active + operand_bytes(x, 1, f));
    }
}

/* inner += b1, active = act(inner). */
static void activate_rows(void *context, int64_t first, int64_t last)
{
    const part *p = &((const forward *)context)->part;
    const bk_experts *x = p->experts;
    int64_t before = 0;
    for (const bk_expert_block *b = p->first; b < p->last; before += b->rows, b++) {
        int64_t r = first, end = last;
        for (cut(b, before, &r, &end); r < end; r++) {
            char *inner = row(x, x->inner, r, x->hidden);
            add_bias(x, leaf(x, BK_EXPERT_B1, b->expert), inner);
            activate(x, inner, operand(x, x->active, r, x->hidden));
        }
    }
}

/* out += b2. */
static void finish_rows(void *context, int64_t first, int64_t last)
{
    const forward *c = context;
    const bk_experts *x = c->part.experts;
    int64_t before = 0;
    for (const bk_expert_block *b = c->part.first; b < c->part.last; before += b->rows, b++) {
        int64_t r = first, end = last;
        for (cut(b, before, &r, &end); r < end; r++)
            add_bias(x, leaf(x, BK_EXPERT_B2, b->expert), row(x, c->out, r, x->width));
    }
}

void bk_experts_precision(const bk_tape *t, bk_experts *x)
{
    x->rounded = bk_operands_rounded(t, x->dtype);
    x->operands = bk_operand_dtype(t, x->dtype);
}

void bk_experts_open(bk_tape *t, bk_experts *x)
{
    int64_t rows = x->dispatch->received;
    x->inner = bk_arena_alloc(t->arena, bytes_of(x, rows, x->hidden));
    x->active = bk_arena_alloc(t->arena, operand_bytes(x, rows, x->hidden));
    x->weight = BK_NEW(t->arena, const void *, 2 * x->count);
    for (int64_t i = 0; i < 2 * x->count; i++) {
        const bk_tensor *w = leaf(x, i < x->count ? BK_EXPERT_W1 : BK_EXPERT_W2, i % x->count);
        x->weight[i] =
            bk_operand(t, w->dtype, bk_count(w), w->data, t->recording ? t->arena : t->scratch);
    }
}

void bk_experts_close(bk_tape *t, bk_experts *x)
{
    for (int64_t i = 0; x->rounded && i < 2 * x->count; i++)
        bk_arena_give(t->arena, (void *)(uintptr_t)x->weight[i],
                      operand_bytes(x, x->width, x->hidden));
}

void bk_experts_forward(bk_tape *t, const bk_experts *x, int64_t chunk, void *out)
{
    forward c = {part_of(x, chunk), out};
    multiply(t, &c.part, BK_EXPERT_W1, BK_T, x->received, x->inner);
    bk_parallel(c.part.rows, 1, x->hidden, activate_rows, &c);
    multiply(t, &c.part, BK_EXPERT_W2, BK_T, x->active, out);
    bk_parallel(c.part.rows, 1, x->width, finish_rows, &c);
}

/* ---- backward ---- */

typedef struct backward {
    const bk_experts_back *back;
    part part;
    int64_t expert; /* the weight whose gradient is wanted */
    bk_expert_weight which;
} backward;

/* Its number among all blocks. */
static int64_t number_of(const backward *c, const bk_expert_block *b)
{
    return b - c->part.experts->dispatch->block;
}

/* db2 of each block, columns first .. last-1. */
static void sum_outer(void *context, int64_t first, int64_t last)
{
    const backward *c = context;
    const bk_experts *x = c->part.experts;
    for (const bk_expert_block *b = c->part.first; b < c->part.last; b++) {
        char *sum = at(x, c->back->db2, number_of(c, b), x->width, first);
        memset(sum, 0, bytes_of(x, 1, last - first));
        for (int64_t r = b->first; r < b->first + b->rows; r++)
            bk_vector(x->dtype)->add(last - first, at(x, c->back->g, r, x->width, first), sum);
    }
}

/* ga *= act'(inner), and db1 of each block, columns first .. last-1. */
static void slope_and_sum(void *context, int64_t first, int64_t last)
{
    const backward *c = context;
    const bk_experts *x = c->part.experts;
    for (const bk_expert_block *b = c->part.first; b < c->part.last; b++) {
        char *sum = at(x, c->back->db1, number_of(c, b), x->hidden, first);
        memset(sum, 0, bytes_of(x, 1, last - first));
        for (int64_t r = b->first; r < b->first + b->rows; r++) {
            char *ga = at(x, c->back->ga, r, x->hidden, first);
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
    const bk_experts *x = c->part.experts;
    int64_t i = c->expert * x->dispatch->lanes + lane;
    const bk_expert_block *b = &x->dispatch->block[i];
    bool first = c->which == BK_EXPERT_W1 || c->which == BK_EXPERT_B1;
    int64_t m = first ? x->hidden : x->width, n = first ? x->width : x->hidden;
    if (c->which == BK_EXPERT_B1 || c->which == BK_EXPERT_B2) {
        memcpy(out, row(x, first ? c->back->db1 : c->back->db2, i, m), bytes_of(x, 1, m));
        return;
    }
    const char *left = first ? c->back->ga_operand : c->back->g_operand,
               *right = first ? x->received : x->active;
    bk_gemm_run(x->operands, &(bk_gemm){.ta = BK_T,
                                        .m = m,
                                        .n = n,
                                        .k = b->rows,
                                        .alpha = 1.0,
                                        .a = operand(x, left, b->first, m),
                                        .lda = m,
                                        .b = operand(x, right, b->first, n),
                                        .ldb = n,
                                        .c = out,
                                        .ldc = n,
                                        .varying = true});
}

bk_experts_back bk_experts_back_open(bk_tape *t, const bk_experts *x, const void *g, void *dx)
{
    const bk_dispatch *d = x->dispatch;
    char *ga = bk_arena_alloc(t->scratch, bytes_of(x, d->received, x->hidden));
    bk_experts_back b = {.experts = x,
                         .g = g,
                         .dx = dx,
                         .ga = ga,
                         .g_operand = g,
                         .ga_operand = ga,
                         .db2 = bk_arena_alloc(t->scratch, bytes_of(x, d->blocks, x->width)),
                         .db1 = bk_arena_alloc(t->scratch, bytes_of(x, d->blocks, x->hidden))};
    if (x->rounded) {
        b.g_operand = bk_arena_alloc(t->scratch, operand_bytes(x, d->received, x->width));
        b.ga_operand = bk_arena_alloc(t->scratch, operand_bytes(x, d->received, x->hidden));
    }
    return b;
}

void bk_experts_inputs_back(bk_tape *t, const bk_experts_back *b, int64_t chunk)
{
    const bk_experts *x = b->experts;
    backward c = {.back = b, .part = part_of(x, chunk)};
    round_part(&c.part, x->width, b->g, b->g_operand);
    multiply(t, &c.part, BK_EXPERT_W2, BK_N, b->g_operand, b->ga);
    bk_parallel(x->hidden, BK_PARALLEL_VECTOR, c.part.rows, slope_and_sum, &c);
    round_part(&c.part, x->hidden, b->ga, b->ga_operand);
    multiply(t, &c.part, BK_EXPERT_W1, BK_N, b->ga_operand, b->dx);
}

void bk_experts_weights_back(bk_tape *t, const bk_experts_back *b, int64_t chunk)
{
    const bk_experts *x = b->experts;
    int64_t lanes = x->dispatch->lanes, chunks = x->dispatch->chunks;
    bk_lanes group = {.total = lanes, .count = lanes, .batch = lanes};
    backward c = {.back = b, .part = part_of(x, chunk)};
    int64_t first = bk_chunk_first(x->count, chunks, chunk);
    int64_t last = bk_chunk_first(x->count, chunks, chunk + 1);
    bk_parallel(x->width, BK_PARALLEL_VECTOR, c.part.rows, sum_outer, &c);
    for (c.expert = first; c.expert < last; c.expert++)
        for (c.which = 0; c.which < BK_EXPERT_WEIGHTS; c.which++) {
            bk_tensor *w = leaf(x, c.which, c.expert);
            if (w && w->needs_grad)
                bk_lane_gradient(t, &group, w, gradient_of_lane, &c);
        }
}
