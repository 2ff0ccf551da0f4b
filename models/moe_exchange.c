#include "models/moe_exchange.h"

#include "dist/collective.h"
#include "models/moe.h"

#include <string.h>

/* Counting sort of the kept (token, slot), stable, key expert; cnt[E]. */
static void sort_by_expert(bk_tape *t, bk_dispatch *d, const bk_route_args *a, const int32_t *index)
{
    int64_t slots = a->tokens * d->slots;
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

static void count_slot(const bk_route_args *a, int size, int32_t expert, int64_t lane,
                       bk_dispatch_counts *c)
{
    int owner = bk_moe_owner(expert, a->experts, size);
    int64_t first, count;
    bk_moe_experts_of(owner, a->experts, size, &first, &count);
    c->send[(owner * c->experts + expert - first) * c->lanes + lane]++;
}

/* Of the fullest rank. */
static int64_t most_lanes(const bk_comm *ep, const bk_lanes *lanes)
{
    int64_t ranks = bk_comm_size(ep) > 1 ? bk_mpi_size() : 1;
    int64_t most = ranks > 1 ? (lanes->total + ranks - 1) / ranks : lanes->count;
    BK_ASSERT(lanes->count <= most || most == 0, "lanes of other ranks");
    return most > 0 ? most : 1;
}

static void make_counts(bk_tape *t, bk_dispatch *d, const bk_route_args *a, const int32_t *index)
{
    int size = bk_comm_size(d->ep);
    bk_dispatch_counts *c = &d->counts;
    c->experts = (a->experts + size - 1) / size;
    c->lanes = most_lanes(d->ep, a->lanes);
    c->send = BK_ZNEW(t->scratch, int32_t, c->experts * c->lanes * size);
    c->receive = BK_NEW(t->scratch, int32_t, c->experts * c->lanes * size);
    for (int64_t l = 0; l < a->lanes->count; l++) {
        int64_t last = bk_lane_row(a->lanes, a->tokens, l + 1) * d->slots;
        for (int64_t i = bk_lane_row(a->lanes, a->tokens, l) * d->slots; i < last; i++)
            if (index[i] >= 0)
                count_slot(a, size, index[i], l, c);
    }
}

/* One row of counts from each rank to each. */
static void send_counts(bk_tape *t, bk_dispatch *d)
{
    bk_dispatch_counts *c = &d->counts;
    int size = bk_comm_size(d->ep);
    int64_t *one = BK_NEW(t->scratch, int64_t, 2 * size), *place = one + size;
    for (int r = 0; r < size; r++) {
        one[r] = 1;
        place[r] = r;
    }
    bk_exchange_rows rows = {.bytes = (size_t)(c->experts * c->lanes) * sizeof *c->send,
                             .send = c->send,
                             .send_count = one,
                             .send_place = place,
                             .receive = c->receive,
                             .receive_count = one,
                             .receive_place = place,
                             .relay = d->two_hops ? bk_relay_even(d->ep, t->scratch) : NULL};
    c->under_way = bk_exchange_begin(d->ep, t->scratch, &rows);
}

/* Rows of a rank's experts that lie in a chunk. */
static int64_t chunk_rows(const bk_dispatch *d, int64_t experts, int64_t chunk, const int32_t *list)
{
    const bk_dispatch_counts *c = &d->counts;
    int64_t rows = 0, last = bk_chunk_first(experts, d->chunks, chunk + 1) * c->lanes;
    for (int64_t i = bk_chunk_first(experts, d->chunks, chunk) * c->lanes; i < last; i++)
        rows += list[i];
    return rows;
}

/* Both sides stand rank by rank, then chunk by chunk. */
static void sum_counts(bk_tape *t, bk_dispatch *d, int64_t experts)
{
    const bk_dispatch_counts *c = &d->counts;
    int size = bk_comm_size(d->ep);
    int64_t first, own, theirs, each = c->experts * c->lanes, sent = 0;
    bk_moe_experts_of(bk_comm_rank(d->ep), experts, size, &first, &own);
    d->to = BK_NEW(t->arena, int64_t, 4 * d->chunks * size);
    d->from = d->to + d->chunks * size;
    d->to_place = d->from + d->chunks * size;
    d->from_place = d->to_place + d->chunks * size;
    for (int r = 0; r < size; r++)
        for (int64_t chunk = 0; chunk < d->chunks; chunk++) {
            int64_t i = chunk * size + r;
            bk_moe_experts_of(r, experts, size, &first, &theirs);
            d->to[i] = chunk_rows(d, theirs, chunk, c->send + r * each);
            d->from[i] = chunk_rows(d, own, chunk, c->receive + r * each);
            d->to_place[i] = sent;
            d->from_place[i] = d->received;
            sent += d->to[i];
            d->received += d->from[i];
        }
}

/* Received rows stand source by source, then expert by expert, then lane by lane. */
static void make_blocks(bk_tape *t, bk_dispatch *d, const bk_route_args *a)
{
    const bk_dispatch_counts *c = &d->counts;
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

static int64_t fitting(int64_t chunks, int64_t experts, int size)
{
    int64_t most = size > 1 ? (experts + size - 1) / size : 1;
    return chunks > most ? most : chunks > 1 ? chunks : 1;
}

bk_dispatch bk_dispatch_begin(bk_tape *t, const bk_dispatch_options *o, const bk_route_args *a,
                              const int32_t *index, int64_t slots)
{
    bk_dispatch d = {.ep = o->ep,
                     .slots = slots,
                     .chunks = fitting(o->chunks, a->experts, bk_comm_size(o->ep)),
                     .two_hops = o->two_hops};
    make_counts(t, &d, a, index);
    send_counts(t, &d);
    sort_by_expert(t, &d, a, index);
    return d;
}

void bk_dispatch_finish(bk_tape *t, bk_dispatch *d, const bk_route_args *a)
{
    bk_exchange_finish(d->counts.under_way);
    sum_counts(t, d, a->experts);
    make_blocks(t, d, a);
    if (d->two_hops) /* there chunk by chunk, then back: to[], and from[] behind it */
        d->relay = bk_relay_new(d->ep, t->arena, 2 * d->chunks, d->to);
}

bk_exchange *bk_dispatch_send(bk_tape *t, const bk_dispatch *d, int64_t chunk, size_t row_bytes,
                              const void *rows, void *received)
{
    int64_t at = chunk * bk_comm_size(d->ep);
    return bk_exchange_begin(d->ep, t->scratch,
                             &(bk_exchange_rows){.bytes = row_bytes,
                                                 .send = rows,
                                                 .send_count = d->to + at,
                                                 .send_place = d->to_place + at,
                                                 .receive = received,
                                                 .receive_count = d->from + at,
                                                 .receive_place = d->from_place + at,
                                                 .relay = d->relay,
                                                 .exchange = chunk});
}

bk_exchange *bk_dispatch_return(bk_tape *t, const bk_dispatch *d, int64_t chunk, size_t row_bytes,
                                const void *received, void *rows)
{
    int64_t at = chunk * bk_comm_size(d->ep);
    return bk_exchange_begin(d->ep, t->scratch,
                             &(bk_exchange_rows){.bytes = row_bytes,
                                                 .send = received,
                                                 .send_count = d->from + at,
                                                 .send_place = d->from_place + at,
                                                 .receive = rows,
                                                 .receive_count = d->to + at,
                                                 .receive_place = d->to_place + at,
                                                 .relay = d->relay,
                                                 .exchange = d->chunks + chunk});
}
