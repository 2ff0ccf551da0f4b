#include "dist/signal.h"

#include "core/status.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SIGNALS = 3 };
static const int signals[SIGNALS] = {SIGTERM, SIGUSR1, SIGINT};

static volatile sig_atomic_t seen[SIGNALS];
static volatile sig_atomic_t from_terminal;
static struct timespec interrupted; /* first of two SIGINT; touched by the handler only */
static struct sigaction former[SIGNALS];

static bool second_interrupt(void)
{
    struct timespec now, before = interrupted;
    clock_gettime(CLOCK_MONOTONIC, &now);
    interrupted = now;
    double gap =
        (double)(now.tv_sec - before.tv_sec) + 1e-9 * (double)(now.tv_nsec - before.tv_nsec);
    return seen[2] && gap < 2.0;
}

static void end_at_once(void)
{
    static const char text[] = "\nbirkhoff: ended by a second interrupt, nothing was saved\n";
    ssize_t written = write(STDERR_FILENO, text, sizeof text - 1);
    (void)written;
    _exit(BK_STOPPED);
}

/* Async-signal-safe calls only. */
static void note(int signal)
{
    int kept = errno;
    if (signal == SIGINT && second_interrupt() && from_terminal)
        end_at_once();
    for (int i = 0; i < SIGNALS; i++)
        if (signals[i] == signal)
            seen[i] = 1;
    errno = kept;
}

void bk_signals_install(void)
{
    struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    from_terminal = isatty(STDIN_FILENO);
    for (int i = 0; i < SIGNALS; i++)
        sigaction(signals[i], &action, &former[i]);
}

void bk_signals_restore(void)
{
    for (int i = 0; i < SIGNALS; i++) {
        sigaction(signals[i], &former[i], NULL);
        if (seen[i])
            raise(signals[i]);
        seen[i] = 0;
    }
}

bool bk_signals_term(void)
{
    return seen[0] || seen[2];
}

bool bk_signals_usr1(void)
{
    return seen[1];
}

bool bk_signals_any(void)
{
    return bk_signals_term() || bk_signals_usr1();
}
