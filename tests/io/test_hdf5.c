/* test: labels=unit,io timeout=180 */
/* The thin layer over HDF5: what is written is read, types and shapes are told, trouble is named,
 * and the first failure of a file stays. */
#include "io/files.h"
#include "io/hdf5.h"
#include "tests/support/check.h"
#include "tests/support/files.h"

#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

static bk_arena *arena;

static const char *path_of(const char *name)
{
    return bk_arena_strdup(arena, bk_test_path("%s", name));
}

static bk_h5 *created(const char *path)
{
    bk_h5 *file;
    if (bk_h5_create(arena, path, &file) != BK_OK)
        fail_msg("%s", bk_status_text());
    return file;
}

static bk_h5 *opened(const char *path)
{
    bk_h5 *file;
    if (bk_h5_open(arena, path, &file) != BK_OK)
        fail_msg("%s", bk_status_text());
    return file;
}

static void good(bk_status status)
{
    if (status != BK_OK)
        fail_msg("%s", bk_status_text());
}

static void says(const char *word)
{
    if (!strstr(bk_status_text(), word))
        fail_msg("no '%s' in: %s", word, bk_status_text());
}

/* ---- datasets ---- */

static void every_dtype(void **state)
{
    (void)state;
    static const bk_dtype dtype[] = {BK_F32, BK_F64, BK_I32, BK_I64, BK_U8, BK_U16};
    static const unsigned char bytes[48] = {1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12};
    const char *path = path_of("dtypes.h5");
    bk_h5 *file = created(path);
    for (int i = 0; i < 6; i++)
        good(
            bk_h5_write(file, bk_arena_printf(arena, "/g/%d", i), dtype[i], BK_SHAPE(2, 3), bytes));
    good(bk_h5_close(file));
    file = opened(path);
    for (int i = 0; i < 6; i++) {
        const char *name = bk_arena_printf(arena, "/g/%d", i);
        bk_dtype found;
        int dims;
        int64_t shape[BK_MAX_DIMS];
        bk_tensor *x;
        good(bk_h5_shape(file, name, &found, &dims, shape));
        assert_int_equal(found, dtype[i]);
        assert_true(dims == 2 && shape[0] == 2 && shape[1] == 3);
        good(bk_h5_read(file, name, dtype[i], arena, &x));
        assert_memory_equal(x->data, bytes, 6 * bk_dtype_size(dtype[i]));
    }
    good(bk_h5_close(file));
}

static void shapes_of_all_kinds(void **state)
{
    (void)state;
    const char *path = path_of("shapes.h5");
    const float one = 2.5f;
    float cube[2 * 3 * 4 * 5];
    for (int i = 0; i < 120; i++)
        cube[i] = (float)i;
    bk_h5 *file = created(path);
    good(bk_h5_write(file, "/scalar", BK_F32, 0, NULL, &one));
    good(bk_h5_write(file, "/empty", BK_F32, BK_SHAPE(0, 7), cube));
    good(bk_h5_write(file, "/cube", BK_F32, BK_SHAPE(2, 3, 4, 5), cube));
    good(bk_h5_close(file));
    file = opened(path);
    bk_tensor *x;
    good(bk_h5_read(file, "/scalar", BK_F64, arena, &x));
    assert_true(x->dims == 0 && bk_f64(x)[0] == 2.5);
    good(bk_h5_read(file, "/empty", BK_F32, arena, &x));
    assert_true(x->dims == 2 && bk_count(x) == 0 && x->shape[1] == 7);
    good(bk_h5_read(file, "/cube", BK_I32, arena, &x)); /* converted */
    for (int i = 0; i < 120; i++)
        assert_int_equal(bk_i32(x)[i], i);
    good(bk_h5_close(file));
}

static void rows_of_a_dataset(void **state)
{
    (void)state;
    enum { ROWS = 70000, COLS = 5 }; /* more than one chunk */
    const char *path = path_of("rows.h5");
    int32_t *all = BK_NEW(arena, int32_t, ROWS * COLS), part[3 * COLS];
    for (int i = 0; i < ROWS * COLS; i++)
        all[i] = 7 * i;
    for (int deflate = 0; deflate < 10; deflate += 9) {
        remove(path);
        bk_h5 *file = created(path);
        bk_h5_set_deflate(file, deflate);
        good(bk_h5_create_dataset(file, "/x", BK_I32, BK_SHAPE(ROWS, COLS)));
        for (int64_t at = 0; at < ROWS; at += 17500)
            good(bk_h5_write_rows(file, "/x", BK_I32, at, 17500, all + at * COLS));
        good(bk_h5_close(file));
        file = opened(path);
        for (int64_t at = 1; at + 3 <= ROWS; at += 9999) {
            good(bk_h5_read_rows(file, "/x", BK_I32, at, 3, part));
            assert_memory_equal(part, all + at * COLS, sizeof part);
        }
        good(bk_h5_read_rows(file, "/x", BK_I32, ROWS, 0, part)); /* nothing, at the end */
        assert_int_equal(bk_h5_read_rows(file, "/x", BK_I32, ROWS - 1, 2, part), BK_INPUT);
        says("70000 rows");
        assert_int_equal(bk_h5_read_rows(file, "/x", BK_I32, -1, 1, part), BK_INPUT);
        assert_int_equal(bk_h5_read_rows(file, "/x", BK_I32, INT64_MAX, 1, part), BK_INPUT);
        assert_int_equal(bk_h5_close(file), BK_INPUT); /* the first failure stays */
    }
}

/* The same content gives the same bytes: no times, no garbage. */
static void files_are_reproducible(void **state)
{
    (void)state;
    char *data[2];
    size_t bytes[2];
    int64_t x[3] = {1, 2, 3};
    for (int i = 0; i < 2; i++) {
        const char *path = path_of(i ? "same1.h5" : "same0.h5");
        bk_h5 *file = created(path);
        good(bk_h5_write(file, "/a/b/x", BK_I64, BK_SHAPE(3), x));
        good(bk_h5_set_attribute(file, "/a", "n", BK_I64, 3, x));
        good(bk_h5_write_text(file, "/text", "words"));
        good(bk_h5_close(file));
        data[i] = bk_test_read(path, &bytes[i]);
    }
    assert_int_equal(bytes[0], bytes[1]);
    assert_memory_equal(data[0], data[1], bytes[0]);
    free(data[0]);
    free(data[1]);
}

/* ---- names ---- */

static void walking_and_listing(void **state)
{
    (void)state;
    const char *path = path_of("walk.h5");
    const int32_t x = 1;
    bk_h5 *file = created(path);
    static const char *const names[] = {"/b/y", "/b/x/z", "/a", "/b/x/a"}, *const sorted[] = {
                                                                               "/a", "/b/x/a",
                                                                               "/b/x/z", "/b/y"};
    for (int i = 0; i < 4; i++)
        good(bk_h5_write(file, names[i], BK_I32, 0, NULL, &x));
    good(bk_h5_make_group(file, "/empty/group"));
    good(bk_h5_make_group(file, "/empty/group")); /* is there: fine */
    good(bk_h5_close(file));
    file = opened(path);
    char **found;
    good(bk_h5_walk(file, arena, &found));
    for (int i = 0; i < 4; i++)
        assert_string_equal(found[i], sorted[i]);
    assert_null(found[4]);
    good(bk_h5_list(file, "/b", arena, &found));
    assert_string_equal(found[0], "x");
    assert_string_equal(found[1], "y");
    assert_null(found[2]);
    assert_true(bk_h5_exists(file, "/b/x") && bk_h5_exists(file, "/empty/group"));
    assert_false(bk_h5_exists(file, "/c") || bk_h5_exists(file, "/c/d/e") ||
                 bk_h5_exists(file, "/a/b"));
    good(bk_h5_close(file));
}

/* ---- attributes and texts ---- */

static void attributes(void **state)
{
    (void)state;
    const char *path = path_of("attributes.h5");
    const double half = 0.5;
    const int32_t three[] = {1, -2, 3};
    bk_h5 *file = created(path);
    good(bk_h5_make_group(file, "/g"));
    good(bk_h5_set_attribute(file, "/g", "half", BK_F64, 0, &half));
    good(bk_h5_set_attribute(file, "/g", "three", BK_I32, 3, three));
    good(bk_h5_set_attribute_text(file, "/", "name", "first"));
    good(bk_h5_set_attribute_text(file, "/", "name", "caf\xc3\xa9 \n")); /* replaced */
    good(bk_h5_set_attribute_text(file, "/", "nothing", ""));
    good(bk_h5_close(file));
    file = opened(path);
    double found;
    int64_t wide[3], count;
    char *text, **names;
    good(bk_h5_attribute(file, "/g", "half", BK_F64, 0, &found));
    assert_true(found == 0.5);
    good(bk_h5_attribute(file, "/g", "three", BK_I64, 3, wide));
    assert_true(wide[0] == 1 && wide[1] == -2 && wide[2] == 3);
    good(bk_h5_attribute_count(file, "/g", "three", &count));
    assert_int_equal(count, 3);
    good(bk_h5_attribute_text(file, "/", "name", arena, &text));
    assert_string_equal(text, "caf\xc3\xa9 \n");
    good(bk_h5_attribute_text(file, "/", "nothing", arena, &text));
    assert_string_equal(text, "");
    good(bk_h5_attributes(file, "/g", arena, &names));
    assert_string_equal(names[0], "half");
    assert_string_equal(names[1], "three");
    assert_null(names[2]);
    assert_false(bk_h5_has_attribute(file, "/g", "none"));
    assert_false(bk_h5_has_attribute(file, "/none", "half"));
    good(bk_h5_close(file));
}

static void attributes_of_another_kind(void **state)
{
    (void)state;
    const char *path = path_of("attributes.h5");
    double value[3];
    char *text;
    bk_h5 *file = opened(path);
    assert_int_equal(bk_h5_attribute(file, "/g", "none", BK_F64, 0, value), BK_INPUT);
    says("attribute none of /g");
    assert_int_equal(bk_h5_attribute(file, "/", "name", BK_F64, 0, value), BK_INPUT);
    says("not a number");
    assert_int_equal(bk_h5_attribute(file, "/g", "three", BK_F64, 0, value), BK_INPUT);
    says("3 elements, not 1");
    assert_int_equal(bk_h5_attribute_text(file, "/g", "half", arena, &text), BK_INPUT);
    says("not a text");
    assert_int_equal(bk_h5_close(file), BK_INPUT);
    says("attribute none of /g"); /* the first failure, not the last */
}

static void texts(void **state)
{
    (void)state;
    const char *path = path_of("texts.h5");
    char *text, *large = bk_arena_zalloc(arena, 200001);
    memset(large, 'y', 200000);
    bk_h5 *file = created(path);
    const float x = 1.0f;
    good(bk_h5_write_text(file, "/config", "run: {}\n\n"));
    good(bk_h5_write_text(file, "/none", ""));
    good(bk_h5_write_text(file, "/large", large));
    good(bk_h5_write(file, "/number", BK_F32, 0, NULL, &x));
    good(bk_h5_close(file));
    file = opened(path);
    good(bk_h5_read_text(file, "/config", arena, &text));
    assert_string_equal(text, "run: {}\n\n");
    good(bk_h5_read_text(file, "/none", arena, &text));
    assert_string_equal(text, "");
    good(bk_h5_read_text(file, "/large", arena, &text));
    assert_string_equal(text, large);
    bk_tensor *t;
    assert_int_equal(bk_h5_read_text(file, "/number", arena, &text), BK_INPUT);
    says("not a text");
    assert_int_equal(bk_h5_read(file, "/config", BK_F32, arena, &t), BK_INPUT);
    says("neither integers nor reals");
    assert_int_equal(bk_h5_read(file, "/missing", BK_F32, arena, &t), BK_INPUT);
    says("/missing");
    assert_int_equal(bk_h5_close(file), BK_INPUT);
}

/* A file's texts and names must not steer a terminal; line ends are theirs to have. */
static void texts_are_plain(void **state)
{
    (void)state;
    const char *path = path_of("plain.h5");
    char *text, **names;
    bk_h5 *file = created(path);
    good(bk_h5_make_group(file, "/a\033[2J"));
    good(bk_h5_set_attribute_text(file, "/", "b\r", "one\n\033[2Jtwo"));
    good(bk_h5_set_attribute_text(file, "/", "c", "one\n\033[2Jtwo"));
    good(bk_h5_close(file));
    file = opened(path);
    good(bk_h5_attribute_text(file, "/", "c", arena, &text));
    assert_string_equal(text, "one\n?[2Jtwo");
    good(bk_h5_attributes(file, "/", arena, &names));
    assert_string_equal(names[0], "b?");
    good(bk_h5_list(file, "/", arena, &names));
    assert_string_equal(names[0], "a?[2J");
    good(bk_h5_close(file));
}

/* Files of other tools: text attributes of fixed length, as h5py writes numpy strings. */
static void texts_of_fixed_length(void **state)
{
    (void)state;
    const char *path = path_of("fixed.h5");
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), type = H5Tcopy(H5T_C_S1),
          space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, 5);
    H5Tset_strpad(type, H5T_STR_NULLPAD);
    hid_t id = H5Acreate2(file, "task", type, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(id, type, "words"); /* fills its length: no zero byte in the file */
    H5Aclose(id);
    H5Sclose(space);
    H5Tclose(type);
    H5Fclose(file);
    bk_h5 *f = opened(path);
    char *text;
    good(bk_h5_attribute_text(f, "/", "task", arena, &text));
    assert_string_equal(text, "words");
    good(bk_h5_close(f));
}

/* What stands in the header is believed, and the heap is asked for the rest. */
static void texts_of_the_header(void **state)
{
    (void)state;
    const char *path = path_of("header.h5");
    static const char *const kept[][2] = {{"a", "header\a"}, {"b", NULL}, {"/g/a", "of the group"}};
    static const char *const wanted[][3] = {{"/", "a", "header?"},
                                            {"/", "b", "heap"},
                                            {"/g", "a", "of the group"},
                                            {"/g", "b", "heap"}};
    char *text;
    bk_h5 *file = created(path);
    good(bk_h5_make_group(file, "/g"));
    for (int i = 0; i < 4; i++)
        good(bk_h5_set_attribute_text(file, wanted[i][0], wanted[i][1], "heap"));
    good(bk_h5_set_texts(file, 3, kept));
    good(bk_h5_close(file));
    file = opened(path);
    for (int i = 0; i < 4; i++) {
        good(bk_h5_attribute_text(file, wanted[i][0], wanted[i][1], arena, &text));
        assert_string_equal(text, wanted[i][2]);
    }
    good(bk_h5_close(file));
}

/* ---- what a file is ---- */

static void formats_and_versions(void **state)
{
    (void)state;
    const char *path = path_of("format.h5");
    bk_h5 *file = created(path);
    good(bk_h5_stamp(file, "birkhoff-teacher"));
    good(bk_h5_close(file));
    file = opened(path);
    good(bk_h5_expect(file, "birkhoff-teacher"));
    assert_int_equal(bk_h5_expect(file, "birkhoff-dataset"), BK_INPUT);
    says("\"birkhoff-teacher\", not \"birkhoff-dataset\"");
    assert_int_equal(bk_h5_close(file), BK_INPUT);
    hid_t raw = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT),
          id = H5Aopen(raw, "format_version", H5P_DEFAULT);
    const int32_t version[] = {2, 1};
    H5Awrite(id, H5T_NATIVE_INT32, version);
    H5Aclose(id);
    H5Fclose(raw);
    file = opened(path);
    assert_int_equal(bk_h5_expect(file, "birkhoff-teacher"), BK_INPUT);
    says("2.1, this program reads 1.x");
    assert_int_equal(bk_h5_close(file), BK_INPUT);
}

static void refused(const char *path, const char *word)
{
    bk_h5 *file;
    assert_int_equal(bk_h5_open_as(arena, path, "table", "make it anew", &file), BK_INPUT);
    says(word);
    says(path);
    assert_null(strchr(bk_status_text(), '\n'));
}

static void files_that_are_none(void **state)
{
    (void)state;
    const char *path = path_of("none.h5"), *place = path_of("dir/x");
    refused(path, "table none.h5 does not exist");
    says("make it anew");
    refused(bk_arena_printf(arena, "%.*s", (int)strlen(place) - 2, place), "is a directory");
    bk_test_write_text(path, "");
    refused(path, "is empty");
    bk_test_write_text(path, "\x89HDF\r\n\x1a\n and no more");
    refused(path, "damaged");
    bk_test_write_text(path, "label,text\n");
    refused(path, "not an HDF5 file");
    /* not closed by its writer */
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
    hid_t raw = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, access);
    H5Fflush(raw, H5F_SCOPE_GLOBAL);
    const char *copy = path_of("copy.h5");
    size_t bytes;
    char *data = bk_test_read(path, &bytes);
    bk_test_write(copy, data, bytes);
    free(data);
    H5Pclose(access);
    H5Fclose(raw);
    refused(copy, "not closed by its writer");
}

/* What cannot be told is not said to be absent: readers would then believe what has no checksum. */
static void damaged_attributes_are_not_absent(void **state)
{
    (void)state;
    const char *path = path_of("unsure.h5");
    bk_h5 *file = created(path);
    for (int i = 0; i < 12; i++) {
        const char *name = bk_arena_printf(arena, "attribute%d", i);
        good(bk_h5_set_attribute(file, "/", name, BK_I32, 0, &i));
    }
    good(bk_h5_close(file));
    int64_t bytes = bk_file_size(path), seen = 0;
    for (int64_t byte = 0; byte < bytes; byte += 7) {
        bk_arena_mark mark = bk_arena_get_mark(arena);
        bk_test_flip(path, (size_t)byte, 3);
        if (bk_h5_open(arena, path, &file) == BK_OK) {
            seen++;
            if (!bk_h5_has_attribute(file, "/", "attribute7"))
                fail_msg("absent with a flipped bit in byte %lld", (long long)byte);
            bk_status closed = bk_h5_close(file);
            (void)closed;
        }
        bk_test_flip(path, (size_t)byte, 3);
        bk_arena_release(arena, mark);
    }
    assert_true(seen > 100);
}

static void creation_is_exclusive(void **state)
{
    (void)state;
    bk_h5 *file;
    const char *path = path_of("exclusive.h5");
    good(bk_h5_close(created(path)));
    assert_int_equal(bk_h5_create(arena, path, &file), BK_FAULT);
    says("exclusive.h5");
    assert_null(file);
    assert_int_equal(bk_h5_create(arena, path_of("x/y"), &file), BK_OK);
    good(bk_h5_close(file));
}

/* ---- files that reach for others ---- */

/* "/outside" keeps its bytes in another file, "/virtual" is a view of another file's "/x", "/link"
 * leads there. */
static void write_reaching(const char *path, const char *other)
{
    const hsize_t one = 1;
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t space = H5Screate_simple(1, &one, NULL);
    hid_t outside = H5Pcreate(H5P_DATASET_CREATE), view = H5Pcreate(H5P_DATASET_CREATE);
    assert_true(H5Pset_external(outside, other, 0, 8) >= 0);
    assert_true(H5Pset_virtual(view, space, other, "/x", space) >= 0);
    H5Dclose(H5Dcreate2(file, "/outside", H5T_STD_I64LE, space, H5P_DEFAULT, outside, H5P_DEFAULT));
    H5Dclose(H5Dcreate2(file, "/virtual", H5T_STD_I64LE, space, H5P_DEFAULT, view, H5P_DEFAULT));
    assert_true(H5Lcreate_external(other, "/x", file, "/link", H5P_DEFAULT, H5P_DEFAULT) >= 0);
    H5Pclose(view);
    H5Pclose(outside);
    H5Sclose(space);
    H5Fclose(file);
}

/* Before the first call of io/hdf5.c, which takes external links out of the library. */
static int begin(void **state)
{
    int failed = bk_test_directory_make(state);
    if (!failed)
        write_reaching(path_of("reaching.h5"), path_of("other.h5"));
    bk_h5_start();
    return failed;
}

static void other_files_are_not_read(void **state)
{
    (void)state;
    static const char *const name[] = {"/outside", "/virtual", "/link"};
    const char *path = path_of("reaching.h5"), *other = path_of("other.h5");
    bk_h5 *file = created(other);
    good(bk_h5_write(file, "/x", BK_I64, BK_SHAPE(1), (const int64_t[]){7}));
    good(bk_h5_close(file));
    for (int i = 0; i < 3; i++) {
        bk_tensor *x;
        file = opened(path);
        assert_int_equal(bk_h5_read(file, name[i], BK_I64, arena, &x), BK_INPUT);
        says(i < 2 ? "in another file" : "/link");
        assert_int_equal(bk_h5_close(file), BK_INPUT);
    }
}

/* 28 groups with two links each to the next: 2^28 paths in a file of some kilobytes. */
static void links_that_multiply(void **state)
{
    (void)state;
    enum { GROUPS = 28 };
    const char *path = path_of("links.h5");
    hid_t id = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    H5Gclose(H5Gcreate2(id, "/g29", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    for (int i = GROUPS; i > 0; i--) {
        hid_t group = H5Gcreate2(id, bk_arena_printf(arena, "/g%02d", i), H5P_DEFAULT, H5P_DEFAULT,
                                 H5P_DEFAULT);
        const char *next = bk_arena_printf(arena, "/g%02d", i + 1);
        assert_true(H5Lcreate_hard(id, next, group, "a", H5P_DEFAULT, H5P_DEFAULT) >= 0);
        assert_true(H5Lcreate_soft(next, group, "b", H5P_DEFAULT, H5P_DEFAULT) >= 0);
        H5Gclose(group);
    }
    H5Fclose(id);
    bk_h5 *file = opened(path);
    char **paths;
    assert_int_equal(bk_h5_walk(file, arena, &paths), BK_INPUT);
    says("names");
    assert_int_equal(bk_h5_close(file), BK_INPUT);
}

/* A shape that a file of this size cannot hold must not make us allocate. */
static void shapes_without_data(void **state)
{
    (void)state;
    const char *path = path_of("huge.h5");
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    const hsize_t size = 1ULL << 40, chunk = 1024;
    hid_t space = H5Screate_simple(1, &size, NULL), list = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(list, 1, &chunk);
    H5Dclose(H5Dcreate2(file, "/x", H5T_NATIVE_FLOAT, space, H5P_DEFAULT, list, H5P_DEFAULT));
    H5Pclose(list);
    H5Sclose(space);
    H5Fclose(file);
    bk_h5 *f = opened(path);
    bk_tensor *x;
    assert_int_equal(bk_h5_read(f, "/x", BK_F32, arena, &x), BK_INPUT);
    says("claims");
    assert_int_equal(bk_h5_close(f), BK_INPUT);
}

/* A full disk: some call fails, and closing says so although the library's close may succeed. */
static void a_full_disk_is_not_forgotten(void **state)
{
    (void)state;
    const char *place = path_of("small/x");
    const char *directory = bk_arena_printf(arena, "%.*s", (int)strlen(place) - 2, place);
    if (mount("tmpfs", directory, "tmpfs", 0, "size=256k") != 0)
        skip(); /* mounting a file system of its own needs root */
    static float data[1 << 16];
    bk_h5 *file;
    bk_status created_status = bk_h5_create(arena, place, &file), worst = BK_OK;
    for (int i = 0; i < 4 && created_status == BK_OK; i++) {
        bk_status status =
            bk_h5_write(file, bk_arena_printf(arena, "/x%d", i), BK_F32, BK_SHAPE(1 << 16), data);
        worst = status > worst ? status : worst;
    }
    bk_status closed = created_status == BK_OK ? bk_h5_close(file) : BK_OK;
    umount(directory);
    assert_int_equal(created_status, BK_OK);
    assert_int_equal(worst, BK_FAULT);
    assert_int_equal(closed, BK_FAULT);
    says("small");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_dtype),
        cmocka_unit_test(shapes_of_all_kinds),
        cmocka_unit_test(rows_of_a_dataset),
        cmocka_unit_test(files_are_reproducible),
        cmocka_unit_test(walking_and_listing),
        cmocka_unit_test(attributes),
        cmocka_unit_test(attributes_of_another_kind),
        cmocka_unit_test(texts),
        cmocka_unit_test(texts_are_plain),
        cmocka_unit_test(texts_of_fixed_length),
        cmocka_unit_test(texts_of_the_header),
        cmocka_unit_test(formats_and_versions),
        cmocka_unit_test(files_that_are_none),
        cmocka_unit_test(damaged_attributes_are_not_absent),
        cmocka_unit_test(creation_is_exclusive),
        cmocka_unit_test(other_files_are_not_read),
        cmocka_unit_test(links_that_multiply),
        cmocka_unit_test(shapes_without_data),
        cmocka_unit_test(a_full_disk_is_not_forgotten),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, begin, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
