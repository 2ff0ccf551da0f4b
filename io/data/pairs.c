/* io/data/pairs.c - pairs of texts with a class, from tables: one row a pair.  Bytes + 1, 0 =
 * padding.  Tabs never have quotes, commas those of RFC 4180. */
#include "io/labelled.h"
#include "io/subwords.h"

#include <string.h>

typedef struct pairs_config {
    bk_subword_config subwords;
    int layout;
    bool header;
    const char *columns, *text1, *text2, *label;
    double validation, test;
    int64_t max_length, limit, seed;
} pairs_config;

/* What a column may hold, and what a row is read into. */
enum { TEXT1, TEXT2, LABEL, ROLES };
static const char *const role_name[ROLES] = {"text1", "text2", "label"};

static const bk_option options[] = {
    BK_OPTION_CHOICE(
        pairs_config, layout, 0, BK_LABELLED_LAYOUTS,
        "columns between tabs, without quotes, or commas, with those of RFC 4180 (auto: commas "
        "in .csv)"),
    BK_OPTION_TEXT(pairs_config, columns, "label,-,-,text1,text2",
                   "what each column holds, - for what is not read"),
    BK_OPTION_BOOL(pairs_config, header, false, "tables begin with a row of names"),
    BK_OPTION_TEXT(pairs_config, text1, "",
                   "name of the column of the first text, instead of columns= (header=true)"),
    BK_OPTION_TEXT(pairs_config, text2, "", "name of the column of the second text"),
    BK_OPTION_TEXT(pairs_config, label, "", "name of the column of the label"),
    BK_OPTION_F64(pairs_config, validation, 0.1, 0.0, 1e9,
                  "fraction or count for validation where the source has none"),
    BK_OPTION_F64(pairs_config, test, 0.1, 0.0, 1e9,
                  "fraction or count for the test where the source has no splits"),
    BK_OPTION_I64(pairs_config, max_length, 0, 0, 1 << 30,
                  "each text is cut to this many bytes; 0 = no"),
    BK_OPTION_I64(pairs_config, limit, 0, 0, 1LL << 40, "first rows of each file only; 0 = all"),
    BK_OPTION_I64(pairs_config, seed, 1, 0, 1LL << 53, "of the splits"),
    BK_SUBWORD_OPTIONS(pairs_config, subwords),
    BK_OPTION_END,
};

/* Where the parts of a row stand, and how many columns it has. */
typedef struct columns {
    int place[ROLES], count;
} columns;

typedef struct reader {
    const pairs_config *config;
    bk_labelled texts;
    int64_t empty;
} reader;

/* ---- columns ---- */

static bool by_name(const pairs_config *c)
{
    return *c->text1 || *c->text2 || *c->label;
}

static bk_status place_word(const char *columns_text, const char *word, size_t length, columns *out)
{
    for (int k = 0; k < ROLES; k++)
        if (strlen(role_name[k]) == length && memcmp(role_name[k], word, length) == 0) {
            if (out->place[k] >= 0)
                return bk_fail(BK_USAGE, "columns=%s names %s twice: name each part once",
                               columns_text, role_name[k]);
            out->place[k] = out->count;
            return BK_OK;
        }
    return length == 1 && *word == '-'
               ? BK_OK
               : bk_fail(BK_USAGE,
                         "columns=%s: '%.*s' is neither label, text1, text2 nor -: say what each "
                         "column holds",
                         columns_text, (int)length, word);
}

/* "label,-,-,text1,text2" */
static bk_status parse_columns(const char *text, columns *out)
{
    *out = (columns){.place = {-1, -1, -1}};
    for (const char *at = text;; at++) {
        size_t length = strcspn(at, ",");
        if (out->count == BK_TABLE_FIELDS)
            return bk_fail(BK_USAGE, "columns= names more than %d columns: is this a table?",
                           BK_TABLE_FIELDS);
        BK_TRY(place_word(text, at, length, out));
        out->count++;
        at += length;
        if (!*at)
            break;
    }
    for (int k = 0; k < ROLES; k++)
        if (out->place[k] < 0)
            return bk_fail(BK_USAGE, "columns=%s has no %s: say what each column holds", text,
                           role_name[k]);
    return BK_OK;
}

static bk_status check(const void *config)
{
    const pairs_config *c = config;
    columns parsed;
    BK_TRY(bk_subwords_check(&c->subwords));
    if (!by_name(c))
        return parse_columns(c->columns, &parsed);
    if (!c->header)
        return bk_fail(BK_USAGE, "text1=, text2= and label= name columns of a header: add "
                                 "header=true, or use columns=");
    return *c->text1 && *c->text2 && *c->label
               ? BK_OK
               : bk_fail(BK_USAGE,
                         "of text1=, text2= and label= some are missing: name all three columns");
}

static bk_status find_names(const reader *r, const bk_table *t, columns *out)
{
    const char *const name[ROLES] = {r->config->text1, r->config->text2, r->config->label};
    out->count = t->fields;
    for (int k = 0; k < ROLES; k++) {
        out->place[k] = bk_table_column(t, name[k]);
        if (out->place[k] < 0)
            return bk_fail(BK_INPUT,
                           "the header has no column %s (%s): name the columns by %s=", name[k],
                           bk_labelled_place(&r->texts, t), role_name[k]);
    }
    return BK_OK;
}

/* ---- rows ---- */

static bk_status find_columns(const reader *r, bk_table *t, columns *out)
{
    bool more;
    BK_TRY(parse_columns(r->config->columns, out));
    if (!r->config->header)
        return BK_OK;
    BK_TRY(bk_table_next(t, &more));
    return more && by_name(r->config) ? find_names(r, t, out) : BK_OK;
}

static bk_status add_row(reader *r, const bk_table *t, const columns *c, int split)
{
    const char *place = bk_labelled_place(&r->texts, t);
    int32_t label;
    if (t->fields != c->count)
        return bk_fail(BK_INPUT, "a row has %d columns, not %d (%s): mend the row, or say columns=",
                       t->fields, c->count, place);
    const bk_field *name = &t->field[c->place[LABEL]];
    const bk_field text[] = {t->field[c->place[TEXT1]], t->field[c->place[TEXT2]]};
    BK_TRY(bk_labelled_class(&r->texts, name->text, name->length, place, &label));
    r->empty += (text[0].length == 0) + (text[1].length == 0);
    bk_labelled_add(&r->texts, text, r->config->max_length, label, split);
    return BK_OK;
}

static bk_status read_file(reader *r, const char *path)
{
    bk_table t;
    columns c;
    int64_t limit = r->config->limit, before = r->texts.first.count;
    bool more;
    BK_TRY(bk_labelled_open_table(r->texts.arena, path, r->config->layout, &t));
    BK_TRY(find_columns(r, &t, &c));
    while (limit == 0 || r->texts.first.count - before < limit) {
        BK_TRY(bk_table_next(&t, &more));
        if (!more)
            break;
        BK_TRY(add_row(r, &t, &c, bk_labelled_split_of_file(path)));
    }
    return r->texts.first.count > before
               ? BK_OK
               : bk_fail(BK_INPUT, "the file holds no pair (%s): check what it is", path);
}

static bk_status make(const bk_data_args *a, bk_dataset *out)
{
    const pairs_config *c = a->config;
    const bk_split_wish wish = {.validation = c->validation, .test = c->test, .seed = c->seed};
    reader r = {
        .config = c,
        .texts = {
            .arena = a->arena, .pairs = true, .first.arena = a->arena, .second.arena = a->arena}};
    if (a->inputs == 0)
        return bk_fail(BK_USAGE, "pairs takes tables: birkhoff data pairs FILE... OUT.h5");
    for (int i = 0; i < a->inputs; i++)
        BK_TRY(read_file(&r, a->input[i]));
    bk_labelled_sort_classes(&r.texts);
    BK_TRY(bk_labelled_finish(&r.texts, &wish, a->input[0], out));
    if (r.empty > 0)
        out->note = bk_arena_printf(a->arena, "%lld texts are empty", (long long)r.empty);
    return bk_subwords_apply(a->arena, &c->subwords, out);
}

const bk_data_kind bk_data_pairs = {
    .name = "pairs",
    .summary = "pairs of texts with a class, from tables",
    .source = "",
    .usage = "FILE...",
    .options = options,
    .config_size = sizeof(pairs_config),
    .check = check,
    .make = make,
};
