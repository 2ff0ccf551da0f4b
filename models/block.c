#include "core/recompute.h"
#include "models/internal.h"

#include <math.h>

static bool has_bias(const bk_model *model, int layer)
{
    int bias = model->attention[layer].bias;
    return bias == 2 || (bias == 0 && bk_model_causal(model));
}

static const char *name(bk_model *model, int layer, const char *rest)
{
    return bk_arena_printf(model->arena, "model/block%d/%s", layer, rest);
}

static bk_linear_part declare_projection(bk_model *model, int layer, char which, int64_t out,
                                         int64_t in)
{
    double residual = which == 'o' && bk_model_causal(model)
                          ? 1.0 / sqrt(2.0 * (double)model->config.layers)
                          : 1.0;
    const char *w = bk_arena_printf(model->arena, "model/block%d/attention/w%c", layer, which);
    const char *b = bk_arena_printf(model->arena, "model/block%d/attention/b%c", layer, which);
    return bk_declare_linear(model, w, has_bias(model, layer) ? b : NULL, out, in, layer,
                             bk_init_scale(model, in, out, residual));
}

static void declare_one(bk_model *model, int layer, const bk_attention_parameter *own,
                        bk_parameter **parameter, bk_buffer **fixed)
{
    const char *logical =
        bk_arena_printf(model->arena, "model/block%d/attention/%s", layer, own->name);
    if (own->fixed) {
        *fixed = bk_slab_declare_buffer(model->slab, logical, BK_F32, own->dims, own->shape);
        (*fixed)->init_scale = own->init_scale;
        (*fixed)->layer = layer;
        return;
    }
    bk_parameter p = {.name = logical,
                      .dims = own->dims,
                      .expert = -1,
                      .decay = own->dims > 1,
                      .init_scale = own->init_scale,
                      .layer = layer};
    for (int j = 0; j < own->dims; j++)
        p.shape[j] = own->shape[j];
    *parameter = bk_declare(model, &p);
}

static void declare_own(bk_model *model, int layer, bk_attention_part *part)
{
    const bk_model_config *c = &model->config;
    const bk_attention_config *a = &model->attention[layer];
    bk_attention_parameter own[BK_ATTENTION_PARAMETERS] = {0};
    part->owns = a->kind->declare ? a->kind->declare(a->config, c->heads, c->qkv_width / c->heads,
                                                     bk_model_positions(model), own)
                                  : 0;
    for (int i = 0; i < part->owns; i++)
        declare_one(model, layer, &own[i], &part->own[i], &part->fixed[i]);
}

void bk_block_declare(bk_model *model, int layer)
{
    const bk_model_config *c = &model->config;
    bk_block *block = &model->block[layer];
    bk_attention_part *a = &block->attention;
    block->segment = bk_arena_printf(model->arena, "block%d", layer);
    block->norm1 = bk_declare_norm(model, name(model, layer, "norm1/gain"),
                                   name(model, layer, "norm1/bias"), layer);
    a->q = declare_projection(model, layer, 'q', c->qkv_width, c->width);
    a->k = declare_projection(model, layer, 'k', c->qkv_width, c->width);
    a->v = declare_projection(model, layer, 'v', c->qkv_width, c->width);
    declare_own(model, layer, a);
    a->o = declare_projection(model, layer, 'o', c->width, c->qkv_width);
    block->norm2 = bk_declare_norm(model, name(model, layer, "norm2/gain"),
                                   name(model, layer, "norm2/bias"), layer);
    bk_feedforward_declare(model, layer);
}

/* [B,N,H*D], or [B,H,N,D] for a kind that wants the heads apart. */
static bk_tensor *project(bk_tape *t, const bk_linear_part *part, bk_tensor *x, bool joined,
                          int64_t heads)
{
    bk_tensor *y = bk_part_linear(t, part, x);
    return joined ? y : bk_split_heads(t, y, heads);
}

static bk_tensor *fixed_leaf(bk_tape *t, const bk_buffer *b)
{
    return bk_tensor_wrap(t->arena, b->dtype, b->dims, b->shape, b->data);
}

static bk_tensor *attention(bk_model *model, bk_tape *t, int layer, bk_tensor *x, bk_tensor *mask)
{
    const bk_attention_part *part = &model->block[layer].attention;
    const bk_attention_config *config = &model->attention[layer];
    bool joined = config->kind->flags & BK_ATTENTION_JOINED;
    int64_t heads = model->config.heads;
    bk_attention_args a = {.heads = joined ? heads : 0,
                           .mask = mask,
                           .positions = bk_model_positions(model),
                           .causal = bk_model_causal(model),
                           .dropout = config->dropout,
                           .layer = layer,
                           .config = config->config,
                           .figures = model->config.recompute == BK_RECOMPUTE_NONE};
    a.q = project(t, &part->q, x, joined, heads);
    a.k = project(t, &part->k, x, joined, heads);
    a.v = project(t, &part->v, x, joined, heads);
    for (int i = 0; i < part->owns; i++)
        a.parameter[i] =
            part->own[i] ? bk_tape_parameter(t, part->own[i]) : fixed_leaf(t, part->fixed[i]);
    a.matrix = bk_inside_matrix(model, layer);
    bk_tensor *y = config->kind->apply(t, &a);
    return bk_part_linear(t, &part->o, joined ? y : bk_merge_heads(t, y));
}

/* What the stretches of a block work on. */
typedef struct pass {
    bk_model *model;
    int layer;
    bk_tensor *mask;
    int64_t positions;
} pass;

/* What attention adds to x. */
static bk_tensor *attended(const pass *p, bk_tape *t, bk_tensor *x)
{
    const bk_block *block = &p->model->block[p->layer];
    bk_tensor *a =
        attention(p->model, t, p->layer, bk_part_norm(p->model, t, &block->norm1, x), p->mask);
    return bk_dropout(t, a, p->model->config.dropout, p->layer, BK_USE_DROPOUT_ATTENTION_OUT);
}

/* x + what the feed-forward makes of its norm. */
static bk_tensor *fed_forward(const pass *p, bk_tape *t, bk_tensor *x, bk_tensor *norm)
{
    bk_tensor *f = bk_feedforward(p->model, t, p->layer, norm, p->mask, p->positions);
    return bk_add(t, x,
                  bk_dropout(t, f, p->model->config.dropout, p->layer, BK_USE_DROPOUT_FFN_OUT));
}

static bk_tensor *attention_half(void *context, bk_tape *t, bk_tensor *x)
{
    return bk_add(t, x, attended(context, t, x));
}

static bk_tensor *feedforward_half(const pass *p, bk_tape *t, bk_tensor *x)
{
    const bk_block *block = &p->model->block[p->layer];
    return fed_forward(p, t, x, bk_part_norm(p->model, t, &block->norm2, x));
}

static bk_tensor *both_halves(void *context, bk_tape *t, bk_tensor *x)
{
    const pass *p = context;
    const bk_block *block = &p->model->block[p->layer];
    bk_sum_and_norm y = bk_part_add_norm(p->model, t, &block->norm2, x, attended(p, t, x));
    return fed_forward(p, t, y.sum, y.norm);
}

bk_tensor *bk_block_forward(bk_model *model, bk_tape *t, int layer, bk_tensor *x, bk_tensor *mask,
                            int64_t positions)
{
    const bk_block *block = &model->block[layer];
    pass *p = BK_NEW(t->arena, pass, 1);
    *p = (pass){model, layer, mask, positions};
    bk_tape_segment(t, block->segment);
    if (t->recording && model->config.recompute == BK_RECOMPUTE_NONE)
        return both_halves(p, t, x);
    if (!block->moe)
        return bk_recompute(t, both_halves, p, x);
    return feedforward_half(p, t, bk_recompute(t, attention_half, p, x)); /* routers have state */
}
