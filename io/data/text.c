/* io/data/text.c - texts with classes: a directory a class, or tables with a label.  Bytes + 1, 0 =
 * padding. */
#include "io/labelled.h"

#include "core/rng.h"
#include "io/files.h"
#include "io/subwords.h"

#include <string.h>

typedef struct text_config {
    bk_subword_config subwords;
    int layout, mail;
    const char *text, *label;
    double validation, test;
    int64_t max_length, limit, seed;
    bool header, deduplicate;
} text_config;

enum { AUTO, TSV, CSV, LABEL_FIRST };
enum { WHOLE, BODY };

static const bk_option options[] = {
    BK_OPTION_CHOICE(text_config, layout, 0, "auto|tsv|csv|label_first",
                     "of files: columns of tabs or commas; label_first = label, blank, text"),
    BK_OPTION_TEXT(text_config, text, "Source", "name of the text column (a number: header=false)"),
    BK_OPTION_TEXT(text_config, label, "Target", "name of the label column"),
    BK_OPTION_BOOL(text_config, header, true,
                   "tables begin with names; false: text= and label= count columns from 1"),
    BK_OPTION_CHOICE(text_config, mail, 0, "whole|body",
                     "body: cut RFC 822 headers at the first empty line"),
    BK_OPTION_F64(text_config, validation, 0.1, 0.0, 1e9,
                  "fraction or count for validation where the source has none"),
    BK_OPTION_F64(text_config, test, 0.1, 0.0, 1e9,
                  "fraction or count for the test where the source has no splits"),
    BK_OPTION_I64(text_config, max_length, 0, 0, 1 << 30,
                  "texts are cut to this many bytes; 0 = no"),
    BK_OPTION_I64(text_config, limit, 0, 0, 1LL << 40,
                  "first texts of each class or file only; 0 = all"),
    BK_OPTION_BOOL(text_config, deduplicate, true, "drop texts of the same bytes before splitting"),
    BK_OPTION_I64(text_config, seed, 1, 0, 1LL << 53, "of the splits"),
    BK_SUBWORD_OPTIONS(text_config, subwords),
    BK_OPTION_END,
};

/* ---- what is gathered ---- */

/* Texts seen before, by content: an open-addressing table. */
typedef struct slot {
    const char *text; /* NULL: free */
    size_t length;
    uint64_t hash;
} slot;

typedef struct gathered {
    const bk_data_args *args;
    const text_config *config;
    bk_labelled texts;
    int64_t duplicates, empty, passed_over;
    slot *slot;
    int64_t slots, used;
} gathered;

static slot *find_slot(slot *table, int64_t slots, const slot *wanted)
{
    int64_t at = (int64_t)(wanted->hash % (uint64_t)slots);
    for (; table[at].text; at = (at + 1) % slots)
        if (table[at].hash == wanted->hash && table[at].length == wanted->length &&
            memcmp(table[at].text, wanted->text, wanted->length) == 0)
            break;
    return &table[at];
}

static void widen_slots(gathered *g)
{
    int64_t slots = g->slots ? 2 * g->slots : 4096;
    slot *wider = BK_ZNEW(g->args->arena, slot, slots);
    for (int64_t i = 0; i < g->slots; i++)
        if (g->slot[i].text)
            *find_slot(wider, slots, &g->slot[i]) = g->slot[i];
    g->slot = wider;
    g->slots = slots;
}

/* True when the same bytes were gathered before.  The text must outlive the table. */
static bool seen_before(gathered *g, const char *text, size_t length)
{
    const slot wanted = {text, length, bk_hash_bytes(text, length)};
    if (2 * (g->used + 1) > g->slots)
        widen_slots(g);
    slot *found = find_slot(g->slot, g->slots, &wanted);
    if (found->text)
        return true;
    *found = wanted;
    g->used++;
    return false;
}

/* What follows the first empty line; nothing when there is none. */
static const char *mail_body(const char *text, size_t *length)
{
    const char *end = text + *length;
    for (const char *line = text, *newline; line < end; line = newline + 1) {
        newline = memchr(line, '\n', (size_t)(end - line));
        if (!newline)
            break;
        if (newline == line || (newline == line + 1 && *line == '\r')) {
            *length = (size_t)(end - newline - 1);
            return newline + 1;
        }
    }
    *length = 0;
    return text;
}

static void add(gathered *g, const char *text, size_t length, int32_t label, int split)
{
    const text_config *c = g->config;
    if (c->mail == BODY)
        text = mail_body(text, &length);
    if (length == 0) {
        g->empty++;
        return;
    }
    if (c->deduplicate && seen_before(g, text, length)) {
        g->duplicates++;
        return;
    }
    bk_labelled_add(&g->texts, &(bk_field){text, length}, c->max_length, label, split);
}

/* ---- directories ---- */

static bk_status read_class(gathered *g, const char *path, const char *name, int split)
{
    bk_arena *arena = g->args->arena;
    int32_t label;
    int64_t taken = 0;
    BK_TRY(bk_labelled_class(&g->texts, name, strlen(name), path, &label));
    for (char **names = bk_list_directory(arena, path);
         *names && (g->config->limit == 0 || taken < g->config->limit); names++) {
        const char *file = bk_arena_printf(arena, "%s/%s", path, *names);
        char *text;
        size_t length;
        if (**names == '.')
            continue;
        if (bk_is_directory(file))
            return bk_fail(BK_INPUT,
                           "a directory lies among the texts of class %s (%s): name the directory "
                           "above the classes, with plain files in each",
                           name, file);
        BK_TRY(bk_read_file(arena, file, &text, &length));
        add(g, text, length, label, split);
        taken++;
    }
    return taken > 0 ? BK_OK
                     : bk_fail(BK_INPUT, "class %s holds no file (%s): remove it, or fill it", name,
                               path);
}

/* Directories of splits hold directories of classes; `unsup` is what aclImdb calls its texts
 * without labels. */
static bk_status read_tree(gathered *g, const char *path, int split)
{
    bk_arena *arena = g->args->arena;
    for (char **names = bk_list_directory(arena, path); *names; names++) {
        const char *below = bk_arena_printf(arena, "%s/%s", path, *names);
        int named = split < 0 ? bk_labelled_split_named(*names, strlen(*names)) : -1;
        if (**names == '.')
            continue;
        if (!bk_is_directory(below) || (split >= 0 && strcmp(*names, "unsup") == 0))
            g->passed_over++;
        else if (named >= 0)
            BK_TRY(read_tree(g, below, named));
        else
            BK_TRY(read_class(g, below, *names, split));
    }
    return BK_OK;
}

/* ---- tables ---- */

static bk_status column_number(const char *key, const char *text, int *column)
{
    int64_t number;
    if (!bk_parse_i64(text, &number) || number < 1 || number > BK_TABLE_FIELDS)
        return bk_fail(BK_USAGE,
                       "%s=%s is no column number (header=false): give one between 1 and %d", key,
                       text, BK_TABLE_FIELDS);
    *column = (int)number - 1;
    return BK_OK;
}

/* Which columns are text and label: by name in the row just read, or by number. */
static bk_status find_columns(const gathered *g, const bk_table *t, int columns[2])
{
    const text_config *c = g->config;
    if (!c->header) {
        BK_TRY(column_number("text", c->text, &columns[0]));
        return column_number("label", c->label, &columns[1]);
    }
    columns[0] = bk_table_column(t, c->text);
    columns[1] = bk_table_column(t, c->label);
    if (columns[0] >= 0 && columns[1] >= 0)
        return BK_OK;
    return bk_fail(BK_INPUT,
                   "the header has no column %s (%s): name the columns by text= and label=, or say "
                   "header=false or layout=label_first",
                   columns[0] < 0 ? c->text : c->label, bk_labelled_place(&g->texts, t));
}

static bk_status read_columns(gathered *g, bk_table *t, int split)
{
    int columns[2] = {0};
    bool more, started = false;
    for (int64_t taken = 0; g->config->limit == 0 || taken < g->config->limit;) {
        int32_t label;
        BK_TRY(bk_table_next(t, &more));
        if (!more)
            break;
        if (!started)
            BK_TRY(find_columns(g, t, columns));
        bool names = !started && g->config->header;
        started = true;
        if (names)
            continue;
        if (columns[0] >= t->fields || columns[1] >= t->fields)
            return bk_fail(BK_INPUT,
                           "a row has %d columns, too few for text and label (%s): mend the row",
                           t->fields, bk_labelled_place(&g->texts, t));
        const bk_field *text = &t->field[columns[0]], *name = &t->field[columns[1]];
        BK_TRY(bk_labelled_class(&g->texts, name->text, name->length,
                                 bk_labelled_place(&g->texts, t), &label));
        add(g, text->text, text->length, label, split);
        taken++;
    }
    return BK_OK;
}

static bk_status read_labelled_lines(gathered *g, bk_table *t, int split)
{
    bool more;
    for (int64_t taken = 0; g->config->limit == 0 || taken < g->config->limit; taken++) {
        int32_t label;
        BK_TRY(bk_table_next(t, &more));
        if (!more)
            break;
        const bk_field *line = &t->field[0];
        size_t cut = 0;
        while (cut < line->length && line->text[cut] != ' ' && line->text[cut] != '\t')
            cut++;
        if (cut == line->length)
            return bk_fail(BK_INPUT,
                           "a line has no blank behind its label (%s): is the layout label_first?",
                           bk_labelled_place(&g->texts, t));
        BK_TRY(
            bk_labelled_class(&g->texts, line->text, cut, bk_labelled_place(&g->texts, t), &label));
        add(g, line->text + cut + 1, line->length - cut - 1, label, split);
    }
    return BK_OK;
}

static bool ends_in(const char *path, const char *end)
{
    size_t length = strlen(path), size = strlen(end);
    return length >= size && strcmp(path + length - size, end) == 0;
}

/* Layout of a file: as told, else by its name, else a table when its first line has a tab. */
static int layout_of(const text_config *c, const char *path, const char *text, size_t length)
{
    if (c->layout != AUTO)
        return c->layout;
    if (ends_in(path, ".csv"))
        return CSV;
    const char *newline = memchr(text, '\n', length);
    bool tab = memchr(text, '\t', newline ? (size_t)(newline - text) : length) != NULL;
    return tab || ends_in(path, ".tsv") ? TSV : LABEL_FIRST;
}

static bk_status read_table(gathered *g, const char *path)
{
    char *text;
    size_t length;
    int split = bk_labelled_split_of_file(path);
    BK_TRY(bk_read_file(g->args->arena, path, &text, &length));
    int layout = layout_of(g->config, path, text, length);
    char separator = layout == TSV ? '\t' : layout == CSV ? ',' : '\0';
    bk_table t = bk_table_new(path, text, length, separator, layout == CSV);
    int64_t before = g->texts.first.count + g->duplicates + g->empty;
    BK_TRY(layout == LABEL_FIRST ? read_labelled_lines(g, &t, split) : read_columns(g, &t, split));
    if (g->texts.first.count + g->duplicates + g->empty > before)
        return BK_OK;
    return bk_fail(BK_INPUT, "the file holds no text (%s): check what it is", path);
}

static const char *note(const gathered *g)
{
    const char *text =
        bk_arena_printf(g->args->arena, "%lld duplicates dropped", (long long)g->duplicates);
    if (g->empty > 0)
        text = bk_arena_printf(g->args->arena, "%s, %lld empty texts dropped", text,
                               (long long)g->empty);
    if (g->passed_over > 0)
        text = bk_arena_printf(g->args->arena, "%s, %lld entries beside the classes not read", text,
                               (long long)g->passed_over);
    return text;
}

static bk_status make(const bk_data_args *a, bk_dataset *out)
{
    const text_config *c = a->config;
    const bk_split_wish wish = {.validation = c->validation, .test = c->test, .seed = c->seed};
    gathered g = {.args = a, .config = c, .texts = {.arena = a->arena, .first.arena = a->arena}};
    if (a->inputs == 0)
        return bk_fail(BK_USAGE,
                       "text takes directories or tables: birkhoff data text DIR|FILE... OUT.h5");
    for (int i = 0; i < a->inputs; i++)
        BK_TRY(bk_is_directory(a->input[i]) ? read_tree(&g, a->input[i], -1)
                                            : read_table(&g, a->input[i]));
    bk_labelled_sort_classes(&g.texts);
    BK_TRY(bk_labelled_finish(&g.texts, &wish, a->input[0], out));
    out->note = note(&g);
    return bk_subwords_apply(a->arena, &c->subwords, out);
}

static bk_status check(const void *config)
{
    return bk_subwords_check(&((const text_config *)config)->subwords);
}

const bk_data_kind bk_data_text = {
    .name = "text",
    .summary = "texts with classes: a directory a class, or tables",
    .source = "",
    .usage = "DIR|FILE...",
    .options = options,
    .config_size = sizeof(text_config),
    .check = check,
    .make = make,
};
