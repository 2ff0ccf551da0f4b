/* losses/js.c - Jensen-Shannon divergence, b KL(q|m) + (1-b) KL(p|m), m = b q + (1-b) p.
 *   p = softmax(student/T), q = softmax(teacher/T).   Source: Lin 1991; Agarwal et al. 2024. */
#include "losses/row.h"

static const bk_option options[] = {
    BK_ROW_TEMPERATURE,
    BK_ROW_T_SQUARED(true),
    BK_OPTION_F64(bk_row_config, beta, 0.5, 0.0, 1.0,
                  "b, neither 0 nor 1: those are kl and reverse_kl"),
    BK_ROW_COMMON,
    BK_OPTION_END,
};

static bk_status check(const void *config, bk_dtype dtype)
{
    const bk_row_config *c = config;
    (void)dtype;
    if (c->beta > 0.0 && c->beta < 1.0)
        return BK_OK;
    return bk_fail(BK_USAGE, "beta=%g of js is %s: use that loss, or 0 < beta < 1", c->beta,
                   c->beta > 0.0 ? "reverse_kl" : "kl");
}

static bk_tensor *apply(bk_tape *t, const bk_loss_args *args)
{
    return bk_row_loss(t, args, BK_JS);
}

const bk_loss_kind bk_loss_js = {
    .name = "js",
    .summary = "Jensen-Shannon divergence",
    .source = "Lin 1991; Agarwal et al. 2024",
    .options = options,
    .config_size = sizeof(bk_row_config),
    .flags = BK_LOSS_TEACHER,
    .whole = bk_row_whole,
    .check = check,
    .apply = apply,
};
