/* What a forward pass leaves behind for losses that look inside the model. */
#include "models/internal.h"

void bk_inside_hidden(bk_model *model, int block, bk_tensor *x)
{
    if (model->inside && block < BK_BUNDLE_LAYERS && model->inside->want_hidden[block])
        model->inside->hidden[block] = x;
}

void bk_inside_positions(bk_model *model, bk_tensor *mask, int64_t positions)
{
    if (!model->inside)
        return;
    model->inside->mask = mask;
    model->inside->positions = positions;
}

bk_tensor **bk_inside_matrix(bk_model *model, int layer)
{
    if (!(model->attention[layer].kind->flags & BK_ATTENTION_MATRIX))
        return NULL;
    if (model->matrix)
        return &model->matrix[layer];
    bool asked =
        model->inside && layer + 1 < BK_BUNDLE_LAYERS && model->inside->want_matrix[layer + 1];
    return asked ? &model->inside->matrix[layer + 1] : NULL;
}

bk_model_shape bk_model_shape_of(const bk_model *model)
{
    return (bk_model_shape){.layers = model->config.layers,
                            .width = model->config.width,
                            .heads = model->config.heads,
                            .front = bk_model_positions(model) - model->config.max_length,
                            .recomputes = model->config.recompute != BK_RECOMPUTE_NONE};
}

const char *bk_model_without_matrix(const bk_model *model, int layer)
{
    const bk_attention_kind *kind = model->attention[layer].kind;
    return kind->flags & BK_ATTENTION_MATRIX ? NULL : kind->name;
}
