/* test: labels=unit,io timeout=60 */
/* A teacher's logits in a file: what is written is read, in every form; what is not whole, of
 * another kind or damaged is refused; and an old file stays until the new one is in its place. */
#include "io/teacher_file.h"

#include "io/dataset.h"
#include "io/files.h"
#include "tests/support/check.h"
#include "tests/support/files.h"

#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SAMPLES = 7, CLASSES = 11, ROWS = 12 };

static bk_arena *arena;

/* Samples 1 and 4 are of another split. */
static const int64_t offsets[SAMPLES + 1] = {0, 3, 3, 4, 8, 8, 10, 12};
static const double temperature[] = {1.0, 2.5};

static const bk_teacher_form forms[] = {
    {.vocabulary = CLASSES},
    {.vocabulary = CLASSES, .bf16 = true},
    {.vocabulary = CLASSES, .top_k = 3, .temperatures = 2, .temperature = temperature},
    {.vocabulary = 70000, .top_k = 5, .temperatures = 1, .temperature = temperature},
};
enum { FORMS = sizeof forms / sizeof *forms, WIDE = 3, TOP = 2 };

static void good(bk_status status)
{
    if (status != BK_OK)
        fail_msg("%s", bk_status_text());
}

static void refused(bk_status status, bk_status wanted, const char *word)
{
    assert_int_equal(status, wanted);
    if (!strstr(bk_status_text(), word))
        fail_msg("no '%s' in: %s", word, bk_status_text());
}

static const char *path_of(const char *name)
{
    return bk_arena_strdup(arena, bk_test_path("%s", name));
}

static bk_teacher_file about(const bk_teacher_form *form, const char *path)
{
    return (bk_teacher_file){.path = path,
                             .form = *form,
                             .teacher = "the teacher's digest",
                             .data = "the data set's digest",
                             .split = "train",
                             .length = 16,
                             .samples = SAMPLES,
                             .rows = ROWS,
                             .offsets = offsets};
}

/* Numbers that say where they stand, classes that are in the vocabulary. */
static bk_teacher_rows rows_of(const bk_teacher_form *form)
{
    size_t bytes[BK_TEACHER_PARTS];
    bk_teacher_rows rows = bk_teacher_rows_new(arena, form, ROWS);
    bk_teacher_row_bytes(form, bytes);
    for (int i = 0; i < BK_TEACHER_PARTS; i++)
        for (size_t j = 0; j < ROWS * bytes[i]; j++)
            ((unsigned char *)rows.part[i])[j] = (unsigned char)(7 * j + 31 * (size_t)i);
    for (int64_t j = 0; j < ROWS * form->top_k; j++)
        ((int32_t *)rows.part[0])[j] = (int32_t)((j * 7919 + 5) % form->vocabulary);
    return rows;
}

static void assert_rows(const bk_teacher_form *form, bk_teacher_rows a, bk_teacher_rows b,
                        int64_t count)
{
    size_t bytes[BK_TEACHER_PARTS];
    bk_teacher_row_bytes(form, bytes);
    for (int i = 0; i < BK_TEACHER_PARTS; i++)
        assert_memory_equal(a.part[i], b.part[i], (size_t)count * bytes[i]);
}

/* In pieces that do not come in order. */
static const char *written(const bk_teacher_form *form, const char *name, size_t keep)
{
    static const int64_t piece[][2] = {{4, 4}, {0, 3}, {10, 2}, {3, 1}, {8, 2}};
    bk_teacher_file f = about(form, path_of(name));
    bk_teacher_rows rows = rows_of(form);
    good(bk_teacher_file_create(arena, keep, &f));
    for (size_t i = 0; i < sizeof piece / sizeof *piece; i++)
        good(bk_teacher_file_write(&f, piece[i][0], piece[i][1],
                                   bk_teacher_rows_at(form, rows, piece[i][0])));
    good(bk_teacher_file_commit(&f));
    return f.path;
}

static void check_about(const bk_teacher_file *f, const bk_teacher_form *form)
{
    assert_string_equal(f->teacher, "the teacher's digest");
    assert_string_equal(f->data, "the data set's digest");
    assert_string_equal(f->split, "train");
    assert_int_equal(strlen(f->digest), 64);
    assert_int_equal(f->length, 16);
    assert_int_equal(f->max_length, 0);
    assert_int_equal(f->samples, SAMPLES);
    assert_int_equal(f->rows, ROWS);
    assert_memory_equal(f->offsets, offsets, sizeof offsets);
    assert_int_equal(f->form.vocabulary, form->vocabulary);
    assert_int_equal(f->form.top_k, form->top_k);
    assert_int_equal(f->form.bf16, form->bf16);
    assert_int_equal(f->form.temperatures, form->temperatures);
    for (int64_t i = 0; i < form->temperatures; i++)
        assert_true(f->form.temperature[i] == form->temperature[i]);
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    for (int i = 0; i < FORMS; i++)
        for (int k = 0; k < 4; k++) { /* gathered or not, kept or not */
            const bk_teacher_form *form = &forms[i];
            bk_teacher_rows all = rows_of(form), some = bk_teacher_rows_new(arena, form, ROWS);
            const char *path = written(form, "a.h5", k & 1 ? 1 << 20 : 0);
            bk_teacher_file f;
            good(bk_teacher_file_open(arena, path, k & 2 ? 1 << 20 : 0, &f));
            assert_int_equal(f.kept.part[0] != NULL, (k & 2) != 0);
            check_about(&f, form);
            for (int64_t first = 0; first < ROWS; first += 5) {
                int64_t count = first + 5 < ROWS ? 5 : ROWS - first;
                good(bk_teacher_file_read(&f, first, count, some));
                assert_rows(form, some, bk_teacher_rows_at(form, all, first), count);
            }
            good(bk_teacher_file_read(&f, ROWS, 0, some));
            good(bk_teacher_file_close(&f));
        }
}

static bk_dtype stored(const char *path, const char *dataset)
{
    bk_h5 *file;
    bk_dtype dtype;
    int dims;
    int64_t shape[BK_MAX_DIMS];
    good(bk_h5_open(arena, path, &file));
    good(bk_h5_shape(file, dataset, &dtype, &dims, shape));
    good(bk_h5_close(file));
    return dtype;
}

static void as_narrow_as_the_vocabulary_allows(void **state)
{
    (void)state;
    assert_int_equal(stored(written(&forms[0], "d.h5", 0), "/logits"), BK_F32);
    assert_int_equal(stored(written(&forms[1], "b.h5", 0), "/logits"), BK_U16);
    assert_int_equal(stored(written(&forms[TOP], "t.h5", 0), "/index"), BK_U16);
    assert_int_equal(stored(written(&forms[WIDE], "w.h5", 0), "/index"), BK_I32);
}

/* ---- before it is whole ---- */

static void an_old_file_stays_until_the_new_one_is_whole(void **state)
{
    (void)state;
    const char *path = written(&forms[0], "old.h5", 0), *part = path_of("old.h5.part");
    int64_t bytes = bk_file_size(path);
    for (int commit = 0; commit < 2; commit++) {
        bk_teacher_file f = about(&forms[1], path);
        bk_test_write_text(part, "of one that was killed");
        good(bk_teacher_file_create(arena, commit ? 1 << 20 : 0, &f));
        good(bk_teacher_file_write(&f, 0, ROWS, rows_of(&forms[1])));
        assert_true(bk_file_size(part) >= 0);
        assert_int_equal(bk_file_size(path), bytes);
        if (commit)
            good(bk_teacher_file_commit(&f));
        else
            bk_teacher_file_drop(&f);
        assert_int_equal(bk_file_size(part), -1);
    }
    assert_int_equal(stored(path, "/logits"), BK_U16);
}

/* As when many jobs start at once and all find no file. */
static void two_jobs_may_write_the_same_file(void **state)
{
    (void)state;
    const char *path = path_of("both.h5");
    bk_teacher_file f[2], read;
    for (int i = 0; i < 2; i++) {
        f[i] = about(&forms[0], path);
        good(bk_teacher_file_create(arena, 0, &f[i]));
        good(bk_teacher_file_write(&f[i], 0, 6, rows_of(&forms[0])));
    }
    assert_string_not_equal(f[0].part, f[1].part);
    for (int i = 0; i < 2; i++) {
        bk_teacher_rows rest = bk_teacher_rows_at(&forms[0], rows_of(&forms[0]), 6);
        good(bk_teacher_file_write(&f[i], 6, ROWS - 6, rest));
        good(bk_teacher_file_commit(&f[i]));
        assert_int_equal(bk_file_size(f[i].part), -1);
        good(bk_teacher_file_open(arena, path, 1 << 20, &read));
        assert_rows(&forms[0], read.kept, rows_of(&forms[0]), ROWS);
        good(bk_teacher_file_close(&read));
    }
    f[0] = about(&forms[0], path); /* and the name is free again */
    good(bk_teacher_file_create(arena, 0, &f[0]));
    assert_string_equal(f[0].part, path_of("both.h5.part"));
    bk_teacher_file_drop(&f[0]);
}

static void dropping_keeps_the_text_of_what_went_wrong(void **state)
{
    (void)state;
    bk_teacher_file f = about(&forms[0], path_of("drop.h5"));
    good(bk_teacher_file_create(arena, 0, &f));
    bk_status failed = bk_fail(BK_FAULT, "the disk is full");
    bk_teacher_file_drop(&f);
    refused(failed, BK_FAULT, "the disk is full");
    assert_int_equal(bk_file_size(f.path), -1);
}

static void where_nothing_can_be_written(void **state)
{
    (void)state;
    bk_teacher_file f = about(&forms[0], path_of("none/a.h5"));
    rmdir(bk_test_path("none"));
    refused(bk_teacher_file_create(arena, 0, &f), BK_USAGE, "none");
    f = about(&forms[0], bk_arena_strdup(arena, bk_test_path("dir/x")));
    good(bk_make_directories(f.path));
    refused(bk_teacher_file_create(arena, 0, &f), BK_USAGE, "directory");
}

/* ---- what is not believed ---- */

static bk_status opens(const char *path)
{
    bk_teacher_file f;
    BK_TRY(bk_teacher_file_open(arena, path, 1 << 20, &f));
    return bk_teacher_file_close(&f);
}

static void files_of_another_kind(void **state)
{
    (void)state;
    const char *path = path_of("text.h5");
    refused(opens(path_of("missing.h5")), BK_INPUT, "does not exist");
    bk_test_write_text(path, "a text");
    refused(opens(path), BK_INPUT, "text.h5");
    bk_h5 *file;
    path = path_of("other.h5");
    good(bk_h5_create(arena, path, &file));
    good(bk_h5_stamp(file, "birkhoff-dataset"));
    good(bk_h5_close(file));
    refused(opens(path), BK_INPUT, "birkhoff-dataset");
}

/* A file whose attribute or dataset is another. */
static const char *changed(const char *object, const char *attribute, bk_dtype dtype, int64_t count,
                           const void *data)
{
    const char *path = written(&forms[TOP], "changed.h5", 0);
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    assert_true(file >= 0);
    if (attribute) {
        hsize_t size = (hsize_t)count;
        hid_t type = dtype == BK_I64 ? H5T_NATIVE_INT64 : H5T_NATIVE_DOUBLE;
        hid_t space = count == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(1, &size, NULL);
        assert_true(H5Adelete_by_name(file, object, attribute, H5P_DEFAULT) >= 0);
        hid_t id = H5Acreate_by_name(file, object, attribute, type, space, H5P_DEFAULT, H5P_DEFAULT,
                                     H5P_DEFAULT);
        assert_true(H5Awrite(id, type, data) >= 0);
        H5Aclose(id);
        H5Sclose(space);
    } else {
        hid_t type = dtype == BK_I64 ? H5T_NATIVE_INT64 : H5T_NATIVE_INT32;
        hid_t id = H5Dopen2(file, object, H5P_DEFAULT);
        assert_true(H5Dwrite(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
        H5Dclose(id);
    }
    H5Fclose(file);
    return path;
}

static void content_that_cannot_be(void **state)
{
    (void)state;
    const int64_t twelve = 12, nothing = 0, falls[SAMPLES + 1] = {0, 3, 2, 4, 8, 8, 10, 12},
                  late[SAMPLES + 1] = {1, 3, 3, 4, 8, 8, 10, 12},
                  more[SAMPLES + 1] = {0, 3, 3, 4, 8, 8, 10, 13};
    const double cold[2] = {1.0, 0.0};
    int32_t index[ROWS * 3] = {0};
    index[17] = CLASSES;
    refused(opens(changed("/", "top_k", BK_I64, 0, &twelve)), BK_INPUT, "top_k = 12");
    refused(opens(changed("/", "vocabulary", BK_I64, 0, &nothing)), BK_INPUT, "vocabulary = 0");
    refused(opens(changed("/", "temperatures", BK_F64, 2, cold)), BK_INPUT, "not above 0");
    refused(opens(changed("/", "temperatures", BK_F64, 1, cold)), BK_INPUT, "/lse");
    refused(opens(changed("/offsets", NULL, BK_I64, 0, falls)), BK_INPUT, "falls");
    refused(opens(changed("/offsets", NULL, BK_I64, 0, late)), BK_INPUT, "begin with 0");
    refused(opens(changed("/offsets", NULL, BK_I64, 0, more)), BK_INPUT,
            "/index is not of 13 rows");
    refused(opens(changed("/index", NULL, BK_I32, 0, index)), BK_INPUT, "not in the vocabulary");
    index[17] = CLASSES - 1;
    good(opens(changed("/index", NULL, BK_I32, 0, index)));
}

/* Of another maker: no more than the format's own attributes, and no top_k of dense rows. */
static void what_may_be_left_out(void **state)
{
    (void)state;
    static const char *const names[] = {"digest", "length", "max_length", "top_k"};
    const char *path = written(&forms[1], "less.h5", 0);
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    for (int i = 0; i < 4; i++)
        assert_true(H5Adelete_by_name(file, "/", names[i], H5P_DEFAULT) >= 0);
    assert_true(H5Adelete_by_name(file, "/", "texts", H5P_DEFAULT) >= 0);
    H5Fclose(file);
    bk_teacher_file f;
    good(bk_teacher_file_open(arena, path, 0, &f));
    assert_string_equal(f.digest, "");
    assert_int_equal(f.length, -1);
    assert_int_equal(f.max_length, -1);
    assert_int_equal(f.form.top_k, 0);
    assert_true(f.form.bf16);
    good(bk_teacher_file_close(&f));
}

/* HDF5 follows what stands in its heap of texts, wherever that leads; what opens does not ask. */
static void a_damaged_heap_of_texts(void **state)
{
    (void)state;
    for (int i = 0; i < FORMS; i++) {
        const char *path = written(&forms[i], "heap.h5", 0);
        size_t bytes, heaps = 0;
        char *content = bk_test_read(path, &bytes);
        for (size_t at = 0; at + 512 < bytes; at++)
            if (memcmp(content + at, "GCOL", 4) == 0) {
                memset(content + at + 16, 0xEE, 496);
                heaps++;
            }
        assert_true(heaps > 0);
        FILE *file = fopen(path, "wb");
        assert_int_equal(fwrite(content, 1, bytes, file), bytes);
        fclose(file);
        free(content);
        bk_teacher_file f;
        good(bk_teacher_file_open(arena, path, 0, &f));
        check_about(&f, &forms[i]);
        good(bk_teacher_file_close(&f));
    }
}

/* No flipped bit of the content goes by: what opens has the rows that were written. */
static void flipped_bits(void **state)
{
    (void)state;
    const bk_teacher_form *form = &forms[0];
    bk_teacher_rows all = rows_of(form), read = bk_teacher_rows_new(arena, form, ROWS);
    int found = 0;
    for (size_t byte = 3; byte < 300000; byte += 97) {
        const char *path = written(form, "flip.h5", 1 << 20);
        if ((int64_t)byte >= bk_file_size(path))
            break;
        bk_test_flip(path, byte, (int)(byte % 8));
        bk_teacher_file f;
        if (bk_teacher_file_open(arena, path, 0, &f) != BK_OK) {
            found++;
            continue;
        }
        if (bk_teacher_file_read(&f, 0, ROWS, read) == BK_OK)
            assert_rows(form, read, all, ROWS);
        else
            found++;
        bk_status closed = bk_teacher_file_close(&f); /* keeps what went wrong */
        (void)closed;
    }
    assert_true(found > 5);
}

static int make(void **state)
{
    arena = bk_arena_new("test");
    return bk_test_directory_make_in_memory(state);
}

static int remove_all(void **state)
{
    bk_arena_free(arena);
    return bk_test_directory_remove(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(as_narrow_as_the_vocabulary_allows),
        cmocka_unit_test(an_old_file_stays_until_the_new_one_is_whole),
        cmocka_unit_test(two_jobs_may_write_the_same_file),
        cmocka_unit_test(dropping_keeps_the_text_of_what_went_wrong),
        cmocka_unit_test(where_nothing_can_be_written),
        cmocka_unit_test(files_of_another_kind),
        cmocka_unit_test(content_that_cannot_be),
        cmocka_unit_test(what_may_be_left_out),
        cmocka_unit_test(a_damaged_heap_of_texts),
        cmocka_unit_test(flipped_bits),
    };
    bk_h5_start();
    return cmocka_run_group_tests(tests, make, remove_all);
}
