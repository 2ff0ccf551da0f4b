/* From tokens or features to the residual stream. */
#include "models/internal.h"

#include <math.h>

static bool uses_cls(const bk_model *model)
{
    return !bk_model_causal(model) && model->config.pool == BK_POOL_CLS;
}

int64_t bk_model_positions(const bk_model *model)
{
    return model->config.max_length + uses_cls(model);
}

static int64_t rows_of_positions(const bk_model *model)
{
    int64_t length = model->config.max_length;
    int64_t padded =
        model->data.channels > 0 ? length : (length + 15) / 16 * 16; /* by the sampler */
    return padded + uses_cls(model);
}

static bk_parameter *declare_table(bk_model *model, const char *name, int64_t rows, double scale)
{
    return bk_declare(model, &(bk_parameter){.name = name,
                                             .shape = {rows, model->config.width},
                                             .dims = 2,
                                             .expert = -1,
                                             .init = BK_INIT_NORMAL,
                                             .init_scale = scale,
                                             .uses = 1});
}

void bk_embed_declare(bk_model *model)
{
    const bk_model_config *c = &model->config;
    if (model->data.channels > 0) {
        model->features = bk_declare_linear(
            model, "model/embed/features", "model/embed/bias", c->width, model->data.channels, 0,
            bk_init_scale(model, model->data.channels, c->width, 1.0));
    } else {
        bool tied = bk_model_causal(model) && c->tied;
        model->tokens = declare_table(model, "model/embed/tokens", model->data.vocabulary, 0.02);
        model->tokens->decay = tied;
        model->tokens->uses = tied ? 2 : 1;
    }
    if (model->data.segments > 0)
        model->segments = declare_table(model, "model/embed/segments", model->data.segments, 0.02);
    if (c->positions == BK_POSITIONS_LEARNED)
        model->positions =
            declare_table(model, "model/embed/positions", rows_of_positions(model), 0.02);
    if (uses_cls(model))
        model->cls = bk_declare(model, &(bk_parameter){.name = "model/embed/cls",
                                                       .shape = {c->width},
                                                       .dims = 1,
                                                       .expert = -1,
                                                       .init = BK_INIT_ZERO});
}

/* sin at even channels, cos at odd ones, 10000^(-2i/C) (Vaswani et al. 2017), as a constant. */
static bk_tensor *sinusoids(bk_tape *t, int64_t rows, int64_t width)
{
    bk_tensor *p = bk_tape_constant(t, BK_F32, BK_SHAPE(rows, width));
    float *x = p->data;
    for (int64_t n = 0; n < rows; n++)
        for (int64_t c = 0; c < width; c++) {
            double angle = (double)n * pow(10000.0, -(double)(c / 2 * 2) / (double)width);
            x[n * width + c] = (float)(c % 2 == 0 ? sin(angle) : cos(angle));
        }
    return p;
}

static bk_tensor *add_positions(bk_model *model, bk_tape *t, bk_tensor *x)
{
    switch (model->config.positions) {
    case BK_POSITIONS_LEARNED:
        return bk_add_positions(t, x, bk_tape_parameter(t, model->positions));
    case BK_POSITIONS_SINUSOID:
        return bk_add_positions(t, x, sinusoids(t, x->shape[1], x->shape[2]));
    default:
        return x;
    }
}

bk_tensor *bk_embed_forward(bk_model *model, bk_tape *t, const bk_bundle *bundle)
{
    bk_tape_segment(t, "embed");
    bk_tensor *x =
        model->tokens
            ? bk_embed(t, bk_bundle_need(bundle, "tokens"), bk_tape_parameter(t, model->tokens))
            : bk_part_linear(t, &model->features, bk_bundle_need(bundle, "features"));
    if (model->segments)
        x = bk_add(
            t, x,
            bk_embed(t, bk_bundle_need(bundle, "segments"), bk_tape_parameter(t, model->segments)));
    if (uses_cls(model))
        x = bk_prepend(t, x, bk_tape_parameter(t, model->cls));
    x = add_positions(model, t, x);
    return bk_dropout(t, x, model->config.dropout, 0, BK_USE_DROPOUT_EMBED);
}
