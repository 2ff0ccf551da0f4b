/* io/data/images.c - IDX files (MNIST and its kin), plain or gzip, as pixels, patches or stripes.
 */
#include "io/data_common.h"

#include "core/rng.h"

#include <string.h>
#include <zlib.h>

typedef struct images_config {
    int layout, values;
    int64_t patch, limit, seed;
    double mean, sd, validation;
} images_config;

enum { PIXELS, PATCHES, STRIPES };
enum { TOKENS, REAL };

static const bk_option options[] = {
    BK_OPTION_CHOICE(images_config, layout, 0, "pixels|patches|stripes",
                     "one position a pixel, square patch or stripe of rows"),
    BK_OPTION_I64(images_config, patch, 7, 1, 4096, "side of a patch in pixels; number of stripes"),
    BK_OPTION_CHOICE(images_config, values, 0, "tokens|real",
                     "pixels: symbols (value + 1) or scaled numbers; patches are real"),
    BK_OPTION_F64(images_config, mean, 0.1307, -1e6, 1e6, "subtracted from value / 255"),
    BK_OPTION_F64_ABOVE(images_config, sd, 0.3081, 0.0, 1e6, "divides value / 255 - mean"),
    BK_OPTION_F64(images_config, validation, 5000, 0, 1e9,
                  "fraction or count held out from the training images"),
    BK_OPTION_I64(images_config, limit, 0, 0, 1LL << 40, "first images of each file only; 0 = all"),
    BK_OPTION_I64(images_config, seed, 1, 0, 1LL << 53, "of the held-out choice"),
    BK_OPTION_END,
};

/* ---- IDX ---- */

typedef struct idx {
    int64_t count, rows, cols;
    unsigned char *bytes;
} idx;

static uint32_t big_endian(const unsigned char *b)
{
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

static bk_status read_exactly(gzFile file, const char *path, int64_t at, int64_t count, void *to)
{
    for (int64_t done = 0; done < count;) {
        unsigned step = (unsigned)(count - done < (1 << 28) ? count - done : 1 << 28);
        int got = gzread(file, (char *)to + done, step);
        if (got <= 0)
            return bk_fail(BK_INPUT,
                           "the file ends at byte %lld, %lld bytes are missing (%s): get it again",
                           (long long)(at + done), (long long)(count - done), path);
        done += got;
    }
    return BK_OK;
}

/* Images have magic 0x803 and three sizes, labels 0x801 and one. */
static bk_status read_idx(bk_arena *arena, const char *path, bool images, int64_t limit, idx *out)
{
    unsigned char head[16];
    gzFile file = gzopen(path, "rb");
    if (!file)
        return bk_fail(BK_INPUT, "the file cannot be read (%s): check the path", path);
    bk_status status = read_exactly(file, path, 0, images ? 16 : 8, head);
    if (status == BK_OK && big_endian(head) != (images ? 0x803u : 0x801u))
        status = bk_fail(
            BK_INPUT,
            "not an IDX file of %s: magic 0x%08x at byte 0 (%s): check the order of the files",
            images ? "images" : "labels", big_endian(head), path);
    if (status == BK_OK) {
        *out = (idx){.count = big_endian(head + 4),
                     .rows = images ? big_endian(head + 8) : 1,
                     .cols = images ? big_endian(head + 12) : 1};
        if (out->rows <= 0 || out->cols <= 0 || out->rows > 65536 || out->cols > 65536 ||
            out->count > (1LL << 31))
            status = bk_fail(
                BK_INPUT,
                "the sizes %lld x %lld x %lld make no sense at byte 4 (%s): get the file again",
                (long long)out->count, (long long)out->rows, (long long)out->cols, path);
    }
    if (status == BK_OK) {
        out->count = limit > 0 && limit < out->count ? limit : out->count;
        int64_t bytes = out->count * out->rows * out->cols;
        out->bytes = bk_arena_alloc(arena, (size_t)bytes);
        status = read_exactly(file, path, images ? 16 : 8, bytes, out->bytes);
    }
    gzclose(file);
    return status;
}

static bk_status read_pair(const bk_data_args *a, int first, idx *images, idx *labels)
{
    const images_config *c = a->config;
    BK_TRY(read_idx(a->arena, a->input[first], true, c->limit, images));
    BK_TRY(read_idx(a->arena, a->input[first + 1], false, c->limit, labels));
    if (images->count != labels->count)
        return bk_fail(BK_INPUT,
                       "%lld images but %lld labels (%s, %s): the files do not belong together",
                       (long long)images->count, (long long)labels->count, a->input[first],
                       a->input[first + 1]);
    return BK_OK;
}

/* ---- positions ---- */

typedef struct grid {
    int64_t positions, channels, down, across, height,
        width; /* patches down and across, and their size */
} grid;

static bk_status grid_of(const images_config *c, const idx *x, grid *g)
{
    g->height = c->layout == PIXELS ? 1 : c->layout == STRIPES ? x->rows / c->patch : c->patch;
    g->width = c->layout == PIXELS ? 1 : c->layout == STRIPES ? x->cols : c->patch;
    if (g->height == 0 || x->rows % g->height != 0 || x->cols % g->width != 0)
        return bk_fail(BK_USAGE,
                       "patch=%lld does not divide images of %lld x %lld: choose a divisor",
                       (long long)c->patch, (long long)x->rows, (long long)x->cols);
    g->down = x->rows / g->height;
    g->across = x->cols / g->width;
    g->positions = g->down * g->across;
    g->channels = g->height * g->width;
    return BK_OK;
}

static void write_features(const images_config *c, const idx *x, const grid *g, float *to)
{
    for (int64_t i = 0; i < x->count; i++)
        for (int64_t p = 0; p < g->positions; p++)
            for (int64_t k = 0; k < g->channels; k++) {
                int64_t row = p / g->across * g->height + k / g->width,
                        col = p % g->across * g->width + k % g->width;
                double value = x->bytes[(i * x->rows + row) * x->cols + col] / 255.0;
                *to++ = (float)((value - c->mean) / c->sd);
            }
}

static void add_tokens(const idx *x, const idx *labels, bk_samples *s)
{
    for (int64_t i = 0; i < x->count; i++)
        bk_samples_add_bytes(s, (const char *)x->bytes + i * x->rows * x->cols, x->rows * x->cols,
                             labels->bytes[i]);
}

static int64_t count_classes(const idx *labels, int64_t classes)
{
    for (int64_t i = 0; i < labels->count; i++)
        classes = labels->bytes[i] >= classes ? labels->bytes[i] + 1 : classes;
    return classes;
}

static void add_splits(const bk_data_args *a, int64_t train, int64_t test, bk_dataset *out)
{
    const images_config *c = a->config;
    bk_split_wish wish = {.validation = c->validation, .seed = c->seed};
    bk_split_seeded(out, a->arena, NULL, train, &wish);
    int64_t *index = BK_NEW(a->arena, int64_t, test > 0 ? test : 1);
    for (int64_t i = 0; i < test; i++)
        index[i] = train + i;
    if (test > 0)
        bk_split_add(out, "test", index, test);
}

static bk_status make(const bk_data_args *a, bk_dataset *out)
{
    const images_config *c = a->config;
    idx images[2] = {{0}}, labels[2] = {{0}};
    grid g = {0};
    if (a->inputs != 2 && a->inputs != 4)
        return bk_fail(BK_USAGE,
                       "images takes IMAGES LABELS [TEST_IMAGES TEST_LABELS] (%d files given)",
                       a->inputs);
    for (int i = 0; i < a->inputs / 2; i++) {
        BK_TRY(read_pair(a, 2 * i, &images[i], &labels[i]));
        if (i > 0 && (images[1].rows != images[0].rows || images[1].cols != images[0].cols))
            return bk_fail(
                BK_INPUT,
                "training and test images differ in size (%s): the files do not belong together",
                a->input[2]);
    }
    BK_TRY(grid_of(c, &images[0], &g));
    out->task = "classification";
    out->classes = count_classes(&labels[1], count_classes(&labels[0], 0));
    bk_samples s = {.arena = a->arena};
    bool real = c->layout != PIXELS || c->values == REAL;
    int64_t total = images[0].count + images[1].count;
    for (int i = 0; i < 2 && !real; i++)
        add_tokens(&images[i], &labels[i], &s);
    if (!real) {
        bk_samples_to(&s, out);
        out->vocabulary = 257;
    } else {
        float *features = BK_NEW(a->arena, float, total *g.positions *g.channels);
        int32_t *all = BK_NEW(a->arena, int32_t, total);
        for (int i = 0; i < 2; i++)
            write_features(c, &images[i], &g,
                           features + (i ? images[0].count * g.positions * g.channels : 0));
        for (int64_t i = 0; i < total; i++)
            all[i] =
                i < images[0].count ? labels[0].bytes[i] : labels[1].bytes[i - images[0].count];
        out->samples = total;
        out->features = features;
        out->labels = all;
        out->positions = out->max_length = g.positions;
        out->channels = g.channels;
    }
    add_splits(a, images[0].count, images[1].count, out);
    return BK_OK;
}

const bk_data_kind bk_data_images = {
    .name = "images",
    .summary = "images and labels in IDX, plain or gzip",
    .source = "MNIST's format",
    .usage = "IMAGES LABELS [TEST_IMAGES TEST_LABELS]",
    .options = options,
    .config_size = sizeof(images_config),
    .make = make,
};
