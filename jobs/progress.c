#include "jobs/progress.h"

#include "core/log.h"

#include <poll.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int terminal_width(void)
{
    struct winsize size = {0};
    if (!isatty(STDERR_FILENO) || ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0)
        return 0;
    return size.ws_col;
}

bk_progress bk_progress_start(int64_t first, int64_t last)
{
    return (bk_progress){
        .terminal = terminal_width() > 0, .started = bk_seconds(), .first = first, .last = last};
}

static void clock_text(double seconds, char text[16])
{
    int s = seconds < 0 ? 0 : seconds > 3.5e6 ? 3500000 : (int)(seconds + 0.5);
    if (s >= 3600)
        snprintf(text, 16, "%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, 16, "%d:%02d", s / 60, s % 60);
}

static void bar(const bk_progress *p, int64_t step, const char *left, const char *text)
{
    enum { CELLS = 20 };
    char cells[CELLS + 1];
    int full = p->last > 0 ? (int)(step * CELLS / p->last) : CELLS;
    for (int i = 0; i < CELLS; i++)
        cells[i] = i < full ? '#' : '.';
    cells[CELLS] = '\0';
    char line[512];
    snprintf(line, sizeof line, "[%s] %lld/%lld  %s  %s left", cells, (long long)step,
             (long long)p->last, text, left);
    fprintf(stderr, "\r%.*s\033[K", terminal_width() - 1, line);
    fflush(stderr);
}

/* A reader that has gone to sleep, such as mpirun while it ends a job, must not hold up the
 * training. */
static bool reader_waits(void)
{
    struct pollfd p = {.fd = STDERR_FILENO, .events = POLLOUT};
    return poll(&p, 1, 0) != 0;
}

void bk_progress_show(bk_progress *p, int64_t step, bool due, const char *text)
{
    double now = bk_seconds();
    if (!bk_log_speaks() || (p->terminal ? now - p->shown < 0.1 && step < p->last : !due) ||
        !reader_waits())
        return;
    p->shown = now;
    char left[16];
    double rate = (now - p->started) / (double)(step > p->first ? step - p->first : 1);
    clock_text(rate * (double)(p->last - step), left);
    if (p->terminal)
        bar(p, step, left, text);
    else
        bk_note("step %lld/%lld  %s  %s left", (long long)step, (long long)p->last, text, left);
}

void bk_progress_break(bk_progress *p)
{
    if (p->terminal && bk_log_speaks() && p->shown > 0)
        fputc('\n', stderr);
    p->shown = 0;
}
