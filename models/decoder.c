/* The decoder: causal pre-norm blocks in the layout of GPT-2, output embedding tied to the input
 * embedding. */
#include "models/internal.h"

static const bk_option options[] = {
    BK_OPTION_BOOL(bk_model_config, tied, true, "output embedding = input embedding"),
    BK_OPTION_END,
};

static bk_status declare(bk_model *model)
{
    if (model->data.classes > 0 || model->data.vocabulary == 0)
        return bk_fail(BK_USAGE, "model.kind decoder needs a language-model data set: use "
                                 "model.kind=encoder for classes");
    const bk_model_config *c = &model->config;
    bk_embed_declare(model);
    for (int i = 0; i < c->layers; i++)
        bk_block_declare(model, i);
    model->norm = bk_declare_norm(model, "model/norm/gain", "model/norm/bias", (int)c->layers);
    if (!c->tied)
        model->head = bk_declare_linear(model, "model/head/w", NULL, model->data.vocabulary,
                                        c->width, (int)c->layers, 0.02);
    return BK_OK;
}

static void forward(bk_model *model, bk_tape *t, bk_bundle *bundle)
{
    bk_tensor *x = bk_embed_forward(model, t, bundle);
    bk_tensor *mask = bk_bundle_get(bundle, "mask");
    bk_inside_positions(model, mask, bundle->positions);
    bk_inside_hidden(model, 0, x);
    for (int i = 0; i < model->config.layers; i++) {
        x = bk_block_forward(model, t, i, x, mask, bundle->positions);
        bk_inside_hidden(model, i + 1, x);
    }
    bk_tape_segment(t, "head");
    x = bk_part_norm(model, t, &model->norm, x);
    x = bk_reshape(t, x, BK_SHAPE(bk_rows(x), bk_cols(x)));
    bk_bundle_set(bundle, "logits",
                  model->config.tied ? bk_linear(t, x, bk_tape_parameter(t, model->tokens), NULL)
                                     : bk_part_linear(t, &model->head, x));
}

const bk_model_kind bk_model_decoder = {
    .name = "decoder",
    .summary = "causal pre-norm Transformer in the layout of GPT-2",
    .options = options,
    .declare = declare,
    .forward = forward,
};
