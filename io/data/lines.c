/* io/data/lines.c - a corpus for language models: bytes + 1, one sample a document. */
#include "io/corrupt.h"
#include "io/files.h"
#include "io/subwords.h"

#include <string.h>

typedef struct lines_config {
    bk_subword_config subwords;
    const char *separator;
    double validation, test, swap;
    int64_t limit, max_length, seed;
} lines_config;

static const bk_option options[] = {
    BK_OPTION_TEXT(lines_config, separator, "",
                   "documents are cut at this text (\\n, \\t, \\\\); empty: one file a document"),
    BK_OPTION_F64(lines_config, validation, 0.1, 0.0, 1e9,
                  "fraction or count at the end held out for validation"),
    BK_OPTION_F64(lines_config, test, 0.0, 0.0, 1e9,
                  "fraction or count at the very end held out as a test"),
    BK_OPTION_I64(lines_config, limit, 0, 0, 1LL << 40, "first documents only; 0 = all"),
    BK_OPTION_I64(lines_config, max_length, 0, 0, 1LL << 40,
                  "documents are cut to this many bytes; 0 = no"),
    BK_OPTION_F64(lines_config, swap, 0.0, 0.0, 1.0,
                  "probability that a byte changes places with the next (a set to evaluate on)"),
    BK_OPTION_I64(lines_config, seed, 1, 0, 1LL << 53, "of swap"),
    BK_SUBWORD_OPTIONS(lines_config, subwords),
    BK_OPTION_END,
};

/* ---- documents ---- */

/* The separator with its escapes resolved. */
static const char *unescape(bk_arena *arena, const char *text)
{
    char *out = bk_arena_strdup(arena, text), *to = out;
    for (; *text; text++) {
        const char *found = *text == '\\' && text[1] ? strchr("n\nt\tr\r\\\\", text[1]) : NULL;
        *to++ = found ? found[1] : *text;
        text += found != NULL;
    }
    *to = '\0';
    return out;
}

static void add_document(const lines_config *c, bk_samples *s, const char *text, size_t length)
{
    int64_t bytes = (int64_t)length;
    if (c->max_length > 0 && bytes > c->max_length)
        bytes = c->max_length;
    if (bytes > 0 && (c->limit == 0 || s->count < c->limit))
        bk_samples_add_bytes(s, text, bytes, -1);
}

static void add_file(const lines_config *c, bk_samples *s, const char *separator, const char *text,
                     size_t length)
{
    size_t width = strlen(separator);
    while (width > 0) {
        const char *cut = memmem(text, length, separator, width);
        if (!cut)
            break;
        add_document(c, s, text, (size_t)(cut - text));
        length -= (size_t)(cut - text) + width;
        text = cut + width;
    }
    add_document(c, s, text, length);
}

static bk_status read_documents(const bk_data_args *a, bk_samples *s)
{
    const lines_config *c = a->config;
    const char *separator = unescape(a->arena, c->separator);
    for (int i = 0; i < a->inputs; i++) {
        char *text;
        size_t length;
        BK_TRY(bk_read_file(a->arena, a->input[i], &text, &length));
        bool mark = length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0;
        add_file(c, s, separator, text + (mark ? 3 : 0), length - (mark ? 3 : 0));
    }
    return s->count > 0
               ? BK_OK
               : bk_fail(BK_INPUT, "there is no text (%s): give files with at least one byte",
                         a->input[0]);
}

/* ---- splits: the held-out parts are the end of the corpus ---- */

enum { PARTS = 3 };

static void share_out(const lines_config *c, int64_t total, int64_t parts[PARTS])
{
    parts[1] = bk_share_of(c->validation, total);
    parts[2] = bk_share_of(c->test, total);
    parts[0] = total - parts[1] - parts[2];
}

/* Documents are too few for the shares asked for: then bytes are counted instead. */
static bool too_few(const lines_config *c, const int64_t parts[PARTS])
{
    return parts[0] <= 0 || (c->validation > 0 && parts[1] == 0) || (c->test > 0 && parts[2] == 0);
}

/* Cuts the corpus at the bytes where parts end, so that documents[k] hold part k: a document that
 * straddles a cut becomes two. */
static bk_samples cut_bytes(bk_arena *arena, const bk_samples *s, const int64_t parts[PARTS],
                            int64_t documents[PARTS])
{
    bk_samples cut = {.arena = arena};
    int64_t end = 0, at = 0, sample = 0;
    for (int k = 0; k < PARTS; k++) {
        documents[k] = -cut.count;
        for (end += parts[k]; at < end;) {
            int64_t stop = s->offsets[sample + 1] < end ? s->offsets[sample + 1] : end;
            bk_samples_add(&cut, s->tokens + at, stop - at, -1);
            at = stop;
            sample += at == s->offsets[sample + 1];
        }
        documents[k] += cut.count;
    }
    return cut;
}

static void add_splits(bk_dataset *out, bk_arena *arena, const int64_t documents[PARTS])
{
    static const char *const names[PARTS] = {"train", "validation", "test"};
    int64_t *index = BK_NEW(arena, int64_t, out->samples), at = 0;
    for (int64_t i = 0; i < out->samples; i++)
        index[i] = i;
    for (int k = 0; k < PARTS; at += documents[k++])
        if (documents[k] > 0)
            bk_split_add(out, names[k], index + at, documents[k]);
}

static bk_status make(const bk_data_args *a, bk_dataset *out)
{
    const lines_config *c = a->config;
    bk_samples s = {.arena = a->arena};
    int64_t documents[PARTS], bytes[PARTS];
    if (a->inputs == 0)
        return bk_fail(BK_USAGE, "lines takes text files: birkhoff data lines FILE... OUT.h5");
    BK_TRY(read_documents(a, &s));
    share_out(c, s.count, documents);
    if (too_few(c, documents)) {
        share_out(c, s.offsets[s.count], bytes);
        if (bytes[0] <= 0)
            return bk_fail(BK_USAGE,
                           "validation=%g and test=%g leave nothing to train on (%lld documents, "
                           "%lld bytes): choose less",
                           c->validation, c->test, (long long)s.count,
                           (long long)s.offsets[s.count]);
        s = cut_bytes(a->arena, &s, bytes, documents);
    }
    bk_samples_swap((uint64_t)c->seed, c->swap, &s);
    bk_samples_to(&s, out);
    out->labels = NULL;
    out->task = "language_model";
    out->vocabulary = 257;
    add_splits(out, a->arena, documents);
    return bk_subwords_apply(a->arena, &c->subwords, out);
}

static bk_status check(const void *config)
{
    return bk_subwords_check(&((const lines_config *)config)->subwords);
}

const bk_data_kind bk_data_lines = {
    .name = "lines",
    .summary = "text files as a language-model corpus",
    .source = "",
    .usage = "FILE...",
    .options = options,
    .config_size = sizeof(lines_config),
    .check = check,
    .make = make,
};
