/* losses/hidden.c - distance of hidden states h[C] of the student, through a learned linear map
 * W[D,C], to those of the teacher, t[D]; the residual stream behind a block (0: before the first):
 *   mse     1/D |W h - t|^2      TinyBERT, Jiao et al. 2020, eq. 8; FitNets, Romero et al. 2015
 *   cosine  1 - cos(W h, t)      half the squared distance of unit vectors of PKD, Sun et al. 2019,
 *                                eq. 7
 * Mean over pairs of layers and over the real positions of the global batch.  W is a parameter of
 * the student, distill/hidden<i>/w, where the widths differ.  Not collective. */
#include "core/ops.h"
#include "losses/layers.h"
#include "losses/row.h"

typedef struct hidden_config {
    const char *layers;
    int measure, projection, reduction;
} hidden_config;

enum { MSE, COSINE };
enum { AUTO, LINEAR, NONE };

static const bk_option options[] = {
    BK_LAYERS_OPTION(hidden_config),
    BK_OPTION_CHOICE(hidden_config, measure, MSE, "mse|cosine", "distance of two states"),
    BK_OPTION_CHOICE(hidden_config, projection, AUTO, "auto|linear|none",
                     "learned map to the teacher's width (auto: where the widths differ)"),
    BK_OPTION_CHOICE(hidden_config, reduction, BK_MEAN, "mean|sum",
                     "over the real positions of the global batch"),
    BK_OPTION_END,
};

static bk_status plan(const void *config, const bk_layer_shape *student,
                      const bk_layer_shape *teacher, bk_layer_plan *out)
{
    const hidden_config *c = config;
    bool differ = student->width != teacher->width;
    if (c->projection == NONE && differ)
        return bk_fail(BK_USAGE,
                       "projection=none of hidden, but the student is %lld wide and the teacher "
                       "%lld: use projection=linear",
                       (long long)student->width, (long long)teacher->width);
    BK_TRY(bk_layers_map("hidden", c->layers, 0, student, teacher, out));
    out->project = c->projection == LINEAR || differ;
    return BK_OK;
}

static bk_tensor *apply(bk_tape *t, const bk_loss_args *args)
{
    const hidden_config *c = args->config;
    const bk_loss_layers *l = args->layers;
    bk_tensor *x[BK_LOSS_PAIRS];
    for (int k = 0; k < l->pairs; k++)
        x[k] = l->weight[k] ? bk_linear(t, l->student[k], l->weight[k], NULL) : l->student[k];
    return bk_layers_loss(t, args, x, c->measure == MSE ? BK_LAYER_MEAN_SQUARE : BK_LAYER_COSINE,
                          false, c->reduction);
}

const bk_loss_kind bk_loss_hidden = {
    .name = "hidden",
    .summary = "hidden states of layers against those of the teacher",
    .source = "FitNets, Romero et al. 2015; TinyBERT, Jiao et al. 2020; PKD, Sun et al. 2019",
    .options = options,
    .config_size = sizeof(hidden_config),
    .flags = BK_LOSS_TEACHER | BK_LOSS_LAYERS,
    .plan = plan,
    .apply = apply,
};
