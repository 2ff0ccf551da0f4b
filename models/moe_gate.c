#include "models/moe_gate.h"

#include "core/ops.h"
#include "core/parallel.h"
#include "models/moe_kernel.h"

#include <string.h>

/* Column `c` of row i of something like x. */
static char *at(const bk_gate *g, const void *data, int64_t i, int64_t c)
{
    return (char *)(uintptr_t)data + (size_t)(i * bk_cols(g->x) + c) * bk_dtype_size(g->x->dtype);
}

/* ---- logits ---- */

typedef struct logits {
    const bk_gate *gate;
    const double *panel;
    double *h; /* [T,E] */
} logits;

static void logits_of(void *context, int64_t first, int64_t last)
{
    const logits *c = context;
    const bk_gate *g = c->gate;
    int64_t experts = bk_rows(g->weight);
    bk_moe_of(g->x->dtype)
        ->logits(last - first, bk_cols(g->x), experts, at(g, g->x->data, first, 0), c->panel,
                 c->h + first * experts);
    for (int64_t i = first; i < last; i++)
        if (g->mask && g->mask[i] == 0)
            memset(c->h + i * experts, 0, (size_t)experts * sizeof *c->h);
}

double *bk_gate_logits(bk_tape *t, const bk_gate *gate)
{
    int64_t tokens = bk_rows(gate->x), width = bk_cols(gate->x), experts = bk_rows(gate->weight);
    double *h = BK_NEW(t->arena, double, tokens *experts);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    double *panel = BK_NEW(t->scratch, double, BK_MOE_PANEL(experts) * width);
    bk_moe_of(gate->x->dtype)->panels(experts, width, gate->weight->data, panel);
    bk_parallel(tokens, 1, experts * width, logits_of, &(logits){gate, panel, h});
    bk_arena_release(t->scratch, mark);
    return h;
}

/* ---- backward ---- */

typedef struct gradient {
    bk_tape *tape;
    const bk_gate *gate;
    const double *gh;
    int64_t first, last; /* tokens of the lane */
    double *sum;         /* [E,C] */
    void *out;
} gradient;

/* Channels first .. last-1: each sum runs over the tokens in order. */
static void sum_channels(void *context, int64_t first, int64_t last)
{
    const gradient *c = context;
    const bk_gate *g = c->gate;
    const bk_moe_kernels *kernels = bk_moe_of(g->x->dtype);
    int64_t experts = bk_rows(g->weight), width = bk_cols(g->x), n = last - first;
    for (int64_t e = 0; e < experts; e++)
        memset(c->sum + e * width + first, 0, (size_t)n * sizeof *c->sum);
    for (int64_t i = c->first; i < c->last; i++)
        kernels->outer(experts, n, width, c->gh + i * experts, at(g, g->x->data, i, first),
                       c->sum + first);
    for (int64_t e = 0; e < experts; e++)
        kernels->round(n, c->sum + e * width + first, at(g, c->out, e, first));
}

static void gradient_of_lane(void *context, int64_t l, void *out)
{
    gradient *c = context;
    const bk_lanes *lanes = &c->tape->lanes;
    int64_t tokens = bk_rows(c->gate->x);
    bk_arena_mark mark = bk_arena_get_mark(c->tape->scratch);
    c->first = bk_lane_row(lanes, tokens, l);
    c->last = bk_lane_row(lanes, tokens, l + 1);
    c->sum = BK_NEW(c->tape->scratch, double, bk_count(c->gate->weight));
    c->out = out;
    bk_parallel(bk_cols(c->gate->x), BK_PARALLEL_VECTOR, c->last - c->first, sum_channels, c);
    bk_arena_release(c->tape->scratch, mark);
}

void bk_gate_gradient(bk_tape *t, const bk_gate *gate, const double *gh)
{
    gradient c = {.tape = t, .gate = gate, .gh = gh};
    bk_lane_gradient(t, &t->lanes, gate->weight, gradient_of_lane, &c);
}
