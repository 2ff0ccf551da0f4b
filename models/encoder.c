/* The encoder: pre-norm blocks over tokens or features, pooling, a classification head.  A pair of
 * texts is one sequence, as in BERT (Devlin et al. 2019): [CLS] first separator second, where the
 * separator is a symbol of the data, the second text has an embedding of its own added
 * (model/embed/segments), and [CLS] stands in front with pool: cls. */
#include "models/internal.h"

static const bk_option options[] = {
    BK_OPTION_CHOICE(bk_model_config, pool, BK_POOL_MEAN, "cls|mean|first",
                     "what the head reads (mean: over real positions)"),
    BK_OPTION_END,
};

static bk_status declare(bk_model *model)
{
    if (model->data.classes == 0)
        return bk_fail(BK_USAGE, "model.kind encoder needs a data set with classes: use "
                                 "model.kind=decoder for a language model");
    const bk_model_config *c = &model->config;
    bk_embed_declare(model);
    for (int i = 0; i < c->layers; i++)
        bk_block_declare(model, i);
    model->norm = bk_declare_norm(model, "model/norm/gain", "model/norm/bias", (int)c->layers);
    model->head =
        bk_declare_linear(model, "model/head/w", "model/head/b", model->data.classes, c->width,
                          (int)c->layers, bk_init_scale(model, c->width, model->data.classes, 1.0));
    return BK_OK;
}

/* mask[B,N] -> [B,N+1]: the CLS position in front is always real. */
static bk_tensor *mask_with_cls(bk_tape *t, const bk_tensor *mask)
{
    int64_t samples = mask->shape[0], n = mask->shape[1];
    bk_tensor *wide = bk_tape_constant(t, BK_I32, BK_SHAPE(samples, n + 1));
    int32_t *to = wide->data;
    for (int64_t b = 0; b < samples; b++) {
        to[b * (n + 1)] = 1;
        for (int64_t i = 0; i < n; i++)
            to[b * (n + 1) + 1 + i] = bk_i32(mask)[b * n + i];
    }
    return wide;
}

static bk_tensor *pool(const bk_model *model, bk_tape *t, bk_tensor *x, bk_tensor *mask)
{
    return model->config.pool == BK_POOL_MEAN ? bk_pool_mean(t, x, mask) : bk_pool_first(t, x);
}

static void forward(bk_model *model, bk_tape *t, bk_bundle *bundle)
{
    bk_tensor *mask = bk_bundle_get(bundle, "mask");
    int64_t positions = bundle->positions;
    bk_tensor *x = bk_embed_forward(model, t, bundle);
    if (model->cls) {
        mask = mask ? mask_with_cls(t, mask) : NULL;
        positions += t->lanes.batch;
    }
    bk_inside_positions(model, mask, positions);
    bk_inside_hidden(model, 0, x);
    for (int i = 0; i < model->config.layers; i++) {
        x = bk_block_forward(model, t, i, x, mask, positions);
        bk_inside_hidden(model, i + 1, x);
    }
    bk_tape_segment(t, "head");
    x = pool(model, t, bk_part_norm(model, t, &model->norm, x), mask);
    bk_bundle_set(bundle, "logits", bk_part_linear(t, &model->head, x));
}

const bk_model_kind bk_model_encoder = {
    .name = "encoder",
    .summary = "pre-norm Transformer over tokens or features with a classification head",
    .options = options,
    .declare = declare,
    .forward = forward,
};
