#include "models/internal.h"

#include "dist/collective.h"

#include <math.h>

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
    model->kind->forward(model, t, bundle);
}

/* ---- figures ---- */

static int64_t expert_size(const bk_model *model)
{
    return model->moe->hidden * (2 * model->config.width + 1) + model->config.width;
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
            hidden = (double)(model->moe->k * model->moe->hidden);
        }
        f.flops_per_sample += 2.0 * n * (4.0 * width * qkv + 2.0 * width * hidden);
        f.flops_per_sample += 4.0 * n * n * qkv * (bk_model_causal(model) ? 0.5 : 1.0);
    }
    double outputs = (double)(model->data.classes ? model->data.classes : model->data.vocabulary);
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

/* Load figures of one layer from the counts of all ranks. */
static void load_figures(const int64_t *count, int64_t experts, bk_moe_figures *out)
{
    double total = 0.0, squares = 0.0, most = 0.0, least = INFINITY;
    for (int64_t e = 0; e < experts; e++) {
        double load = (double)count[e];
        total += load;
        most = fmax(most, load);
        least = fmin(least, load);
        out->dead += count[e] == 0;
    }
    double mean = total / (double)experts;
    if (total == 0.0)
        return;
    for (int64_t e = 0; e < experts; e++) {
        double load = (double)count[e], share = load / total;
        squares += (load - mean) * (load - mean);
        out->load_entropy -= share > 0 ? share * log(share) : 0.0;
    }
    out->load_max_over_mean = most / mean;
    out->load_min_over_mean = least / mean;
    out->load_cv = sqrt(squares / (double)experts) / mean;
    out->load_entropy /= experts > 1 ? log((double)experts) : 1.0;
}

static void layer_figures(const bk_model *model, int layer, bk_moe_figures *out)
{
    const bk_moe_part *m = model->block[layer].moe;
    int64_t experts = model->moe->experts;
    bk_arena *scratch = bk_arena_new("moe figures");
    /* counts, then tokens, non-finite logits, and the two sums in units of 2^-20 */
    int64_t *sum = BK_ZNEW(scratch, int64_t, experts + 4);
    for (int64_t e = 0; e < experts; e++)
        sum[e] = m->state.count[e];
    sum[experts] = m->state.tokens;
    sum[experts + 1] = m->state.nonfinite;
    sum[experts + 2] = (int64_t)rint(ldexp(m->state.token_entropy_sum, 20));
    sum[experts + 3] = (int64_t)rint(ldexp(m->state.confidence_sum, 20));
    bk_sum_i64(model->world->route, experts + 4, sum);
    double tokens = sum[experts] > 0 ? (double)sum[experts] : 1.0;
    *out = (bk_moe_figures){.layer = layer,
                            .nonfinite_logits = sum[experts + 1],
                            .token_entropy = ldexp((double)sum[experts + 2], -20) / tokens,
                            .confidence = ldexp((double)sum[experts + 3], -20) / tokens,
                            .router_iterations = m->state.iterations,
                            .ot_steps = m->router_ot_steps ? *(int64_t *)m->router_ot_steps->data
                                                           : m->state.ot_steps,
                            .seconds_route = m->state.seconds_route,
                            .seconds_exchange = m->state.seconds_exchange,
                            .seconds_gemm = m->state.seconds_gemm,
                            .bytes_sent = m->state.bytes_sent};
    load_figures(sum, experts, out);
    bk_arena_free(scratch);
}

void bk_model_moe_figures(bk_model *model, bk_moe_figures *out)
{
    for (int64_t i = 0; i < model->config.layers; i++)
        if (model->block[i].moe)
            layer_figures(model, (int)i, out++);
}
