/* models/router/bias.c - balancing without a loss (Wang et al. 2024, DeepSeek-V3): selection by
 * score + bias, weights from the score alone; after each step that was applied
 *   b_j += rate sign(mean(cnt) - cnt_j),  cnt = choices of the step's tokens over all ranks.
 * Not collective. */
#include "models/router_common.h"

typedef struct bias_config {
    bk_score_config base;
    double rate;
} bias_config;

static const bk_option options[] = {
    BK_SCORE_OPTIONS(BK_SCORE_SIGMOID),
    BK_GROUP_OPTIONS,
    BK_OPTION_F64_ABOVE(bias_config, rate, 1e-3, 0.0, 1e3, "what a bias moves by in a step"),
    BK_OPTION_END,
};

static void route(const bk_route_args *a, bk_route *out)
{
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    bk_router_biased(a, a->config, out);
    bk_arena_release(a->scratch, mark);
}

static void update(const void *config, int64_t experts, const int64_t *count, double *bias)
{
    const bias_config *c = config;
    int64_t all = 0;
    for (int64_t e = 0; e < experts; e++)
        all += count[e];
    for (int64_t e = 0; e < experts; e++) {
        int64_t below = all - experts * count[e]; /* E (mean - cnt) */
        bias[e] += c->rate * (double)((below > 0) - (below < 0));
    }
}

const bk_router_kind bk_router_bias = {
    .name = "bias",
    .summary = "balanced without a loss: a bias that counts move after each step",
    .source = "arXiv 2408.15664",
    .options = options,
    .config_size = sizeof(bias_config),
    .flags = BK_ROUTER_STATE,
    .check = bk_router_check_scores,
    .route = route,
    .backward = bk_router_scores_back,
    .update = update,
};
