#include "core/option.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- scalars ---- */

bool bk_parse_f64(const char *text, double *out)
{
    char *end;
    if (isspace((unsigned char)*text) || *text == '\0')
        return false;
    errno = 0;
    *out = strtod(text, &end);
    return *end == '\0' && isfinite(*out) && !strpbrk(text, "xXpPnN");
}

bool bk_parse_i64(const char *text, int64_t *out)
{
    char *end;
    if (isspace((unsigned char)*text) || *text == '\0')
        return false;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (*end == '\0' && errno == 0) {
        *out = value;
        return true;
    }
    double real; /* 1e6 is an integer too */
    if (!bk_parse_f64(text, &real) || real != floor(real) || fabs(real) > 9e15)
        return false;
    *out = (int64_t)real;
    return true;
}

bool bk_parse_bool(const char *text, bool *out)
{
    bool yes = strcmp(text, "true") == 0 || strcmp(text, "True") == 0 || strcmp(text, "TRUE") == 0;
    bool no =
        strcmp(text, "false") == 0 || strcmp(text, "False") == 0 || strcmp(text, "FALSE") == 0;
    *out = yes;
    return yes || no;
}

/* ---- the nearest name ---- */

enum { WORD = 64 };

static int edit_distance(const char *a, const char *b)
{
    int row[WORD + 1], n = (int)strlen(b);
    if (n > WORD || strlen(a) > WORD)
        return INT_MAX;
    for (int j = 0; j <= n; j++)
        row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int above = row[j], best = diagonal + (a[i - 1] != b[j - 1]);
            best = above + 1 < best ? above + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            row[j] = best;
            diagonal = above;
        }
    }
    return row[n];
}

const char *bk_nearest(const char *word, const char *const *names)
{
    const char *nearest = NULL;
    int best = (int)strlen(word) / 2 + 1;
    for (; *names; names++) {
        int distance = edit_distance(word, *names);
        if (distance < best || (distance == best && !nearest)) {
            best = distance;
            nearest = *names;
        }
    }
    return nearest;
}

bk_status bk_unknown_kind(const char *class, const char *name, const bk_value *at,
                          const char *const *names)
{
    char where[BK_PLACE_TEXT];
    const char *near = bk_nearest(name, names);
    return bk_fail(BK_USAGE, "unknown %s kind '%s'%s%s%s: %s%s%sbirkhoff kinds %s lists them",
                   class, name, at ? " (" : "", at ? bk_value_place(at, where) : "", at ? ")" : "",
                   near ? "did you mean " : "", near ? near : "", near ? "? " : "", class);
}

/* ---- choices and ranges ---- */

#define UNBOUNDED 1e15 /* a range up to here has no upper end that a person would meet */

/* The index of `word` in "a|b|c", -1 when it is not there. */
static int choice_index(const char *choices, const char *word)
{
    size_t length = strlen(word);
    for (int index = 0;; index++) {
        size_t here = strcspn(choices, "|");
        if (here == length && memcmp(choices, word, length) == 0)
            return index;
        if (choices[here] == '\0')
            return -1;
        choices += here + 1;
    }
}

static const char *choice_name(const char *choices, int index, char *buffer, size_t size)
{
    for (; index > 0; index--)
        choices += strcspn(choices, "|") + 1;
    snprintf(buffer, size, "%.*s", (int)strcspn(choices, "|"), choices);
    return buffer;
}

const char *bk_option_range(const bk_option *o, char buffer[BK_RANGE_TEXT])
{
    if (o->type == BK_OPT_CHOICE)
        return o->text;
    if (o->type == BK_OPT_BOOL || o->type == BK_OPT_TEXT)
        return "";
    if (o->most >= UNBOUNDED)
        snprintf(buffer, BK_RANGE_TEXT, "%s %.9g", o->open_least ? ">" : ">=", o->least);
    else if (o->type == BK_OPT_I64)
        snprintf(buffer, BK_RANGE_TEXT, "[%.0f, %.0f]", o->least, o->most);
    else
        snprintf(buffer, BK_RANGE_TEXT, "%c%.9g, %.9g]", o->open_least ? '(' : '[', o->least,
                 o->most);
    return buffer;
}

/* ---- reading ---- */

static const char *type_name(const bk_option *o)
{
    switch (o->type) {
    case BK_OPT_I64:
        return "an integer";
    case BK_OPT_BOOL:
        return "true or false";
    case BK_OPT_CHOICE:
        return "one of its names";
    case BK_OPT_TEXT:
        return "text";
    default:
        return isnan(o->preset) ? "a number or auto" : "a number";
    }
}

static bk_status wrong_type(const bk_option *o, const bk_value *v, const char *path)
{
    char where[BK_PLACE_TEXT];
    const char *quote = v->kind == BK_SCALAR ? v->quoted ? "\"" : "'" : "";
    const char *found = v->kind == BK_MAP ? "a mapping" : v->kind == BK_LIST ? "a list" : v->text;
    return bk_fail(BK_USAGE, "%s.%s is %s%s%s (%s): write %s (%s)", path, o->name, quote, found,
                   quote, bk_value_place(v, where), type_name(o), o->help);
}

static bk_status out_of_range(const bk_option *o, const bk_value *v, const char *path)
{
    char where[BK_PLACE_TEXT], range[BK_RANGE_TEXT];
    return bk_fail(BK_USAGE, "%s.%s=%s is out of range (%s): choose a number %s%s", path, o->name,
                   v->text, bk_value_place(v, where), o->most < UNBOUNDED ? "in " : "",
                   bk_option_range(o, range));
}

static bool in_range(const bk_option *o, double value)
{
    return value <= o->most && (o->open_least ? value > o->least : value >= o->least);
}

static void *member(const bk_option *o, void *config)
{
    return (char *)config + o->offset;
}

static void set_default(const bk_option *o, void *config)
{
    switch (o->type) {
    case BK_OPT_I64:
        *(int64_t *)member(o, config) = (int64_t)o->preset;
        break;
    case BK_OPT_F64:
        *(double *)member(o, config) = o->preset;
        break;
    case BK_OPT_F32:
        *(float *)member(o, config) = (float)o->preset;
        break;
    case BK_OPT_BOOL:
        *(bool *)member(o, config) = o->preset != 0.0;
        break;
    case BK_OPT_CHOICE:
        *(int *)member(o, config) = (int)o->preset;
        break;
    default:
        *(const char **)member(o, config) = o->text;
    }
}

static bk_status read_number(const bk_option *o, void *config, const bk_value *v, const char *path)
{
    int64_t integer = 0;
    double real = 0;
    if (isnan(o->preset) && strcmp(v->text, "auto") == 0) {
        set_default(o, config);
        return BK_OK;
    }
    bool good =
        o->type == BK_OPT_I64 ? bk_parse_i64(v->text, &integer) : bk_parse_f64(v->text, &real);
    if (!good || v->quoted)
        return wrong_type(o, v, path);
    if (!in_range(o, o->type == BK_OPT_I64 ? (double)integer : real))
        return out_of_range(o, v, path);
    if (o->type == BK_OPT_I64)
        *(int64_t *)member(o, config) = integer;
    else if (o->type == BK_OPT_F64)
        *(double *)member(o, config) = real;
    else
        *(float *)member(o, config) = (float)real;
    return BK_OK;
}

static bk_status read_choice(const bk_option *o, void *config, const bk_value *v, const char *path,
                             bk_arena *arena)
{
    char where[BK_PLACE_TEXT];
    int index = choice_index(o->text, v->text);
    const char *names[33] = {0};
    if (index >= 0) {
        *(int *)member(o, config) = index;
        return BK_OK;
    }
    char *words = bk_arena_strdup(arena, o->text), *rest = NULL;
    int count = 0;
    for (char *word = strtok_r(words, "|", &rest); word && count < 32;
         word = strtok_r(NULL, "|", &rest))
        names[count++] = word;
    const char *near = bk_nearest(v->text, names);
    return bk_fail(BK_USAGE, "%s.%s=%s is not one of %s (%s)%s%s%s", path, o->name, v->text,
                   o->text, bk_value_place(v, where), near ? ": did you mean " : "",
                   near ? near : "", near ? "?" : "");
}

/* YAML's null. */
static bool is_null(const bk_value *v)
{
    return !v->quoted && (!v->text[0] || strcmp(v->text, "~") == 0 || strcmp(v->text, "null") == 0);
}

static bk_status read_value(const bk_option *o, void *config, bk_value *v, const char *path,
                            bk_arena *arena)
{
    v->used = true;
    if (v->kind != BK_SCALAR)
        return wrong_type(o, v, path);
    switch (o->type) {
    case BK_OPT_BOOL:
        return bk_parse_bool(v->text, member(o, config)) && !v->quoted ? BK_OK
                                                                       : wrong_type(o, v, path);
    case BK_OPT_CHOICE:
        return read_choice(o, config, v, path, arena);
    case BK_OPT_TEXT:
        *(const char **)member(o, config) = is_null(v) ? o->text : bk_arena_strdup(arena, v->text);
        return BK_OK;
    default:
        return read_number(o, config, v, path);
    }
}

bk_status bk_options_read(const bk_option *table, void *config, bk_value *map, const char *path,
                          bk_arena *arena)
{
    char where[BK_PLACE_TEXT];
    if (map && map->kind != BK_MAP)
        return bk_fail(BK_USAGE, "%s is %s, not a mapping (%s): write %s: {key: value}", path,
                       map->kind == BK_LIST ? "a list" : map->text, bk_value_place(map, where),
                       path);
    for (const bk_option *o = table; o && o->name; o++) {
        bk_value *v = bk_value_get(map, o->name);
        if (v)
            BK_TRY(read_value(o, config, v, path, arena));
        else
            set_default(o, config);
    }
    return BK_OK;
}

bk_status bk_options_unknown(const bk_value *map, const char *path, const bk_option *const *tables,
                             const char *const *more)
{
    const char *names[256] = {0};
    char where[BK_PLACE_TEXT];
    int count = 0;
    for (; *tables; tables++)
        for (const bk_option *o = *tables; o->name && count < 255; o++)
            names[count++] = o->name;
    for (; more && *more && count < 255; more++)
        names[count++] = *more;
    for (const bk_value *v = map->child; v; v = v->next) {
        bool known = v->used;
        for (int i = 0; i < count && !known; i++)
            known = strcmp(names[i], v->key) == 0;
        if (known)
            continue;
        const char *near = bk_nearest(v->key, names);
        return bk_fail(BK_USAGE, "unknown key %s%s%s (%s): %s%s%s", path, *path ? "." : "", v->key,
                       bk_value_place(v, where),
                       near ? "did you mean " : "birkhoff kinds lists the keys", near ? near : "",
                       near ? "?" : "");
    }
    return BK_OK;
}

/* ---- writing ---- */

/* The shortest decimal that reads back as the same number; 60, not 6e+01. */
static void write_real(FILE *file, double value, bool single)
{
    char text[40];
    if (isnan(value)) {
        fputs("auto", file);
        return;
    }
    if (fabs(value) < 1e15 && value == floor(value)) {
        fprintf(file, "%.0f", value);
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (single ? strtof(text, NULL) == (float)value : strtod(text, NULL) == value)
            break;
    }
    fputs(text, file);
}

/* Double-quoted YAML: one line, whatever the text holds. */
static void write_text(FILE *file, const char *text)
{
    fputc('"', file);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            fprintf(file, "\\%c", *text);
        else if ((unsigned char)*text < ' ')
            fprintf(file, "\\x%02x", (unsigned)*text);
        else
            fputc(*text, file);
    }
    fputc('"', file);
}

static void write_value(const bk_option *o, const char *at, FILE *file)
{
    char buffer[64];
    const void *member_at = at + o->offset;
    switch (o->type) {
    case BK_OPT_I64:
        fprintf(file, "%lld", (long long)*(const int64_t *)member_at);
        break;
    case BK_OPT_F64:
        write_real(file, *(const double *)member_at, false);
        break;
    case BK_OPT_F32:
        write_real(file, (double)*(const float *)member_at, true);
        break;
    case BK_OPT_BOOL:
        fputs(*(const bool *)member_at ? "true" : "false", file);
        break;
    case BK_OPT_CHOICE:
        fputs(choice_name(o->text, *(const int *)member_at, buffer, sizeof buffer), file);
        break;
    default:
        write_text(file, *(const char *const *)member_at);
    }
}

void bk_options_write(const bk_option *table, const void *config, int indent, void *stream)
{
    FILE *file = stream;
    for (const bk_option *o = table; o && o->name; o++) {
        if (o->type == BK_OPT_TEXT && !*(const char *const *)((const char *)config + o->offset))
            continue;
        fprintf(file, "%*s%s: ", indent, "", o->name);
        write_value(o, config, file);
        fputc('\n', file);
    }
}
