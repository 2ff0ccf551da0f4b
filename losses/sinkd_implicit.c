/* The derivative of <P,C> where P is the entropic plan of C and its marginals r = P1, c = P^T 1,
 * the actual ones, stay fixed.  With a_i = sum_j P_ij C_ij and b_j = sum_i P_ij C_ij,
 *   (diag c - P^T diag(1/r) P) z = b - P^T (a/r)
 *   y = (a - P z)/r;   G_ij = P_ij (1 + (y_i + z_j - C_ij)/epsilon)
 * by conjugate gradients, the vector 1 of each group projected out.  The actual marginals keep the
 * system consistent after any number of iterations.  Every vector over columns is the same on all
 * ranks that hold it.  Source: the implicit function theorem; Cuturi et al. 2020 for the reduced
 * system. */
#include "core/attributes.h"
#include "core/log.h"
#include "core/vector.h"
#include "losses/sinkd.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* One solve; vectors over rows [rows], over columns [columns]. */
typedef struct solve {
    const bk_sinkd *s;
    double *const *plan;
    double *inverse; /* 1/r; 0 where a row is empty */
    double *column;  /* c */
    double *a;       /* sum_j P_ij C_ij */
    double *rows;    /* P x */
    double *local;   /* [m,columns] */
    double *z, *residual, *direction, *product;
    int64_t steps;
    double error; /* norm of the residual over that of the right side, the largest of the groups;
                     0 where it is of rounding */
} solve;

/* ---- groups: the system falls into one for each ---- */

typedef struct range {
    int64_t first, count; /* columns of one group */
} range;

/* The groups held here, one a block. */
static range range_of(const bk_sinkd *s, int64_t k)
{
    return (range){s->block[k].column, s->block[k].columns};
}

static void project(range r, double *x)
{
    double mean = bk_vector(BK_F64)->sum(r.count, x + r.first) / (double)r.count;
    for (int64_t j = r.first; j < r.first + r.count; j++)
        x[j] -= mean;
}

static double dot(range r, const double *x, const double *y)
{
    return bk_vector(BK_F64)->dot(r.count, x + r.first, y + r.first);
}

/* ---- the system ---- */

/* Collective.  y = c x - P^T (P x / r). */
static void apply_system(const solve *w, const double *x, double *y)
{
    bk_sinkd_multiply(w->s, w->plan, x, w->rows);
    for (int64_t i = 0; i < w->s->rows; i++)
        w->rows[i] *= w->inverse[i];
    bk_sinkd_multiply_transposed(w->s, w->plan, w->rows, w->local, y);
    for (int64_t j = 0; j < w->s->columns; j++)
        y[j] = w->column[j] * x[j] - y[j];
}

/* Row sums r and a; own shares, by lane, of what `column` and the right side sum up. */
static void add_row(const solve *w, const bk_sinkhorn_block *b, int64_t i, double *column,
                    double *right)
{
    const double *p = w->plan[b - w->s->block] + i * b->columns;
    double sum = 0.0, a = 0.0;
    for (int64_t j = 0; j < b->columns; j++) {
        sum += p[j];
        a += p[j] * bk_sinkd_cost(w->s, b->s[i * b->columns + j]);
    }
    double inverse = sum > 0.0 ? 1.0 / sum : 0.0;
    w->inverse[b->first + i] = inverse;
    w->a[b->first + i] = a;
    for (int64_t j = 0; j < b->columns; j++) {
        column[b->column + j] += p[j];
        right[b->column + j] +=
            p[j] * (bk_sinkd_cost(w->s, b->s[i * b->columns + j]) - a * inverse);
    }
}

/* Collective.  Marginals, a, and the right side b - P^T (a/r) in w->residual. */
static void make_system(bk_tape *t, const solve *w)
{
    const bk_sinkd *s = w->s;
    double *right = BK_ZNEW(t->scratch, double, t->lanes.count * s->columns);
    memset(w->local, 0, (size_t)(t->lanes.count * s->columns) * sizeof *w->local);
    for (int64_t k = 0; k < s->blocks; k++)
        for (int64_t i = 0; i < s->block[k].rows; i++) {
            int64_t at = bk_sinkhorn_lane(&s->problem, s->block[k].first + i) * s->columns;
            add_row(w, &s->block[k], i, w->local + at, right + at);
        }
    bk_sinkhorn_sum(&s->problem, s->columns, w->local, w->column);
    bk_sinkhorn_sum(&s->problem, s->columns, right, w->residual);
}

/* ---- conjugate gradients ---- */

/* Tolerance and steps: the gradient's own precision, and room for small epsilon. */
static double tolerance_of(const bk_sinkd *s)
{
    return s->args.logits->dtype == BK_F64 ? 1e-12 : 1e-6;
}

static int64_t most_steps(const bk_sinkd *s)
{
    return s->args.logits->dtype == BK_F64 ? 500 : 100;
}

/* |residual|^2 that rounding alone leaves: C <= 2, and columns of P sum to 1. */
static double rounding_of(range r)
{
    const double each = 8.0 * DBL_EPSILON;
    return (double)r.count * each * each;
}

/* One step of one group; `square` is |residual|^2, now and behind it.  False where the direction is
 * flat, which but for rounding none is: a plan that is nearly a permutation. */
static bool step_group(const solve *w, range r, double *square)
{
    project(r, w->product);
    double curvature = dot(r, w->direction, w->product), alpha = *square / curvature;
    if (curvature <= 0.0) /* a NaN goes on: into the gradient */
        return false;
    for (int64_t j = r.first; j < r.first + r.count; j++) {
        w->z[j] += alpha * w->direction[j];
        w->residual[j] -= alpha * w->product[j];
    }
    double next = dot(r, w->residual, w->residual), beta = next / *square;
    for (int64_t j = r.first; j < r.first + r.count; j++)
        w->direction[j] = w->residual[j] + beta * w->direction[j];
    *square = next;
    return true;
}

/* Some own group is not done. */
static bool is_open(const bk_sinkd *s, const double *square, const double *limit)
{
    for (int64_t k = 0; k < s->blocks; k++)
        if (square[k] > limit[k])
            return true;
    return false;
}

/* Collective if s->shared.  Applies the system to the direction; false when no group of any rank
 * needed it, which where groups straddle comes to light with the sum itself. */
static bool goes_on(const solve *w, const double *square, const double *limit)
{
    const bk_sinkd *s = w->s;
    bool open = is_open(s, square, limit);
    if (!s->shared && !open)
        return false;
    if (s->shared)
        s->message->vote = open ? 1.0 : 0.0;
    apply_system(w, w->direction, w->product);
    return !s->shared || s->message->votes > 0.0;
}

/* Collective if s->shared.  A group that is done stands still. */
static void conjugate_gradients(bk_tape *t, solve *w)
{
    const bk_sinkd *s = w->s;
    double *square = BK_NEW(t->scratch, double, s->blocks + 1),
           *start = BK_NEW(t->scratch, double, s->blocks + 1),
           *limit = BK_NEW(t->scratch, double, s->blocks + 1), tolerance = tolerance_of(s);
    for (int64_t k = 0; k < s->blocks; k++) {
        project(range_of(s, k), w->residual);
        start[k] = square[k] = dot(range_of(s, k), w->residual, w->residual);
        limit[k] = fmax(tolerance * tolerance * start[k], rounding_of(range_of(s, k)));
    }
    memcpy(w->direction, w->residual, (size_t)s->columns * sizeof *w->direction);
    for (; w->steps < most_steps(s) && goes_on(w, square, limit); w->steps++)
        for (int64_t k = 0; k < s->blocks; k++)
            if (square[k] > limit[k] && !step_group(w, range_of(s, k), &square[k]))
                limit[k] = square[k];
    for (int64_t k = 0; k < s->blocks; k++)
        if (square[k] > rounding_of(range_of(s, k)))
            w->error = fmax(w->error, sqrt(square[k] / start[k]));
}

/* ---- the whole ---- */

/* y from z, and P becomes G. */
static void finish(const solve *w, double *const *adjoint)
{
    const bk_sinkd *s = w->s;
    double scale = 1.0 / s->config->epsilon;
    bk_sinkd_multiply(s, w->plan, w->z, w->rows);
    for (int64_t k = 0; k < s->blocks; k++) {
        const bk_sinkhorn_block *b = &s->block[k];
        for (int64_t i = 0; i < b->rows; i++) {
            int64_t row = b->first + i;
            double y = (w->a[row] - w->rows[row]) * w->inverse[row];
            double *x = adjoint[k] + i * b->columns;
            for (int64_t j = 0; j < b->columns; j++)
                x[j] *= 1.0 + (y + w->z[b->column + j]) * scale + b->s[i * b->columns + j];
        }
    }
}

/* Collective where figures are wanted.  They are those of the worst rank, which alone may have a
 * word to say, and of the worst of several matchings. */
static void report(const solve *w)
{
    static bool warned;
    bk_attributes *figures = w->s->args.attributes;
    double worst[] = {w->error, (double)w->steps};
    if (!figures)
        return;
    bk_reduce_max(bk_comm_reducer(w->s->args.comm), 2, worst);
    if (worst[0] > 1.001 * tolerance_of(w->s))
        bk_warn_once(&warned,
                     "sinkd: the implicit gradient stopped after %.0f steps at a residual of %.1e: "
                     "raise epsilon, or use gradient=unrolled",
                     worst[1], worst[0]);
    bk_attribute_set(figures, "cg_residual",
                     fmax(worst[0], bk_attribute_get(figures, "cg_residual", 0.0)));
    bk_attribute_set_integer(
        figures, "cg_iterations",
        (int64_t)fmax(worst[1], bk_attribute_get(figures, "cg_iterations", 0.0)));
}

void bk_sinkd_implicit(bk_tape *t, const bk_sinkd *s, double *const *adjoint)
{
    solve w = {.s = s,
               .plan = adjoint,
               .inverse = BK_NEW(t->scratch, double, s->rows),
               .column = BK_NEW(t->scratch, double, s->columns),
               .a = BK_NEW(t->scratch, double, s->rows),
               .rows = BK_NEW(t->scratch, double, s->rows),
               .local = BK_NEW(t->scratch, double, t->lanes.count * s->columns),
               .z = BK_ZNEW(t->scratch, double, s->columns),
               .residual = BK_NEW(t->scratch, double, s->columns),
               .direction = BK_NEW(t->scratch, double, s->columns),
               .product = BK_NEW(t->scratch, double, s->columns)};
    make_system(t, &w);
    conjugate_gradients(t, &w);
    finish(&w, adjoint);
    report(&w);
}
