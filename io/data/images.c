/* io/data/images.c - IDX files (MNIST and its kin), plain or gzip, as pixels, patches or stripes.
 */
#include "io/data_common.h"

#include "io/files.h"

#include <errno.h>
#include <string.h>
#include <zlib.h>

typedef struct images_config {
    int layout, values;
    int64_t patch, classes, limit, seed;
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
    BK_OPTION_F64(images_config, validation, 1.0 / 12, 0, 1e9,
                  "fraction or count held out from training; 1/12: 5,000 of MNIST's 60,000"),
    BK_OPTION_I64(images_config, classes, 0, 0, 256,
                  "labels lie below this; 0 = the greatest label + 1"),
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

/* A file being read; bytes count after decompression. */
typedef struct stream {
    gzFile file;
    const char *path;
    int64_t at;
} stream;

static bk_status broken(const stream *s)
{
    return bk_fail(BK_INPUT, "the gzip data are damaged at byte %lld (%s): get the file again",
                   (long long)s->at, s->path);
}

static bk_status read_exactly(stream *s, int64_t count, unsigned char *to)
{
    for (int64_t done = 0; done < count;) {
        unsigned step = (unsigned)(count - done < (1 << 28) ? count - done : 1 << 28);
        int code, got = gzread(s->file, to + done, step);
        gzerror(s->file, &code);
        if (got < 0 && code != Z_BUF_ERROR)
            return broken(s);
        if (got <= 0)
            return bk_fail(BK_INPUT,
                           "the file ends at byte %lld, %lld bytes are missing (%s): get it again",
                           (long long)s->at, (long long)(count - done), s->path);
        done += got;
        s->at += got;
    }
    return BK_OK;
}

/* Behind the last byte: reading on checks the checksum of gzip. */
static bk_status expect_end(stream *s)
{
    unsigned char byte;
    int code, got = gzread(s->file, &byte, 1);
    gzerror(s->file, &code);
    if (got == 0 && code == Z_OK)
        return BK_OK;
    return got <= 0 ? broken(s)
                    : bk_fail(BK_INPUT,
                              "the file goes on behind its last record, at byte %lld (%s): get it "
                              "again",
                              (long long)s->at, s->path);
}

/* Images have magic 0x803 and three sizes, labels 0x801 and one. */
static bk_status read_header(stream *s, bool images, idx *out)
{
    unsigned char head[16];
    BK_TRY(read_exactly(s, images ? 16 : 8, head));
    if (big_endian(head) != (images ? 0x803u : 0x801u))
        return bk_fail(BK_INPUT,
                       "not an IDX file of %s: magic 0x%08x at byte 0, not 0x%08x (%s): check the "
                       "order of the files",
                       images ? "images" : "labels", big_endian(head), images ? 0x803u : 0x801u,
                       s->path);
    *out = (idx){.count = big_endian(head + 4),
                 .rows = images ? big_endian(head + 8) : 1,
                 .cols = images ? big_endian(head + 12) : 1};
    if (out->count > 0 && out->rows > 0 && out->cols > 0 && out->rows <= 65536 &&
        out->cols <= 65536)
        return BK_OK;
    return bk_fail(BK_INPUT,
                   "the sizes %lld x %lld x %lld make no sense at byte 4 (%s): get the file again",
                   (long long)out->count, (long long)out->rows, (long long)out->cols, s->path);
}

/* A header must not make us allocate more than the file can hold: deflate's greatest ratio is 1032.
 */
static bk_status check_size(const stream *s, const idx *x)
{
    int64_t most = bk_file_size(s->path) * (gzdirect(s->file) ? 1 : 1032);
    if ((double)x->count * (double)x->rows * (double)x->cols <= (double)most)
        return BK_OK;
    return bk_fail(BK_INPUT,
                   "the header promises %lld x %lld x %lld bytes, at least %.0f bytes are missing "
                   "(%s): get the file again",
                   (long long)x->count, (long long)x->rows, (long long)x->cols,
                   (double)x->count * (double)x->rows * (double)x->cols - (double)most +
                       (double)s->at,
                   s->path);
}

static bk_status read_records(bk_arena *arena, stream *s, bool images, int64_t limit, idx *out)
{
    BK_TRY(read_header(s, images, out));
    bool all = limit == 0 || limit >= out->count;
    out->count = all ? out->count : limit;
    BK_TRY(check_size(s, out));
    int64_t bytes = out->count * out->rows * out->cols;
    out->bytes = bk_arena_alloc(arena, (size_t)bytes);
    BK_TRY(read_exactly(s, bytes, out->bytes));
    return all ? expect_end(s) : BK_OK;
}

static bk_status read_idx(bk_arena *arena, const char *path, bool images, int64_t limit, idx *out)
{
    stream s = {.path = path};
    if (bk_file_size(path) < 0)
        return bk_fail(BK_INPUT, "the file cannot be read (%s): %s", path,
                       bk_is_directory(path) ? "it is a directory, name a file" : "check the path");
    s.file = gzopen(path, "rb");
    if (!s.file)
        return bk_fail(BK_INPUT, "the file cannot be read (%s): %s", path, strerror(errno));
    bk_status status = read_records(arena, &s, images, limit, out);
    gzclose(s.file);
    return status;
}

static bk_status check_labels(const images_config *c, const idx *labels, const char *path)
{
    for (int64_t i = 0; c->classes > 0 && i < labels->count; i++)
        if (labels->bytes[i] >= c->classes)
            return bk_fail(
                BK_INPUT,
                "label %d is not in 0..%lld (%s: record %lld, byte %lld): check classes= "
                "and the file",
                labels->bytes[i], (long long)c->classes - 1, path, (long long)i, (long long)i + 8);
    return BK_OK;
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
    return check_labels(c, labels, a->input[first + 1]);
}

/* ---- positions ---- */

typedef struct grid {
    int64_t positions, channels, down, across, height,
        width; /* patches down and across, and their size */
} grid;

static bk_status grid_of(const images_config *c, const idx *x, grid *g)
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

static void fill_tokens(bk_arena *arena, const idx images[2], const idx labels[2], bk_dataset *out)
{
    bk_samples s = {.arena = arena};
    for (int i = 0; i < 2; i++)
        add_tokens(&images[i], &labels[i], &s);
    bk_samples_to(&s, out);
    out->vocabulary = 257;
}

static void fill_features(const bk_data_args *a, const grid *g, const idx images[2],
                          const idx labels[2], bk_dataset *out)
{
    int64_t total = images[0].count + images[1].count, width = g->positions * g->channels;
    float *features = BK_NEW(a->arena, float, total *width);
    int32_t *all = BK_NEW(a->arena, int32_t, total);
    for (int i = 0; i < 2; i++)
        write_features(a->config, &images[i], g, features + (i ? images[0].count * width : 0));
    for (int64_t i = 0; i < total; i++)
        all[i] = i < images[0].count ? labels[0].bytes[i] : labels[1].bytes[i - images[0].count];
    out->samples = total;
    out->features = features;
    out->labels = all;
    out->positions = out->max_length = g->positions;
    out->channels = g->channels;
}

static int64_t count_classes(const images_config *c, const idx labels[2])
{
    int64_t classes = c->classes;
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; i < labels[k].count; i++)
            classes = labels[k].bytes[i] >= classes ? labels[k].bytes[i] + 1 : classes;
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

static bk_status read_all(const bk_data_args *a, idx images[2], idx labels[2])
{
    if (a->inputs != 2 && a->inputs != 4)
        return bk_fail(BK_USAGE,
                       "images takes IMAGES LABELS [TEST_IMAGES TEST_LABELS] (%d files given)",
                       a->inputs);
    for (int i = 0; i < a->inputs / 2; i++)
        BK_TRY(read_pair(a, 2 * i, &images[i], &labels[i]));
    if (a->inputs == 4 && (images[1].rows != images[0].rows || images[1].cols != images[0].cols))
        return bk_fail(BK_INPUT,
                       "training images are %lld x %lld, test images %lld x %lld (%s): the files "
                       "do not belong together",
                       (long long)images[0].rows, (long long)images[0].cols,
                       (long long)images[1].rows, (long long)images[1].cols, a->input[2]);
    return BK_OK;
}

static bk_status make(const bk_data_args *a, bk_dataset *out)
{
    const images_config *c = a->config;
    idx images[2] = {{0}}, labels[2] = {{0}};
    grid g = {0};
    BK_TRY(read_all(a, images, labels));
    BK_TRY(grid_of(c, &images[0], &g));
    out->task = "classification";
    out->classes = count_classes(c, labels);
    if (c->layout == PIXELS && c->values == TOKENS)
        fill_tokens(a->arena, images, labels, out);
    else
        fill_features(a, &g, images, labels, out);
    return add_splits(a, images[0].count, images[1].count, out);
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
