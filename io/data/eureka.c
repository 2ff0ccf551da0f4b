/* io/data/eureka.c - a 2 x 2 grid of images that hides which of two counts (the Eureka task of Born
 * et al. 2025): digits upper left and lower right, clothes upper right and lower left.  The class
 * is that of the upper right one if the two digits are equal, else of the lower left one.
 *
 * 56 x 56 pixels in three equal channels, in 4 x 2 patches of 14 x 28: /features[samples,8,1176].
 * Every second sample of a split has equal digits. */
#include "io/data_common.h"

#include "core/rng.h"
#include "io/glyphs.h"

enum { SIDE = 28, PATCH_ROWS = 14, CHANNELS = 3, POSITIONS = 8 };
enum { WIDTH = PATCH_ROWS * SIDE * CHANNELS, CLASSES = 256 };

typedef struct eureka_config {
    int64_t train, validation, test, seed;
    double mean, sd;
} eureka_config;

static const bk_option options[] = {
    BK_OPTION_I64(eureka_config, train, 60000, 1, 1 << 24,
                  "samples to train on; every rank of a training holds the whole data set in "
                  "memory, 37.6 kB a sample: 2.8 GB at the defaults, less with fewer here and in "
                  "test"),
    BK_OPTION_I64(eureka_config, validation, 5000, 0, 1 << 24,
                  "samples to validate on, of the last twelfth of the training images"),
    BK_OPTION_I64(eureka_config, test, 10000, 0, 1 << 24, "samples to test on"),
    BK_OPTION_F64(eureka_config, mean, 0.5, -1e6, 1e6, "subtracted from value / 255"),
    BK_OPTION_F64_ABOVE(eureka_config, sd, 0.5, 0.0, 1e6, "divides value / 255 - mean"),
    BK_OPTION_I64(eureka_config, seed, 1, 0, 1LL << 53, "of what meets what, and of glyphs"),
    BK_OPTION_END,
};

/* ---- images by class ---- */

/* A range of images, sorted by class. */
typedef struct pool {
    const bk_images *images;
    int64_t *image; /* those of class c: image[start[c]] .. image[start[c+1]-1] */
    int64_t start[CLASSES + 1], count;
} pool;

static pool pool_of(bk_arena *arena, const bk_images *x, int64_t first, int64_t last)
{
    pool p = {.images = x, .image = BK_NEW(arena, int64_t, last - first), .count = last - first};
    int64_t at[CLASSES];
    for (int64_t i = first; i < last; i++)
        p.start[x->label[i] + 1]++;
    for (int c = 0; c < CLASSES; c++) {
        p.start[c + 1] += p.start[c];
        at[c] = p.start[c];
    }
    for (int64_t i = first; i < last; i++)
        p.image[at[x->label[i]]++] = i;
    return p;
}

static int64_t below(uint64_t word, int64_t count)
{
    return (int64_t)(bk_unit(word) * (double)count);
}

static int64_t any_of(const pool *p, uint64_t word)
{
    return p->image[below(word, p->count)];
}

static int64_t of_class(const pool *p, int c, uint64_t word)
{
    return p->image[p->start[c] + below(word, p->start[c + 1] - p->start[c])];
}

static int64_t of_other_class(const pool *p, int c, uint64_t word)
{
    int64_t own = p->start[c + 1] - p->start[c], at = below(word, p->count - own);
    return p->image[at < p->start[c] ? at : at + own];
}

/* ---- scenes ---- */

enum { TRAIN, VALIDATION, TEST, PARTS };

typedef struct part {
    pool digits, clothes;
    int64_t first, count; /* samples */
} part;

typedef struct maker {
    const eureka_config *config;
    bk_images digits[2], clothes[2]; /* to train and validate on; to test on */
    part part[PARTS];
} maker;

/* The images of the four places, row by row, and the class. */
typedef struct scene {
    const unsigned char *pixel[4];
    int label;
} scene;

static const unsigned char *pixels(const pool *p, int64_t image)
{
    return p->images->pixel + image * SIDE * SIDE;
}

static scene scene_of(const maker *m, int64_t sample)
{
    int k = sample < m->part[VALIDATION].first ? TRAIN
            : sample < m->part[TEST].first     ? VALIDATION
                                               : TEST;
    const part *p = &m->part[k];
    int64_t place = sample - p->first;
    bool equal = place % 2 == 0;
    uint64_t w[4];
    bk_philox(bk_philox_for((uint64_t)m->config->seed, 2 + k, BK_USE_DATA), 0, (uint64_t)place, 0,
              w);
    int64_t one = any_of(&p->digits, w[0]), class = p->digits.images->label[one];
    int64_t other = equal ? of_class(&p->digits, (int)class, w[1])
                          : of_other_class(&p->digits, (int)class, w[1]);
    int64_t right = any_of(&p->clothes, w[2]), left = any_of(&p->clothes, w[3]);
    return (scene){.pixel = {pixels(&p->digits, one), pixels(&p->clothes, right),
                             pixels(&p->clothes, left), pixels(&p->digits, other)},
                   .label = p->clothes.images->label[equal ? right : left]};
}

/* Half an image is a patch. */
static void draw_patch(const eureka_config *c, const unsigned char *pixel, float *to)
{
    for (int i = 0; i < PATCH_ROWS * SIDE; i++)
        for (int k = 0; k < CHANNELS; k++)
            *to++ = (float)((pixel[i] / 255.0 - c->mean) / c->sd);
}

static void draw(const void *context, int64_t first, int64_t count, float *features)
{
    const maker *m = context;
    for (int64_t i = 0; i < count; i++) {
        scene s = scene_of(m, first + i);
        for (int p = 0; p < POSITIONS; p++)
            draw_patch(m->config, s.pixel[p / 4 * 2 + p % 2] + p / 2 % 2 * PATCH_ROWS * SIDE,
                       features + (i * POSITIONS + p) * WIDTH);
    }
}

/* ---- where images come from ---- */

enum { GLYPHS = 6000, TEST_GLYPHS = 1000 };

static bk_status read_pairs(const bk_data_args *a, int first, bk_images x[2])
{
    for (int i = 0; i < 2; i++) {
        const char *const *file = a->input + first + 2 * i;
        BK_TRY(bk_images_read(a->arena, file[0], file[1], 0, 0, &x[i]));
        if (x[i].rows != SIDE || x[i].cols != SIDE)
            return bk_fail(BK_INPUT,
                           "the images are %lld x %lld, not 28 x 28 (%s): use MNIST's format",
                           (long long)x[i].rows, (long long)x[i].cols, file[0]);
    }
    return BK_OK;
}

static bk_status get_images(const bk_data_args *a, int first, bk_glyph_family family,
                            bk_images x[2])
{
    const eureka_config *c = a->config;
    if (a->inputs > first)
        return read_pairs(a, first, x);
    bk_glyphs_draw(a->arena, family, c->seed, 0, GLYPHS, &x[0]);
    bk_glyphs_draw(a->arena, family, c->seed, GLYPHS, TEST_GLYPHS, &x[1]);
    return BK_OK;
}

/* The images of a part: those to train on end where those to validate on begin. */
static bk_status fill_part(const bk_data_args *a, maker *m, int k)
{
    static const char *const name[PARTS] = {"train", "validation", "test"};
    const eureka_config *c = a->config;
    part *p = &m->part[k];
    pool *pools[2] = {&p->digits, &p->clothes};
    const bk_images *images[2] = {&m->digits[k == TEST], &m->clothes[k == TEST]};
    for (int i = 0; i < 2; i++) {
        int64_t all = images[i]->count, held = c->validation > 0 ? all / 12 : 0;
        *pools[i] = pool_of(a->arena, images[i], k == VALIDATION ? all - held : 0,
                            k == TRAIN ? all - held : all);
        if (p->count > 0 && pools[i]->count == 0)
            return bk_fail(BK_INPUT, "there are no images left for %s (%lld in the file): set %s=0",
                           name[k], (long long)all, name[k]);
    }
    if (p->count > 0 &&
        p->digits.start[images[0]->label[p->digits.image[0]] + 1] == p->digits.count)
        return bk_fail(BK_INPUT, "all digits of %s are of one class: unequal ones need a second",
                       name[k]);
    return BK_OK;
}

static bk_status fill_parts(const bk_data_args *a, maker *m)
{
    const eureka_config *c = a->config;
    const int64_t count[PARTS] = {c->train, c->validation, c->test};
    int64_t first = 0;
    for (int k = 0; k < PARTS; k++) {
        m->part[k].first = first;
        m->part[k].count = count[k];
        BK_TRY(fill_part(a, m, k));
        first += count[k];
    }
    return BK_OK;
}

/* ---- the data set ---- */

static void add_split(bk_arena *arena, bk_dataset *out, const char *name, const part *p)
{
    int64_t *index = BK_NEW(arena, int64_t, p->count);
    for (int64_t i = 0; i < p->count; i++)
        index[i] = p->first + i;
    if (p->count > 0)
        bk_split_add(out, name, index, p->count);
}

static void describe(const bk_data_args *a, bk_dataset *out)
{
    out->note = bk_arena_printf(a->arena, "digits: %s; clothes: %s",
                                a->inputs > 0 ? "the files given" : "stroke glyphs",
                                a->inputs > 4 ? "the files given" : "stroke glyphs");
    out->source =
        bk_arena_printf(a->arena, "%s (%s)", out->source ? out->source : "eureka", out->note);
}

static bk_status make(const bk_data_args *a, bk_dataset *out)
{
    maker *m = BK_ZNEW(a->arena, maker, 1);
    m->config = a->config;
    if (a->inputs != 0 && a->inputs != 4 && a->inputs != 8)
        return bk_fail(BK_USAGE,
                       "eureka takes no files, 4 of digits, or these and 4 of clothes (%d given)",
                       a->inputs);
    BK_TRY(get_images(a, 0, BK_GLYPH_DIGITS, m->digits));
    BK_TRY(get_images(a, 4, BK_GLYPH_CLOTHES, m->clothes));
    BK_TRY(fill_parts(a, m));
    out->samples = m->part[TEST].first + m->part[TEST].count;
    int32_t *labels = BK_NEW(a->arena, int32_t, out->samples);
    for (int64_t i = 0; i < out->samples; i++) {
        labels[i] = scene_of(m, i).label;
        out->classes = labels[i] >= out->classes ? labels[i] + 1 : out->classes;
    }
    out->task = "classification";
    out->labels = labels;
    out->positions = out->max_length = POSITIONS;
    out->channels = WIDTH;
    out->draw = draw;
    out->draw_context = m;
    add_split(a->arena, out, "train", &m->part[TRAIN]);
    add_split(a->arena, out, "validation", &m->part[VALIDATION]);
    add_split(a->arena, out, "test", &m->part[TEST]);
    describe(a, out);
    return BK_OK;
}

const bk_data_kind bk_data_eureka = {
    .name = "eureka",
    .summary =
        "which of two pieces of clothing counts: two digits beside them say so by being equal",
    .source = "Born et al. 2025",
    .usage = "[DIGITS LABELS TEST_DIGITS TEST_LABELS [CLOTHES LABELS TEST_CLOTHES TEST_LABELS]]",
    .options = options,
    .config_size = sizeof(eureka_config),
    .make = make,
};
