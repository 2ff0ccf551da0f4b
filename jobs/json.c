#include "jobs/json.h"

#include <math.h>

static void quoted(FILE *file, const char *text)
{
    fputc('"', file);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            fprintf(file, "\\%c", c);
        else if (c < 0x20)
            fprintf(file, "\\u%04x", c);
        else
            fputc(c, file);
    }
    fputc('"', file);
}

static void next(bk_json *j, const char *key)
{
    if (j->filled)
        fputs(", ", j->file);
    j->filled = true;
    if (!key)
        return;
    quoted(j->file, key);
    fputs(": ", j->file);
}

static void open_with(bk_json *j, const char *key, char bracket)
{
    next(j, key);
    fputc(bracket, j->file);
    j->filled = false;
}

static void close_with(bk_json *j, char bracket)
{
    fputc(bracket, j->file);
    j->filled = true;
}

void bk_json_open(bk_json *j, const char *key)
{
    open_with(j, key, '{');
}

void bk_json_close(bk_json *j)
{
    close_with(j, '}');
}

void bk_json_open_list(bk_json *j, const char *key)
{
    open_with(j, key, '[');
}

void bk_json_close_list(bk_json *j)
{
    close_with(j, ']');
}

void bk_json_text(bk_json *j, const char *key, const char *value)
{
    next(j, key);
    if (value)
        quoted(j->file, value);
    else
        fputs("null", j->file);
}

void bk_json_number(bk_json *j, const char *key, double value)
{
    next(j, key);
    if (isfinite(value))
        fprintf(j->file, "%.15g", value);
    else
        fputs("null", j->file);
}

void bk_json_integer(bk_json *j, const char *key, int64_t value)
{
    next(j, key);
    fprintf(j->file, "%lld", (long long)value);
}

void bk_json_numbers(bk_json *j, const char *key, int64_t count, const double *value)
{
    bk_json_open_list(j, key);
    for (int64_t i = 0; i < count; i++)
        bk_json_number(j, NULL, value[i]);
    bk_json_close_list(j);
}

void bk_json_integers(bk_json *j, const char *key, int64_t count, const int64_t *value)
{
    bk_json_open_list(j, key);
    for (int64_t i = 0; i < count; i++)
        bk_json_integer(j, NULL, value[i]);
    bk_json_close_list(j);
}

void bk_json_bool(bk_json *j, const char *key, bool value)
{
    next(j, key);
    fputs(value ? "true" : "false", j->file);
}

void bk_json_end(bk_json *j)
{
    fputc('\n', j->file);
    j->filled = false;
}
