/* The nearest doubly stochastic matrix: closed forms, and brute force over all permutations. */
#include "core/rng.h"
#include "models/projection.h"
#include "tests/support/check.h"

#include <math.h>
#include <string.h>

enum { MOST = 64 };

static bk_arena *arena;

/* A[i] = bk_fill: uniform (kind 0), softmax rows of sharp scores (1), far from the polytope (2). */
static void fill(int64_t n, int kind, uint64_t tag, double *a)
{
    for (int64_t i = 0; i < n * n; i++) {
        double x = bk_fill((uint64_t)i, tag, -1.0, 1.0);
        a[i] = kind == 0 ? x : kind == 1 ? exp(6.0 * x) : 20.0 * x;
    }
    for (int64_t i = 0; i < n && kind == 1; i++) {
        double sum = 0.0;
        for (int64_t j = 0; j < n; j++)
            sum += a[i * n + j];
        for (int64_t j = 0; j < n; j++)
            a[i * n + j] /= sum;
    }
}

static void check_doubly_stochastic(int64_t n, const double *x)
{
    for (int64_t i = 0; i < n; i++) {
        double row = 0.0, column = 0.0;
        for (int64_t j = 0; j < n; j++) {
            assert_true(x[i * n + j] >= 0.0);
            row += x[i * n + j];
            column += x[j * n + i];
        }
        bk_check_error(fabs(row - 1.0), 1e-9, "row %d of %d", (int)i, (int)n);
        bk_check_error(fabs(column - 1.0), 1e-9, "column %d of %d", (int)i, (int)n);
    }
}

/* The largest of <G, P> over the permutations P that go on from `row` with the columns in `free`.
 */
static double best_permutation(int n, const double *g, int row, unsigned free)
{
    double best = row == n ? 0.0 : -INFINITY;
    for (int j = 0; row < n && j < n; j++)
        if (free >> j & 1)
            best = fmax(best, g[row * n + j] +
                                  best_permutation(n, g, row + 1, free & ~(1u << (unsigned)j)));
    return best;
}

/* X is the projection of A when no vertex P of the polytope has <A - X, P - X> > 0: the polytope is
 * the hull of the permutations (Birkhoff), so this is all there is to check. */
static void no_permutation_is_nearer(void **state)
{
    (void)state;
    double a[49], x[49], g[49];
    for (int n = 1; n <= 7; n++)
        for (int kind = 0; kind < 3; kind++)
            for (uint64_t tag = 0; tag < 10; tag++) {
                double inside = 0.0, distance, squares = 0.0;
                fill(n, kind, tag, a);
                distance = bk_birkhoff_project(n, a, x, arena);
                check_doubly_stochastic(n, x);
                for (int i = 0; i < n * n; i++) {
                    g[i] = a[i] - x[i];
                    inside += g[i] * x[i];
                    squares += g[i] * g[i];
                }
                bk_check_error(fabs(distance - sqrt(squares)), 1e-12, "distance");
                bk_check_error(best_permutation(n, g, 0, (1u << (unsigned)n) - 1) - inside, 1e-6,
                               "n %d, kind %d, tag %d", n, kind, (int)tag);
            }
}

/* n = 2: X = [p, 1-p; 1-p, p], p = (a11 + a22 - a12 - a21 + 2) / 4 cut to [0, 1]. */
static void two_by_two(void **state)
{
    (void)state;
    double a[4], x[4];
    for (uint64_t tag = 0; tag < 50; tag++) {
        fill(2, (int)(tag % 3), tag, a);
        double p = fmin(1.0, fmax(0.0, (a[0] + a[3] - a[1] - a[2] + 2.0) / 4.0));
        assert_true(bk_birkhoff_project(2, a, x, arena) >= 0.0);
        bk_check_error(bk_test_error(4, x, (const double[]){p, 1 - p, 1 - p, p}, 1.0), 1e-9, "p %g",
                       p);
    }
}

/* What is doubly stochastic stays; all attention on one key is sqrt(n - 1) away from 1/n. */
static void known_distances(void **state)
{
    (void)state;
    static double a[MOST * MOST], x[MOST * MOST];
    for (int64_t n = 2; n <= MOST; n *= 2) {
        for (int64_t i = 0; i < n * n; i++)
            a[i] = i % n == (i / n + 1) % n ? 0.25 + 0.75 / (double)n : 0.75 / (double)n;
        bk_check_error(bk_birkhoff_project(n, a, x, arena), 1e-9, "inside, n %d", (int)n);
        memset(a, 0, sizeof a);
        for (int64_t i = 0; i < n; i++)
            a[i * n] = 1.0;
        bk_check_error(fabs(bk_birkhoff_project(n, a, x, arena) - sqrt((double)n - 1.0)), 1e-8,
                       "one key, n %d", (int)n);
        for (int kind = 0; kind < 3; kind++) {
            fill(n, kind, 7, a);
            assert_true(bk_birkhoff_project(n, a, x, arena) > 0.0);
            check_doubly_stochastic(n, x);
        }
    }
}

static void what_is_not_finite(void **state)
{
    (void)state;
    double a[4] = {0.5, NAN, 0.5, 0.5}, b[4] = {0.5, INFINITY, 0.5, 0.5}, x[4];
    assert_true(isnan(bk_birkhoff_project(2, a, x, arena)));
    assert_true(isnan(bk_birkhoff_project(2, b, x, arena)));
}

/* Sums of 0.9 and 1.3 across, 1.0 and 1.2 down; NaN, wherever it stands, is the largest. */
static void errors_of_sums(void **state)
{
    double a[] = {0.5, 0.4, 0.5, 0.8}, row = 0.0, column = 0.0;
    (void)state;
    bk_birkhoff_errors(2, a, &row, &column);
    assert_true(fabs(row - 0.3) < 1e-15 && fabs(column - 0.2) < 1e-15);
    bk_birkhoff_errors(1, (double[]){1.1}, &row, &column);
    assert_true(fabs(row - 0.3) < 1e-15 && fabs(column - 0.2) < 1e-15);
    for (int i = 0; i < 4; i++) {
        double bad[4];
        memcpy(bad, a, sizeof bad);
        bad[i] = NAN;
        row = column = 0.0;
        bk_birkhoff_errors(2, bad, &row, &column);
        assert_true(row == INFINITY && column == INFINITY);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_permutation_is_nearer), cmocka_unit_test(two_by_two),
        cmocka_unit_test(known_distances),          cmocka_unit_test(what_is_not_finite),
        cmocka_unit_test(errors_of_sums),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_arena_free(arena);
    return failed;
}
