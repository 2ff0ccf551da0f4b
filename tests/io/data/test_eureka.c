/* The Eureka task: what stands where, the class by its rule, halves, splits that share no image. */
#include "tests/support/check.h"
#include "tests/support/data.h"
#include "tests/support/files.h"

#include <math.h>
#include <string.h>

enum { SIDE = 28, PIXELS = SIDE * SIDE, WIDTH = 14 * SIDE * 3 };

static bk_arena *arena;

static const char *path_of(const char *name)
{
    return bk_arena_strdup(arena, bk_test_path("%s", name));
}

static void big_endian(unsigned char *to, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        to[i] = (unsigned char)(value >> (24 - 8 * i));
}

/* `count` images; all pixels of the upper half of image i are i + base, those of the lower half i +
 * base + 1, so that an image says where it is from. */
static const char *images(const char *name, int count, int base)
{
    unsigned char *data = bk_arena_alloc(arena, (size_t)(16 + count * PIXELS));
    const uint32_t head[] = {0x803, (uint32_t)count, SIDE, SIDE};
    for (int i = 0; i < 4; i++)
        big_endian(data + 4 * i, head[i]);
    for (int i = 0; i < count * PIXELS; i++)
        data[16 + i] = (unsigned char)(i / PIXELS + base + (i % PIXELS >= PIXELS / 2));
    bk_test_write(path_of(name), data, (size_t)(16 + count * PIXELS));
    return path_of(name);
}

static const char *labels(const char *name, int count, int classes)
{
    unsigned char *data = bk_arena_alloc(arena, (size_t)(8 + count));
    big_endian(data, 0x801);
    big_endian(data + 4, (uint32_t)count);
    for (int i = 0; i < count; i++)
        data[8 + i] = (unsigned char)(i % classes);
    bk_test_write(path_of(name), data, (size_t)(8 + count));
    return path_of(name);
}

static void make(const char *const *inputs, const char *const *options, bk_dataset *d)
{
    if (bk_test_make(arena, "eureka", inputs, options, d) != BK_OK)
        fail_msg("%s", bk_status_text());
}

/* 24 digits of 5 classes, 8 of 3 to test on; 36 clothes of 7 classes, 10 of 4 to test on. */
static const char *const *files(void)
{
    static const char *file[9];
    file[0] = images("d", 24, 0), file[1] = labels("dl", 24, 5);
    file[2] = images("td", 8, 30), file[3] = labels("tdl", 8, 3);
    file[4] = images("c", 36, 50), file[5] = labels("cl", 36, 7);
    file[6] = images("tc", 10, 100), file[7] = labels("tcl", 10, 4);
    return file;
}

/* The grey level of position p of a sample, the same all over the patch. */
static int grey(const float *sample, int p)
{
    int level = (int)lroundf(sample[p * WIDTH] * 255.0f);
    for (int k = 0; k < WIDTH; k++)
        assert_true(sample[p * WIDTH + k] == sample[p * WIDTH]);
    assert_true(fabsf(sample[p * WIDTH] * 255.0f - (float)level) < 1e-3f);
    return level;
}

/* The image at a place (0 upper left, ..., 3 lower right), whose halves are two patches above each
 * other; `base` is that of its file. */
static int image_at(const float *sample, int place, int base)
{
    int p = place / 2 * 4 + place % 2, upper = grey(sample, p);
    assert_int_equal(grey(sample, p + 2), upper + 1);
    return upper - base;
}

typedef struct expected {
    int digits, clothes;                 /* base of the files */
    int digit_classes, clothing_classes; /* label = image mod these */
    int first_digit, last_digit, first_clothing, last_clothing;
} expected;

static void check_sample(const bk_dataset *d, int64_t i, bool equal, const expected *e)
{
    static float sample[8 * WIDTH];
    d->draw(d->draw_context, i, 1, sample);
    int one = image_at(sample, 0, e->digits), right = image_at(sample, 1, e->clothes),
        left = image_at(sample, 2, e->clothes), other = image_at(sample, 3, e->digits);
    assert_in_range(one, e->first_digit, e->last_digit);
    assert_in_range(other, e->first_digit, e->last_digit);
    assert_in_range(right, e->first_clothing, e->last_clothing);
    assert_in_range(left, e->first_clothing, e->last_clothing);
    assert_int_equal(one % e->digit_classes == other % e->digit_classes, equal);
    assert_int_equal(d->labels[i], (equal ? right : left) % e->clothing_classes);
}

static void the_rule_of_the_class(void **state)
{
    (void)state;
    static const expected train = {0, 50, 5, 7, 0, 21, 0, 32},
                          validation = {0, 50, 5, 7, 22, 23, 33, 35},
                          test = {30, 100, 3, 4, 0, 7, 0, 9};
    bk_dataset d;
    make(files(), BK_TEXTS("train=400", "validation=100", "test=200", "mean=0", "sd=1"), &d);
    assert_true(d.samples == 700 && d.positions == 8 && d.channels == 1176 && d.classes == 7);
    assert_int_equal(bk_test_split(&d, "train")->count, 400);
    assert_int_equal(bk_test_split(&d, "validation")->index[0], 400);
    assert_int_equal(bk_test_split(&d, "test")->index[199], 699);
    for (int64_t i = 0; i < 400; i++)
        check_sample(&d, i, i % 2 == 0, &train);
    for (int64_t i = 0; i < 100; i++)
        check_sample(&d, 400 + i, i % 2 == 0, &validation);
    for (int64_t i = 0; i < 200; i++)
        check_sample(&d, 500 + i, i % 2 == 0, &test);
}

/* Any piece of the features is drawn alike; another seed draws others. */
static void pieces_and_seeds(void **state)
{
    (void)state;
    enum { ROW = 8 * WIDTH };
    bk_dataset d, other;
    float *whole = BK_NEW(arena, float, 40 * ROW), *piece = BK_NEW(arena, float, 40 * ROW);
    make(BK_NONE, BK_TEXTS("train=20", "validation=10", "test=10"), &d);
    d.draw(d.draw_context, 0, 40, whole);
    for (int64_t i = 0; i < 40; i += 8)
        d.draw(d.draw_context, i, 8, piece + i * ROW);
    assert_memory_equal(whole, piece, 40 * ROW * sizeof(float));
    make(BK_NONE, BK_TEXTS("train=20", "validation=10", "test=10", "seed=2"), &other);
    other.draw(other.draw_context, 0, 40, piece);
    assert_memory_not_equal(whole, piece, 40 * ROW * sizeof(float));
    for (int64_t k = 0; k < 40 * ROW; k++)
        assert_true(whole[k] >= -1.0f && whole[k] <= 1.0f);
}

/* What stands in the file is what was drawn, and the file says where the images are from. */
static void the_file(void **state)
{
    (void)state;
    enum { ROW = 8 * WIDTH, COUNT = 500 }; /* more than are written at a time */
    bk_dataset d, *read;
    float *drawn = BK_NEW(arena, float, COUNT *ROW);
    const char *path = path_of("eureka.h5"), *const *file = files();
    make((const char *const[]){file[0], file[1], file[2], file[3], NULL},
         BK_TEXTS("train=400", "validation=50", "test=50"), &d);
    assert_int_equal(bk_dataset_write(&d, path, 1, ""), BK_OK);
    if (bk_dataset_read(arena, path, &read) != BK_OK)
        fail_msg("%s", bk_status_text());
    d.draw(d.draw_context, 0, COUNT, drawn);
    assert_true(read->samples == COUNT && read->positions == 8 && read->channels == WIDTH);
    assert_memory_equal(read->features, drawn, COUNT * ROW * sizeof(float));
    assert_memory_equal(read->labels, d.labels, COUNT * sizeof(int32_t));
    assert_non_null(strstr(read->source, "digits: the files given; clothes: stroke glyphs"));
}

static void what_is_refused(void **state)
{
    (void)state;
    const char *const *f = files();
    const char *one = labels("one", 24, 1), *few = images("few", 5, 0),
               *fewer = labels("fewer", 5, 5);
    bk_test_refused("eureka", BK_TEXTS(f[0], f[1]), BK_NONE, BK_USAGE, BK_TEXTS("2 given"));
    bk_test_refused("eureka", BK_TEXTS(f[0], one, f[2], f[3]), BK_NONE, BK_INPUT,
                    BK_TEXTS("train", "one class"));
    bk_test_refused("eureka", BK_TEXTS(few, fewer, f[2], f[3]), BK_NONE, BK_INPUT,
                    BK_TEXTS("validation=0", "5 in the file"));
    bk_test_refused("eureka", BK_TEXTS(f[0], f[1], f[2], path_of("gone")), BK_NONE, BK_INPUT,
                    BK_TEXTS("gone"));
    unsigned char head[16 + 4];
    const uint32_t field[] = {0x803, 1, 2, 2};
    for (int i = 0; i < 4; i++)
        big_endian(head + 4 * i, field[i]);
    memset(head + 16, 0, 4);
    bk_test_write(path_of("small"), head, sizeof head);
    bk_test_refused("eureka", BK_TEXTS(path_of("small"), labels("sl", 1, 1), f[2], f[3]), BK_NONE,
                    BK_INPUT, BK_TEXTS("2 x 2", "small"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_rule_of_the_class),
        cmocka_unit_test(pieces_and_seeds),
        cmocka_unit_test(the_file),
        cmocka_unit_test(what_is_refused),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
