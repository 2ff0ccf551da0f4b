/* losses/kl.c - forward KL divergence of the teacher, sum q log(q/m), m = a q + (1-a) p.
 *   p = softmax(student/T), q = softmax(teacher/T).   Source: Hinton et al. 2015; skew: DistiLLM,
 * Ko et al. 2024. */
#include "losses/row.h"

static const bk_option options[] = {
    BK_ROW_TEMPERATURE,
    BK_ROW_T_SQUARED(true),
    BK_OPTION_F64(bk_row_config, skew, 0.0, 0.0, 0.999999,
                  "a: mix of the teacher in the second argument"),
    BK_OPTION_BOOL(bk_row_config, entropy, true, "false: leave out sum q log q (same gradient)"),
    BK_ROW_COMMON,
    BK_OPTION_END,
};

static bk_tensor *apply(bk_tape *t, const bk_loss_args *args)
{
    return bk_row_loss(t, args, BK_KL);
}

const bk_loss_kind bk_loss_kl = {
    .name = "kl",
    .summary = "forward KL divergence of the teacher",
    .source = "Hinton et al. 2015; skew: DistiLLM, Ko et al. 2024",
    .options = options,
    .config_size = sizeof(bk_row_config),
    .flags = BK_LOSS_TEACHER,
    .whole = bk_row_whole,
    .apply = apply,
};
