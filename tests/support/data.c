#include "tests/support/data.h"

#include "tests/support/check.h"

#include <string.h>

bk_status bk_test_make(bk_arena *arena, const char *kind, const char *const *inputs,
                       const char *const *options, bk_dataset *out)
{
    const bk_data_kind *k = bk_data_find(kind);
    assert_non_null(k);
    bk_value *root = bk_value_new(arena, BK_MAP, "test", 0);
    for (; *options; options++) {
        const char *equals = strchr(*options, '=');
        char *key = bk_arena_strdup(arena, *options);
        key[equals - *options] = '\0';
        assert_int_equal(bk_value_set(arena, root, key, equals + 1), BK_OK);
    }
    void *config = bk_arena_zalloc(arena, k->config_size + 1);
    BK_TRY(bk_options_read(k->options, config, root, kind, arena));
    assert_int_equal(
        bk_options_unknown(root, kind, (const bk_option *const[]){k->options, NULL}, NULL), BK_OK);
    if (k->check)
        BK_TRY(k->check(config));
    bk_data_args args = {.input = inputs, .config = config, .arena = arena};
    while (inputs[args.inputs])
        args.inputs++;
    *out = (bk_dataset){.path = "test"};
    return k->make(&args, out);
}

void bk_test_refused(const char *kind, const char *const *inputs, const char *const *options,
                     bk_status status, const char *const *texts)
{
    bk_arena *arena = bk_arena_new("refused");
    bk_dataset d;
    bk_status found = bk_test_make(arena, kind, inputs, options, &d);
    if (found != status)
        fail_msg("%s %s: status %d, not %d (%s)", kind, inputs[0] ? inputs[0] : "", found, status,
                 found ? bk_status_text() : "it was read");
    for (; *texts; texts++)
        if (!strstr(bk_status_text(), *texts))
            fail_msg("no '%s' in: %s", *texts, bk_status_text());
    assert_null(strchr(bk_status_text(), '\n'));
    bk_arena_free(arena);
}

const bk_split *bk_test_split(const bk_dataset *d, const char *name)
{
    for (int i = 0; i < d->splits; i++)
        if (strcmp(d->split[i].name, name) == 0)
            return &d->split[i];
    fail_msg("no split %s", name);
    return NULL;
}

static const char *bytes_of(bk_arena *arena, const int32_t *tokens, const int64_t *offsets,
                            int64_t i)
{
    int64_t length = offsets[i + 1] - offsets[i];
    char *text = bk_arena_zalloc(arena, (size_t)length + 1);
    for (int64_t k = 0; k < length; k++) {
        assert_in_range(tokens[offsets[i] + k], 1, 256);
        text[k] = (char)(tokens[offsets[i] + k] - 1);
    }
    return text;
}

const char *bk_test_bytes(bk_arena *arena, const bk_dataset *d, int64_t i)
{
    return bytes_of(arena, d->tokens, d->offsets, i);
}

const char *bk_test_bytes2(bk_arena *arena, const bk_dataset *d, int64_t i)
{
    return bytes_of(arena, d->tokens2, d->offsets2, i);
}

int64_t bk_test_sample(bk_arena *arena, const bk_dataset *d, const char *bytes)
{
    for (int64_t i = 0; i < d->samples; i++)
        if (d->offsets[i + 1] - d->offsets[i] == (int64_t)strlen(bytes) &&
            strcmp(bk_test_bytes(arena, d, i), bytes) == 0)
            return i;
    return -1;
}

static bool same_bytes(const void *a, const void *b, int64_t count, size_t size)
{
    return !a == !b && (!a || memcmp(a, b, (size_t)count * size) == 0);
}

static bool same_split(const bk_split *a, const bk_split *b)
{
    return a->count == b->count && same_bytes(a->index, b->index, a->count, sizeof *a->index) &&
           memcmp(&a->majority, &b->majority, sizeof a->majority) == 0 &&
           a->ladder_count == b->ladder_count &&
           same_bytes(a->ladder, b->ladder, a->ladder_count, sizeof *a->ladder);
}

bool bk_test_same_data(const bk_dataset *a, const bk_dataset *b)
{
    bool equal = a->samples == b->samples && a->classes == b->classes &&
                 a->vocabulary == b->vocabulary && a->splits == b->splits &&
                 a->max_length == b->max_length && strcmp(a->task, b->task) == 0 &&
                 strcmp(a->digest, b->digest) == 0 && strcmp(a->source, b->source) == 0 &&
                 same_bytes(a->labels, b->labels, a->samples, sizeof *a->labels) &&
                 same_bytes(a->offsets, b->offsets, a->samples + 1, sizeof *a->offsets);
    if (equal && a->tokens)
        equal = same_bytes(a->tokens, b->tokens, a->offsets[a->samples], sizeof *a->tokens);
    if (equal && a->tokens2)
        equal = same_bytes(a->offsets2, b->offsets2, a->samples + 1, sizeof *a->offsets2) &&
                same_bytes(a->tokens2, b->tokens2, a->offsets2[a->samples], sizeof *a->tokens2);
    equal = equal && !a->tokens2 == !b->tokens2 &&
            strcmp(a->metric ? a->metric : "", b->metric ? b->metric : "") == 0 &&
            strcmp(a->vocabulary_digest, b->vocabulary_digest) == 0 &&
            a->subword_bytes == b->subword_bytes &&
            same_bytes(a->subwords, b->subwords, a->subword_bytes, 1);
    if (equal && a->features)
        equal = a->positions == b->positions && a->channels == b->channels &&
                same_bytes(a->features, b->features, a->samples * a->positions * a->channels,
                           sizeof *a->features);
    for (int i = 0; equal && i < a->splits; i++)
        equal = same_split(bk_test_split(a, a->split[i].name), bk_test_split(b, a->split[i].name));
    return equal;
}
