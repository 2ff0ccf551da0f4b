/* test: labels=unit,fault timeout=120 */
/* A rank that no longer moves ends the job with 76; nothing else does.  Each case is a process of
 * its own.  With an argument the program is one rank of a job for script_watchdog:
 *   asleep DIRECTORY    the last rank sleeps, the others wait for it
 *   apart DIRECTORY     rank 0 is in another call than the others */
#include "tests/support/check.h"
#include "tests/support/child.h"
#include "tests/support/files.h"
#include "tests/support/ranks.h"

#include "core/hooks.h"
#include "core/log.h"
#include "dist/collective.h"
#include "dist/watchdog.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char directory[4096];

static void start(double seconds)
{
    bk_watchdog_start(
        &(bk_watchdog_options){.directory = directory, .run_id = "abc", .seconds = seconds});
}

static void pause_for(double seconds)
{
    double end = bk_seconds() + seconds;
    while (bk_seconds() < end)
        usleep(20000);
}

/* Runs a case; its exit status, and what it said on stderr. */
static int status_of(void (*body)(void *), char said[4096])
{
    snprintf(directory, sizeof directory, "%s", bk_test_path("stall"));
    bk_test_remove_tree(directory);
    bk_test_write_text(bk_test_path("stall/made"), "");
    return bk_test_child(body, NULL, said, 4096);
}

static void expect_silence(void (*body)(void *))
{
    char said[4096];
    assert_int_equal(status_of(body, said), 0);
    assert_string_equal(said, "");
}

static void expect_in_file(const char *name, const char *what)
{
    size_t bytes;
    char *text = bk_test_read(bk_test_path("stall/%s", name), &bytes);
    if (!strstr(text, what))
        fail_msg("no '%s' in %s: %s", what, name, text);
    free(text);
}

/* ---- what ends the job ---- */

static void stand_still(void *unused)
{
    (void)unused;
    start(1.0);
    bk_watchdog_step(7);
    bk_watchdog_phase(BK_PHASE_FORWARD);
    bk_place("block3");
    pause_for(60.0);
}

static void a_rank_that_stands_still_is_named(void **state)
{
    char said[4096];
    (void)state;
    assert_int_equal(status_of(stand_still, said), BK_STALLED);
    assert_non_null(strstr(said, "birkhoff: warning: nothing moves for "));
    assert_non_null(strstr(said, "birkhoff: error: rank 0 on node "));
    assert_non_null(strstr(said, " stands in forward of block3, step 7, for "));
    assert_non_null(strstr(said, "/stall): see the backtraces there"));
    expect_in_file("found-abc.txt", " stands in forward of block3, step 7, for ");
    expect_in_file("rank-0.txt", "phase forward, segment block3, step 7\n");
    expect_in_file("rank-0.txt", "test_watchdog");
    expect_in_file("rank-0.state", "phase forward\nsegment block3\nstep 7\n");
}

static void stand_still_somewhere(void *unused)
{
    (void)unused;
    snprintf(directory, sizeof directory, "%s", bk_test_path("nowhere"));
    start(1.0);
    bk_watchdog_phase(BK_PHASE_UPDATE);
    pause_for(60.0);
}

/* A directory that cannot be written is a warning; the watch goes on. */
static void without_files_it_ends_too(void **state)
{
    char said[4096];
    (void)state;
    assert_int_equal(status_of(stand_still_somewhere, said), BK_STALLED);
    const char *warning = "warning: the watchdog cannot write its state",
               *at = strstr(said, warning);
    assert_non_null(at);
    assert_null(strstr(at + 1, warning));
    assert_non_null(strstr(said, "birkhoff: error: rank 0 on node "));
    assert_non_null(strstr(said, " stands in update, step 0, for "));
}

/* ---- what does not ---- */

static void move(void *unused)
{
    (void)unused;
    start(3.0);
    for (int i = 0; i < 50; i++) {
        bk_watchdog_phase(i % 2 ? BK_PHASE_FORWARD : BK_PHASE_BACKWARD);
        pause_for(0.1);
    }
    bk_watchdog_stop();
}

static void save_slowly(void *unused)
{
    (void)unused;
    start(2.0);
    bk_watchdog_phase(BK_PHASE_SAVE);
    pause_for(3.0);
    bk_watchdog_stop();
}

static void be_off(void *unused)
{
    (void)unused;
    start(0.0);
    bk_watchdog_phase(BK_PHASE_FORWARD);
    pause_for(1.0);
    bk_watchdog_stop();
}

static void work_raises_no_alarm(void **state)
{
    (void)state;
    expect_silence(move);
}

static void a_slow_save_raises_no_alarm(void **state)
{
    (void)state;
    expect_silence(save_slowly);
}

static void zero_seconds_is_off(void **state)
{
    (void)state;
    expect_silence(be_off);
}

/* Another process stops this one for longer than the limit and lets it go on. */
static void be_stopped(void *unused)
{
    (void)unused;
    pid_t me = getpid();
    start(6.0);
    bk_watchdog_phase(BK_PHASE_FORWARD);
    pid_t other = fork();
    if (other == 0) {
        kill(me, SIGSTOP);
        pause_for(7.0);
        kill(me, SIGCONT);
        _exit(0);
    }
    waitpid(other, NULL, 0);
    pause_for(0.8); /* a tick */
    bk_watchdog_stop();
}

static void time_in_which_it_is_stopped_does_not_count(void **state)
{
    (void)state;
    expect_silence(be_stopped);
}

static void be_traced(void *unused)
{
    (void)unused;
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
        _exit(77);
    start(0.5);
    bk_watchdog_phase(BK_PHASE_FORWARD);
    pause_for(2.0);
    bk_watchdog_stop();
}

static void under_a_debugger_nothing_is_too_long(void **state)
{
    char said[4096];
    (void)state;
    int status = status_of(be_traced, said);
    if (status == 77)
        skip();
    assert_int_equal(status, 0);
    assert_string_equal(said, "");
}

static void ask_from_outside(void *unused)
{
    (void)unused;
    start(60.0);
    bk_watchdog_step(3);
    bk_watchdog_phase(BK_PHASE_EVALUATE);
    raise(SIGUSR2);
    bk_watchdog_stop();
    start(60.0); /* once more, as a second run in one process */
    bk_watchdog_stop();
}

static void a_signal_from_outside_is_answered(void **state)
{
    (void)state;
    expect_silence(ask_from_outside);
    expect_in_file("rank-0.txt", "phase evaluate, segment -, step 3\n");
}

/* ---- one rank of a job ---- */

static int rank_of_a_job(const char *what)
{
    bk_world *world = bk_test_world();
    start(4.0);
    bk_watchdog_step(1);
    bk_watchdog_phase(BK_PHASE_AGREE);
    if (strcmp(what, "asleep") == 0 && world->rank == world->size - 1)
        pause_for(100.0);
    if (strcmp(what, "apart") == 0 && world->rank == 0)
        bk_barrier(world->route);
    bk_barrier(world->loss);
    return 0; /* not reached */
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rank_that_stands_still_is_named),
        cmocka_unit_test(without_files_it_ends_too),
        cmocka_unit_test(work_raises_no_alarm),
        cmocka_unit_test(a_slow_save_raises_no_alarm),
        cmocka_unit_test(zero_seconds_is_off),
        cmocka_unit_test(time_in_which_it_is_stopped_does_not_count),
        cmocka_unit_test(under_a_debugger_nothing_is_too_long),
        cmocka_unit_test(a_signal_from_outside_is_answered),
    };
    if (argc < 3)
        return cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    snprintf(directory, sizeof directory, "%s", argv[2]);
    bk_test_ranks_start(&argc, &argv);
    bk_log_setup(BK_LOG_NORMAL, bk_mpi_rank() == 0, false);
    return bk_test_ranks_stop(rank_of_a_job(argv[1]));
}
