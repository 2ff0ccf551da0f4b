/* test: labels=golden,mpi timeout=300 */
/* birkhoff op reduce and sum: the bits of the fixed tree, of fixed point and of lane records. */
#include "tests/support/op.h"

#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bk_test_op op;

/* Numbers of very different size, so that the order of additions shows; exact in float. */
static double number(int64_t i)
{
    double exponent = floor(bk_fill((uint64_t)i, 2, -12.0, 12.0));
    return (double)(float)ldexp(bk_fill((uint64_t)i, 1, -1.0, 1.0), (int)exponent);
}

static double *put_numbers(int64_t rows, int64_t columns)
{
    double *x = BK_NEW(op.arena, double, rows *columns);
    for (int64_t i = 0; i < rows * columns; i++)
        x[i] = number(i);
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "x", BK_SHAPE(rows, columns), x);
    return x;
}

/* tree_sum of the reference: x = x[0::2] + x[1::2] until one is left, in float or double. */
static void tree_sum(int64_t lanes, int64_t n, double *x, bool wide)
{
    for (; lanes > 1; lanes /= 2)
        for (int64_t l = 0; l < lanes / 2; l++)
            for (int64_t j = 0; j < n; j++) {
                double a = x[2 * l * n + j], b = x[(2 * l + 1) * n + j];
                x[l * n + j] = wide ? a + b : (double)((float)a + (float)b);
            }
}

static void hold_bits(const double *reference, int64_t n)
{
    assert_int_equal(bk_count(bk_test_op_array(&op, "sum")), n);
    assert_memory_equal(bk_test_op_numbers(&op, "sum"), reference, (size_t)n * sizeof(double));
}

static int log2_of(int ranks)
{
    return ranks == 1 ? 0 : ranks == 2 ? 1 : 2;
}

enum { LANES = 8, WIDTH = 512 };

static void reduce_is_the_tree(void **state)
{
    (void)state;
    for (int wide = 0; wide < 2; wide++) {
        double *x = put_numbers(LANES, WIDTH);
        const char *call = wide ? "reduce dtype=f64" : "reduce";
        tree_sum(LANES, WIDTH, x, wide);
        for (int ranks = 1; ranks <= 4; ranks *= 2) {
            bk_test_op_run(&op, ranks, call);
            hold_bits(x, WIDTH);
            assert_true(bk_test_op_attribute(&op, "bytes_sent") ==
                        (wide ? 8.0 : 4.0) * WIDTH * (ranks - 1) / ranks);
            assert_true(bk_test_op_attribute(&op, "messages") == log2_of(ranks));
        }
        bk_test_op_run(&op, 3, call);
        bk_check_error(bk_test_error(WIDTH, bk_test_op_numbers(&op, "sum"), x, 1e-30), 1e-6,
                       "three ranks");
    }
}

/* More than one bucket, the last one padded. */
static void reduce_goes_bucket_by_bucket(void **state)
{
    enum { MANY = 150000 };
    (void)state;
    double *x = put_numbers(4, MANY);
    tree_sum(4, MANY, x, false);
    bk_test_op_run(&op, 2, "reduce bucket_mb=0.25");
    hold_bits(x, MANY);
    assert_true(bk_test_op_attribute(&op, "messages") == 2.0);
}

static void other_algorithms_agree(void **state)
{
    const char *const names[] = {"ring", "mpi"};
    (void)state;
    double *x = put_numbers(LANES, WIDTH + 1);
    tree_sum(LANES, WIDTH + 1, x, true);
    for (int i = 0; i < 2; i++) {
        bk_test_op_run(&op, 3,
                       bk_arena_printf(op.arena, "reduce dtype=f64 algorithm=%s", names[i]));
        bk_check_error(bk_test_error(WIDTH + 1, bk_test_op_numbers(&op, "sum"), x, 1e-30), 1e-12,
                       "%s", names[i]);
    }
}

static void every_lane_gets_the_gradient(void **state)
{
    double grad[WIDTH];
    (void)state;
    put_numbers(LANES, WIDTH);
    for (int j = 0; j < WIDTH; j++)
        grad[j] = j - 7.0;
    bk_test_op_reals(&op, "grad/sum", BK_SHAPE(WIDTH), grad);
    bk_test_op_run(&op, 3, "reduce");
    const double *x = bk_test_op_numbers(&op, "grad/x");
    for (int i = 0; i < LANES * WIDTH; i++)
        assert_true(x[i] == grad[i % WIDTH]);
}

/* ---- sum ---- */

enum { ROWS = 150, COLUMNS = 3 };

/* Rows of block l of `lanes` added in order, then the tree. */
static double *lane_sum(const double *x, int64_t lanes)
{
    double *record = BK_ZNEW(op.arena, double, lanes *COLUMNS);
    for (int64_t l = 0; l < lanes; l++)
        for (int64_t i = ROWS * l / lanes; i < ROWS * (l + 1) / lanes; i++)
            for (int64_t j = 0; j < COLUMNS; j++)
                record[l * COLUMNS + j] += x[i * COLUMNS + j];
    tree_sum(lanes, COLUMNS, record, true);
    return record;
}

static void sum_of_lanes(void **state)
{
    (void)state;
    const double *x = put_numbers(ROWS, COLUMNS);
    for (int ranks = 1; ranks <= 4; ranks *= 2) {
        bk_test_op_run(&op, ranks, "sum method=lanes");
        hold_bits(lane_sum(x, 64), COLUMNS);
        bk_test_op_run(&op, ranks, "sum method=lanes lanes=4");
        hold_bits(lane_sum(x, 4), COLUMNS);
    }
    bk_test_op_run(&op, 3, "sum method=lanes");
    bk_check_error(bk_test_error(COLUMNS, bk_test_op_numbers(&op, "sum"), lane_sum(x, 64), 1e-30),
                   1e-12, "three ranks");
}

/* Units of 2^-40, rounded half to even, added as integers. */
static void sum_in_fixed_point(void **state)
{
    double x[ROWS * COLUMNS], sum[COLUMNS] = {0};
    (void)state;
    for (int i = 0; i < ROWS * COLUMNS; i++) {
        x[i] = bk_fill((uint64_t)i, 3, 0.0, 1.0);
        sum[i % COLUMNS] += rint(ldexp(x[i], 40)); /* whole numbers below 2^53: exact */
    }
    for (int j = 0; j < COLUMNS; j++)
        sum[j] = ldexp(sum[j], -40);
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "x", BK_SHAPE(ROWS, COLUMNS), x);
    for (int ranks = 1; ranks <= 4; ranks++) {
        bk_test_op_run(&op, ranks, "sum method=fixed");
        hold_bits(sum, COLUMNS);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reduce_is_the_tree),     cmocka_unit_test(reduce_goes_bucket_by_bucket),
        cmocka_unit_test(other_algorithms_agree), cmocka_unit_test(every_lane_gets_the_gradient),
        cmocka_unit_test(sum_of_lanes),           cmocka_unit_test(sum_in_fixed_point),
    };
    return bk_test_op_tests(&op, NULL, tests, sizeof tests / sizeof *tests);
}
