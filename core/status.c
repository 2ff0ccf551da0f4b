#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT = 2048, TRAIL = 4096 };

static _Thread_local char text[TEXT];
static _Thread_local char trail[TRAIL];
static void (*abort_job)(int exit_code);

static void make_plain(char *at, const char *kept)
{
    for (; *at; at++)
        if (((unsigned char)*at < ' ' && !strchr(kept, *at)) || *at == 0x7f)
            *at = '?';
}

void bk_plain_text(char *plain)
{
    make_plain(plain, "");
}

void bk_plain_lines(char *lines)
{
    make_plain(lines, "\n\t");
}

bk_status bk_fail(bk_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    char fresh[TEXT]; /* an argument may be the former text */
    vsnprintf(fresh, sizeof fresh, format, arguments);
    va_end(arguments);
    bk_plain_text(fresh);
    memcpy(text, fresh, sizeof text);
    trail[0] = '\0';
    return status;
}

bk_status bk_within(bk_status status, const char *format, ...)
{
    if (status == BK_OK)
        return status;
    size_t used = strlen(trail);
    if (used > 0 && used + 2 < TRAIL)
        trail[used++] = '\n';
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(trail + used, TRAIL - used, format, arguments);
    va_end(arguments);
    return status;
}

const char *bk_status_text(void)
{
    return text;
}

const char *bk_status_trail(void)
{
    return trail;
}

void bk_status_set_text(const char *other)
{
    snprintf(text, sizeof text, "%s", other);
    trail[0] = '\0';
}

void bk_set_abort(void (*abort_hook)(int exit_code))
{
    abort_job = abort_hook;
}

static _Noreturn void give_up(void)
{
    fflush(NULL);
    if (abort_job)
        abort_job(BK_FAULT);
    abort();
}

void bk_fatal(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("birkhoff: fatal: ", stderr);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "%s%s\n", trail[0] ? "\n" : "", trail);
    give_up();
}

void bk_assert_failed(const char *file, int line, const char *condition, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "birkhoff: fault in Birkhoff: %s:%d: %s: ", file, line, condition);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    give_up();
}
