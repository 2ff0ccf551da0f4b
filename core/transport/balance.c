#include "core/transport/balance.h"

#include "core/blas.h"
#include "core/vector.h"

#include <math.h>
#include <string.h>

static bk_sinkhorn problem_of(const bk_balance *b, const bk_sinkhorn_block *block)
{
    return (bk_sinkhorn){.block = block,
                         .blocks = 1,
                         .rows = b->rows,
                         .columns = b->columns,
                         .rule = BK_SUM_FIXED,
                         .terms = b->total,
                         .lane_row = b->lane_row,
                         .lanes = b->lanes,
                         .reducer = b->reducer,
                         .scratch = b->scratch};
}

static double worst_column(const bk_balance *b, const double *column)
{
    double residual = 0.0;
    for (int64_t j = 0; j < b->columns; j++)
        residual = fmax(residual, fabs(column[j] * (double)b->columns / (double)b->total - 1.0));
    return residual;
}

/* g += log((T/E) / column), mean 0. */
static void update(const bk_balance *b, double *g, double *column)
{
    double mean = 0.0, mass = (double)b->total / (double)b->columns;
    for (int64_t j = 0; j < b->columns; j++)
        column[j] = mass / column[j];
    bk_log_f64(b->columns, column, column);
    for (int64_t j = 0; j < b->columns; j++)
        mean += g[j] += column[j];
    mean /= (double)b->columns;
    for (int64_t j = 0; j < b->columns; j++)
        g[j] -= mean;
}

bk_balance_result bk_balance_solve(const bk_balance *b, double *g, double *q)
{
    bk_balance_result result = {0};
    if (b->total == 0)
        return result;
    bk_arena_mark mark = bk_arena_get_mark(b->scratch);
    bk_sinkhorn_block block = {.rows = b->rows, .columns = b->columns, .s = b->s};
    bk_sinkhorn problem = problem_of(b, &block);
    double *f = BK_NEW(b->scratch, double, b->rows),
           *column = BK_NEW(b->scratch, double, b->columns);
    for (;;) {
        bk_sinkhorn_sweep(&problem, g, f, column, q);
        result.residual = worst_column(b, column);
        result.converged = result.residual <= b->tolerance;
        if (result.converged || result.iterations == b->iterations)
            break;
        update(b, g, column);
        result.iterations++;
    }
    bk_arena_release(b->scratch, mark);
    return result;
}

/* ---- backward ---- */

/* Column sums and Q^T Q in fixed point: exact for every split of the rows. */
static void second_moments(const bk_balance *b, const double *q, double *column, double *moments)
{
    int64_t e = b->columns, *sum = BK_ZNEW(b->scratch, int64_t, e + e * e);
    double unit = ldexp(1.0, bk_fixed_bits(b->total));
    for (int64_t t = 0; t < b->rows; t++)
        for (int64_t i = 0; i < e; i++) {
            sum[i] += (int64_t)rint(q[t * e + i] * unit);
            for (int64_t j = 0; j < e; j++)
                sum[e + i * e + j] += (int64_t)rint(q[t * e + i] * q[t * e + j] * unit);
        }
    bk_reduce_fixed(b->reducer, e + e * e, sum);
    for (int64_t i = 0; i < e; i++)
        column[i] = (double)(sum[i] > 1 ? sum[i] : 1) / unit;
    for (int64_t i = 0; i < e * e; i++)
        moments[i] = (double)sum[e + i] / unit;
}

/* sum_t z_t by rule F3. */
static void sum_rows(const bk_balance *b, const double *z, double *out)
{
    double *local = BK_ZNEW(b->scratch, double, b->lanes->count * b->columns);
    for (int64_t l = 0; l < b->lanes->count; l++)
        for (int64_t t = b->lane_row[l]; t < b->lane_row[l + 1]; t++)
            for (int64_t j = 0; j < b->columns; j++)
                local[l * b->columns + j] += z[t * b->columns + j];
    bk_reduce_vector(b->reducer, b->lanes, b->columns, local, out, b->scratch);
}

void bk_balance_implicit(const bk_balance *b, const double *q, double *z)
{
    int64_t e = b->columns;
    if (b->total == 0)
        return;
    bk_arena_mark mark = bk_arena_get_mark(b->scratch);
    double *column = BK_NEW(b->scratch, double, e), *a = BK_NEW(b->scratch, double, e *e);
    double *lambda = BK_NEW(b->scratch, double, e), mass = (double)b->total / (double)e;
    second_moments(b, q, column, a);
    sum_rows(b, z, lambda);
    for (int64_t i = 0; i < e; i++)
        for (int64_t j = 0; j < e; j++)
            a[i * e + j] =
                (i == j ? column[i] + 1e-12 * mass : 0.0) - a[i * e + j] + mass / (double)e;
    bool solved = bk_solve_spd(e, a, lambda) ==
                  BK_OK; /* not positive definite: the plan is not there; g is held */
    for (int64_t t = 0; solved && t < b->rows; t++) {
        const double *row = q + t * e;
        double along = bk_vector(BK_F64)->dot(e, row, lambda);
        for (int64_t j = 0; j < e; j++)
            z[t * e + j] -= row[j] * (lambda[j] - along);
    }
    bk_arena_release(b->scratch, mark);
}
