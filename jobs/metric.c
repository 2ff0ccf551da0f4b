#include "jobs/metric.h"

#include "core/status.h"

#include <math.h>

const char *const bk_metric_names[BK_METRICS + 1] = {
    [BK_METRIC_F1] = "f1",
    [BK_METRIC_MATTHEWS] = "matthews",
    [BK_METRIC_SPEARMAN] = "spearman",
};

/* n and its sums: rows of each class, and rows taken for it. */
typedef struct counts {
    int64_t classes, rows;
    const int64_t *n;
    int64_t t[BK_METRIC_CLASSES], p[BK_METRIC_CLASSES];
} counts;

static void count(int64_t classes, const int64_t *n, counts *out)
{
    *out = (counts){.classes = classes, .n = n};
    for (int64_t i = 0; i < classes; i++)
        for (int64_t j = 0; j < classes; j++) {
            out->t[i] += n[i * classes + j];
            out->p[j] += n[i * classes + j];
            out->rows += n[i * classes + j];
        }
}

static double f1(const counts *c)
{
    double sum = 0.0;
    int64_t occur = 0;
    for (int64_t k = c->classes == 2 ? 1 : 0; k < c->classes; k++) {
        if (c->t[k] + c->p[k] == 0)
            continue;
        sum += 2.0 * (double)c->n[k * c->classes + k] / (double)(c->t[k] + c->p[k]);
        occur++;
    }
    return occur > 0 ? sum / (double)occur : 0.0;
}

static double matthews(const counts *c)
{
    double rows = (double)c->rows, right = 0.0, both = 0.0, of_true = 0.0, of_taken = 0.0;
    for (int64_t k = 0; k < c->classes; k++) {
        double t = (double)c->t[k], p = (double)c->p[k];
        right += (double)c->n[k * c->classes + k];
        both += t * p;
        of_true += t * t;
        of_taken += p * p;
    }
    double norm = sqrt(rows * rows - of_true) * sqrt(rows * rows - of_taken);
    return norm > 0.0 ? (rows * right - both) / norm : 0.0;
}

/* The rank of a class whose `rows` share their mean rank, less the mean of all ranks: half of the
 * rows before it less those behind it. */
static double centred_rank(const counts *c, const int64_t *rows, int64_t k)
{
    int64_t before = 0;
    for (int64_t i = 0; i < k; i++)
        before += rows[i];
    return 0.5 * (double)(2 * before + rows[k] - c->rows);
}

static double spearman(const counts *c)
{
    double rank[BK_METRIC_CLASSES], together = 0.0, of_true = 0.0, of_taken = 0.0;
    for (int64_t k = 0; k < c->classes; k++) {
        rank[k] = centred_rank(c, c->p, k);
        of_taken += (double)c->p[k] * rank[k] * rank[k];
    }
    for (int64_t i = 0; i < c->classes; i++) {
        double own = centred_rank(c, c->t, i);
        of_true += (double)c->t[i] * own * own;
        for (int64_t j = 0; j < c->classes; j++)
            together += (double)c->n[i * c->classes + j] * own * rank[j];
    }
    return together / (sqrt(of_true) * sqrt(of_taken));
}

double bk_metric_of(int metric, int64_t classes, const int64_t *n)
{
    counts c;
    BK_ASSERT(classes <= BK_METRIC_CLASSES, "%lld classes", (long long)classes);
    count(classes, n, &c);
    switch (metric) {
    case BK_METRIC_F1:
        return f1(&c);
    case BK_METRIC_MATTHEWS:
        return matthews(&c);
    default:
        return spearman(&c);
    }
}
