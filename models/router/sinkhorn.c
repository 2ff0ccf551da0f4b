/* models/router/sinkhorn.c - S-BASE (Clark et al. 2022): every training step selects by the plan of
 * an entropic transport problem over the tokens of the step; evaluation is plain top-k.  Collective
 * while training. */
#include "models/router_common.h"

typedef struct sinkhorn_config {
    bk_transport_config transport;
    int weights;
} sinkhorn_config;

enum { SCORES, PLAN };

static const bk_option options[] = {
    BK_TRANSPORT_OPTIONS,
    BK_OPTION_CHOICE(sinkhorn_config, weights, SCORES, "scores|plan",
                     "scores at the kept, or the plan's entries"),
    BK_OPTION_END,
};

/* Unlike elsewhere auto means false, for every k. */
static bool renormalizes(const sinkhorn_config *c)
{
    return c->transport.base.renormalize == BK_TRUE;
}

static bk_status check(const void *config, int64_t experts, int64_t k)
{
    const sinkhorn_config *c = config;
    if (c->weights == SCORES && c->transport.gradient != BK_GRADIENT_DETACH)
        return bk_fail(BK_USAGE, "gradient is of weights from the plan, weights=scores has none "
                                 "(model.moe.router): set weights=plan, or leave gradient out");
    return bk_router_check_scores(config, experts, k);
}

static void route(const bk_route_args *a, bk_route *out)
{
    const sinkhorn_config *c = a->config;
    const bk_score_config *base = &c->transport.base;
    if (!a->training) {
        bk_router_plain(a, base, renormalizes(c), out);
        return;
    }
    bk_router_transport(a, &c->transport, out);
    if (c->weights == PLAN)
        bk_router_plan_weights(a, base->scale, out);
    else
        bk_router_weights(a, base, renormalizes(c), out, out->weight);
}

static void backward(const bk_route_args *a, const bk_route *r, const bk_route_back *b)
{
    const sinkhorn_config *c = a->config;
    if (r->transport && c->weights == PLAN)
        bk_router_plan_back(a, &c->transport, r, b->weight, b->logits);
    else
        bk_router_weights_back(a, &c->transport.base, renormalizes(c), r, b->weight, b->logits);
}

const bk_router_kind bk_router_sinkhorn = {
    .name = "sinkhorn",
    .summary = "balanced by entropic transport on every training step (S-BASE)",
    .source = "Clark et al. 2022",
    .options = options,
    .config_size = sizeof(sinkhorn_config),
    .flags = BK_ROUTER_STATE | BK_ROUTER_COLLECTIVE | BK_ROUTER_TRANSPORT,
    .check = check,
    .route = route,
    .backward = backward,
};
