/* core/option.h - option tables: one row per setting, with type, default, range and help.
 *
 * A configuration struct and its table are all a plug-in writes; checks, `birkhoff kinds`, the
 * resolved configuration and the reference page come from the table.  Values come from a tree
 * (bk_value) that io/yaml.c parses and `key=value` arguments overlay. */
#ifndef BK_CORE_OPTION_H
#define BK_CORE_OPTION_H

#include "core/arena.h"

typedef enum bk_option_type {
    BK_OPT_I64,
    BK_OPT_F64,
    BK_OPT_F32,
    BK_OPT_BOOL,
    BK_OPT_CHOICE,
    BK_OPT_TEXT
} bk_option_type;

typedef struct bk_option {
    const char *name;
    bk_option_type type;
    size_t offset; /* in the configuration struct: int64_t, double, float, bool, int (index of the
                      choice), const char * */
    double preset, least, most; /* numbers and booleans (0/1); CHOICE: preset = index; F64: a preset
                                   of NaN is written `auto`, and so is a value of NaN */
    const char *text;           /* TEXT: default, may be NULL; CHOICE: "none|switch|..." */
    bool open_least;            /* the range excludes `least` itself */
    const char *help;
} bk_option;

/* BK_OPTION_I64(cosine_config, iterations, 20, 1, 10000, "sweeps") and so on; the key is the
 * member's name. */
#define BK_OPTION_I64(type_, member, preset_, least_, most_, help_)                      \
    {                                                                                    \
        .name = #member, .type = BK_OPT_I64, .offset = offsetof(type_, member),          \
        .preset = (double)(preset_), .least = (double)(least_), .most = (double)(most_), \
        .help = (help_)                                                                  \
    }
#define BK_OPTION_F64(type_, member, preset_, least_, most_, help_)              \
    {                                                                            \
        .name = #member, .type = BK_OPT_F64, .offset = offsetof(type_, member),  \
        .preset = (preset_), .least = (least_), .most = (most_), .help = (help_) \
    }
#define BK_OPTION_F32(type_, member, preset_, least_, most_, help_)              \
    {                                                                            \
        .name = #member, .type = BK_OPT_F32, .offset = offsetof(type_, member),  \
        .preset = (preset_), .least = (least_), .most = (most_), .help = (help_) \
    }
/* Range (least, most]: `least` itself is excluded. */
#define BK_OPTION_F64_ABOVE(type_, member, preset_, least_, most_, help_)            \
    {                                                                                \
        .name = #member, .type = BK_OPT_F64, .offset = offsetof(type_, member),      \
        .preset = (preset_), .least = (least_), .most = (most_), .open_least = true, \
        .help = (help_)                                                              \
    }
/* `auto` (NaN in the member), the default, or a number; open_: `least` itself is excluded. */
#define BK_OPTION_F64_AUTO(type_, member, least_, most_, open_, help_)                        \
    {                                                                                         \
        .name = #member, .type = BK_OPT_F64, .offset = offsetof(type_, member),               \
        .preset = __builtin_nan(""), .least = (least_), .most = (most_), .open_least = open_, \
        .help = (help_)                                                                       \
    }
#define BK_OPTION_BOOL(type_, member, preset_, help_)                            \
    {                                                                            \
        .name = #member, .type = BK_OPT_BOOL, .offset = offsetof(type_, member), \
        .preset = (preset_), .most = 1, .help = (help_)                          \
    }
/* The member is an int: the index into "a|b|c". */
#define BK_OPTION_CHOICE(type_, member, preset_, choices_, help_)                  \
    {                                                                              \
        .name = #member, .type = BK_OPT_CHOICE, .offset = offsetof(type_, member), \
        .preset = (preset_), .text = (choices_), .help = (help_)                   \
    }
/* The member is a const char *, on the run arena. */
#define BK_OPTION_TEXT(type_, member, preset_, help_)                            \
    {                                                                            \
        .name = #member, .type = BK_OPT_TEXT, .offset = offsetof(type_, member), \
        .text = (preset_), .help = (help_)                                       \
    }
/* A text under a key that is not the member's name. */
#define BK_OPTION_TEXT_AS(type_, member, name_, preset_, help_)                  \
    {                                                                            \
        .name = (name_), .type = BK_OPT_TEXT, .offset = offsetof(type_, member), \
        .text = (preset_), .help = (help_)                                       \
    }
#define BK_OPTION_END \
    {                 \
        .name = NULL  \
    }

/* The keys below one path of the configuration file, for `birkhoff kinds` and the reference page.
 * Arrays of sections end in one without a path. */
typedef struct bk_section {
    const char *path; /* "model.attention" */
    const bk_option *options;
    const char *kinds; /* class of plug-ins that add keys of their own here; NULL = none */
} bk_section;

/* ---- the tree of values ---- */

typedef enum bk_value_kind { BK_SCALAR, BK_MAP, BK_LIST } bk_value_kind;

typedef struct bk_value {
    bk_value_kind kind;
    const char *text;              /* scalar, as written */
    bool quoted;                   /* scalar was quoted: always text */
    struct bk_value *next;         /* next entry of the parent */
    const char *key;               /* in a map */
    struct bk_value *child, *last; /* first and last entry of a map or list */
    const char *file;              /* where it stands, for messages: file name or "command line" */
    int line;                      /* 1-based; 0 on the command line */
    bool used;                     /* read by some table */
} bk_value;

bk_value *bk_value_new(bk_arena *arena, bk_value_kind kind, const char *file, int line);
/* The child of a map; NULL when absent or when map is NULL. */
bk_value *bk_value_get(const bk_value *map, const char *key);
/* Appends to a map or list. */
void bk_value_append(bk_value *parent, bk_value *child);
/* Overlays "optim.lr" = text: makes missing maps, replaces what is there; a number in the path is a
 * list index. BK_USAGE when the path is empty between two dots, runs through a scalar or past a
 * list's end. */
BK_CHECKED bk_status bk_value_set(bk_arena *arena, bk_value *root, const char *path,
                                  const char *text);
bk_value *bk_value_copy(bk_arena *arena, const bk_value *value);
/* "run.yaml:12" or "command line", for messages; returns `text`. */
enum { BK_PLACE_TEXT = 160 };
const char *bk_value_place(const bk_value *value, char text[BK_PLACE_TEXT]);

/* ---- reading ---- */

/* Fills every member of `config` named in `table` from `map` (NULL: defaults only), checks type and
 * range, and marks the keys used.  A text that is empty, null or ~ without quotes is the default.
 * `path` ("model.moe.router") stands in messages.  BK_USAGE when `map` is no mapping and on a wrong
 * type, range or choice, naming file, line, key, value, range and the nearest choice.  Text is
 * copied to `arena`. */
BK_CHECKED bk_status bk_options_read(const bk_option *table, void *config, bk_value *map,
                                     const char *path, bk_arena *arena);

/* After all tables of a map were read: BK_USAGE for the first key that none of them used, with the
 * nearest name out of `tables` (NULL-ended) and `more` (NULL-ended extra key names, may be NULL).
 */
BK_CHECKED bk_status bk_options_unknown(const bk_value *map, const char *path,
                                        const bk_option *const *tables, const char *const *more);

/* Writes "key: value" lines of the resolved values at an indent, for config.yaml and --dry-run;
 * `out` is a growing buffer (open_memstream). */
void bk_options_write(const bk_option *table, const void *config, int indent, void *file);

/* What values are allowed: "[1, 10000]", "(0, 1]", ">= 0", the choices "a|b|c", "" for the rest; in
 * a buffer of the caller or in the table. */
enum { BK_RANGE_TEXT = 64 };
const char *bk_option_range(const bk_option *o, char buffer[BK_RANGE_TEXT]);

/* The nearest of the NULL-ended names to `word` by edit distance, NULL when nothing is near. */
const char *bk_nearest(const char *word, const char *const *names);

/* BK_USAGE: there is no `name` among the NULL-ended `names` of a class ("router"); with the nearest
 * one, and with the place of `at` (NULL: none). */
bk_status bk_unknown_kind(const char *class, const char *name, const bk_value *at,
                          const char *const *names);

/* Parses one scalar the way YAML would ("1e-3", "true", "12"): false when it is not of that type.
 */
bool bk_parse_f64(const char *text, double *out);
bool bk_parse_i64(const char *text, int64_t *out);
bool bk_parse_bool(const char *text, bool *out);

#endif
