/* The k largest of each row, from all experts or from the best groups of them. */
#include "core/parallel.h"
#include "models/router_common.h"

#include <math.h>
#include <string.h>

bk_status bk_router_check_groups(const bk_score_config *c, int64_t experts, int64_t k)
{
    int64_t groups = c->groups_of_experts, kept = c->groups_kept;
    if (groups <= 1)
        return BK_OK;
    if (experts % groups != 0)
        return bk_fail(BK_USAGE,
                       "groups_of_experts=%lld does not divide %lld experts (model.moe.router): "
                       "choose a divisor",
                       (long long)groups, (long long)experts);
    if (kept > groups)
        return bk_fail(BK_USAGE,
                       "groups_kept=%lld of groups_of_experts=%lld (model.moe.router): keep at "
                       "most %lld",
                       (long long)kept, (long long)groups, (long long)groups);
    if (k > kept * (experts / groups))
        return bk_fail(BK_USAGE,
                       "k=%lld is more than the %lld experts of groups_kept=%lld groups "
                       "(model.moe.router): keep more groups, or choose a smaller k",
                       (long long)k, (long long)(kept * (experts / groups)), (long long)kept);
    return BK_OK;
}

/* Insertion into the k best so far: falling value, ties to the lower expert. */
static void select_row(int64_t experts, int64_t k, const double *score, int32_t *index)
{
    int64_t kept = 0;
    for (int64_t j = 0; j < experts; j++) {
        if (kept == k && !(score[j] > score[index[k - 1]]))
            continue;
        int64_t at = kept < k ? kept++ : k - 1;
        for (; at > 0 && score[j] > score[index[at - 1]]; at--)
            index[at] = index[at - 1];
        index[at] = (int32_t)j;
    }
}

/* The best groups of one row: the sum of the largest scores of each decides. */
typedef struct grouping {
    int64_t groups, kept, experts; /* experts of one group */
    int64_t summed;                /* scores of a group that are summed */
    double *sum;                   /* [groups] */
    int32_t *best;                 /* [max(kept, summed)] */
    double *row;                   /* [E] scores, -inf outside the groups that are kept */
} grouping;

static double group_sum(const grouping *g, const double *score)
{
    double sum = 0.0;
    select_row(g->experts, g->summed, score, g->best);
    for (int64_t i = 0; i < g->summed; i++)
        sum += score[g->best[i]];
    return sum;
}

static const double *keep_groups(const grouping *g, const double *score)
{
    for (int64_t i = 0; i < g->groups; i++)
        g->sum[i] = group_sum(g, score + i * g->experts);
    select_row(g->groups, g->kept, g->sum, g->best);
    for (int64_t j = 0; j < g->groups * g->experts; j++)
        g->row[j] = -INFINITY;
    for (int64_t i = 0; i < g->kept; i++) {
        int64_t first = g->best[i] * g->experts;
        memcpy(g->row + first, score + first, (size_t)g->experts * sizeof *g->row);
    }
    return g->row;
}

typedef struct selection {
    const bk_route_args *args;
    const double *score;
    int32_t *index;
} selection;

static void select_one(const selection *c, const grouping *g, int64_t t)
{
    const bk_route_args *a = c->args;
    const double *score = c->score + t * a->experts;
    int32_t *row = c->index + t * a->k;
    if (bk_router_valid(a, t))
        select_row(a->experts, a->k, g ? keep_groups(g, score) : score, row);
    else
        for (int64_t s = 0; s < a->k; s++)
            row[s] = -1;
}

static void select_rows(void *context, int64_t first, int64_t last)
{
    for (int64_t t = first; t < last; t++)
        select_one(context, NULL, t);
}

/* On one thread: the room for a row is there once. */
static void select_from_groups(const selection *s, const bk_score_config *c)
{
    const bk_route_args *a = s->args;
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    grouping g = {.groups = c->groups_of_experts,
                  .kept = c->groups_kept,
                  .experts = a->experts / c->groups_of_experts,
                  .summed = a->k / c->groups_kept > 1 ? a->k / c->groups_kept : 1,
                  .sum = BK_NEW(a->scratch, double, c->groups_of_experts),
                  .best = BK_NEW(a->scratch, int32_t, a->experts),
                  .row = BK_NEW(a->scratch, double, a->experts)};
    for (int64_t t = 0; t < a->tokens; t++)
        select_one(s, &g, t);
    bk_arena_release(a->scratch, mark);
}

void bk_router_select(const bk_route_args *a, const bk_score_config *c, const double *score,
                      int32_t *index)
{
    selection s = {a, score, index};
    if (c->groups_of_experts > 1 && c->groups_kept < c->groups_of_experts)
        select_from_groups(&s, c);
    else
        bk_parallel(a->tokens, 1, a->experts, select_rows, &s);
}
