/* Writes the seeds of the targets with binary inputs: seeds DIRECTORY, which gets DIRECTORY/NAME/.
 */
#include "core/log.h"
#include "io/checkpoint.h"
#include "io/dataset.h"
#include "io/digest.h"
#include "io/files.h"
#include "io/teacher_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 6 };

static bk_arena *arena;
static const char *root;

static void must(bk_status status)
{
    if (status == BK_OK)
        return;
    bk_error_line(bk_status_text());
    abort();
}

static const char *place(const char *target, const char *name)
{
    const char *directory = bk_arena_printf(arena, "%s/%s", root, target);
    must(bk_make_directories(directory));
    return bk_arena_printf(arena, "%s/%s", directory, name);
}

static void put(const char *target, const char *name, const void *head, size_t bytes,
                const void *data, size_t size)
{
    FILE *file = fopen(place(target, name), "wb");
    if (!file || fwrite(head, 1, bytes, file) != bytes || fwrite(data, 1, size, file) != size ||
        fclose(file) != 0)
        abort();
}

/* ---- data sets ---- */

static void dataset(const char *name, bool features, bool labels, bool pairs)
{
    static const int32_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, label[] = {0, 1, 2, 0, 1, -1};
    static const int64_t offsets[] = {0, 1, 1, 3, 4, 7, 9}, index[] = {5, 3, 1, 0, 2, 4};
    static const uint8_t subwords[] = {1, 2, 3};
    static const double ladder[] = {0.25, 1.0};
    static const float numbers[SAMPLES * 2 * 2] = {1.0f, -1.0f, 0.5f};
    bk_dataset d = {.task = labels ? "classification" : "language_model",
                    .source = "a seed",
                    .samples = SAMPLES,
                    .vocabulary = features ? 0 : 10,
                    .classes = labels ? 3 : 0,
                    .tokens = features ? NULL : tokens,
                    .offsets = features ? NULL : offsets,
                    .labels = labels ? label : NULL,
                    .features = features ? numbers : NULL,
                    .positions = 2,
                    .channels = 2,
                    .splits = 2,
                    .label_name = labels ? "a\nb\nc" : NULL};
    if (pairs) {
        d.tokens2 = tokens;
        d.offsets2 = offsets;
        d.metric = "f1";
        d.subwords = subwords;
        d.subword_bytes = sizeof subwords;
        bk_sha256_text(subwords, sizeof subwords, d.vocabulary_digest);
    }
    d.split[0] = (bk_split){.name = "train",
                            .index = index,
                            .count = 4,
                            .majority = NAN,
                            .ladder = ladder,
                            .ladder_count = 2};
    d.split[1] = (bk_split){.name = "validation", .index = index + 4, .count = 2, .majority = NAN};
    must(bk_dataset_write(&d, place("dataset", name), 1, ""));
}

/* ---- a teacher's logits ---- */

static void teacher(const char *name, bk_teacher_form form)
{
    enum { ROWS = 4 };
    static const int64_t offsets[] = {0, 1, 1, 3, 4};
    bk_teacher_file f = {.path = place("teacher", name),
                         .form = form,
                         .teacher = "0123",
                         .data = "4567",
                         .split = "train",
                         .length = 2,
                         .samples = 4,
                         .rows = ROWS,
                         .offsets = offsets};
    bk_teacher_rows rows = bk_teacher_rows_new(arena, &form, ROWS);
    bk_teacher_rows_clear(&form, rows, ROWS);
    must(bk_teacher_file_create(arena, 0, &f));
    must(bk_teacher_file_write(&f, 0, ROWS, rows));
    must(bk_teacher_file_commit(&f));
}

static void teachers(void)
{
    static const double temperature[] = {1.0, 2.5};
    const bk_teacher_form top = {
        .vocabulary = 5, .top_k = 2, .temperatures = 2, .temperature = temperature};
    teacher("dense", (bk_teacher_form){.vocabulary = 5});
    teacher("bf16", (bk_teacher_form){.vocabulary = 5, .bf16 = true});
    teacher("top", top);
}

/* ---- checkpoints ---- */

static void checkpoint(void)
{
    static float value[] = {1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f};
    static int64_t count[] = {7};
    const bk_piece pieces[] = {
        {.name = "model/a",
         .dtype = BK_F32,
         .global_shape = {2, 3},
         .dims = 2,
         .count = 6,
         .data = value},
        {.name = "model/b", .dtype = BK_I64, .dims = 0, .count = 1, .data = count},
        {.name = "optim/m/a",
         .dtype = BK_F32,
         .global_shape = {6},
         .dims = 1,
         .count = 6,
         .data = value}};
    const bk_run_state state = {
        .step = 5, .lanes = 1, .config = "run: {dir: x}\n", .machine = "ranks: 1"};
    const bk_save_options options = {.writers = 1,
                                     .nodes = 1,
                                     .keep = 2,
                                     .best = -1,
                                     .started_from = -1,
                                     .run_id = "0123456789abcdef"};
    bk_saved saved;
    char *manifest, *shard;
    size_t length, bytes;
    const char *directory = place("made", "step-00000005");
    must(bk_checkpoint_save(NULL, bk_arena_printf(arena, "%s/made", root), pieces, 3, &state,
                            &options, &saved));
    must(bk_read_file(arena, bk_arena_printf(arena, "%s/manifest.json", directory), &manifest,
                      &length));
    must(bk_read_file(arena, bk_arena_printf(arena, "%s/shard-00000.h5", directory), &shard,
                      &bytes));
    const uint8_t head[] = {(uint8_t)length, (uint8_t)(length >> 8)};
    const char *both = bk_arena_printf(arena, "%c%c%s", head[0], head[1], manifest);
    put("checkpoint", "whole", both, length + sizeof head, shard, bytes);
    put("manifest", "whole", "", 0, manifest, length);
}

/* ---- IDX ---- */

static void images(const char *name, int flags)
{
    static const uint8_t pixels[] = {0, 0, 8, 3, 0, 0, 0, 2, 0,   0,   0,   2,
                                     0, 0, 0, 2, 1, 2, 3, 4, 250, 251, 252, 253};
    static const uint8_t labels[] = {0, 0, 8, 1, 0, 0, 0, 2, 3, 1};
    const uint8_t head[] = {(uint8_t)flags, 0, 0, 0, 50, sizeof pixels, 0};
    uint8_t both[sizeof head + sizeof pixels];
    memcpy(both, head, sizeof head);
    memcpy(both + sizeof head, pixels, sizeof pixels);
    put("images", name, both, sizeof both, labels, sizeof labels);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return BK_USAGE;
    arena = bk_arena_new("seeds");
    root = argv[1];
    dataset("tokens", false, true, false);
    dataset("pairs", false, true, true);
    dataset("corpus", false, false, false);
    dataset("features", true, true, false);
    teachers();
    checkpoint();
    images("pixels", 0);
    images("patches", 1);
    images("stripes", 2);
    images("compressed", 8);
    images("real", 4 + 16);
    bk_arena_free(arena);
    return 0;
}
