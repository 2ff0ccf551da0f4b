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

/* One row of counts from each rank to each. */
static void send_counts(bk_tape *t, const bk_dispatch_options *o, int64_t each, const counts *c)
{
    int size = bk_comm_size(o->ep);
    if (!o->two_hops) {
        bk_alltoall_counts(o->ep, each, c->send, c->receive);
        return;
    }
    int64_t *one = BK_NEW(t->scratch, int64_t, 2 * size), *place = one + size;
    for (int r = 0; r < size; r++) {
        one[r] = 1;
        place[r] = r;
    }
    bk_exchange_finish(
        bk_exchange_begin(o->ep, t->scratch,
                          &(bk_exchange_rows){.bytes = (size_t)each * sizeof *c->send,
                                              .send = c->send,
                                              .send_count = one,
                                              .send_place = place,
                                              .receive = c->receive,
                                              .receive_count = one,
                                              .receive_place = place,
                                              .relay = bk_relay_even(o->ep, t->scratch)}));
}

static counts exchange_counts(bk_tape *t, const bk_dispatch_options *o, const bk_route_args *a,
                              const int32_t *index, int64_t slots)
{
    int size = bk_comm_size(o->ep);
    int64_t most = a->lanes->count;
    bk_max_i64(o->ep, 1, &most);
    counts c = {.experts = (a->experts + size - 1) / size, .lanes = most > 0 ? most : 1};
    int64_t each = c.experts * c.lanes;
    c.send = BK_ZNEW(t->scratch, int32_t, each * size);
    c.receive = BK_ZNEW(t->scratch, int32_t, each * size);
    for (int64_t l = 0; l < a->lanes->count; l++) {
        int64_t last = bk_lane_row(a->lanes, a->tokens, l + 1) * slots;
        for (int64_t i = bk_lane_row(a->lanes, a->tokens, l) * slots; i < last; i++)
            if (index[i] >= 0)
                count_slot(a, size, index[i], l, &c);
    }
    send_counts(t, o, each, &c);
    return c;
}

/* Rows of a rank's experts that lie in a chunk. */
static int64_t chunk_rows(const bk_dispatch *d, const counts *c, int64_t experts, int64_t chunk,
                          const int32_t *list)
{
    int64_t rows = 0, last = bk_chunk_first(experts, d->chunks, chunk + 1) * c->lanes;
    for (int64_t i = bk_chunk_first(experts, d->chunks, chunk) * c->lanes; i < last; i++)
        rows += list[i];
    return rows;
}

/* Both sides stand rank by rank, then chunk by chunk. */
static void sum_counts(bk_tape *t, bk_dispatch *d, int64_t experts, const counts *c)
{
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
            d->to[i] = chunk_rows(d, c, theirs, chunk, c->send + r * each);
            d->from[i] = chunk_rows(d, c, own, chunk, c->receive + r * each);
            d->to_place[i] = sent;
            d->from_place[i] = d->received;
            sent += d->to[i];
            d->received += d->from[i];
        }
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

static int64_t fitting(int64_t chunks, int64_t experts, int size)
{
    int64_t most = size > 1 ? (experts + size - 1) / size : 1;
    return chunks > most ? most : chunks > 1 ? chunks : 1;
}

bk_dispatch bk_dispatch_make(bk_tape *t, const bk_dispatch_options *o, const bk_route_args *a,
                             const int32_t *index, int64_t slots)
{
    bk_dispatch d = {
        .ep = o->ep, .slots = slots, .chunks = fitting(o->chunks, a->experts, bk_comm_size(o->ep))};
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    sort_by_expert(t, &d, a, index);
    counts c = exchange_counts(t, o, a, index, slots);
    sum_counts(t, &d, a->experts, &c);
    make_blocks(t, &d, a, &c);
    bk_arena_release(t->scratch, mark);
    if (o->two_hops) /* there chunk by chunk, then back: to[] and from[] stand one behind the other
                      */
        d.relay = bk_relay_new(d.ep, t->arena, 2 * d.chunks, d.to);
    return d;
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
