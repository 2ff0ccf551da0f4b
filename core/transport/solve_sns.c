/* Sparse Newton as published (Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying,
 * ICLR 2024): sweeps, then Newton steps whose Hessian keeps the largest entries of P, solved by
 * conjugate gradients, with a line search.  The diagonal keeps the exact row and column sums. */
#include "core/transport/internal.h"

#include <math.h>

/* ---- which entries stay ---- */

/* Logarithms of P in bins below their maximum: the bin that reaches the number asked for stays
 * whole, on any number of ranks. */
enum { BINS = 256, DEPTH = 60 };

static int64_t bin_of(double p, double most)
{
    double below = log(most / p) * (BINS / (double)DEPTH);
    return below < BINS ? (int64_t)below : BINS; /* also for p = 0 */
}

static double greatest(bk_transport_working *w, const bk_transport_point *point)
{
    double most = 0.0;
    for (int64_t k = 0; k < w->rows * w->columns; k++)
        most = fmax(most, point->plan[k]);
    bk_reduce_max(w->problem.reducer, 1, &most);
    return most;
}

/* Least entry that is kept. */
static double threshold(bk_transport_working *w, const bk_transport_point *point)
{
    int64_t count[BINS + 1] = {0}, kept = 0, bin = 0;
    int64_t longer = w->total > w->columns ? w->total : w->columns;
    double most = greatest(w, point), least = most * exp(-DEPTH);
    for (int64_t k = 0; k < w->rows * w->columns; k++)
        if (point->plan[k] > least)
            count[bin_of(point->plan[k], most)]++;
    bk_reduce_fixed(w->problem.reducer, BINS, count);
    while (bin < BINS && (kept += count[bin]) < w->config.keep * longer)
        bin++;
    return most * exp(-(double)(bin + 1) * DEPTH / BINS);
}

/* ---- the sparse plan, by rows ---- */

typedef struct sparse {
    int64_t *start, *column; /* [rows + 1], [entries] */
    double *value;
} sparse;

static sparse keep_large(bk_transport_working *w, const bk_transport_point *point)
{
    bk_arena *scratch = w->problem.scratch;
    double least = threshold(w, point);
    int64_t entries = 0, next = 0;
    for (int64_t k = 0; k < w->rows * w->columns; k++)
        entries += point->plan[k] > least;
    sparse s = {BK_NEW(scratch, int64_t, w->rows + 1), BK_NEW(scratch, int64_t, entries),
                BK_NEW(scratch, double, entries)};
    for (int64_t i = 0; i < w->rows; i++) {
        s.start[i] = next;
        for (int64_t j = 0; j < w->columns; j++) {
            double p = point->plan[i * w->columns + j];
            if (p > least) {
                s.column[next] = j;
                s.value[next++] = p;
            }
        }
    }
    s.start[w->rows] = next;
    return s;
}

/* ---- conjugate gradients on [diag(r) P; P' diag(c)] ---- */

/* A vector over rows and columns. */
typedef struct pair {
    double *row, *column;
} pair;

typedef struct cg {
    const bk_transport_point *point;
    const sparse *plan;
    pair x, residual, direction, image;
} cg;

static pair pair_new(bk_transport_working *w)
{
    return (pair){BK_ZNEW(w->problem.scratch, double, w->rows),
                  BK_ZNEW(w->problem.scratch, double, w->columns)};
}

/* Rows of the image, and behind P' d: <d, image> over the rows. */
static void image_rows(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                       double *sum, double *buffer)
{
    const cg *s = context;
    (void)buffer;
    for (int64_t i = first; i < last; i++) {
        double d = s->direction.row[i], y = s->point->r[i] * d;
        for (int64_t k = s->plan->start[i]; k < s->plan->start[i + 1]; k++) {
            int64_t j = s->plan->column[k];
            y += s->plan->value[k] * s->direction.column[j];
            sum[j] += s->plan->value[k] * d;
        }
        s->image.row[i] = y;
        sum[w->columns] += d * y;
    }
}

/* Collective, one message.  image = A direction; returns <direction, image>. */
static double image(bk_transport_working *w, cg *s, double *sum)
{
    bk_transport_sum(w, w->columns + 1, image_rows, s, sum);
    double curvature = sum[w->columns];
    for (int64_t j = 0; j < w->columns; j++) {
        s->image.column[j] = sum[j] + s->point->c[j] * s->direction.column[j];
        curvature += s->direction.column[j] * s->image.column[j];
    }
    return curvature;
}

enum { WEIGHTED, SQUARED, NORMS }; /* <R, R/diagonal>, <R, R> */

static void norm_rows(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                      double *sum, double *buffer)
{
    const cg *s = context;
    (void)w;
    (void)buffer;
    for (int64_t i = first; i < last; i++) {
        double r = s->residual.row[i];
        sum[WEIGHTED] += r * r / s->point->r[i];
        sum[SQUARED] += r * r;
    }
}

/* Collective, one message. */
static void norms(bk_transport_working *w, cg *s, double out[NORMS])
{
    bk_transport_sum(w, NORMS, norm_rows, s, out);
    for (int64_t j = 0; j < w->columns; j++) {
        double r = s->residual.column[j];
        out[WEIGHTED] += r * r / s->point->c[j];
        out[SQUARED] += r * r;
    }
}

static void advance(int64_t n, double step, const double *direction, const double *image, double *x,
                    double *residual)
{
    for (int64_t i = 0; i < n; i++) {
        x[i] += step * direction[i];
        residual[i] -= step * image[i];
    }
}

static void turn(int64_t n, double beta, const double *residual, const double *diagonal,
                 double *direction)
{
    for (int64_t i = 0; i < n; i++)
        direction[i] = residual[i] / diagonal[i] + beta * direction[i];
}

static void iterate(bk_transport_working *w, cg *s)
{
    double norm[NORMS], before = 1.0, beta = 0.0,
                        *sum = BK_NEW(w->problem.scratch, double, w->columns + 1);
    norms(w, s, norm);
    double goal = w->config.cg_tolerance * sqrt(norm[SQUARED]);
    for (int64_t k = 0; k < w->config.cg_iterations && sqrt(norm[SQUARED]) > goal; k++) {
        turn(w->rows, beta, s->residual.row, s->point->r, s->direction.row);
        turn(w->columns, beta, s->residual.column, s->point->c, s->direction.column);
        double curvature = image(w, s, sum);
        if (!(curvature > 0.0))
            break;
        double step = norm[WEIGHTED] / curvature;
        advance(w->rows, step, s->direction.row, s->image.row, s->x.row, s->residual.row);
        advance(w->columns, step, s->direction.column, s->image.column, s->x.column,
                s->residual.column);
        before = norm[WEIGHTED];
        norms(w, s, norm);
        beta = norm[WEIGHTED] / before;
        w->result->cg_iterations++;
    }
}

/* Collective.  The direction of a step: bk_transport_direction. */
static bool solve(bk_transport_working *w, const bk_transport_point *point, const double *gr,
                  const double *gc, double *p, double *q)
{
    bk_arena_mark mark = bk_arena_get_mark(w->problem.scratch);
    sparse plan = keep_large(w, point);
    cg s = {.point = point, .plan = &plan, .x = {p, q}};
    s.residual = pair_new(w);
    s.direction = pair_new(w);
    s.image = pair_new(w);
    for (int64_t i = 0; i < w->rows; i++) {
        s.residual.row[i] = gr[i];
        p[i] = 0.0;
    }
    for (int64_t j = 0; j < w->columns; j++) {
        s.residual.column[j] = gc[j];
        q[j] = 0.0;
    }
    iterate(w, &s);
    bk_arena_release(w->problem.scratch, mark);
    return true;
}

bk_transport_status bk_transport_solve_sns(bk_transport_working *w)
{
    const bk_transport_config *c = &w->config;
    if (bk_transport_stage(w, 0.0, c->warm_sweeps) == BK_TRANSPORT_NOT_FINITE)
        return BK_TRANSPORT_NOT_FINITE;
    return bk_transport_newton(w, c->tolerance, false, solve);
}
