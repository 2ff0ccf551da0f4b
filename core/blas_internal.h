/* core/blas_internal.h - between blas.c and blas_onednn.c; nobody else includes it. */
#ifndef BK_CORE_BLAS_INTERNAL_H
#define BK_CORE_BLAS_INTERNAL_H

#include "core/blas.h"

typedef struct bk_onednn_matmul bk_onednn_matmul;

/* Whether oneDNN runs this shape well (alpha 1, beta 0 or 1). */
bool bk_onednn_takes(const bk_gemm *g);
/* Whether it multiplies bf16 by instructions of this machine. */
bool bk_onednn_has_bf16(void);
/* Least rows and columns of an output tile. */
typedef struct bk_tile {
    int64_t rows, cols;
} bk_tile;

bk_tile bk_onednn_tile(const bk_gemm *g);
/* C = alpha op(A) op(B) + beta C in fp32 without a primitive, for shapes that do not come back.
 * Any thread.  False: CBLAS is the better one on this machine. */
bool bk_onednn_sgemm(const bk_gemm *g);
/* The primitive for operands (BK_F32 or BK_BF16) and shape, made once and kept; one for all m and k
 * where they vary.  Main thread only. */
const bk_onednn_matmul *bk_onednn_find(bk_dtype operands, const bk_gemm *g);
/* Runs it on other data of the same shape.  Any thread. */
void bk_onednn_run(const bk_onednn_matmul *matmul, const bk_gemm *g);
const char *bk_onednn_description(void);

#endif
