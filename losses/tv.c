/* losses/tv.c - total variation, 1/2 sum |p - q|.
 *   p = softmax(student/T), q = softmax(teacher/T).   Source: Wen et al. 2023. */
#include "losses/row.h"

static const bk_option options[] = {
    BK_ROW_TEMPERATURE,
    BK_ROW_T_SQUARED(false),
    BK_ROW_COMMON,
    BK_OPTION_END,
};

static bk_tensor *apply(bk_tape *t, const bk_loss_args *args)
{
    return bk_row_loss(t, args, BK_TV);
}

const bk_loss_kind bk_loss_tv = {
    .name = "tv",
    .summary = "total variation",
    .source = "Wen et al. 2023",
    .options = options,
    .config_size = sizeof(bk_row_config),
    .flags = BK_LOSS_TEACHER,
    .whole = bk_row_whole,
    .apply = apply,
};
