#include "core/transport/balance.h"

#include "core/blas.h"
#include "core/parallel.h"
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

static void sinkhorn(const bk_balance *b, double *g, double *q, bk_balance_result *result)
{
    bk_sinkhorn_block block = {.rows = b->rows, .columns = b->columns, .s = b->s};
    bk_sinkhorn problem = problem_of(b, &block);
    double *f = BK_NEW(b->scratch, double, b->rows),
           *column = BK_NEW(b->scratch, double, b->columns);
    for (;;) {
        bk_sinkhorn_sweep(&problem, g, f, column, q);
        result->residual = worst_column(b, column);
        if (result->residual <= b->tolerance || result->iterations == b->iterations)
            return;
        update(b, g, column);
        result->iterations++;
    }
}

/* ---- second moments ---- */

/* Column sums and the upper triangle of Q^T Q in fixed point, one message. */
typedef struct moments {
    const bk_balance *balance;
    const double *q;
    double unit;
    int64_t *sum; /* [E + E(E+1)/2] */
} moments;

static int64_t moments_size(int64_t e)
{
    return e + e * (e + 1) / 2;
}

/* sum + upper(e, i) + j is element (i, j), j >= i. */
static int64_t upper(int64_t e, int64_t i)
{
    return e + i * e - i * (i + 1) / 2;
}

/* Terms in [0, 1] times at most 2^40, to nearest even: the mantissa of a sum with 1.5 2^52. */
static int64_t fixed(double x)
{
    const double shift = 0x1.8p52;
    int64_t bits, zero;
    x += shift;
    memcpy(&bits, &x, sizeof bits);
    memcpy(&zero, &shift, sizeof zero);
    return bits - zero;
}

static void sum_moments(void *context, int64_t first, int64_t last)
{
    const moments *m = context;
    int64_t e = m->balance->columns;
    for (int64_t t = 0; t < m->balance->rows; t++)
        for (int64_t i = first; i < last; i++) {
            const double *q = m->q + t * e, scaled = q[i] * m->unit;
            int64_t *sum = m->sum + upper(e, i);
            m->sum[i] += fixed(scaled);
            for (int64_t j = i; j < e; j++)
                sum[j] += fixed(scaled * q[j]);
        }
}

/* column[E], and a[E,E] = diag(column) - Q^T Q + c/E 11^T + 1e-12 c I, c = T/E. */
static void second_moments(const bk_balance *b, const double *q, double *column, double *a)
{
    int64_t e = b->columns;
    double mass = (double)b->total / (double)e;
    bk_arena_mark mark = bk_arena_get_mark(b->scratch);
    moments m = {.balance = b, .q = q, .unit = ldexp(1.0, bk_fixed_bits(b->total))};
    m.sum = BK_ZNEW(b->scratch, int64_t, moments_size(e));
    bk_parallel(e, 1, b->rows * (e + 1) / 2, sum_moments, &m);
    bk_reduce_fixed(b->reducer, moments_size(e), m.sum);
    for (int64_t i = 0; i < e; i++) {
        column[i] = (double)(m.sum[i] > 1 ? m.sum[i] : 1) / m.unit;
        for (int64_t j = i; j < e; j++)
            a[i * e + j] = a[j * e + i] =
                mass / (double)e - (double)m.sum[upper(e, i) + j] / m.unit;
        a[i * e + i] += column[i] + 1e-12 * mass;
    }
    bk_arena_release(b->scratch, mark);
}

/* ---- newton ---- */

/* Potentials and all that a message tells of them. */
typedef struct point {
    double *g, *q, *column, *a;
} point;

static point new_point(const bk_balance *b)
{
    int64_t e = b->columns;
    return (point){BK_NEW(b->scratch, double, e), BK_NEW(b->scratch, double, b->rows *e),
                   BK_NEW(b->scratch, double, e), BK_NEW(b->scratch, double, e *e)};
}

/* One message. */
static void look(const bk_balance *b, point *p)
{
    bk_arena_mark mark = bk_arena_get_mark(b->scratch);
    bk_sinkhorn_block block = {.rows = b->rows, .columns = b->columns, .s = b->s};
    bk_sinkhorn local = problem_of(b, &block);
    local.reducer = NULL;
    bk_sinkhorn_sweep(&local, p->g, BK_NEW(b->scratch, double, b->rows), p->column, p->q);
    second_moments(b, p->q, p->column, p->a);
    bk_arena_release(b->scratch, mark);
}

/* ||c - column||_2 */
static double distance(const bk_balance *b, const point *p)
{
    double squares = 0.0, mass = (double)b->total / (double)b->columns;
    for (int64_t j = 0; j < b->columns; j++)
        squares += (mass - p->column[j]) * (mass - p->column[j]);
    return sqrt(squares);
}

/* to->g = from->g + t d, mean 0. */
static void move(const bk_balance *b, const point *from, double t, const double *d, point *to)
{
    double mean = 0.0;
    for (int64_t j = 0; j < b->columns; j++)
        mean += to->g[j] = from->g[j] + t * d[j];
    mean /= (double)b->columns;
    for (int64_t j = 0; j < b->columns; j++)
        to->g[j] -= mean;
}

/* One accepted step of the line search from `at` to `next`; false: none.  at->a is overwritten. */
static bool newton_step(const bk_balance *b, point *at, point *next, bk_balance_result *result)
{
    double *d = BK_NEW(b->scratch, double, b->columns), before = distance(b, at);
    for (int64_t j = 0; j < b->columns; j++)
        d[j] = (double)b->total / (double)b->columns - at->column[j];
    if (bk_solve_spd(b->columns, at->a, d) != BK_OK)
        return false;
    for (double t = 1.0; t > 0.03 && result->iterations < b->iterations; t *= 0.5) {
        move(b, at, t, d, next);
        look(b, next);
        result->iterations++;
        if (distance(b, next) <= (1.0 - 1e-3 * t) * before)
            return true;
    }
    return false;
}

static void sinkhorn_step(const bk_balance *b, point *at, point *next, bk_balance_result *result)
{
    memcpy(next->g, at->g, (size_t)b->columns * sizeof *next->g);
    update(b, next->g, at->column);
    look(b, next);
    result->iterations++;
}

static void newton(const bk_balance *b, double *g, double *q, bk_balance_result *result)
{
    point at = new_point(b), next = new_point(b);
    memcpy(at.g, g, (size_t)b->columns * sizeof *g);
    look(b, &at);
    for (;;) {
        bk_arena_mark mark = bk_arena_get_mark(b->scratch);
        result->residual = worst_column(b, at.column);
        if (result->residual <= b->tolerance || result->iterations >= b->iterations)
            break;
        if (!newton_step(b, &at, &next, result)) {
            if (result->iterations >= b->iterations)
                break;
            sinkhorn_step(b, &at, &next, result);
        }
        point former = at;
        at = next;
        next = former;
        bk_arena_release(b->scratch, mark);
    }
    memcpy(g, at.g, (size_t)b->columns * sizeof *g);
    if (q)
        memcpy(q, at.q, (size_t)(b->rows * b->columns) * sizeof *q);
}

bk_balance_result bk_balance_solve(const bk_balance *b, double *g, double *q)
{
    bk_balance_result result = {0};
    if (b->total == 0)
        return result;
    bk_arena_mark mark = bk_arena_get_mark(b->scratch);
    (b->solver == BK_BALANCE_NEWTON ? newton : sinkhorn)(b, g, q, &result);
    result.converged = result.residual <= b->tolerance;
    bk_arena_release(b->scratch, mark);
    return result;
}

/* ---- backward ---- */

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
    double *lambda = BK_NEW(b->scratch, double, e);
    second_moments(b, q, column, a);
    sum_rows(b, z, lambda);
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
