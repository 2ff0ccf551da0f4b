/* The layer as one node of the tape: route, send rows to their experts, run them on (expert, lane)
 * blocks, send back, weigh and add in slot order.  Weights stay at the source.  Routes are kept,
 * never recomputed. */
#include "models/moe.h"

#include "core/log.h"
#include "core/parallel.h"
#include "core/vector.h"
#include "dist/collective.h"
#include "models/moe_experts.h"
#include "models/moe_kernel.h"

#include <string.h>

int bk_moe_owner(int64_t e, int64_t experts, int ep)
{
    int64_t share = experts / ep, more = experts % ep;
    return (int)(e < more * (share + 1) ? e / (share + 1)
                                        : more + (e - more * (share + 1)) / share);
}

void bk_moe_experts_of(int coordinate, int64_t experts, int ep, int64_t *first, int64_t *count)
{
    int64_t share = experts / ep, more = experts % ep;
    *count = share + (coordinate < more);
    *first = coordinate * share + (coordinate < more ? coordinate : more);
}

/* ---- what a call keeps ---- */

typedef struct saved {
    bk_moe_args args;
    bk_route_args route_args;
    bk_route route;
    bk_dispatch dispatch;
    bk_experts experts;
    char *returned; /* [n,C] the experts' outputs, in the order of dispatch */
    int64_t width;  /* C */
    double clock, seconds[BK_MOE_PHASES];
    int64_t bytes; /* of rows that left this rank */
} saved;

enum { X, GATE, EXPERT_INPUTS }; /* then the leaves of the experts */
enum { Y, AUX, Z, OUTPUTS };

static char *row(const void *data, const bk_tensor *like, int64_t i, int64_t width)
{
    return (char *)(uintptr_t)data + (size_t)(i * width) * bk_dtype_size(like->dtype);
}

static size_t row_bytes(const saved *s)
{
    return (size_t)s->width * bk_dtype_size(s->experts.dtype);
}

/* Padding is passed over, whatever stands there. */
static bool is_real(const saved *s, int64_t token)
{
    return !s->args.mask || s->args.mask[token] != 0;
}

/* Books the time since the last call. */
static void lap(saved *s, bk_moe_phase phase)
{
    double now = bk_seconds();
    s->seconds[phase] += now - s->clock;
    s->clock = now;
}

/* Rows to their experts, or (back) from them; on one rank they are there. */
static void exchange(saved *s, bool back, const void *rows, void *received)
{
    if (rows == received)
        return;
    int64_t before = bk_traffic_now().bytes;
    if (back)
        bk_dispatch_return(&s->dispatch, row_bytes(s), rows, received);
    else
        bk_dispatch_send(&s->dispatch, row_bytes(s), rows, received);
    s->bytes += bk_traffic_now().bytes - before;
    lap(s, BK_MOE_EXCHANGE);
}

/* After forward, and with more of both after backward. */
static void note_costs(const saved *s, bool training)
{
    if (!s->args.state || !training)
        return;
    memcpy(s->args.state->seconds, s->seconds, sizeof s->seconds);
    s->args.state->counter[BK_MOE_BYTES] = s->bytes;
}

/* ---- forward ---- */

typedef struct gating {
    const saved *saved;
    const bk_tensor *x;
    const double *panel;
    double *h; /* [T,E] */
} gating;

static void logits_of(void *context, int64_t first, int64_t last)
{
    const gating *c = context;
    int64_t experts = c->saved->args.experts, width = c->saved->width;
    bk_moe_of(c->x->dtype)
        ->logits(last - first, width, experts, row(c->x->data, c->x, first, width), c->panel,
                 c->h + first * experts);
    for (int64_t i = first; i < last; i++)
        if (!is_real(c->saved, i))
            memset(c->h + i * experts, 0, (size_t)experts * sizeof *c->h);
}

static double *make_logits(bk_tape *t, const bk_node *n, const saved *s)
{
    const bk_tensor *x = n->in[X];
    int64_t tokens = bk_rows(x), experts = s->args.experts;
    double *h = BK_NEW(t->arena, double, tokens *experts);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    double *panel = BK_NEW(t->scratch, double, BK_MOE_PANEL(experts) * s->width);
    bk_moe_of(x->dtype)->panels(experts, s->width, n->in[GATE]->data, panel);
    bk_parallel(tokens, 1, experts * s->width, logits_of, &(gating){s, x, panel, h});
    bk_arena_release(t->scratch, mark);
    return h;
}

static void route(bk_tape *t, const bk_node *n, saved *s)
{
    const bk_moe_args *a = &s->args;
    s->route_args = (bk_route_args){.logits = make_logits(t, n, s),
                                    .mask = a->mask,
                                    .tokens = bk_rows(n->in[X]),
                                    .experts = a->experts,
                                    .k = a->k,
                                    .valid = a->valid,
                                    .first_token = a->first_token,
                                    .noise = a->noise,
                                    .bias = a->bias,
                                    .reducer = a->route,
                                    .lanes = &t->lanes,
                                    .blocks = a->blocks,
                                    .training = t->training,
                                    .seed = t->seed,
                                    .step = t->step,
                                    .layer = a->layer,
                                    .config = a->router_config,
                                    .arena = t->arena,
                                    .scratch = t->scratch,
                                    .attributes = a->attributes};
    a->router->route(&s->route_args, &s->route);
    s->route_args.attributes = NULL;
}

static void measure(const bk_node *n, saved *s)
{
    bk_route_losses losses = {.aux = s->args.aux != BK_AUX_NONE ? n->out[AUX]->data : NULL,
                              .z = s->args.z ? n->out[Z]->data : NULL};
    bk_route_measure(&s->route_args, &s->route, &losses);
    if (!s->args.state || !s->route_args.training)
        return;
    bk_moe_state_count(s->args.state, &s->route_args, &s->route, losses.aux, losses.z);
}

/* Rows between the tokens and the order of dispatch. */
typedef struct moving {
    const bk_node *node;
    const saved *saved;
    char *packed;     /* [n,C] */
    double *gw;       /* [T,k] */
    const double *gh; /* [T,E] */
    double beta;      /* 0: the gradient of x is written, 1: added to */
} moving;

static void copy_rows(void *context, int64_t first, int64_t last)
{
    const moving *c = context;
    const saved *s = c->saved;
    const bk_tensor *x = c->node->in[X];
    for (int64_t i = first; i < last; i++)
        memcpy(row(c->packed, x, i, s->width),
               row(x->data, x, s->dispatch.slot[i] / s->args.k, s->width), row_bytes(s));
}

/* Room for the rows at their experts: one rank keeps the packed rows themselves. */
static char *room_at_experts(const saved *s, bk_arena *arena, char *packed)
{
    return bk_comm_size(s->args.ep) == 1
               ? packed
               : bk_arena_alloc(arena, (size_t)s->dispatch.received * row_bytes(s));
}

/* y_t = sum_s w_ts ret_ts, in slot order. */
static void combine_tokens(void *context, int64_t first, int64_t last)
{
    const moving *c = context;
    const saved *s = c->saved;
    const bk_tensor *y = c->node->out[Y];
    for (int64_t t = first; t < last; t++) {
        char *to = row(y->data, y, t, s->width);
        bool written = false;
        for (int64_t i = t * s->args.k; i < (t + 1) * s->args.k; i++) {
            if (s->dispatch.place[i] < 0)
                continue;
            (written ? bk_vector(y->dtype)->axpy : bk_moe_of(y->dtype)->weigh)(
                s->width, s->route.weight[i], row(s->returned, y, s->dispatch.place[i], s->width),
                to);
            written = true;
        }
        if (!written)
            memset(to, 0, row_bytes(s));
    }
}

static void shape(bk_tape *t, bk_node *n)
{
    const bk_moe_args *a = n->attributes;
    const bk_tensor *x = n->in[X];
    BK_ASSERT(x->dims == 2 && bk_cols(n->in[GATE]) == x->shape[1], "x[T,C], gate[E,C]");
    n->out[Y]->dtype = x->dtype;
    n->out[Y]->dims = 2;
    memcpy(n->out[Y]->shape, x->shape, sizeof x->shape);
    for (int i = AUX; i <= Z; i++) {
        bool present = i == AUX ? a->aux != BK_AUX_NONE : a->z;
        n->out[i]->dtype = BK_F64;
        n->out[i]->dims = 1;
        n->out[i]->shape[0] = present ? t->lanes.count : 0;
    }
}

static saved *keep(bk_tape *t, bk_node *n)
{
    saved *s = n->saved = BK_ZNEW(t->arena, saved, 1);
    s->args = *(const bk_moe_args *)n->attributes;
    s->width = bk_cols(n->in[X]);
    s->experts = (bk_experts){.dtype = n->in[X]->dtype,
                              .count = s->args.count,
                              .width = s->width,
                              .hidden = s->args.hidden,
                              .activation = s->args.activation,
                              .leaf = n->in + EXPERT_INPUTS,
                              .dispatch = &s->dispatch};
    s->clock = bk_seconds();
    return s;
}

static void forward(bk_tape *t, bk_node *n)
{
    saved *s = keep(t, n);
    bk_dispatch *d = &s->dispatch;
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    route(t, n, s);
    measure(n, s);
    lap(s, BK_MOE_ROUTE);
    *d = bk_dispatch_make(t, s->args.ep, &s->route_args, s->route.index);
    bool alone = bk_comm_size(s->args.ep) == 1;
    moving c = {.node = n, .saved = s};
    c.packed = bk_arena_alloc(alone ? t->arena : t->scratch, (size_t)d->sent * row_bytes(s));
    bk_parallel(d->sent, 1, s->width, copy_rows, &c);
    lap(s, BK_MOE_PACK);
    s->experts.received = room_at_experts(s, t->arena, c.packed);
    exchange(s, false, c.packed, s->experts.received);
    s->returned = bk_arena_alloc(t->arena, (size_t)d->sent * row_bytes(s));
    char *out = room_at_experts(s, t->scratch, s->returned);
    bk_experts_forward(t, &s->experts, out);
    lap(s, BK_MOE_GEMM);
    exchange(s, true, out, s->returned);
    bk_parallel(s->route_args.tokens, 1, s->args.k * s->width, combine_tokens, &c);
    lap(s, BK_MOE_COMBINE);
    bk_arena_release(t->scratch, mark);
    if (s->args.state && t->training)
        s->args.state->received = d->received;
    note_costs(s, t->training);
}

/* ---- backward ---- */

/* Rows w_ts dy_t in the order of dispatch, and gw_ts = <dy_t, ret_ts>. */
static void weigh_gradients(void *context, int64_t first, int64_t last)
{
    const moving *c = context;
    const saved *s = c->saved;
    const bk_tensor *y = c->node->out[Y];
    for (int64_t i = first; i < last; i++) {
        int64_t slot = s->dispatch.slot[i];
        const char *dy = row(y->grad, y, slot / s->args.k, s->width);
        bk_moe_of(y->dtype)->weigh(s->width, s->route.weight[slot], dy,
                                   row(c->packed, y, i, s->width));
        c->gw[slot] = bk_vector(y->dtype)->dot(s->width, dy, row(s->returned, y, i, s->width));
    }
}

typedef struct gate_lane {
    bk_tape *tape;
    const bk_node *node;
    const saved *saved;
    const double *gh;
    int64_t first, last; /* tokens of the lane */
    double *sum;         /* [E,C] */
    void *out;
} gate_lane;

static void gate_channels(void *context, int64_t first, int64_t last)
{
    const gate_lane *c = context;
    const saved *s = c->saved;
    const bk_tensor *x = c->node->in[X];
    const bk_moe_kernels *kernels = bk_moe_of(x->dtype);
    int64_t experts = s->args.experts, n = last - first;
    size_t at = (size_t)first * bk_dtype_size(x->dtype);
    for (int64_t e = 0; e < experts; e++)
        memset(c->sum + e * s->width + first, 0, (size_t)n * sizeof *c->sum);
    for (int64_t i = c->first; i < c->last; i++)
        if (is_real(s, i))
            kernels->outer(experts, n, s->width, c->gh + i * experts,
                           row(x->data, x, i, s->width) + at, c->sum + first);
    for (int64_t e = 0; e < experts; e++)
        kernels->round(n, c->sum + e * s->width + first, row(c->out, x, e, s->width) + at);
}

/* dgate of one lane: gH^T X, added in double. */
static void gate_of_lane(void *context, int64_t l, void *out)
{
    gate_lane *c = context;
    const saved *s = c->saved;
    bk_arena_mark mark = bk_arena_get_mark(c->tape->scratch);
    c->first = bk_lane_row(&c->tape->lanes, s->route_args.tokens, l);
    c->last = bk_lane_row(&c->tape->lanes, s->route_args.tokens, l + 1);
    c->sum = BK_NEW(c->tape->scratch, double, s->args.experts * s->width);
    c->out = out;
    bk_parallel(s->width, BK_PARALLEL_VECTOR, (c->last - c->first) * s->args.k, gate_channels, c);
    bk_arena_release(c->tape->scratch, mark);
}

/* dX_t = sum_s rows (slot order) + gH gate. */
static void input_tokens(void *context, int64_t first, int64_t last)
{
    const moving *c = context;
    const saved *s = c->saved;
    const bk_tensor *x = c->node->in[X];
    int64_t k = s->args.k, experts = s->args.experts;
    for (int64_t t = first; t < last; t++) {
        char *dx = row(x->grad, x, t, s->width);
        if (c->beta == 0.0)
            memset(dx, 0, row_bytes(s));
        for (int64_t i = t * k; i < (t + 1) * k; i++)
            if (s->dispatch.place[i] >= 0)
                bk_vector(x->dtype)->add(s->width,
                                         row(c->packed, x, s->dispatch.place[i], s->width), dx);
        if (is_real(s, t))
            bk_moe_of(x->dtype)->input_back(experts, s->width, c->gh + t * experts,
                                            c->node->in[GATE]->data, dx);
    }
}

/* Back through the router: the gate's gradient, and gH[T,E]. */
static const double *router_back(bk_tape *t, bk_node *n, const saved *s, const double *gw)
{
    double *gh = BK_NEW(t->scratch, double, s->route_args.tokens * s->args.experts);
    bk_route_gradient(s->args.router, &s->route_args, &s->route, gw,
                      s->args.aux != BK_AUX_NONE ? n->out[AUX]->grad : NULL,
                      s->args.z ? n->out[Z]->grad : NULL, gh);
    if (n->in[GATE]->needs_grad)
        bk_lane_gradient(t, &t->lanes, n->in[GATE], gate_of_lane,
                         &(gate_lane){.tape = t, .node = n, .saved = s, .gh = gh});
    return gh;
}

static void backward(bk_tape *t, bk_node *n)
{
    saved *s = n->saved;
    s->clock = bk_seconds();
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    moving c = {.node = n, .saved = s};
    c.packed = bk_arena_alloc(t->scratch, (size_t)s->dispatch.sent * row_bytes(s));
    c.gw = BK_ZNEW(t->scratch, double, s->route_args.tokens * s->args.k);
    bk_parallel(s->dispatch.sent, 1, s->width, weigh_gradients, &c);
    lap(s, BK_MOE_PACK);
    char *g = room_at_experts(s, t->scratch, c.packed);
    exchange(s, false, c.packed, g);
    char *dx = bk_arena_alloc(t->scratch, (size_t)s->dispatch.received * row_bytes(s));
    bk_experts_backward(t, &s->experts, g, dx);
    lap(s, BK_MOE_GEMM);
    c.packed = bk_comm_size(s->args.ep) == 1 ? dx : c.packed;
    exchange(s, true, dx, c.packed);
    c.gh = router_back(t, n, s, c.gw);
    lap(s, BK_MOE_ROUTE);
    if (n->in[X]->needs_grad) {
        bk_grad_slot(t, n->in[X], &c.beta);
        bk_parallel(s->route_args.tokens, 1, s->args.k * s->width, input_tokens, &c);
    }
    lap(s, BK_MOE_COMBINE);
    bk_arena_release(t->scratch, mark);
    note_costs(s, t->training);
}

static const bk_op moe = {
    .name = "moe", .shape = shape, .forward = forward, .backward = backward, .collective = true};

bk_moe_result bk_moe(bk_tape *t, const bk_moe_args *a)
{
    int inputs = EXPERT_INPUTS + BK_EXPERT_WEIGHTS * (int)a->count;
    bk_tensor **in = BK_ZNEW(t->arena, bk_tensor *, inputs);
    bk_tensor **const list[BK_EXPERT_WEIGHTS] = {a->w1, a->b1, a->w2, a->b2};
    in[X] = a->x;
    in[GATE] = a->gate;
    for (int which = 0; which < BK_EXPERT_WEIGHTS; which++)
        for (int64_t e = 0; list[which] && e < a->count; e++)
            in[EXPERT_INPUTS + which * a->count + e] = list[which][e];
    bk_node *n = bk_apply(t, &moe, inputs, in, OUTPUTS, a, sizeof *a);
    const saved *s = n->saved;
    return (bk_moe_result){.y = n->out[Y],
                           .aux = a->aux != BK_AUX_NONE ? n->out[AUX] : NULL,
                           .z = a->z ? n->out[Z] : NULL,
                           .route = s->route};
}
