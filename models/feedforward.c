/* The second half of a block: a dense feed-forward, or a mixture of experts in its place. */
#include "models/internal.h"

#include <math.h>
#include <string.h>

static const char *name(bk_model *model, int layer, const char *part, const char *rest)
{
    return bk_arena_printf(model->arena, "model/block%d/%s/%s", layer, part, rest);
}

static bool has_experts(const bk_model *model, int layer)
{
    return model->moe && (layer + 1) % model->moe->every == 0;
}

static double residual_factor(const bk_model *model)
{
    return bk_model_causal(model) ? 1.0 / sqrt(2.0 * (double)model->config.layers) : 1.0;
}

/* ---- declaration ---- */

static void declare_dense(bk_model *model, int layer)
{
    int64_t width = model->config.width, ffn = model->config.ffn;
    bk_block *block = &model->block[layer];
    block->up =
        bk_declare_linear(model, name(model, layer, "ffn", "w1"), name(model, layer, "ffn", "b1"),
                          ffn, width, layer, bk_init_scale(model, width, ffn, 1.0));
    block->down = bk_declare_linear(model, name(model, layer, "ffn", "w2"),
                                    name(model, layer, "ffn", "b2"), width, ffn, layer,
                                    bk_init_scale(model, ffn, width, residual_factor(model)));
}

/* One expert's slice of a logical tensor [E, rows, cols] (cols = 0: [E, rows]). */
static bk_parameter *declare_slice(bk_model *model, int layer, const char *what, int64_t expert,
                                   const int64_t size[2])
{
    bool matrix = size[1] > 0;
    int64_t count = size[0] * (matrix ? size[1] : 1);
    bk_parameter p = {.name = name(model, layer, "moe", what),
                      .global_shape = {model->moe->experts, size[0], size[1]},
                      .global_dims = matrix ? 3 : 2,
                      .global_offset = expert * count,
                      .shape = {size[0], size[1]},
                      .dims = matrix ? 2 : 1,
                      .expert = (int)expert,
                      .decay = matrix,
                      .layer = layer};
    if (matrix)
        p.init_scale =
            bk_init_scale(model, size[1], size[0], what[1] == '2' ? residual_factor(model) : 1.0);
    return bk_declare(model, &p);
}

static void declare_experts(bk_model *model, int layer, bk_moe_part *m)
{
    int64_t width = model->config.width, hidden = model->moe->hidden;
    bk_parameter **list = BK_NEW(model->arena, bk_parameter *, 4 * m->count);
    m->w1 = list;
    m->b1 = list + m->count;
    m->w2 = list + 2 * m->count;
    m->b2 = list + 3 * m->count;
    for (int64_t i = 0; i < m->count; i++) {
        m->w1[i] = declare_slice(model, layer, "w1", m->first + i, (int64_t[]){hidden, width});
        m->b1[i] = declare_slice(model, layer, "b1", m->first + i, (int64_t[]){hidden, 0});
        m->w2[i] = declare_slice(model, layer, "w2", m->first + i, (int64_t[]){width, hidden});
        m->b2[i] = declare_slice(model, layer, "b2", m->first + i, (int64_t[]){width, 0});
    }
}

static bk_parameter *declare_gate(bk_model *model, int layer, const char *what, double deviation)
{
    return bk_declare(model, &(bk_parameter){.name = name(model, layer, "moe", what),
                                             .shape = {model->moe->experts, model->config.width},
                                             .dims = 2,
                                             .expert = -1,
                                             .decay = true,
                                             .init = deviation > 0 ? BK_INIT_NORMAL : BK_INIT_ZERO,
                                             .init_scale = deviation,
                                             .layer = layer});
}

static void declare_router_state(bk_model *model, int layer, bk_moe_part *m)
{
    const bk_moe_config *c = model->moe;
    if (c->router->flags & BK_ROUTER_STATE) {
        m->router_bias = bk_slab_declare_buffer(
            model->slab, name(model, layer, "moe", "router_bias"), BK_F64, 1, &c->experts);
        m->next_bias = BK_ZNEW(model->arena, double, c->experts);
    }
    if (c->router->flags & BK_ROUTER_TRANSPORT)
        m->router_ot_steps =
            bk_slab_declare_buffer(model->slab, name(model, layer, "moe", "router_ot_steps"),
                                   BK_I64, 1, (const int64_t[]){1});
}

static void declare_shared(bk_model *model, int layer, bk_moe_part *m)
{
    int64_t width = model->config.width, hidden = model->moe->shared;
    m->shared_up = bk_declare_linear(model, name(model, layer, "moe", "shared_w1"),
                                     name(model, layer, "moe", "shared_b1"), hidden, width, layer,
                                     bk_init_scale(model, width, hidden, 1.0));
    m->shared_down = bk_declare_linear(model, name(model, layer, "moe", "shared_w2"),
                                       name(model, layer, "moe", "shared_b2"), width, hidden, layer,
                                       bk_init_scale(model, hidden, width, residual_factor(model)));
    if (model->moe->shared_gate)
        m->shared_gate =
            bk_declare(model, &(bk_parameter){.name = name(model, layer, "moe", "shared_gate"),
                                              .shape = {width},
                                              .dims = 1,
                                              .expert = -1,
                                              .init = BK_INIT_NORMAL,
                                              .init_scale = 0.02,
                                              .layer = layer});
}

static void declare_moe(bk_model *model, int layer)
{
    const bk_moe_config *c = model->moe;
    bk_moe_part *m = model->block[layer].moe = BK_ZNEW(model->arena, bk_moe_part, 1);
    bk_moe_experts_of(model->world->rank % model->world->expert, c->experts, model->world->expert,
                      &m->first, &m->count);
    m->gate = declare_gate(model, layer, "gate", 0.02);
    if (c->router->flags & BK_ROUTER_NOISE_GATE)
        m->noise_gate = declare_gate(model, layer, "noise_gate", 0.0); /* Shazeer et al. 2017 */
    declare_experts(model, layer, m);
    if (c->shared > 0)
        declare_shared(model, layer, m);
    declare_router_state(model, layer, m);
    bk_moe_state_init(&m->state, model->arena, c->experts);
}

void bk_feedforward_declare(bk_model *model, int layer)
{
    if (has_experts(model, layer))
        declare_moe(model, layer);
    else
        declare_dense(model, layer);
}

/* ---- forward ---- */

bk_capacity bk_moe_capacity(const bk_moe_config *moe)
{
    return (bk_capacity){moe->capacity_factor, moe->min_capacity, (bk_drop_policy)moe->drop_policy};
}

static bk_tensor **leaves(bk_tape *t, bk_parameter **parameter, int64_t count)
{
    bk_tensor **list = BK_NEW(t->arena, bk_tensor *, count);
    for (int64_t i = 0; i < count; i++)
        list[i] = bk_tape_parameter(t, parameter[i]);
    return list;
}

/* One block of rows for each sample. */
static const bk_route_blocks *sequences(bk_tape *t, const bk_tensor *x)
{
    bk_route_blocks *b = BK_NEW(t->arena, bk_route_blocks, 1);
    int64_t count = x->shape[0], *row = BK_NEW(t->arena, int64_t, count + 1);
    for (int64_t i = 0; i <= count; i++)
        row[i] = i * x->shape[1];
    *b = (bk_route_blocks){.count = count, .row = row};
    return b;
}

/* What the routing makes of the state, for when the step counts. */
static void keep_next_state(bk_moe_part *m, const bk_route *r)
{
    m->moved = r->next != NULL;
    m->transported = r->transport;
    if (m->moved)
        memcpy(m->next_bias, r->next, (size_t)m->state.experts * sizeof *m->next_bias);
}

static bk_tensor *leaf(bk_tape *t, bk_parameter *parameter)
{
    return parameter ? bk_tape_parameter(t, parameter) : NULL;
}

static bk_moe_shared shared_leaves(bk_tape *t, const bk_moe_part *m)
{
    return (bk_moe_shared){.w1 = leaf(t, m->shared_up.w),
                           .b1 = leaf(t, m->shared_up.b),
                           .w2 = leaf(t, m->shared_down.w),
                           .b2 = leaf(t, m->shared_down.b),
                           .gate = leaf(t, m->shared_gate)};
}

static bk_tensor *experts(bk_model *model, bk_tape *t, int layer, bk_tensor *x, bk_tensor *mask,
                          int64_t positions)
{
    const bk_moe_config *c = model->moe;
    bk_moe_part *m = model->block[layer].moe;
    int64_t tokens = bk_rows(x), width = bk_cols(x);
    bk_moe_shared shared = shared_leaves(t, m);
    bk_moe_args a = {.x = bk_reshape(t, x, BK_SHAPE(tokens, width)),
                     .mask = mask ? bk_i32(mask) : NULL,
                     .gate = bk_tape_parameter(t, m->gate),
                     .noise_gate = m->noise_gate ? bk_tape_parameter(t, m->noise_gate) : NULL,
                     .w1 = leaves(t, m->w1, m->count),
                     .b1 = leaves(t, m->b1, m->count),
                     .w2 = leaves(t, m->w2, m->count),
                     .b2 = leaves(t, m->b2, m->count),
                     .shared = c->shared > 0 ? &shared : NULL,
                     .experts = c->experts,
                     .k = c->k,
                     .first = m->first,
                     .count = m->count,
                     .hidden = c->hidden,
                     .activation = (bk_activation)c->activation,
                     .router = c->router,
                     .router_config = c->router_config,
                     .bias = m->router_bias ? m->router_bias->data : NULL,
                     .sequences = sequences(t, x),
                     .capacity = bk_moe_capacity(c),
                     .max_receive_factor = c->max_receive_factor,
                     .aux = (bk_moe_aux)c->aux,
                     .z = c->z_weight > 0,
                     .valid = positions,
                     .first_token = bk_lanes_first_sample(&t->lanes) * x->shape[1],
                     .layer = layer,
                     .ep = model->world->ep,
                     .chunks = c->chunks,
                     .wire_bf16 = c->wire != 0,
                     .hierarchy = (bk_moe_hierarchy)c->hierarchy,
                     .route = bk_comm_reducer(model->world->route),
                     .state = &m->state};
    bk_moe_result r = bk_moe(t, &a);
    if (r.aux)
        bk_tape_add_term(t, "moe_aux", layer, r.aux, c->aux_weight);
    if (r.z)
        bk_tape_add_term(t, "moe_z", layer, r.z, c->z_weight);
    if (t->training)
        keep_next_state(m, &r.route);
    return bk_reshape(t, r.y, BK_SHAPE(x->shape[0], x->shape[1], width));
}

bk_tensor *bk_feedforward(bk_model *model, bk_tape *t, int layer, bk_tensor *x, bk_tensor *mask,
                          int64_t positions)
{
    const bk_block *block = &model->block[layer];
    if (block->moe)
        return experts(model, t, layer, x, mask, positions);
    bk_tensor *h =
        bk_activate(t, bk_part_linear(t, &block->up, x), (bk_activation)model->config.activation);
    h = bk_dropout(t, h, model->config.dropout, layer, BK_USE_DROPOUT_FFN_HIDDEN);
    return bk_part_linear(t, &block->down, h);
}
