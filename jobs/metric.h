/* jobs/metric.h - how good a classifier is beside its accuracy, from its confusion counts:
 * integers, summed over the ranks, so that a metric has the same bits for any number of them. */
#ifndef BK_JOBS_METRIC_H
#define BK_JOBS_METRIC_H

#include <stdint.h>

enum { BK_METRIC_F1, BK_METRIC_MATTHEWS, BK_METRIC_SPEARMAN, BK_METRICS };

enum { BK_METRIC_CLASSES = 1024 }; /* at most, of a classifier whose confusion is counted */

extern const char *const bk_metric_names[BK_METRICS + 1]; /* f1, matthews, spearman; NULL */

/* Not collective.  The metric of these counts: n[i C + j] rows of class i were taken for class j,
 * of C classes.  With t_k = sum_j n_kj rows of a class, p_k = sum_i n_ik rows taken for it and s
 * rows in all:
 *
 *   f1        2 n_11 / (t_1 + p_1) of two classes (van Rijsbergen 1979), 0 when class 1 does not
 *             occur; of more the mean of 2 n_kk / (t_k + p_k) over the classes that occur
 *   matthews  (s sum_k n_kk - sum_k t_k p_k) / sqrt((s^2 - sum_k t_k^2) (s^2 - sum_k p_k^2)),
 *             0 when one class is all (Matthews 1975; R_K of Gorodkin 2004)
 *   spearman  the correlation of the ranks of both, ties at their mean rank (Spearman 1904), of
 *             classes that have an order; NaN when one class is all */
double bk_metric_of(int metric, int64_t classes, const int64_t *n);

#endif
