/* A file of a teacher's logits as its bytes. */
#include "io/teacher_file.h"
#include "tests/fuzz/fuzz.h"

enum { MOST_ROWS = 1 << 12, KEPT = 1 << 16 };

/* Rows of samples follow one another, and classes are in the vocabulary. */
static void check(const bk_teacher_file *f, int64_t count, const bk_teacher_rows *rows)
{
    const int32_t *index = rows->part[0];
    for (int64_t i = 0; i < f->samples; i++)
        if (f->offsets[i] < 0 || f->offsets[i] > f->offsets[i + 1] || f->offsets[i + 1] > f->rows)
            bk_fuzz_wrong("rows of sample %lld of %lld", (long long)i, (long long)f->samples);
    for (int64_t i = 0; i < count * f->form.top_k; i++)
        if (index[i] < 0 || index[i] >= f->form.vocabulary)
            bk_fuzz_wrong("class %d of %lld", index[i], (long long)f->form.vocabulary);
}

/* Front and back half, as a training reads them: from memory when the rows are held. */
static void read_rows(bk_arena *arena, const bk_teacher_file *f)
{
    size_t bytes[BK_TEACHER_PARTS];
    int64_t first = f->rows / 2, part[][2] = {{0, first}, {first, f->rows - first}};
    if (f->rows > MOST_ROWS || bk_teacher_row_bytes(&f->form, bytes) > KEPT)
        return;
    for (int i = 0; i < 2; i++) {
        bk_teacher_rows rows = bk_teacher_rows_new(arena, &f->form, part[i][1]);
        if (bk_fuzz_read(bk_teacher_file_read(f, part[i][0], part[i][1], rows)))
            check(f, part[i][1], &rows);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bk_arena *arena = bk_arena_new("fuzz");
    const char *path = bk_fuzz_path(arena, "teacher.h5");
    bk_teacher_file f;
    bk_fuzz_write(path, data, size);
    for (size_t keep = 0; keep <= KEPT; keep += KEPT)
        if (bk_fuzz_read(bk_teacher_file_open(arena, path, keep, &f))) {
            read_rows(arena, &f);
            bk_fuzz_read(bk_teacher_file_close(&f)); /* keeps what went wrong */
        }
    bk_arena_free(arena);
    return 0;
}
