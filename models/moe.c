/* The layer as one node of the tape: route, send rows to their experts, run them on (expert, lane)
 * blocks, send back, weigh and add in slot order.  Weights stay at the source.  Routes are kept,
 * never recomputed. */
#include "models/moe.h"

#include "core/blas.h"
#include "core/log.h"
#include "core/ops/pointwise_kernel.h"
#include "core/vector.h"
#include "dist/collective.h"
#include "models/moe_exchange.h"
#include "models/moe_kernel.h"
#include "models/router_common.h"

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
    int32_t *plain; /* [T,k] what the balance loss counts */
    bk_dispatch dispatch;
    char *received; /* [R,C] rows at their experts */
    char *inner;    /* [R,F] before the activation */
    char *hidden;   /* [R,F] behind it */
    char *returned; /* [n,C] experts' outputs, in the order of dispatch */
    int64_t width, hidden_width;
} saved;

enum { X, GATE, EXPERT_INPUTS };

/* Positions of the local experts' leaves among the inputs. */
static bk_tensor *leaf(const bk_node *n, const saved *s, int which, int64_t expert)
{
    return n->in[EXPERT_INPUTS + which * s->args.count + expert];
}

static char *row(const void *data, const bk_tensor *like, int64_t i, int64_t width)
{
    return (char *)(uintptr_t)data + (size_t)(i * width) * bk_dtype_size(like->dtype);
}

/* ---- routing ---- */

static double *make_logits(bk_tape *t, const bk_node *n, const saved *s)
{
    const bk_tensor *x = n->in[X], *gate = n->in[GATE];
    int64_t tokens = bk_rows(x), experts = s->args.experts, width = s->width;
    double *h = BK_NEW(t->arena, double, tokens *experts);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    double *gate_t = BK_NEW(t->scratch, double, experts *width);
    bk_moe_of(x->dtype)->transpose(experts, width, gate->data, gate_t);
#pragma omp parallel for schedule(static) \
    num_threads(bk_blas_threads()) if (tokens * experts * width > 65536)
    for (int64_t i = 0; i < tokens; i++)
        bk_moe_of(x->dtype)->logits(width, experts, row(x->data, x, i, width), gate_t,
                                    h + i * experts);
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

/* Records of the auxiliary losses, or nothing. */
static void auxiliary(const bk_node *n, saved *s)
{
    if (s->args.aux == BK_AUX_SWITCH) {
        s->plain = bk_router_plain_index(&s->route_args);
        bk_router_switch(&s->route_args, BK_SCORE_SOFTMAX, s->plain, n->out[1]->data);
    }
    if (s->args.z_weight > 0)
        bk_router_z(&s->route_args, n->out[2]->data);
}

static void count_figures(const saved *s, bk_moe_state *state, double *row_of)
{
    const bk_route_args *a = &s->route_args;
    memset(state->count, 0, (size_t)a->experts * sizeof *state->count);
    state->tokens = state->nonfinite = 0;
    state->token_entropy_sum = state->confidence_sum = 0.0;
    for (int64_t i = 0; i < a->tokens; i++) {
        if (!bk_router_valid(a, i))
            continue;
        const double *h = a->logits + i * a->experts;
        double most = bk_vector_kernels_f64.max(a->experts, h), entropy = 0.0;
        double sum = bk_vector_kernels_f64.exp_sum(a->experts, h, most, row_of);
        for (int64_t e = 0; e < a->experts; e++) {
            double p = row_of[e] / sum;
            entropy -= p > 0 ? p * log(p) : 0.0;
            state->nonfinite += !isfinite(h[e]);
        }
        state->token_entropy_sum +=
            a->experts > 1 && isfinite(entropy) ? entropy / log((double)a->experts) : 0.0;
        state->confidence_sum += isfinite(sum) ? 1.0 / sum : 0.0;
        state->tokens++;
        for (int64_t k = 0; k < a->k; k++)
            state->count[s->route.index[i * a->k + k]]++;
    }
    state->iterations = s->route.iterations;
    state->ot_steps += s->route.transport;
}

/* ---- experts ---- */

static void add_bias_rows(const bk_tensor *bias, int64_t rows, int64_t width, char *data)
{
    size_t bytes = (size_t)width * bk_dtype_size(bias->dtype);
    for (int64_t i = 0; i < rows; i++)
        bk_vector(bias->dtype)->add(width, bias->data, data + (size_t)i * bytes);
}

/* y[rows,out] = x[rows,in] w[out,in]^T + b. */
static void affine(int64_t rows, const bk_tensor *w, const bk_tensor *b, const void *x, void *y)
{
    int64_t out = w->shape[0], in = w->shape[1];
    bk_gemm_run(w->dtype, &(bk_gemm){.tb = BK_T,
                                     .m = rows,
                                     .n = out,
                                     .k = in,
                                     .alpha = 1.0,
                                     .a = x,
                                     .lda = in,
                                     .b = w->data,
                                     .ldb = in,
                                     .c = y,
                                     .ldc = out,
                                     .varying = true});
    if (b)
        add_bias_rows(b, rows, out, y);
}

static void run_block(const bk_node *n, const saved *s, const bk_expert_block *b, char *out)
{
    const bk_tensor *w1 = leaf(n, s, 0, b->expert), *w2 = leaf(n, s, 2, b->expert);
    char *inner = row(s->inner, w1, b->first, s->hidden_width),
         *hidden = row(s->hidden, w1, b->first, s->hidden_width);
    affine(b->rows, w1, leaf(n, s, 1, b->expert), row(s->received, w1, b->first, s->width), inner);
    bk_pointwise(w1->dtype)->activate((int)s->args.activation, b->rows * s->hidden_width, inner,
                                      hidden);
    affine(b->rows, w2, leaf(n, s, 3, b->expert), hidden, row(out, w1, b->first, s->width));
}

static void run_experts(bk_tape *t, const bk_node *n, saved *s, char *out)
{
    size_t bytes =
        (size_t)(s->dispatch.received * s->hidden_width) * bk_dtype_size(n->in[X]->dtype);
    s->inner = bk_arena_alloc(t->arena, bytes);
    s->hidden = bk_arena_alloc(t->arena, bytes);
    for (int64_t i = 0; i < s->dispatch.blocks; i++)
        if (s->dispatch.block[i].rows > 0)
            run_block(n, s, &s->dispatch.block[i], out);
}

/* y_t = sum_s w_ts ret_ts, in slot order. */
static void combine(const bk_node *n, const saved *s)
{
    const bk_tensor *y = n->out[0];
    int64_t k = s->args.k;
    memset(y->data, 0, (size_t)bk_count(y) * bk_dtype_size(y->dtype));
    for (int64_t i = 0; i < s->route_args.tokens * k; i++)
        if (s->dispatch.place[i] >= 0)
            bk_vector(y->dtype)->axpy(s->width, s->route.weight[i],
                                      row(s->returned, y, s->dispatch.place[i], s->width),
                                      row(y->data, y, i / k, s->width));
}

/* Rows of the tokens in the order of dispatch. */
static char *pack_rows(bk_tape *t, const saved *s, const bk_tensor *like, const void *data)
{
    size_t bytes = (size_t)s->width * bk_dtype_size(like->dtype);
    char *packed = bk_arena_alloc(t->scratch, (size_t)s->dispatch.sent * bytes);
    for (int64_t i = 0; i < s->dispatch.sent; i++)
        memcpy(packed + (size_t)i * bytes,
               row(data, like, s->dispatch.slot[i] / s->args.k, s->width), bytes);
    return packed;
}

static void shape(bk_tape *t, bk_node *n)
{
    const bk_moe_args *a = n->attributes;
    const bk_tensor *x = n->in[X];
    BK_ASSERT(x->dims == 2 && bk_cols(n->in[GATE]) == x->shape[1], "x[T,C], gate[E,C]");
    n->out[0]->dtype = x->dtype;
    n->out[0]->dims = 2;
    memcpy(n->out[0]->shape, x->shape, sizeof x->shape);
    for (int i = 1; i < 3; i++) {
        bool present = i == 1 ? a->aux != BK_AUX_NONE : a->z_weight > 0;
        n->out[i]->dtype = BK_F64;
        n->out[i]->dims = 1;
        n->out[i]->shape[0] = present ? t->lanes.count : 0;
    }
}

static void forward(bk_tape *t, bk_node *n)
{
    saved *s = n->saved = BK_ZNEW(t->arena, saved, 1);
    const bk_tensor *x = n->in[X];
    s->args = *(const bk_moe_args *)n->attributes;
    s->width = bk_cols(x);
    s->hidden_width = s->args.hidden;
    double start = bk_seconds();
    route(t, n, s);
    auxiliary(n, s);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    if (s->args.state)
        count_figures(s, s->args.state, BK_NEW(t->scratch, double, s->args.experts));
    double routed = bk_seconds();
    size_t row_bytes = (size_t)s->width * bk_dtype_size(x->dtype);
    int64_t sent = bk_traffic_now().bytes;
    s->dispatch = bk_dispatch_make(t, s->args.ep, &s->route_args, s->route.index);
    s->received = bk_arena_alloc(t->arena, (size_t)s->dispatch.received * row_bytes);
    bk_dispatch_send(&s->dispatch, row_bytes, pack_rows(t, s, x, x->data), s->received);
    double arrived = bk_seconds();
    char *out = bk_arena_alloc(t->scratch, (size_t)s->dispatch.received * row_bytes);
    run_experts(t, n, s, out);
    double computed = bk_seconds();
    s->returned = bk_arena_alloc(t->arena, (size_t)s->dispatch.sent * row_bytes);
    bk_dispatch_return(&s->dispatch, row_bytes, out, s->returned);
    combine(n, s);
    bk_arena_release(t->scratch, mark);
    if (s->args.state) {
        s->args.state->seconds_route = routed - start;
        s->args.state->seconds_gemm = computed - arrived;
        s->args.state->seconds_exchange = arrived - routed + bk_seconds() - computed;
        s->args.state->bytes_sent = bk_traffic_now().bytes - sent;
    }
}

/* ---- backward ---- */

/* Gradients at the experts: g = dL/d(output rows), da before the activation, both [R,.]. */
typedef struct expert_gradient {
    const bk_node *node;
    const saved *saved;
    char *g, *da;
    int64_t expert;
    int which; /* 0 w1, 1 b1, 2 w2, 3 b2 */
} expert_gradient;

static void columns_sum(bk_dtype dtype, int64_t rows, int64_t width, const char *x, void *out)
{
    size_t bytes = (size_t)width * bk_dtype_size(dtype);
    memset(out, 0, bytes);
    for (int64_t i = 0; i < rows; i++)
        bk_vector(dtype)->add(width, x + (size_t)i * bytes, out);
}

/* The part of one lane of the expert-parallel group. */
static void gradient_of_lane(void *context, int64_t lane, void *out)
{
    const expert_gradient *c = context;
    const saved *s = c->saved;
    const bk_tensor *w = leaf(c->node, s, c->which, c->expert);
    const bk_expert_block *b = &s->dispatch.block[c->expert * s->dispatch.lanes + lane];
    int64_t hidden = s->hidden_width, width = s->width;
    bool first = c->which < 2;
    const char *left = row(first ? c->da : c->g, w, b->first, first ? hidden : width);
    if (c->which % 2 == 1) {
        columns_sum(w->dtype, b->rows, first ? hidden : width, left, out);
        return;
    }
    const char *right = row(first ? s->received : s->hidden, w, b->first, first ? width : hidden);
    bk_gemm_run(w->dtype, &(bk_gemm){.ta = BK_T,
                                     .m = w->shape[0],
                                     .n = w->shape[1],
                                     .k = b->rows,
                                     .alpha = 1.0,
                                     .a = left,
                                     .lda = w->shape[0],
                                     .b = right,
                                     .ldb = w->shape[1],
                                     .c = out,
                                     .ldc = w->shape[1],
                                     .varying = true});
}

/* da = (g W2) act'(a) and dx = da W1 on one block. */
static void block_back(const bk_node *n, const saved *s, const bk_expert_block *b,
                       const expert_gradient *c, char *dx, char *dh)
{
    const bk_tensor *w1 = leaf(n, s, 0, b->expert), *w2 = leaf(n, s, 2, b->expert);
    int64_t width = s->width, hidden = s->hidden_width;
    char *da = row(c->da, w1, b->first, hidden);
    bk_gemm_run(w1->dtype, &(bk_gemm){.m = b->rows,
                                      .n = hidden,
                                      .k = width,
                                      .alpha = 1.0,
                                      .a = row(c->g, w1, b->first, width),
                                      .lda = width,
                                      .b = w2->data,
                                      .ldb = hidden,
                                      .c = dh,
                                      .ldc = hidden,
                                      .varying = true});
    memset(da, 0, (size_t)(b->rows * hidden) * bk_dtype_size(w1->dtype));
    bk_pointwise(w1->dtype)->activate_back((int)s->args.activation, b->rows * hidden,
                                           row(s->inner, w1, b->first, hidden), dh, da);
    bk_gemm_run(w1->dtype, &(bk_gemm){.m = b->rows,
                                      .n = width,
                                      .k = hidden,
                                      .alpha = 1.0,
                                      .a = da,
                                      .lda = hidden,
                                      .b = w1->data,
                                      .ldb = width,
                                      .c = row(dx, w1, b->first, width),
                                      .ldc = width,
                                      .varying = true});
}

static void experts_back(bk_tape *t, bk_node *n, const saved *s, char *g, char *dx)
{
    bk_dtype dtype = n->in[X]->dtype;
    size_t bytes = (size_t)(s->dispatch.received * s->hidden_width) * bk_dtype_size(dtype);
    expert_gradient c = {.node = n, .saved = s, .g = g, .da = bk_arena_alloc(t->scratch, bytes)};
    char *dh = bk_arena_alloc(t->scratch, bytes);
    for (int64_t i = 0; i < s->dispatch.blocks; i++)
        if (s->dispatch.block[i].rows > 0)
            block_back(n, s, &s->dispatch.block[i], &c, dx, dh);
    bk_lanes group = {
        .total = s->dispatch.lanes, .count = s->dispatch.lanes, .batch = s->dispatch.lanes};
    for (c.expert = 0; c.expert < s->args.count; c.expert++)
        for (c.which = 0; c.which < 4; c.which++) {
            bk_tensor *w = leaf(n, s, c.which, c.expert);
            if (w && w->needs_grad)
                bk_lane_gradient(t, &group, w, gradient_of_lane, &c);
        }
}

/* Rows w_ts dy_t in the order of dispatch, and dw_ts = <dy_t, ret_ts>. */
static char *weighted_gradient(bk_tape *t, const bk_node *n, const saved *s, double *gw)
{
    const bk_tensor *y = n->out[0];
    size_t bytes = (size_t)s->width * bk_dtype_size(y->dtype);
    char *packed = bk_arena_alloc(t->scratch, (size_t)s->dispatch.sent * bytes);
    for (int64_t i = 0; i < s->dispatch.sent; i++) {
        int64_t slot = s->dispatch.slot[i];
        const char *dy = row(y->grad, y, slot / s->args.k, s->width);
        bk_moe_of(y->dtype)->weigh(s->width, s->route.weight[slot], dy, packed + (size_t)i * bytes);
        gw[slot] = bk_vector(y->dtype)->dot(s->width, dy, row(s->returned, y, i, s->width));
    }
    return packed;
}

typedef struct gate_lane {
    bk_tape *tape;
    const bk_node *node;
    const saved *saved;
    const double *gh;
} gate_lane;

/* dgate of one lane: gH^T X, added in double. */
static void gate_of_lane(void *context, int64_t l, void *out)
{
    const gate_lane *c = context;
    const saved *s = c->saved;
    const bk_tensor *x = c->node->in[X];
    int64_t experts = s->args.experts, tokens = s->route_args.tokens,
            last = bk_lane_row(&c->tape->lanes, tokens, l + 1);
    bk_arena_mark mark = bk_arena_get_mark(c->tape->scratch);
    double *sum = BK_ZNEW(c->tape->scratch, double, experts * s->width);
    for (int64_t i = bk_lane_row(&c->tape->lanes, tokens, l); i < last; i++)
        bk_moe_of(x->dtype)->outer(experts, s->width, c->gh + i * experts,
                                   row(x->data, x, i, s->width), sum);
    bk_moe_of(x->dtype)->round(experts * s->width, sum, out);
    bk_arena_release(c->tape->scratch, mark);
}

/* Gradient of the logits from the weights and the auxiliary losses; 0 where a logit was not finite.
 */
static double *logits_back(bk_tape *t, const bk_node *n, saved *s, const double *gw)
{
    int64_t count = s->route_args.tokens * s->args.experts;
    double *gh = BK_ZNEW(t->scratch, double, count);
    s->args.router->backward(&s->route_args, &s->route, gw, gh);
    if (s->args.aux == BK_AUX_SWITCH)
        bk_router_switch_back(&s->route_args, BK_SCORE_SOFTMAX, s->plain, n->out[1]->grad, gh);
    if (s->args.z_weight > 0)
        bk_router_z_back(&s->route_args, n->out[2]->grad, gh);
    for (int64_t i = 0; i < count; i++)
        gh[i] = isfinite(s->route_args.logits[i]) ? gh[i] : 0.0;
    return gh;
}

static void input_back(bk_tape *t, bk_node *n, const saved *s, const char *rows, const double *gh)
{
    bk_tensor *x = n->in[X];
    int64_t k = s->args.k, experts = s->args.experts;
    char *dx = bk_grad(t, x);
    for (int64_t i = 0; i < s->route_args.tokens * k; i++)
        if (s->dispatch.place[i] >= 0)
            bk_vector(x->dtype)->add(s->width, row(rows, x, s->dispatch.place[i], s->width),
                                     row(dx, x, i / k, s->width));
    for (int64_t i = 0; i < s->route_args.tokens; i++)
        bk_moe_of(x->dtype)->input_back(experts, s->width, gh + i * experts, n->in[GATE]->data,
                                        row(dx, x, i, s->width));
}

static void backward(bk_tape *t, bk_node *n)
{
    saved *s = n->saved;
    size_t bytes = (size_t)s->width * bk_dtype_size(n->in[X]->dtype);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    double *gw = BK_ZNEW(t->scratch, double, s->route_args.tokens * s->args.k);
    char *packed = weighted_gradient(t, n, s, gw);
    char *g = bk_arena_alloc(t->scratch, (size_t)s->dispatch.received * bytes);
    char *dx = bk_arena_alloc(t->scratch, (size_t)s->dispatch.received * bytes);
    bk_dispatch_send(&s->dispatch, bytes, packed, g);
    experts_back(t, n, s, g, dx);
    bk_dispatch_return(&s->dispatch, bytes, dx, packed);
    const double *gh = logits_back(t, n, s, gw);
    if (n->in[GATE]->needs_grad) {
        gate_lane c = {t, n, s, gh};
        bk_lane_gradient(t, &t->lanes, n->in[GATE], gate_of_lane, &c);
    }
    if (n->in[X]->needs_grad)
        input_back(t, n, s, packed, gh);
    bk_arena_release(t->scratch, mark);
}

static const bk_op moe = {
    .name = "moe", .shape = shape, .forward = forward, .backward = backward, .collective = true};

bk_moe_result bk_moe(bk_tape *t, const bk_moe_args *a)
{
    int inputs = EXPERT_INPUTS + 4 * (int)a->count;
    bk_tensor **in = BK_NEW(t->arena, bk_tensor *, inputs);
    bk_tensor **const list[4] = {a->w1, a->b1, a->w2, a->b2};
    in[X] = a->x;
    in[GATE] = a->gate;
    for (int which = 0; which < 4; which++)
        for (int64_t e = 0; e < a->count; e++)
            in[EXPERT_INPUTS + which * a->count + e] = list[which] ? list[which][e] : NULL;
    bk_node *n = bk_apply(t, &moe, inputs, in, 3, a, sizeof *a);
    const saved *s = n->saved;
    return (bk_moe_result){.y = n->out[0],
                           .aux = a->aux != BK_AUX_NONE ? n->out[1] : NULL,
                           .z = a->z_weight > 0 ? n->out[2] : NULL,
                           .route = s->route};
}
