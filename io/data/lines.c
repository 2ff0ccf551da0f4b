/* io/data/lines.c - a corpus for language models: bytes + 1, one sample a document. */
#include "io/data_common.h"
#include "io/files.h"

#include <string.h>

typedef struct lines_config {
    const char *separator;
    double validation, test;
    int64_t limit, max_length;
} lines_config;

static const bk_option options[] = {
    BK_OPTION_TEXT(lines_config, separator, "",
                   "documents are cut at this text; empty: one file is one document"),
    BK_OPTION_F64(lines_config, validation, 0.1, 0.0, 0.9,
                  "share at the end that is held out for validation"),
    BK_OPTION_F64(lines_config, test, 0.0, 0.0, 0.9,
                  "share at the very end that is held out as a test"),
    BK_OPTION_I64(lines_config, limit, 0, 0, 1LL << 40, "first documents only; 0 = all"),
    BK_OPTION_I64(lines_config, max_length, 0, 0, 1LL << 40,
                  "documents are cut to this many bytes; 0 = no"),
    BK_OPTION_END,
};

static void add_document(const lines_config *c, bk_samples *s, const char *text, size_t length)
{
    int64_t bytes = (int64_t)length;
    if (c->max_length > 0 && bytes > c->max_length)
        bytes = c->max_length;
    if (bytes > 0 && (c->limit == 0 || s->count < c->limit))
        bk_samples_add_bytes(s, text, bytes, -1);
}

static void add_file(const lines_config *c, bk_samples *s, const char *text, size_t length)
{
    size_t width = strlen(c->separator);
    while (width > 0) {
        const char *cut = memmem(text, length, c->separator, width);
        if (!cut)
            break;
        add_document(c, s, text, (size_t)(cut - text));
        length -= (size_t)(cut - text) + width;
        text = cut + width;
    }
    add_document(c, s, text, length);
}

/* A single document is cut by bytes, so that the held-out parts are its end. */
static bk_samples cut_single(const bk_data_args *a, const bk_samples *s, const int64_t parts[3])
{
    bk_samples cut = {.arena = a->arena};
    int64_t at = 0;
    for (int i = 0; i < 3; i++) {
        if (parts[i] > 0)
            bk_samples_add(&cut, s->tokens + at, parts[i], -1);
        at += parts[i];
    }
    return cut;
}

static bk_status make(const bk_data_args *a, bk_dataset *out)
{
    const lines_config *c = a->config;
    bk_samples s = {.arena = a->arena};
    if (a->inputs == 0)
        return bk_fail(BK_USAGE, "lines takes text files: birkhoff data lines FILE... OUT.h5");
    for (int i = 0; i < a->inputs; i++) {
        char *text;
        size_t length;
        BK_TRY(bk_read_file(a->arena, a->input[i], &text, &length));
        add_file(c, &s, text, length);
    }
    if (s.count == 0)
        return bk_fail(BK_INPUT, "there is no text (%s): give files with at least one byte",
                       a->input[0]);
    bool single = s.count == 1;
    int64_t total = single ? s.offsets[1] : s.count;
    int64_t parts[3] = {0, bk_share_of(c->validation, total), bk_share_of(c->test, total)};
    parts[0] = total - parts[1] - parts[2];
    if (single)
        s = cut_single(a, &s, parts);
    bk_samples_to(&s, out);
    out->labels = NULL;
    out->task = "language_model";
    out->vocabulary = 257;
    static const char *const names[3] = {"train", "validation", "test"};
    int64_t *index = BK_NEW(a->arena, int64_t, s.count), at = 0;
    for (int64_t i = 0; i < s.count; i++)
        index[i] = i;
    for (int i = 0; i < 3; i++) {
        int64_t count = single ? parts[i] > 0 : parts[i];
        if (count > 0)
            bk_split_add(out, names[i], index + at, count);
        at += count;
    }
    return BK_OK;
}

const bk_data_kind bk_data_lines = {
    .name = "lines",
    .summary = "text files as a language-model corpus, bytes",
    .source = "",
    .usage = "FILE...",
    .options = options,
    .config_size = sizeof(lines_config),
    .make = make,
};
