/* What a rank leaves in its file, and the line that says who holds up whom. */
#include "tests/support/check.h"
#include "tests/support/files.h"

#include "dist/stall.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MOST = 20 };

static bk_stall_state state_of(int rank, bool waits)
{
    bk_stall_state s = {.rank = rank,
                        .known = true,
                        .beat = 41 + rank,
                        .idle = 600.25,
                        .step = 812,
                        .waits = waits,
                        .bytes = 2100000,
                        .sequence = 5};
    snprintf(s.host, sizeof s.host, "h%d", rank / 2 + 1);
    snprintf(s.phase, sizeof s.phase, "forward");
    snprintf(s.segment, sizeof s.segment, "block2");
    snprintf(s.call, sizeof s.call, "reduction of bucket");
    snprintf(s.comm, sizeof s.comm, "world");
    return s;
}

static const char *line_of(const bk_stall_state *all, int size)
{
    static char text[1024];
    bk_stall_text(all, size, 600.0, text, sizeof text);
    return text;
}

static int open_state(int rank)
{
    int file = open(bk_test_path("rank-%d.state", rank), O_WRONLY | O_CREAT, 0666);
    assert_true(file >= 0);
    return file;
}

static void a_state_is_read_as_written(void **state)
{
    (void)state;
    bk_stall_state s = state_of(3, true), back;
    int file = open_state(3);
    s.beat = 123456789;
    s.bytes = 987654321;
    assert_true(bk_stall_write(file, &s));
    s = state_of(3, true); /* shorter: nothing of the longer one is left */
    assert_true(bk_stall_write(file, &s));
    bk_stall_read(bk_test_path("."), 3, &back);
    assert_true(back.known && back.waits && !back.stale);
    assert_int_equal(back.rank, 3);
    assert_int_equal(back.beat, 44);
    assert_true(back.idle == 600.25);
    assert_int_equal(back.step, 812);
    assert_int_equal(back.bytes, 2100000);
    assert_int_equal(back.sequence, 5);
    assert_string_equal(back.host, "h2");
    assert_string_equal(back.phase, "forward");
    assert_string_equal(back.segment, "block2");
    assert_string_equal(back.call, "reduction of bucket");
    assert_string_equal(back.comm, "world");
    close(file);
}

static void what_is_no_state_is_not_known(void **state)
{
    (void)state;
    bk_stall_state s = state_of(6, false), back;
    bk_stall_read(bk_test_path("."), 5, &back);
    assert_false(back.known);
    assert_int_equal(back.rank, 5);
    int file = open_state(7);
    assert_true(bk_stall_write(file, &s)); /* of another rank */
    bk_stall_read(bk_test_path("."), 7, &back);
    assert_false(back.known);
    close(file);
    bk_test_write_text(bk_test_path("rank-8.state"), "rank 8\nhost h1\n");
    bk_stall_read(bk_test_path("."), 8, &back);
    assert_false(back.known);
}

static void whoever_waits_for_no_one_is_named(void **state)
{
    (void)state;
    bk_stall_state all[4];
    for (int r = 0; r < 4; r++)
        all[r] = state_of(r, r != 3);
    assert_string_equal(line_of(all, 4),
                        "rank 3 on node h2 stands in forward of block2, step 812, for 600 s; ranks "
                        "0 1 2 wait in reduction of bucket 5 on world (2.1 MB)");
    all[1].waits = false;
    snprintf(all[1].segment, sizeof all[1].segment, "-");
    all[2].bytes = 12;
    all[2].sequence = 6;
    assert_string_equal(line_of(all, 4),
                        "rank 1 on node h1 stands in forward, step 812, for 600 s; rank 0 waits in "
                        "reduction of bucket 5 on world (2.1 MB); rank 2 waits in reduction of "
                        "bucket 6 on world (12 B)");
}

/* A process that does not run is what the others wait for, wherever it stands. */
static void a_clock_that_stands_goes_first(void **state)
{
    (void)state;
    bk_stall_state all[3];
    for (int r = 0; r < 3; r++)
        all[r] = state_of(r, r == 2);
    all[2].stale = true;
    all[2].idle = 0.0;
    assert_string_equal(line_of(all, 3),
                        "rank 2 on node h2 stands in forward of block2, step 812, for 600 s, in "
                        "reduction of bucket 5 on world (2.1 MB) (its process does not run)");
}

static void ranks_that_wait_for_each_other(void **state)
{
    (void)state;
    bk_stall_state all[3];
    for (int r = 0; r < 3; r++)
        all[r] = state_of(r, true);
    snprintf(all[1].comm, sizeof all[1].comm, "loss");
    assert_string_equal(line_of(all, 3),
                        "no rank goes on for 600 s; ranks 0 2 wait in reduction of bucket 5 on "
                        "world (2.1 MB); rank 1 waits in reduction of bucket 5 on loss (2.1 MB)");
}

static void unknown_and_many_ranks(void **state)
{
    (void)state;
    bk_stall_state all[MOST];
    for (int r = 0; r < MOST; r++)
        all[r] = state_of(r, true);
    all[0].known = false;
    assert_string_equal(line_of(all, MOST),
                        "no rank goes on for 600 s; ranks 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 "
                        "and 3 more wait in reduction of bucket 5 on world (2.1 MB); 1 of 20 ranks "
                        "left no state");
    for (int r = 0; r < MOST; r++)
        all[r].sequence = r;
    const char *text = line_of(all, MOST);
    assert_non_null(strstr(text, "rank 4 waits"));
    assert_null(strstr(text, "rank 5 waits")); /* the line stays short */
}

static void a_short_buffer_is_not_passed(void **state)
{
    (void)state;
    bk_stall_state all[2] = {state_of(0, true), state_of(1, false)};
    char text[64];
    memset(text, '#', sizeof text);
    bk_stall_text(all, 2, 600.0, text, 32);
    assert_int_equal(strlen(text), 31);
    assert_true(text[32] == '#' && text[63] == '#');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_state_is_read_as_written),
        cmocka_unit_test(what_is_no_state_is_not_known),
        cmocka_unit_test(whoever_waits_for_no_one_is_named),
        cmocka_unit_test(a_clock_that_stands_goes_first),
        cmocka_unit_test(ranks_that_wait_for_each_other),
        cmocka_unit_test(unknown_and_many_ranks),
        cmocka_unit_test(a_short_buffer_is_not_passed),
    };
    return cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
}
