#include "io/table.h"

#include <string.h>

bk_table bk_table_new(const char *path, char *text, size_t length, char separator, bool quotes)
{
    bool mark = length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0;
    return (bk_table){.path = path,
                      .at = text + (mark ? 3 : 0),
                      .end = text + length,
                      .separator = separator,
                      .quotes = quotes,
                      .next = 1};
}

static bk_status add(bk_table *t, const char *from, const char *to)
{
    if (t->fields == BK_TABLE_FIELDS)
        return bk_fail(BK_INPUT, "a row has more than %d columns (%s:%lld): is this a table?",
                       BK_TABLE_FIELDS, t->path, (long long)t->line);
    t->field[t->fields++] = (bk_field){from, (size_t)(to - from)};
    return BK_OK;
}

/* The end of the line at `at`: before LF, CR LF, or the end of the text. */
static char *line_end(const bk_table *t, char *at)
{
    char *newline = at < t->end ? memchr(at, '\n', (size_t)(t->end - at)) : NULL;
    char *end = newline ? newline : t->end;
    return end > at && end[-1] == '\r' ? end - 1 : end;
}

/* An unquoted field ends at a separator or with its line. */
static bk_status plain_field(bk_table *t)
{
    char *end = line_end(t, t->at);
    char *cut =
        t->separator && t->at < end ? memchr(t->at, t->separator, (size_t)(end - t->at)) : NULL;
    char *from = t->at;
    t->at = cut ? cut : end;
    return add(t, from, t->at);
}

/* Unquotes in place; the text may hold separators and line ends. */
static bk_status quoted_field(bk_table *t)
{
    char *from = ++t->at, *to = from;
    for (; t->at < t->end; t->at++) {
        if (*t->at == '"') {
            if (t->at + 1 == t->end || t->at[1] != '"')
                break;
            t->at++;
        }
        t->next += *t->at == '\n';
        *to++ = *t->at;
    }
    if (t->at == t->end)
        return bk_fail(BK_INPUT, "a quote is never closed (%s: row of line %lld): close it",
                       t->path, (long long)t->line);
    t->at++;
    if (t->at < line_end(t, t->at) && *t->at != t->separator)
        return bk_fail(BK_INPUT,
                       "text stands behind a closing quote (%s: row of line %lld): double the "
                       "quotes inside a field",
                       t->path, (long long)t->line);
    return add(t, from, to);
}

static bk_status read_row(bk_table *t)
{
    for (;; t->at++) {
        bool quoted = t->quotes && t->at < t->end && *t->at == '"';
        BK_TRY(quoted ? quoted_field(t) : plain_field(t));
        if (t->separator == '\0' || t->at == t->end || *t->at != t->separator)
            return BK_OK;
    }
}

static void skip_line_end(bk_table *t)
{
    if (t->at < t->end && *t->at == '\r')
        t->at++;
    if (t->at < t->end)
        t->at++;
    t->next++;
}

bk_status bk_table_next(bk_table *t, bool *more)
{
    t->fields = 0;
    while (t->at < t->end && line_end(t, t->at) == t->at)
        skip_line_end(t);
    *more = t->at < t->end;
    if (!*more)
        return BK_OK;
    t->line = t->next;
    BK_TRY(read_row(t));
    skip_line_end(t);
    return BK_OK;
}

int bk_table_column(const bk_table *t, const char *name)
{
    for (int i = 0; i < t->fields; i++)
        if (t->field[i].length == strlen(name) &&
            memcmp(t->field[i].text, name, t->field[i].length) == 0)
            return i;
    return -1;
}
