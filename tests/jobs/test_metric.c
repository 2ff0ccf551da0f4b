/* Metrics of confusion counts, against SciPy 1.10 (spearmanr) and the formulas of scikit-learn (F1,
 * Matthews as the correlation of one-hot codes) in NumPy, on the rows that the counts stand for. */
#include "tests/support/check.h"

#include "jobs/metric.h"

#include <math.h>

enum { MOST = 25, ROWS = 2000 };

typedef struct golden {
    int64_t classes, n[MOST];
    double metric[BK_METRICS];
} golden;

static const golden values[] = {
    {2, {50, 10, 5, 35}, {0.823529411764706, 0.697518448882885, 0.697518448882886}},
    {2, {90, 10, 0, 0}, {0.0, 0.0, NAN}},
    {2, {500, 27, 300, 216}, {0.569169960474308, 0.434497417512447, 0.434497417512447}},
    {2, {3, 0, 0, 4}, {1.0, 1.0, 1.0}},
    {2, {0, 3, 4, 0}, {0.0, -1.0, -1.0}},
    {3, {20, 3, 1, 4, 15, 6, 0, 2, 9}, {0.722222222222222, 0.597615368213526, 0.74794440986324}},
    {4,
     {7, 0, 0, 0, 0, 0, 5, 0, 1, 0, 3, 0, 0, 0, 0, 0},
     {0.477777777777778, 0.493939169953607, 0.739830037811716}},
    {5,
     {11, 2, 0, 0, 1, 3, 14, 5, 0, 0, 0, 4, 20, 6, 2, 0, 1, 7, 13, 3, 0, 0, 1, 2, 5},
     {0.631271051809608, 0.519784814804842, 0.772618803378254}},
};
enum { VALUES = sizeof values / sizeof *values };

static void golden_values(void **state)
{
    (void)state;
    for (int i = 0; i < VALUES; i++)
        for (int k = 0; k < BK_METRICS; k++) {
            double expected = values[i].metric[k],
                   found = bk_metric_of(k, values[i].classes, values[i].n);
            if (isnan(expected))
                assert_true(isnan(found));
            else
                bk_check_error(fabs(found - expected), 1e-13, "%s of %d", bk_metric_names[k], i);
        }
}

/* ---- the definition, row by row ---- */

/* Mean rank of each value among all. */
static void ranks_of(int64_t rows, const int64_t *x, double *rank)
{
    for (int64_t i = 0; i < rows; i++) {
        double below = 0.0, same = 0.0;
        for (int64_t k = 0; k < rows; k++) {
            below += x[k] < x[i];
            same += x[k] == x[i];
        }
        rank[i] = below + 0.5 * (same + 1.0);
    }
}

static double correlation(int64_t rows, const double *x, const double *y)
{
    double mx = 0.0, my = 0.0, xy = 0.0, xx = 0.0, yy = 0.0;
    for (int64_t i = 0; i < rows; i++) {
        mx += x[i] / (double)rows;
        my += y[i] / (double)rows;
    }
    for (int64_t i = 0; i < rows; i++) {
        xy += (x[i] - mx) * (y[i] - my);
        xx += (x[i] - mx) * (x[i] - mx);
        yy += (y[i] - my) * (y[i] - my);
    }
    return xy / sqrt(xx * yy);
}

static void ranks_by_row(void **state)
{
    int64_t labels[ROWS], taken[ROWS];
    double x[ROWS], y[ROWS];
    (void)state;
    for (int v = 0; v < VALUES; v++) {
        int64_t rows = 0, classes = values[v].classes;
        for (int64_t at = 0; at < classes * classes; at++)
            for (int64_t k = 0; k < values[v].n[at]; k++, rows++) {
                labels[rows] = at / classes;
                taken[rows] = at % classes;
            }
        ranks_of(rows, labels, x);
        ranks_of(rows, taken, y);
        double expected = correlation(rows, x, y),
               found = bk_metric_of(BK_METRIC_SPEARMAN, classes, values[v].n);
        if (!isnan(values[v].metric[BK_METRIC_SPEARMAN]))
            bk_check_error(fabs(found - expected), 1e-12, "ranks of %d", v);
    }
}

/* ---- what must hold whatever the counts ---- */

static void classes_renamed(void **state)
{
    static const int64_t n[] = {20, 3, 1, 4, 15, 6, 0, 2, 9},
                         back[] = {9, 2, 0, 6, 15, 4, 1, 3, 20};
    (void)state;
    for (int k = 0; k < BK_METRICS; k++)
        bk_check_error(fabs(bk_metric_of(k, 3, n) - bk_metric_of(k, 3, back)), 1e-15, "%s",
                       bk_metric_names[k]);
}

static void many_rows(void **state)
{
    static const int64_t n[] = {50, 10, 5, 35}, many[] = {50000000, 10000000, 5000000, 35000000};
    (void)state;
    for (int k = 0; k < BK_METRICS; k++)
        bk_check_error(fabs(bk_metric_of(k, 2, n) - bk_metric_of(k, 2, many)), 1e-12, "%s",
                       bk_metric_names[k]);
}

static void no_rows(void **state)
{
    static const int64_t n[9] = {0};
    (void)state;
    assert_true(bk_metric_of(BK_METRIC_F1, 3, n) == 0.0);
    assert_true(bk_metric_of(BK_METRIC_MATTHEWS, 3, n) == 0.0);
    assert_true(isnan(bk_metric_of(BK_METRIC_SPEARMAN, 3, n)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_values),   cmocka_unit_test(ranks_by_row),
        cmocka_unit_test(classes_renamed), cmocka_unit_test(many_rows),
        cmocka_unit_test(no_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
