#include "models/internal.h"

#include <math.h>

bool bk_model_causal(const bk_model *model)
{
    return model->data.classes == 0;
}

bk_init bk_init_kind(const bk_model *model)
{
    return bk_model_causal(model) ? BK_INIT_NORMAL : BK_INIT_UNIFORM;
}

double bk_init_scale(const bk_model *model, int64_t in, int64_t out, double factor)
{
    return factor * (bk_model_causal(model) ? 0.02 : sqrt(6.0 / (double)(in + out)));
}

bk_parameter *bk_declare(bk_model *model, const bk_parameter *parameter)
{
    bk_parameter p = *parameter;
    if (p.init == BK_INIT_ZERO && p.init_scale > 0)
        p.init = bk_init_kind(model);
    return bk_slab_declare(model->slab, &p);
}

bk_linear_part bk_declare_linear(bk_model *model, const char *w, const char *b, int64_t out,
                                 int64_t in, int layer, double scale)
{
    bk_linear_part part = {0};
    part.w = bk_declare(model, &(bk_parameter){.name = w,
                                               .shape = {out, in},
                                               .dims = 2,
                                               .expert = -1,
                                               .decay = true,
                                               .init_scale = scale,
                                               .layer = layer});
    if (b)
        part.b = bk_declare(
            model,
            &(bk_parameter){.name = b, .shape = {out}, .dims = 1, .expert = -1, .layer = layer});
    return part;
}

bk_norm_part bk_declare_norm(bk_model *model, const char *gain, const char *bias, int layer)
{
    bk_parameter p = {.shape = {model->config.width}, .dims = 1, .expert = -1, .layer = layer};
    bk_norm_part part;
    p.name = gain;
    p.init = BK_INIT_ONE;
    part.gain = bk_declare(model, &p);
    p.name = bias;
    p.init = BK_INIT_ZERO;
    part.bias = bk_declare(model, &p);
    return part;
}

bk_tensor *bk_part_linear(bk_tape *t, const bk_linear_part *part, bk_tensor *x)
{
    return bk_linear(t, x, bk_tape_parameter(t, part->w),
                     part->b ? bk_tape_parameter(t, part->b) : NULL);
}

bk_tensor *bk_part_norm(bk_model *model, bk_tape *t, const bk_norm_part *part, bk_tensor *x)
{
    return bk_layernorm(t, x, bk_tape_parameter(t, part->gain), bk_tape_parameter(t, part->bias),
                        model->config.norm_epsilon);
}

bk_sum_and_norm bk_part_add_norm(bk_model *model, bk_tape *t, const bk_norm_part *part,
                                 bk_tensor *x, bk_tensor *residual)
{
    return bk_add_layernorm(t, x, residual, bk_tape_parameter(t, part->gain),
                            bk_tape_parameter(t, part->bias), model->config.norm_epsilon);
}
