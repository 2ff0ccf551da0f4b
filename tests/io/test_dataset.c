/* test: labels=unit,io timeout=300 */
/* The data set file: what is written is what is read, every attribute of the interface is there,
 * and nothing damaged is believed. */
#include "io/dataset.h"

#include "io/digest.h"
#include "tests/support/check.h"
#include "tests/support/data.h"
#include "tests/support/files.h"

#include <hdf5.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 40 };

static bk_arena *arena;

/* ---- data sets to write ---- */

static const double steps[] = {0.25, 0.5, 1.0};

/* 40 samples of 0 to 6 tokens below the vocabulary, 3 classes, two splits. */
static bk_dataset tokens_of(int64_t vocabulary)
{
    int64_t *offsets = BK_ZNEW(arena, int64_t, SAMPLES + 1),
            *index = BK_NEW(arena, int64_t, SAMPLES);
    int32_t *labels = BK_NEW(arena, int32_t, SAMPLES),
            *tokens = BK_NEW(arena, int32_t, 8 * SAMPLES);
    for (int64_t i = 0; i < SAMPLES; i++) {
        offsets[i + 1] = offsets[i] + i % 7;
        labels[i] = i % 5 == 0 ? 0 : (int32_t)(i % 3);
        index[i] = SAMPLES - 1 - i;
        for (int64_t k = offsets[i]; k < offsets[i + 1]; k++)
            tokens[k] = (int32_t)(vocabulary - 1 - (7 * k) % vocabulary);
    }
    bk_dataset d = {.task = "classification",
                    .source = "made by a test",
                    .samples = SAMPLES,
                    .vocabulary = vocabulary,
                    .classes = 3,
                    .tokens = tokens,
                    .offsets = offsets,
                    .labels = labels,
                    .max_length = 6,
                    .splits = 2,
                    .label_name = "low\nmiddle\nhigh"};
    d.split[0] = (bk_split){.name = "train",
                            .index = index,
                            .count = 30,
                            .majority = NAN,
                            .ladder = steps,
                            .ladder_count = 3};
    d.split[1] = (bk_split){.name = "test", .index = index + 30, .count = 10, .majority = NAN};
    return d;
}

static bk_dataset features_of(void)
{
    bk_dataset d = tokens_of(10);
    float *features = BK_NEW(arena, float, SAMPLES * 4 * 3);
    for (int i = 0; i < SAMPLES * 4 * 3; i++)
        features[i] = (float)i / 7.0f;
    d.tokens = NULL;
    d.offsets = NULL;
    d.vocabulary = 0;
    d.features = features;
    d.positions = d.max_length = 4;
    d.channels = 3;
    return d;
}

/* Second texts of 6 to 0 tokens, and a model of subwords that is none. */
static bk_dataset pairs_of(int64_t vocabulary)
{
    static const uint8_t model[] = {3, 1, 4, 1, 5, 0, 255};
    bk_dataset d = tokens_of(vocabulary);
    int64_t *offsets = BK_ZNEW(arena, int64_t, SAMPLES + 1);
    int32_t *tokens = BK_NEW(arena, int32_t, 8 * SAMPLES);
    for (int64_t i = 0; i < SAMPLES; i++) {
        offsets[i + 1] = offsets[i] + 6 - i % 7;
        for (int64_t k = offsets[i]; k < offsets[i + 1]; k++)
            tokens[k] = (int32_t)((11 * k) % vocabulary);
    }
    d.task = "pair_classification";
    d.tokens2 = tokens;
    d.offsets2 = offsets;
    d.metric = "f1";
    d.subwords = model;
    d.subword_bytes = sizeof model;
    bk_sha256_text(model, sizeof model, d.vocabulary_digest);
    bk_dataset_measure(&d);
    return d;
}

static const char *written(bk_dataset *d, const char *name)
{
    const char *path = bk_arena_strdup(arena, bk_test_path("%s", name));
    if (bk_dataset_write(d, path, 7, "seed: 7\n") != BK_OK)
        fail_msg("%s", bk_status_text());
    return path;
}

static bk_dataset *read_back(const char *path)
{
    bk_dataset *d = NULL;
    if (bk_dataset_read(arena, path, &d) != BK_OK)
        fail_msg("%s", bk_status_text());
    return d;
}

/* ---- round trip ---- */

static void what_is_written_is_read(void **state)
{
    (void)state;
    static const int64_t vocabulary[] = {16, 256, 257, 65536, 65537, 1000000};
    for (size_t i = 0; i < sizeof vocabulary / sizeof *vocabulary; i++) {
        bk_dataset d = tokens_of(vocabulary[i]);
        bk_dataset *r = read_back(written(&d, "tokens.h5"));
        assert_true(bk_test_same_data(&d, r));
        assert_string_equal(r->label_name, d.label_name);
    }
    bk_dataset p = pairs_of(300);
    assert_true(bk_test_same_data(&p, read_back(written(&p, "pairs.h5"))));
    bk_dataset f = features_of();
    bk_dataset *r = read_back(written(&f, "features.h5"));
    assert_true(bk_test_same_data(&f, r));
    assert_int_equal(r->positions, 4);
    assert_int_equal(r->channels, 3);
}

static void splits_carry_majority_and_ladder(void **state)
{
    (void)state;
    bk_dataset d = tokens_of(16), *r = read_back(written(&d, "splits.h5"));
    const bk_split *train, *test;
    assert_int_equal(bk_dataset_split(r, "train", &train), BK_OK);
    assert_int_equal(bk_dataset_split(r, "test", &test), BK_OK);
    int count[3] = {0}, most = 0;
    for (int i = 0; i < 30; i++)
        count[d.labels[SAMPLES - 1 - i]]++;
    for (int k = 0; k < 3; k++)
        most = count[k] > most ? count[k] : most;
    bk_check_error(fabs(train->majority - most / 30.0), 0.0, "majority");
    assert_int_equal(train->ladder_count, 3);
    assert_memory_equal(train->ladder, steps, sizeof steps);
    assert_int_equal(test->ladder_count, 0);
    assert_int_equal(bk_dataset_split(r, "dev", &test), BK_INPUT);
    assert_non_null(strstr(bk_status_text(), "test, train"));
}

static void majorities(void **state)
{
    (void)state;
    static const int32_t labels[] = {0, 1, 1, -1, 1};
    static const int64_t index[] = {0, 1, 2, 3};
    const bk_split s = {.index = index, .count = 4}, none = {.index = index};
    assert_true(bk_majority(&(bk_dataset){.labels = labels, .classes = 3}, &s) == 0.5);
    assert_true(isnan(bk_majority(&(bk_dataset){.classes = 3}, &s)));
    assert_true(isnan(bk_majority(&(bk_dataset){.labels = labels, .classes = 3}, &none)));
    assert_true(isnan(bk_majority(&(bk_dataset){.labels = labels}, &s)));
}

static void the_digest_is_of_the_content(void **state)
{
    (void)state;
    bk_dataset a = tokens_of(16), b = tokens_of(16), c = tokens_of(16);
    const char *path = written(&a, "a.h5");
    b.source = "elsewhere"; /* attributes do not count */
    written(&b, "b.h5");
    assert_string_equal(a.digest, b.digest);
    int32_t *labels = BK_NEW(arena, int32_t, SAMPLES);
    memcpy(labels, c.labels, SAMPLES * sizeof *labels);
    labels[39] = 1 - labels[39] % 2;
    c.labels = labels;
    written(&c, "c.h5");
    assert_string_not_equal(a.digest, c.digest);
    /* pinned: the digest is part of the format (checkpoints name the data set by it) */
    assert_string_equal(a.digest,
                        "997a4608343d69f45751605849dd4cf6987c1628fcfef57365f2e24fb6d01e9e");
    bk_h5 *file;
    char digest[65];
    assert_int_equal(bk_h5_open(arena, path, &file), BK_OK);
    assert_int_equal(bk_dataset_digest(file, digest), BK_OK);
    assert_int_equal(bk_h5_close(file), BK_OK);
    assert_string_equal(digest, a.digest);
}

static void lengths_of_samples(void **state)
{
    (void)state;
    const bk_dataset single = tokens_of(16), pair = pairs_of(16), features = features_of();
    assert_int_equal(bk_sample_length(&single, 4), 4);
    assert_int_equal(bk_sample_length(&pair, 4), 4 + 1 + 2);
    assert_int_equal(bk_sample_length(&features, 4), 4);
    assert_int_equal(pair.max_length, 7);
    assert_true(bk_mean_length(&pair) == 7.0);
    assert_true(bk_mean_length(&(bk_dataset){.positions = 3}) == 0.0);
    assert_int_equal(bk_dataset_symbols(&single), 16);
    assert_int_equal(bk_dataset_symbols(&pair), 17);
    assert_int_equal(bk_dataset_symbols(&features), 0);
}

/* ---- the interface, read with the library itself ---- */

static void check_width(const char *path, int64_t vocabulary, size_t bytes)
{
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    hid_t set = H5Dopen2(file, "/tokens", H5P_DEFAULT), type = H5Dget_type(set);
    assert_int_equal(H5Tget_class(type), H5T_INTEGER);
    assert_int_equal(H5Tget_size(type), bytes);
    assert_int_equal(H5Tget_sign(type), vocabulary > 65536 ? H5T_SGN_2 : H5T_SGN_NONE);
    H5Tclose(type);
    H5Dclose(set);
    H5Fclose(file);
}

static void tokens_are_narrow(void **state)
{
    (void)state;
    static const struct {
        int64_t vocabulary;
        size_t bytes;
    } wanted[] = {{16, 1}, {256, 1}, {257, 2}, {65536, 2}, {65537, 4}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        bk_dataset d = tokens_of(wanted[i].vocabulary);
        check_width(written(&d, "w.h5"), wanted[i].vocabulary, wanted[i].bytes);
    }
}

static void check_text(hid_t object, const char *name, const char *wanted)
{
    char *text = NULL;
    hid_t id = H5Aopen(object, name, H5P_DEFAULT), type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    H5Tset_cset(type, H5T_CSET_UTF8);
    assert_true(id >= 0 && H5Aread(id, type, &text) >= 0);
    if (wanted)
        assert_string_equal(text, wanted);
    H5free_memory(text);
    H5Tclose(type);
    H5Aclose(id);
}

static void check_integers(hid_t object, const char *name, int count, const int64_t *wanted)
{
    int64_t value[4] = {0};
    hid_t id = H5Aopen(object, name, H5P_DEFAULT), space = H5Aget_space(id);
    assert_int_equal(H5Sget_simple_extent_npoints(space), count);
    assert_true(H5Aread(id, H5T_NATIVE_INT64, value) >= 0);
    for (int i = 0; i < count; i++)
        assert_int_equal(value[i], wanted[i]);
    H5Sclose(space);
    H5Aclose(id);
}

static void every_attribute_is_there(void **state)
{
    (void)state;
    bk_dataset d = tokens_of(16);
    hid_t file = H5Fopen(written(&d, "i.h5"), H5F_ACC_RDONLY, H5P_DEFAULT);
    check_text(file, "format", "birkhoff-dataset");
    check_text(file, "birkhoff_version", BIRKHOFF_VERSION);
    check_text(file, "created", NULL);
    check_text(file, "task", "classification");
    check_text(file, "source", "made by a test");
    check_text(file, "options", "seed: 7\n");
    check_text(file, "digest", d.digest);
    check_integers(file, "format_version", 2, (const int64_t[]){1, 0});
    check_integers(file, "vocabulary", 1, (const int64_t[]){16});
    check_integers(file, "classes", 1, (const int64_t[]){3});
    check_integers(file, "seed", 1, (const int64_t[]){7});
    assert_true(H5Lexists(file, "/offsets", H5P_DEFAULT) > 0);
    assert_true(H5Lexists(file, "/labels", H5P_DEFAULT) > 0);
    assert_true(H5Lexists(file, "/splits/train", H5P_DEFAULT) > 0);
    H5Fclose(file);
}

/* V110 bounds on the file, Fletcher32 on every dataset with elements. */
static herr_t check_filters(hid_t root, const char *name, const H5O_info_t *info, void *count)
{
    if (info->type != H5O_TYPE_DATASET)
        return 0;
    hid_t set = H5Dopen2(root, name, H5P_DEFAULT), list = H5Dget_create_plist(set);
    bool found = false;
    for (int i = 0; i < H5Pget_nfilters(list); i++) {
        unsigned flags, more;
        size_t values = 0;
        found = found || H5Pget_filter2(list, (unsigned)i, &flags, &values, NULL, 0, NULL, &more) ==
                             H5Z_FILTER_FLETCHER32;
    }
    ++*(int *)count;
    H5Pclose(list);
    H5Dclose(set);
    return found ? 0 : -1;
}

static void the_library_can_check(void **state)
{
    (void)state;
    bk_dataset d = tokens_of(16);
    int count = 0;
    hid_t file = H5Fopen(written(&d, "f.h5"), H5F_ACC_RDONLY, H5P_DEFAULT);
    unsigned version;
    hid_t creation = H5Fget_create_plist(file);
    assert_true(H5Pget_version(creation, &version, NULL, NULL, NULL) >= 0 && version == 3);
    assert_true(
        H5Ovisit2(file, H5_INDEX_NAME, H5_ITER_INC, check_filters, &count, H5O_INFO_BASIC) >= 0);
    assert_int_equal(count, 5);
    H5Pclose(creation);
    H5Fclose(file);
}

/* ---- damage ---- */

static void refused(const char *path, const char *word)
{
    bk_dataset *d;
    if (bk_dataset_read(arena, path, &d) != BK_INPUT)
        fail_msg("%s (%s) was read", path, word);
    if (!strstr(bk_status_text(), word))
        fail_msg("no '%s' in: %s", word, bk_status_text());
}

static void foreign_files(void **state)
{
    (void)state;
    const char *path = bk_arena_strdup(arena, bk_test_path("foreign.h5"));
    refused(path, "does not exist");
    bk_test_write_text(path, "");
    refused(path, "empty");
    bk_test_write_text(path, "only a text");
    refused(path, "not an HDF5 file");
    refused(bk_arena_strdup(arena, bk_test_path("x/y")), "does not exist");
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(file);
    refused(path, "not made by birkhoff");
    bk_dataset d = tokens_of(16);
    written(&d, "foreign.h5");
    file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    H5Ldelete(file, "/splits", H5P_DEFAULT);
    H5Fclose(file);
    refused(path, "/splits is missing");
}

/* Replaces the value of an integer dataset at one place. */
static void poke(const char *path, const char *dataset, hsize_t at, int64_t value)
{
    hsize_t one = 1;
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    hid_t set = H5Dopen2(file, dataset, H5P_DEFAULT), space = H5Dget_space(set),
          memory = H5Screate_simple(1, &one, NULL);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, &at, NULL, &one, NULL);
    assert_true(H5Dwrite(set, H5T_NATIVE_INT64, memory, space, H5P_DEFAULT, &value) >= 0);
    H5Sclose(memory);
    H5Sclose(space);
    H5Dclose(set);
    H5Fclose(file);
}

/* Whole files that contradict themselves: object and row are named. */
static void contradictions(void **state)
{
    (void)state;
    static const struct {
        const char *dataset;
        hsize_t at;
        int64_t value;
        const char *word;
    } edit[] = {
        {"/offsets", 0, 1, "/offsets do not begin"},
        {"/offsets", 5, 1000, "row 6"},
        {"/offsets", SAMPLES, 1000, "/tokens has"},
        {"/labels", 3, 3, "3 at row 3"},
        {"/labels", 4, -2, "-2 at row 4"},
        {"/tokens", 11, 16, "16 at row 11"},
        {"/splits/train", 2, SAMPLES, "40 at row 2"},
        {"/splits/test", 0, -1, "-1 at row 0"},
    };
    bk_dataset d = tokens_of(16);
    for (size_t i = 0; i < sizeof edit / sizeof *edit; i++) {
        const char *path = written(&d, "edited.h5");
        poke(path, edit[i].dataset, edit[i].at, edit[i].value);
        refused(path, edit[i].word);
    }
    bk_dataset wide = tokens_of(16);
    int32_t *tokens = BK_NEW(arena, int32_t, 8 * SAMPLES);
    memset(tokens, 1, 8 * SAMPLES * sizeof *tokens); /* no library narrows what does not fit */
    wide.tokens = tokens;
    bk_status status = bk_dataset_write(&wide, bk_test_path("wide.h5"), 0, NULL);
    if (status == BK_OK)
        refused(bk_test_path("wide.h5"), "vocabulary");
}

/* Damages the pairs of a whole file. */
static void check_pair_damage(const char *dataset, hsize_t at, int64_t value, const char *word)
{
    bk_dataset d = pairs_of(16);
    const char *path = written(&d, "pair.h5");
    poke(path, dataset, at, value);
    refused(path, word);
}

static void remove_from(const char *path, const char *object)
{
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    assert_true(H5Ldelete(file, object, H5P_DEFAULT) >= 0);
    H5Fclose(file);
}

static void copy_in(const char *path, const char *from, const char *to)
{
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    assert_true(H5Ocopy(file, from, file, to, H5P_DEFAULT, H5P_DEFAULT) >= 0);
    H5Fclose(file);
}

/* Offsets of 39 texts over 40 tokens. */
static void fewer_texts(const char *path, const char *offsets)
{
    const hsize_t count = SAMPLES;
    int64_t place[SAMPLES];
    for (int64_t i = 0; i < SAMPLES; i++)
        place[i] = i == SAMPLES - 1 ? SAMPLES : i;
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    hid_t space = H5Screate_simple(1, &count, NULL);
    hid_t set =
        H5Dcreate2(file, offsets, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Dwrite(set, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, place) >= 0);
    H5Sclose(space);
    H5Dclose(set);
    H5Fclose(file);
}

static void contradictions_of_pairs(void **state)
{
    (void)state;
    check_pair_damage("/offsets2", 5, 1000, "/offsets2 fall at row 6");
    check_pair_damage("/offsets2", SAMPLES, 1000, "/tokens2 has");
    check_pair_damage("/tokens2", 11, 16, "/tokens2 has 16 at row 11");
    check_pair_damage("/subwords", 1, 2, "/subwords are not those");
    bk_dataset d = pairs_of(16), unlabelled = pairs_of(16);
    const char *path = written(&d, "pair.h5");
    remove_from(path, "/offsets2");
    refused(path, "/offsets2 is missing");
    path = written(&d, "pair.h5");
    remove_from(path, "/tokens2");
    remove_from(path, "/offsets2");
    copy_in(path, "/labels", "/tokens2"); /* 40 tokens of 39 texts */
    fewer_texts(path, "/offsets2");
    refused(path, "/offsets2 has 39 texts for 40 samples");
    unlabelled.labels = NULL;
    unlabelled.classes = 0;
    refused(written(&unlabelled, "pair.h5"), "pairs of texts without classes");
}

static void shares_that_are_none(void **state)
{
    (void)state;
    static const double value[] = {15.0, -0.5, NAN, INFINITY};
    static const char *const name[] = {"majority", "ladder"};
    bk_dataset d = tokens_of(16);
    for (int i = 0; i < 8; i++) {
        double numbers[3] = {0.5, 0.5, value[i / 2]};
        const char *path = written(&d, "share.h5");
        hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
        hsize_t count = i % 2 ? 3 : 1;
        hid_t set = H5Dopen2(file, "/splits/train", H5P_DEFAULT);
        hid_t space = H5Screate_simple(1, &count, NULL);
        assert_true(H5Adelete(set, name[i % 2]) >= 0);
        hid_t id = H5Acreate2(set, name[i % 2], H5T_IEEE_F64LE, space, H5P_DEFAULT, H5P_DEFAULT);
        assert_true(H5Awrite(id, H5T_NATIVE_DOUBLE, numbers + 3 - count) >= 0);
        H5Sclose(space);
        H5Dclose(set);
        H5Aclose(id);
        H5Fclose(file);
        refused(path, name[i % 2]);
    }
}

static void texts_are_plain(void **state)
{
    (void)state;
    bk_dataset d = tokens_of(16);
    d.source = "a \033[2J file";
    d.label_name = "low\nmiddle\nhi\007gh";
    const bk_dataset *r = read_back(written(&d, "plain.h5"));
    assert_string_equal(r->source, "a ?[2J file");
    assert_string_equal(r->label_name, "low\nmiddle\nhi?gh");
}

/* Replaces what a whole file says by numbers that would make a reader allocate. */
static void numbers_beyond_reason(void **state)
{
    (void)state;
    const int64_t many = INT32_MAX;
    const hsize_t shape[] = {0, (hsize_t)1 << 40, (hsize_t)1 << 40};
    bk_dataset d = features_of();
    const char *path = written(&d, "many.h5");
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    hid_t classes = H5Aopen(file, "classes", H5P_DEFAULT);
    assert_true(H5Awrite(classes, H5T_NATIVE_INT64, &many) >= 0);
    H5Aclose(classes);
    H5Fclose(file);
    refused(path, "classes = 2147483647");
    path = written(&d, "many.h5");
    file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    H5Ldelete(file, "/features", H5P_DEFAULT);
    hid_t space = H5Screate_simple(3, shape, NULL);
    H5Dclose(H5Dcreate2(file, "/features", H5T_IEEE_F32LE, space, H5P_DEFAULT, H5P_DEFAULT,
                        H5P_DEFAULT));
    H5Sclose(space);
    H5Fclose(file);
    refused(path, "2^31 numbers");
}

/* ---- writing ---- */

static void writing_leaves_nothing_half_done(void **state)
{
    (void)state;
    bk_dataset d = tokens_of(16), other = tokens_of(257);
    const char *nowhere = bk_test_path("made/x");
    bk_test_remove_tree(bk_arena_printf(arena, "%.*s", (int)strlen(nowhere) - 2, nowhere));
    assert_int_equal(bk_dataset_write(&d, nowhere, 0, NULL), BK_USAGE);
    const char *path = written(&d, "again.h5");
    written(&other, "again.h5");
    assert_int_equal(read_back(path)->vocabulary, 257);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(splits_carry_majority_and_ladder),
        cmocka_unit_test(majorities),
        cmocka_unit_test(the_digest_is_of_the_content),
        cmocka_unit_test(lengths_of_samples),
        cmocka_unit_test(tokens_are_narrow),
        cmocka_unit_test(every_attribute_is_there),
        cmocka_unit_test(the_library_can_check),
        cmocka_unit_test(foreign_files),
        cmocka_unit_test(contradictions),
        cmocka_unit_test(contradictions_of_pairs),
        cmocka_unit_test(shares_that_are_none),
        cmocka_unit_test(texts_are_plain),
        cmocka_unit_test(numbers_beyond_reason),
        cmocka_unit_test(writing_leaves_nothing_half_done),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
