/* test: labels=unit timeout=60 */
/* Each case runs in a child: flags and handlers are of the process. */
#include "tests/support/check.h"

#include "core/status.h"
#include "dist/signal.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs a case in a child; returns waitpid's status. */
static int status_of(int (*body)(void))
{
    int status = -1;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        _exit(body());
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void check_true(int (*body)(void))
{
    int status = status_of(body);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static int nothing_seen(void)
{
    bk_signals_install();
    return bk_signals_any() || bk_signals_term() || bk_signals_usr1();
}

static int term_is_seen(void)
{
    bk_signals_install();
    raise(SIGTERM);
    raise(SIGTERM); /* a second one changes nothing */
    return !(bk_signals_any() && bk_signals_term() && !bk_signals_usr1());
}

static int usr1_is_seen(void)
{
    bk_signals_install();
    raise(SIGUSR1);
    return !(bk_signals_any() && !bk_signals_term() && bk_signals_usr1());
}

static int int_means_term(void)
{
    bk_signals_install();
    raise(SIGINT);
    return !(bk_signals_any() && bk_signals_term() && !bk_signals_usr1());
}

/* A job script ignores USR1 until the program is there: the handler replaces that. */
static int ignored_before_is_seen_now(void)
{
    signal(SIGUSR1, SIG_IGN);
    raise(SIGUSR1);
    bk_signals_install();
    if (bk_signals_any())
        return 1;
    raise(SIGUSR1);
    return !bk_signals_usr1();
}

static void flags(void **state)
{
    (void)state;
    check_true(nothing_seen);
    check_true(term_is_seen);
    check_true(usr1_is_seen);
    check_true(int_means_term);
    check_true(ignored_before_is_seen_now);
}

/* A read goes on after the signal instead of failing with EINTR. */
static int calls_are_restarted(void)
{
    int pipes[2];
    char byte = 0;
    bk_signals_install();
    if (pipe(pipes) != 0)
        return 1;
    pid_t parent = getpid(), child = fork();
    if (child == 0) {
        kill(parent, SIGUSR1);
        usleep(20000);
        _exit(write(pipes[1], "x", 1) != 1);
    }
    ssize_t got = read(pipes[0], &byte, 1);
    waitpid(child, NULL, 0);
    return !(got == 1 && byte == 'x' && bk_signals_usr1());
}

static void system_calls_go_on(void **state)
{
    (void)state;
    check_true(calls_are_restarted);
}

static int restore_without_request(void)
{
    bk_signals_install();
    bk_signals_restore();
    struct sigaction now;
    sigaction(SIGTERM, NULL, &now);
    return now.sa_handler != SIG_DFL;
}

static int restore_what_was_ignored(void)
{
    signal(SIGUSR1, SIG_IGN);
    bk_signals_install();
    raise(SIGUSR1);
    bk_signals_restore();
    raise(SIGUSR1);
    return bk_signals_any();
}

/* The request came while the flags were in charge; it takes effect when they give up. */
static int restore_after_term(void)
{
    bk_signals_install();
    raise(SIGTERM);
    bk_signals_restore();
    return 0;
}

static void restored_signals_act(void **state)
{
    (void)state;
    check_true(restore_without_request);
    check_true(restore_what_was_ignored);
    int status = status_of(restore_after_term);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGTERM);
}

/* A terminal of our own as standard input; false where there are none. */
static bool sit_at_a_terminal(void)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0)
        return false;
    int terminal = open(ptsname(master), O_RDWR | O_NOCTTY);
    return terminal >= 0 && dup2(terminal, STDIN_FILENO) == STDIN_FILENO;
}

static int two_interrupts(void)
{
    if (!sit_at_a_terminal())
        return 77;
    close(STDERR_FILENO);
    bk_signals_install();
    raise(SIGINT);
    raise(SIGINT);
    return 1;
}

static int two_interrupts_without_a_terminal(void)
{
    int nothing = open("/dev/null", O_RDONLY);
    dup2(nothing, STDIN_FILENO);
    bk_signals_install();
    raise(SIGINT);
    raise(SIGINT);
    return !bk_signals_term();
}

/* Ctrl-C twice ends at once with 75; a launcher that repeats itself does not. */
static void second_interrupt(void **state)
{
    (void)state;
    check_true(two_interrupts_without_a_terminal);
    int status = status_of(two_interrupts);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), BK_STOPPED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flags),
        cmocka_unit_test(system_calls_go_on),
        cmocka_unit_test(restored_signals_act),
        cmocka_unit_test(second_interrupt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
