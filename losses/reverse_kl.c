/* losses/reverse_kl.c - reverse KL divergence, sum p log(p/m), m = (1-a) q + a p.
 *   p = softmax(student/T), q = softmax(teacher/T).   Source: Gu et al. 2024 (MiniLLM). */
#include "losses/row.h"

static const bk_option options[] = {
    BK_ROW_TEMPERATURE,
    BK_ROW_T_SQUARED(true),
    BK_OPTION_F64(bk_row_config, skew, 0.0, 0.0, 0.999999,
                  "a: mix of the student in the second argument"),
    BK_ROW_COMMON,
    BK_OPTION_END,
};

static bk_tensor *apply(bk_tape *t, const bk_loss_args *args)
{
    return bk_row_loss(t, args, BK_REVERSE_KL);
}

const bk_loss_kind bk_loss_reverse_kl = {
    .name = "reverse_kl",
    .summary = "reverse KL divergence",
    .source = "Gu et al. 2024 (MiniLLM)",
    .options = options,
    .config_size = sizeof(bk_row_config),
    .flags = BK_LOSS_TEACHER,
    .whole = bk_row_whole,
    .apply = apply,
};
