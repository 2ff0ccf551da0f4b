#include "core/tensor.h"

#include <stdio.h>

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    [BK_F32] = {"f32", 4}, [BK_F64] = {"f64", 8}, [BK_I32] = {"i32", 4},  [BK_I64] = {"i64", 8},
    [BK_U8] = {"u8", 1},   [BK_U16] = {"u16", 2}, [BK_BF16] = {"bf16", 2}};

size_t bk_dtype_size(bk_dtype dtype)
{
    return dtypes[dtype].size;
}

const char *bk_dtype_name(bk_dtype dtype)
{
    return dtypes[dtype].name;
}

int64_t bk_count(const bk_tensor *x)
{
    int64_t count = 1;
    for (int i = 0; i < x->dims; i++)
        count *= x->shape[i];
    return count;
}

int64_t bk_rows(const bk_tensor *x)
{
    int64_t rows = 1;
    for (int i = 0; i + 1 < x->dims; i++)
        rows *= x->shape[i];
    return rows;
}

int64_t bk_cols(const bk_tensor *x)
{
    return x->dims > 0 ? x->shape[x->dims - 1] : 1;
}

bool bk_same_shape(const bk_tensor *a, const bk_tensor *b)
{
    if (a->dims != b->dims)
        return false;
    for (int i = 0; i < a->dims; i++)
        if (a->shape[i] != b->shape[i])
            return false;
    return true;
}

bk_tensor *bk_tensor_wrap(bk_arena *arena, bk_dtype dtype, int dims, const int64_t *shape,
                          void *data)
{
    BK_ASSERT(dims >= 0 && dims <= BK_MAX_DIMS, "%d axes", dims);
    bk_tensor *x = BK_NEW(arena, bk_tensor, 1);
    *x = (bk_tensor){.data = data, .dims = dims, .dtype = dtype};
    for (int i = 0; i < dims; i++)
        x->shape[i] = shape[i];
    return x;
}

bk_tensor *bk_tensor_new(bk_arena *arena, bk_dtype dtype, int dims, const int64_t *shape)
{
    bk_tensor *x = bk_tensor_wrap(arena, dtype, dims, shape, NULL);
    x->data = bk_arena_alloc(arena, (size_t)bk_count(x) * bk_dtype_size(dtype));
    return x;
}

const char *bk_shape_text(const bk_tensor *x, char buffer[BK_SHAPE_TEXT])
{
    int used = snprintf(buffer, BK_SHAPE_TEXT, "[");
    for (int i = 0; i < x->dims; i++)
        used += snprintf(buffer + used, (size_t)(BK_SHAPE_TEXT - used), "%s%lld", i ? ", " : "",
                         (long long)x->shape[i]);
    snprintf(buffer + used, (size_t)(BK_SHAPE_TEXT - used), "]");
    return buffer;
}
