/* The digest of a data set's content: computed at write, recomputed by verify. */
#include "io/dataset.h"

#include "io/digest.h"

#include <string.h>

enum { SLAB_BYTES = 8 << 20 };

static void add_header(bk_sha256 *sha, const char *path, bk_dtype dtype, int dims,
                       const int64_t *shape)
{
    int64_t axes = dims;
    bk_sha256_add(sha, path, strlen(path) + 1);
    bk_sha256_add(sha, bk_dtype_name(dtype), strlen(bk_dtype_name(dtype)) + 1);
    bk_sha256_add(sha, &axes, sizeof axes);
    bk_sha256_add(sha, shape, (size_t)dims * sizeof *shape);
}

/* A slab of rows at a time. */
static bk_status add_dataset(bk_h5 *file, const char *path, bk_sha256 *sha, bk_arena *scratch)
{
    bk_dtype dtype;
    int dims;
    int64_t shape[BK_MAX_DIMS];
    BK_TRY(bk_h5_shape(file, path, &dtype, &dims, shape));
    add_header(sha, path, dtype, dims, shape);
    size_t row = bk_dtype_size(dtype);
    for (int i = 1; i < dims; i++)
        row *= (size_t)shape[i];
    int64_t rows = dims == 0 ? 1 : shape[0];
    int64_t step = row == 0 ? rows : (int64_t)(SLAB_BYTES / row);
    step = step < 1 ? 1 : step;
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    char *slab = bk_arena_alloc(scratch, (size_t)(step < rows ? step : rows) * row);
    bk_status status = BK_OK;
    for (int64_t done = 0; done < rows && status == BK_OK; done += step) {
        int64_t count = rows - done < step ? rows - done : step;
        status = bk_h5_read_rows(file, path, dtype, done, count, slab);
        if (status == BK_OK)
            bk_sha256_add(sha, slab, (size_t)count * row);
    }
    bk_arena_release(scratch, mark);
    return status;
}

bk_status bk_dataset_digest(bk_h5 *file, char digest[65])
{
    bk_arena *scratch = bk_arena_new("digest");
    bk_sha256 *sha = bk_sha256_new();
    char **paths;
    bk_status status = bk_h5_walk(file, scratch, &paths);
    for (; status == BK_OK && *paths; paths++)
        status = add_dataset(file, *paths, sha, scratch);
    bk_sha256_finish_text(sha, digest);
    bk_sha256_free(sha);
    bk_arena_free(scratch);
    return status;
}
