#include "jobs/options.h"

#include <math.h>
#include <string.h>

static const char *type_name(bk_option_type type)
{
    static const char *const names[] = {
        [BK_OPT_I64] = "integer",  [BK_OPT_F64] = "number",    [BK_OPT_F32] = "number",
        [BK_OPT_BOOL] = "boolean", [BK_OPT_CHOICE] = "choice", [BK_OPT_TEXT] = "text"};
    return names[type];
}

static bool is_number(const bk_option *o)
{
    return o->type == BK_OPT_I64 || o->type == BK_OPT_F64 || o->type == BK_OPT_F32;
}

/* The index-th of "a|b|c". */
static const char *choice(const char *choices, int index, int *length)
{
    for (; index > 0; index--)
        choices += strcspn(choices, "|") + 1;
    *length = (int)strcspn(choices, "|");
    return choices;
}

static const char *preset_text(const bk_option *o, char text[BK_RANGE_TEXT])
{
    int length;
    const char *word;
    switch (o->type) {
    case BK_OPT_BOOL:
        return o->preset != 0 ? "true" : "false";
    case BK_OPT_TEXT:
        return o->text && *o->text ? o->text : "-";
    case BK_OPT_CHOICE:
        word = choice(o->text, (int)o->preset, &length);
        snprintf(text, 64, "%.*s", length, word);
        return text;
    case BK_OPT_I64:
        snprintf(text, 64, "%.0f", o->preset);
        return text;
    default:
        if (isnan(o->preset))
            return "auto";
        snprintf(text, 64, "%.9g", o->preset);
        return text;
    }
}

enum { NAME, TYPE, PRESET, RANGE, COLUMNS };

static void cells(const bk_option *o, char buffer[2][BK_RANGE_TEXT], const char *cell[COLUMNS])
{
    cell[NAME] = o->name;
    cell[TYPE] = type_name(o->type);
    cell[PRESET] = preset_text(o, buffer[0]);
    cell[RANGE] = bk_option_range(o, buffer[1]);
}

void bk_options_print(FILE *file, const bk_option *table)
{
    static const char *const head[COLUMNS] = {"key", "type", "default", "range"};
    const char *cell[COLUMNS];
    char buffer[2][BK_RANGE_TEXT];
    int width[COLUMNS];
    if (!table || !table->name) {
        fprintf(file, "  no options\n");
        return;
    }
    for (int i = 0; i < COLUMNS; i++)
        width[i] = (int)strlen(head[i]);
    for (const bk_option *o = table; o->name; o++) {
        cells(o, buffer, cell);
        for (int i = 0; i < COLUMNS; i++)
            if ((int)strlen(cell[i]) > width[i])
                width[i] = (int)strlen(cell[i]);
    }
    for (int i = 0; i < COLUMNS; i++)
        fprintf(file, "  %-*s", width[i], head[i]);
    fprintf(file, "  meaning\n");
    for (const bk_option *o = table; o->name; o++) {
        cells(o, buffer, cell);
        for (int i = 0; i < COLUMNS; i++)
            fprintf(file, "  %-*s", width[i], cell[i]);
        fprintf(file, "  %s\n", o->help ? o->help : "");
    }
}

static void json_choices(bk_json *j, const char *choices)
{
    char word[64];
    int length;
    bk_json_open_list(j, "choices");
    for (;; choices += length + 1) {
        const char *start = choice(choices, 0, &length);
        snprintf(word, sizeof word, "%.*s", length, start);
        bk_json_text(j, NULL, word);
        if (choices[length] == '\0')
            break;
    }
    bk_json_close_list(j);
}

static void json_preset(bk_json *j, const bk_option *o)
{
    char text[64];
    if (o->type == BK_OPT_BOOL)
        bk_json_bool(j, "default", o->preset != 0);
    else if (o->type == BK_OPT_TEXT)
        bk_json_text(j, "default", o->text);
    else if (o->type == BK_OPT_CHOICE || isnan(o->preset))
        bk_json_text(j, "default", preset_text(o, text));
    else if (o->type == BK_OPT_I64)
        bk_json_integer(j, "default", (int64_t)o->preset);
    else
        bk_json_number(j, "default", o->preset);
}

void bk_options_json(bk_json *j, const char *key, const bk_option *table)
{
    bk_json_open_list(j, key);
    for (const bk_option *o = table; o && o->name; o++) {
        bk_json_open(j, NULL);
        bk_json_text(j, "name", o->name);
        bk_json_text(j, "type", type_name(o->type));
        json_preset(j, o);
        if (is_number(o)) {
            bk_json_number(j, "least", o->least);
            bk_json_number(j, "most", o->most);
            bk_json_bool(j, "open_least", o->open_least);
        }
        if (o->type == BK_OPT_CHOICE)
            json_choices(j, o->text);
        bk_json_text(j, "help", o->help);
        bk_json_close(j);
    }
    bk_json_close_list(j);
}

bk_status bk_options_from_context(bk_context *context, const bk_option *table, const char *path,
                                  void *config)
{
    static const bk_option empty[] = {BK_OPTION_END};
    const bk_option *tables[] = {table ? table : empty, NULL};
    bk_value *root = bk_value_new(context->arena, BK_MAP, "command line", 0);
    for (int i = 0; i < context->overrides; i++) {
        bk_override *o = &context->override[i];
        BK_TRY(bk_value_set(context->arena, root, o->path, o->text));
        o->used = true;
    }
    BK_TRY(bk_options_read(tables[0], config, root, path, context->arena));
    return bk_options_unknown(root, path, tables, NULL);
}
