/* test: labels=unit,mpi ranks=1,2,3,4,6,8 timeout=120 */
/* Two hops bring the same rows to the same places as one, in fewer messages between nodes; nodes
 * are made of ranks in a row, in any order. */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "core/log.h"
#include "dist/exchange.h"
#include "dist/internal.h"

#include <stdlib.h>
#include <string.h>

enum { RANKS = 8, PIECES = 3, WIDTH = 3 };

static int rank, size;

/* Rows from one rank to another in a piece; nobody sends in piece 1, rank 0 gets nothing. */
static int64_t rows_between(int from, int to, int piece)
{
    return piece == 1 || to == 0 ? 0 : (from * 3 + to * 5 + piece) % 4;
}

typedef struct side {
    int64_t count[PIECES][RANKS], place[PIECES][RANKS], rows;
} side;

/* Rank by rank, then piece by piece, a row that belongs to nobody between. */
static side side_of(const bk_comm *c, bool out)
{
    side s = {.rows = 1};
    for (int r = 0; r < c->size; r++)
        for (int p = 0; p < PIECES; p++) {
            s.place[p][r] = s.rows;
            s.count[p][r] = out ? rows_between(c->rank, r, p) : rows_between(r, c->rank, p);
            s.rows += s.count[p][r] + 1;
        }
    return s;
}

/* What goes out, or what has to come in: values that say from where, whereto and which. */
static int32_t *values(bk_arena *arena, const bk_comm *c, const side *s, bool out, int pieces)
{
    int32_t *x = BK_NEW(arena, int32_t, s->rows * WIDTH);
    memset(x, 0xff, (size_t)(s->rows * WIDTH) * sizeof *x);
    for (int p = 0; p < pieces; p++)
        for (int r = 0; r < c->size; r++)
            for (int64_t i = 0; i < s->count[p][r] * WIDTH; i++)
                x[s->place[p][r] * WIDTH + i] =
                    (int32_t)(((out ? c->rank : r) * 10 + (out ? r : c->rank)) * 1000 + p * 100 +
                              (int)i);
    return x;
}

typedef struct course {
    bk_arena *arena;
    const bk_comm *comm;
    side out, in;
    const bk_relay *relay;
    int32_t *sent, *received;
} course;

static course open_course(const bk_comm *c, bool relayed)
{
    course y = {.arena = bk_arena_new("course"), .comm = c};
    int64_t *list = BK_NEW(y.arena, int64_t, PIECES * c->size);
    y.out = side_of(c, true);
    y.in = side_of(c, false);
    for (int p = 0; p < PIECES; p++)
        memcpy(list + p * c->size, y.out.count[p], (size_t)c->size * sizeof *list);
    y.relay = relayed ? bk_relay_new(c, y.arena, PIECES, list) : NULL;
    y.sent = values(y.arena, c, &y.out, true, PIECES);
    y.received = values(y.arena, c, &y.in, false, 0);
    return y;
}

static void close_course(course *y)
{
    const int32_t *expected = values(y->arena, y->comm, &y->in, false, PIECES);
    assert_memory_equal(y->received, expected, (size_t)(y->in.rows * WIDTH) * sizeof *expected);
    bk_arena_free(y->arena);
}

static bk_exchange *begin(course *y, int p)
{
    return bk_exchange_begin(y->comm, y->arena,
                             &(bk_exchange_rows){.bytes = WIDTH * sizeof *y->sent,
                                                 .send = y->sent,
                                                 .send_count = y->out.count[p],
                                                 .send_place = y->out.place[p],
                                                 .receive = y->received,
                                                 .receive_count = y->in.count[p],
                                                 .receive_place = y->in.place[p],
                                                 .relay = y->relay,
                                                 .exchange = p});
}

/* All pieces under way together, relayed and straight ones, waited for in either order. */
static void check_rows(const bk_comm *c)
{
    for (int backwards = 0; backwards < 2; backwards++) {
        course y[2] = {open_course(c, true), open_course(c, false)};
        bk_exchange *x[PIECES][2];
        for (int p = 0; p < PIECES; p++)
            for (int k = 0; k < 2; k++)
                x[p][k] = begin(&y[k], p);
        for (int i = 0; i < 2 * PIECES; i++) {
            int j = backwards ? 2 * PIECES - 1 - i : i;
            bk_exchange_finish(x[j / 2][j % 2]);
        }
        close_course(&y[0]);
        close_course(&y[1]);
    }
}

static int64_t far_messages(const bk_comm *c, bool relayed)
{
    course y = open_course(c, relayed);
    int64_t before = bk_traffic_of(c->part).far;
    for (int p = 0; p < PIECES; p++)
        bk_exchange_finish(begin(&y, p));
    close_course(&y);
    return bk_traffic_of(c->part).far - before;
}

/* Straight: one for each rank elsewhere that gets rows; in two hops: for each node elsewhere where
 * a rank with this one's place gets rows from this node. */
static void check_messages(const bk_comm *c)
{
    const bk_levels *v = c->levels;
    int64_t straight = 0, relayed = 0;
    int here = c->node[c->rank], place = 0;
    while (v->rank[here * v->each + place] != c->rank)
        place++;
    for (int p = 0; p < PIECES; p++)
        for (int node = 0; node < v->nodes; node++) {
            int64_t rows = 0;
            for (int k = 0; node != here && k < v->each; k++) {
                straight += rows_between(c->rank, v->rank[node * v->each + k], p) > 0;
                rows +=
                    rows_between(v->rank[here * v->each + k], v->rank[node * v->each + place], p);
            }
            relayed += rows > 0;
        }
    assert_int_equal(far_messages(c, false), straight);
    assert_int_equal(far_messages(c, true), relayed);
    assert_true(relayed <= PIECES * (v->nodes - 1));
}

/* One row from each to each. */
static void check_even(const bk_comm *c)
{
    int64_t one[RANKS], place[RANKS];
    int32_t out[RANKS], in[RANKS];
    bk_arena *arena = bk_arena_new("even");
    for (int r = 0; r < c->size; r++) {
        one[r] = 1;
        place[r] = r;
        out[r] = 100 * c->rank + r;
    }
    bk_exchange_finish(bk_exchange_begin(c, arena,
                                         &(bk_exchange_rows){.bytes = sizeof *out,
                                                             .send = out,
                                                             .send_count = one,
                                                             .send_place = place,
                                                             .receive = in,
                                                             .receive_count = one,
                                                             .receive_place = place,
                                                             .relay = bk_relay_even(c, arena)}));
    for (int r = 0; r < c->size; r++)
        assert_int_equal(in[r], 100 * r + c->rank);
    bk_arena_free(arena);
}

/* Nobody waits, yet both hops are made: the hook moves them. */
static void check_polls(const bk_comm *c)
{
    course y = open_course(c, true);
    bk_exchange *x = begin(&y, 0), *last = begin(&y, 2);
    bk_traffic before = bk_traffic_of(c->part);
    double begun = bk_seconds();
    while (bk_traffic_of(c->part).messages < before.messages + 2 && bk_seconds() - begun < 30.0)
        bk_poll();
    assert_int_equal(bk_traffic_of(c->part).messages, before.messages + 2);
    bk_exchange_finish(last);
    bk_exchange_finish(x);
    bk_exchange_finish(begin(&y, 1));
    close_course(&y);
}

static void set_nodes(int ranks)
{
    char text[16];
    snprintf(text, sizeof text, "%d", ranks);
    setenv("BIRKHOFF_NODE_RANKS", text, 1);
}

static bk_world *world_of(bk_arena *arena, int node_ranks)
{
    bk_world *w;
    set_nodes(node_ranks);
    assert_int_equal(bk_world_open(arena, size, &w), BK_OK);
    return w;
}

static void two_hops_are_one(void **state)
{
    (void)state;
    for (int each = 1; each <= size; each++) {
        bk_arena *arena = bk_arena_new("test");
        bk_world *w = world_of(arena, each);
        assert_int_equal(w->nodes, (size + each - 1) / each);
        bool levels = each > 1 && each < size && size % each == 0;
        assert_int_equal(bk_comm_has_levels(w->ep), levels);
        assert_false(bk_comm_has_levels(w->world) || bk_comm_has_levels(NULL));
        if (levels) {
            check_rows(w->ep);
            check_messages(w->ep);
            check_even(w->ep);
            check_polls(w->ep);
        }
        bk_world_close(w);
        bk_arena_free(arena);
    }
}

/* Ranks 0 to 3 stand on one node, 4 to 7 on two: all groups do the same, so none has levels. */
static void groups_differ(void **state)
{
    bk_arena *arena = bk_arena_new("test");
    bk_world *w;
    (void)state;
    set_nodes(6);
    assert_int_equal(bk_world_open(arena, size == 8 ? 4 : 1, &w), BK_OK);
    assert_false(bk_comm_has_levels(w->ep));
    bk_world_close(w);
    bk_arena_free(arena);
}

/* A communicator whose ranks take turns over the nodes. */
static void nodes_may_lie_across(void **state)
{
    (void)state;
    for (int each = 2; each < size; each++) {
        if (size % each != 0)
            continue;
        bk_arena *arena = bk_arena_new("test");
        bk_world *w = world_of(arena, each);
        bk_comm *c = bk_comm_split(arena, w->world->handle, 0, rank % each * size + rank / each,
                                   "across", BK_TRAFFIC_REST);
        bk_levels_open(arena, c, w->node, w->world);
        assert_int_equal(c->node[0], 0);
        assert_int_equal(c->node[1], 1);
        check_rows(c);
        check_messages(c);
        check_even(c);
        bk_comm_close(c);
        bk_world_close(w);
        bk_arena_free(arena);
    }
}

static void nodes_of_what_is_no_number_are_refused(void **state)
{
    const char *const wrong[] = {"", "0", "-2", "two", "2x"};
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        bk_arena *arena = bk_arena_new("test");
        bk_world *w;
        setenv("BIRKHOFF_NODE_RANKS", wrong[i], 1);
        assert_int_equal(bk_world_open(arena, 1, &w), BK_USAGE);
        assert_non_null(strstr(bk_status_text(), "BIRKHOFF_NODE_RANKS"));
        bk_arena_free(arena);
    }
    unsetenv("BIRKHOFF_NODE_RANKS");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_hops_are_one),
        cmocka_unit_test(groups_differ),
        cmocka_unit_test(nodes_may_lie_across),
        cmocka_unit_test(nodes_of_what_is_no_number_are_refused),
    };
    bk_test_ranks_start(&argc, &argv);
    rank = bk_mpi_rank();
    size = bk_mpi_size();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return bk_test_ranks_stop(failed);
}
