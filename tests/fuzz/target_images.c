/* IDX files, plain or gzip: options, the length of the images' file, then images and labels. */
#include "io/data.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>
#include <zlib.h>

/* Flags of the first byte. */
enum { LAYOUT = 3, REAL = 4, COMPRESS = 8, TWICE = 16 };

static void write_file(const char *path, const uint8_t *data, size_t size, bool compress)
{
    if (!compress) {
        bk_fuzz_write(path, data, size);
        return;
    }
    gzFile file = gzopen(path, "wb1");
    if (!file || (size > 0 && gzwrite(file, data, (unsigned)size) != (int)size) ||
        gzclose(file) != Z_OK)
        bk_fuzz_wrong("%s cannot be written", path);
}

static void *options_of(bk_arena *arena, const bk_data_kind *kind, bk_fuzz_input *in, int flags)
{
    static const char *const layout[] = {"pixels", "patches", "stripes", "pixels"};
    bk_value *root = bk_value_new(arena, BK_MAP, "fuzz", 0);
    const char *const pair[][2] = {
        {"layout", layout[flags & LAYOUT]},
        {"values", flags & REAL ? "real" : "tokens"},
        {"patch", bk_arena_printf(arena, "%d", 1 + bk_fuzz_byte(in) % 16)},
        {"classes", bk_arena_printf(arena, "%d", bk_fuzz_byte(in) % 16)},
        {"limit", bk_arena_printf(arena, "%d", bk_fuzz_byte(in) % 8)},
        {"validation", bk_arena_printf(arena, "%.2f", bk_fuzz_byte(in) / 100.0)}};
    void *config = bk_arena_zalloc(arena, kind->config_size);
    for (size_t i = 0; i < sizeof pair / sizeof *pair; i++)
        if (bk_value_set(arena, root, pair[i][0], pair[i][1]) != BK_OK)
            bk_fuzz_wrong("%s", bk_status_text());
    if (!bk_fuzz_read(bk_options_read(kind->options, config, root, "images", arena)))
        bk_fuzz_wrong("%s", bk_status_text());
    return config;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bk_arena *arena = bk_arena_new("fuzz");
    const bk_data_kind *kind = bk_data_find("images");
    bk_fuzz_input in = {data, data + size};
    int flags = bk_fuzz_byte(&in);
    bk_data_args args = {.arena = arena, .config = options_of(arena, kind, &in, flags)};
    size_t first = bk_fuzz_byte(&in) + 256u * bk_fuzz_byte(&in), rest = (size_t)(in.end - in.at);
    first = first < rest ? first : rest;
    const char *images = bk_fuzz_path(arena, "images"), *labels = bk_fuzz_path(arena, "labels");
    write_file(images, in.at, first, flags & COMPRESS);
    write_file(labels, in.at + first, rest - first, flags & COMPRESS);
    args.input = (const char *const[]){images, labels, images, labels, NULL};
    args.inputs = flags & TWICE ? 4 : 2;
    bk_dataset d = {.path = "fuzz"};
    if (bk_fuzz_read(kind->make(&args, &d)))
        bk_fuzz_data(&d);
    bk_arena_free(arena);
    return 0;
}
