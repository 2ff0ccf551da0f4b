/* models/router/ssr.c - Selective Sinkhorn Routing (arXiv 2511.08972): a drawn share of the
 * training steps routes by the transport plan, the others and evaluation by plain top-k.  The draw
 * is one number for each (step, layer), the same on every rank.  Collective on transport steps. */
#include "core/log.h"
#include "models/router_common.h"

#include <math.h>

typedef struct ssr_config {
    bk_transport_config transport;
    double probability;
    int noise_branch;
} ssr_config;

enum { ALL, OT };

static const bk_option options[] = {
    BK_TRANSPORT_OPTIONS,
    BK_OPTION_F64(ssr_config, probability, 0.01, 0.0, 1.0,
                  "share of the training steps that route by transport"),
    BK_OPTION_CHOICE(ssr_config, noise_branch, ALL, "all|ot", "training steps that get noise"),
    BK_OPTION_END,
};

static void advise(const void *config, int64_t k, int64_t steps)
{
    const ssr_config *c = config;
    double expected = floor(c->probability * (double)steps);
    if (expected < 100.0)
        bk_warn("ssr acts on about %.0f of %lld steps: below 100 it hardly acts; raise "
                "model.moe.router.probability",
                expected, (long long)steps);
    if (k == 1 && c->probability > 0.0)
        bk_warn("ssr with k=1: the plan's weights are all %g on transport steps, which teach the "
                "gate nothing",
                c->transport.base.scale);
}

static void route(const bk_route_args *a, bk_route *out)
{
    const ssr_config *c = a->config;
    bk_score_config plain = c->transport.base;
    bool transport =
        a->training && bk_route_draw_branch(a->seed, a->step, a->layer) < c->probability;
    bk_attribute_set_integer(a->attributes, "ot", transport);
    if (transport) {
        bk_router_transport(a, &c->transport, out);
        bk_router_plan_weights(a, plain.scale, out);
        return;
    }
    if (c->noise_branch == OT)
        plain.noise = BK_NOISE_NONE;
    bk_router_plain(a, &plain, bk_router_renormalizes(&plain, a->k), out);
}

static void backward(const bk_route_args *a, const bk_route *r, const bk_route_back *b)
{
    const ssr_config *c = a->config;
    const bk_score_config *plain = &c->transport.base;
    if (r->transport)
        bk_router_plan_back(a, &c->transport, r, b->weight, b->logits);
    else
        bk_router_weights_back(a, plain, bk_router_renormalizes(plain, a->k), r, b->weight,
                               b->logits);
}

const bk_router_kind bk_router_ssr = {
    .name = "ssr",
    .summary = "Selective Sinkhorn Routing: transport on a drawn share of the steps",
    .source = "arXiv 2511.08972",
    .options = options,
    .config_size = sizeof(ssr_config),
    .flags = BK_ROUTER_STATE | BK_ROUTER_COLLECTIVE | BK_ROUTER_TRANSPORT,
    .check = bk_router_check_scores,
    .advise = advise,
    .route = route,
    .backward = backward,
};
