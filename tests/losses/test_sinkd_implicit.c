/* test: labels=unit,grad,mpi ranks=1,2,3,4 timeout=120 */
/* The implicit gradient by conjugate gradients: its sums, long sweeps, Newton, the figures. */
#include "tests/support/check.h"
#include "tests/support/losses.h"
#include "tests/support/ranks.h"

#include "core/rng.h"
#include "losses/sinkd.h"

#include <math.h>
#include <string.h>

static bk_tape tape; /* one lane a rank */

/* Rows by columns of G of a matching over own rows of a batch, global. */
static double *const *matching(bk_sinkd *s, bk_sinkd_config *c, const bk_test_batch *b)
{
    int64_t rows = bk_lanes_samples(&tape.lanes), at = bk_lanes_first_sample(&tape.lanes);
    bk_tape_begin(&tape);
    bk_tensor *x[2];
    for (int k = 0; k < 2; k++) {
        x[k] = bk_tape_variable(&tape, BK_SHAPE(rows, b->classes));
        memcpy(x[k]->data, (k ? b->teacher : b->student) + at * b->classes,
               (size_t)(rows * b->classes) * sizeof(double));
    }
    *s = (bk_sinkd){.args = {.logits = x[0], .comm = bk_test_world()->loss}, .config = c};
    bk_sinkd_match_rows(&tape, s);
    s->left = bk_sinkd_side_new(&tape, s, x[0]);
    s->right = bk_sinkd_side_new(&tape, s, x[1]);
    bk_sinkd_side_hold(&tape, s, s->right);
    bk_sinkd_make_cost(&tape, s);
    bk_sinkd_make_plan(&tape, s);
    return bk_sinkd_plan_back(&tape, s);
}

/* Row sums of G are those of P, and so are its column sums. */
static void sums_are_the_marginals(void **state)
{
    static const char *const groups[] = {"global", "4", "1"};
    (void)state;
    tape.lanes.batch = 10;
    bk_test_batch b = bk_test_batch_new(10, 31);
    for (int k = 0; k < 3; k++) {
        bk_sinkd_config c = {.temperature = 2.0,
                             .epsilon = 0.1,
                             .iterations = 5, /* rows are still off */
                             .gradient = BK_SINKD_IMPLICIT,
                             .group = groups[k]};
        bk_sinkd s;
        double *const *g = matching(&s, &c, &b);
        double column[10] = {0}, x[10], off = 0.0;
        for (int64_t n = 0; n < s.blocks; n++)
            for (int64_t i = 0; i < s.block[n].rows; i++) {
                double sum = 0.0, plan = 0.0;
                bk_sinkd_plan_row(&s, &s.block[n], i, x);
                for (int64_t j = 0; j < s.block[n].columns; j++) {
                    sum += g[n][i * s.block[n].columns + j];
                    plan += x[j];
                    column[s.column + s.block[n].column + j] += g[n][i * s.block[n].columns + j];
                }
                assert_true(fabs(sum - plan) < 1e-10);
                off = fmax(off, fabs(plan - 1.0));
            }
        double all[10];
        bk_lanes ranks = bk_lanes_of_rank(bk_mpi_size(), 10, bk_mpi_rank(), bk_mpi_size());
        bk_reduce_vector(bk_comm_reducer(bk_test_world()->loss), &ranks, 10, column, all,
                         tape.scratch);
        for (int j = 0; j < 10; j++)
            assert_true(fabs(all[j] - 1.0) < 1e-10);
        bk_reduce_max(bk_comm_reducer(bk_test_world()->loss), 1, &off);
        assert_true(k == 2 || off > 1e-6);
    }
    bk_test_batch_free(&b);
}

/* After so many sweeps that all derivatives agree. */
static void agrees_with_long_unrolling(void **state)
{
    static const char *const options[] = {"iterations=1000", "iterations=1000 debias=true",
                                          "iterations=1000 group=3",
                                          "iterations=1000 top_k=9 reduction=sum"};
    (void)state;
    bk_test_batch b = bk_test_batch_new(8, 50);
    for (int k = 0; k < 4; k++) {
        char implicit[96];
        bk_test_way w = {.options = options[k], .dtype = BK_F64, .comm = bk_test_world()->loss};
        bk_test_result unrolled = bk_test_loss("sinkd", &b, &w);
        snprintf(implicit, sizeof implicit, "%s gradient=implicit", options[k]);
        w.options = implicit;
        bk_test_result r = bk_test_loss("sinkd", &b, &w);
        bk_test_same_loss(&b, &r, &unrolled, 1e-15, 1e-9, options[k]);
        bk_test_result_free(&unrolled);
        bk_test_result_free(&r);
    }
    bk_test_batch_free(&b);
}

static void agrees_with_newton(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(9, 31);
    bk_test_way w = {.options = "gradient=implicit tolerance=1e-13 iterations=10000 group=5",
                     .dtype = BK_F64,
                     .comm = bk_test_world()->loss};
    bk_test_result swept = bk_test_loss("sinkd", &b, &w);
    w.options = "gradient=implicit solver=newton tolerance=1e-12 iterations=100 group=5";
    bk_test_result solved = bk_test_loss("sinkd", &b, &w);
    bk_test_same_loss(&b, &swept, &solved, 1e-10, 1e-8, "newton");
    bk_test_result_free(&swept);
    bk_test_result_free(&solved);
    bk_test_batch_free(&b);
}

static void figures_are_reported(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(32, 100);
    bk_test_way w = {.options = "gradient=implicit", .comm = bk_test_world()->loss};
    bk_test_result r = bk_test_loss("sinkd", &b, &w);
    double steps = bk_test_figure(&r, "cg_iterations"),
           residual = bk_test_figure(&r, "cg_residual");
    assert_true(steps >= 2 && steps < 32);
    assert_true(residual > 0.0 && residual <= 1e-6);
    w.dtype = BK_F64;
    bk_test_result exact = bk_test_loss("sinkd", &b, &w);
    assert_true(bk_test_figure(&exact, "cg_residual") <= 1e-12);
    assert_true(bk_test_figure(&exact, "cg_iterations") > steps);
    bk_test_same_loss(&b, &r, &exact, 1e-6, 1e-5, "fp32");
    bk_test_result_free(&r);
    bk_test_result_free(&exact);
    bk_test_batch_free(&b);
}

/* Rows so far apart that P is a permutation: the system is of zeros and of what rounding leaves,
 * and G = P. */
static void permutations_leave_nothing_to_solve(void **state)
{
    (void)state;
    for (int n = 4; n <= 32; n += 4) {
        bk_test_batch b = bk_test_batch_new(n, 50);
        for (int i = 0; i < n * 50; i++) {
            b.student[i] = bk_fill((uint64_t)i, 1, -4.0, 4.0);
            b.teacher[i] = b.student[i] + bk_fill((uint64_t)i, 2, -0.5, 0.5);
        }
        for (bk_dtype dtype = BK_F32; dtype <= BK_F64; dtype++) {
            bk_test_way w = {.options = "gradient=envelope epsilon=0.003",
                             .dtype = dtype,
                             .comm = bk_test_world()->loss};
            bk_test_result held = bk_test_loss("sinkd", &b, &w);
            w.options = "gradient=implicit epsilon=0.003";
            bk_test_result r = bk_test_loss("sinkd", &b, &w);
            bk_test_same_loss(&b, &r, &held, 1e-15, 1e-6, "permutation");
            bk_test_result_free(&held);
            bk_test_result_free(&r);
        }
        bk_test_batch_free(&b);
    }
}

/* A NaN ends the steps, not the job. */
static void nan_hangs_nobody(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(8, 5);
    b.student[1] = NAN;
    assert_true(isnan(bk_test_loss_value("sinkd", &b,
                                         &(bk_test_way){.options = "gradient=implicit group=3",
                                                        .dtype = BK_F64,
                                                        .comm = bk_test_world()->loss})));
    bk_test_batch_free(&b);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_are_the_marginals),
        cmocka_unit_test(agrees_with_long_unrolling),
        cmocka_unit_test(agrees_with_newton),
        cmocka_unit_test(figures_are_reported),
        cmocka_unit_test(permutations_leave_nothing_to_solve),
        cmocka_unit_test(nan_hangs_nobody),
    };
    bk_test_ranks_start(&argc, &argv);
    int rank = bk_mpi_rank(), size = bk_mpi_size();
    tape = bk_test_tape(BK_F64, bk_lanes_of_rank(size, 10, rank, size));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_test_tape_free(&tape);
    return bk_test_ranks_stop(failed);
}
