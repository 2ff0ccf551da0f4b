/* io/data/glue.c - the files of GLUE's tasks as they are handed out (Wang et al. 2018): their
 * columns, headers, label words and second validation sets.  Tabs without quotes.  Bytes + 1, 0 =
 * padding. */
#include "io/labelled.h"
#include "io/subwords.h"

#include <string.h>

/* One task.  Columns stand in the header under a name; a table without a header has them by number
 * ("4", counted from 1) and so many in all. */
typedef struct task {
    const char *name;
    const char *text1, *text2, *label; /* text2: NULL for single texts */
    int columns;                       /* of a table without a header; 0: it has one */
    const char *words, *classes;       /* labels in the file, and what they mean, in the order of
                                          the classes; ','-separated */
    const char *metric;                /* NULL: accuracy */
    const char *other, *other_word;    /* second validation set, and what its file's name holds */
    const char *unlabelled;            /* word of rows without an agreed label; left out, counted */
    bool torn;                         /* known to have torn rows: left out, counted */
} task;

static const task tasks[] = {
    {.name = "cola",
     .text1 = "4",
     .label = "2",
     .columns = 4,
     .words = "0,1",
     .classes = "unacceptable,acceptable",
     .metric = "matthews",
     .other = "validation_out_of_domain",
     .other_word = "out_of_domain"},
    {.name = "sst2",
     .text1 = "sentence",
     .label = "label",
     .words = "0,1",
     .classes = "negative,positive"},
    {.name = "mrpc",
     .text1 = "#1 String",
     .text2 = "#2 String",
     .label = "Quality",
     .words = "0,1",
     .classes = "not_equivalent,equivalent",
     .metric = "f1"},
    {.name = "qqp",
     .text1 = "question1",
     .text2 = "question2",
     .label = "is_duplicate",
     .words = "0,1",
     .classes = "not_duplicate,duplicate",
     .metric = "f1",
     .torn = true},
    {.name = "mnli",
     .text1 = "sentence1",
     .text2 = "sentence2",
     .label = "gold_label",
     .words = "entailment,neutral,contradiction",
     .classes = "entailment,neutral,contradiction",
     .other = "validation_mismatched",
     .other_word = "mismatched",
     .unlabelled = "-"},
    {.name = "qnli",
     .text1 = "question",
     .text2 = "sentence",
     .label = "label",
     .words = "entailment,not_entailment",
     .classes = "entailment,not_entailment"},
    {.name = "rte",
     .text1 = "sentence1",
     .text2 = "sentence2",
     .label = "label",
     .words = "entailment,not_entailment",
     .classes = "entailment,not_entailment"},
};
#define LAYOUTS "none|cola|sst2|mrpc|qqp|mnli|qnli|rte" /* none, then the order of `tasks` */

typedef struct glue_config {
    bk_subword_config subwords;
    int layout;
    double validation;
    int64_t max_length, limit, seed;
} glue_config;

static const bk_option options[] = {
    BK_OPTION_CHOICE(glue_config, layout, 0, LAYOUTS, "the task whose files are read; needed"),
    BK_OPTION_F64(glue_config, validation, 0.1, 0.0, 1e9,
                  "fraction or count of training for validation where no file is for it"),
    BK_OPTION_I64(glue_config, max_length, 0, 0, 1 << 30,
                  "each text is cut to this many bytes; 0 = no"),
    BK_OPTION_I64(glue_config, limit, 0, 0, 1LL << 40, "first rows of each file only; 0 = all"),
    BK_OPTION_I64(glue_config, seed, 1, 0, 1LL << 53, "of a validation split that is cut here"),
    BK_SUBWORD_OPTIONS(glue_config, subwords),
    BK_OPTION_END,
};

enum { TEXT1, TEXT2, LABEL, ROLES };

typedef struct reader {
    const glue_config *config;
    const task *task;
    bk_labelled texts;
    int place[ROLES], columns; /* of the file being read */
    int64_t empty, torn, unlabelled;
} reader;

/* ---- columns ---- */

static bk_status find_column(reader *r, const bk_table *t, int role, const char *name)
{
    r->place[role] = bk_table_column(t, name);
    if (r->place[role] >= 0)
        return BK_OK;
    return bk_fail(BK_INPUT,
                   "the header has no column %s, which %s has (%s): is this file of another task, "
                   "or a test set without labels?  Leave it out",
                   name, r->task->name, bk_labelled_place(&r->texts, t));
}

static bk_status find_columns(reader *r, bk_table *t)
{
    const task *k = r->task;
    const char *const name[ROLES] = {k->text1, k->text2, k->label};
    bool more = true;
    r->columns = k->columns;
    if (k->columns == 0) {
        BK_TRY(bk_table_next(t, &more));
        r->columns = t->fields;
    }
    for (int i = 0; more && i < ROLES; i++) {
        int64_t number;
        if (!name[i])
            continue;
        if (k->columns == 0)
            BK_TRY(find_column(r, t, i, name[i]));
        else if (bk_parse_i64(name[i], &number))
            r->place[i] = (int)number - 1;
    }
    return BK_OK;
}

/* ---- rows ---- */

/* The place of a word in a ','-separated list, -1: not there. */
static int find_word(const char *words, const bk_field *word)
{
    for (int i = 0;; i++) {
        size_t length = strcspn(words, ",");
        if (length == word->length && memcmp(words, word->text, length) == 0)
            return i;
        if (!words[length])
            return -1;
        words += length + 1;
    }
}

static bk_status add_row(reader *r, const bk_table *t, int split)
{
    const task *k = r->task;
    if (t->fields != r->columns && k->torn) {
        r->torn++;
        return BK_OK;
    }
    if (t->fields != r->columns)
        return bk_fail(BK_INPUT, "a row has %d columns, not %d (%s): is this a file of %s?",
                       t->fields, r->columns, bk_labelled_place(&r->texts, t), k->name);
    const bk_field *word = &t->field[r->place[LABEL]];
    const bk_field text[] = {t->field[r->place[TEXT1]], t->field[r->place[TEXT2]]};
    if (k->unlabelled && find_word(k->unlabelled, word) == 0) {
        r->unlabelled++;
        return BK_OK;
    }
    int label = find_word(k->words, word);
    if (label < 0)
        return bk_fail(BK_INPUT, "'%.*s' is no label of %s (%s): labels are %s",
                       (int)(word->length < 40 ? word->length : 40), word->text, k->name,
                       bk_labelled_place(&r->texts, t), k->words);
    r->empty += (text[0].length == 0) + (k->text2 && text[1].length == 0);
    bk_labelled_add(&r->texts, text, r->config->max_length, label, split);
    return BK_OK;
}

static int split_of(const task *k, const char *path)
{
    const char *slash = strrchr(path, '/');
    int split = bk_labelled_split_of_file(path);
    bool other = k->other && strstr(slash ? slash + 1 : path, k->other_word);
    return split == BK_LABELLED_VALIDATION && other ? BK_LABELLED_OTHER : split;
}

static bk_status read_file(reader *r, const char *path)
{
    bk_table t;
    int64_t limit = r->config->limit, before = r->texts.first.count;
    bool more;
    BK_TRY(bk_labelled_open_table(r->texts.arena, path, BK_LABELLED_TSV, &t));
    BK_TRY(find_columns(r, &t));
    while (limit == 0 || r->texts.first.count - before < limit) {
        BK_TRY(bk_table_next(&t, &more));
        if (!more)
            break;
        BK_TRY(add_row(r, &t, split_of(r->task, path)));
    }
    return r->texts.first.count > before
               ? BK_OK
               : bk_fail(BK_INPUT, "the file holds no text (%s): check what it is", path);
}

/* ---- the whole ---- */

static bk_status check(const void *config)
{
    const glue_config *c = config;
    if (c->layout == 0)
        return bk_fail(BK_USAGE, "glue names no task: layout=cola, sst2, mrpc, qqp, mnli, qnli or "
                                 "rte");
    return bk_subwords_check(&c->subwords);
}

/* Class numbers are those of the task, met or not. */
static bk_status name_classes(bk_labelled *x, const char *classes)
{
    for (;; classes++) {
        size_t length = strcspn(classes, ",");
        int32_t number;
        BK_TRY(bk_labelled_class(x, classes, length, "glue", &number));
        classes += length;
        if (!*classes)
            return BK_OK;
    }
}

static const char *note(const reader *r)
{
    const struct {
        int64_t count;
        const char *what;
    } row[] = {{r->torn, "torn rows left out"},
               {r->unlabelled, "rows without an agreed label left out"},
               {r->empty, "texts are empty"}};
    const char *text = "";
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        if (row[i].count > 0)
            text = bk_arena_printf(r->texts.arena, "%s%s%lld %s", text, *text ? ", " : "",
                                   (long long)row[i].count, row[i].what);
    return *text ? text : NULL;
}

static bk_status make(const bk_data_args *a, bk_dataset *out)
{
    const glue_config *c = a->config;
    const bk_split_wish wish = {.validation = c->validation, .seed = c->seed};
    if (a->inputs == 0)
        return bk_fail(BK_USAGE,
                       "glue takes tables: birkhoff data glue FILE... OUT.h5 layout=TASK");
    const task *k = &tasks[c->layout - 1];
    reader r = {.config = c,
                .task = k,
                .texts = {.arena = a->arena,
                          .pairs = k->text2 != NULL,
                          .other = k->other,
                          .first.arena = a->arena,
                          .second.arena = a->arena}};
    BK_TRY(name_classes(&r.texts, k->classes));
    for (int i = 0; i < a->inputs; i++)
        BK_TRY(read_file(&r, a->input[i]));
    BK_TRY(bk_labelled_finish(&r.texts, &wish, a->input[0], out));
    out->metric = k->metric;
    out->note = note(&r);
    return bk_subwords_apply(a->arena, &c->subwords, out);
}

const bk_data_kind bk_data_glue = {
    .name = "glue",
    .summary = "the files of GLUE's tasks: CoLA, SST-2, MRPC, QQP, MNLI, QNLI, RTE",
    .source = "Wang et al. 2018, arXiv 1804.07461",
    .usage = "FILE...",
    .options = options,
    .config_size = sizeof(glue_config),
    .check = check,
    .make = make,
};
