#include "core/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

static bk_log_level level = BK_LOG_NORMAL;
static bool speaks = true;
static bool color;

void bk_log_setup(bk_log_level new_level, bool new_speaks, bool new_color)
{
    level = new_level;
    speaks = new_speaks;
    color = new_color;
}

bool bk_log_speaks(void)
{
    return speaks;
}

static void line(const char *paint, const char *kind, const char *format, va_list arguments)
{
    char text[4096];
    vsnprintf(text, sizeof text, format, arguments);
    bk_plain_text(text);
    fprintf(stderr, "birkhoff: %s%s%s%s\n", color ? paint : "", kind,
            color && *paint ? "\033[0m" : "", text);
}

void bk_note(const char *format, ...)
{
    if (!speaks || level == BK_LOG_QUIET)
        return;
    va_list arguments;
    va_start(arguments, format);
    line("", "", format, arguments);
    va_end(arguments);
}

static void warn(const char *format, va_list arguments)
{
    if (speaks)
        line("\033[33m", "warning: ", format, arguments);
}

void bk_warn(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    warn(format, arguments);
    va_end(arguments);
}

void bk_warn_once(bool *done, const char *format, ...)
{
    if (*done)
        return;
    *done = true;
    va_list arguments;
    va_start(arguments, format);
    warn(format, arguments);
    va_end(arguments);
}

void bk_error_line(const char *text)
{
    if (speaks)
        fprintf(stderr, "birkhoff: %serror: %s%s\n", color ? "\033[31m" : "",
                color ? "\033[0m" : "", text);
}

double bk_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
