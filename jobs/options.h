/* jobs/options.h - option tables (core/option.h) for people and programs: help pages and --json. */
#ifndef BK_JOBS_OPTIONS_H
#define BK_JOBS_OPTIONS_H

#include "core/option.h"
#include "jobs/command.h"
#include "jobs/json.h"

/* One aligned line a key: name, type, default, range, help.  "no options" for an empty table. */
void bk_options_print(FILE *file, const bk_option *table);
/* A list of objects: name, type, default, least, most, open_least, choices, help. */
void bk_options_json(bk_json *j, const char *key, const bk_option *table);

/* Fills `config` from the key=value arguments of a command; a key that is not in the table is
 * BK_USAGE with the nearest one.  `path` stands in messages ("data.listops"). */
BK_CHECKED bk_status bk_options_from_context(bk_context *context, const bk_option *table,
                                             const char *path, void *config);

#endif
