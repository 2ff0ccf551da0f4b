/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
/* Which rows go where, and back: order of dispatch, counts, blocks, empty ranks. */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "core/rng.h"
#include "models/moe.h"
#include "models/moe_exchange.h"

#include <stdlib.h>
#include <string.h>

enum { T = 48, K = 2, L = 4 };

static bk_world *world;
static int64_t chunks;
static bool two_hops;

typedef struct rows {
    bk_tape tape;
    bk_route_args args;
    int32_t *index;
    bk_dispatch dispatch;
} rows;

/* Expert of a global slot: -1 for some; `only` >= 0: that one for all. */
static int32_t expert_of(int64_t slot, int64_t experts, int only)
{
    int32_t e = (int32_t)bk_fill((uint64_t)slot, 3, -1.0, (double)experts);
    return only >= 0 ? only : slot % 7 == 3 ? -1 : e;
}

static void open_rows(rows *r, int64_t experts, int only)
{
    bk_lanes lanes = bk_lanes_of_rank(L, L, world->rank, world->size);
    memset(r, 0, sizeof *r);
    r->tape = bk_test_tape(BK_F32, lanes);
    int64_t each = T / L, tokens = lanes.count * each;
    r->args = (bk_route_args){.tokens = tokens,
                              .experts = experts,
                              .k = K,
                              .first_token = lanes.first * each,
                              .lanes = &r->tape.lanes,
                              .arena = r->tape.arena,
                              .scratch = r->tape.scratch};
    r->index = BK_NEW(r->tape.arena, int32_t, tokens * K);
    for (int64_t i = 0; i < tokens * K; i++)
        r->index[i] = expert_of(r->args.first_token * K + i, experts, only);
    bk_dispatch_options options = {world->ep, chunks, two_hops};
    r->dispatch = bk_dispatch_begin(&r->tape, &options, &r->args, r->index, r->args.k);
    bk_dispatch_finish(&r->tape, &r->dispatch, &r->args);
}

/* Rows stand by (expert, token, slot); place and slot are inverse; to[] adds up. */
static void check_order(const rows *r, int64_t experts)
{
    const bk_dispatch *d = &r->dispatch;
    int64_t sent = 0, to = 0, size = bk_comm_size(world->ep);
    for (int64_t i = 0; i < r->args.tokens * K; i++) {
        assert_true((d->place[i] >= 0) == (r->index[i] >= 0));
        sent += r->index[i] >= 0;
        if (d->place[i] >= 0)
            assert_int_equal(d->slot[d->place[i]], i);
    }
    assert_int_equal(d->sent, sent);
    for (int64_t i = 1; i < d->sent; i++) {
        int32_t a = r->index[d->slot[i - 1]], b = r->index[d->slot[i]];
        assert_true(a < b || (a == b && d->slot[i - 1] < d->slot[i]));
    }
    for (int rank = 0; rank < size; rank++) {
        int64_t count = 0;
        for (int64_t i = 0; i < d->sent; i++)
            count += bk_moe_owner(r->index[d->slot[i]], experts, (int)size) == rank;
        for (int64_t chunk = 0; chunk < d->chunks; chunk++) {
            assert_int_equal(d->to_place[chunk * size + rank], to);
            count -= d->to[chunk * size + rank];
            to += d->to[chunk * size + rank];
        }
        assert_int_equal(count, 0);
    }
    assert_int_equal(to, d->sent);
}

/* Sends chunk by chunk; no row of a later chunk is there before it. */
static void send_chunks(rows *r, const int64_t *out, int64_t *in)
{
    const bk_dispatch *d = &r->dispatch;
    for (int64_t i = 0; i < d->received; i++)
        in[i] = -1;
    for (int64_t chunk = 0; chunk < d->chunks; chunk++) {
        bk_exchange_finish(bk_dispatch_send(&r->tape, d, chunk, sizeof *out, out, in));
        int64_t here = bk_chunk_first(d->blocks / d->lanes, d->chunks, chunk + 1) * d->lanes;
        for (int64_t i = 0; i < d->blocks; i++)
            for (int64_t j = 0; j < d->block[i].rows; j++)
                assert_true((in[d->block[i].first + j] >= 0) == (i < here));
    }
}

/* All on their way together; the last is waited for first. */
static void return_chunks(rows *r, const int64_t *in, int64_t *back)
{
    const bk_dispatch *d = &r->dispatch;
    bk_exchange **x = BK_NEW(r->tape.arena, bk_exchange *, d->chunks);
    for (int64_t chunk = 0; chunk < d->chunks; chunk++)
        x[chunk] = bk_dispatch_return(&r->tape, d, chunk, sizeof *in, in, back);
    for (int64_t chunk = d->chunks; chunk-- > 0;)
        bk_exchange_finish(x[chunk]);
}

/* Each row carries its global slot; at the experts every row lies in the block of its expert and
 * lane, in the order of slots, and nothing is missing. */
static void check_blocks(rows *r, int64_t experts, int only)
{
    const bk_dispatch *d = &r->dispatch;
    int64_t first, count, seen = 0, group = world->rank / world->expert * world->expert;
    bk_moe_experts_of(bk_comm_rank(world->ep), experts, world->expert, &first, &count);
    int64_t *out = BK_NEW(r->tape.arena, int64_t, d->sent),
            *in = BK_NEW(r->tape.arena, int64_t, d->received),
            *back = BK_NEW(r->tape.arena, int64_t, d->sent);
    for (int64_t i = 0; i < d->sent; i++)
        out[i] = r->args.first_token * K + d->slot[i];
    send_chunks(r, out, in);
    assert_int_equal(d->blocks, count * d->lanes);
    for (int64_t e = 0; e < count; e++)
        for (int64_t l = 0, lane = 0; l < d->lanes; l++) {
            const bk_expert_block *b = &d->block[e * d->lanes + l];
            assert_int_equal(b->expert, e);
            for (int64_t i = b->first; i < b->first + b->rows; i++) {
                assert_int_equal(expert_of(in[i], experts, only), first + e);
                assert_true(i == b->first || in[i] > in[i - 1]);
                assert_int_equal(in[i] / (T / L * K), in[b->first] / (T / L * K)); /* one lane */
                assert_true(in[i] / (T / L * K) >= lane);
                lane = in[i] / (T / L * K);
            }
            seen += b->rows;
        }
    assert_int_equal(seen, d->received);
    int64_t expected = 0;
    for (int rank = 0; rank < world->expert; rank++) {
        bk_lanes lanes = bk_lanes_of_rank(L, L, (int)group + rank, world->size);
        int64_t last = (lanes.first + lanes.count) * (T / L) * K;
        for (int64_t i = lanes.first * (T / L) * K; i < last; i++) {
            int32_t e = expert_of(i, experts, only);
            expected += e >= first && e < first + count;
        }
    }
    assert_int_equal(d->received, expected);
    return_chunks(r, in, back);
    assert_memory_equal(back, out, (size_t)d->sent * sizeof *out);
}

static void check_chunks(int64_t experts, int only)
{
    for (chunks = 1; chunks <= 4; chunks *= 2) {
        rows r;
        open_rows(&r, experts, only);
        int64_t size = bk_comm_size(world->ep), fullest = (experts + size - 1) / size;
        assert_int_equal(r.dispatch.chunks, size == 1 ? 1 : chunks < fullest ? chunks : fullest);
        check_order(&r, experts);
        check_blocks(&r, experts, only);
        bk_test_tape_free(&r.tape);
    }
}

static void check_exchange(int64_t experts, int only)
{
    for (int hops = 1; hops <= 1 + bk_comm_has_levels(world->ep); hops++) {
        two_hops = hops == 2;
        check_chunks(experts, only);
    }
}

static void rows_find_their_experts_and_come_back(void **state)
{
    (void)state;
    for (int ep = 1; ep < BK_TEST_DEGREES; ep++) {
        world = bk_test_worlds[ep];
        if (!world)
            continue;
        check_exchange(7, -1);
        check_exchange(8, -1);
        check_exchange(ep, -1); /* one each */
        check_exchange(6, 5);   /* all to the last */
    }
}

/* A world of all ranks but the last: more lanes a rank than over all of them. */
static void other_ranks_may_have_another_world(void **state)
{
    bk_arena *arena = bk_arena_new("two worlds");
    (void)state;
    if (bk_mpi_size() > 1) {
        assert_int_equal(bk_world_open_two(arena, 1, bk_mpi_size() - 1, &world), BK_OK);
        check_exchange(7, -1);
        bk_world_close(world);
    }
    bk_arena_free(arena);
}

static void nothing_to_send_is_fine(void **state)
{
    (void)state;
    for (int ep = 1; ep < BK_TEST_DEGREES; ep++) {
        world = bk_test_worlds[ep];
        if (!world)
            continue;
        two_hops = bk_comm_has_levels(world->ep);
        rows r;
        open_rows(&r, 6, -1);
        for (int64_t i = 0; i < r.args.tokens * K; i++)
            r.index[i] = -1;
        bk_dispatch_options options = {world->ep, 2, two_hops};
        bk_dispatch d = bk_dispatch_begin(&r.tape, &options, &r.args, r.index, r.args.k);
        bk_dispatch_finish(&r.tape, &d, &r.args);
        char none;
        assert_true(d.sent == 0 && d.received == 0);
        for (int64_t chunk = 0; chunk < d.chunks; chunk++) {
            bk_exchange_finish(bk_dispatch_send(&r.tape, &d, chunk, 8, &none, &none));
            bk_exchange_finish(bk_dispatch_return(&r.tape, &d, chunk, 8, &none, &none));
        }
        bk_test_tape_free(&r.tape);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_find_their_experts_and_come_back),
        cmocka_unit_test(other_ranks_may_have_another_world),
        cmocka_unit_test(nothing_to_send_is_fine),
    };
    bk_test_ranks_start(&argc, &argv);
    if (bk_mpi_size() == 4)
        setenv("BIRKHOFF_NODE_RANKS", "2", 1);
    bk_test_worlds_open();
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
