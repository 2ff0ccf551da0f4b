#include "models/internal.h"

#include "core/log.h"
#include "dist/collective.h"

#include <string.h>

#define MODEL(kind) extern const bk_model_kind bk_model_##kind;
#include "models/kinds.def"
#undef MODEL

#define MODEL(kind) &bk_model_##kind,
const bk_model_kind *const bk_models[] = {
#include "models/kinds.def"
    NULL};
#undef MODEL

bk_status bk_model_new(bk_arena *arena, bk_value *section, const bk_model_data *data,
                       const bk_world *world, bk_model **model)
{
    bk_model *m = BK_ZNEW(arena, bk_model, 1);
    *m = (bk_model){.arena = arena, .data = *data, .world = world, .slab = bk_slab_new(arena)};
    BK_TRY(bk_model_read_config(m, section));
    m->block = BK_ZNEW(arena, bk_block, m->config.layers);
    BK_TRY(m->kind->declare(m));
    *model = m;
    return BK_OK;
}

bk_slab *bk_model_slab(bk_model *model)
{
    return model->slab;
}

const bk_model_kind *bk_model_kind_of(const bk_model *model)
{
    return model->kind;
}

void bk_model_forward(bk_model *model, bk_tape *t, bk_bundle *bundle)
{
    model->inside = bundle->inside;
    model->kind->forward(model, t, bundle);
    model->inside = NULL;
}

/* ---- figures ---- */

static int64_t expert_size(const bk_model *model)
{
    return model->moe->hidden * (2 * model->config.width + 1) + model->config.width;
}

int64_t bk_model_outputs(const bk_model_data *data)
{
    return data->classes > 0 ? data->classes : data->vocabulary;
}

bk_model_figures bk_model_measure(const bk_model *model)
{
    const bk_model_config *c = &model->config;
    bk_model_figures f = {.parameters = model->slab->total_count,
                          .active_parameters = model->slab->total_count};
    double n = (double)c->max_length + (model->cls != NULL), width = (double)c->width,
           qkv = (double)c->qkv_width;
    for (int64_t i = 0; i < c->layers; i++) {
        double hidden = (double)c->ffn;
        if (model->block[i].moe) {
            f.active_parameters -= (model->moe->experts - model->moe->k) * expert_size(model);
            hidden = (double)(model->moe->k * model->moe->hidden + model->moe->shared);
        }
        f.flops_per_sample += 2.0 * n * (4.0 * width * qkv + 2.0 * width * hidden);
        f.flops_per_sample += 4.0 * n * n * qkv * (bk_model_causal(model) ? 0.5 : 1.0);
    }
    double outputs = (double)bk_model_outputs(&model->data);
    f.flops_per_sample += 2.0 * width * outputs * (bk_model_causal(model) ? n : 1.0);
    f.flops_per_sample +=
        model->data.channels ? 2.0 * n * width * (double)model->data.channels : 0.0;
    return f;
}

int bk_model_moe_layers(const bk_model *model)
{
    int layers = 0;
    for (int64_t i = 0; i < model->config.layers; i++)
        layers += model->block[i].moe != NULL;
    return layers;
}

void bk_model_moe_figures(bk_model *model, bk_moe_figures *out)
{
    for (int64_t i = 0; i < model->config.layers; i++) {
        bk_moe_part *m = model->block[i].moe;
        if (!m)
            continue;
        bk_moe_state_figures(&m->state, model->world->route, out);
        out->layer = (int)i;
        out->ot_steps = m->router_ot_steps ? *(int64_t *)m->router_ot_steps->data : 0;
        out++;
    }
}

/* ---- routers' states ---- */

/* Counts of all layers in one message. */
static void update_from_counts(bk_model *model)
{
    const bk_moe_config *c = model->moe;
    bk_arena *scratch = bk_arena_new("router counts");
    int64_t *count = BK_NEW(scratch, int64_t, bk_model_moe_layers(model) * c->experts), layers = 0;
    for (int64_t i = 0; i < model->config.layers; i++)
        if (model->block[i].moe)
            memcpy(count + layers++ * c->experts, model->block[i].moe->state.load,
                   (size_t)c->experts * sizeof *count);
    bk_sum_i64(model->world->route, layers * c->experts, count);
    layers = 0;
    for (int64_t i = 0; i < model->config.layers; i++)
        if (model->block[i].moe)
            c->router->update(c->router_config, c->experts, count + layers++ * c->experts,
                              model->block[i].moe->router_bias->data);
    bk_arena_free(scratch);
}

static void step_router(bk_moe_part *m)
{
    if (m->moved)
        memcpy(m->router_bias->data, m->next_bias,
               (size_t)m->router_bias->count * sizeof *m->next_bias);
    if (m->transported && m->router_ot_steps)
        *(int64_t *)m->router_ot_steps->data += 1;
    m->moved = m->transported = false;
}

void bk_model_step_routers(bk_model *model)
{
    for (int64_t i = 0; i < model->config.layers; i++)
        if (model->block[i].moe)
            step_router(model->block[i].moe);
    if (model->moe && model->moe->router->update)
        update_from_counts(model);
}

/* ---- advice ---- */

void bk_model_advise(const bk_model *model, int64_t steps)
{
    const bk_moe_config *c = model->moe;
    if (!c)
        return;
    if (c->hierarchy == BK_HIERARCHY_TWO_LEVEL && !bk_comm_has_levels(model->world->ep))
        bk_note(
            "model.moe.hierarchy=two_level: rows go straight, as the ranks of an expert-parallel "
            "group do not stand on two or more nodes, two or more and as many on each");
    if (c->router->advise)
        c->router->advise(c->router_config, c->k, steps);
    if (bk_model_causal(model) && c->router->flags & BK_ROUTER_TRANSPORT)
        bk_note("router %s balances over all tokens of a step while training, so that later tokens "
                "move routes of earlier ones; evaluation is plain top-k",
                c->router->name);
    if ((c->router->flags & BK_ROUTER_STATE) && c->aux != BK_AUX_NONE)
        bk_warn("router %s balances, and so does model.moe.aux: two balancers act",
                c->router->name);
}
