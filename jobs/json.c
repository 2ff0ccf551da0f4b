#include "jobs/json.h"

#include <math.h>

/* Bytes of the UTF-8 character at `text`; 0 when it is none.  Overlong forms, surrogates and what
 * lies behind U+10FFFF are none. */
static int utf8_bytes(const char *text)
{
    const unsigned char *c = (const unsigned char *)text;
    int bytes = c[0] < 0x80                    ? 1
                : c[0] >= 0xc2 && c[0] <= 0xdf ? 2
                : (c[0] & 0xf0) == 0xe0        ? 3
                : c[0] >= 0xf0 && c[0] <= 0xf4 ? 4
                                               : 0;
    for (int i = 1; i < bytes; i++)
        if ((c[i] & 0xc0) != 0x80)
            return 0;
    bool wrong = (c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] > 0x9f) ||
                 (c[0] == 0xf0 && c[1] < 0x90) || (c[0] == 0xf4 && c[1] > 0x8f);
    return wrong ? 0 : bytes;
}

/* Names of files may be any bytes, JSON may not: what is not UTF-8 becomes U+FFFD. */
static void quoted(FILE *file, const char *text)
{
    fputc('"', file);
    while (*text) {
        int bytes = utf8_bytes(text);
        if (bytes == 0)
            fputs("\\ufffd", file);
        else if (*text == '"' || *text == '\\')
            fprintf(file, "\\%c", *text);
        else if ((unsigned char)*text < 0x20)
            fprintf(file, "\\u%04x", (unsigned)*text);
        else
            fwrite(text, 1, (size_t)bytes, file);
        text += bytes > 0 ? bytes : 1;
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
