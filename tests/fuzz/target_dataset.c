/* A data set as the bytes of its file. */
#include "io/dataset.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bk_arena *arena = bk_arena_new("fuzz");
    const char *path = bk_fuzz_path(arena, "data.h5");
    bk_dataset *d;
    bk_fuzz_write(path, data, size);
    if (bk_fuzz_read(bk_dataset_read(arena, path, &d)))
        bk_fuzz_data(d);
    bk_arena_free(arena);
    return 0;
}
