/* From the gradient of the distances back to the points. */
#include "core/transport/transport.h"

#include <math.h>

static double coordinate(bk_dtype dtype, const void *x, int64_t at)
{
    return dtype == BK_F64 ? ((const double *)x)[at] : (double)((const float *)x)[at];
}

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
        double d = coordinate(p->dtype, p->x, i * p->width + k) -
                   coordinate(p->dtype, p->y, j * p->width + k);
        sum += d * d;
    }
    return sqrt(sum);
}

void bk_transport_points_back(const bk_transport *p, bk_metric metric, const double *cost,
                              double *x, double *y)
{
    for (int64_t i = 0; i < p->rows; i++)
        for (int64_t j = 0; j < p->columns; j++) {
            double weight = cost[i * p->columns + j],
                   distance = metric == BK_METRIC_EUCLIDEAN ? length(p, i, j) : 0.0;
            for (int64_t k = 0; weight != 0.0 && k < p->width; k++) {
                double d = coordinate(p->dtype, p->x, i * p->width + k) -
                           coordinate(p->dtype, p->y, j * p->width + k);
                double move = weight * slope(metric, d, distance);
                if (x)
                    x[i * p->width + k] += move;
                if (y)
                    y[j * p->width + k] -= move;
            }
        }
}
