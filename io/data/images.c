/* io/data/images.c - IDX files (MNIST and its kin), plain or gzip, or glyphs without files, as
 * pixels, patches or stripes. */
#include "io/corrupt.h"
#include "io/glyphs.h"

typedef struct images_config {
    int layout, values;
    bool glyphs;
    int64_t patch, classes, limit, train, test, seed;
    double mean, sd, validation, blur, noise;
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
    BK_OPTION_F64(images_config, validation, 1.0 / 12, 0, 1e9,
                  "fraction or count held out from training; 1/12: 5,000 of MNIST's 60,000"),
    BK_OPTION_I64(images_config, classes, 0, 0, 256,
                  "labels lie below this; 0 = the greatest label + 1"),
    BK_OPTION_I64(images_config, limit, 0, 0, 1LL << 40, "first images of each file only; 0 = all"),
    BK_OPTION_BOOL(
        images_config, glyphs, false,
        "no files: digits of 28 x 28 drawn with strokes, turned, scaled, sheared, noisy"),
    BK_OPTION_I64(images_config, train, 0, 0, 1 << 24,
                  "glyphs to train and validate on; 0 = 12000"),
    BK_OPTION_I64(images_config, test, 0, 0, 1 << 24, "glyphs to test on; 0 = a sixth of train"),
    BK_OPTION_F64(images_config, blur, 0.0, 0.0, 100.0,
                  "standard deviation of a Gaussian blur, in pixels (a set to evaluate on)"),
    BK_OPTION_F64(images_config, noise, 0.0, 0.0, 10.0,
                  "standard deviation of normal noise, 1 = black to white; after the blur"),
    BK_OPTION_I64(images_config, seed, 1, 0, 1LL << 53,
                  "of the held-out choice, of glyphs and of noise"),
    BK_OPTION_END,
};

/* ---- positions ---- */

typedef struct grid {
    int64_t positions, channels, down, across, height,
        width; /* patches down and across, and their size */
} grid;

static bk_status grid_of(const images_config *c, const bk_images *x, grid *g)
{
    bool stripes = c->layout == STRIPES;
    int64_t side = c->layout == PIXELS ? 1 : c->patch;
    g->height = stripes ? x->rows / side : side;
    g->width = stripes ? x->cols : side;
    g->down = stripes ? side : x->rows / side;
    g->across = x->cols / g->width;
    if (g->height * g->down != x->rows || g->width * g->across != x->cols)
        return bk_fail(BK_USAGE,
                       "patch=%lld does not divide images of %lld x %lld: choose a divisor",
                       (long long)c->patch, (long long)x->rows, (long long)x->cols);
    g->positions = g->down * g->across;
    g->channels = g->height * g->width;
    return BK_OK;
}

static void write_features(const images_config *c, const bk_images *x, const grid *g, float *to)
{
    for (int64_t i = 0; i < x->count; i++)
        for (int64_t p = 0; p < g->positions; p++)
            for (int64_t k = 0; k < g->channels; k++) {
                int64_t row = p / g->across * g->height + k / g->width,
                        col = p % g->across * g->width + k % g->width;
                double value = x->pixel[(i * x->rows + row) * x->cols + col] / 255.0;
                *to++ = (float)((value - c->mean) / c->sd);
            }
}

static void add_tokens(const bk_images *x, bk_samples *s)
{
    for (int64_t i = 0; i < x->count; i++)
        bk_samples_add_bytes(s, (const char *)x->pixel + i * x->rows * x->cols, x->rows * x->cols,
                             x->label[i]);
}

static void fill_tokens(bk_arena *arena, const bk_images images[2], bk_dataset *out)
{
    bk_samples s = {.arena = arena};
    for (int i = 0; i < 2; i++)
        add_tokens(&images[i], &s);
    bk_samples_to(&s, out);
    out->vocabulary = 257;
}

static void fill_features(const bk_data_args *a, const grid *g, const bk_images images[2],
                          bk_dataset *out)
{
    int64_t total = images[0].count + images[1].count, width = g->positions * g->channels;
    float *features = BK_NEW(a->arena, float, total *width);
    int32_t *all = BK_NEW(a->arena, int32_t, total);
    for (int i = 0; i < 2; i++)
        write_features(a->config, &images[i], g, features + (i ? images[0].count * width : 0));
    for (int64_t i = 0; i < total; i++)
        all[i] = i < images[0].count ? images[0].label[i] : images[1].label[i - images[0].count];
    out->samples = total;
    out->features = features;
    out->labels = all;
    out->positions = out->max_length = g->positions;
    out->channels = g->channels;
}

static int64_t count_classes(const images_config *c, const bk_images images[2])
{
    int64_t classes = c->classes;
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; i < images[k].count; i++)
            classes = images[k].label[i] >= classes ? images[k].label[i] + 1 : classes;
    return classes;
}

static bk_status add_splits(const bk_data_args *a, int64_t train, int64_t test, bk_dataset *out)
{
    const images_config *c = a->config;
    const bk_split_wish wish = {.validation = c->validation, .seed = c->seed};
    BK_TRY(bk_split_seeded(out, a->arena, NULL, train, &wish));
    int64_t *index = BK_NEW(a->arena, int64_t, test);
    for (int64_t i = 0; i < test; i++)
        index[i] = train + i;
    if (test > 0)
        bk_split_add(out, "test", index, test);
    return BK_OK;
}

/* ---- where images come from ---- */

static bk_status check(const void *config)
{
    const images_config *c = config;
    if (!c->glyphs && c->train + c->test > 0)
        return bk_fail(BK_USAGE, "train and test count glyphs: add glyphs=true, or use limit=");
    if (c->glyphs && c->limit > 0)
        return bk_fail(BK_USAGE, "limit is for files: say train= and test= for glyphs");
    if (c->glyphs && c->classes > 0 && c->classes < BK_GLYPH_CLASSES)
        return bk_fail(BK_USAGE, "glyphs have %d classes, not classes=%lld: leave it out",
                       BK_GLYPH_CLASSES, (long long)c->classes);
    return BK_OK;
}

static bk_status draw_all(const bk_data_args *a, bk_images images[2])
{
    const images_config *c = a->config;
    int64_t train = c->train ? c->train : 12000, test = c->test ? c->test : train / 6;
    if (a->inputs > 0)
        return bk_fail(BK_USAGE, "glyphs=true reads no files (%s given): leave them out",
                       a->input[0]);
    bk_glyphs_draw(a->arena, BK_GLYPH_DIGITS, c->seed, 0, train, &images[0]);
    bk_glyphs_draw(a->arena, BK_GLYPH_DIGITS, c->seed, train, test, &images[1]);
    return BK_OK;
}

static bk_status read_all(const bk_data_args *a, bk_images images[2])
{
    const images_config *c = a->config;
    if (a->inputs != 2 && a->inputs != 4)
        return bk_fail(BK_USAGE,
                       "images takes IMAGES LABELS [TEST_IMAGES TEST_LABELS] (%d files given), or "
                       "none with glyphs=true",
                       a->inputs);
    for (int i = 0; i < a->inputs / 2; i++)
        BK_TRY(bk_images_read(a->arena, a->input[2 * i], a->input[2 * i + 1], c->limit, c->classes,
                              &images[i]));
    if (a->inputs == 4 && (images[1].rows != images[0].rows || images[1].cols != images[0].cols))
        return bk_fail(BK_INPUT,
                       "training images are %lld x %lld, test images %lld x %lld (%s): the files "
                       "do not belong together",
                       (long long)images[0].rows, (long long)images[0].cols,
                       (long long)images[1].rows, (long long)images[1].cols, a->input[2]);
    return BK_OK;
}

static void corrupt(const images_config *c, bk_images images[2])
{
    for (int i = 0; i < 2; i++) {
        bk_images_blur(c->blur, &images[i]);
        bk_images_noise((uint64_t)c->seed, c->noise, i ? images[0].count : 0, &images[i]);
    }
}

static bk_status make(const bk_data_args *a, bk_dataset *out)
{
    const images_config *c = a->config;
    bk_images images[2] = {{0}};
    grid g = {0};
    BK_TRY(c->glyphs ? draw_all(a, images) : read_all(a, images));
    BK_TRY(grid_of(c, &images[0], &g));
    corrupt(c, images);
    out->task = "classification";
    out->classes = count_classes(c, images);
    if (c->layout == PIXELS && c->values == TOKENS)
        fill_tokens(a->arena, images, out);
    else
        fill_features(a, &g, images, out);
    return add_splits(a, images[0].count, images[1].count, out);
}

const bk_data_kind bk_data_images = {
    .name = "images",
    .summary = "images and labels in IDX, plain or gzip; or synthetic digits without files",
    .source = "MNIST's format",
    .usage = "[IMAGES LABELS [TEST_IMAGES TEST_LABELS]]",
    .options = options,
    .config_size = sizeof(images_config),
    .check = check,
    .make = make,
};
