/* io/table.h - rows of tables: tabs without quotes (TSV), or commas with the quotes of RFC 4180
 * (CSV). */
#ifndef BK_IO_TABLE_H
#define BK_IO_TABLE_H

#include "core/status.h"

enum { BK_TABLE_FIELDS = 256 };

typedef struct bk_field {
    const char *text; /* bytes, not ended by NUL */
    size_t length;
} bk_field;

/* A position in the text of a file.  Fields point into the text; quoted ones are unquoted in place.
 */
typedef struct bk_table {
    const char *path;
    char *at, *end;
    char separator;     /* '\t', ','; '\0': a row is one field */
    bool quotes;        /* fields may stand in double quotes, "" inside means one */
    int64_t line, next; /* first line of the row just read, counted from 1; of the next one */
    int fields;
    bk_field field[BK_TABLE_FIELDS];
} bk_table;

/* A table over text[length], which it may change.  A UTF-8 byte-order mark is passed over. */
bk_table bk_table_new(const char *path, char *text, size_t length, char separator, bool quotes);

/* Reads the next row that is not empty; *more is false at the end.  A quote that is never closed, a
 * text behind a closing quote, too many fields: BK_INPUT with file and line. */
BK_CHECKED bk_status bk_table_next(bk_table *t, bool *more);

/* The column of this name in the row just read, -1 when there is none. */
int bk_table_column(const bk_table *t, const char *name);

#endif
