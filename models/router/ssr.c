/* models/router/ssr.c - Selective Sinkhorn Routing (arXiv 2511.08972): a drawn share of the
 * training steps routes by the transport plan, the others and evaluation by plain top-k.  The draw
 * is one number for each (step, layer), the same on every rank.  Collective on transport steps. */
#include "core/rng.h"
#include "models/router_common.h"

typedef struct ssr_config {
    bk_score_config base;
    bk_transport_config transport;
    double probability;
    int noise_branch;
} ssr_config;

enum { ALL, OT };

static const bk_option options[] = {
    BK_SCORE_OPTIONS(ssr_config, "none|logits|cost"),
    BK_TRANSPORT_OPTIONS(ssr_config),
    BK_OPTION_F64(ssr_config, probability, 0.01, 0.0, 1.0,
                  "share of the training steps that route by transport"),
    BK_OPTION_CHOICE(ssr_config, noise_branch, 0, "all|ot", "training steps that get noise"),
    BK_OPTION_END,
};

static bool renormalizes(const ssr_config *c, int64_t k)
{
    return c->base.renormalize == BK_TRUE || (c->base.renormalize == BK_AUTO && k > 1);
}

static bk_status check(const void *config, int64_t experts, int64_t k)
{
    const ssr_config *c = config;
    (void)experts;
    if (k == 1 && c->base.renormalize == BK_TRUE)
        return bk_fail(
            BK_USAGE,
            "renormalize=true with k=1 gives the gate no gradient (model.moe.router): use false");
    return BK_OK;
}

static bool draws_transport(const bk_route_args *a, double probability)
{
    double u = bk_unit(BK_HASH64(a->seed, 1, (uint64_t)a->step, (uint64_t)a->layer));
    return a->training && u < probability;
}

static void route(const bk_route_args *a, bk_route *out)
{
    const ssr_config *c = a->config;
    bool transport = draws_transport(a, c->probability);
    bk_attribute_set_integer(a->attributes, "ot", transport);
    if (transport) {
        bk_router_transport(a, &c->transport, &c->base, out);
        bk_router_plan_weights(a, out, c->base.scale, out->weight);
        return;
    }
    bk_score_config plain = c->base;
    if (c->noise_branch == OT)
        plain.noise = BK_NOISE_NONE;
    bk_router_plain(a, &plain, renormalizes(c, a->k), out);
}

static void backward(const bk_route_args *a, const bk_route *r, const double *gw, double *gh)
{
    const ssr_config *c = a->config;
    if (r->transport)
        bk_router_plan_back(a, &c->transport, c->base.scale, r, gw, gh);
    else
        bk_router_weights_back(a, &c->base, renormalizes(c, a->k), r, gw, gh);
}

const bk_router_kind bk_router_ssr = {
    .name = "ssr",
    .summary = "Selective Sinkhorn Routing: transport on a drawn share of the steps",
    .source = "arXiv 2511.08972",
    .options = options,
    .config_size = sizeof(ssr_config),
    .flags = BK_ROUTER_STATE | BK_ROUTER_COLLECTIVE,
    .check = check,
    .route = route,
    .backward = backward,
};
