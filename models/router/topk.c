/* models/router/topk.c - the k largest logits; weights are scores at the kept.  Not collective. */
#include "models/router_common.h"

typedef bk_score_config topk_config;

static const bk_option options[] = {
    BK_SCORE_OPTIONS(BK_SCORE_SOFTMAX),
    BK_NOISE_OPTIONS("none|logits"),
    BK_GROUP_OPTIONS,
    BK_OPTION_END,
};

static void route(const bk_route_args *a, bk_route *out)
{
    const topk_config *c = a->config;
    bk_router_plain(a, c, bk_router_renormalizes(c, a->k), out);
}

const bk_router_kind bk_router_topk = {
    .name = "topk",
    .summary = "the k experts with the largest logits",
    .source = "Shazeer et al. 2017; weights as in Mixtral",
    .options = options,
    .config_size = sizeof(topk_config),
    .check = bk_router_check_scores,
    .route = route,
    .backward = bk_router_scores_back,
};
