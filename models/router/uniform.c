/* models/router/uniform.c - for benchmarks: slot s of token t goes to expert (t k + s) mod E with
 * weight 1/k, t the token's position in the global batch.  Not collective, without a gradient. */
#include "models/router_common.h"

static const bk_option options[] = {BK_OPTION_END};

static bk_status check(const void *config, int64_t experts, int64_t k)
{
    (void)config;
    (void)experts;
    (void)k;
    return BK_OK;
}

static void route(const bk_route_args *a, bk_route *out)
{
    bk_router_begin(a, a->config, out);
    out->counted = true;
    for (int64_t i = 0; i < a->tokens * a->k; i++) {
        bool valid = bk_router_valid(a, i / a->k);
        out->index[i] = valid ? (int32_t)((a->first_token * a->k + i) % a->experts) : -1;
        out->weight[i] = valid ? 1.0 / (double)a->k : 0.0;
    }
}

const bk_router_kind bk_router_uniform = {
    .name = "uniform",
    .summary = "benchmarks only: every expert in turn, whatever the logits",
    .source = "none",
    .options = options,
    .config_size = sizeof(bk_score_config),
    .flags = BK_ROUTER_BENCHMARK,
    .check = check,
    .route = route,
};
