/* test: labels=unit timeout=120 */
/* Products against three plain loops, for both libraries; bits that depend on the shape alone. */
#include "tests/support/check.h"

#include "core/blas.h"
#include "core/hooks.h"
#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PAD = 3 }; /* elements between rows beyond the row itself */

/* C of a product in bf16 is fp32. */
static bk_dtype sums_of(bk_dtype dtype)
{
    return dtype == BK_BF16 ? BK_F32 : dtype;
}

static void *filled(bk_dtype dtype, int64_t count, uint64_t tag)
{
    char *x = malloc((size_t)(count + 1) * bk_dtype_size(dtype));
    assert_non_null(x);
    for (int64_t i = 0; i < count; i++) {
        double value = bk_fill((uint64_t)i, tag, -1.0, 1.0);
        if (dtype == BK_F64)
            ((double *)(void *)x)[i] = value;
        else if (dtype == BK_BF16)
            bk_blas_round(1, &(float){(float)value}, x + 2 * i);
        else
            ((float *)(void *)x)[i] = (float)value;
    }
    return x;
}

static double element(bk_dtype dtype, const void *x, int64_t i)
{
    if (dtype == BK_BF16) {
        uint32_t bits = (uint32_t)((const uint16_t *)x)[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        return (double)value;
    }
    return dtype == BK_F64 ? ((const double *)x)[i] : (double)((const float *)x)[i];
}

/* A product on arrays of its own; rows are PAD elements longer than they need to be. */
typedef struct product {
    bk_dtype dtype;
    bk_gemm g;
    void *a, *b, *c, *before, *bias;
    int64_t count; /* elements of c */
} product;

static bool with_bias;

static product make(bk_dtype dtype, bk_gemm g)
{
    product p = {.dtype = dtype, .g = g};
    int64_t a_rows = g.ta == BK_T ? g.k : g.m, a_cols = g.ta == BK_T ? g.m : g.k;
    int64_t b_rows = g.tb == BK_T ? g.n : g.k, b_cols = g.tb == BK_T ? g.k : g.n;
    p.g.lda = a_cols + PAD;
    p.g.ldb = b_cols + PAD;
    p.g.ldc = g.n + PAD;
    p.count = g.m * p.g.ldc;
    p.g.a = p.a = filled(dtype, a_rows * p.g.lda, 1);
    p.g.b = p.b = filled(dtype, b_rows * p.g.ldb, 2);
    p.g.c = p.c = filled(sums_of(dtype), p.count, 3);
    p.before = filled(sums_of(dtype), p.count, 3);
    p.bias = filled(sums_of(dtype), g.n, 4);
    p.g.bias = with_bias ? p.bias : NULL;
    return p;
}

static void drop(product *p)
{
    free(p->a);
    free(p->b);
    free(p->c);
    free(p->before);
    free(p->bias);
}

static double expected(const product *p, int64_t i, int64_t j)
{
    const bk_gemm *g = &p->g;
    double sum = 0.0;
    for (int64_t l = 0; l < g->k; l++) {
        int64_t at = g->ta == BK_T ? l * g->lda + i : i * g->lda + l;
        int64_t bt = g->tb == BK_T ? j * g->ldb + l : l * g->ldb + j;
        sum += element(p->dtype, p->a, at) * element(p->dtype, p->b, bt);
    }
    double old = g->beta == 0.0 ? 0.0 : element(sums_of(p->dtype), p->before, i * g->ldc + j);
    double bias = g->bias ? element(sums_of(p->dtype), g->bias, j) : 0.0;
    return g->alpha * sum + bias + g->beta * old;
}

/* Largest error over the whole of c; what lies between the rows must not have changed. */
static double error_of(const product *p)
{
    double most = 1e-30, worst = 0.0;
    for (int64_t i = 0; i < p->g.m; i++)
        for (int64_t j = 0; j < p->g.ldc; j++) {
            double value = element(sums_of(p->dtype), p->c, i * p->g.ldc + j);
            if (j >= p->g.n) {
                assert_true(value == element(sums_of(p->dtype), p->before, i * p->g.ldc + j));
                continue;
            }
            double reference = expected(p, i, j), difference = fabs(value - reference);
            most = fmax(most, fabs(reference));
            worst = difference > worst || isnan(difference) ? difference : worst;
        }
    return worst / most;
}

static void check_product(bk_dtype dtype, bk_gemm g)
{
    product p = make(dtype, g);
    bk_gemm_run(dtype, &p.g);
    bk_check_error(error_of(&p), dtype == BK_F64 ? 1e-13 : 2e-6, "%s %c%c m=%d n=%d k=%d",
                   bk_dtype_name(dtype), g.ta == BK_T ? 'T' : 'N', g.tb == BK_T ? 'T' : 'N',
                   (int)g.m, (int)g.n, (int)g.k);
    drop(&p);
}

/* ---- libraries ---- */

static const bk_gemm_library libraries[] = {BK_GEMM_CBLAS, BK_GEMM_ONEDNN};

static int library_count(void)
{
    return bk_blas_has_onednn() ? 2 : 1;
}

static void use(int threads, int library)
{
    assert_int_equal(bk_blas_setup(threads, libraries[library]), BK_OK);
    assert_int_equal(bk_blas_threads(), threads);
}

static void both_libraries_multiply(void **state)
{
    static const int64_t shapes[][3] = {{1, 1, 1},   {1, 7, 5},    {7, 1, 3},      {5, 3, 1},
                                        {17, 33, 9}, {64, 64, 64}, {259, 130, 21}, {530, 1553, 7}};
    static const double factors[][2] = {{1.0, 0.0}, {1.0, 1.0}, {-0.5, 0.25}};
    (void)state;
    for (int library = 0; library < library_count(); library++) {
        use(2, library);
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            for (int form = 0; form < 4; form++)
                for (int f = 0; f < 6; f++) {
                    bk_gemm g = {.ta = (bk_transpose)(form / 2), .tb = (bk_transpose)(form % 2)};
                    g.m = shapes[s][0];
                    g.n = shapes[s][1];
                    g.k = shapes[s][2];
                    g.alpha = factors[f / 2][0];
                    g.beta = factors[f / 2][1];
                    g.varying = f % 2;
                    with_bias = f / 2 != 1;
                    check_product(BK_F32, g);
                    if (!g.varying)
                        check_product(BK_F64, g);
                    if (bk_blas_bf16() == BK_BF16 && g.alpha == 1.0)
                        check_product(BK_BF16, g);
                }
    }
    with_bias = false;
}

/* The same place with other numbers, alone and in a batch. */
static void products_of_new_numbers(void **state)
{
    (void)state;
    use(1, BK_GEMM_AUTO);
    product p = make(BK_F32, (bk_gemm){.ta = BK_T, .m = 40, .n = 24, .k = 16, .alpha = 1.0});
    for (int round = 0; round < 4; round++) {
        float *a = p.a;
        a[0] = (float)round;
        if (round < 2)
            bk_gemm_run(BK_F32, &p.g);
        else
            bk_gemm_batch(BK_F32, 1, &p.g);
        double want = expected(&p, 0, 0);
        assert_true(fabs(((const float *)p.c)[0] - want) < 1e-4);
    }
    drop(&p);
}

static void beta_zero_overwrites(void **state)
{
    (void)state;
    for (int library = 0; library < library_count(); library++) {
        use(1, library);
        product p = make(BK_F32, (bk_gemm){.m = 9, .n = 20, .k = 5, .alpha = 1.0});
        for (int64_t i = 0; i < p.g.m; i++)
            for (int64_t j = 0; j < p.g.n; j++)
                ((float *)p.c)[i * p.g.ldc + j] = NAN;
        bk_gemm_run(BK_F32, &p.g);
        bk_check_error(error_of(&p), 2e-6, "beta = 0 on NaN");
        drop(&p);
    }
}

static void empty_products(void **state)
{
    static const double betas[] = {0.0, 1.0, 0.5};
    (void)state;
    use(2, 0);
    for (int i = 0; i < 3; i++) {
        check_product(BK_F32, (bk_gemm){.m = 6, .n = 5, .alpha = 1.0, .beta = betas[i]});
        check_product(BK_F64, (bk_gemm){.m = 6, .n = 5, .alpha = 1.0, .beta = betas[i]});
        check_product(BK_F32, (bk_gemm){.m = 0, .n = 5, .k = 4, .alpha = 1.0, .beta = betas[i]});
        check_product(BK_F32, (bk_gemm){.m = 5, .n = 0, .k = 4, .alpha = 1.0, .beta = betas[i]});
    }
}

/* ---- bits ---- */

static const bk_gemm large[] = {
    {.tb = BK_T, .m = 1040, .n = 1552, .k = 33, .alpha = 1.0},
    {.m = 523, .n = 771, .k = 130, .alpha = 1.0, .beta = 1.0},
    {.ta = BK_T, .m = 768, .n = 1541, .k = 65, .alpha = 1.0},
    {.tb = BK_T, .m = 2064, .n = 3105, .k = 17, .alpha = 1.0}, /* large tiles */
};
enum { LARGE = sizeof large / sizeof *large };

static void bits_do_not_depend_on_threads(void **state)
{
    (void)state;
    for (int library = 0; library < library_count(); library++)
        for (int i = 0; i < LARGE; i++) {
            product one = make(BK_F32, large[i]);
            use(1, library);
            bk_gemm_run(BK_F32, &one.g);
            for (int threads = 2; threads <= 3; threads++) {
                product more = make(BK_F32, large[i]);
                use(threads, library);
                bk_gemm_run(BK_F32, &more.g);
                assert_memory_equal(one.c, more.c, (size_t)one.count * sizeof(float));
                drop(&more);
            }
            drop(&one);
        }
}

/* A lane's rows make the same product on the rank that holds them alone, at another address. */
static void bits_do_not_depend_on_place(void **state)
{
    (void)state;
    for (int library = 0; library < library_count(); library++) {
        use(1, library);
        for (int i = 0; i < LARGE; i++) {
            product p = make(BK_F32, large[i]);
            bk_gemm moved = p.g;
            size_t bytes = (size_t)p.count * sizeof(float);
            int64_t rows = p.g.ta == BK_T ? p.g.k : p.g.m;
            size_t a_bytes = (size_t)(rows * p.g.lda) * sizeof(float);
            float *a = malloc(a_bytes + 64), *c = malloc(bytes + 64);
            assert_non_null(a);
            assert_non_null(c);
            moved.a = memcpy(a + 5, p.a, a_bytes);
            moved.c = memcpy(c + 11, p.c, bytes);
            bk_gemm_run(BK_F32, &p.g);
            bk_gemm_run(BK_F32, &moved);
            assert_memory_equal(p.c, moved.c, bytes);
            free(a);
            free(c);
            drop(&p);
        }
    }
}

/* ---- batches ---- */

enum { BATCH = 5 };

static void check_batch(const bk_gemm shape[BATCH], bk_dtype dtype)
{
    product together[BATCH], alone;
    bk_gemm all[BATCH];
    for (int i = 0; i < BATCH; i++) {
        together[i] = make(dtype, shape[i]);
        all[i] = together[i].g;
    }
    bk_gemm_batch(dtype, BATCH, all);
    for (int i = 0; i < BATCH; i++) {
        alone = make(dtype, shape[i]);
        bk_gemm_run(dtype, &alone.g);
        bk_check_error(error_of(&together[i]), dtype == BK_F64 ? 1e-13 : 2e-6, "batch, entry %d",
                       i);
        assert_memory_equal(together[i].c, alone.c, (size_t)alone.count * bk_dtype_size(dtype));
        drop(&alone);
        drop(&together[i]);
    }
}

static void batches_equal_single_products(void **state)
{
    (void)state;
    for (int library = 0; library < library_count(); library++)
        for (int threads = 1; threads <= 2; threads++) {
            bk_gemm same[BATCH], mixed[BATCH];
            use(threads, library);
            for (int i = 0; i < BATCH; i++) {
                same[i] = (bk_gemm){.tb = BK_T, .m = 40, .n = 24, .k = 16, .alpha = 1.0};
                mixed[i] = (bk_gemm){.ta = (bk_transpose)(i % 2), .m = 10 + 60 * i, .alpha = 1.0};
                mixed[i].n = 30 + 200 * i;
                mixed[i].k = i; /* 0 too */
            }
            check_batch(same, BK_F32);
            check_batch(same, BK_F64);
            check_batch(mixed, BK_F32);
        }
    bk_gemm_batch(BK_F32, 0, NULL);
}

/* ---- the rest ---- */

static int polls;

static void count_poll(void)
{
    polls++;
}

static void polls_between_tiles(void **state)
{
    (void)state;
    use(1, 0);
    product p = make(BK_F32, large[0]);
    polls = 0;
    bk_set_poll(count_poll);
    bk_gemm_run(BK_F32, &p.g);
    bk_set_poll(NULL);
    assert_true(polls > 0);
    drop(&p);
}

static void setup_refuses(void **state)
{
    (void)state;
    setenv("BIRKHOFF_GEMM", "mkl", 1);
    assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_USAGE);
    assert_non_null(strstr(bk_status_text(), "mkl"));
    setenv("BIRKHOFF_GEMM", "cblas", 1);
    assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
    assert_null(strstr(bk_blas_description(), "oneDNN"));
    unsetenv("BIRKHOFF_GEMM");
    bk_status named = bk_blas_setup(1, BK_GEMM_ONEDNN);
    assert_int_equal(named, bk_blas_has_onednn() ? BK_OK : BK_USAGE);
    if (named == BK_OK)
        assert_non_null(strstr(bk_blas_description(), "oneDNN"));
}

static void solves(void **state)
{
    (void)state;
    double a[9] = {4, 1, 2, 1, 5, 3, 2, 3, 6}, b[3] = {4 - 2 + 6, 1 - 10 + 9, 2 - 6 + 18};
    double bad[4] = {1, 2, 2, 1}, right[2] = {1, 1};
    assert_int_equal(bk_solve_spd(3, a, b), BK_OK);
    bk_check_error(bk_test_error(3, b, (const double[]){1, -2, 3}, 1e-30), 1e-14, "x");
    assert_int_equal(bk_solve_spd(2, bad, right), BK_FAULT);
    for (int64_t n = 1; n <= 70; n += 69) { /* also where the factorisation is blocked */
        double nan[70 * 70] = {0}, x[70] = {0};
        for (int64_t i = 0; i < n; i++)
            nan[i * n + i] = 1.0;
        nan[(n - 1) * n] = NAN;
        x[0] = 1.0;
        assert_int_equal(bk_solve_spd(n, nan, x), BK_FAULT);
    }
    assert_int_equal(bk_solve_spd(0, a, b), BK_OK);
}

/* U R = A with U orthogonal and R upper triangular, and b R^-T R^T = b. */
static void factors_of_qr(void **state)
{
    enum { ORDER = 40 };
    static double a[ORDER * ORDER], u[ORDER * ORDER], r[ORDER * ORDER], b[ORDER * ORDER];
    static float single[ORDER * ORDER], single_r[ORDER * ORDER], single_tau[ORDER];
    double tau[ORDER];
    (void)state;
    for (int64_t i = 0; i < ORDER * ORDER; i++) {
        a[i] = u[i] = bk_fill((uint64_t)i, 1, -1.0, 1.0);
        b[i] = bk_fill((uint64_t)i, 2, -1.0, 1.0);
        single[i] = (float)a[i];
    }
    bk_qr(BK_F64, ORDER, u, r, tau);
    bk_qr(BK_F32, ORDER, single, single_r, single_tau);
    bk_solve_upper_transposed(BK_F64, ORDER, r, b);
    for (int64_t i = 0; i < ORDER; i++)
        for (int64_t j = 0; j < ORDER; j++) {
            double inner = 0.0, whole = 0.0, solved = 0.0, other = 0.0;
            for (int64_t l = 0; l < ORDER; l++) {
                inner += u[l * ORDER + i] * u[l * ORDER + j];
                whole += u[i * ORDER + l] * r[l * ORDER + j];
                other += (double)single[i * ORDER + l] * (double)single_r[l * ORDER + j];
                solved += b[i * ORDER + l] * r[j * ORDER + l];
            }
            assert_true(fabs(inner - (i == j)) < 1e-13 && (i <= j || r[i * ORDER + j] == 0.0));
            assert_true(fabs(whole - a[i * ORDER + j]) < 1e-13);
            assert_true(fabs(other - a[i * ORDER + j]) < 1e-5);
            assert_true(fabs(solved - bk_fill((uint64_t)(i * ORDER + j), 2, -1.0, 1.0)) < 1e-10);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(factors_of_qr),
        cmocka_unit_test(both_libraries_multiply),
        cmocka_unit_test(products_of_new_numbers),
        cmocka_unit_test(beta_zero_overwrites),
        cmocka_unit_test(empty_products),
        cmocka_unit_test(bits_do_not_depend_on_threads),
        cmocka_unit_test(bits_do_not_depend_on_place),
        cmocka_unit_test(batches_equal_single_products),
        cmocka_unit_test(polls_between_tiles),
        cmocka_unit_test(setup_refuses),
        cmocka_unit_test(solves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
