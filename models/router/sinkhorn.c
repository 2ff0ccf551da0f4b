/* models/router/sinkhorn.c - S-BASE (Clark et al. 2022): every training step selects by the plan of
 * an entropic transport problem over the tokens of the step; evaluation is plain top-k.  Collective
 * while training. */
#include "models/router_common.h"

typedef struct sinkhorn_config {
    bk_score_config base;
    bk_transport_config transport;
    int weights;
} sinkhorn_config;

enum { SCORES, PLAN };

static const bk_option options[] = {
    BK_SCORE_OPTIONS(sinkhorn_config, "none|logits|cost"),
    BK_TRANSPORT_OPTIONS(sinkhorn_config),
    BK_OPTION_CHOICE(sinkhorn_config, weights, 0, "scores|plan",
                     "scores at the kept, or the plan's entries"),
    BK_OPTION_END,
};

static bool renormalizes(const sinkhorn_config *c)
{
    return c->base.renormalize == BK_TRUE;
}

static bk_status check(const void *config, int64_t experts, int64_t k)
{
    const sinkhorn_config *c = config;
    (void)experts;
    if (k == 1 && c->base.renormalize == BK_TRUE)
        return bk_fail(
            BK_USAGE,
            "renormalize=true with k=1 gives the gate no gradient (model.moe.router): use false");
    return BK_OK;
}

static void route(const bk_route_args *a, bk_route *out)
{
    const sinkhorn_config *c = a->config;
    if (!a->training) {
        bk_router_plain(a, &c->base, renormalizes(c), out);
        return;
    }
    bk_router_transport(a, &c->transport, &c->base, out);
    if (c->weights == PLAN)
        bk_router_plan_weights(a, out, c->base.scale, out->weight);
    else
        bk_router_weights(a, &c->base, renormalizes(c), out->seen, out->index, out->weight);
}

static void backward(const bk_route_args *a, const bk_route *r, const double *gw, double *gh)
{
    const sinkhorn_config *c = a->config;
    if (r->transport && c->weights == PLAN)
        bk_router_plan_back(a, &c->transport, c->base.scale, r, gw, gh);
    else
        bk_router_weights_back(a, &c->base, renormalizes(c), r, gw, gh);
}

const bk_router_kind bk_router_sinkhorn = {
    .name = "sinkhorn",
    .summary = "balanced by entropic transport on every training step (S-BASE)",
    .source = "Clark et al. 2022",
    .options = options,
    .config_size = sizeof(sinkhorn_config),
    .flags = BK_ROUTER_STATE | BK_ROUTER_COLLECTIVE,
    .check = check,
    .route = route,
    .backward = backward,
};
