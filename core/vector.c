#include "core/vector.h"

#include <math.h>

void bk_exp_f64(int64_t n, const double *x, double *y)
{
    bk_vector(BK_F64)->exp(n, x, y);
}

void bk_log_f64(int64_t n, const double *x, double *y)
{
    bk_vector(BK_F64)->log(n, x, y);
}

double bk_exp_one(double x)
{
    double y;
    bk_exp_f64(1, &x, &y);
    return y;
}

double bk_log_one(double x)
{
    double y;
    bk_log_f64(1, &x, &y);
    return y;
}

double bk_lse_f64(int64_t n, const double *x, double *scratch)
{
    double most = bk_vector(BK_F64)->max(n, x);
    if (most == -INFINITY)
        return most;
    return most + bk_log_one(bk_vector(BK_F64)->exp_sum(n, x, most, scratch));
}
