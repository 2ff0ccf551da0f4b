#include "core/transport/sinkhorn.h"

#include "core/parallel.h"
#include "core/vector.h"

#include <math.h>
#include <string.h>

int bk_fixed_bits(int64_t terms)
{
    int log2 = 0;
    while (log2 < 62 && ((int64_t)1 << log2) < terms)
        log2++;
    return 62 - log2 < 40 ? 62 - log2 : 40;
}

int64_t bk_sinkhorn_lane(const bk_sinkhorn *p, int64_t i)
{
    int64_t l = 0;
    while (l + 1 < p->lanes->count && i >= p->lane_row[l + 1])
        l++;
    return l;
}

void bk_sinkhorn_sum(const bk_sinkhorn *p, int64_t n, const double *local, double *out)
{
    bk_reduce_vector(p->reducer, p->lanes, n, local, out, p->scratch);
}

/* x = exp(S_i + g - LSE) for one row; returns f_i = -LSE. */
static double row_softmax(const bk_sinkhorn_block *b, int64_t i, const double *g, double *x)
{
    const double *s = b->s + i * b->columns;
    for (int64_t j = 0; j < b->columns; j++)
        x[j] = s[j] + g[b->column + j];
    double most = bk_vector(BK_F64)->max(b->columns, x);
    double sum = bk_vector(BK_F64)->exp_sum(b->columns, x, most, x);
    bk_vector(BK_F64)->scale(b->columns, 1.0 / sum, x);
    return -(most + bk_log_one(sum));
}

/* ---- panels of rows, what threads share ---- */

enum { EXPONENTIAL = 8 }; /* additions that take the time of an exponential */

/* Rows of a panel: few enough for the memory, many enough that threads seldom wait for another. */
static int64_t panel_rows(const bk_sinkhorn *p)
{
    enum { LEAST = 64, ELEMENTS = 1 << 20 };
    int64_t rows = p->columns > 0 ? ELEMENTS / p->columns : LEAST;
    rows = rows < LEAST ? LEAST : rows;
    return rows < p->rows ? rows : p->rows;
}

/* Rows first .. first+rows-1 of a block, normalised. */
typedef struct panel {
    const bk_sinkhorn *problem;
    const bk_sinkhorn_block *block;
    int64_t first, rows;
    const double *g;
    double *f;
    double *x; /* [panel_rows,columns] */
} panel;

static void normalise_rows(void *context, int64_t first, int64_t last)
{
    const panel *w = context;
    const bk_sinkhorn_block *b = w->block;
    for (int64_t i = first; i < last; i++)
        w->f[b->first + w->first + i] = row_softmax(b, w->first + i, w->g, w->x + i * b->columns);
}

/* Moves on to the next rows of the block; false behind the last ones. */
static bool next_panel(panel *w)
{
    w->first += w->rows;
    int64_t left = w->block->rows - w->first, most = panel_rows(w->problem);
    w->rows = left < most ? left : most;
    if (w->rows <= 0)
        return false;
    bk_parallel(w->rows, 1, EXPONENTIAL * w->block->columns, normalise_rows, w);
    return true;
}

/* ---- rule F3 ---- */

typedef struct lane_sums {
    const panel *panel;
    double *local; /* [m,columns] */
} lane_sums;

/* Columns are shared out, so that each is summed over the rows in their order. */
static void add_columns(void *context, int64_t first, int64_t last)
{
    const lane_sums *c = context;
    const panel *w = c->panel;
    const bk_sinkhorn_block *b = w->block;
    for (int64_t i = 0; i < w->rows; i++) {
        int64_t lane = bk_sinkhorn_lane(w->problem, b->first + w->first + i);
        double *sum = c->local + lane * w->problem->columns + b->column;
        for (int64_t j = first; j < last; j++)
            sum[j] += w->x[i * b->columns + j];
    }
}

static void sweep_lanes(const bk_sinkhorn *p, const double *g, double *f, double *column)
{
    double *local = BK_ZNEW(p->scratch, double, p->lanes->count * p->columns);
    double *x = BK_NEW(p->scratch, double, panel_rows(p) * p->columns);
    for (int64_t k = 0; k < p->blocks; k++) {
        panel w = {.problem = p, .block = &p->block[k], .g = g, .f = f, .x = x};
        while (next_panel(&w))
            bk_parallel(w.block->columns, BK_PARALLEL_VECTOR, w.rows, add_columns,
                        &(lane_sums){&w, local});
    }
    bk_sinkhorn_sum(p, p->columns, local, column);
}

/* ---- rule F1 ---- */

/* Terms outside [0,1] are not added but counted, in sum[columns]. */
static void add_fixed(const panel *w, double unit, int64_t *sum)
{
    const bk_sinkhorn_block *b = w->block;
    for (int64_t i = 0; i < w->rows; i++)
        for (int64_t j = 0; j < b->columns; j++) {
            double x = w->x[i * b->columns + j];
            bool fits = x <= 1.0 + 0x1p-20;
            sum[w->problem->columns] += !fits;
            sum[b->column + j] += fits ? (int64_t)rint(x * unit) : 0;
        }
}

static void sweep_fixed(const bk_sinkhorn *p, const double *g, double *f, double *column, double *q)
{
    double unit = ldexp(1.0, bk_fixed_bits(p->terms));
    int64_t *sum = BK_ZNEW(p->scratch, int64_t, p->columns + 1);
    double *x = BK_NEW(p->scratch, double, panel_rows(p) * p->columns);
    for (int64_t k = 0; k < p->blocks; k++) {
        panel w = {.problem = p, .block = &p->block[k], .g = g, .f = f, .x = x};
        while (next_panel(&w)) {
            add_fixed(&w, unit, sum);
            if (q)
                memcpy(q + (w.block->first + w.first) * p->columns, x,
                       (size_t)(w.rows * p->columns) * sizeof *x);
        }
    }
    bk_reduce_fixed(p->reducer, p->columns + 1, sum);
    BK_ASSERT(sum[p->columns] == 0, "%lld terms of a column sum are not in [0, 1]",
              (long long)sum[p->columns]);
    for (int64_t j = 0; j < p->columns; j++)
        column[j] = (double)(sum[j] > 1 ? sum[j] : 1) / unit;
}

void bk_sinkhorn_sweep(const bk_sinkhorn *p, const double *g, double *f, double *column, double *q)
{
    bk_arena_mark mark = bk_arena_get_mark(p->scratch);
    if (p->rule == BK_SUM_FIXED)
        sweep_fixed(p, g, f, column, q);
    else
        sweep_lanes(p, g, f, column);
    bk_arena_release(p->scratch, mark);
}

/* ---- columns with a maximum ---- */

static void column_maxima(const bk_sinkhorn *p, const double *f, double *most)
{
    for (int64_t j = 0; j < p->columns; j++)
        most[j] = -INFINITY;
    for (int64_t k = 0; k < p->blocks; k++) {
        const bk_sinkhorn_block *b = &p->block[k];
        for (int64_t i = 0; i < b->rows; i++)
            for (int64_t j = 0; j < b->columns; j++)
                most[b->column + j] =
                    fmax(most[b->column + j], b->s[i * b->columns + j] + f[b->first + i]);
    }
    bk_reduce_max(p->reducer, p->columns, most);
}

void bk_sinkhorn_shifted_columns(const bk_sinkhorn *p, const double *f, double *g)
{
    bk_arena_mark mark = bk_arena_get_mark(p->scratch);
    double *most = BK_NEW(p->scratch, double, p->columns),
           *sum = BK_NEW(p->scratch, double, p->columns);
    double *local = BK_ZNEW(p->scratch, double, p->lanes->count * p->columns);
    double *x = BK_NEW(p->scratch, double, p->columns);
    column_maxima(p, f, most);
    for (int64_t k = 0; k < p->blocks; k++) {
        const bk_sinkhorn_block *b = &p->block[k];
        for (int64_t i = 0; i < b->rows; i++) {
            for (int64_t j = 0; j < b->columns; j++)
                x[j] = b->s[i * b->columns + j] + f[b->first + i] - most[b->column + j];
            bk_exp_f64(b->columns, x, x);
            double *to = local + bk_sinkhorn_lane(p, b->first + i) * p->columns + b->column;
            for (int64_t j = 0; j < b->columns; j++)
                to[j] += x[j];
        }
    }
    bk_sinkhorn_sum(p, p->columns, local, sum);
    bk_log_f64(p->columns, sum, sum);
    for (int64_t j = 0; j < p->columns; j++)
        g[j] = -(most[j] + sum[j]);
    bk_arena_release(p->scratch, mark);
}
