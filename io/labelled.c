#include "io/labelled.h"

#include "core/option.h"
#include "io/files.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { SPLITS = 4 };

/* ---- classes ---- */

bk_status bk_labelled_class(bk_labelled *x, const char *name, size_t length, const char *where,
                            int32_t *label)
{
    if (length == 0)
        return bk_fail(BK_INPUT, "a text has no label (%s): give it one or remove it", where);
    for (*label = 0; *label < x->classes; (*label)++)
        if (strlen(x->class_name[*label]) == length &&
            memcmp(x->class_name[*label], name, length) == 0)
            return BK_OK;
    if (memchr(name, '\0', length) || memchr(name, '\n', length))
        return bk_fail(BK_INPUT, "a label holds a zero byte or a line end (%s): is this a text?",
                       where);
    if (x->classes == BK_LABELLED_CLASSES)
        return bk_fail(BK_INPUT, "more than %d classes (%s): is this column the label?",
                       BK_LABELLED_CLASSES, where);
    x->class_name[x->classes++] = bk_arena_printf(x->arena, "%.*s", (int)length, name);
    return BK_OK;
}

static int by_label(const void *a, const void *b)
{
    const char *x = *(const char *const *)a, *y = *(const char *const *)b;
    double m, n;
    if (bk_parse_f64(x, &m) && bk_parse_f64(y, &n) && (m < n || m > n))
        return m < n ? -1 : 1;
    return strcmp(x, y);
}

void bk_labelled_sort_classes(bk_labelled *x)
{
    const char *sorted[BK_LABELLED_CLASSES];
    int32_t number[BK_LABELLED_CLASSES] = {0};
    memcpy(sorted, x->class_name, sizeof sorted);
    qsort(sorted, (size_t)x->classes, sizeof *sorted, by_label);
    for (int i = 0; i < x->classes; i++)
        for (int k = 0; k < x->classes; k++)
            if (x->class_name[i] == sorted[k])
                number[i] = k;
    for (int64_t i = 0; i < x->first.count; i++)
        x->first.labels[i] = number[x->first.labels[i]];
    memcpy(x->class_name, sorted, sizeof sorted);
}

/* ---- texts ---- */

static void note_split(bk_labelled *x, int split)
{
    if (x->first.count >= x->split_room) {
        int64_t room = x->split_room ? 2 * x->split_room : 4096;
        int8_t *wider = BK_NEW(x->arena, int8_t, room);
        if (x->first.count > 0)
            memcpy(wider, x->split, (size_t)x->first.count);
        x->split = wider;
        x->split_room = room;
    }
    x->split[x->first.count] = (int8_t)split;
}

static int64_t cut(const bk_field *text, int64_t max_length)
{
    int64_t length = (int64_t)text->length;
    return max_length > 0 && length > max_length ? max_length : length;
}

void bk_labelled_add(bk_labelled *x, const bk_field *text, int64_t max_length, int32_t label,
                     int split)
{
    note_split(x, split);
    bk_samples_add_bytes(&x->first, text[0].text, cut(&text[0], max_length), label);
    if (x->pairs)
        bk_samples_add_bytes(&x->second, text[1].text, cut(&text[1], max_length), label);
}

/* ---- names of splits ---- */

int bk_labelled_split_named(const char *word, size_t length)
{
    static const struct {
        const char *name;
        int split;
    } known[] = {{"train", BK_LABELLED_TRAIN},    {"validation", BK_LABELLED_VALIDATION},
                 {"val", BK_LABELLED_VALIDATION}, {"valid", BK_LABELLED_VALIDATION},
                 {"dev", BK_LABELLED_VALIDATION}, {"eval", BK_LABELLED_VALIDATION},
                 {"test", BK_LABELLED_TEST}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].name) == length && memcmp(known[i].name, word, length) == 0)
            return known[i].split;
    return BK_LABELLED_ANY;
}

int bk_labelled_split_of_file(const char *path)
{
    const char *at = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    while (*at) {
        size_t length = 0;
        while (isalnum((unsigned char)at[length]))
            length++;
        int split = bk_labelled_split_named(at, length);
        if (split >= 0)
            return split;
        at += length + (at[length] != '\0');
    }
    return BK_LABELLED_ANY;
}

/* ---- tables ---- */

const char *bk_labelled_place(const bk_labelled *x, const bk_table *t)
{
    return bk_arena_printf(x->arena, "%s:%lld", t->path, (long long)t->line);
}

bk_status bk_labelled_open_table(bk_arena *arena, const char *path, int layout, bk_table *out)
{
    char *text;
    size_t length, name = strlen(path);
    bool csv = layout == BK_LABELLED_CSV ||
               (layout == BK_LABELLED_AUTO && name >= 4 && !strcmp(path + name - 4, ".csv"));
    BK_TRY(bk_read_file(arena, path, &text, &length));
    *out = bk_table_new(path, text, length, csv ? ',' : '\t', csv);
    return BK_OK;
}

/* ---- the whole ---- */

static int64_t *members(const bk_labelled *x, int split, int64_t *count)
{
    int64_t *index = BK_NEW(x->arena, int64_t, x->first.count + 1);
    *count = 0;
    for (int64_t i = 0; i < x->first.count; i++)
        if (x->split[i] == split)
            index[(*count)++] = i;
    return index;
}

static bk_status add_splits(const bk_labelled *x, const bk_split_wish *wish, const char *source,
                            bk_dataset *out)
{
    const char *const names[SPLITS] = {"train", "validation", "test", x->other};
    int64_t any, count[SPLITS], *index[SPLITS], *all = members(x, BK_LABELLED_ANY, &any);
    for (int k = 0; k < SPLITS; k++)
        index[k] = members(x, k, &count[k]);
    bk_split_wish left = *wish;
    int64_t training = any + count[BK_LABELLED_TRAIN];
    if (training == 0)
        return bk_fail(BK_INPUT, "no text is for training (%s): give training texts too", source);
    if (count[BK_LABELLED_VALIDATION] > 0)
        left.validation = 0;
    if (count[BK_LABELLED_TRAIN] > 0 || count[BK_LABELLED_TEST] > 0)
        left.test = 0; /* a source with a training split has its test elsewhere, or none */
    memcpy(all + any, index[BK_LABELLED_TRAIN], (size_t)count[BK_LABELLED_TRAIN] * sizeof *all);
    BK_TRY(bk_split_seeded(out, x->arena, all, training, &left));
    for (int k = BK_LABELLED_VALIDATION; k < SPLITS; k++)
        if (count[k] > 0)
            bk_split_add(out, names[k], index[k], count[k]);
    return BK_OK;
}

static const char *join_names(const bk_labelled *x)
{
    const char *all = "";
    for (int i = 0; i < x->classes; i++)
        all = bk_arena_printf(x->arena, "%s%s%s", all, i ? "\n" : "", x->class_name[i]);
    return all;
}

bk_status bk_labelled_finish(bk_labelled *x, const bk_split_wish *wish, const char *source,
                             bk_dataset *out)
{
    if (x->first.count == 0 || x->classes < 2)
        return bk_fail(
            BK_INPUT,
            "%lld texts in %d classes (%s): at least two classes are needed; of a tree name the "
            "directory above them",
            (long long)x->first.count, x->classes, source);
    bk_samples_to(&x->first, out);
    if (x->pairs) {
        out->tokens2 = x->second.tokens;
        out->offsets2 = x->second.offsets;
        bk_dataset_measure(out);
    }
    out->task = x->pairs ? "pair_classification" : "classification";
    out->vocabulary = 257;
    out->classes = x->classes;
    out->label_name = join_names(x);
    return add_splits(x, wish, source, out);
}
