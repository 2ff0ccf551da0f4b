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

const char *bk_test_bytes(bk_arena *arena, const bk_dataset *d, int64_t i)
{
    int64_t length = d->offsets[i + 1] - d->offsets[i];
    char *text = bk_arena_zalloc(arena, (size_t)length + 1);
    for (int64_t k = 0; k < length; k++) {
        assert_in_range(d->tokens[d->offsets[i] + k], 1, 256);
        text[k] = (char)(d->tokens[d->offsets[i] + k] - 1);
    }
    return text;
}

int64_t bk_test_sample(bk_arena *arena, const bk_dataset *d, const char *bytes)
{
    for (int64_t i = 0; i < d->samples; i++)
        if (d->offsets[i + 1] - d->offsets[i] == (int64_t)strlen(bytes) &&
            strcmp(bk_test_bytes(arena, d, i), bytes) == 0)
            return i;
    return -1;
}
