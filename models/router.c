/* The table of routers, their draws, and what goes with which kind. */
#include "models/router_common.h"

#include "core/rng.h"

#include <math.h>
#include <string.h>

#define ROUTER(kind) extern const bk_router_kind bk_router_##kind;
#include "models/router/kinds.def"
#undef ROUTER

#define ROUTER(kind) &bk_router_##kind,
const bk_router_kind *const bk_routers[] = {
#include "models/router/kinds.def"
    NULL};
#undef ROUTER

const bk_router_kind *bk_router_find(const char *name)
{
    for (int i = 0; bk_routers[i]; i++)
        if (strcmp(bk_routers[i]->name, name) == 0)
            return bk_routers[i];
    return NULL;
}

/* ---- draws ---- */

double bk_route_draw_branch(uint64_t seed, int64_t step, int layer)
{
    return bk_unit(BK_HASH64(seed, 1, (uint64_t)step, (uint64_t)layer));
}

double bk_route_draw_normal(uint64_t seed, int64_t step, int layer, int64_t token, int64_t expert)
{
    uint64_t first =
        BK_HASH64(seed, 2, (uint64_t)step, (uint64_t)layer, (uint64_t)token, (uint64_t)expert);
    uint64_t second = bk_mix64(first + 0x9E3779B97F4A7C15u);
    return sqrt(-2.0 * log(1.0 - bk_unit(first))) *
           cos(2.0 * 3.14159265358979323846 * bk_unit(second));
}

/* ---- checks ---- */

static bk_status refuse_cv(const bk_router_kind *kind)
{
    const char *own = "";
    for (int i = 0; bk_routers[i]; i++)
        own = bk_routers[i]->measure ? bk_routers[i]->name : own;
    return bk_fail(
        BK_USAGE,
        "aux=cv is the balance loss of router %s, not of %s (model.moe): choose another aux", own,
        kind->name);
}

bk_status bk_router_check_aux(const bk_router_kind *kind, bk_moe_aux aux, int64_t experts,
                              int64_t k)
{
    if (aux == BK_AUX_NONE)
        return BK_OK;
    if (kind->flags & BK_ROUTER_EXPERTS)
        return bk_fail(BK_USAGE,
                       "aux does not go with router %s, which is balanced by construction "
                       "(model.moe): remove it",
                       kind->name);
    if (aux == BK_AUX_CV && !kind->measure)
        return refuse_cv(kind);
    if (aux == BK_AUX_CV && k >= experts)
        return bk_fail(BK_USAGE,
                       "aux=cv needs k < experts, %lld of %lld (model.moe): choose a smaller k",
                       (long long)k, (long long)experts);
    return BK_OK;
}
