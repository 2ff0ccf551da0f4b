/* core/blas.h - matrix products.  The only caller of CBLAS, LAPACKE and oneDNN.
 *
 * The library is pinned to one thread; the output is cut into fixed tiles that OpenMP threads
 * share, so bits depend neither on the number of threads nor on anything but the shape of the
 * product.  Row-major everywhere. */
#ifndef BK_CORE_BLAS_H
#define BK_CORE_BLAS_H

#include "core/tensor.h"

typedef enum bk_transpose { BK_N, BK_T } bk_transpose;

/* C[M,N] = alpha op(A)[M,K] op(B)[K,N] + bias[N] + beta C.  lda, ldb, ldc: elements between rows as
 * stored. */
typedef struct bk_gemm {
    bk_transpose ta, tb;
    int64_t m, n, k;
    double alpha;
    const void *a;
    int64_t lda;
    const void *b;
    int64_t ldb;
    double beta;
    void *c;
    int64_t ldc;
    const void *bias; /* of C's type, added to each row; NULL: none */
    bool varying;     /* m and k change from step to step: nothing is prepared and kept for them */
} bk_gemm;

/* One product in dtype BK_F32, BK_F64, or BK_BF16: A and B in bf16, sums and C in fp32 (alpha 1,
 * beta 0 or 1; where bk_blas_bf16 offers it).  Empty shapes are fine (k = 0 scales C by beta).
 * Polls between tiles. */
void bk_gemm_run(bk_dtype dtype, const bk_gemm *g);

/* `count` independent products, shared out over the threads: attention heads, experts. */
void bk_gemm_batch(bk_dtype dtype, int64_t count, const bk_gemm *g);

/* The type of operands that are rounded to bf16 (run.precision): BK_BF16 where oneDNN multiplies
 * them, else BK_F32: the same values multiplied in fp32, without the gain in speed. */
bk_dtype bk_blas_bf16(void);
/* false: as on a machine whose oneDNN multiplies no bf16.  What ranks send one another has this
 * type, so ranks on different machines agree on it at the start. */
void bk_blas_allow_bf16(bool allowed);
/* y[n] = x[n] rounded to bf16, to nearest, ties to even, as bk_blas_bf16() says. */
void bk_blas_round(int64_t n, const float *x, void *y);

typedef enum bk_gemm_library { BK_GEMM_AUTO, BK_GEMM_ONEDNN, BK_GEMM_CBLAS } bk_gemm_library;

/* Threads (0: OMP_NUM_THREADS or 1) and library.  Auto: oneDNN when built in, overridden by
 * BIRKHOFF_GEMM=onednn|cblas. Asking for one that was not built in is BK_USAGE. */
BK_CHECKED bk_status bk_blas_setup(int threads, bk_gemm_library library);
int bk_blas_threads(void);

/* "oneDNN 2.6 (avx512)" or "OpenBLAS 0.3.21 (openmp, SkylakeX)": what products run on, for doctor
 * and checkpoints; and what the CBLAS is, in use or not. */
const char *bk_blas_description(void);
const char *bk_blas_cblas_description(void);
const char *bk_blas_onednn_description(void); /* "no oneDNN" when it was not built in */
bool bk_blas_has_onednn(void);
/* The OPENBLAS_CORETYPE to set where OpenBLAS is older than the processor and takes it for one with
 * narrower vectors, at half of its speed or at a tenth; else NULL.  It reads the variable once,
 * when it is loaded. */
const char *bk_blas_coretype(void);

/* Solves A x = b for symmetric positive definite A[n,n] (lower triangle used; overwritten), x in
 * place of b. BK_FAULT when A is not positive definite or anything is not finite. */
BK_CHECKED bk_status bk_solve_spd(int64_t n, double *a, double *b);

/* Moduli of the eigenvalues of A[n,n], falling: modulus[n].  A is overwritten.  BK_FAULT when A is
 * not finite or LAPACK does not converge, here and below. */
BK_CHECKED bk_status bk_eigenvalues(int64_t n, double *a, double *modulus);
/* Singular values of A[n,n], falling: value[n].  A is overwritten. */
BK_CHECKED bk_status bk_singular_values(int64_t n, double *a, double *value);

/* The orthogonal factor in place of a[n,n] = U R, R in r[n,n] (upper triangle; 0 below); tau[n] is
 * overwritten.  Runs on the calling thread, which may be any; BK_F32 or BK_F64. */
void bk_qr(bk_dtype dtype, int64_t n, void *a, void *r, void *tau);
/* b[n,n] := b R^-T for an upper triangular r[n,n].  Runs on the calling thread, too. */
void bk_solve_upper_transposed(bk_dtype dtype, int64_t n, const void *r, void *b);

#endif
