#include "models/moe_capacity.h"

#include "core/parallel.h"
#include "models/router_common.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int64_t bk_capacity_of(const bk_capacity *c, int64_t tokens, int64_t k, int64_t experts)
{
    double share = ceil((double)tokens * (double)k * c->factor / (double)experts);
    return share > (double)c->least ? (int64_t)share : c->least;
}

bk_status bk_capacity_check(const bk_capacity *c, const bk_router_kind *kind)
{
    bool plain = c->least <= 1 && c->policy == BK_DROP_PROBS;
    if (plain || !(kind->flags & BK_ROUTER_EXPERTS))
        return BK_OK;
    return bk_fail(BK_USAGE,
                   "%s does not go with router %s, where experts take what capacity_factor says "
                   "(model.moe): remove it",
                   c->least > 1 ? "min_capacity" : "drop_policy", kind->name);
}

/* ---- the order in which an expert takes its choices ---- */

/* The bits of a number that is not negative: as integers they stand in the same order. */
static int64_t ordered_bits(double x)
{
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

typedef struct ranking {
    const bk_route_args *args;
    const bk_route *route;
    double *score;     /* [T,E] room */
    int64_t *priority; /* [T,k] */
} ranking;

static void rank_scores(void *context, int64_t first, int64_t last)
{
    const ranking *c = context;
    const bk_route_args *a = c->args;
    int kind = ((const bk_score_config *)a->config)->score;
    for (int64_t t = first; t < last; t++) {
        double *score = c->score + t * a->experts;
        if (!bk_router_valid(a, t))
            continue;
        if (c->route->planned)
            memcpy(score, c->route->plan + t * a->experts, (size_t)a->experts * sizeof *score);
        else
            bk_router_scores(kind, a->experts, c->route->seen + t * a->experts, score);
        for (int64_t i = t * a->k; i < (t + 1) * a->k; i++)
            c->priority[i] = ordered_bits(score[c->route->index[i]]);
    }
}

/* priority[T,k], the largest first. */
static void rank_choices(const bk_route_args *a, const bk_capacity *c, const bk_route *r,
                         int64_t *priority)
{
    ranking all = {.args = a, .route = r, .priority = priority};
    if (c->policy == BK_DROP_PROBS) {
        all.score = BK_NEW(a->scratch, double, a->tokens * a->experts);
        bk_parallel(a->tokens, 1, a->experts, rank_scores, &all);
        return;
    }
    for (int64_t i = 0; i < a->tokens * a->k; i++)
        priority[i] = a->k - i % a->k;
}

/* ---- the rows that are decided on ---- */

typedef struct choices {
    int64_t tokens, first; /* rows, and which of them is the first own one */
    int64_t k, experts;
    const int64_t *expert;   /* [tokens,k], -1 at padding */
    const int64_t *priority; /* [tokens,k] */
    const int64_t *row;      /* [blocks+1] */
    int64_t blocks;
    int32_t *kept; /* [tokens,k] */
} choices;

static int64_t rows_of_all(const bk_route_args *a)
{
    double end = (double)(a->first_token + a->tokens);
    bk_reduce_max(a->reducer, 1, &end);
    return (int64_t)end;
}

/* Own rows; of blocks that span ranks those of all, laid side by side by a sum of zeros. */
static choices lay_out(const bk_route_args *a, const bk_capacity *c, const bk_route *r,
                       const bk_route_blocks *b)
{
    choices x = {.tokens = b->shared ? rows_of_all(a) : a->tokens,
                 .first = b->shared ? a->first_token : 0,
                 .k = a->k,
                 .experts = a->experts,
                 .blocks = b->count};
    int64_t slots = x.tokens * a->k, own = a->tokens * a->k, at = x.first * a->k;
    int64_t words = 2 * slots + b->count + 1, *expert = BK_ZNEW(a->scratch, int64_t, words);
    for (int64_t i = 0; i < own; i++)
        expert[at + i] = r->index[i] + 1;
    rank_choices(a, c, r, expert + slots + at);
    memcpy(expert + 2 * slots, b->row, (size_t)(b->count + 1) * sizeof *expert);
    if (b->shared)
        bk_reduce_fixed(a->reducer, words, expert);
    for (int64_t i = 0; i < slots; i++)
        expert[i]--;
    x.expert = expert;
    x.priority = expert + slots;
    x.row = expert + 2 * slots;
    x.kept = BK_NEW(a->scratch, int32_t, slots);
    return x;
}

/* ---- one block ---- */

typedef struct choice {
    int64_t priority, place;
} choice;

static int before(const void *a_, const void *b_)
{
    const choice *a = a_, *b = b_;
    if (a->priority != b->priority)
        return a->priority > b->priority ? -1 : 1;
    return a->place < b->place ? -1 : a->place > b->place;
}

/* end[e] = number of choices of the experts 0 .. e; returns the valid tokens. */
static int64_t count_block(const choices *x, int64_t first, int64_t last, int64_t *end)
{
    int64_t valid = 0;
    memset(end, 0, (size_t)x->experts * sizeof *end);
    for (int64_t i = first * x->k; i < last * x->k; i++) {
        x->kept[i] = x->expert[i] >= 0;
        valid += x->kept[i] && i % x->k == 0;
        if (x->kept[i])
            end[x->expert[i]]++;
    }
    for (int64_t e = 1; e < x->experts; e++)
        end[e] += end[e - 1];
    return valid;
}

/* The choices of one expert, all behind the first `most` of which are dropped. */
static void drop(const choices *x, int64_t count, choice *list, int64_t most)
{
    if (count <= most)
        return;
    qsort(list, (size_t)count, sizeof *list, before);
    for (int64_t i = most; i < count; i++)
        x->kept[list[i].place] = 0;
}

static void limit_block(const choices *x, const bk_capacity *c, int64_t block, bk_arena *scratch)
{
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    int64_t first = x->row[block], last = x->row[block + 1];
    int64_t *end = BK_NEW(scratch, int64_t, x->experts);
    int64_t valid = count_block(x, first, last, end);
    int64_t most = bk_capacity_of(c, valid, x->k, x->experts);
    choice *list = BK_NEW(scratch, choice, (last - first) * x->k);
    for (int64_t i = last * x->k - 1; i >= first * x->k; i--)
        if (x->kept[i])
            list[--end[x->expert[i]]] = (choice){x->priority[i], i};
    for (int64_t e = 0; e < x->experts; e++) {
        int64_t next = e + 1 < x->experts ? end[e + 1] : valid * x->k;
        drop(x, next - end[e], list + end[e], most);
    }
    bk_arena_release(scratch, mark);
}

void bk_route_limit(const bk_route_args *a, const bk_capacity *c, bk_route *r)
{
    if (c->factor == 0.0 || a->kind->flags & BK_ROUTER_EXPERTS)
        return;
    r->kept = BK_NEW(a->arena, int32_t, a->tokens * a->k);
    bk_arena_mark mark = bk_arena_get_mark(a->scratch);
    bk_route_blocks b = bk_router_blocks(a);
    choices x = lay_out(a, c, r, &b);
    for (int64_t i = 0; i < x.blocks; i++)
        limit_block(&x, c, i, a->scratch);
    memcpy(r->kept, x.kept + x.first * a->k, (size_t)(a->tokens * a->k) * sizeof *r->kept);
    bk_arena_release(a->scratch, mark);
}
