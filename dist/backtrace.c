#include "dist/backtrace.h"

#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { DEPTH = 64 };

static char file_path[4096];
static pthread_t main_thread;
static void (*write_where)(int file);
static atomic_int written; /* backtraces so far */

/* Async-signal-safe calls only. */
static void write_backtrace(void)
{
    void *frame[DEPTH];
    int file = open(file_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file >= 0) {
        write_where(file);
        backtrace_symbols_fd(frame, backtrace(frame, DEPTH), file);
        close(file);
    }
    atomic_fetch_add(&written, 1);
}

/* The signal may come to any thread of the process. */
static void on_signal(int signal)
{
    int kept = errno;
    if (pthread_equal(pthread_self(), main_thread))
        write_backtrace();
    else
        pthread_kill(main_thread, signal);
    errno = kept;
}

void bk_backtrace_install(const char *path, void (*where)(int file))
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    void *frame[DEPTH];
    backtrace(frame, DEPTH); /* loads what it needs now, not in the handler */
    snprintf(file_path, sizeof file_path, "%s", path);
    main_thread = pthread_self();
    write_where = where;
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR2, &action, NULL);
}

bool bk_backtrace_ask(void)
{
    int before = atomic_load(&written);
    pthread_kill(main_thread, SIGUSR2);
    for (int i = 0; i < 200 && atomic_load(&written) == before; i++)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    return atomic_load(&written) != before;
}
