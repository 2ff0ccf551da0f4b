/* test: labels=unit,mpi ranks=1,2,3,4 timeout=120 */
/* Blocking reduce-scatter: the tree's bits, the other algorithms to rounding, exact traffic. */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "core/rng.h"
#include "dist/collective.h"
#include "dist/reduce_scatter.h"

#include <math.h>
#include <string.h>

enum { N = 48, MOST = 4 }; /* a multiple of 1, 2, 3 and 4 ranks */

static double number(int rank, int i)
{
    return (double)(float)ldexp(bk_fill((uint64_t)i, (uint64_t)rank, -1.0, 1.0), i % 20);
}

/* The tree over the ranks (a power of two), in the arithmetic of the dtype. */
static void tree(int size, bk_dtype dtype, double *sum)
{
    for (int i = 0; i < N; i++) {
        double x[MOST] = {0};
        for (int r = 0; r < size; r++)
            x[r] = number(r, i);
        for (int left = size; left > 1; left /= 2)
            for (int r = 0; r < left / 2; r++)
                x[r] = dtype == BK_F64 ? x[2 * r] + x[2 * r + 1]
                                       : (double)((float)x[2 * r] + (float)x[2 * r + 1]);
        sum[i] = x[0];
    }
}

static void fill(int rank, bk_dtype dtype, void *x)
{
    for (int i = 0; i < N; i++)
        if (dtype == BK_F64)
            ((double *)x)[i] = number(rank, i);
        else
            ((float *)x)[i] = (float)number(rank, i);
}

static double at(bk_dtype dtype, const void *x, int i)
{
    return dtype == BK_F64 ? ((const double *)x)[i] : (double)((const float *)x)[i];
}

/* Scatter, traffic, gather; the sums of all segments in `out`. */
static void run(bk_reduce_algorithm algorithm, bk_dtype dtype, double *out)
{
    const bk_comm *comm = bk_test_world()->world;
    int size = bk_comm_size(comm);
    double x[N];
    int64_t first;
    fill(bk_comm_rank(comm), dtype, x);
    int64_t before = bk_traffic_now().bytes;
    bk_reduce_scatter(comm, algorithm, dtype, N, x, &first);
    assert_int_equal(bk_traffic_now().bytes - before,
                     N * (size - 1) / size * (int64_t)bk_dtype_size(dtype));
    assert_in_range(first, 0, N - N / size);
    before = bk_traffic_now().bytes;
    bk_reduce_gather(comm, algorithm, dtype, N, x);
    assert_int_equal(bk_traffic_now().bytes - before,
                     N * (size - 1) / size * (int64_t)bk_dtype_size(dtype));
    for (int i = 0; i < N; i++)
        out[i] = at(dtype, x, i);
}

static void the_tree_has_its_bits(void **state)
{
    int size = bk_comm_size(bk_test_world()->world);
    (void)state;
    for (bk_dtype dtype = BK_F32; dtype <= BK_F64; dtype++) {
        double sum[N], out[N];
        run(BK_REDUCE_TREE, dtype, out);
        if (size == 3)
            continue;
        tree(size, dtype, sum);
        assert_memory_equal(out, sum, sizeof sum);
    }
}

/* In one call: what scatter and gather give; MPI's own to rounding. */
static void allreduce_is_both(void **state)
{
    const bk_comm *comm = bk_test_world()->world;
    (void)state;
    for (int algorithm = BK_REDUCE_TREE; algorithm <= BK_REDUCE_MPI; algorithm++) {
        double x[N], out[N];
        run((bk_reduce_algorithm)algorithm, BK_F64, out);
        fill(bk_comm_rank(comm), BK_F64, x);
        bk_allreduce(comm, (bk_reduce_algorithm)algorithm, BK_F64, N, x);
        for (int i = 0; i < N; i++)
            if (algorithm == BK_REDUCE_MPI)
                assert_true(fabs(x[i] - out[i]) <= 1e-12 * (1.0 + fabs(out[i])));
            else
                assert_memory_equal(&x[i], &out[i], sizeof *x);
    }
}

static void every_algorithm_sums(void **state)
{
    int size = bk_comm_size(bk_test_world()->world);
    (void)state;
    for (int algorithm = BK_REDUCE_TREE; algorithm <= BK_REDUCE_MPI; algorithm++) {
        double out[N];
        run((bk_reduce_algorithm)algorithm, BK_F64, out);
        for (int i = 0; i < N; i++) {
            double sum = 0.0, most = 0.0;
            for (int r = 0; r < size; r++) {
                sum += number(r, i);
                most += fabs(number(r, i));
            }
            assert_true(fabs(out[i] - sum) <= 4e-16 * most);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_tree_has_its_bits),
        cmocka_unit_test(every_algorithm_sums),
        cmocka_unit_test(allreduce_is_both),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
