/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
/* Rows under way while the ranks do something else. */
#include "tests/support/check.h"
#include "tests/support/child.h"
#include "tests/support/ranks.h"

#include "core/log.h"
#include "dist/collective.h"
#include "dist/exchange.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { RANKS = 4, PIECES = 3, WIDTH = 5 };

static int rank, size;
static const bk_comm *comm;
static bk_arena *arena;

/* Rows from one rank to another in a piece; rank 1 sends nothing in piece 1, nobody in piece 2. */
static int64_t rows_between(int from, int to, int piece)
{
    return piece == 2 || (piece == 1 && from == 1) ? 0 : (from * 3 + to * 5 + piece) % 4;
}

/* A value that says where it comes from. */
static int32_t mark(int from, int to, int piece, int64_t i)
{
    return 10000 * from + 1000 * to + 100 * piece + (int32_t)i;
}

/* Rows stand rank by rank, then piece by piece, with a row between that belongs to none. */
typedef struct table {
    int64_t count[PIECES][RANKS], place[PIECES][RANKS], rows;
} table;

static table table_of(bool to_others)
{
    table t = {.rows = 1};
    for (int r = 0; r < size; r++)
        for (int p = 0; p < PIECES; p++) {
            t.place[p][r] = t.rows;
            t.count[p][r] = to_others ? rows_between(rank, r, p) : rows_between(r, rank, p);
            t.rows += t.count[p][r] + 1;
        }
    return t;
}

/* Values of the pieces below `pieces`, -1 elsewhere. */
static int32_t *values(const table *t, bool to_others, int pieces)
{
    int32_t *x = BK_NEW(arena, int32_t, t->rows * WIDTH);
    memset(x, 0xff, (size_t)(t->rows * WIDTH) * sizeof *x);
    for (int p = 0; p < pieces; p++)
        for (int r = 0; r < size; r++)
            for (int64_t i = 0; i < t->count[p][r] * WIDTH; i++)
                x[t->place[p][r] * WIDTH + i] =
                    to_others ? mark(rank, r, p, i) : mark(r, rank, p, i);
    return x;
}

static bk_exchange *begin(const table *out, const int32_t *send, const table *in, int32_t *receive,
                          int p)
{
    return bk_exchange_begin(comm, arena,
                             &(bk_exchange_rows){.bytes = WIDTH * sizeof *send,
                                                 .send = send,
                                                 .send_count = out->count[p],
                                                 .send_place = out->place[p],
                                                 .receive = receive,
                                                 .receive_count = in->count[p],
                                                 .receive_place = in->place[p]});
}

/* Pieces are under way together and are waited for in either order; they write their rows only. */
static void rows_find_their_places(void **state)
{
    table out = table_of(true), in = table_of(false);
    (void)state;
    for (int backwards = 0; backwards < 2; backwards++) {
        bk_exchange *x[PIECES];
        int32_t *send = values(&out, true, PIECES), *receive = values(&in, false, 0);
        int32_t *expected = values(&in, false, PIECES);
        for (int p = 0; p < PIECES; p++)
            x[p] = begin(&out, send, &in, receive, p);
        for (int p = 0; p < PIECES; p++)
            bk_exchange_finish(x[backwards ? PIECES - 1 - p : p]);
        assert_memory_equal(receive, expected, (size_t)(in.rows * WIDTH) * sizeof *receive);
    }
}

/* What others get, one message a piece, by the time the pieces are under way. */
static void messages_are_counted(void **state)
{
    table out = table_of(true), in = table_of(false);
    int32_t *send = values(&out, true, PIECES), *receive = values(&in, false, 0);
    (void)state;
    for (int p = 0; p < PIECES; p++) {
        int64_t rows = 0;
        bk_traffic before = bk_traffic_of(BK_TRAFFIC_REDUCE);
        bk_exchange *x = begin(&out, send, &in, receive, p);
        bk_traffic sent = bk_traffic_minus(bk_traffic_of(BK_TRAFFIC_REDUCE), before);
        bk_exchange_finish(x);
        for (int r = 0; r < size; r++)
            rows += r != rank ? out.count[p][r] : 0;
        assert_int_equal(sent.bytes, rows * WIDTH * (int64_t)sizeof *send);
        assert_int_equal(sent.messages, size > 1);
    }
}

/* A message too long to be sent at once arrives although nobody waits for it: the hook moves it. */
static void polls_move_rows(void **state)
{
    enum { BYTES = 1 << 22 };
    int64_t count[RANKS] = {0}, from[RANKS] = {0}, place[RANKS] = {0};
    char *send = malloc(BYTES), *receive = calloc(BYTES, 1);
    (void)state;
    assert_true(send && receive);
    memset(send, 1 + rank, BYTES);
    count[(rank + 1) % size] = from[(rank + size - 1) % size] = 1;
    bk_exchange *x = bk_exchange_begin(comm, arena,
                                       &(bk_exchange_rows){.bytes = BYTES,
                                                           .send = send,
                                                           .send_count = count,
                                                           .send_place = place,
                                                           .receive = receive,
                                                           .receive_count = from,
                                                           .receive_place = place});
    volatile char *last = receive + BYTES - 1;
    double begun = bk_seconds();
    while (*last == 0 && bk_seconds() - begun < 30.0)
        bk_poll();
    assert_int_equal(*last, 1 + (rank + size - 1) % size);
    bk_exchange_finish(x);
    assert_memory_equal(receive, receive + BYTES / 2, BYTES / 2);
    free(send);
    free(receive);
}

static char *reserve(size_t bytes)
{
    void *x = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    assert_true(x != MAP_FAILED);
    return x;
}

/* Rows are counted, not bytes: some lie more than 2 GiB behind the first. */
static void places_may_be_far(void **state)
{
    const size_t bytes = 4096, far = ((size_t)1 << 31) / bytes + 5;
    int64_t count[RANKS] = {0}, out[RANKS] = {0}, in[RANKS] = {0};
    char *send = reserve((far + RANKS) * bytes), *receive = reserve((far + RANKS) * bytes);
    (void)state;
    for (int r = 0; r < size; r++) {
        count[r] = 1;
        out[r] = in[r] = (int64_t)far + r;
        memset(send + (far + (size_t)r) * bytes, 1 + 10 * rank + r, bytes);
    }
    bk_exchange_finish(bk_exchange_begin(comm, arena,
                                         &(bk_exchange_rows){.bytes = bytes,
                                                             .send = send,
                                                             .send_count = count,
                                                             .send_place = out,
                                                             .receive = receive,
                                                             .receive_count = count,
                                                             .receive_place = in}));
    for (int r = 0; r < size; r++)
        for (size_t i = 0; i < bytes; i++)
            assert_int_equal(receive[(far + (size_t)r) * bytes + i], 1 + 10 * r + rank);
    munmap(send, (far + RANKS) * bytes);
    munmap(receive, (far + RANKS) * bytes);
}

static void begin_far_too_many(void *context)
{
    int64_t count[RANKS] = {0}, place[RANKS] = {0};
    count[size - 1] = (int64_t)1 << 31;
    bk_exchange_begin(comm, arena,
                      &(bk_exchange_rows){.bytes = 1,
                                          .send = context,
                                          .send_count = count,
                                          .send_place = place,
                                          .receive = context,
                                          .receive_count = count,
                                          .receive_place = place});
}

static void more_rows_than_can_be_counted_are_an_error(void **state)
{
    char nothing;
    (void)state;
    if (size > 1)
        bk_test_dies(begin_far_too_many, &nothing,
                     "2147483648 rows in one exchange are more than MPI can count");
}

static void one_rank_needs_no_communicator(void **state)
{
    int64_t count = 2, from = 1, to = 0;
    char out[] = "....";
    (void)state;
    bk_exchange_finish(bk_exchange_begin(NULL, arena,
                                         &(bk_exchange_rows){.bytes = 2,
                                                             .send = "abwxyz",
                                                             .send_count = &count,
                                                             .send_place = &from,
                                                             .receive = out,
                                                             .receive_count = &count,
                                                             .receive_place = &to}));
    assert_string_equal(out, "wxyz");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_find_their_places),
        cmocka_unit_test(messages_are_counted),
        cmocka_unit_test(polls_move_rows),
        cmocka_unit_test(places_may_be_far),
        cmocka_unit_test(more_rows_than_can_be_counted_are_an_error),
        cmocka_unit_test(one_rank_needs_no_communicator),
    };
    bk_test_ranks_start(&argc, &argv);
    comm = bk_test_world()->world;
    rank = bk_mpi_rank();
    size = bk_mpi_size();
    arena = bk_arena_new("exchange");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_arena_free(arena);
    return bk_test_ranks_stop(failed);
}
