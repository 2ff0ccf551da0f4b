/* Images in IDX: hand-made files of a few records, plain and gzip, and damaged ones. */
#include "tests/support/check.h"
#include "tests/support/data.h"
#include "tests/support/files.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { ROWS = 4, COLS = 6, SIDE = ROWS * COLS };

static bk_arena *arena;

static void big_endian(unsigned char *to, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        to[i] = (unsigned char)(value >> (24 - 8 * i));
}

/* Pixel k of image i. */
static int pixel(int i, int k)
{
    return k == 0 ? 0 : k == 1 ? 255 : (i * 31 + k * 7) % 256;
}

static unsigned char *image_file(int count, size_t *bytes)
{
    *bytes = (size_t)(16 + count * SIDE);
    unsigned char *data = bk_arena_alloc(arena, *bytes);
    const uint32_t head[] = {0x803, (uint32_t)count, ROWS, COLS};
    for (int i = 0; i < 4; i++)
        big_endian(data + 4 * i, head[i]);
    for (int i = 0; i < count * SIDE; i++)
        data[16 + i] = (unsigned char)pixel(i / SIDE, i % SIDE);
    return data;
}

static const char *path_of(const char *name)
{
    return bk_arena_strdup(arena, bk_test_path("%s", name));
}

static const char *images(const char *name, int count)
{
    size_t bytes;
    const unsigned char *data = image_file(count, &bytes);
    bk_test_write(path_of(name), data, bytes);
    return path_of(name);
}

/* Labels i mod `classes`. */
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

static const char *zip(const char *from)
{
    size_t bytes;
    char *data = bk_test_read(from, &bytes);
    const char *path = bk_arena_printf(arena, "%s.gz", from);
    gzFile file = gzopen(path, "wb");
    assert_int_equal(gzwrite(file, data, (unsigned)bytes), (int)bytes);
    assert_int_equal(gzclose(file), Z_OK);
    free(data);
    return path;
}

static void make(const char *const *inputs, const char *const *options, bk_dataset *d)
{
    if (bk_test_make(arena, "images", inputs, options, d) != BK_OK)
        fail_msg("%s: %s", inputs[0], bk_status_text());
}

/* ---- what is read ---- */

static void pixels_are_symbols(void **state)
{
    (void)state;
    bk_dataset d, z;
    const char *x = images("x", 3), *y = labels("y", 3, 3);
    make(BK_TEXTS(x, y), BK_TEXTS("validation=1"), &d);
    assert_int_equal(d.samples, 3);
    assert_int_equal(d.classes, 3);
    assert_int_equal(d.vocabulary, 257);
    assert_int_equal(d.max_length, SIDE);
    assert_int_equal(d.tokens[0], 1);   /* black */
    assert_int_equal(d.tokens[1], 256); /* white */
    for (int i = 0; i < 3; i++) {
        assert_int_equal(d.labels[i], i);
        for (int k = 0; k < SIDE; k++)
            assert_int_equal(d.tokens[i * SIDE + k], pixel(i, k) + 1);
    }
    assert_int_equal(bk_test_split(&d, "train")->count, 2);
    assert_int_equal(bk_test_split(&d, "validation")->count, 1);
    make(BK_TEXTS(zip(x), zip(y)), BK_TEXTS("validation=1"), &z);
    assert_memory_equal(d.tokens, z.tokens, 3 * SIDE * sizeof *d.tokens);
}

/* features[i][p][c] is the pixel at (row, col), scaled. */
static void check_feature(const bk_dataset *d, int i, int p, int c, int k)
{
    double wanted = (pixel(i, k) / 255.0 - 0.5) / 0.25;
    float found = d->features[(i * d->positions + p) * d->channels + c];
    bk_check_error(fabs(found - wanted), 1e-6, "image %d, position %d, channel %d", i, p, c);
}

static void patches_and_stripes(void **state)
{
    (void)state;
    bk_dataset d;
    const char *x = images("x", 3), *y = labels("y", 3, 3);
    make(BK_TEXTS(x, y),
         BK_TEXTS("layout=patches", "patch=2", "mean=0.5", "sd=0.25", "validation=0"), &d);
    assert_int_equal(d.positions, 6);
    assert_int_equal(d.channels, 4);
    assert_int_equal(d.vocabulary, 0);
    for (int i = 0; i < 3; i++)
        for (int p = 0; p < 6; p++)
            for (int c = 0; c < 4; c++)
                check_feature(&d, i, p, c, (p / 3 * 2 + c / 2) * COLS + p % 3 * 2 + c % 2);
    make(BK_TEXTS(x, y),
         BK_TEXTS("layout=stripes", "patch=2", "mean=0.5", "sd=0.25", "validation=0"), &d);
    assert_int_equal(d.positions, 2);
    assert_int_equal(d.channels, 12);
    for (int c = 0; c < 12; c++)
        check_feature(&d, 1, 1, c, 12 + c);
    make(BK_TEXTS(x, y), BK_TEXTS("values=real", "mean=0.5", "sd=0.25", "validation=0"), &d);
    assert_int_equal(d.positions, SIDE);
    assert_int_equal(d.channels, 1);
    check_feature(&d, 2, 5, 0, 5);
}

static void splits_of_images(void **state)
{
    (void)state;
    bk_dataset d;
    const char *x = images("a", 60), *y = labels("b", 60, 10);
    const char *tx = images("c", 7), *ty = labels("d", 7, 10);
    make(BK_TEXTS(x, y, tx, ty), BK_NONE, &d);
    assert_int_equal(bk_test_split(&d, "train")->count, 55); /* 1/12 is held out: 5,000 of MNIST */
    assert_int_equal(bk_test_split(&d, "validation")->count, 5);
    assert_int_equal(bk_test_split(&d, "test")->count, 7);
    assert_int_equal(bk_test_split(&d, "test")->index[0], 60);
    assert_int_equal(d.labels[66], 6);
    make(BK_TEXTS(x, y, tx, ty), BK_TEXTS("limit=5", "validation=1"), &d);
    assert_int_equal(d.samples, 10);
    make(BK_TEXTS(x, y), BK_TEXTS("classes=12"), &d);
    assert_int_equal(d.classes, 12);
}

/* ---- glyphs ---- */

static void glyphs_need_no_files(void **state)
{
    (void)state;
    bk_dataset d, again;
    make(BK_NONE, BK_TEXTS("glyphs=true", "layout=stripes", "train=60", "validation=10"), &d);
    assert_int_equal(d.samples, 70); /* a sixth more to test on */
    assert_int_equal(d.positions, 7);
    assert_int_equal(d.channels, 4 * 28);
    assert_int_equal(d.classes, 10);
    assert_int_equal(bk_test_split(&d, "train")->count, 50);
    assert_int_equal(bk_test_split(&d, "validation")->count, 10);
    assert_int_equal(bk_test_split(&d, "test")->count, 10);
    for (int i = 0; i < 70; i++)
        assert_int_equal(d.labels[i], i % 10);
    make(BK_NONE, BK_TEXTS("glyphs=true", "layout=stripes", "train=60", "seed=2"), &again);
    assert_memory_not_equal(d.features, again.features, 70 * 784 * sizeof(float));
    make(BK_NONE, BK_TEXTS("glyphs=true", "train=60", "test=7"), &d);
    assert_int_equal(d.samples, 67);
    assert_int_equal(d.vocabulary, 257);
}

/* ---- what is refused ---- */

static void refused(const char *x, const char *y, const char *option, const char *const *texts)
{
    bk_test_refused("images", BK_TEXTS(x, y), BK_TEXTS(option), BK_INPUT, texts);
}

static void truncated_files_name_the_missing_bytes(void **state)
{
    (void)state;
    const char *x = images("x", 3), *y = labels("y", 3, 3);
    for (size_t bytes = 0; bytes < 16 + 3 * SIDE; bytes += 5) {
        const char *cut = images("cut", 3);
        bk_test_cut(cut, bytes);
        size_t missing = bytes < 16 ? 16 - bytes : 16 + 3 * SIDE - bytes;
        refused(cut, y, "validation=0",
                BK_TEXTS(bk_arena_printf(arena, " %zu bytes are missing", missing), cut));
    }
    const char *few = labels("few", 3, 3);
    bk_test_cut(few, 9);
    refused(x, few, "validation=0", BK_TEXTS("2 bytes are missing", few));
}

static void damaged_gzip(void **state)
{
    (void)state;
    const char *y = labels("y", 3, 3);
    size_t bytes;
    const char *whole = zip(images("x", 3)), *bad = path_of("bad.gz");
    char *data = bk_test_read(whole, &bytes);
    for (size_t cut = 0; cut < bytes; cut += 3) {
        bk_test_write(bad, data, cut);
        refused(bad, y, "validation=0", BK_TEXTS(bad));
    }
    /* every bit behind the 10 bytes of the header: deflate or CRC tells */
    for (size_t byte = 10; byte < bytes; byte++) {
        bk_test_write(bad, data, bytes);
        bk_test_flip(bad, byte, (int)(byte % 8));
        refused(bad, y, "validation=0", BK_TEXTS(bad));
    }
    free(data);
}

static void header(const char *name, size_t field, uint32_t value, const char *const *texts)
{
    size_t bytes;
    unsigned char *data = image_file(3, &bytes);
    big_endian(data + 4 * field, value);
    bk_test_write(path_of(name), data, bytes);
    refused(path_of(name), labels("y", 3, 3), "validation=0", texts);
}

static void wrong_headers(void **state)
{
    (void)state;
    header("h0", 0, 0x801, BK_TEXTS("magic 0x00000801", "h0"));
    header("h1", 0, 0x12345678, BK_TEXTS("magic", "h1"));
    header("h2", 1, 0xffffffffu, BK_TEXTS("missing", "h2"));
    header("h3", 1, 0, BK_TEXTS("sizes 0 x", "h3"));
    header("h4", 2, 0, BK_TEXTS("sizes", "h4"));
    header("h5", 2, 70000, BK_TEXTS("sizes", "h5"));
    header("h6", 3, 65536, BK_TEXTS("missing", "h6"));
    header("h7", 1, 2, BK_TEXTS("goes on", "h7"));
    header("h8", 1, 4, BK_TEXTS("24 bytes are missing", "h8"));
}

static void files_that_do_not_fit(void **state)
{
    (void)state;
    const char *x = images("x", 3), *y = labels("y", 3, 3), *place = bk_test_path("dir/x");
    place = bk_arena_printf(arena, "%.*s", (int)strlen(place) - 2, place);
    bk_test_write_text(path_of("empty"), "");
    bk_test_write_text(path_of("text"), "this is no IDX file at all, only a text\n");
    refused(x, labels("z", 4, 3), "validation=0", BK_TEXTS("3 images", "4 labels"));
    refused(labels("long", 20, 3), x, "validation=0", BK_TEXTS("order of the files"));
    refused(place, y, "validation=0", BK_TEXTS("directory"));
    refused(path_of("nowhere"), y, "validation=0", BK_TEXTS("nowhere"));
    refused(path_of("empty"), y, "validation=0", BK_TEXTS("16 bytes are missing"));
    refused(path_of("text"), y, "validation=0", BK_TEXTS("magic"));
    refused(x, labels("w", 3, 3), "classes=2", BK_TEXTS("label 2", "record 2", "byte 10"));
    bk_test_refused("images", BK_TEXTS(x, y), BK_TEXTS("layout=patches", "patch=4"), BK_USAGE,
                    BK_TEXTS("patch=4", "4 x 6"));
    bk_test_refused("images", BK_TEXTS(x, y), BK_TEXTS("layout=stripes", "patch=3"), BK_USAGE,
                    BK_TEXTS("patch=3"));
    bk_test_refused("images", BK_TEXTS(x, y), BK_TEXTS("layout=stripes", "patch=9"), BK_USAGE,
                    BK_TEXTS("patch=9"));
    bk_test_refused("images", BK_TEXTS(x, y), BK_TEXTS("validation=3"), BK_USAGE,
                    BK_TEXTS("nothing to train on"));
    bk_test_refused("images", BK_TEXTS(x), BK_NONE, BK_USAGE, BK_TEXTS("IMAGES LABELS"));
    bk_test_refused("images", BK_TEXTS(x, y), BK_TEXTS("glyphs=true"), BK_USAGE,
                    BK_TEXTS("reads no files", x));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pixels_are_symbols),
        cmocka_unit_test(patches_and_stripes),
        cmocka_unit_test(splits_of_images),
        cmocka_unit_test(glyphs_need_no_files),
        cmocka_unit_test(truncated_files_name_the_missing_bytes),
        cmocka_unit_test(damaged_gzip),
        cmocka_unit_test(wrong_headers),
        cmocka_unit_test(files_that_do_not_fit),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
