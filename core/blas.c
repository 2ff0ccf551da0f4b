#include "core/blas_internal.h"

#include "core/hooks.h"
#include "core/parallel.h"
#include "core/vector.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Found at link time where the library is OpenBLAS; another CBLAS links too. */
extern void openblas_set_num_threads(int threads) __attribute__((weak));
extern char *openblas_get_config(void) __attribute__((weak));
extern char *openblas_get_corename(void) __attribute__((weak));
extern int openblas_get_parallel(void) __attribute__((weak));

/* Least rows and columns of an output tile for CBLAS. */
static const bk_tile small_tile = {256, 768};

static int threads = 1;
static bool allow_bf16 = true;
static bool use_onednn;

bool bk_blas_has_onednn(void)
{
#ifdef BIRKHOFF_HAVE_ONEDNN
    return true;
#else
    return false;
#endif
}

static bk_status choose_library(bk_gemm_library library)
{
    const char *wish = getenv("BIRKHOFF_GEMM");
    if (library == BK_GEMM_AUTO && wish && strcmp(wish, "cblas") == 0)
        library = BK_GEMM_CBLAS;
    else if (library == BK_GEMM_AUTO && wish && strcmp(wish, "onednn") == 0)
        library = BK_GEMM_ONEDNN;
    else if (library == BK_GEMM_AUTO && wish)
        return bk_fail(BK_USAGE, "BIRKHOFF_GEMM=%s is not known: use onednn or cblas", wish);
    if (library == BK_GEMM_ONEDNN && !bk_blas_has_onednn())
        return bk_fail(
            BK_USAGE, "oneDNN was not built in: install libdnnl-dev and build again, or use cblas");
    use_onednn = library != BK_GEMM_CBLAS && bk_blas_has_onednn();
    return BK_OK;
}

bk_status bk_blas_setup(int count, bk_gemm_library library)
{
    threads = count > 0 ? count : 1;
    omp_set_num_threads(1); /* inside libraries; our own loops ask for `threads` */
    if (openblas_set_num_threads)
        openblas_set_num_threads(1);
    return choose_library(library);
}

int bk_blas_threads(void)
{
    return threads;
}

const char *bk_blas_description(void)
{
    return use_onednn ? bk_onednn_description() : bk_blas_cblas_description();
}

const char *bk_blas_onednn_description(void)
{
    return bk_onednn_description();
}

const char *bk_blas_cblas_description(void)
{
    static const char *const variants[] = {"serial", "pthread", "openmp"};
    static char text[128];
    if (!openblas_get_config || !openblas_get_corename || !openblas_get_parallel)
        return "an unknown CBLAS";
    const char *version = openblas_get_config(); /* "OpenBLAS 0.3.21 NO_LAPACKE ..." */
    size_t name = strcspn(version, " ");
    name += version[name] ? 1 + strcspn(version + name + 1, " ") : 0;
    int variant = openblas_get_parallel();
    snprintf(text, sizeof text, "%.*s (%s, %.40s)", (int)(name < 60 ? name : 60), version,
             variant >= 0 && variant < 3 ? variants[variant] : "unknown", openblas_get_corename());
    return text;
}

const char *bk_blas_coretype(void)
{
    const char *taken = openblas_get_corename ? openblas_get_corename() : "";
    bool oldest = strcmp(taken, "Prescott") == 0,
         avx2 = strcmp(taken, "Haswell") == 0 || strcmp(taken, "Zen") == 0;
    if ((oldest || avx2) && bk_cpu_avx512())
        return "SkylakeX";
    return oldest && __builtin_cpu_supports("avx2") ? "Haswell" : NULL;
}

/* ---- one tile ---- */

static void scale_only(bk_dtype dtype, const bk_gemm *g)
{
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++) {
            if (dtype == BK_F64) {
                double *c = (double *)g->c + i * g->ldc + j;
                *c = g->beta == 0.0 ? 0.0 : g->beta * *c;
            } else {
                float *c = (float *)g->c + i * g->ldc + j;
                *c = g->beta == 0.0 ? 0.0f : (float)g->beta * *c;
            }
        }
}

static void run_cblas(bk_dtype dtype, const bk_gemm *g)
{
    CBLAS_TRANSPOSE ta = g->ta == BK_T ? CblasTrans : CblasNoTrans,
                    tb = g->tb == BK_T ? CblasTrans : CblasNoTrans;
    int m = (int)g->m, n = (int)g->n, k = (int)g->k, lda = (int)g->lda, ldb = (int)g->ldb,
        ldc = (int)g->ldc;
    if (dtype == BK_F64)
        cblas_dgemm(CblasRowMajor, ta, tb, m, n, k, g->alpha, g->a, lda, g->b, ldb, g->beta, g->c,
                    ldc);
    else
        cblas_sgemm(CblasRowMajor, ta, tb, m, n, k, (float)g->alpha, g->a, lda, g->b, ldb,
                    (float)g->beta, g->c, ldc);
}

/* Which implementation runs a tile: decided on the main thread, so that primitives are made outside
 * parallel regions. */
static const bk_onednn_matmul *matmul_for(bk_dtype dtype, const bk_gemm *g)
{
    bool wanted = dtype == BK_BF16 || (dtype == BK_F32 && !g->varying && bk_onednn_takes(g));
    return use_onednn && wanted && g->k > 0 ? bk_onednn_find(dtype, g) : NULL;
}

static bk_dtype sums_of(bk_dtype dtype)
{
    return dtype == BK_BF16 ? BK_F32 : dtype;
}

static void add_bias(bk_dtype dtype, const bk_gemm *g)
{
    size_t size = bk_dtype_size(dtype);
    for (int64_t i = 0; g->bias && i < g->m; i++)
        bk_vector(dtype)->add(g->n, g->bias, (char *)g->c + (size_t)(i * g->ldc) * size);
}

static void run_tile(bk_dtype dtype, const bk_onednn_matmul *matmul, const bk_gemm *g)
{
    if (matmul) {
        bk_onednn_run(matmul, g);
        return;
    }
    if (g->k == 0)
        scale_only(sums_of(dtype), g);
    else if (!use_onednn || dtype != BK_F32 || !bk_onednn_sgemm(g))
        run_cblas(dtype, g);
    add_bias(sums_of(dtype), g);
}

/* ---- one product ---- */

/* The tiles of the output, all `height` x `width` but for the last of each row and column: a
 * function of the shape, the library and the instruction set, never of the number of threads. */
typedef struct grid {
    int64_t rows, cols, height, width;
} grid;

/* Cuts n into equal pieces of at least `least`, in steps of whole vectors. */
static int64_t step_of(int64_t n, int64_t least)
{
    enum { VECTOR = 16 };
    int64_t count = n / least > 1 ? n / least : 1, step = (n + count - 1) / count;
    return count == 1 ? n : (step + VECTOR - 1) / VECTOR * VECTOR;
}

static grid grid_of(const bk_gemm *g, bk_tile least)
{
    grid x = {.height = step_of(g->m, least.rows), .width = step_of(g->n, least.cols)};
    x.rows = (g->m + x.height - 1) / x.height;
    x.cols = (g->n + x.width - 1) / x.width;
    return x;
}

/* Tile (i, j) of the output as a product of its own. */
static bk_gemm tile_of(bk_dtype dtype, const bk_gemm *g, const grid *x, int64_t i, int64_t j)
{
    size_t size = bk_dtype_size(dtype), sums = bk_dtype_size(sums_of(dtype));
    int64_t row = i * x->height, col = j * x->width;
    bk_gemm t = *g;
    t.m = i == x->rows - 1 ? g->m - row : x->height;
    t.n = j == x->cols - 1 ? g->n - col : x->width;
    t.a = (const char *)g->a + (size_t)(g->ta == BK_N ? row * g->lda : row) * size;
    t.b = (const char *)g->b + (size_t)(g->tb == BK_N ? col : col * g->ldb) * size;
    t.c = (char *)g->c + (size_t)(row * g->ldc + col) * sums;
    t.bias = g->bias ? (const char *)g->bias + (size_t)col * sums : NULL;
    return t;
}

/* The grid, and what runs its at most four shapes of tiles: inner, right edge, lower edge, corner
 * (NULL: CBLAS). */
typedef struct plan {
    grid grid;
    const bk_onednn_matmul *matmul[2][2];
} plan;

static void find_matmuls(bk_dtype dtype, const bk_gemm *g, plan *p)
{
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            bk_gemm sample =
                tile_of(dtype, g, &p->grid, i ? p->grid.rows - 1 : 0, j ? p->grid.cols - 1 : 0);
            p->matmul[i][j] = matmul_for(dtype, &sample);
        }
}

/* oneDNN wants tiles of its own; a product that would be one such tile is cut as for CBLAS, so that
 * it is shared out. */
static plan plan_of(bk_dtype dtype, const bk_gemm *g)
{
    plan p = {.grid = grid_of(g, small_tile)};
    if (!use_onednn)
        return p;
    grid own = grid_of(g, bk_onednn_tile(g));
    if (own.rows * own.cols > 1)
        p.grid = own;
    find_matmuls(dtype, g, &p);
    return p;
}

void bk_gemm_run(bk_dtype dtype, const bk_gemm *g)
{
    BK_ASSERT(dtype != BK_BF16 || bk_blas_bf16() == BK_BF16, "no products in bf16");
    if (g->m == 0 || g->n == 0)
        return;
    plan p = plan_of(dtype, g);
    int64_t count = p.grid.rows * p.grid.cols;
    int team = count < threads ? (int)count : threads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(team) if (team > 1)
    for (int64_t i = 0; i < count; i++) {
        int64_t row = i / p.grid.cols, col = i % p.grid.cols;
        bk_gemm tile = tile_of(dtype, g, &p.grid, row, col);
        run_tile(dtype, p.matmul[row == p.grid.rows - 1][col == p.grid.cols - 1], &tile);
        if (omp_get_thread_num() == 0)
            bk_poll();
    }
}

static bool same_shape(const bk_gemm *a, const bk_gemm *b)
{
    return a->m == b->m && a->n == b->n && a->k == b->k && a->ta == b->ta && a->tb == b->tb &&
           a->lda == b->lda && a->ldb == b->ldb && a->ldc == b->ldc && a->alpha == b->alpha &&
           a->beta == b->beta && !a->bias == !b->bias;
}

/* Products of one shape, each of them one tile. */
static void run_uniform(bk_dtype dtype, int64_t count, const bk_gemm *g)
{
    const bk_onednn_matmul *same = matmul_for(dtype, &g[0]);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < count; i++)
        run_tile(dtype, same, &g[i]);
    bk_poll();
}

/* A tile of one of several products. */
typedef struct share {
    const bk_gemm *product;
    const plan *plan;
    int64_t row, col;
} share;

static void run_share(bk_dtype dtype, const share *s)
{
    const plan *p = s->plan;
    bk_gemm tile = tile_of(dtype, s->product, &p->grid, s->row, s->col);
    run_tile(dtype, p->matmul[s->row == p->grid.rows - 1][s->col == p->grid.cols - 1], &tile);
}

static void *room(int64_t count, size_t size)
{
    void *data = malloc((size_t)(count + 1) * size);
    if (!data)
        bk_fatal("out of memory: %lld products", (long long)count);
    return data;
}

/* Products of differing shapes: the tiles of all of them are shared out together. */
static void run_mixed(bk_dtype dtype, int64_t count, const bk_gemm *g)
{
    plan *plans = room(count, sizeof *plans);
    int64_t shares = 0;
    for (int64_t i = 0; i < count; i++)
        if (g[i].m > 0 && g[i].n > 0) {
            plans[i] = plan_of(dtype, &g[i]);
            shares += plans[i].grid.rows * plans[i].grid.cols;
        }
    share *list = room(shares, sizeof *list), *next = list;
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; g[i].m > 0 && g[i].n > 0 && j < plans[i].grid.rows * plans[i].grid.cols;
             j++)
            *next++ = (share){&g[i], &plans[i], j / plans[i].grid.cols, j % plans[i].grid.cols};
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < shares; i++) {
        run_share(dtype, &list[i]);
        if (omp_get_thread_num() == 0)
            bk_poll();
    }
    free(list);
    free(plans);
}

/* A product has the tiles that it has alone, whatever stands beside it. */
void bk_gemm_batch(bk_dtype dtype, int64_t count, const bk_gemm *g)
{
    bool uniform = count > 0 && g[0].m > 0 && g[0].n > 0;
    for (int64_t i = 1; i < count && uniform; i++)
        uniform = same_shape(&g[i], &g[0]);
    if (uniform) {
        plan p = plan_of(dtype, &g[0]);
        uniform = p.grid.rows * p.grid.cols == 1;
    }
    if (uniform)
        run_uniform(dtype, count, g);
    else
        run_mixed(dtype, count, g);
}

/* ---- bf16 ---- */

void bk_blas_allow_bf16(bool allowed)
{
    allow_bf16 = allowed;
}

bk_dtype bk_blas_bf16(void)
{
    return allow_bf16 && use_onednn && bk_onednn_has_bf16() ? BK_BF16 : BK_F32;
}

typedef struct rounding {
    const float *x;
    char *y;
    bk_dtype dtype;
} rounding;

static void round_piece(void *context, int64_t first, int64_t last)
{
    const rounding *r = context;
    void *y = r->y + (size_t)first * bk_dtype_size(r->dtype);
    if (r->dtype == BK_BF16)
        bk_vector(BK_F32)->pack_bf16(last - first, r->x + first, y);
    else
        bk_vector(BK_F32)->round_bf16(last - first, r->x + first, y);
}

void bk_blas_round(int64_t n, const float *x, void *y)
{
    bk_parallel(n, BK_PARALLEL_VECTOR, 1, round_piece, &(rounding){x, y, bk_blas_bf16()});
}

bk_status bk_solve_spd(int64_t n, double *a, double *b)
{
    if (n == 0)
        return BK_OK;
    /* The lower triangle by rows is the upper one by columns: nothing is transposed. */
    int info = (int)LAPACKE_dposv_work(LAPACK_COL_MAJOR, 'U', (int)n, 1, a, (int)n, b, (int)n);
    if (info != 0)
        return bk_fail(BK_FAULT, "a matrix of order %lld is not positive definite (minor %d)",
                       (long long)n, info);
    for (int64_t i = 0; i < n; i++) /* a NaN passes the factorisation */
        if (!isfinite(b[i]))
            return bk_fail(BK_FAULT, "a system of order %lld is not finite", (long long)n);
    return BK_OK;
}

/* ---- QR ---- */

static void move_upper(bk_dtype dtype, int64_t n, const void *a, void *r)
{
    size_t size = bk_dtype_size(dtype);
    for (int64_t i = 0; i < n; i++) {
        memset((char *)r + (size_t)(i * n) * size, 0, (size_t)i * size);
        memcpy((char *)r + (size_t)(i * n + i) * size, (const char *)a + (size_t)(i * n + i) * size,
               (size_t)(n - i) * size);
    }
}

/* LAPACK's refusals are of wrong shapes, and of NaN, which then stays in a. */
void bk_qr(bk_dtype dtype, int64_t n, void *a, void *r, void *tau)
{
    int order = (int)n, info;
    if (dtype == BK_F64)
        info = (int)LAPACKE_dgeqrf(LAPACK_ROW_MAJOR, order, order, a, order, tau);
    else
        info = (int)LAPACKE_sgeqrf(LAPACK_ROW_MAJOR, order, order, a, order, tau);
    move_upper(dtype, n, a, r);
    if (info == 0 && dtype == BK_F64)
        LAPACKE_dorgqr(LAPACK_ROW_MAJOR, order, order, order, a, order, tau);
    else if (info == 0)
        LAPACKE_sorgqr(LAPACK_ROW_MAJOR, order, order, order, a, order, tau);
}

void bk_solve_upper_transposed(bk_dtype dtype, int64_t n, const void *r, void *b)
{
    int order = (int)n;
    if (dtype == BK_F64)
        cblas_dtrsm(CblasRowMajor, CblasRight, CblasUpper, CblasTrans, CblasNonUnit, order, order,
                    1.0, r, order, b, order);
    else
        cblas_strsm(CblasRowMajor, CblasRight, CblasUpper, CblasTrans, CblasNonUnit, order, order,
                    1.0f, r, order, b, order);
}
