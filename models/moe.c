/* The layer as one node of the tape: route, send rows to their experts, run them on (expert, lane)
 * blocks, send back, weigh and add in slot order.  Weights stay at the source.  Routes are kept,
 * never recomputed. */
#include "models/moe.h"

#include "core/blas.h"
#include "core/log.h"
#include "core/parallel.h"
#include "core/vector.h"
#include "dist/traffic.h"
#include "models/moe_experts.h"
#include "models/moe_gate.h"
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

enum { X, GATE, NOISE_GATE, EXPERT_INPUTS }; /* then the leaves of the experts */
enum { Y, AUX, Z, OUTPUTS };

static char *row(const void *data, const bk_tensor *like, int64_t i, int64_t width)
{
    return (char *)(uintptr_t)data + (size_t)(i * width) * bk_dtype_size(like->dtype);
}

static size_t row_bytes(const saved *s)
{
    return (size_t)s->width * bk_dtype_size(s->experts.dtype);
}

/* Of a row as the experts' products read it. */
static size_t operand_bytes(const saved *s)
{
    return (size_t)s->width * bk_dtype_size(s->experts.operands);
}

/* Books the time since the last call. */
static void lap(saved *s, bk_moe_phase phase)
{
    double now = bk_seconds();
    s->seconds[phase] += now - s->clock;
    s->clock = now;
}

static void finish(saved *s, bk_exchange *x)
{
    if (x)
        bk_exchange_finish(x);
    lap(s, BK_MOE_EXCHANGE);
}

/* Rows on their way to the experts and back; `returned` may be `sent`, as a chunk comes back after
 * it has left. */
typedef struct journey {
    const char *sent;      /* [n,C] in the order of dispatch */
    size_t bytes;          /* of a row of sent and of arrived */
    char *arrived;         /* [R,C] at the experts */
    char *result;          /* [R,C] of the experts */
    char *returned;        /* [n,C] */
    bk_experts_back *back; /* NULL: forward */
    bk_exchange **leaving; /* [chunks] results on their way */
} journey;

/* Starts a chunk of rows to their experts, or (back) from them; on one rank they are there. */
static bk_exchange *start(bk_tape *t, saved *s, const journey *j, bool back, int64_t chunk)
{
    if (bk_comm_size(s->args.ep) == 1)
        return NULL;
    int64_t before = bk_traffic_now().bytes;
    bk_exchange *x =
        back ? bk_dispatch_return(t, &s->dispatch, chunk, row_bytes(s), j->result, j->returned)
             : bk_dispatch_send(t, &s->dispatch, chunk, j->bytes, j->sent, j->arrived);
    s->bytes += bk_traffic_now().bytes - before;
    lap(s, BK_MOE_EXCHANGE);
    return x;
}

/* A chunk is at work while the next is on its way there and those before it on their way back. */
static void travel(bk_tape *t, saved *s, journey *j)
{
    int64_t chunks = s->dispatch.chunks;
    j->leaving = BK_NEW(t->scratch, bk_exchange *, chunks);
    bk_exchange *coming = start(t, s, j, false, 0);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        finish(s, coming);
        if (chunk + 1 < chunks)
            coming = start(t, s, j, false, chunk + 1);
        if (j->back)
            bk_experts_inputs_back(t, j->back, chunk);
        else
            bk_experts_forward(t, &s->experts, chunk, j->result);
        lap(s, BK_MOE_GEMM);
        j->leaving[chunk] = start(t, s, j, true, chunk);
        if (j->back)
            bk_experts_weights_back(t, j->back, chunk);
        lap(s, BK_MOE_GEMM);
    }
}

static void arrive(saved *s, const journey *j)
{
    for (int64_t chunk = 0; chunk < s->dispatch.chunks; chunk++)
        finish(s, j->leaving[chunk]);
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

/* GATE or NOISE_GATE */
static bk_gate gate_of(const bk_node *n, const saved *s, int which)
{
    return (bk_gate){.x = n->in[X], .weight = n->in[which], .mask = s->args.mask};
}

/* What only a kind with a noise gate reads, while training. */
static const double *noise_logits(bk_tape *t, const bk_node *n, const saved *s)
{
    bk_gate gate = gate_of(n, s, NOISE_GATE);
    return gate.weight && t->training ? bk_gate_logits(t, &gate) : NULL;
}

static void route(bk_tape *t, const bk_node *n, saved *s)
{
    const bk_moe_args *a = &s->args;
    bk_gate gate = gate_of(n, s, GATE);
    s->route_args = (bk_route_args){.kind = a->router,
                                    .logits = bk_gate_logits(t, &gate),
                                    .noise_logits = noise_logits(t, n, s),
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
                                    .sequences = a->sequences,
                                    .aux = a->aux,
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
    double *gw;       /* [T,slots] */
    const double *gh; /* [T,E] */
    const double *gn; /* [T,E] behind the noise gate, or NULL */
    double beta;      /* 0: the gradient of x is written, 1: added to */
} moving;

/* As the experts' products read them: rounded here, they are half as long on their way. */
static void copy_rows(void *context, int64_t first, int64_t last)
{
    const moving *c = context;
    const saved *s = c->saved;
    const bk_tensor *x = c->node->in[X];
    for (int64_t i = first; i < last; i++) {
        const void *from = row(x->data, x, s->dispatch.slot[i] / s->route.slots, s->width);
        char *to = c->packed + (size_t)i * operand_bytes(s);
        if (s->experts.rounded)
            bk_blas_round(s->width, from, to);
        else
            memcpy(to, from, row_bytes(s));
    }
}

/* Room for the rows at their experts: one rank keeps the packed rows themselves. */
static char *room_at_experts(const saved *s, bk_arena *arena, size_t bytes, char *packed)
{
    return bk_comm_size(s->args.ep) == 1
               ? packed
               : bk_arena_alloc(arena, (size_t)s->dispatch.received * bytes);
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
        for (int64_t i = t * s->route.slots; i < (t + 1) * s->route.slots; i++) {
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
    bk_experts_precision(t, &s->experts);
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
    *d = bk_dispatch_make(t, s->args.ep, s->args.chunks, &s->route_args, s->route.index,
                          s->route.slots);
    bool alone = bk_comm_size(s->args.ep) == 1;
    moving c = {.node = n, .saved = s};
    c.packed = bk_arena_alloc(alone ? t->arena : t->scratch, (size_t)d->sent * operand_bytes(s));
    bk_parallel(d->sent, 1, s->width, copy_rows, &c);
    lap(s, BK_MOE_PACK);
    char *arrived = room_at_experts(s, t->arena, operand_bytes(s), c.packed);
    s->experts.received = arrived;
    s->returned = bk_arena_alloc(t->arena, (size_t)d->sent * row_bytes(s));
    bk_experts_open(t, &s->experts);
    journey j = {.sent = c.packed,
                 .bytes = operand_bytes(s),
                 .arrived = arrived,
                 .result = room_at_experts(s, t->scratch, row_bytes(s), s->returned),
                 .returned = s->returned};
    travel(t, s, &j);
    arrive(s, &j);
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
        const char *dy = row(y->grad, y, slot / s->route.slots, s->width);
        bk_moe_of(y->dtype)->weigh(s->width, s->route.weight[slot], dy,
                                   row(c->packed, y, i, s->width));
        c->gw[slot] = bk_vector(y->dtype)->dot(s->width, dy, row(s->returned, y, i, s->width));
    }
}

/* dX_t = sum_s rows (slot order) + gH gate. */
static void input_tokens(void *context, int64_t first, int64_t last)
{
    const moving *c = context;
    const saved *s = c->saved;
    const bk_tensor *x = c->node->in[X];
    int64_t k = s->route.slots, experts = s->args.experts;
    for (int64_t t = first; t < last; t++) {
        char *dx = row(x->grad, x, t, s->width);
        if (c->beta == 0.0)
            memset(dx, 0, row_bytes(s));
        for (int64_t i = t * k; i < (t + 1) * k; i++)
            if (s->dispatch.place[i] >= 0)
                bk_vector(x->dtype)->add(s->width,
                                         row(c->packed, x, s->dispatch.place[i], s->width), dx);
        bk_moe_of(x->dtype)->input_back(experts, s->width, c->gh + t * experts,
                                        c->node->in[GATE]->data, dx);
        if (c->gn)
            bk_moe_of(x->dtype)->input_back(experts, s->width, c->gn + t * experts,
                                            c->node->in[NOISE_GATE]->data, dx);
    }
}

static void gate_back(bk_tape *t, const moving *c, int which, const double *gh)
{
    bk_gate gate = gate_of(c->node, c->saved, which);
    if (gh && gate.weight->needs_grad)
        bk_gate_gradient(t, &gate, gh);
}

/* Back through the router to the gates: makes c->gh and c->gn. */
static void router_back(bk_tape *t, moving *c)
{
    const saved *s = c->saved;
    bk_tensor *const *out = c->node->out;
    int64_t count = s->route_args.tokens * s->args.experts;
    bk_route_back b = {.weight = c->gw,
                       .aux = s->args.aux != BK_AUX_NONE ? out[AUX]->grad : NULL,
                       .z = s->args.z ? out[Z]->grad : NULL,
                       .logits = BK_NEW(t->scratch, double, count)};
    if (s->route_args.noise_logits)
        b.noise_logits = BK_NEW(t->scratch, double, count);
    bk_route_gradient(&s->route_args, &s->route, &b);
    gate_back(t, c, GATE, b.logits);
    gate_back(t, c, NOISE_GATE, b.noise_logits);
    c->gh = b.logits;
    c->gn = b.noise_logits;
}

static void backward(bk_tape *t, bk_node *n)
{
    saved *s = n->saved;
    s->clock = bk_seconds();
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    moving c = {.node = n, .saved = s};
    c.packed = bk_arena_alloc(t->scratch, (size_t)s->dispatch.sent * row_bytes(s));
    c.gw = BK_ZNEW(t->scratch, double, s->route_args.tokens * s->route.slots);
    bk_parallel(s->dispatch.sent, 1, s->width, weigh_gradients, &c);
    lap(s, BK_MOE_PACK);
    char *g = room_at_experts(s, t->scratch, row_bytes(s), c.packed);
    char *dx = bk_arena_alloc(t->scratch, (size_t)s->dispatch.received * row_bytes(s));
    bk_experts_back back = bk_experts_back_open(t, &s->experts, g, dx);
    journey j = {.sent = c.packed,
                 .bytes = row_bytes(s),
                 .arrived = g,
                 .result = dx,
                 .returned = bk_comm_size(s->args.ep) == 1 ? dx : c.packed,
                 .back = &back};
    travel(t, s, &j);
    bk_experts_close(t, &s->experts);
    c.packed = j.returned;
    router_back(t, &c);
    lap(s, BK_MOE_ROUTE);
    arrive(s, &j);
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
    in[NOISE_GATE] = a->noise_gate;
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
