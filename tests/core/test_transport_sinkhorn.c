/* The sweep that routing and SinKD share: both sum rules, blocks, ranks, and numbers at the edge.
 */
#include "core/transport/sinkhorn.h"

#include "core/rng.h"
#include "tests/support/check.h"
#include "tests/support/child.h"
#include "tests/support/threads.h"

#include <math.h>
#include <string.h>

enum { ROWS = 24, COLUMNS = 7, LANES = 8 };

static double scores[ROWS * COLUMNS], start[COLUMNS];

static void fill(double spread)
{
    for (int i = 0; i < ROWS * COLUMNS; i++)
        scores[i] = bk_fill((uint64_t)i, 1, -spread, spread);
    for (int j = 0; j < COLUMNS; j++)
        start[j] = bk_fill((uint64_t)j, 2, -1.0, 1.0);
}

/* What a sweep gives to all ranks together. */
typedef struct result {
    double f[ROWS], column[COLUMNS], shifted[COLUMNS], q[ROWS * COLUMNS];
} result;

typedef struct job {
    const double *s;
    bk_sum_rule rule;
    result *out; /* [ranks] the same array of rows, columns of its own */
} job;

/* Rank `rank` sweeps the rows of its lanes. */
static void sweep(void *context, int rank, int size, const bk_reducer *reducer)
{
    const job *j = context;
    bk_arena *scratch = bk_arena_new("scratch");
    bk_lanes lanes = bk_lanes_of_rank(LANES, ROWS, rank, size);
    int64_t first = bk_lanes_first_sample(&lanes), rows = bk_lanes_samples(&lanes), row[LANES + 1];
    for (int64_t l = 0; l <= lanes.count; l++)
        row[l] = bk_lane_row(&lanes, rows, l);
    bk_sinkhorn_block block = {.rows = rows, .columns = COLUMNS, .s = j->s + first * COLUMNS};
    bk_sinkhorn p = {.block = &block,
                     .blocks = 1,
                     .rows = rows,
                     .columns = COLUMNS,
                     .rule = j->rule,
                     .terms = ROWS,
                     .lane_row = row,
                     .lanes = &lanes,
                     .reducer = reducer,
                     .scratch = scratch};
    result *r = &j->out[rank];
    bk_sinkhorn_sweep(&p, start, r->f + first, r->column,
                      j->rule == BK_SUM_FIXED ? r->q + first * COLUMNS : NULL);
    bk_sinkhorn_shifted_columns(&p, r->f + first, r->shifted);
    bk_arena_free(scratch);
}

static result on_one_rank(const double *s, bk_sum_rule rule)
{
    static result r;
    job j = {s, rule, &r};
    memset(&r, 0, sizeof r);
    sweep(&j, 0, 1, NULL);
    return r;
}

/* ---- the plain sweep, in long double ---- */

static long double row_lse(int i)
{
    long double sum = 0.0L;
    for (int j = 0; j < COLUMNS; j++)
        sum += expl((long double)scores[i * COLUMNS + j] + (long double)start[j]);
    return logl(sum);
}

static void check_plain(const result *r, double limit, bool fixed)
{
    long double column[COLUMNS] = {0}, shifted[COLUMNS] = {0};
    for (int i = 0; i < ROWS; i++) {
        long double f = -row_lse(i);
        bk_check_error(fabs(r->f[i] - (double)f), 1e-13 * fmax(1.0, fabs((double)f)), "f");
        for (int j = 0; j < COLUMNS; j++) {
            long double s = (long double)scores[i * COLUMNS + j];
            long double q = expl(s + f + (long double)start[j]);
            column[j] += q;
            shifted[j] += expl(s + f);
            if (fixed)
                bk_check_error(fabs(r->q[i * COLUMNS + j] - (double)q), 1e-14, "q");
        }
    }
    for (int j = 0; j < COLUMNS; j++) {
        bk_check_error(fabs(r->column[j] - (double)column[j]), limit, "column %d", j);
        bk_check_error(fabs(r->shifted[j] + (double)logl(shifted[j])), 1e-12, "shifted %d", j);
    }
}

static void a_sweep_is_the_plain_sweep(void **state)
{
    (void)state;
    for (double spread = 0.5; spread < 60.0; spread *= 5.0) {
        fill(spread);
        result lanes = on_one_rank(scores, BK_SUM_LANES), fixed = on_one_rank(scores, BK_SUM_FIXED);
        check_plain(&lanes, 1e-13, false);
        check_plain(&fixed, ROWS * ldexp(1.0, -41) + 1e-13, true);
    }
}

/* ---- equal bits ---- */

static void check_ranks(bk_sum_rule rule, int size)
{
    static result part[BK_TEST_THREADS], whole;
    job j = {scores, rule, part};
    memset(part, 0, sizeof part);
    whole = on_one_rank(scores, rule);
    bk_test_threads(size, sweep, &j);
    for (int r = 0; r < size; r++) {
        bk_lanes lanes = bk_lanes_of_rank(LANES, ROWS, r, size);
        int64_t first = bk_lanes_first_sample(&lanes);
        size_t rows = (size_t)bk_lanes_samples(&lanes) * sizeof(double);
        assert_memory_equal(part[r].column, whole.column, sizeof whole.column);
        assert_memory_equal(part[r].f + first, whole.f + first, rows);
        assert_memory_equal(part[r].q + first * COLUMNS, whole.q + first * COLUMNS, COLUMNS * rows);
        assert_memory_equal(part[r].shifted, whole.shifted, sizeof whole.shifted);
    }
}

static void ranks_have_equal_bits(void **state)
{
    (void)state;
    fill(4.0);
    for (int size = 1; size <= 8; size *= 2) {
        check_ranks(BK_SUM_LANES, size);
        check_ranks(BK_SUM_FIXED, size);
    }
    check_ranks(BK_SUM_FIXED, 3); /* integers add up in any split */
    check_ranks(BK_SUM_FIXED, 5);
}

static void fixed_sums_do_not_depend_on_the_order(void **state)
{
    double turned[ROWS * COLUMNS];
    int64_t order[ROWS];
    (void)state;
    fill(6.0);
    result base = on_one_rank(scores, BK_SUM_FIXED);
    for (uint64_t seed = 0; seed < 20; seed++) {
        bk_permutation(seed, BK_USE_SHUFFLE, 0, ROWS, order);
        for (int i = 0; i < ROWS; i++)
            memcpy(turned + i * COLUMNS, scores + order[i] * COLUMNS, COLUMNS * sizeof *turned);
        result r = on_one_rank(turned, BK_SUM_FIXED);
        assert_memory_equal(r.column, base.column, sizeof r.column);
        for (int i = 0; i < ROWS; i++)
            assert_true(r.f[i] == base.f[order[i]]);
    }
}

/* ---- blocks ---- */

/* Two groups of rows with columns of their own: as if each were alone. */
static void blocks_are_apart(void **state)
{
    enum { HALF = ROWS / 2 };
    double f[ROWS], column[2 * COLUMNS], g[2 * COLUMNS], shifted[2 * COLUMNS], one_f[HALF],
        one[COLUMNS], one_shifted[COLUMNS];
    bk_arena *scratch = bk_arena_new("scratch");
    bk_lanes lanes = {.total = 2, .count = 2, .batch = ROWS};
    int64_t row[] = {0, HALF, ROWS};
    (void)state;
    fill(3.0);
    memcpy(g, start, sizeof start);
    memcpy(g + COLUMNS, start, sizeof start);
    bk_sinkhorn_block block[] = {{.rows = HALF, .columns = COLUMNS, .s = scores},
                                 {.first = HALF,
                                  .rows = HALF,
                                  .column = COLUMNS,
                                  .columns = COLUMNS,
                                  .s = scores + HALF * COLUMNS}};
    bk_sinkhorn p = {.block = block,
                     .blocks = 2,
                     .rows = ROWS,
                     .columns = 2 * COLUMNS,
                     .lane_row = row,
                     .lanes = &lanes,
                     .scratch = scratch};
    bk_sinkhorn_sweep(&p, g, f, column, NULL);
    bk_sinkhorn_shifted_columns(&p, f, shifted);
    for (int k = 0; k < 2; k++) {
        bk_sinkhorn_block alone = {
            .rows = HALF, .columns = COLUMNS, .s = scores + k * HALF * COLUMNS};
        bk_lanes single = bk_lanes_single(HALF);
        bk_sinkhorn o = {.block = &alone,
                         .blocks = 1,
                         .rows = HALF,
                         .columns = COLUMNS,
                         .lane_row = row,
                         .lanes = &single,
                         .scratch = scratch};
        bk_sinkhorn_sweep(&o, start, one_f, one, NULL);
        bk_sinkhorn_shifted_columns(&o, one_f, one_shifted);
        assert_memory_equal(f + k * HALF, one_f, sizeof one_f);
        assert_memory_equal(column + k * COLUMNS, one, sizeof one);
        assert_memory_equal(shifted + k * COLUMNS, one_shifted, sizeof one_shifted);
    }
    bk_arena_free(scratch);
}

static void rows_know_their_lane(void **state)
{
    const int64_t row[] = {0, 2, 2, 5};
    const int lane[] = {0, 0, 2, 2, 2};
    bk_lanes lanes = {.total = 4, .first = 1, .count = 3, .batch = 8};
    bk_sinkhorn p = {.lane_row = row, .lanes = &lanes};
    (void)state;
    for (int i = 0; i < 5; i++)
        assert_int_equal(bk_sinkhorn_lane(&p, i), lane[i]);
}

/* ---- log domain against direct scaling ---- */

static void log_and_direct_iterations_agree(void **state)
{
    long double u[ROWS], v[COLUMNS];
    (void)state;
    fill(2.0);
    for (int j = 0; j < COLUMNS; j++)
        v[j] = expl((long double)start[j]);
    for (int n = 0; n < 30; n++) {
        result r = on_one_rank(scores, BK_SUM_LANES);
        for (int i = 0; i < ROWS; i++) {
            long double sum = 0.0L;
            for (int j = 0; j < COLUMNS; j++)
                sum += expl((long double)scores[i * COLUMNS + j]) * v[j];
            u[i] = 1.0L / sum;
            bk_check_error(fabs(exp(r.f[i]) / (double)u[i] - 1.0), 1e-12, "row scaling");
        }
        for (int j = 0; j < COLUMNS; j++) {
            long double sum = 0.0L, mass = (long double)ROWS / COLUMNS;
            for (int i = 0; i < ROWS; i++)
                sum += expl((long double)scores[i * COLUMNS + j]) * u[i];
            v[j] = mass / sum;
            start[j] += log((double)mass / r.column[j]);
            bk_check_error(fabs(exp(start[j]) / (double)v[j] - 1.0), 1e-12, "column scaling");
        }
    }
}

/* ---- numbers at the edge ---- */

static void bits_behind_the_point(void **state)
{
    const struct {
        int64_t terms;
        int bits;
    } row[] = {{0, 40},
               {1, 40},
               {1 << 22, 40},
               {(1 << 22) + 1, 39},
               {1 << 23, 39},
               {(int64_t)1 << 40, 22},
               {((int64_t)1 << 40) + 1, 21},
               {INT64_MAX, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        assert_int_equal(bk_fixed_bits(row[i].terms), row[i].bits);
}

static void a_column_below_one_unit_counts_as_one(void **state)
{
    (void)state;
    fill(1.0);
    for (int i = 0; i < ROWS; i++)
        scores[i * COLUMNS + 3] = -1000.0;
    result fixed = on_one_rank(scores, BK_SUM_FIXED), lanes = on_one_rank(scores, BK_SUM_LANES);
    assert_true(fixed.column[3] == ldexp(1.0, -40));
    assert_true(lanes.column[3] == 0.0);
    /* the column step with a maximum still finds it */
    assert_true(isfinite(lanes.shifted[3]) && lanes.shifted[3] > 990.0);
}

static void wide_scores_do_not_overflow(void **state)
{
    (void)state;
    fill(1e5);
    result lanes = on_one_rank(scores, BK_SUM_LANES);
    double sum = 0.0;
    for (int j = 0; j < COLUMNS; j++) {
        assert_true(lanes.column[j] >= 0.0 && lanes.column[j] <= ROWS &&
                    isfinite(lanes.shifted[j]));
        sum += lanes.column[j];
    }
    bk_check_error(fabs(sum - ROWS), 1e-12, "mass");
}

static void sweep_with_nan(void *unused)
{
    (void)unused;
    scores[5] = NAN;
    on_one_rank(scores, BK_SUM_FIXED);
}

/* The overflow word comes from another rank; the rows here are good. */
static void hear_of_overflow(void *context, int64_t n, int64_t *x)
{
    (void)context;
    x[n - 1] += 2;
}

static void sweep_beside_a_bad_rank(void *unused)
{
    static result r;
    job j = {scores, BK_SUM_FIXED, &r};
    (void)unused;
    sweep(&j, 0, 1, &(bk_reducer){.sum_fixed = hear_of_overflow});
}

static void terms_outside_the_interval_stop_all_ranks(void **state)
{
    (void)state;
    fill(1.0);
    bk_test_dies(sweep_with_nan, NULL, "terms of a column sum are not in [0, 1]");
    bk_test_dies(sweep_beside_a_bad_rank, NULL, "2 terms of a column sum are not in [0, 1]");
}

/* Under rule F3 NaN passes through to the finite check. */
static void nan_passes_through_lanes(void **state)
{
    (void)state;
    fill(1.0);
    scores[5] = NAN;
    result r = on_one_rank(scores, BK_SUM_LANES);
    for (int j = 0; j < COLUMNS; j++)
        assert_true(isnan(r.column[j]) && isnan(r.shifted[j]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sweep_is_the_plain_sweep),
        cmocka_unit_test(ranks_have_equal_bits),
        cmocka_unit_test(fixed_sums_do_not_depend_on_the_order),
        cmocka_unit_test(blocks_are_apart),
        cmocka_unit_test(rows_know_their_lane),
        cmocka_unit_test(log_and_direct_iterations_agree),
        cmocka_unit_test(bits_behind_the_point),
        cmocka_unit_test(a_column_below_one_unit_counts_as_one),
        cmocka_unit_test(wide_scores_do_not_overflow),
        cmocka_unit_test(terms_outside_the_interval_stop_all_ranks),
        cmocka_unit_test(nan_passes_through_lanes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
