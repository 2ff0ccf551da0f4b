/* What products read (run.precision): an array as it is, or rounded to bf16. */
#include "core/blas.h"
#include "core/ops.h"

bool bk_operands_rounded(const bk_tape *t, bk_dtype dtype)
{
    return t->bf16 && dtype == BK_F32;
}

bk_dtype bk_operand_dtype(const bk_tape *t, bk_dtype dtype)
{
    return bk_operands_rounded(t, dtype) ? bk_blas_bf16() : dtype;
}

const void *bk_operand(const bk_tape *t, bk_dtype dtype, int64_t n, const void *data,
                       bk_arena *arena)
{
    if (!bk_operands_rounded(t, dtype))
        return data;
    void *rounded = bk_arena_alloc(arena, (size_t)n * bk_dtype_size(bk_blas_bf16()));
    bk_blas_round(n, data, rounded);
    return rounded;
}
