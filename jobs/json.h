/* jobs/json.h - JSON documents on stdout for --json, written as they are made. */
#ifndef BK_JOBS_JSON_H
#define BK_JOBS_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct bk_json {
    FILE *file;
    bool filled; /* the innermost object or list has an entry */
} bk_json;

/* Every call names its key; NULL in a list and for the outermost object.  A number that is not
 * finite becomes null; a text that is NULL, too. */
void bk_json_open(bk_json *j, const char *key);      /* { */
void bk_json_close(bk_json *j);                      /* } */
void bk_json_open_list(bk_json *j, const char *key); /* [ */
void bk_json_close_list(bk_json *j);                 /* ] */
void bk_json_text(bk_json *j, const char *key, const char *value);
void bk_json_number(bk_json *j, const char *key, double value);
void bk_json_integer(bk_json *j, const char *key, int64_t value);
void bk_json_numbers(bk_json *j, const char *key, int64_t count, const double *value);
void bk_json_integers(bk_json *j, const char *key, int64_t count, const int64_t *value);
void bk_json_bool(bk_json *j, const char *key, bool value);
/* Behind the outermost close: the newline. */
void bk_json_end(bk_json *j);

#endif
