/* One sweep - a row update and a column update - in each of three forms.
 *
 * P-form reads a row once and takes one exponential an element: the row update makes the row sums
 * exact, so every term of a column sum is at most a_i and columns need no maximum.  The absorbed
 * form keeps the kernel and multiplies.  The log form takes a maximum on both sides. */
#include "core/transport/internal.h"

#include "core/parallel.h"

#include <math.h>
#include <string.h>

/* Behind the column sums in a sweep's message. */
enum { ROW_ERROR, NOT_FINITE, EXTRA };

static double tiny(const bk_transport_working *w)
{
    return w->problem.dtype == BK_F64 ? 1e-280 : 1e-30;
}

/* L1 distance of the column sums, times y where it is given, from b. */
static double column_error(const bk_transport_working *w, const double *sum, const double *y)
{
    double error = 0.0;
    for (int64_t j = 0; j < w->columns; j++)
        error += fabs(sum[j] * (y ? y[j] : 1.0) - w->b[j]);
    return error;
}

static bool all_finite(int64_t n, const double *x)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i] - x[i]; /* 0, or NaN for what is infinite or NaN */
    return sum == 0.0;
}

/* ---- columns with a maximum ---- */

typedef struct columns_job {
    const double *u;
    double *most; /* [blocks,columns], then [columns] */
    int64_t blocks;
} columns_job;

static int64_t block_of(const bk_transport_working *w, int64_t first)
{
    int64_t l = 0;
    while (l + 1 < w->problem.lanes->count && w->lane_row[l + 1] <= first)
        l++;
    return l;
}

static void column_maxima(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                          double *sum, double *buffer)
{
    const columns_job *job = context;
    double *most = job->most + block_of(w, first) * w->columns;
    (void)sum;
    for (int64_t i = first; i < last; i++)
        w->kernel->column_max(w->columns, w->factor, bk_transport_row(w, i, buffer), job->u[i],
                              most);
}

static void column_sums(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                        double *sum, double *buffer)
{
    const columns_job *job = context;
    for (int64_t i = first; i < last; i++)
        w->kernel->column_sum(w->columns, w->factor, bk_transport_row(w, i, buffer), job->u[i],
                              job->most, sum);
}

/* Collective.  lse[columns] = LSE_i(S_ij + u_i). */
static void column_lse(bk_transport_working *w, const double *u, double *lse)
{
    bk_arena *scratch = w->problem.scratch;
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    int64_t m = w->columns, blocks = w->problem.lanes->count;
    columns_job job = {u, BK_NEW(scratch, double, (blocks + 1) * m), blocks};
    for (int64_t k = 0; k < (blocks + 1) * m; k++)
        job.most[k] = -INFINITY;
    bk_transport_sum(w, 0, column_maxima, &job, NULL);
    for (int64_t k = m; k < blocks * m; k++)
        job.most[k % m] = fmax(job.most[k % m], job.most[k]);
    bk_reduce_max(w->problem.reducer, m, job.most);
    bk_transport_sum(w, m, column_sums, &job, lse);
    bk_log_f64(m, lse, lse);
    for (int64_t j = 0; j < m; j++)
        lse[j] += job.most[j];
    bk_arena_release(scratch, mark);
}

/* ---- a row ---- */

double bk_transport_row_lse(const bk_transport_working *w, int64_t i, double *buffer, double *sum)
{
    void *x = buffer + 2 * w->columns;
    const void *c = bk_transport_row(w, i, buffer);
    double most = w->kernel->shift(w->columns, w->factor, c, w->v, x);
    *sum = w->vector->exp_sum(w->columns, x, most, x);
    return most + bk_log_one(*sum);
}

/* ---- P-form ---- */

static void pform_rows(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                       double *sum, double *buffer)
{
    double *next_u = w->next_u, *extra = sum + w->columns;
    const void *x = buffer + 2 * w->columns;
    (void)context;
    for (int64_t i = first; i < last; i++) {
        double total, lse = bk_transport_row_lse(w, i, buffer, &total);
        next_u[i] = w->log_a[i] - lse;
        extra[NOT_FINITE] += !isfinite(lse);
        w->kernel->accumulate(w->columns, w->a[i] / total, x, sum);
    }
}

/* v + log b - log sum; where a column sum is too small, from a pass with a maximum. */
static void update_columns(bk_transport_working *w, double *sum)
{
    int64_t m = w->columns;
    double least = INFINITY;
    for (int64_t j = 0; j < m; j++)
        least = fmin(least, sum[j]);
    if (least < tiny(w)) {
        w->result->shifted_sweeps++;
        column_lse(w, w->next_u, sum);
        for (int64_t j = 0; j < m; j++)
            w->next_v[j] = w->log_b[j] - sum[j];
        return;
    }
    bk_log_f64(m, sum, sum);
    for (int64_t j = 0; j < m; j++)
        w->next_v[j] = w->v[j] + w->log_b[j] - sum[j];
}

static bool pform(bk_transport_working *w, double *error)
{
    int64_t m = w->columns;
    double *sum = BK_NEW(w->problem.scratch, double, m + EXTRA);
    bk_transport_sum(w, m + EXTRA, pform_rows, NULL, sum);
    if (sum[m + NOT_FINITE] > 0.0 || !all_finite(m, sum))
        return false;
    *error = column_error(w, sum, NULL);
    update_columns(w, sum);
    return all_finite(m, w->next_v);
}

/* ---- absorbed ---- */

static void *kernel_row(const bk_transport_working *w, int64_t i)
{
    return (char *)w->kernel_matrix + (size_t)(i * w->columns) * bk_dtype_size(w->problem.dtype);
}

static void make_kernel(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                        double *sum, double *buffer)
{
    (void)context;
    (void)sum;
    for (int64_t i = first; i < last; i++)
        w->kernel->plan(w->columns, w->factor, bk_transport_row(w, i, buffer), w->v, w->u[i],
                        kernel_row(w, i));
}

/* K = exp(S + u + v), x = y = 1. */
static void rebuild_kernel(bk_transport_working *w)
{
    bk_arena *arena = w->problem.arena;
    if (!w->kernel_matrix) {
        w->kernel_matrix =
            bk_arena_alloc(arena, (size_t)(w->rows * w->columns) * bk_dtype_size(w->problem.dtype));
        w->scale_u = BK_NEW(arena, double, w->rows);
        w->scale_v = BK_NEW(arena, double, w->columns);
    }
    bk_transport_sum(w, 0, make_kernel, NULL, NULL);
    for (int64_t i = 0; i < w->rows; i++)
        w->scale_u[i] = 1.0;
    for (int64_t j = 0; j < w->columns; j++)
        w->scale_v[j] = 1.0;
    w->kernel_stale = false;
}

void bk_transport_absorb(bk_transport_working *w)
{
    if (w->kernel_stale)
        return;
    for (int64_t i = 0; i < w->rows; i++)
        w->u[i] += bk_log_one(w->scale_u[i]);
    for (int64_t j = 0; j < w->columns; j++)
        w->v[j] += bk_log_one(w->scale_v[j]);
    w->kernel_stale = true;
}

/* Beyond e^limit a scaling is absorbed: the kernel stays in the range of the arithmetic. */
static double absorb_limit(const bk_transport_working *w)
{
    return w->problem.dtype == BK_F64 ? 50.0 : 15.0;
}

enum { FAR = ROW_ERROR }; /* rows whose scaling has passed the limit */

static void absorbed_rows(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                          double *sum, double *buffer)
{
    double *extra = sum + w->columns, limit = exp(absorb_limit(w));
    (void)context;
    (void)buffer;
    for (int64_t i = first; i < last; i++) {
        const void *k = kernel_row(w, i);
        double x = w->a[i] / w->kernel->dot(w->columns, k, w->scale_v);
        w->next_u[i] = x;
        extra[NOT_FINITE] += !isfinite(x);
        extra[FAR] += x > limit || x < 1.0 / limit;
        w->kernel->accumulate(w->columns, x, k, sum);
    }
}

static bool absorbed(bk_transport_working *w, double *error)
{
    int64_t m = w->columns;
    if (w->kernel_stale)
        rebuild_kernel(w);
    double *sum = BK_NEW(w->problem.scratch, double, m + EXTRA), limit = exp(absorb_limit(w));
    bk_transport_sum(w, m + EXTRA, absorbed_rows, NULL, sum);
    bool far = sum[m + FAR] > 0.0, finite = sum[m + NOT_FINITE] == 0.0;
    *error = column_error(w, sum, w->scale_v);
    for (int64_t j = 0; j < m; j++) {
        w->next_v[j] = w->b[j] / sum[j];
        far = far || w->next_v[j] > limit || w->next_v[j] < 1.0 / limit;
    }
    if (!finite || !all_finite(m, w->next_v))
        return false;
    memcpy(w->scale_u, w->next_u, (size_t)w->rows * sizeof(double));
    memcpy(w->scale_v, w->next_v, (size_t)m * sizeof(double));
    if (far)
        bk_transport_absorb(w);
    return true;
}

/* ---- log ---- */

static void log_rows(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                     double *sum, double *buffer)
{
    double kappa = bk_transport_kappa(w, 0);
    (void)context;
    for (int64_t i = first; i < last; i++) {
        double total, lse = bk_transport_row_lse(w, i, buffer, &total);
        double fresh = w->log_a[i] - kappa * lse;
        w->next_u[i] = (1.0 - w->omega) * w->u[i] + w->omega * fresh;
        sum[ROW_ERROR] += fabs(exp(w->u[i] + lse) - w->a[i]);
        sum[NOT_FINITE] += !isfinite(w->next_u[i]);
    }
}

/* Sums of a, a exp(x), a (exp(x) - 1) over a side, x = -(u - log a) / (eta rho): what the best
 * common shift needs.  The last keeps its digits when rho is great. */
enum { MASS, TILTED, TILT, SHIFT_SUMS };

static void add_shift(double a, double x, double *sum)
{
    sum[MASS] += a;
    sum[TILTED] += a * exp(x);
    sum[TILT] += a * expm1(x);
}

static void shift_rows(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                       double *sum, double *buffer)
{
    (void)context;
    (void)buffer;
    for (int64_t i = first; i < last; i++)
        add_shift(w->a[i], -(w->next_u[i] - w->log_a[i]) / (w->eta * w->rho[0]), sum);
}

/* log(TILTED / MASS). */
static double log_tilt(const double *sum)
{
    double tilt = sum[TILT] / sum[MASS];
    return fabs(tilt) < 0.5 ? log1p(tilt) : log(sum[TILTED] / sum[MASS]);
}

/* f += lambda, g -= lambda with the lambda that maximises the dual: both sides soft. */
static void translate(bk_transport_working *w)
{
    double rows[SHIFT_SUMS], columns[SHIFT_SUMS] = {0};
    bk_transport_sum(w, SHIFT_SUMS, shift_rows, NULL, rows);
    for (int64_t j = 0; j < w->columns; j++)
        add_shift(w->b[j], -(w->next_v[j] - w->log_b[j]) / (w->eta * w->rho[1]), columns);
    double ratio = log(rows[MASS] / columns[MASS]) + log_tilt(rows) - log_tilt(columns);
    double lambda = ratio * w->eta / (1.0 / w->rho[0] + 1.0 / w->rho[1]);
    if (!isfinite(lambda))
        return;
    for (int64_t i = 0; i < w->rows; i++)
        w->next_u[i] += lambda;
    for (int64_t j = 0; j < w->columns; j++)
        w->next_v[j] -= lambda;
}

/* max |du|, |dv| of all ranks. */
static double greatest_change(bk_transport_working *w)
{
    double most = 0.0;
    for (int64_t i = 0; i < w->rows; i++)
        most = fmax(most, fabs(w->next_u[i] - w->u[i]));
    for (int64_t j = 0; j < w->columns; j++)
        most = fmax(most, fabs(w->next_v[j] - w->v[j]));
    bk_reduce_max(w->problem.reducer, 1, &most);
    return most;
}

static bool log_form(bk_transport_working *w, double *error)
{
    int64_t m = w->columns;
    double *lse = BK_NEW(w->problem.scratch, double, m), extra[EXTRA];
    double kappa = bk_transport_kappa(w, 1);
    bk_transport_sum(w, EXTRA, log_rows, NULL, extra);
    if (extra[NOT_FINITE] > 0.0)
        return false;
    column_lse(w, w->next_u, lse);
    *error = w->omega > 1.0 ? extra[ROW_ERROR] : 0.0;
    for (int64_t j = 0; j < m; j++) {
        *error += fabs(exp(lse[j] + w->v[j]) - w->b[j]);
        w->next_v[j] = (1.0 - w->omega) * w->v[j] + w->omega * (w->log_b[j] - kappa * lse[j]);
    }
    if (!all_finite(m, w->next_v))
        return false;
    if (bk_transport_translates(&w->config))
        translate(w);
    if (!bk_transport_balanced(w))
        *error = greatest_change(w);
    return true;
}

/* ---- all of them ---- */

bool bk_transport_sweep(bk_transport_working *w, bk_transport_mode mode, double *error)
{
    static bool (*const form[])(bk_transport_working *,
                                double *) = {[BK_TRANSPORT_ABSORBED] = absorbed,
                                             [BK_TRANSPORT_PFORM] = pform,
                                             [BK_TRANSPORT_LOG] = log_form};
    bk_arena_mark mark = bk_arena_get_mark(w->problem.scratch);
    bool finite = form[mode](w, error) && isfinite(*error);
    bk_arena_release(w->problem.scratch, mark);
    return finite;
}

static void swap(double **x, double **y)
{
    double *z = *x;
    *x = *y;
    *y = z;
}

void bk_transport_accept(bk_transport_working *w)
{
    swap(&w->u, &w->next_u);
    swap(&w->v, &w->next_v);
}
