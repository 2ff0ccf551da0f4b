/* losses/attention.c - distance of attention matrices A[N,N] of the student to those of the
 * teacher, a row of each real query:
 *   mse  sum over the keys of (A - T)^2      TinyBERT, Jiao et al. 2020, eq. 7 (there of scores)
 *   kl   sum over the keys of T log(T/A)     MiniLM, Wang et al. 2020, eq. 4
 * Mean over pairs of layers, heads and the real queries of the global batch.  With heads=mean the
 * matrices are first averaged over the heads, so that their numbers may differ.  For attention
 * kinds that make a matrix.  Not collective. */
#include "losses/layers.h"
#include "losses/row.h"

typedef struct attention_config {
    const char *layers;
    int measure, heads, reduction;
} attention_config;

enum { MSE, KL };
enum { EACH, MEAN };

static const bk_option options[] = {
    BK_LAYERS_OPTION(attention_config),
    BK_OPTION_CHOICE(attention_config, measure, MSE, "mse|kl", "distance of two rows"),
    BK_OPTION_CHOICE(attention_config, heads, EACH, "each|mean",
                     "head by head, or the mean of all heads"),
    BK_OPTION_CHOICE(attention_config, reduction, BK_MEAN, "mean|sum",
                     "over the real positions of the global batch"),
    BK_OPTION_END,
};

static bk_status plan(const void *config, const bk_layer_shape *student,
                      const bk_layer_shape *teacher, bk_layer_plan *out)
{
    const attention_config *c = config;
    if (c->heads == EACH && student->heads != teacher->heads)
        return bk_fail(BK_USAGE,
                       "loss attention compares heads, and the student has %lld, the teacher %lld: "
                       "use heads=mean",
                       (long long)student->heads, (long long)teacher->heads);
    return bk_layers_map("attention", c->layers, 1, student, teacher, out);
}

static bk_tensor *apply(bk_tape *t, const bk_loss_args *args)
{
    const attention_config *c = args->config;
    return bk_layers_loss(t, args, args->layers->student,
                          c->measure == MSE ? BK_LAYER_SQUARE : BK_LAYER_DIVERGENCE,
                          c->heads == MEAN, c->reduction);
}

const bk_loss_kind bk_loss_attention = {
    .name = "attention",
    .summary = "attention matrices of layers against those of the teacher",
    .source = "TinyBERT, Jiao et al. 2020; MiniLM, Wang et al. 2020",
    .options = options,
    .config_size = sizeof(attention_config),
    .flags = BK_LOSS_TEACHER | BK_LOSS_LAYERS | BK_LOSS_MATRICES,
    .plan = plan,
    .apply = apply,
};
