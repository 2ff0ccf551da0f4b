/* Tables of texts and of pairs, labelled lines and corpora: options, then the file. */
#include "io/data.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

static void set(bk_arena *arena, bk_value *root, const char *key, const char *value)
{
    if (bk_value_set(arena, root, key, value) != BK_OK)
        bk_fuzz_wrong("%s", bk_status_text());
}

static bk_value *text_options(bk_arena *arena, bk_fuzz_input *in, int flags)
{
    static const char *const layout[] = {"auto", "tsv", "csv", "label_first"};
    bk_value *root = bk_value_new(arena, BK_MAP, "fuzz", 0);
    bool header = flags & 4;
    set(arena, root, "layout", layout[flags & 3]);
    set(arena, root, "header", header ? "true" : "false");
    set(arena, root, "text", header ? "Source" : "2");
    set(arena, root, "label", header ? "Target" : "1");
    set(arena, root, "mail", flags & 8 ? "body" : "whole");
    set(arena, root, "deduplicate", flags & 16 ? "true" : "false");
    set(arena, root, "max_length", bk_arena_printf(arena, "%d", bk_fuzz_byte(in)));
    set(arena, root, "limit", bk_arena_printf(arena, "%d", bk_fuzz_byte(in)));
    return root;
}

static bk_value *line_options(bk_arena *arena, bk_fuzz_input *in)
{
    bk_value *root = bk_value_new(arena, BK_MAP, "fuzz", 0);
    char separator[] = {(char)(1 + bk_fuzz_byte(in) % 127), '\0'};
    set(arena, root, "separator", separator);
    set(arena, root, "max_length", bk_arena_printf(arena, "%d", bk_fuzz_byte(in)));
    set(arena, root, "test", bk_arena_printf(arena, "%.2f", bk_fuzz_byte(in) / 100.0));
    return root;
}

static bk_value *pair_options(bk_arena *arena, bk_fuzz_input *in, int flags)
{
    static const char *const layout[] = {"auto", "tsv", "csv"}, *const columns[] = {
                                                                    "label,text1,text2",
                                                                    "text2,-,label,text1",
                                                                    "label,-,-,text1,text2"};
    bk_value *root = bk_value_new(arena, BK_MAP, "fuzz", 0);
    set(arena, root, "layout", layout[(flags & 3) % 3]);
    set(arena, root, "header", flags & 4 ? "true" : "false");
    set(arena, root, "columns", columns[bk_fuzz_byte(in) % 3]);
    if ((flags & 12) == 12) {
        set(arena, root, "text1", "a");
        set(arena, root, "text2", "b");
        set(arena, root, "label", "c");
    }
    set(arena, root, "max_length", bk_arena_printf(arena, "%d", bk_fuzz_byte(in)));
    return root;
}

static bk_value *glue_options(bk_arena *arena, bk_fuzz_input *in)
{
    static const char *const layout[] = {"cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte"};
    bk_value *root = bk_value_new(arena, BK_MAP, "fuzz", 0);
    set(arena, root, "layout", layout[bk_fuzz_byte(in) % 7]);
    set(arena, root, "max_length", bk_arena_printf(arena, "%d", bk_fuzz_byte(in)));
    return root;
}

/* Bits 32 and 128 choose the kind. */
static bk_value *options_of(bk_arena *arena, bk_fuzz_input *in, int flags, const char **kind)
{
    static const char *const names[] = {"text", "lines", "pairs", "glue"};
    int choice = (flags & 128 ? 2 : 0) + (flags & 32 ? 1 : 0);
    *kind = names[choice];
    return choice == 0   ? text_options(arena, in, flags)
           : choice == 1 ? line_options(arena, in)
           : choice == 2 ? pair_options(arena, in, flags)
                         : glue_options(arena, in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bk_arena *arena = bk_arena_new("fuzz");
    bk_fuzz_input in = {data, data + size};
    int flags = bk_fuzz_byte(&in);
    const char *name;
    bk_value *root = options_of(arena, &in, flags, &name);
    const bk_data_kind *kind = bk_data_find(name);
    void *config = bk_arena_zalloc(arena, kind->config_size);
    if (!bk_fuzz_read(bk_options_read(kind->options, config, root, kind->name, arena)))
        bk_fuzz_wrong("%s", bk_status_text());
    const char *path = bk_fuzz_path(arena, flags & 64 ? "train" : "corpus");
    bk_fuzz_write(path, in.at, (size_t)(in.end - in.at));
    bk_data_args args = {
        .arena = arena, .config = config, .input = (const char *const[]){path, NULL}, .inputs = 1};
    bk_dataset d = {.path = "fuzz"};
    if (bk_fuzz_read(kind->make(&args, &d)))
        bk_fuzz_data(&d);
    bk_arena_free(arena);
    return 0;
}
