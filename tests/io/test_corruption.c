/* test: labels=unit,io,fault timeout=300 */
/* 1,000 flipped bits and all truncations of checkpoints and data sets: each is refused, or changes
 * nothing that is read. */
#include "core/log.h"
#include "io/checkpoint.h"
#include "io/digest.h"
#include "io/files.h"
#include "tests/support/check.h"
#include "tests/support/checkpoint.h"
#include "tests/support/data.h"
#include "tests/support/files.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FLIPS = 1000, STEP = 4096, STEP_OF_RUN = 7, VERSION = 3, SAMPLES = 300 };

static bk_arena *arena;

/* A file to damage, and how to read what it belongs to: BK_OK only with the content it had. */
typedef struct victim {
    const char *path;
    bk_status (*read)(const void *context);
    const void *context;
} victim;

/* ---- damage ---- */

/* True when the damaged file is refused. */
static bool refused(const victim *v, const char *damage, size_t byte)
{
    bk_arena_mark mark = bk_arena_get_mark(arena);
    bk_status status = v->read(v->context);
    bk_arena_release(arena, mark);
    if (status != BK_OK && status != BK_INPUT)
        fail_msg("%s: %s at byte %zu: status %d: %s", v->path, damage, byte, (int)status,
                 bk_status_text());
    return status == BK_INPUT;
}

/* One in four flips falls into the first 2 KiB, where formats keep what matters most. */
static int64_t flip(const victim *v, size_t bytes)
{
    uint64_t random = 20250101;
    int64_t count = 0;
    for (int i = 0; i < FLIPS; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        size_t span = i % 4 == 0 && bytes > 2048 ? 2048 : bytes;
        size_t byte = (size_t)(random >> 33) % span;
        int bit = (int)(random >> 29) & 7;
        bk_test_flip(v->path, byte, bit);
        count += refused(v, "a flipped bit", byte);
        bk_test_flip(v->path, byte, bit);
    }
    return count;
}

static void cut(const victim *v, const char *data, size_t bytes)
{
    bk_test_write(v->path, data, bytes);
    if (!refused(v, "a cut", bytes))
        fail_msg("%s is read after a cut at byte %zu", v->path, bytes);
}

/* At every 4 KiB, in the middle, and by the last byte. */
static void cut_all(const victim *v, const char *data, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += STEP)
        cut(v, data, at);
    cut(v, data, bytes / 2);
    cut(v, data, bytes - 1);
    bk_test_write(v->path, data, bytes);
}

/* Flips and cuts; the number of flips that were refused. */
static int64_t damage(const victim *v)
{
    size_t bytes;
    char *data = bk_test_read(v->path, &bytes);
    assert_int_equal(v->read(v->context), BK_OK);
    int64_t count = flip(v, bytes);
    cut_all(v, data, bytes);
    assert_int_equal(v->read(v->context), BK_OK);
    free(data);
    return count;
}

/* ---- checkpoints ---- */

static bk_status read_checkpoint(const void *directory)
{
    bk_checkpoint *c;
    bk_piece list[BK_TEST_TENSORS];
    BK_TRY(bk_checkpoint_open(NULL, arena, directory, BK_CHECK_SHA256, &c));
    int64_t count = bk_test_wishes(arena, 0, 1, list);
    BK_TRY(bk_checkpoint_read(NULL, c, list, count, "model/"));
    assert_int_equal(bk_checkpoint_state(c)->step, STEP_OF_RUN);
    bk_test_check_pieces(list, count, VERSION);
    return BK_OK;
}

/* Digests see every bit. */
static void files_of_a_checkpoint(void **state)
{
    (void)state;
    static const char *const file[] = {"manifest.json", "shard-00000.h5"};
    const char *path = bk_arena_strdup(arena, bk_test_path("run/x"));
    path = bk_arena_printf(arena, "%.*s", (int)strlen(path) - 2, path);
    bk_save_options options = bk_test_options(1);
    bk_test_save(NULL, arena, path, STEP_OF_RUN, VERSION, &options);
    const char *directory = bk_step_path(arena, path, STEP_OF_RUN);
    for (int i = 0; i < 2; i++) {
        const victim v = {bk_arena_printf(arena, "%s/%s", directory, file[i]), read_checkpoint,
                          directory};
        assert_int_equal(damage(&v), FLIPS);
    }
}

/* ---- data sets ---- */

static bk_status read_data(const void *context)
{
    const bk_dataset *wanted = context;
    bk_dataset *d;
    BK_TRY(bk_dataset_read(arena, wanted->path, &d));
    if (!bk_test_same_data(wanted, d))
        fail_msg("%s is read as other data", wanted->path);
    return BK_OK;
}

enum { TOKENS, FEATURES, PAIRS, FORMS };

/* A few hundred samples. */
static bk_dataset data_of(int form)
{
    static const uint8_t model[5000] = {1, 2, 3};
    int64_t *offsets = BK_ZNEW(arena, int64_t, SAMPLES + 1),
            *index = BK_NEW(arena, int64_t, SAMPLES);
    int32_t *labels = BK_NEW(arena, int32_t, SAMPLES),
            *tokens = BK_NEW(arena, int32_t, 32 * SAMPLES);
    float *numbers = BK_NEW(arena, float, 32 * SAMPLES);
    for (int64_t i = 0; i < SAMPLES; i++) {
        offsets[i + 1] = offsets[i] + i % 32;
        labels[i] = (int32_t)(i % 3);
        index[i] = SAMPLES - 1 - i;
    }
    for (int i = 0; i < 32 * SAMPLES; i++) {
        tokens[i] = 1 + i % 299;
        numbers[i] = (float)i / 7.0f;
    }
    bk_dataset d = {.task = "classification",
                    .source = "made by a test",
                    .samples = SAMPLES,
                    .classes = 3,
                    .labels = labels,
                    .splits = 2,
                    .label_name = "a\nb\nc"};
    if (form == FEATURES) {
        d.features = numbers;
        d.positions = 8;
        d.channels = 4;
    } else {
        d.tokens = tokens;
        d.offsets = offsets;
        d.vocabulary = 300;
    }
    if (form == PAIRS) {
        d.tokens2 = tokens;
        d.offsets2 = offsets;
        d.metric = "f1";
        d.subwords = model;
        d.subword_bytes = sizeof model;
        bk_sha256_text(model, sizeof model, d.vocabulary_digest);
    }
    bk_dataset_measure(&d);
    d.split[0] = (bk_split){.name = "train", .index = index, .count = 200, .majority = NAN};
    d.split[1] = (bk_split){.name = "test", .index = index + 200, .count = 100, .majority = NAN};
    return d;
}

/* Not every byte of a file of HDF5 is used. */
static void data_sets(void **state)
{
    (void)state;
    for (int form = 0; form < FORMS; form++) {
        bk_dataset d = data_of(form);
        const char *path = bk_arena_strdup(arena, bk_test_path("data.h5"));
        assert_int_equal(bk_dataset_write(&d, path, 7, "seed: 7\n"), BK_OK);
        d.path = path;
        const victim v = {path, read_data, &d};
        assert_true(damage(&v) > FLIPS / 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_of_a_checkpoint),
        cmocka_unit_test(data_sets),
    };
    arena = bk_arena_new("test");
    bk_log_setup(BK_LOG_QUIET, false, false);
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
