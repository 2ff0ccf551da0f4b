#include "models/upcycle.h"

#include "models/internal.h"

#include <math.h>
#include <string.h>

const char *bk_model_upcycle_from(const bk_model *model)
{
    return model->moe && model->moe->upcycles ? model->moe->upcycle_from : NULL;
}

bool bk_parameter_is_of_experts(const bk_parameter *p)
{
    const char *part = strchr(p->name + strlen("model/"), '/');
    return part && strncmp(part, "/moe/", 5) == 0;
}

/* ---- what it asks of a configuration ---- */

/* How far a token's weights, as the router of the evaluation gives them, are from a sum of 1; of
 * two tokens that like other experts. */
static double weight_error(const bk_moe_config *moe)
{
    enum { TOKENS = 2 };
    bk_arena *arena = bk_arena_new("upcycle"), *scratch = bk_arena_new("upcycle scratch");
    bk_lanes lanes = bk_lanes_single(TOKENS);
    double sum[TOKENS] = {0}, *logits = BK_NEW(arena, double, TOKENS * moe->experts);
    for (int64_t e = 0; e < moe->experts; e++) {
        logits[e] = -0.01 * (double)(e % 97);
        logits[moe->experts + e] = 0.02 * (double)(e % 89);
    }
    bk_route r = {0};
    moe->router->route(&(bk_route_args){.kind = moe->router,
                                        .logits = logits,
                                        .tokens = TOKENS,
                                        .experts = moe->experts,
                                        .k = moe->k,
                                        .valid = TOKENS,
                                        .bias = BK_ZNEW(arena, double, moe->experts),
                                        .lanes = &lanes,
                                        .config = moe->router_config,
                                        .arena = arena,
                                        .scratch = scratch},
                       &r);
    for (int64_t i = 0; i < TOKENS * r.slots; i++)
        sum[i / r.slots] += bk_route_sends(&r, i) ? r.weight[i] : 0.0;
    bk_arena_free(arena);
    bk_arena_free(scratch);
    return fmax(fabs(sum[0] - 1.0), fabs(sum[1] - 1.0));
}

static bk_status refuse_rest(const char *what, int64_t value, int64_t granularity)
{
    return bk_fail(BK_USAGE,
                   "%s=%lld is no multiple of model.moe.upcycle.granularity=%lld: choose one that "
                   "is",
                   what, (long long)value, (long long)granularity);
}

bk_status bk_upcycle_check(const bk_model *model, bk_moe_config *moe)
{
    int64_t pieces = moe->granularity, ffn = model->config.ffn;
    if (!moe->upcycle_from || moe->upcycle_from[0] == '\0')
        return bk_fail(BK_USAGE, "model.moe.upcycle.from is missing: name the run or checkpoint of "
                                 "the dense model");
    if (ffn % pieces != 0)
        return refuse_rest("model.ffn", ffn, pieces);
    if (moe->experts % pieces != 0)
        return refuse_rest("model.moe.experts", moe->experts, pieces);
    if (moe->k % pieces != 0)
        return refuse_rest("model.moe.k", moe->k, pieces);
    if (moe->hidden == 0)
        moe->hidden = ffn / pieces;
    if (moe->hidden != ffn / pieces)
        return bk_fail(BK_USAGE,
                       "model.moe.hidden=%lld is not model.ffn / model.moe.upcycle.granularity = "
                       "%lld: leave it out",
                       (long long)moe->hidden, (long long)(ffn / pieces));
    if (moe->activation != model->config.activation)
        return bk_fail(BK_USAGE, "model.moe.activation is not model.activation, with which the "
                                 "dense model was trained (model.moe.upcycle): give the same");
    return BK_OK;
}

bk_status bk_upcycle_check_router(const bk_moe_config *moe)
{
    if (moe->upcycles && !(weight_error(moe) < 1e-9))
        return bk_fail(BK_USAGE,
                       "the weights of router %s do not sum to 1, so the mixture would not begin "
                       "as the dense model (model.moe.upcycle): use a router with "
                       "renormalize=true and scale=1",
                       moe->router->name);
    return BK_OK;
}

/* ---- filling ---- */

static int layer_of(const bk_model *model, int i)
{
    int layer = 0;
    while (!model->block[layer].moe || i-- > 0)
        layer++;
    return layer;
}

void bk_model_dense_tensors(const bk_model *model, int i, bk_dense_tensor out[BK_DENSE_TENSORS])
{
    int64_t width = model->config.width, ffn = model->config.ffn;
    const bk_dense_tensor all[BK_DENSE_TENSORS] = {{"w1", {ffn, width}, 2},
                                                   {"b1", {ffn, 0}, 1},
                                                   {"w2", {width, ffn}, 2},
                                                   {"b2", {width, 0}, 1}};
    for (int k = 0; k < BK_DENSE_TENSORS; k++) {
        out[k] = all[k];
        out[k].name =
            bk_arena_printf(model->arena, "model/block%d/ffn/%s", layer_of(model, i), all[k].name);
    }
}

static void copy(const bk_parameter *to, const float *from)
{
    memcpy(bk_parameter_value(to->slab, to), from, (size_t)to->count * sizeof(float));
}

static void clear(const bk_parameter *p)
{
    memset(bk_parameter_value(p->slab, p), 0, (size_t)p->count * sizeof(float));
}

/* Columns `piece` F .. of w2[C,ffn], times the number of pieces. */
static void copy_columns(const bk_parameter *to, const float *w2, int64_t piece, int64_t pieces)
{
    float *value = bk_parameter_value(to->slab, to);
    int64_t rows = to->shape[0], hidden = to->shape[1];
    for (int64_t c = 0; c < rows; c++)
        for (int64_t f = 0; f < hidden; f++)
            value[c * hidden + f] = (float)pieces * w2[c * hidden * pieces + piece * hidden + f];
}

/* The first row of each replica stands for all. */
static void even_gate(const bk_parameter *gate, int64_t pieces)
{
    float *value = bk_parameter_value(gate->slab, gate);
    int64_t width = gate->shape[1];
    for (int64_t e = 0; e < gate->shape[0]; e++)
        memcpy(value + e * width, value + e / pieces * pieces * width,
               (size_t)width * sizeof *value);
}

void bk_model_upcycle(bk_model *model, int i, const float *const dense[BK_DENSE_TENSORS])
{
    int64_t pieces = model->moe->granularity, hidden = model->moe->hidden;
    const bk_moe_part *m = model->block[layer_of(model, i)].moe;
    for (int64_t e = 0; e < m->count; e++) {
        int64_t piece = (m->first + e) % pieces;
        copy(m->w1[e], dense[BK_DENSE_W1] + piece * hidden * model->config.width);
        copy(m->b1[e], dense[BK_DENSE_B1] + piece * hidden);
        copy_columns(m->w2[e], dense[BK_DENSE_W2], piece, pieces);
        copy(m->b2[e], dense[BK_DENSE_B2]);
    }
    even_gate(m->gate, pieces);
    if (m->shared_down.w) {
        clear(m->shared_down.w);
        clear(m->shared_down.b);
    }
}
