/* The second-order system of a transport problem, and damped Newton steps on the concave
 *   psi(u,v) = <t_a-part> + <t_b-part> - sum P,   P = exp(S + u + v):
 * hard sides contribute <a,u>, soft ones -(rho/eps) sum t, t = a exp(-(eps/rho)(u - log a)).
 * Gradient t_a - P 1, t_b - P' 1; minus the Hessian is
 *   [diag(r + e_a t_a)  P ; P'  diag(c + e_b t_b)],   e = eps/rho (0 = hard).
 * Rows are eliminated: Sc = diag(c + e_b t_b) - P' diag(1/d) P, d = r + e_a t_a. */
#include "core/transport/internal.h"

#include "core/blas.h"

#include <math.h>
#include <string.h>

/* eps / rho of a side; 0 = hard. */
static double softness(const bk_transport_working *w, int side)
{
    return isinf(w->rho[side]) ? 0.0 : 1.0 / (w->eta * w->rho[side]);
}

/* What a potential makes of its mass. */
static double target(double mass, double log_mass, double potential, double soft)
{
    return soft == 0.0 ? mass : mass * exp(-soft * (potential - log_mass));
}

/* A side's term of psi. */
static double term(double mass, double target, double potential, double soft)
{
    return soft == 0.0 ? mass * potential : -target / soft;
}

bk_transport_point *bk_transport_point_new(bk_transport_working *w, bool scaled)
{
    bk_arena *arena = w->problem.scratch;
    bk_transport_point *p = BK_NEW(arena, bk_transport_point, 1);
    *p = (bk_transport_point){.plan = BK_NEW(arena, double, w->rows * w->columns),
                              .scaled = scaled,
                              .u = BK_NEW(arena, double, w->rows),
                              .v = BK_NEW(arena, double, w->columns),
                              .r = BK_NEW(arena, double, w->rows),
                              .c = BK_NEW(arena, double, w->columns),
                              .target = BK_NEW(arena, double, w->rows),
                              .target_b = BK_NEW(arena, double, w->columns),
                              .diagonal = BK_NEW(arena, double, w->rows)};
    return p;
}

/* ---- a point ---- */

enum { PSI, ERROR, SLOPE, EXTRA }; /* behind the column sums */

typedef struct evaluation {
    bk_transport_point *point;
    const double *gradient, *direction; /* rows; NULL: the slope is not asked for */
} evaluation;

static void evaluate_rows(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                          double *sum, double *buffer)
{
    const evaluation *e = context;
    const bk_transport_point *p = e->point;
    const bk_transport_kernels *k = bk_transport_kernels_of(BK_F64);
    double soft = softness(w, 0), *extra = sum + w->columns;
    for (int64_t i = first; i < last; i++) {
        double *plan = p->plan + i * w->columns;
        const double *c = bk_transport_row_f64(w, i, buffer);
        double r = p->r[i] = k->plan(w->columns, w->factor, c, p->v, p->u[i], plan);
        double t = p->target[i] = target(w->a[i], w->log_a[i], p->u[i], soft);
        p->diagonal[i] = r + soft * t + 1e-14 * w->a_most;
        k->accumulate(w->columns, 1.0, plan, sum);
        extra[PSI] += term(w->a[i], t, p->u[i], soft) - r;
        extra[ERROR] += fabs(t - r);
        extra[SLOPE] += e->direction ? e->gradient[i] * e->direction[i] : 0.0;
        if (p->scaled)
            bk_vector(BK_F64)->scale(w->columns, 1.0 / sqrt(p->diagonal[i]), plan);
    }
}

/* Collective, one message: the point at its u, v; returns <gradient, direction> over the rows. */
static double evaluate(bk_transport_working *w, bk_transport_point *p, const double *gradient,
                       const double *direction)
{
    int64_t m = w->columns;
    bk_arena_mark mark = bk_arena_get_mark(w->problem.scratch);
    double *sum = BK_NEW(w->problem.scratch, double, m + EXTRA), soft = softness(w, 1);
    bk_transport_sum(w, m + EXTRA, evaluate_rows, &(evaluation){p, gradient, direction}, sum);
    double slope = sum[m + SLOPE];
    p->psi = sum[m + PSI];
    p->error = sum[m + ERROR];
    for (int64_t j = 0; j < m; j++) {
        double t = p->target_b[j] = target(w->b[j], w->log_b[j], p->v[j], soft);
        p->c[j] = sum[j];
        p->psi += term(w->b[j], t, p->v[j], soft);
        p->error += fabs(t - sum[j]);
    }
    bk_arena_release(w->problem.scratch, mark);
    return slope;
}

void bk_transport_evaluate(bk_transport_working *w, bk_transport_point *p)
{
    evaluate(w, p, NULL, NULL);
}

/* ---- products with the scaled plan Q = diag(d)^(-1/2) P ---- */

typedef struct product {
    const bk_transport_point *point;
    const double *x; /* rows or columns */
    double *y;       /* rows */
} product;

static void transposed_rows(const bk_transport_working *w, void *context, int64_t first,
                            int64_t last, double *sum, double *buffer)
{
    const product *p = context;
    (void)buffer;
    for (int64_t i = first; i < last; i++)
        bk_transport_kernels_of(BK_F64)->accumulate(w->columns, p->x[i],
                                                    p->point->plan + i * w->columns, sum);
}

/* Collective.  out[columns] = Q' x. */
static void transposed(bk_transport_working *w, const bk_transport_point *point, const double *x,
                       double *out)
{
    bk_transport_sum(w, w->columns, transposed_rows, &(product){point, x, NULL}, out);
}

static void normal_rows(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                        double *sum, double *buffer)
{
    const product *p = context;
    (void)buffer;
    for (int64_t i = first; i < last; i++) {
        const double *q = p->point->plan + i * w->columns;
        double x = bk_transport_kernels_of(BK_F64)->dot(w->columns, q, p->x);
        if (p->y)
            p->y[i] = x;
        else
            bk_transport_kernels_of(BK_F64)->accumulate(w->columns, x, q, sum);
    }
}

/* y[rows] = Q x. */
static void forward(bk_transport_working *w, const bk_transport_point *point, const double *x,
                    double *y)
{
    bk_transport_sum(w, 0, normal_rows, &(product){point, x, y}, NULL);
}

/* ---- the Schur complement, dense ---- */

/* Lower triangle in strips of TILE rows, each as long as its last row: what the ranks send. */
enum { TILE = 128 };

static int64_t strip_start(int64_t n, int64_t strip)
{
    int64_t start = 0;
    for (int64_t s = 0; s < strip; s++) {
        int64_t end = (s + 1) * TILE < n ? (s + 1) * TILE : n;
        start += (end - s * TILE) * end;
    }
    return start;
}

typedef struct schur {
    bk_transport_working *w;
    const bk_transport_point *point;
    int64_t n, strips;
    bk_gemm *product; /* [strips] */
} schur;

/* Of one row block: Q_l' Q_l. */
static void block_product(void *context, int64_t l, void *out)
{
    const schur *s = context;
    const bk_transport_working *w = s->w;
    int64_t first = w->lane_row[l];
    const double *q = s->point->plan + first * w->columns;
    for (int64_t i = 0; i < s->strips; i++) {
        int64_t end = (i + 1) * TILE < s->n ? (i + 1) * TILE : s->n;
        s->product[i] = (bk_gemm){.ta = BK_T,
                                  .tb = BK_N,
                                  .m = end - i * TILE,
                                  .n = end,
                                  .k = w->lane_row[l + 1] - first,
                                  .alpha = 1.0,
                                  .a = q + i * TILE,
                                  .lda = w->columns,
                                  .b = q,
                                  .ldb = w->columns,
                                  .c = (double *)out + strip_start(s->n, i),
                                  .ldc = end};
    }
    bk_gemm_batch(BK_F64, s->strips, s->product);
}

/* Collective.  out: the strips of Q' Q on the first n columns, then Q' x of all columns. */
static void gram(bk_transport_working *w, const bk_transport_point *point, int64_t n,
                 const double *x, double *out)
{
    bk_arena *scratch = w->problem.scratch;
    int64_t strips = (n + TILE - 1) / TILE, size = strip_start(n, strips);
    schur s = {w, point, n, strips, BK_NEW(scratch, bk_gemm, strips)};
    double *own = BK_NEW(scratch, double, size + w->columns);
    const bk_reducer *reducer = w->problem.reducer;
    bk_lane_tree(w->problem.lanes, BK_F64, size, own, block_product, &s, scratch);
    w->problem.reducer = NULL; /* the own row blocks first: one message for both */
    transposed(w, point, x, own + size);
    w->problem.reducer = reducer;
    bk_transport_sum_ranks(&w->problem, size + w->columns, own, out);
}

/* a[n,n], the upper triangle of a column-major matrix = the lower one of a row-major matrix. */
static void assemble(const bk_transport_working *w, const bk_transport_point *point, int64_t n,
                     const double *strips, double shift, double *a)
{
    double soft = softness(w, 1), trace = 0.0;
    for (int64_t s = 0; s * TILE < n; s++) {
        int64_t end = (s + 1) * TILE < n ? (s + 1) * TILE : n;
        const double *strip = strips + strip_start(n, s);
        for (int64_t i = s * TILE; i < end; i++)
            for (int64_t j = 0; j <= i; j++)
                a[i * n + j] = -strip[(i - s * TILE) * end + j];
    }
    for (int64_t i = 0; i < n; i++)
        trace += a[i * n + i] +=
            point->c[i] + soft * point->target_b[i] + shift * 1e-14 * w->a_most;
    for (int64_t i = 0; i < n; i++)
        a[i * n + i] += shift * 1e-15 * trace / (double)(n + 1);
}

static bool factor_and_solve(bk_transport_working *w, const bk_transport_point *point, int64_t n,
                             const double *strips, const double *right, double *q)
{
    enum { TRIES = 6 };
    double *a = BK_NEW(w->problem.scratch, double, n *n), shift = 1.0;
    for (int k = 0; k < TRIES; k++, shift *= 100.0) {
        assemble(w, point, n, strips, shift, a);
        memcpy(q, right, (size_t)n * sizeof *q);
        if (bk_solve_spd(n, a, q) == BK_OK)
            return true;
    }
    return false;
}

static bool solve_dense(bk_transport_working *w, const bk_transport_point *point, int64_t n,
                        const double *x, const double *gc, double *q)
{
    bk_arena *scratch = w->problem.scratch;
    int64_t size = strip_start(n, (n + TILE - 1) / TILE);
    double *sums = BK_NEW(scratch, double, size + w->columns),
           *right = BK_NEW(scratch, double, w->columns);
    gram(w, point, n, x, sums);
    for (int64_t j = 0; j < n; j++)
        right[j] = gc[j] - sums[size + j];
    return factor_and_solve(w, point, n, sums, right, q);
}

/* ---- the Schur complement, by conjugate gradients ---- */

static void squares(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                    double *sum, double *buffer)
{
    const bk_transport_point *point = context;
    (void)buffer;
    for (int64_t i = first; i < last; i++)
        for (int64_t j = 0; j < w->columns; j++)
            sum[j] += point->plan[i * w->columns + j] * point->plan[i * w->columns + j];
}

static double dot(int64_t n, const double *x, const double *y)
{
    return bk_vector(BK_F64)->dot(n, x, y);
}

/* Collective.  q[n] = Sc^-1 right, Jacobi-preconditioned; the rest of q is 0. */
static void conjugate_gradients(bk_transport_working *w, const bk_transport_point *point, int64_t n,
                                const double *right, double *q)
{
    bk_arena *scratch = w->problem.scratch;
    int64_t m = w->columns;
    double *diagonal = BK_NEW(scratch, double, m), *jacobi = BK_NEW(scratch, double, m),
           *r = BK_NEW(scratch, double, m), *z = BK_NEW(scratch, double, m),
           *d = BK_ZNEW(scratch, double, m), *ad = BK_NEW(scratch, double, m);
    double soft = softness(w, 1);
    bk_transport_sum(w, m, squares, (void *)(uintptr_t)point, jacobi);
    for (int64_t j = 0; j < m; j++) {
        diagonal[j] = point->c[j] + soft * point->target_b[j] + 1e-14 * w->a_most;
        jacobi[j] = fmax(diagonal[j] - jacobi[j], 1e-14 * diagonal[j]);
        q[j] = 0.0;
    }
    for (int64_t j = 0; j < n; j++) {
        r[j] = right[j];
        d[j] = z[j] = r[j] / jacobi[j];
    }
    double rz = dot(n, r, z), goal = w->config.cg_tolerance * sqrt(dot(n, r, r));
    for (int64_t k = 0; k < w->config.cg_iterations && sqrt(dot(n, r, r)) > goal; k++) {
        bk_transport_sum(w, m, normal_rows, &(product){point, d, NULL}, ad);
        for (int64_t j = 0; j < n; j++)
            ad[j] = diagonal[j] * d[j] - ad[j];
        double curvature = dot(n, d, ad), step = rz / curvature, before = rz;
        if (!(curvature > 0.0))
            break;
        for (int64_t j = 0; j < n; j++) {
            q[j] += step * d[j];
            r[j] -= step * ad[j];
            z[j] = r[j] / jacobi[j];
        }
        rz = dot(n, r, z);
        for (int64_t j = 0; j < n; j++)
            d[j] = z[j] + rz / before * d[j];
        w->result->cg_iterations++;
    }
}

static bool solve_cg(bk_transport_working *w, const bk_transport_point *point, int64_t n,
                     const double *x, const double *gc, double *q)
{
    double *right = BK_NEW(w->problem.scratch, double, w->columns);
    transposed(w, point, x, right);
    for (int64_t j = 0; j < w->columns; j++)
        right[j] = gc[j] - right[j];
    conjugate_gradients(w, point, n, right, q);
    return true;
}

/* ---- the system ---- */

static bool takes_cg(const bk_transport_working *w)
{
    enum { DENSE_COLUMNS = 2048 };
    return w->config.solver == BK_SOLVER_CG ||
           (w->config.solver == BK_SOLVER_AUTO && w->columns > DENSE_COLUMNS);
}

bool bk_transport_newton_solve(bk_transport_working *w, const bk_transport_point *point,
                               const double *gr, const double *gc, double *p, double *q)
{
    bk_arena_mark mark = bk_arena_get_mark(w->problem.scratch);
    /* Balanced: (1,-1) changes nothing, so the last q is pinned to 0. */
    int64_t n = bk_transport_balanced(w) ? w->columns - 1 : w->columns;
    double *x = BK_NEW(w->problem.scratch, double, w->rows);
    for (int64_t i = 0; i < w->rows; i++)
        x[i] = gr[i] / sqrt(point->diagonal[i]);
    q[w->columns - 1] = 0.0;
    bool solved =
        takes_cg(w) ? solve_cg(w, point, n, x, gc, q) : solve_dense(w, point, n, x, gc, q);
    if (solved)
        forward(w, point, q, p);
    for (int64_t i = 0; solved && i < w->rows; i++)
        p[i] = (x[i] - p[i]) / sqrt(point->diagonal[i]);
    bk_arena_release(w->problem.scratch, mark);
    return solved;
}

/* ---- steps ---- */

static void move(const bk_transport_working *w, const bk_transport_point *from, double t,
                 const double *p, const double *q, bk_transport_point *to)
{
    for (int64_t i = 0; i < w->rows; i++)
        to->u[i] = from->u[i] + t * p[i];
    for (int64_t j = 0; j < w->columns; j++)
        to->v[j] = from->v[j] + t * q[j];
}

/* Armijo; where psi no longer resolves progress, the error decides. */
static bool accepts(const bk_transport_point *from, const bk_transport_point *to, double gain)
{
    double size = fabs(from->psi);
    if (!isfinite(to->psi) || !isfinite(to->error))
        return false;
    return to->psi >= from->psi + gain - 1e-15 * size ||
           (fabs(to->psi - from->psi) < 1e-14 * size && to->error < from->error);
}

/* A direction of psi: p[rows], q[columns], and the gradient there. */
typedef struct direction {
    double *gr, *p, *gc, *q;
} direction;

/* Collective, one message a trial.  A step that overflows has no finite psi and is not taken. */
static bool line_search(bk_transport_working *w, const bk_transport_point *from,
                        bk_transport_point *to, const direction *d)
{
    enum { TRIALS = 40 };
    const double armijo = 1e-4, columns = dot(w->columns, d->gc, d->q);
    double t = 1.0;
    for (int k = 0; k < TRIALS; k++, t *= 0.5) {
        move(w, from, t, d->p, d->q, to);
        double slope = columns + evaluate(w, to, d->gr, d->p);
        if (accepts(from, to, armijo * t * slope))
            return true;
    }
    return false;
}

/* Gradient at a point. */
static void gradient(const bk_transport_working *w, const bk_transport_point *point,
                     const direction *d)
{
    for (int64_t i = 0; i < w->rows; i++)
        d->gr[i] = point->target[i] - point->r[i];
    for (int64_t j = 0; j < w->columns; j++)
        d->gc[j] = point->target_b[j] - point->c[j];
}

/* Collective.  One step from `from` to `to`. */
static bool newton_step(bk_transport_working *w, bk_transport_direction *solve,
                        const bk_transport_point *from, bk_transport_point *to)
{
    bk_arena *scratch = w->problem.scratch;
    direction d = {BK_NEW(scratch, double, w->rows), BK_NEW(scratch, double, w->rows),
                   BK_NEW(scratch, double, w->columns), BK_NEW(scratch, double, w->columns)};
    gradient(w, from, &d);
    return solve(w, from, d.gr, d.gc, d.p, d.q) && line_search(w, from, to, &d);
}

static void start_at(bk_transport_working *w, bk_transport_point *point)
{
    memcpy(point->u, w->u, (size_t)w->rows * sizeof(double));
    memcpy(point->v, w->v, (size_t)w->columns * sizeof(double));
    bk_transport_evaluate(w, point);
}

/* Steps in a row that neither raised psi nor lowered the least error: rounding allows no less. */
typedef struct idling {
    int64_t steps;
    double least;
} idling;

static void watch(idling *k, const bk_transport_point *from, const bk_transport_point *to)
{
    bool raised = to->psi > from->psi + 1e-14 * fabs(from->psi),
         lowered = to->error < 0.99 * k->least;
    k->steps = raised || lowered ? 0 : k->steps + 1;
    k->least = fmin(k->least, to->error);
}

static bk_transport_status steps(bk_transport_working *w, double tolerance, bool scaled,
                                 bk_transport_direction *solve)
{
    bk_transport_point *from = bk_transport_point_new(w, scaled),
                       *to = bk_transport_point_new(w, scaled);
    bk_transport_status status = BK_TRANSPORT_CONVERGED;
    enum { IDLE = 10 };
    start_at(w, from);
    idling k = {0, from->error};
    while (from->error > tolerance * w->mass || !isfinite(from->error)) {
        bk_arena_mark mark = bk_arena_get_mark(w->problem.scratch);
        status = BK_TRANSPORT_CONVERGED;
        if (!isfinite(from->error))
            status = BK_TRANSPORT_NOT_FINITE;
        else if (w->result->newton_steps >= w->config.iterations)
            status = BK_TRANSPORT_MAX_ITERATIONS;
        else if (k.steps >= IDLE || !newton_step(w, solve, from, to))
            status = BK_TRANSPORT_STAGNATED;
        bk_arena_release(w->problem.scratch, mark);
        if (status != BK_TRANSPORT_CONVERGED)
            break;
        bk_transport_note(w, from->error, true);
        w->result->newton_steps++;
        watch(&k, from, to);
        bk_transport_point *other = from;
        from = to;
        to = other;
    }
    memcpy(w->u, from->u, (size_t)w->rows * sizeof(double));
    memcpy(w->v, from->v, (size_t)w->columns * sizeof(double));
    return status;
}

bk_transport_status bk_transport_newton(bk_transport_working *w, double tolerance, bool scaled,
                                        bk_transport_direction *solve)
{
    bk_arena_mark mark = bk_arena_get_mark(w->problem.scratch);
    bk_transport_status status = steps(w, tolerance, scaled, solve);
    w->kernel_stale = true;
    bk_arena_release(w->problem.scratch, mark);
    return status;
}
