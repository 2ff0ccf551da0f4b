/* models/router/topk.c - the k largest logits; weights are scores at the kept.  Not collective. */
#include "models/router_common.h"

typedef struct topk_config {
    bk_score_config base;
} topk_config;

static const bk_option options[] = {
    BK_SCORE_OPTIONS(topk_config, "none|logits"),
    BK_OPTION_END,
};

static bool renormalizes(const topk_config *c, int64_t k)
{
    return c->base.renormalize == BK_TRUE || (c->base.renormalize == BK_AUTO && k > 1);
}

static bk_status check(const void *config, int64_t experts, int64_t k)
{
    const topk_config *c = config;
    (void)experts;
    if (k == 1 && c->base.renormalize == BK_TRUE)
        return bk_fail(
            BK_USAGE,
            "renormalize=true with k=1 gives the gate no gradient (model.moe.router): use false");
    return BK_OK;
}

static void route(const bk_route_args *a, bk_route *out)
{
    const topk_config *c = a->config;
    bk_router_plain(a, &c->base, renormalizes(c, a->k), out);
}

static void backward(const bk_route_args *a, const bk_route *r, const double *gw, double *gh)
{
    const topk_config *c = a->config;
    bk_router_weights_back(a, &c->base, renormalizes(c, a->k), r, gw, gh);
}

const bk_router_kind bk_router_topk = {
    .name = "topk",
    .summary = "the k experts with the largest logits",
    .source = "Shazeer et al. 2017; weights as in Mixtral",
    .options = options,
    .config_size = sizeof(topk_config),
    .check = check,
    .route = route,
    .backward = backward,
};
