/* From the gradient of the distances back to the points. */
#include "core/transport/internal.h"

#include <math.h>
#include <string.h>

/* d |x - y| / d x_k, given x_k - y_k and the distance. */
static double slope(bk_metric metric, double difference, double distance)
{
    switch (metric) {
    case BK_METRIC_SQEUCLIDEAN:
        return 2.0 * difference;
    case BK_METRIC_EUCLIDEAN:
        return distance > 0.0 ? difference / distance : 0.0;
    default:
        return (difference > 0.0) - (difference < 0.0);
    }
}

static double length(const bk_transport *p, int64_t i, int64_t j)
{
    double sum = 0.0;
    for (int64_t k = 0; k < p->width; k++) {
        double d = bk_real_get(p->dtype, p->x, i * p->width + k) -
                   bk_real_get(p->dtype, p->y, j * p->width + k);
        sum += d * d;
    }
    return sqrt(sum);
}

typedef struct back {
    const bk_transport *problem;
    bk_metric metric;
    const double *cost; /* [rows,columns] dL/dcost */
    double *x;          /* [rows,width] added to; may be NULL */
} back;

/* Pair i, j: adds to x, and to y[columns,width]; either may be NULL. */
static void pair_back(const back *k, int64_t i, int64_t j, double *y)
{
    const bk_transport *p = k->problem;
    double weight = k->cost[i * p->columns + j],
           distance = k->metric == BK_METRIC_EUCLIDEAN ? length(p, i, j) : 0.0;
    for (int64_t l = 0; weight != 0.0 && l < p->width; l++) {
        double d = bk_real_get(p->dtype, p->x, i * p->width + l) -
                   bk_real_get(p->dtype, p->y, j * p->width + l);
        double move = weight * slope(k->metric, d, distance);
        if (k->x)
            k->x[i * p->width + l] += move;
        if (y)
            y[j * p->width + l] -= move;
    }
}

static void rows_back(const back *k, int64_t first, int64_t last, double *y)
{
    for (int64_t i = first; i < last; i++)
        for (int64_t j = 0; j < k->problem->columns; j++)
            pair_back(k, i, j, y);
}

static void block_back(void *context, int64_t l, void *y)
{
    const back *k = context;
    const bk_transport *p = k->problem;
    memset(y, 0, (size_t)(p->columns * p->width) * sizeof(double));
    rows_back(k, bk_lane_row(p->lanes, p->rows, l), bk_lane_row(p->lanes, p->rows, l + 1), y);
}

void bk_transport_points_back(const bk_transport *p, bk_metric metric, const double *cost,
                              double *x, double *y)
{
    back k = {p, metric, cost, x};
    if (!y) {
        rows_back(&k, 0, p->rows, NULL);
        return;
    }
    int64_t n = p->columns * p->width;
    bk_arena_mark mark = bk_arena_get_mark(p->scratch);
    double *own = BK_NEW(p->scratch, double, n), *sum = BK_NEW(p->scratch, double, n);
    bk_lane_tree(p->lanes, BK_F64, n, own, block_back, &k, p->scratch);
    bk_transport_sum_ranks(p, n, own, sum);
    for (int64_t i = 0; i < n; i++)
        y[i] += sum[i];
    bk_arena_release(p->scratch, mark);
}
