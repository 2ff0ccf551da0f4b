/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
/* The cost against a teacher of k classes: its formula, threads, and the same over ranks. */
#include "tests/support/check.h"
#include "tests/support/losses.h"
#include "tests/support/ranks.h"

#include "core/blas.h"

#include <math.h>
#include <string.h>

enum { B = 7, V = 12, K = 4 };

static void probabilities(const double *x, double *p)
{
    double sum = 0.0;
    for (int v = 0; v < V; v++)
        sum += p[v] = exp(x[v] / 2.0);
    for (int v = 0; v < V; v++)
        p[v] /= sum;
}

/* Class of the n-th largest. */
static int nth(const double *x, int n)
{
    for (int v = 0;; v++) {
        int before = 0;
        for (int u = 0; u < V; u++)
            before += x[u] > x[v] || (x[u] == x[v] && u < v);
        if (before == n)
            return v;
    }
}

static double cost_of(const bk_test_batch *b, int i, int j)
{
    double p[V], q[V], cost = 0.0, p_rest = 1.0, q_rest = 1.0;
    probabilities(b->student + i * V, p);
    probabilities(b->teacher + j * V, q);
    for (int n = 0; n < K; n++) {
        int v = nth(b->teacher + j * V, n);
        cost += fabs(p[v] - q[v]);
        p_rest -= p[v];
        q_rest -= q[v];
    }
    return cost + fabs(p_rest - q_rest);
}

/* Rows of this rank; the teacher's come from all. */
static void cost_follows_its_definition(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    bk_test_way w = {
        .options = "top_k=4", .dtype = BK_F64, .plan = true, .comm = bk_test_world()->loss};
    b.teacher[2 * V + 5] = b.teacher[2 * V + 3]; /* a tie */
    bk_test_result r = bk_test_loss("sinkd", &b, &w);
    int rank = bk_mpi_rank(), size = bk_mpi_size();
    bk_lanes lanes = bk_lanes_of_rank(size, B, rank, size);
    for (int64_t i = 0; i < bk_lanes_samples(&lanes); i++)
        for (int j = 0; j < B; j++) {
            double want = cost_of(&b, (int)(bk_lanes_first_sample(&lanes) + i), j);
            assert_true(fabs(r.cost[i * B + j] - want) < 1e-14);
        }
    bk_test_result_free(&r);
    bk_test_batch_free(&b);
}

static void threads_change_no_bit(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(40, 300);
    bk_test_way w = {.options = "top_k=16 group=13"};
    bk_test_result one = bk_test_loss("sinkd", &b, &w);
    assert_int_equal(bk_blas_setup(3, BK_GEMM_AUTO), BK_OK);
    bk_test_result three = bk_test_loss("sinkd", &b, &w);
    assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
    assert_true(one.loss == three.loss);
    assert_memory_equal(one.grad, three.grad, 40 * 300 * sizeof *one.grad);
    bk_test_result_free(&one);
    bk_test_result_free(&three);
    bk_test_batch_free(&b);
}

static void same_bits_on_powers_of_two(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(16, 31);
    bk_test_way w = {.options = "top_k=5 group=6", .lanes = 4};
    bk_test_result alone = bk_test_loss("sinkd", &b, &w);
    w.comm = bk_test_world()->loss;
    bk_test_result together = bk_test_loss("sinkd", &b, &w);
    bk_test_same_loss(&b, &together, &alone, 1e-12, 1e-6, "ranks");
    if (bk_mpi_size() != 3)
        assert_memory_equal(alone.grad, together.grad, 16 * 31 * sizeof *alone.grad);
    bk_test_result_free(&alone);
    bk_test_result_free(&together);
    bk_test_batch_free(&b);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cost_follows_its_definition),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(same_bits_on_powers_of_two),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
