#include "models/moe_exchange.h"

#include "dist/collective.h"
#include "models/moe.h"

#include <string.h>

/* Counting sort of the kept (token, slot), stable, key expert; cnt[E]. */
static void sort_by_expert(bk_tape *t, bk_dispatch *d, const bk_route_args *a, const int32_t *index)
{
    int64_t slots = a->tokens * a->k;
    int64_t *start = BK_ZNEW(t->scratch, int64_t, a->experts + 1);
    for (int64_t i = 0; i < slots; i++)
        if (index[i] >= 0)
            start[index[i] + 1]++;
    for (int64_t e = 0; e < a->experts; e++)
        start[e + 1] += start[e];
    d->sent = start[a->experts];
    d->slot = BK_NEW(t->arena, int64_t, d->sent);
    d->place = BK_NEW(t->arena, int64_t, slots);
    for (int64_t i = 0; i < slots; i++) {
        d->place[i] = index[i] >= 0 ? start[index[i]]++ : -1;
        if (d->place[i] >= 0)
            d->slot[d->place[i]] = i;
    }
}

/* The exchanged counts: for each peer, each of its experts and each lane of the sender, rows.  Room
 * for the fullest. */
typedef struct counts {
    int64_t experts, lanes; /* room */
    int32_t *send, *receive;
} counts;

static void count_slot(const bk_route_args *a, int size, int32_t expert, int64_t lane, counts *c)
{
    int owner = bk_moe_owner(expert, a->experts, size);
    int64_t first, count;
    bk_moe_experts_of(owner, a->experts, size, &first, &count);
    c->send[(owner * c->experts + expert - first) * c->lanes + lane]++;
}

static counts exchange_counts(bk_tape *t, const bk_dispatch *d, const bk_route_args *a,
                              const int32_t *index)
{
    int size = bk_comm_size(d->ep);
    int64_t most = a->lanes->count;
    bk_max_i64(d->ep, 1, &most);
    counts c = {.experts = (a->experts + size - 1) / size, .lanes = most > 0 ? most : 1};
    int64_t each = c.experts * c.lanes;
    c.send = BK_ZNEW(t->scratch, int32_t, each * size);
    c.receive = BK_ZNEW(t->scratch, int32_t, each * size);
    for (int64_t l = 0; l < a->lanes->count; l++) {
        int64_t last = bk_lane_row(a->lanes, a->tokens, l + 1) * a->k;
        for (int64_t i = bk_lane_row(a->lanes, a->tokens, l) * a->k; i < last; i++)
            if (index[i] >= 0)
                count_slot(a, size, index[i], l, &c);
    }
    bk_alltoall_counts(d->ep, each, c.send, c.receive);
    return c;
}

static void sum_counts(bk_tape *t, bk_dispatch *d, const counts *c)
{
    int size = bk_comm_size(d->ep);
    int64_t each = c->experts * c->lanes;
    d->to = BK_ZNEW(t->arena, int64_t, size);
    d->from = BK_ZNEW(t->arena, int64_t, size);
    for (int r = 0; r < size; r++)
        for (int64_t i = 0; i < each; i++) {
            d->to[r] += c->send[r * each + i];
            d->from[r] += c->receive[r * each + i];
        }
    for (int r = 0; r < size; r++)
        d->received += d->from[r];
}

/* Received rows stand source by source, then expert by expert, then lane by lane. */
static void make_blocks(bk_tape *t, bk_dispatch *d, const bk_route_args *a, const counts *c)
{
    int size = bk_comm_size(d->ep);
    int64_t first, experts, each = c->experts * c->lanes, at = 0;
    bk_moe_experts_of(bk_comm_rank(d->ep), a->experts, size, &first, &experts);
    d->lanes = size * c->lanes;
    d->blocks = experts * d->lanes;
    d->block = BK_NEW(t->arena, bk_expert_block, d->blocks);
    for (int r = 0; r < size; r++)
        for (int64_t e = 0; e < experts; e++)
            for (int64_t l = 0; l < c->lanes; l++) {
                int64_t rows = c->receive[r * each + e * c->lanes + l];
                d->block[e * d->lanes + r * c->lanes + l] = (bk_expert_block){e, at, rows};
                at += rows;
            }
}

bk_dispatch bk_dispatch_make(bk_tape *t, const bk_comm *ep, const bk_route_args *a,
                             const int32_t *index)
{
    bk_dispatch d = {.ep = ep};
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    sort_by_expert(t, &d, a, index);
    counts c = exchange_counts(t, &d, a, index);
    sum_counts(t, &d, &c);
    make_blocks(t, &d, a, &c);
    bk_arena_release(t->scratch, mark);
    return d;
}

void bk_dispatch_send(const bk_dispatch *d, size_t row_bytes, const void *rows, void *received)
{
    bk_alltoallv_rows(d->ep, row_bytes, rows, d->to, received, d->from);
}

void bk_dispatch_return(const bk_dispatch *d, size_t row_bytes, const void *received, void *rows)
{
    bk_alltoallv_rows(d->ep, row_bytes, received, d->from, rows, d->to);
}
