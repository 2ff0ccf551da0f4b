/* io/data/text.c - texts with classes: a directory a class, or tables with a label.  Bytes + 1, 0 =
 * padding. */
#include "io/data_common.h"

#include "core/rng.h"
#include "io/files.h"

#include <stdlib.h>
#include <string.h>

typedef struct text_config {
    int layout, mail;
    const char *text, *label;
    double validation, test;
    int64_t max_length, limit, seed;
    bool deduplicate;
} text_config;

enum { AUTO, TABLE, LABEL_FIRST };
enum { WHOLE, BODY };
enum { CLASSES = 256 };

static const bk_option options[] = {
    BK_OPTION_CHOICE(text_config, layout, 0, "auto|table|label_first",
                     "of files: table = header and tabs; label_first = label, blank, text"),
    BK_OPTION_CHOICE(text_config, mail, 0, "whole|body",
                     "body: cut RFC 822 headers at the first empty line"),
    BK_OPTION_TEXT(text_config, text, "Source", "table: name of the text column"),
    BK_OPTION_TEXT(text_config, label, "Target", "table: name of the label column"),
    BK_OPTION_F64(text_config, validation, 0.1, 0.0, 1e9,
                  "fraction or count for validation where the source has none"),
    BK_OPTION_F64(text_config, test, 0.1, 0.0, 1e9,
                  "fraction or count for the test where the source has none"),
    BK_OPTION_I64(text_config, max_length, 0, 0, 1 << 30,
                  "texts are cut to this many bytes; 0 = no"),
    BK_OPTION_I64(text_config, limit, 0, 0, 1LL << 40,
                  "first texts of each class or file only; 0 = all"),
    BK_OPTION_BOOL(text_config, deduplicate, true, "drop texts of the same bytes before splitting"),
    BK_OPTION_I64(text_config, seed, 1, 0, 1LL << 53, "of the splits"),
    BK_OPTION_END,
};

/* ---- what is gathered ---- */

/* Samples in the order of reading; each knows the split its source names, or none. */
typedef struct gathered {
    const bk_data_args *args;
    const text_config *config;
    bk_samples samples;
    const char *class_name[CLASSES];
    int classes;
    int8_t *split; /* -1 none, 0 train, 1 validation, 2 test */
    int64_t split_room, duplicates;
    uint64_t *hash;
    int64_t *slot_sample, slots;
} gathered;

static bk_status class_of(gathered *g, const char *name, size_t length, const char *where,
                          int32_t *label)
{
    for (*label = 0; *label < g->classes; (*label)++)
        if (strlen(g->class_name[*label]) == length &&
            memcmp(g->class_name[*label], name, length) == 0)
            return BK_OK;
    if (g->classes == CLASSES)
        return bk_fail(BK_INPUT, "more than %d classes (%s): is this column the label?", CLASSES,
                       where);
    char *copy = bk_arena_alloc(g->args->arena, length + 1);
    memcpy(copy, name, length);
    copy[length] = '\0';
    g->class_name[g->classes++] = copy;
    return BK_OK;
}

static void widen_table(gathered *g)
{
    int64_t slots = g->slots ? 2 * g->slots : 4096, *fresh = BK_NEW(g->args->arena, int64_t, slots);
    uint64_t *hashes = BK_NEW(g->args->arena, uint64_t, slots);
    memset(fresh, 0xff, (size_t)slots * sizeof *fresh);
    for (int64_t i = 0; i < g->slots; i++) {
        if (g->slot_sample[i] < 0)
            continue;
        int64_t at = (int64_t)(g->hash[i] % (uint64_t)slots);
        while (fresh[at] >= 0)
            at = (at + 1) % slots;
        fresh[at] = g->slot_sample[i];
        hashes[at] = g->hash[i];
    }
    g->slots = slots;
    g->slot_sample = fresh;
    g->hash = hashes;
}

/* True when the same bytes were gathered before (two independent 64-bit hashes are taken for the
 * same text). */
static bool seen_before(gathered *g, const char *text, size_t length)
{
    uint64_t hash = bk_hash_bytes(text, length) ^ bk_mix64(bk_hash_bytes(text, length) + length);
    if (2 * (g->samples.count + 1) > g->slots)
        widen_table(g);
    int64_t at = (int64_t)(hash % (uint64_t)g->slots);
    for (; g->slot_sample[at] >= 0; at = (at + 1) % g->slots)
        if (g->hash[at] == hash)
            return true;
    g->slot_sample[at] = g->samples.count;
    g->hash[at] = hash;
    return false;
}

static const char *mail_body(const char *text, size_t *length)
{
    for (size_t i = 0; i + 1 < *length; i++) {
        bool unix_end = text[i] == '\n' && text[i + 1] == '\n';
        bool mail_end =
            text[i] == '\n' && text[i + 1] == '\r' && i + 2 < *length && text[i + 2] == '\n';
        if (unix_end || mail_end) {
            size_t skip = i + (unix_end ? 2 : 3);
            *length -= skip;
            return text + skip;
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
    if (length == 0)
        return;
    if (c->deduplicate && seen_before(g, text, length)) {
        g->duplicates++;
        return;
    }
    int64_t bytes =
        c->max_length > 0 && (int64_t)length > c->max_length ? c->max_length : (int64_t)length;
    if (g->samples.count >= g->split_room) {
        int64_t room = g->split_room ? 2 * g->split_room : 4096;
        int8_t *wider = BK_NEW(g->args->arena, int8_t, room);
        if (g->samples.count > 0)
            memcpy(wider, g->split, (size_t)g->samples.count);
        g->split = wider;
        g->split_room = room;
    }
    g->split[g->samples.count] = (int8_t)split;
    bk_samples_add_bytes(&g->samples, text, bytes, label);
}

/* ---- directories ---- */

static int split_named(const char *name)
{
    if (strncmp(name, "train", 5) == 0)
        return 0;
    if (strncmp(name, "dev", 3) == 0 || strncmp(name, "valid", 5) == 0)
        return 1;
    return strncmp(name, "test", 4) == 0 ? 2 : -1;
}

static bk_status read_class(gathered *g, const char *path, const char *name, int split)
{
    bk_arena *arena = g->args->arena;
    char **names = bk_list_directory(arena, path);
    int32_t label;
    int64_t taken = 0;
    BK_TRY(class_of(g, name, strlen(name), path, &label));
    for (; *names && (g->config->limit == 0 || taken < g->config->limit); names++) {
        const char *file = bk_arena_printf(arena, "%s/%s", path, *names);
        char *text;
        size_t length;
        if (bk_file_size(file) < 0)
            continue;
        BK_TRY(bk_read_file(arena, file, &text, &length));
        add(g, text, length, label, split);
        taken++;
    }
    return BK_OK;
}

static bk_status read_tree(gathered *g, const char *path, int split)
{
    char **names = bk_list_directory(g->args->arena, path);
    for (; *names; names++) {
        const char *below = bk_arena_printf(g->args->arena, "%s/%s", path, *names);
        int named = split < 0 ? split_named(*names) : -1;
        if (!bk_is_directory(below))
            continue;
        if (named >= 0)
            BK_TRY(read_tree(g, below, named));
        else
            BK_TRY(read_class(g, below, *names, split));
    }
    return BK_OK;
}

/* ---- tables ---- */

/* Field number `want` of a line of tabs; false when there are fewer. */
static bool field(const char *line, size_t length, int want, const char **from, size_t *size)
{
    const char *end = line + length;
    for (int i = 0;; i++) {
        const char *tab = memchr(line, '\t', (size_t)(end - line));
        if (i == want) {
            *from = line;
            *size = (size_t)((tab ? tab : end) - line);
            return true;
        }
        if (!tab)
            return false;
        line = tab + 1;
    }
}

static int column_named(const char *line, size_t length, const char *name)
{
    const char *from;
    size_t size;
    for (int i = 0; field(line, length, i, &from, &size); i++)
        if (size == strlen(name) && memcmp(from, name, size) == 0)
            return i;
    return -1;
}

static bk_status add_row(gathered *g, const char *line, size_t length, const int columns[2],
                         const char *where, int split)
{
    const char *label, *text;
    size_t label_size, text_size;
    int32_t class_number;
    if (columns[0] < 0) {
        const char *blank = memchr(line, ' ', length);
        if (!blank)
            return bk_fail(BK_INPUT,
                           "a line has no blank behind its label (%s): is the layout label_first?",
                           where);
        label = line;
        label_size = (size_t)(blank - line);
        text = blank + 1;
        text_size = length - label_size - 1;
    } else if (!field(line, length, columns[0], &text, &text_size) ||
               !field(line, length, columns[1], &label, &label_size)) {
        return bk_fail(BK_INPUT, "a line has too few columns (%s): check text= and label=", where);
    }
    BK_TRY(class_of(g, label, label_size, where, &class_number));
    add(g, text, text_size, class_number, split);
    return BK_OK;
}

static bk_status read_table(gathered *g, const char *path)
{
    const text_config *c = g->config;
    const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    char *text;
    size_t length;
    int columns[2] = {-1, -1};
    int64_t line_number = 0, taken = 0;
    BK_TRY(bk_read_file(g->args->arena, path, &text, &length));
    if (length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        text += 3;
        length -= 3;
    }
    for (const char *end = text + length, *line = text;
         line < end && (c->limit == 0 || taken < c->limit);) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t size = (size_t)((newline ? newline : end) - line);
        const char *where =
            bk_arena_printf(g->args->arena, "%s:%lld", path, (long long)++line_number);
        size_t used = size > 0 && line[size - 1] == '\r' ? size - 1 : size;
        bool header = line_number == 1 && c->layout != LABEL_FIRST && memchr(line, '\t', used);
        if (header) {
            columns[0] = column_named(line, used, c->text);
            columns[1] = column_named(line, used, c->label);
            if (columns[0] < 0 || columns[1] < 0)
                return bk_fail(
                    BK_INPUT,
                    "the header has no column %s (%s): name the columns by text= and label=",
                    columns[0] < 0 ? c->text : c->label, where);
        } else if (used > 0) {
            BK_TRY(add_row(g, line, used, columns, where, split_named(base)));
            taken++;
        }
        line += size + 1;
    }
    return BK_OK;
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
static void add_splits(const gathered *g, bk_dataset *out)
{
    int64_t count[4], *index[4];
    for (int k = 0; k < 4; k++)
        index[k] = members(g, k - 1, &count[k]);
    bk_split_wish wish = {
        .validation = g->config->validation, .test = g->config->test, .seed = g->config->seed};
    int64_t free_samples = count[0] + count[1];
    if (count[2] > 0)
        wish.validation = 0;
    if (count[3] > 0)
        wish.test = 0;
    if (count[1] > 0)
        wish.test = 0; /* a source with a training split has its test elsewhere, or none */
    memcpy(index[0] + count[0], index[1], (size_t)count[1] * sizeof **index);
    bk_split_seeded(out, g->args->arena, index[0], free_samples, &wish);
    if (count[2] > 0)
        bk_split_add(out, "validation", index[2], count[2]);
    if (count[3] > 0)
        bk_split_add(out, "test", index[3], count[3]);
}

static const char *join_names(const gathered *g)
{
    const char *all = "";
    for (int i = 0; i < g->classes; i++)
        all = bk_arena_printf(g->args->arena, "%s%s%s", all, i ? "\n" : "", g->class_name[i]);
    return all;
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
        return bk_fail(BK_INPUT, "%lld texts in %d classes (%s): at least two classes are needed",
                       (long long)g.samples.count, g.classes, a->input[0]);
    bk_samples_to(&g.samples, out);
    out->task = "classification";
    out->vocabulary = 257;
    out->classes = g.classes;
    out->label_name = join_names(&g);
    add_splits(&g, out);
    return BK_OK;
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
