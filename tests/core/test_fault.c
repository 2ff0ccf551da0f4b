/* BIRKHOFF_FAULT: what is read, what is refused, and when it happens. */
#include "tests/support/check.h"

#include "core/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static bk_status arm(const char *text, int rank)
{
    setenv("BIRKHOFF_FAULT", text, 1);
    return bk_faults_read(rank);
}

static void nothing_is_armed_by_itself(void **state)
{
    (void)state;
    unsetenv("BIRKHOFF_FAULT");
    assert_int_equal(bk_faults_read(0), BK_OK);
    assert_false(bk_faults_armed);
    assert_int_equal(bk_fault(BK_FAULT_SAVE_WRITE), 0);
    assert_int_equal(arm("save.write:1:eio", 0), BK_OK); /* another rank's */
    assert_false(bk_faults_armed);
}

static void the_nth_pass_of_a_point_fails(void **state)
{
    (void)state;
    assert_int_equal(arm("save.write:0:enospc:2,save.write:*:eio:3,save.sync:0:eio", 0), BK_OK);
    assert_int_equal(bk_fault(BK_FAULT_SAVE_WRITE), 0);
    assert_int_equal(bk_fault(BK_FAULT_SAVE_WRITE), ENOSPC);
    assert_int_equal(bk_fault(BK_FAULT_SAVE_WRITE), EIO);
    assert_int_equal(bk_fault(BK_FAULT_SAVE_WRITE), 0);
    assert_int_equal(bk_fault(BK_FAULT_SAVE_SYNC), EIO);
    assert_int_equal(bk_fault(BK_FAULT_SAVE_SYNC), 0);
}

static void refuses_what_it_does_not_know(void **state)
{
    static const char *const bad[] = {"save.write",          "save.write:0",
                                      "save.wrote:0:eio",    "save.write:x:eio",
                                      "save.write:-1:eio",   "save.write:0:burn",
                                      "save.write:0:kill",   "save.write:0:sleep",
                                      "save.write:0:sleep=", "save.write:0:sleep=a",
                                      "save.write:0:eio=3",  "save.write:0:eio:0",
                                      "save.write:0:eio:x",  "save.write:0:eio,load.list"};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(arm(bad[i], 0), BK_USAGE);
        assert_non_null(strstr(bk_status_text(), "BIRKHOFF_FAULT="));
    }
}

static void a_file_is_spoiled(void **state)
{
    char path[] = "fault-XXXXXX", data[10];
    (void)state;
    int file = mkstemp(path);
    assert_true(file >= 0 && write(file, "0000000000", 10) == 10);
    assert_int_equal(arm("save.sync:0:bitflip=13,save.close:0:short", 0), BK_OK);
    assert_int_equal(bk_fault_at(BK_FAULT_SAVE_SYNC, path), 0);
    assert_int_equal(pread(file, data, 10, 0), 10);
    for (int i = 0; i < 10; i++)
        assert_int_equal(data[i], i == 3 ? '0' ^ 0x10 : '0');
    assert_int_equal(bk_fault_at(BK_FAULT_SAVE_CLOSE, path), 0);
    assert_int_equal(lseek(file, 0, SEEK_END), 5);
    close(file);
    unlink(path);
}

/* The signal that ends a process which passes the point. */
static int signal_of(const char *text)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        bk_status read = arm(text, 0);
        bk_fault(BK_FAULT_STEP_UPDATE);
        _exit(read == BK_OK ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, WUNTRACED), child);
    if (WIFSTOPPED(status)) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        return WSTOPSIG(status);
    }
    return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

static void signals_come(void **state)
{
    (void)state;
    assert_int_equal(signal_of("step.update:0:kill9"), SIGKILL);
    assert_int_equal(signal_of("step.update:*:abort"), SIGABRT);
    assert_int_equal(signal_of("step.update:0:stop"), SIGSTOP);
    assert_int_equal(signal_of("step.update:0:sleep=0.01"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_armed_by_itself),
        cmocka_unit_test(the_nth_pass_of_a_point_fails),
        cmocka_unit_test(refuses_what_it_does_not_know),
        cmocka_unit_test(a_file_is_spoiled),
        cmocka_unit_test(signals_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
