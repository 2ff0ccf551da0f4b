/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
/* Messages that are on their way: every rank to every other, of all sizes, in the order of their
 * beginning. */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "dist/collective.h"
#include "dist/messages.h"

#include <string.h>

enum { MOST = 1 << 18, ROUNDS = 3 };

static const int64_t sizes[] = {0, 1, 1000, MOST}; /* eager and by rendezvous */
enum { SIZES = sizeof sizes / sizeof *sizes };

static int rank, size;
static const bk_comm *comm;

static unsigned char mark(int from, int to, int round, int kind)
{
    return (unsigned char)(1 + 64 * round + 16 * kind + 4 * from + to);
}

/* One round to or from all ranks; its buffers. */
typedef struct bundle {
    bk_messages *out, *in;
    unsigned char *sent[8][SIZES], *got[8][SIZES];
} bundle;

static bundle begin(bk_arena *arena, int round)
{
    bundle b = {bk_messages_new(arena, comm, 1), bk_messages_new(arena, comm, 1), {{0}}, {{0}}};
    for (int r = 0; r < size; r++)
        for (int k = 0; k < SIZES; k++) {
            b.got[r][k] = bk_arena_zalloc(arena, (size_t)sizes[k] + 1);
            b.sent[r][k] = bk_arena_alloc(arena, (size_t)sizes[k] + 1);
            memset(b.sent[r][k], mark(rank, r, round, k), (size_t)sizes[k]);
            bk_messages_receive(b.in, r, 7, b.got[r][k], sizes[k]);
            bk_messages_send(b.out, r, 7, b.sent[r][k], sizes[k]);
        }
    return b;
}

static void check(const bundle *b, int round)
{
    for (int r = 0; r < size; r++)
        for (int k = 0; k < SIZES; k++) {
            for (int64_t i = 0; i < sizes[k]; i++)
                assert_int_equal(b->got[r][k][i], mark(r, rank, round, k));
            assert_int_equal(b->got[r][k][sizes[k]], 0); /* and nothing behind it */
        }
}

/* Several rounds under way at once, finished in another order than begun: one tag is enough. */
static void messages_keep_their_order(void **state)
{
    bk_arena *arena = bk_arena_new("test");
    bundle b[ROUNDS];
    (void)state;
    for (int round = 0; round < ROUNDS; round++)
        b[round] = begin(arena, round);
    bk_messages_poll();
    for (int round = ROUNDS - 1; round >= 0; round--) {
        bk_messages_finish(b[round].in);
        check(&b[round], round);
    }
    for (int round = 0; round < ROUNDS; round++)
        bk_messages_finish(b[round].out);
    bk_arena_free(arena);
}

static void nothing_is_waited_for_at_once(void **state)
{
    bk_arena *arena = bk_arena_new("test");
    bk_messages *x = bk_messages_new(arena, comm, 1);
    (void)state;
    bk_messages_finish(NULL);
    bk_messages_finish(x);
    bk_messages_receive(x, 0, 3, NULL, 0);
    bk_messages_finish(x);
    bk_messages_finish(x);
    bk_arena_free(arena);
}

static void bytes_are_counted(void **state)
{
    bk_arena *arena = bk_arena_new("test");
    bk_traffic before = bk_traffic_of(BK_TRAFFIC_REST);
    (void)state;
    bundle b = begin(arena, 0);
    bk_messages_finish(b.in);
    bk_messages_finish(b.out);
    bk_traffic sent = bk_traffic_minus(bk_traffic_of(BK_TRAFFIC_REST), before);
    assert_int_equal(sent.bytes, size * (1 + 1000 + MOST));
    assert_int_equal(sent.messages, 3 * size); /* none of 0 bytes */
    bk_arena_free(arena);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_keep_their_order),
        cmocka_unit_test(nothing_is_waited_for_at_once),
        cmocka_unit_test(bytes_are_counted),
    };
    bk_test_ranks_start(&argc, &argv);
    rank = bk_mpi_rank();
    size = bk_mpi_size();
    comm = bk_test_world()->data;
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
