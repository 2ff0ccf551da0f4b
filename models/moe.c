/* The layer: route, send rows to their experts, run them on (expert, lane)
 * blocks, send back, weigh and add in slot order.  Weights stay at the source.  Routes are kept,
 * never recomputed. */
#include "models/moe.h"

#include "core/blas.h"
#include "core/parallel.h"
#include "core/vector.h"
#include "models/moe_gate.h"
#include "models/moe_journey.h"
#include "models/moe_kernel.h"

#include <math.h>
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
    bk_moe_clock clock;
    bk_arena_mark mark;   /* of the scratch arena: what is under way between the two nodes */
    bk_journey journey;   /* forward, or back */
    bk_experts_back back; /* of the journey back */
    char *returned;       /* [n,C] the experts' outputs, in the order of dispatch */
    double *gw;           /* [T,slots] gradients of the weights, on the way back */
    int64_t width;        /* C */
} saved;

/* Two nodes, so that others can work while rows are on their way: the first routes and sends, the
 * second lets the experts work and combines.  Backward likewise, the other way round. */
enum { X, GATE, NOISE_GATE, EXPERT_INPUTS }; /* then the leaves of the experts */
enum { AUX, Z, TICKET, OUTPUTS };
enum { Y };

static char *row(const void *data, const bk_tensor *like, int64_t i, int64_t width)
{
    return (char *)(uintptr_t)data + (size_t)(i * width) * bk_dtype_size(like->dtype);
}

static size_t row_bytes(const saved *s)
{
    return (size_t)s->width * bk_dtype_size(s->experts.dtype);
}

static void lap(saved *s, bk_moe_phase phase)
{
    bk_moe_clock_lap(&s->clock, phase);
}

/* After forward, and with more of both after backward. */
static void note_costs(const saved *s, bool training)
{
    if (!s->args.state || !training)
        return;
    memcpy(s->args.state->seconds, s->clock.seconds, sizeof s->clock.seconds);
    s->args.state->counter[BK_MOE_BYTES] = s->clock.bytes;
}

/* An empty journey; rows have type `there` at the experts and that of x at home. */
static bk_journey journey_of(saved *s, bk_dtype there)
{
    bk_dtype home = s->experts.dtype;
    return (bk_journey){.dispatch = &s->dispatch,
                        .clock = &s->clock,
                        .width = s->width,
                        .there = there,
                        .home = home,
                        .wire_there = bk_wire_of(there, s->args.wire_bf16),
                        .wire_home = bk_wire_of(home, s->args.wire_bf16)};
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
                                    .capacity_factor = a->capacity.factor,
                                    .training = t->training,
                                    .seed = t->seed,
                                    .step = t->step,
                                    .layer = a->layer,
                                    .config = a->router_config,
                                    .arena = t->arena,
                                    .scratch = t->scratch,
                                    .attributes = a->attributes};
    a->router->route(&s->route_args, &s->route);
    bk_route_limit(&s->route_args, &a->capacity, &s->route);
    s->route_args.attributes = NULL;
}

/* The experts that choices are sent to, -1 for those that are not: on the scratch arena. */
static const int32_t *sent_index(bk_tape *t, const saved *s)
{
    int64_t slots = s->route_args.tokens * s->route.slots;
    int32_t *index = BK_NEW(t->scratch, int32_t, slots);
    for (int64_t i = 0; i < slots; i++)
        index[i] = bk_route_sends(&s->route, i) ? s->route.index[i] : -1;
    return index;
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
    char *packed;     /* [n,C] as they travel, or as they came back */
    const double *gh; /* [T,E] */
    const double *gn; /* [T,E] behind the noise gate, or NULL */
    double beta;      /* 0: the gradient of x is written, 1: added to */
} moving;

/* As they travel, which may be as the experts' products read them. */
static void copy_rows(void *context, int64_t first, int64_t last)
{
    const moving *c = context;
    const saved *s = c->saved;
    const bk_tensor *x = c->node->in[X];
    bk_dtype wire = s->journey.wire_there;
    for (int64_t i = first; i < last; i++) {
        const void *from = row(x->data, x, s->dispatch.slot[i] / s->route.slots, s->width);
        void *to = c->packed + (size_t)(i * s->width) * bk_dtype_size(wire);
        if (wire == BK_BF16)
            bk_vector(x->dtype)->pack_bf16(s->width, from, to);
        else if (s->experts.rounded)
            bk_blas_round(s->width, from, to);
        else
            memcpy(to, from, row_bytes(s));
    }
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

static void begin_shape(bk_tape *t, bk_node *n)
{
    const bk_moe_args *a = n->attributes;
    const bk_tensor *x = n->in[X];
    BK_ASSERT(x->dims == 2 && bk_cols(n->in[GATE]) == x->shape[1], "x[T,C], gate[E,C]");
    n->out[TICKET]->dtype = x->dtype;
    n->out[TICKET]->dims = 1;
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
    bk_moe_clock_start(&s->clock);
    return s;
}

/* Largest number of rows that a rank would receive; *rank: which. */
static int64_t most_received(const saved *s, int *rank)
{
    int size = s->args.route ? bk_mpi_size() : 1, own = s->args.route ? bk_mpi_rank() : 0;
    double most = (double)(s->dispatch.received * size + size - 1 - own); /* the lowest of equals */
    bk_reduce_max(s->args.route, 1, &most);
    *rank = size - 1 - (int)((int64_t)most % size);
    return (int64_t)most / size;
}

/* Collective with a limit.  Before any room is made for rows. */
static bool overfull(bk_tape *t, const saved *s)
{
    const bk_moe_args *a = &s->args;
    int rank, size = a->route ? bk_mpi_size() : 1;
    if (a->max_receive_factor == 0.0)
        return false;
    double share = (double)a->valid * (double)a->k / size;
    int64_t most = most_received(s, &rank);
    if ((double)most <= a->max_receive_factor * share)
        return false;
    if (t->status == BK_OK)
        t->status = bk_fail(BK_FAULT,
                            "rank %d would receive %lld rows in layer %d, %.3g times its even "
                            "share of %.4g (model.moe.max_receive_factor=%g): raise the factor, "
                            "balance the router or set a capacity_factor",
                            rank, (long long)most, a->layer, (double)most / share, share,
                            a->max_receive_factor);
    return true;
}

/* Up to this mean size of a message between two ranks their number costs more than their bytes:
 * on 4 hosts of 2 and of 4 ranks (TCP) two hops were faster at 1 to 8 KiB, slower from 16 KiB on.
 */
enum { SHORT_MESSAGE = 8 << 10 };

/* The same on all ranks. */
static bool in_two_hops(const saved *s)
{
    const bk_moe_args *a = &s->args;
    bk_dtype wire = bk_wire_of(s->experts.operands, a->wire_bf16);
    double messages = (double)bk_mpi_size() * bk_comm_size(a->ep) * fmax(1.0, (double)a->chunks);
    double bytes = (double)(a->valid * a->k * s->width) * (double)bk_dtype_size(wire) / messages;
    return bk_comm_has_levels(a->ep) &&
           (a->hierarchy == BK_HIERARCHY_TWO_LEVEL ||
            (a->hierarchy == BK_HIERARCHY_AUTO && bytes <= SHORT_MESSAGE));
}

/* Packs the rows of the choices in index[T,slots] while the ranks tell each other how many. */
static void pack(bk_tape *t, const bk_node *n, saved *s, const int32_t *index)
{
    bk_dispatch_options o = {s->args.ep, s->args.chunks, in_two_hops(s)};
    s->dispatch = bk_dispatch_begin(t, &o, &s->route_args, index, s->route.slots);
    s->journey = journey_of(s, s->experts.operands);
    bk_journey_pack(t, &s->journey, t->arena);
    moving c = {.node = n, .saved = s, .packed = s->journey.packed};
    bk_parallel(s->dispatch.sent, 1, s->width, copy_rows, &c);
    bk_dispatch_finish(t, &s->dispatch, &s->route_args);
}

/* No row at all when they would be too many for a rank. */
static void pack_what_fits(bk_tape *t, const bk_node *n, saved *s)
{
    int64_t slots = s->route_args.tokens * s->route.slots;
    pack(t, n, s, sent_index(t, s));
    if (!overfull(t, s))
        return;
    int32_t *none = BK_NEW(t->scratch, int32_t, slots);
    memset(none, 0xff, (size_t)slots * sizeof *none);
    pack(t, n, s, none);
}

static void begin_forward(bk_tape *t, bk_node *n)
{
    saved *s = keep(t, n);
    s->mark = bk_arena_get_mark(t->scratch);
    route(t, n, s);
    measure(n, s);
    lap(s, BK_MOE_ROUTE);
    pack_what_fits(t, n, s);
    lap(s, BK_MOE_PACK);
    bk_journey_open(t, &s->journey, t->arena);
    bk_journey_depart(t, &s->journey);
}

static saved *saved_of(const bk_node *end)
{
    return *(saved *const *)end->attributes;
}

static void end_shape(bk_tape *t, bk_node *n)
{
    (void)t;
    const saved *s = saved_of(n);
    n->out[Y]->dtype = s->experts.dtype;
    n->out[Y]->dims = 2;
    n->out[Y]->shape[0] = s->route_args.tokens;
    n->out[Y]->shape[1] = s->width;
}

static void end_forward(bk_tape *t, bk_node *n)
{
    saved *s = saved_of(n);
    bk_journey *j = &s->journey;
    bk_moe_clock_start(&s->clock);
    s->experts.received = j->arrived;
    bk_experts_open(t, &s->experts);
    bk_journey_travel(t, j, &s->experts);
    bk_journey_arrive(j);
    s->returned = j->returned;
    bk_parallel(s->route_args.tokens, 1, s->args.k * s->width, combine_tokens,
                &(moving){.node = n, .saved = s});
    lap(s, BK_MOE_COMBINE);
    bk_arena_release(t->scratch, s->mark);
    if (s->args.state && t->training)
        s->args.state->received = s->dispatch.received;
    note_costs(s, t->training);
}

/* ---- backward ---- */

/* w x as it travels. */
static void weigh_row(const saved *s, double w, const char *x, char *to)
{
    enum { PIECE = 512 };
    double piece[PIECE];
    bk_dtype dtype = s->experts.dtype;
    if (s->journey.wire_there == dtype) {
        bk_moe_of(dtype)->weigh(s->width, w, x, to);
        return;
    }
    for (int64_t c = 0; c < s->width; c += PIECE) {
        int64_t n = s->width - c < PIECE ? s->width - c : PIECE;
        bk_moe_of(dtype)->weigh(n, w, x + (size_t)c * bk_dtype_size(dtype), piece);
        bk_vector(dtype)->pack_bf16(n, piece, (uint16_t *)(void *)to + c);
    }
}

/* Rows w_ts dy_t in the order of dispatch, and gw_ts = <dy_t, ret_ts>. */
static void weigh_gradients(void *context, int64_t first, int64_t last)
{
    const moving *c = context;
    const saved *s = c->saved;
    const bk_tensor *y = c->node->out[Y];
    size_t bytes = (size_t)s->width * bk_dtype_size(s->journey.wire_there);
    for (int64_t i = first; i < last; i++) {
        int64_t slot = s->dispatch.slot[i];
        const char *dy = row(y->grad, y, slot / s->route.slots, s->width);
        weigh_row(s, s->route.weight[slot], dy, c->packed + (size_t)i * bytes);
        s->gw[slot] = bk_vector(y->dtype)->dot(s->width, dy, row(s->returned, y, i, s->width));
    }
}

static void end_backward(bk_tape *t, bk_node *n)
{
    saved *s = saved_of(n);
    bk_journey *j = &s->journey;
    bk_moe_clock_start(&s->clock);
    s->mark = bk_arena_get_mark(t->scratch);
    *j = journey_of(s, s->experts.dtype);
    bk_journey_pack(t, j, t->scratch);
    s->gw = BK_ZNEW(t->scratch, double, s->route_args.tokens * s->route.slots);
    bk_parallel(s->dispatch.sent, 1, s->width, weigh_gradients,
                &(moving){.node = n, .saved = s, .packed = j->packed});
    lap(s, BK_MOE_PACK);
    /* A chunk comes back after it has left. */
    j->returned = j->wire_there == j->home ? j->packed : NULL;
    bk_journey_open(t, j, t->scratch);
    bk_journey_depart(t, j);
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
    bk_route_back b = {.weight = s->gw,
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

static void begin_backward(bk_tape *t, bk_node *n)
{
    saved *s = n->saved;
    bk_journey *j = &s->journey;
    moving c = {.node = n, .saved = s};
    bk_moe_clock_start(&s->clock);
    s->back = bk_experts_back_open(t, &s->experts, j->arrived, j->result);
    j->back = &s->back;
    bk_journey_travel(t, j, &s->experts);
    bk_experts_close(t, &s->experts);
    router_back(t, &c);
    lap(s, BK_MOE_ROUTE);
    bk_journey_arrive(j);
    c.packed = j->returned;
    if (n->in[X]->needs_grad) {
        bk_grad_slot(t, n->in[X], &c.beta);
        bk_parallel(s->route_args.tokens, 1, s->args.k * s->width, input_tokens, &c);
    }
    lap(s, BK_MOE_COMBINE);
    bk_arena_release(t->scratch, s->mark);
    note_costs(s, t->training);
}

static const bk_op moe_begin = {.name = "moe_begin",
                                .shape = begin_shape,
                                .forward = begin_forward,
                                .backward = begin_backward,
                                .collective = true};

static const bk_op moe_end = {.name = "moe_end",
                              .shape = end_shape,
                              .forward = end_forward,
                              .backward = end_backward,
                              .collective = true};

static bk_node *begin(bk_tape *t, const bk_moe_args *a)
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
    return bk_apply(t, &moe_begin, inputs, in, OUTPUTS, a, sizeof *a);
}

/* The shared expert works while rows are under way. */
bk_moe_result bk_moe(bk_tape *t, const bk_moe_args *a)
{
    bk_node *n = begin(t, a);
    const saved *s = n->saved;
    bk_tensor *shared =
        a->shared ? bk_moe_shared_expert(t, a->x, a->mask, a->activation, a->shared) : NULL;
    bk_node *end = bk_apply(t, &moe_end, 1, &n->out[TICKET], 1, &s, sizeof s);
    return (bk_moe_result){.y = shared ? bk_add(t, end->out[Y], shared) : end->out[Y],
                           .aux = a->aux != BK_AUX_NONE ? n->out[AUX] : NULL,
                           .z = a->z ? n->out[Z] : NULL,
                           .route = s->route};
}
