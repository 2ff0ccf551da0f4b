/* A data set as whole HDF5 of any content: what HDF5 vouches for must not be believed for that. */
#include "io/dataset.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>
#include <unistd.h>

enum { MOST = 64 };

static void must(bk_status status)
{
    if (status != BK_OK)
        bk_fuzz_wrong("the file cannot be written: %s", bk_status_text());
}

/* A list of integers or reals of any width, now and then with axes of any number. */
static void write_list(bk_h5 *file, const char *path, bk_fuzz_input *in)
{
    static const bk_dtype dtypes[] = {BK_I64, BK_I32, BK_U8, BK_U16, BK_F32, BK_F64, BK_I64};
    uint8_t form = bk_fuzz_byte(in);
    if (form == 255)
        return; /* it is missing */
    int64_t value[MOST] = {0}, count = bk_fuzz_byte(in) % MOST;
    int64_t shape[BK_MAX_DIMS] = {count, 1, 1, 1};
    for (int64_t i = 0; i < count; i++)
        value[i] = bk_fuzz_integer(in);
    must(bk_h5_write(file, path, dtypes[form % 7], form > 200 ? form % 5 : 1, shape, value));
}

static void write_features(bk_h5 *file, bk_fuzz_input *in)
{
    float value[MOST];
    int dims = 1 + bk_fuzz_byte(in) % BK_MAX_DIMS;
    int64_t shape[BK_MAX_DIMS];
    for (int i = 0; i < dims; i++)
        shape[i] = bk_fuzz_byte(in) % (i < 3 ? 4 : 2);
    for (int i = 0; i < MOST; i++) {
        uint8_t byte = bk_fuzz_byte(in);
        memset(&value[i], byte, sizeof *value); /* 255: not a number */
    }
    must(bk_h5_write(file, "/features", BK_F32, dims, shape, value));
}

static void write_root(bk_h5 *file, bk_fuzz_input *in)
{
    static const char texts[] = "format\0birkhoff-dataset\0task\0language_model\0source\0x\0";
    uint8_t flags = bk_fuzz_byte(in);
    int64_t vocabulary = bk_fuzz_integer(in), classes = bk_fuzz_integer(in);
    must(bk_h5_stamp(file, "birkhoff-dataset"));
    if (!(flags & 1))
        must(bk_h5_set_attribute(file, "/", "vocabulary", BK_I64, 0, &vocabulary));
    if (!(flags & 2))
        must(bk_h5_set_attribute(file, "/", "classes", BK_I64, 0, &classes));
    if (flags & 4)
        must(bk_h5_set_attribute(file, "/", "texts", BK_U8, sizeof texts, texts));
    int64_t length = in->end - in->at < MOST ? in->end - in->at : MOST;
    if (flags & 8 && length > 0)
        must(bk_h5_set_attribute(file, "/", "texts", BK_U8, length, in->at));
    if (flags & 16)
        must(bk_h5_set_attribute(file, "/", "task", BK_I64, 0, &classes));
    if (flags & 32)
        must(bk_h5_set_attribute_text(file, "/", "digest", "0123"));
}

static void write_split(bk_h5 *file, const char *path, bk_fuzz_input *in)
{
    const int64_t number[4] = {bk_fuzz_integer(in), bk_fuzz_integer(in), 0, 1};
    uint8_t flags = bk_fuzz_byte(in);
    write_list(file, path, in);
    if (!bk_h5_exists(file, path))
        return;
    if (flags & 1)
        must(bk_h5_set_attribute(file, path, "ladder", BK_I64, flags / 64, number));
    if (flags & 2)
        must(bk_h5_set_attribute(file, path, "majority", BK_I64, 0, number));
}

static void write_content(bk_h5 *file, bk_fuzz_input *in)
{
    static const char *const split[] = {"/splits/train", "/splits/validation", "/splits/test"};
    write_root(file, in);
    uint8_t flags = bk_fuzz_byte(in);
    if (flags & 1)
        write_features(file, in);
    if (!(flags & 1) || flags & 2)
        write_list(file, "/tokens", in);
    write_list(file, "/offsets", in);
    write_list(file, "/labels", in);
    for (int i = 0; i < 3; i++)
        if (!(flags & 16 << i))
            write_split(file, split[i], in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bk_arena *arena = bk_arena_new("fuzz");
    const char *path = bk_fuzz_path(arena, "content.h5");
    bk_fuzz_input in = {data, data + size};
    bk_h5 *file;
    bk_dataset *d;
    unlink(path);
    must(bk_h5_create(arena, path, &file));
    write_content(file, &in);
    must(bk_h5_close(file));
    if (bk_fuzz_read(bk_dataset_read(arena, path, &d)))
        bk_fuzz_data(d);
    bk_arena_free(arena);
    return 0;
}
