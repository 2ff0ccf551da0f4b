/* io/data/text.c - texts with classes: a directory a class, or tables with a label.  Bytes + 1, 0 =
 * padding. */
#include "io/data_common.h"

#include "core/rng.h"
#include "io/files.h"
#include "io/table.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

typedef struct text_config {
    int layout, mail;
    const char *text, *label;
    double validation, test;
    int64_t max_length, limit, seed;
    bool header, deduplicate;
} text_config;

enum { AUTO, TSV, CSV, LABEL_FIRST };
enum { WHOLE, BODY };
enum { CLASSES = 256, SPLITS = 3 };

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
    BK_OPTION_END,
};

/* ---- what is gathered ---- */

/* Texts seen before, by content: an open-addressing table. */
typedef struct slot {
    const char *text; /* NULL: free */
    size_t length;
    uint64_t hash;
} slot;

/* Samples in the order of reading; each knows the split its source names, or none. */
typedef struct gathered {
    const bk_data_args *args;
    const text_config *config;
    bk_samples samples;
    const char *class_name[CLASSES];
    int classes;
    int8_t *split; /* -1 none, 0 train, 1 validation, 2 test */
    int64_t split_room, duplicates, empty, passed_over;
    slot *slot;
    int64_t slots, used;
} gathered;

static bk_status class_of(gathered *g, const char *name, size_t length, const char *where,
                          int32_t *label)
{
    if (length == 0)
        return bk_fail(BK_INPUT, "a text has no label (%s): give it one or remove it", where);
    for (*label = 0; *label < g->classes; (*label)++)
        if (strlen(g->class_name[*label]) == length &&
            memcmp(g->class_name[*label], name, length) == 0)
            return BK_OK;
    if (memchr(name, '\0', length) || memchr(name, '\n', length))
        return bk_fail(BK_INPUT, "a label holds a zero byte or a line end (%s): is this a text?",
                       where);
    if (g->classes == CLASSES)
        return bk_fail(BK_INPUT, "more than %d classes (%s): is this column the label?", CLASSES,
                       where);
    g->class_name[g->classes++] = bk_arena_printf(g->args->arena, "%.*s", (int)length, name);
    return BK_OK;
}

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

static void note_split(gathered *g, int split)
{
    if (g->samples.count >= g->split_room) {
        int64_t room = g->split_room ? 2 * g->split_room : 4096;
        int8_t *wider = BK_NEW(g->args->arena, int8_t, room);
        if (g->samples.count > 0)
            memcpy(wider, g->split, (size_t)g->samples.count);
        g->split = wider;
        g->split_room = room;
    }
    g->split[g->samples.count] = (int8_t)split;
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
    int64_t bytes =
        c->max_length > 0 && (int64_t)length > c->max_length ? c->max_length : (int64_t)length;
    note_split(g, split);
    bk_samples_add_bytes(&g->samples, text, bytes, label);
}

/* ---- names of splits ---- */

static int split_named(const char *name, size_t length)
{
    static const struct {
        const char *name;
        int split;
    } known[] = {{"train", 0}, {"validation", 1}, {"valid", 1},
                 {"val", 1},   {"dev", 1},        {"test", 2}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].name) == length && memcmp(known[i].name, name, length) == 0)
            return known[i].split;
    return -1;
}

/* "in_domain_dev.tsv": the first word of a file's name that names a split. */
static int split_of_file(const char *path)
{
    const char *at = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    while (*at) {
        size_t length = 0;
        while (isalnum((unsigned char)at[length]))
            length++;
        int split = split_named(at, length);
        if (split >= 0)
            return split;
        at += length + (at[length] != '\0');
    }
    return -1;
}

/* ---- directories ---- */

static bk_status read_class(gathered *g, const char *path, const char *name, int split)
{
    bk_arena *arena = g->args->arena;
    int32_t label;
    int64_t taken = 0;
    BK_TRY(class_of(g, name, strlen(name), path, &label));
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
        int named = split < 0 ? split_named(*names, strlen(*names)) : -1;
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

static const char *place(const gathered *g, const bk_table *t)
{
    return bk_arena_printf(g->args->arena, "%s:%lld", t->path, (long long)t->line);
}

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
                   columns[0] < 0 ? c->text : c->label, place(g, t));
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
                           t->fields, place(g, t));
        const bk_field *text = &t->field[columns[0]], *name = &t->field[columns[1]];
        BK_TRY(class_of(g, name->text, name->length, place(g, t), &label));
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
                           place(g, t));
        BK_TRY(class_of(g, line->text, cut, place(g, t), &label));
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
    int split = split_of_file(path);
    BK_TRY(bk_read_file(g->args->arena, path, &text, &length));
    int layout = layout_of(g->config, path, text, length);
    char separator = layout == TSV ? '\t' : layout == CSV ? ',' : '\0';
    bk_table t = bk_table_new(path, text, length, separator, layout == CSV);
    int64_t before = g->samples.count + g->duplicates + g->empty;
    BK_TRY(layout == LABEL_FIRST ? read_labelled_lines(g, &t, split) : read_columns(g, &t, split));
    if (g->samples.count + g->duplicates + g->empty > before)
        return BK_OK;
    return bk_fail(BK_INPUT, "the file holds no text (%s): check what it is", path);
}

/* ---- classes in order ---- */

static int by_label(const void *a, const void *b)
{
    const char *x = *(const char *const *)a, *y = *(const char *const *)b;
    int64_t m, n;
    if (bk_parse_i64(x, &m) && bk_parse_i64(y, &n) && m != n)
        return m < n ? -1 : 1;
    return strcmp(x, y);
}

/* Class numbers follow the names (numbers by value), not the order of reading. */
static void sort_classes(gathered *g)
{
    const char *sorted[CLASSES];
    int32_t number[CLASSES];
    memcpy(sorted, g->class_name, sizeof sorted);
    qsort(sorted, (size_t)g->classes, sizeof *sorted, by_label);
    for (int i = 0; i < g->classes; i++)
        for (int k = 0; k < g->classes; k++)
            if (g->class_name[i] == sorted[k])
                number[i] = k;
    for (int64_t i = 0; i < g->samples.count; i++)
        g->samples.labels[i] = number[g->samples.labels[i]];
    memcpy(g->class_name, sorted, sizeof sorted);
}

/* ---- splits ---- */

static int64_t *members(const gathered *g, int split, int64_t *count)
{
    int64_t *index = BK_NEW(g->args->arena, int64_t, g->samples.count + 1);
    *count = 0;
    for (int64_t i = 0; i < g->samples.count; i++)
        if (g->split[i] == split)
            index[(*count)++] = i;
    return index;
}

/* The source's splits stay; training is cut further where validation (or all) is missing. */
static bk_status add_splits(const gathered *g, bk_dataset *out)
{
    int64_t count[1 + SPLITS], *index[1 + SPLITS];
    for (int k = 0; k <= SPLITS; k++)
        index[k] = members(g, k - 1, &count[k]);
    bk_split_wish wish = {
        .validation = g->config->validation, .test = g->config->test, .seed = g->config->seed};
    int64_t training = count[0] + count[1];
    if (training == 0)
        return bk_fail(BK_INPUT, "no text is for training (%s): give training texts too",
                       g->args->input[0]);
    if (count[2] > 0)
        wish.validation = 0;
    if (count[1] > 0 || count[3] > 0)
        wish.test = 0; /* a source with a training split has its test elsewhere, or none */
    memcpy(index[0] + count[0], index[1], (size_t)count[1] * sizeof **index);
    BK_TRY(bk_split_seeded(out, g->args->arena, index[0], training, &wish));
    if (count[2] > 0)
        bk_split_add(out, "validation", index[2], count[2]);
    if (count[3] > 0)
        bk_split_add(out, "test", index[3], count[3]);
    return BK_OK;
}

static const char *join_names(const gathered *g)
{
    const char *all = "";
    for (int i = 0; i < g->classes; i++)
        all = bk_arena_printf(g->args->arena, "%s%s%s", all, i ? "\n" : "", g->class_name[i]);
    return all;
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
    gathered g = {.args = a, .config = a->config, .samples = {.arena = a->arena}};
    if (a->inputs == 0)
        return bk_fail(BK_USAGE,
                       "text takes directories or tables: birkhoff data text DIR|FILE... OUT.h5");
    for (int i = 0; i < a->inputs; i++)
        BK_TRY(bk_is_directory(a->input[i]) ? read_tree(&g, a->input[i], -1)
                                            : read_table(&g, a->input[i]));
    if (g.samples.count == 0 || g.classes < 2)
        return bk_fail(
            BK_INPUT,
            "%lld texts in %d classes (%s): at least two classes are needed; of a tree name the "
            "directory above them",
            (long long)g.samples.count, g.classes, a->input[0]);
    sort_classes(&g);
    bk_samples_to(&g.samples, out);
    out->task = "classification";
    out->vocabulary = 257;
    out->classes = g.classes;
    out->label_name = join_names(&g);
    out->note = note(&g);
    return add_splits(&g, out);
}

const bk_data_kind bk_data_text = {
    .name = "text",
    .summary = "texts with classes, bytes: a directory a class, or tables",
    .source = "",
    .usage = "DIR|FILE...",
    .options = options,
    .config_size = sizeof(text_config),
    .make = make,
};
