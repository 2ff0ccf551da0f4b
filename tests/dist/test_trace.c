/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
/* With the argument `mismatch` one rank makes its calls in another order and the program ends with
 * the agreed status: for script_watchdog. */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "dist/agree.h"
#include "dist/collective.h"
#include "dist/step.h"
#include "dist/trace.h"

#include <stdio.h>
#include <string.h>

static bk_world *world;
static int rank, size;

static void broadcast(const bk_comm *comm, size_t bytes)
{
    char data[256] = {0};
    bk_broadcast(comm, 0, data, bytes);
}

/* The i-th newest entry. */
static bk_trace_entry newest(int i)
{
    bk_trace_entry entry[BK_TRACE_ENTRIES];
    int count = bk_trace_last(entry);
    assert_in_range(i, 0, count - 1);
    return entry[count - 1 - i];
}

static void ring_holds_the_last_calls(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2 * BK_TRACE_ENTRIES + 5; i++)
        broadcast(world->data, i);
    bk_barrier(world->loss);
    bk_trace_entry entry[BK_TRACE_ENTRIES];
    assert_int_equal(bk_trace_last(entry), BK_TRACE_ENTRIES);
    for (int i = 1; i < BK_TRACE_ENTRIES; i++) {
        bk_trace_entry e = newest(i);
        assert_int_equal(e.call, BK_CALL_BROADCAST);
        assert_int_equal(e.line, BK_LINE_ALL);
        assert_string_equal(e.comm, "data");
        assert_int_equal(e.bytes, 2 * BK_TRACE_ENTRIES + 5 - i);
        assert_int_equal(e.sequence, newest(0).sequence - i);
    }
    assert_int_equal(newest(0).call, BK_CALL_BARRIER);
    assert_string_equal(newest(0).comm, "loss");
}

/* How many calls of the line of all ranks `body` makes. */
static int64_t calls_of(void (*body)(void))
{
    int64_t before = bk_trace_now().calls;
    body();
    return bk_trace_now().calls - before;
}

static void group_calls(void)
{
    bk_barrier(world->ep);
    bk_barrier(world->node);
    if (rank == 0 && size > 1)
        bk_send_bytes(world->data, 1, 7, "x", 1);
    if (rank == 1)
        bk_receive_bytes(world->data, 0, 7, &(char[1]){0}, 1);
}

static void shared_calls(void)
{
    int64_t x = 1, all[16];
    bk_sum_i64(world->loss, 1, &x);
    bk_gather_counts(world->route, 1, all);
    bk_barrier(world->ctl);
}

static void groups_are_in_no_hash(void **state)
{
    (void)state;
    int64_t hash = bk_trace_now().hash;
    assert_int_equal(calls_of(group_calls), 0);
    assert_true(bk_trace_now().hash == hash);
    assert_int_equal(calls_of(shared_calls), size > 1 ? 3 : 1);
    assert_true(bk_trace_now().hash != hash);
    assert_int_equal(bk_agree(world->ctl, BK_OK), BK_OK);
}

/* Rows differ from rank to rank: the calls are the same all the same. */
static void uneven_bytes_are_in_no_hash(void **state)
{
    (void)state;
    int64_t send[16] = {0}, receive[16] = {0};
    char rows[64] = {0}, got[64];
    for (int r = 0; r < size; r++) {
        send[r] = rank == 0 ? r : 0;
        receive[r] = r == 0 ? rank : 0;
    }
    bk_alltoallv_rows(world->data, 4, rows, send, got, receive);
    assert_int_equal(bk_agree(world->ctl, BK_OK), BK_OK);
    assert_int_equal(bk_trace_compare(world->ctl), BK_OK);
}

static void a_call_is_waited_in_until_it_ends(void **state)
{
    bk_trace_entry e;
    (void)state;
    uint64_t before = bk_trace_changes();
    bk_trace_enter(world->data, BK_CALL_GATHER, 24);
    assert_true(bk_trace_waits(&e));
    assert_int_equal(e.call, BK_CALL_GATHER);
    assert_string_equal(e.comm, "data");
    assert_int_equal(e.bytes, 24);
    bk_trace_leave();
    assert_false(bk_trace_waits(&e));
    bk_trace_bucket(world->world, 5, 4096);
    assert_false(bk_trace_waits(&e));
    bk_trace_wait_bucket(world->world, 5, 4096);
    assert_true(bk_trace_waits(&e));
    assert_int_equal(e.call, BK_CALL_BUCKET);
    assert_int_equal(e.sequence, 5);
    bk_trace_leave();
    assert_true(bk_trace_changes() > before + 3);
}

/* Buckets set out between other calls, now here, now there; their own order counts. */
static void buckets_may_fall_anywhere(void **state)
{
    (void)state;
    if (rank == 0)
        bk_trace_bucket(world->world, 0, 64);
    bk_barrier(world->loss);
    if (rank > 0)
        bk_trace_bucket(world->world, 0, 64);
    assert_int_equal(bk_agree(world->ctl, BK_OK), BK_OK);
}

/* The last rank takes two broadcasts in the other order: eager messages let it pass. */
static void swap_calls(void)
{
    bool other = size > 1 && rank == size - 1;
    broadcast(other ? world->route : world->loss, 8);
    broadcast(other ? world->loss : world->route, 8);
}

static bk_status step_status(void)
{
    bk_lanes lanes = bk_lanes_of_rank(4, 4, rank, size);
    double record[4] = {0}, sum[1], all[1];
    bk_step_message m = {.terms = 1, .record = record, .sum = sum, .all_blocks = all};
    bk_step_agree(world->ctl, &lanes, &m);
    return m.status;
}

static void check_text(void)
{
    char text[96];
    snprintf(text, sizeof text, "rank %d makes other collective calls than rank 0 (call ",
             size - 1);
    assert_memory_equal(bk_status_text(), text, strlen(text));
    assert_non_null(strstr(bk_status_text(), "broadcast on route, 8 bytes; on rank 0: "
                                             "broadcast on loss, 8 bytes"));
}

/* From here on the hashes differ: the last test. */
static void another_order_is_named(void **state)
{
    (void)state;
    assert_int_equal(step_status(), BK_OK);
    swap_calls();
    assert_int_equal(bk_agree(world->ctl, BK_INPUT), BK_INPUT); /* a failure goes before */
    assert_int_equal(step_status(), size > 1 ? BK_FAULT : BK_OK);
    if (size > 1)
        check_text();
    bk_status_set_text("");
    assert_int_equal(bk_agree(world->ctl, BK_OK), size > 1 ? BK_FAULT : BK_OK);
    if (size > 1)
        check_text();
}

static int mismatch(void)
{
    swap_calls();
    bk_status status = step_status();
    if (rank == 0)
        fprintf(stderr, "birkhoff: error: %s\n", bk_status_text());
    return (int)status;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ring_holds_the_last_calls),
        cmocka_unit_test(groups_are_in_no_hash),
        cmocka_unit_test(uneven_bytes_are_in_no_hash),
        cmocka_unit_test(a_call_is_waited_in_until_it_ends),
        cmocka_unit_test(buckets_may_fall_anywhere),
        cmocka_unit_test(another_order_is_named),
    };
    bk_test_ranks_start(&argc, &argv);
    world = bk_test_world();
    rank = world->rank;
    size = world->size;
    if (argc > 1 && strcmp(argv[1], "mismatch") == 0)
        return bk_test_ranks_stop(mismatch());
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
