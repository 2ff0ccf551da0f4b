#include "io/subwords.h"

#include "io/data_common.h"
#include "io/digest.h"
#include "io/files.h"
#include "io/program.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    LEAST = 300,
    MOST = 1000000,
    FIRST_BYTE = 2,  /* the symbol of byte 0 */
    LONG_LINE = 4192 /* bytes; spm_train leaves out longer lines unless it is told */
};

/* What is at work, in a directory of its own with the files `texts`, `model`, `symbols`, ... */
typedef struct subwords {
    bk_arena *arena;
    bk_dataset *d;
    const char *directory;
} subwords;

/* One of the two lists of texts. */
typedef struct list {
    const int32_t *tokens;
    const int64_t *offsets;
} list;

const char *bk_subwords_missing(void)
{
    static const char *const programs[] = {"spm_train", "spm_encode"};
    for (int i = 0; i < 2; i++)
        if (!bk_program_found(programs[i]))
            return programs[i];
    return NULL;
}

bk_status bk_subwords_check(const bk_subword_config *c)
{
    int64_t size;
    const char *missing = bk_subwords_missing();
    bool preset = strcmp(c->vocabulary, BK_SUBWORD_VOCABULARY) == 0;
    if (c->tokens == BK_TOKENS_BYTES)
        return preset ? BK_OK
                      : bk_fail(BK_USAGE,
                                "vocabulary=%s has no meaning for bytes: add "
                                "tokens=subwords, or remove it",
                                c->vocabulary);
    if (missing)
        return bk_fail(BK_USAGE,
                       "tokens=subwords needs the program %s (PATH): apt-get install "
                       "sentencepiece, or say tokens=bytes",
                       missing);
    if (bk_parse_i64(c->vocabulary, &size) && (size < LEAST || size > MOST))
        return bk_fail(BK_USAGE, "vocabulary=%s is not in [%d, %d]: choose a size in between",
                       c->vocabulary, LEAST, MOST);
    return BK_OK;
}

static const char *file_in(const subwords *s, const char *name)
{
    return bk_arena_printf(s->arena, "%s/%s", s->directory, name);
}

/* ---- texts as lines ---- */

/* Bytes that stand between what is encoded. */
static bool separates(int32_t token)
{
    return token == '\n' + 1 || token == 0 + 1;
}

static int64_t end_of_line(const list *l, int64_t at, int64_t end)
{
    while (at < end && !separates(l->tokens[at]))
        at++;
    return at;
}

/* The lines of one text; returns the bytes of the longest.  Empty ones are written when `all`. */
static int64_t write_text(const list *l, int64_t sample, bool all, FILE *file)
{
    int64_t longest = 0, end = l->offsets[sample + 1];
    for (int64_t at = l->offsets[sample]; at <= end; at++) {
        int64_t from = at;
        at = end_of_line(l, at, end);
        for (int64_t i = from; i < at; i++)
            putc(l->tokens[i] - 1, file);
        if (all || at > from)
            putc('\n', file);
        longest = at - from > longest ? at - from : longest;
    }
    return longest;
}

static list list_of(const bk_dataset *d, int which)
{
    return which == 0 ? (list){d->tokens, d->offsets} : (list){d->tokens2, d->offsets2};
}

/* The texts of a split, NULL: of the data set, one behind the other. */
static bk_status write_texts(const subwords *s, const bk_split *split, int64_t *longest)
{
    const char *path = file_in(s, "texts");
    FILE *file = fopen(path, "w");
    int64_t count = split ? split->count : s->d->samples;
    *longest = 0;
    for (int which = 0; file && which < (s->d->tokens2 ? 2 : 1); which++)
        for (int64_t i = 0; i < count; i++) {
            const list l = list_of(s->d, which);
            int64_t bytes = write_text(&l, split ? split->index[i] : i, !split, file);
            *longest = bytes > *longest ? bytes : *longest;
        }
    bool good = file && !ferror(file);
    good = file && fclose(file) == 0 && good;
    if (good)
        return BK_OK;
    return bk_fail(BK_FAULT, "the texts cannot be written (%s): %s: make room there, or set TMPDIR",
                   path, strerror(errno));
}

/* ---- the model ---- */

/* Lines of the list of pieces. */
static bk_status count_pieces(const subwords *s, int64_t *count)
{
    char *text;
    size_t length;
    BK_TRY(bk_read_file(s->arena, file_in(s, "model.vocab"), &text, &length));
    *count = 0;
    for (size_t i = 0; i < length; i++)
        *count += text[i] == '\n';
    return BK_OK;
}

/* Why spm_train gave up: its last line but the farewell, without the place in its source; NULL: it
 * does not say. */
static const char *reason(const subwords *s)
{
    char *text, *found = NULL, *rest = NULL;
    size_t length;
    if (bk_read_file(s->arena, file_in(s, "log"), &text, &length) != BK_OK)
        return NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        found = strncmp(line, "Program terminated", 18) == 0 ? found : line;
    char *place = found ? strrchr(found, ']') : NULL;
    return place ? place + 1 + (place[1] == ' ') : found;
}

static void add_note(const subwords *s, const char *text)
{
    const char *before = s->d->note;
    s->d->note = before ? bk_arena_printf(s->arena, "%s, %s", before, text) : text;
}

static bk_status learn(const subwords *s, int64_t size, int64_t *vocabulary)
{
    const bk_split *train;
    int64_t longest;
    BK_TRY(bk_dataset_split(s->d, "train", &train));
    BK_TRY(write_texts(s, train, &longest));
    if (longest == 0)
        return bk_fail(BK_INPUT, "the training split holds no text to learn subwords from (%s)",
                       s->d->path);
    /* One thread: its sums would have other bits on another machine.  Names without folders: they
     * become part of the model. */
    const char *argv[] = {"spm_train",
                          "--input=texts",
                          "--model_prefix=model",
                          "--model_type=unigram",
                          bk_arena_printf(s->arena, "--vocab_size=%lld", (long long)size),
                          bk_arena_printf(s->arena, "--max_sentence_length=%lld",
                                          (long long)(longest > LONG_LINE ? longest : LONG_LINE)),
                          "--pad_id=0",
                          "--unk_id=1",
                          "--bos_id=-1",
                          "--eos_id=-1",
                          "--byte_fallback=true",
                          "--normalization_rule_name=identity",
                          "--remove_extra_whitespaces=false",
                          "--hard_vocab_limit=false",
                          "--num_threads=1",
                          "--minloglevel=1",
                          NULL};
    if (bk_program_run(s->directory, argv, "log") != BK_OK) {
        const char *ended = bk_arena_strdup(s->arena, bk_status_text()), *why = reason(s);
        return bk_fail(BK_INPUT, "%lld subwords cannot be learned (%s): %.300s", (long long)size,
                       s->d->path, why ? why : ended);
    }
    BK_TRY(count_pieces(s, vocabulary));
    if (*vocabulary < size)
        add_note(s, bk_arena_printf(s->arena, "the texts hold no more than %lld of %lld subwords",
                                    (long long)*vocabulary, (long long)size));
    return BK_OK;
}

static bk_status borrow(const subwords *s, const char *path, int64_t *vocabulary)
{
    bk_dataset *other;
    BK_TRY(bk_dataset_read(s->arena, path, &other));
    if (!other->subwords)
        return bk_fail(BK_INPUT,
                       "the data set has no subwords (vocabulary=%s): name one made with "
                       "tokens=subwords, or a size",
                       path);
    FILE *file = fopen(file_in(s, "model.model"), "w");
    size_t bytes = (size_t)other->subword_bytes;
    bool good = file && fwrite(other->subwords, 1, bytes, file) == bytes;
    good = file && fclose(file) == 0 && good;
    *vocabulary = other->vocabulary;
    return good ? BK_OK
                : bk_fail(BK_FAULT, "the subwords cannot be written (%s): %s", s->directory,
                          strerror(errno));
}

/* ---- symbols ---- */

/* What spm_encode wrote, and the flat list that it becomes. */
typedef struct symbols {
    char *at;
    int32_t *to;
    int64_t count, vocabulary;
} symbols;

static bk_status read_line(symbols *y)
{
    while (*y->at != '\n') {
        char *end;
        long symbol = strtol(y->at, &end, 10);
        if (end == y->at || symbol < FIRST_BYTE || symbol >= y->vocabulary)
            return bk_fail(BK_FAULT, "spm_encode wrote no symbol of %d..%lld: '%.20s'", FIRST_BYTE,
                           (long long)y->vocabulary - 1, y->at);
        y->to[y->count++] = (int32_t)symbol;
        y->at = end + (*end == ' ');
    }
    y->at++;
    return BK_OK;
}

/* As many lines as write_text made of them, what separated them in between. */
static bk_status read_text(symbols *y, const list *l, int64_t sample)
{
    int64_t end = l->offsets[sample + 1];
    for (int64_t at = l->offsets[sample]; at <= end; at++) {
        at = end_of_line(l, at, end);
        BK_TRY(read_line(y));
        if (at < end)
            y->to[y->count++] = FIRST_BYTE + l->tokens[at] - 1;
    }
    return BK_OK;
}

static bk_status read_list(const subwords *s, symbols *y, list *l)
{
    int64_t samples = s->d->samples, *offsets = BK_NEW(s->arena, int64_t, samples + 1);
    int32_t *tokens = y->to + y->count;
    offsets[0] = 0;
    for (int64_t i = 0; i < samples; i++) {
        BK_TRY(read_text(y, l, i));
        offsets[i + 1] = y->to + y->count - tokens;
    }
    *l = (list){tokens, offsets};
    return BK_OK;
}

/* Symbols, with those between lines: no more than blanks and twice the line ends. */
static int64_t room_for(const char *text)
{
    int64_t room = 1;
    for (; *text; text++)
        room += *text == ' ' ? 1 : *text == '\n' ? 2 : 0;
    return room;
}

static bk_status read_symbols(subwords *s)
{
    bk_dataset *d = s->d;
    list first = list_of(d, 0), second = list_of(d, 1);
    char *text;
    size_t length;
    BK_TRY(bk_read_file(s->arena, file_in(s, "symbols"), &text, &length));
    symbols y = {
        .at = text, .to = BK_NEW(s->arena, int32_t, room_for(text)), .vocabulary = d->vocabulary};
    BK_TRY(read_list(s, &y, &first));
    if (d->tokens2)
        BK_TRY(read_list(s, &y, &second));
    if (*y.at)
        return bk_fail(BK_FAULT, "spm_encode wrote more lines than it was given (%.20s)", y.at);
    d->tokens = first.tokens;
    d->offsets = first.offsets;
    d->tokens2 = second.tokens;
    d->offsets2 = second.offsets;
    bk_dataset_measure(d);
    return BK_OK;
}

static bk_status encode(subwords *s)
{
    static const char *const argv[] = {"spm_encode",       "--model=model.model", "--input=texts",
                                       "--output=symbols", "--output_format=id",  NULL};
    int64_t longest;
    BK_TRY(write_texts(s, NULL, &longest));
    BK_TRY(bk_program_run(s->directory, argv, "log"));
    return read_symbols(s);
}

static bk_status keep_model(subwords *s)
{
    char *model;
    size_t bytes;
    BK_TRY(bk_read_file(s->arena, file_in(s, "model.model"), &model, &bytes));
    s->d->subwords = (const uint8_t *)model;
    s->d->subword_bytes = (int64_t)bytes;
    bk_sha256_text(model, bytes, s->d->vocabulary_digest);
    return BK_OK;
}

static bk_status work(subwords *s, const bk_subword_config *c)
{
    int64_t size, vocabulary = 0;
    if (bk_parse_i64(c->vocabulary, &size))
        BK_TRY(learn(s, size, &vocabulary));
    else
        BK_TRY(borrow(s, c->vocabulary, &vocabulary));
    s->d->vocabulary = vocabulary;
    BK_TRY(keep_model(s));
    return encode(s);
}

bk_status bk_subwords_apply(bk_arena *arena, const bk_subword_config *c, bk_dataset *d)
{
    if (c->tokens == BK_TOKENS_BYTES)
        return BK_OK;
    const char *place = getenv("TMPDIR");
    char *directory =
        bk_arena_printf(arena, "%s/birkhoff-XXXXXX", place && *place ? place : "/tmp");
    if (!mkdtemp(directory))
        return bk_fail(BK_FAULT, "no folder for the work can be made (%s): %s: set TMPDIR",
                       directory, strerror(errno));
    subwords s = {.arena = arena, .d = d, .directory = directory};
    bk_status status = work(&s, c);
    bk_remove_directory(directory);
    return status;
}
