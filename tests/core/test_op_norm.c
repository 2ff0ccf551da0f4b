/* LayerNorm against a plain double loop. */
#include "core/blas.h"
#include "core/ops.h"
#include "tests/support/check.h"
#include "tests/support/child.h"

#include <math.h>
#include <string.h>

typedef struct norm {
    bk_tape tape;
    bk_tensor *x, *gain, *bias, *y;
    int64_t rows, cols;
    double epsilon, shift, spread; /* of x */
} norm;

static void run(norm *n, bk_dtype dtype, bool bias)
{
    n->tape = bk_test_tape(dtype, bk_lanes_single(n->rows));
    n->x = bk_test_fill(&n->tape, BK_SHAPE(n->rows, n->cols), 1, n->shift - n->spread,
                        n->shift + n->spread);
    n->gain = bk_test_fill(&n->tape, BK_SHAPE(n->cols), 2, 0.5, 1.5);
    n->bias = bias ? bk_test_fill(&n->tape, BK_SHAPE(n->cols), 3, -1, 1) : NULL;
    n->y = bk_layernorm(&n->tape, n->x, n->gain, n->bias, n->epsilon);
    bk_test_seed_fill(&n->tape, n->y, 4, -1, 1);
    bk_tape_backward_seeded(&n->tape);
}

/* Mean and 1 / sqrt(var + epsilon) of a row. */
static void moments(const norm *n, int64_t i, double *mean, double *rstd)
{
    double variance = 0.0;
    *mean = 0.0;
    for (int64_t j = 0; j < n->cols; j++)
        *mean += bk_test_value(n->x, i * n->cols + j);
    *mean /= (double)n->cols;
    for (int64_t j = 0; j < n->cols; j++)
        variance += pow(bk_test_value(n->x, i * n->cols + j) - *mean, 2) / (double)n->cols;
    *rstd = 1.0 / sqrt(variance + n->epsilon);
}

static void check_row(const norm *n, int64_t i, double limit)
{
    double mean, rstd, along_one = 0.0, along_x = 0.0, width = (double)n->cols;
    moments(n, i, &mean, &rstd);
    for (int64_t j = 0; j < n->cols; j++) {
        double g = bk_test_grad(n->y, i * n->cols + j) * bk_test_value(n->gain, j);
        double hat = (bk_test_value(n->x, i * n->cols + j) - mean) * rstd;
        double y = hat * bk_test_value(n->gain, j) + (n->bias ? bk_test_value(n->bias, j) : 0.0);
        bk_check_error(fabs(bk_test_value(n->y, i * n->cols + j) - y), limit * fmax(1.0, fabs(y)),
                       "y");
        along_one += g / width;
        along_x += g * hat / width;
    }
    for (int64_t j = 0; j < n->cols; j++) {
        double g = bk_test_grad(n->y, i * n->cols + j) * bk_test_value(n->gain, j);
        double hat = (bk_test_value(n->x, i * n->cols + j) - mean) * rstd;
        bk_check_error(
            fabs(bk_test_grad(n->x, i * n->cols + j) - rstd * (g - along_one - hat * along_x)),
            limit * fmax(1.0, rstd), "dx");
    }
}

static void check_parameters(const norm *n, double limit)
{
    for (int64_t j = 0; j < n->cols; j++) {
        double dgain = 0.0, dbias = 0.0;
        for (int64_t i = 0; i < n->rows; i++) {
            double mean, rstd, dy = bk_test_grad(n->y, i * n->cols + j);
            moments(n, i, &mean, &rstd);
            dgain += dy * (bk_test_value(n->x, i * n->cols + j) - mean) * rstd;
            dbias += dy;
        }
        bk_check_error(fabs(bk_test_grad(n->gain, j) - dgain), limit * (double)n->rows, "dgain");
        if (n->bias)
            bk_check_error(fabs(bk_test_grad(n->bias, j) - dbias), limit * (double)n->rows,
                           "dbias");
    }
}

static void check(norm n, double single)
{
    for (int k = 0; k < 4; k++) {
        bk_dtype dtype = k % 2 ? BK_F64 : BK_F32;
        double limit = dtype == BK_F64 ? single * 1e-8 : single;
        run(&n, dtype, k < 2);
        for (int64_t i = 0; i < n.rows; i++)
            check_row(&n, i, limit);
        check_parameters(&n, limit);
        bk_test_tape_free(&n.tape);
    }
}

static void layernorm_is_the_plain_loop(void **state)
{
    const int64_t cols[] = {1, 2, 15, 16, 17, 31, 64, 129};
    (void)state;
    for (int i = 0; i < 8; i++)
        check((norm){.rows = 5, .cols = cols[i], .epsilon = 1e-5, .spread = 2.0}, 2e-6);
}

/* Sums over one chunk of rows and over several. */
static void chunks_of_rows(void **state)
{
    (void)state;
    for (int64_t rows = 63; rows < 67; rows++)
        check((norm){.rows = rows, .cols = 40, .epsilon = 1e-5, .spread = 2.0}, 2e-6);
    check((norm){.rows = 257, .cols = 40, .epsilon = 1e-5, .spread = 2.0}, 2e-6);
}

/* Rows far from 0 beside their spread, and rows of equal numbers. */
static void rows_at_the_edge(void **state)
{
    (void)state;
    check((norm){.rows = 3, .cols = 40, .epsilon = 1e-5, .shift = 100.0, .spread = 1.0}, 1e-4);
    check((norm){.rows = 3, .cols = 40, .epsilon = 1e-5, .shift = 7.0, .spread = 0.0}, 2e-6);
    check((norm){.rows = 3, .cols = 40, .epsilon = 0.5, .spread = 1e-3}, 2e-6);
}

/* ---- of a sum ---- */

enum { LANES = 4, LANE_ROWS = 50, WIDTH = 40 };

/* x + residual with other readers, before and behind, of the sum and (unless alone) of both. */
typedef struct branch {
    bk_tape tape;
    bk_tensor *in[4], *sum, *norm; /* x, residual, gain, bias */
    bool fused, alone;
} branch;

static void run_branch(branch *b, bk_dtype dtype)
{
    bk_tape *t = &b->tape;
    int64_t rows = LANES * LANE_ROWS;
    *t = bk_test_tape(dtype, (bk_lanes){.total = LANES, .count = LANES, .batch = rows});
    for (int i = 0; i < 4; i++)
        b->in[i] = i < 2 ? bk_test_fill(t, BK_SHAPE(rows, WIDTH), (uint64_t)i, -2, 2)
                         : bk_test_fill(t, BK_SHAPE(WIDTH), (uint64_t)i, -2, 2);
    bk_tensor *x = b->in[0], *r = b->in[1], *other = b->alone ? NULL : bk_mul(t, x, r);
    if (b->fused) {
        bk_sum_and_norm z = bk_add_layernorm(t, x, r, b->in[2], b->in[3], 1e-5);
        b->sum = z.sum;
        b->norm = z.norm;
    } else {
        b->sum = bk_add(t, x, r);
        b->norm = bk_layernorm(t, b->sum, b->in[2], b->in[3], 1e-5);
    }
    b->sum->kept = b->norm->kept = true;
    bk_tensor *y = bk_add(t, bk_mul(t, b->norm, b->sum), b->sum);
    y = other ? bk_add(t, bk_mul(t, y, x), bk_mul(t, other, r)) : y;
    bk_test_seed_fill(t, y, 9, -1, 1);
    bk_tape_backward_seeded(t);
}

static void hold(const bk_tensor *like, const void *x, const void *y)
{
    assert_memory_equal(x, y, (size_t)bk_count(like) * bk_dtype_size(like->dtype));
}

/* One op for both gives the bits of one after the other. */
static void sum_and_norm_are_those_of_two_ops(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        bk_dtype dtype = i % 2 ? BK_F64 : BK_F32;
        branch fused = {.fused = true, .alone = i / 2 % 2}, two = {.alone = i / 2 % 2};
        assert_int_equal(bk_blas_setup(i < 4 ? 1 : 3, BK_GEMM_AUTO), BK_OK);
        run_branch(&fused, dtype);
        run_branch(&two, dtype);
        hold(two.sum, fused.sum->data, two.sum->data);
        hold(two.norm, fused.norm->data, two.norm->data);
        for (int j = 0; j < 4; j++)
            hold(two.in[j], fused.in[j]->grad, two.in[j]->grad);
        bk_test_tape_free(&fused.tape);
        bk_test_tape_free(&two.tape);
    }
    assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
}

static void nan_stays_in_its_row(void **state)
{
    norm n = {.rows = 3, .cols = 5};
    (void)state;
    n.tape = bk_test_tape(BK_F32, bk_lanes_single(3));
    n.x = bk_test_fill(&n.tape, BK_SHAPE(3, 5), 1, -1, 1);
    n.gain = bk_test_fill(&n.tape, BK_SHAPE(5), 2, 0.5, 1.5);
    ((float *)n.x->data)[7] = NAN;
    n.y = bk_layernorm(&n.tape, n.x, n.gain, NULL, 1e-5);
    for (int i = 0; i < 15; i++)
        assert_true(isnan(bk_test_value(n.y, i)) == (i / 5 == 1));
    bk_test_tape_free(&n.tape);
}

static void wrong_gain(void *unused)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(1));
    (void)unused;
    bk_layernorm(&t, bk_test_fill(&t, BK_SHAPE(1, 3), 1, 0, 1),
                 bk_test_fill(&t, BK_SHAPE(4), 1, 0, 1), NULL, 1e-5);
}

static void wrong_shapes_are_faults(void **state)
{
    (void)state;
    bk_test_dies(wrong_gain, NULL, "gain of 4");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layernorm_is_the_plain_loop),
        cmocka_unit_test(chunks_of_rows),
        cmocka_unit_test(rows_at_the_edge),
        cmocka_unit_test(sum_and_norm_are_those_of_two_ops),
        cmocka_unit_test(nan_stays_in_its_row),
        cmocka_unit_test(wrong_shapes_are_faults),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
