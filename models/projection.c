#include "models/projection.h"

#include "core/blas.h"

#include <math.h>
#include <string.h>

enum { ITERATIONS = 200, HALVINGS = 50 };
static const double tolerance = 1e-9;

/* y = (f, g), the residual r = (X 1 - 1, X' 1 - 1) and the dual's value at it. */
typedef struct state {
    int64_t n;
    const double *a;
    double *x, *y, *r, value;
} state;

static void evaluate(state *s)
{
    int64_t n = s->n;
    s->value = 0.0;
    for (int64_t i = 0; i < 2 * n; i++) {
        s->r[i] = -1.0;
        s->value -= s->y[i];
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double x = fmax(0.0, s->a[i * n + j] + s->y[i] + s->y[n + j]);
            s->x[i * n + j] = x;
            s->r[i] += x;
            s->r[n + j] += x;
            s->value += 0.5 * x * x;
        }
}

static double largest(int64_t n, const double *x)
{
    double most = 0.0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs(x[i]));
    return most;
}

/* The multipliers of the nearest matrix with such sums that may be negative. */
static void begin(state *s)
{
    int64_t n = s->n;
    memset(s->y, 0, (size_t)(2 * n) * sizeof *s->y);
    double all = 0.0, own = 1.0 / (double)n;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            s->y[i] -= own * s->a[i * n + j];
            s->y[n + j] -= own * s->a[i * n + j];
            all += s->a[i * n + j];
        }
    for (int64_t i = 0; i < 2 * n; i++)
        s->y[i] += own + 0.5 * own * (own * all - 1.0);
    evaluate(s);
}

/* step = -(H + mu I)^-1 r with the generalised Hessian H = [diag(M 1), M; M', diag(M' 1)], M = 1
 * where X > 0.  mu keeps H, whose null space holds (1, -1), positive definite. */
static bool newton(const state *s, double *h, double *step)
{
    int64_t n = s->n, m = 2 * n;
    double mu = fmax(1e-10, 1e-3 * fmin(1.0, largest(m, s->r)));
    memset(h, 0, (size_t)(m * m) * sizeof *h);
    for (int64_t i = 0; i < m; i++) {
        h[i * m + i] = mu;
        step[i] = -s->r[i];
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            if (s->x[i * n + j] > 0.0) {
                h[i * m + i] += 1.0;
                h[(n + j) * m + n + j] += 1.0;
                h[(n + j) * m + i] = 1.0;
            }
    return bk_solve_spd(m, h, step) == BK_OK;
}

/* The longest step 1, 1/2, 1/4, ... by which the value falls as it should; rounding forgiven. */
static bool move(state *s, const double *step, double *from)
{
    int64_t m = 2 * s->n;
    double slope = 0.0, value = s->value, slack = 1e-14 * (1.0 + fabs(value)), t = 1.0;
    memcpy(from, s->y, (size_t)m * sizeof *from);
    for (int64_t i = 0; i < m; i++)
        slope += s->r[i] * step[i];
    for (int k = 0; k < HALVINGS; k++, t *= 0.5) {
        for (int64_t i = 0; i < m; i++)
            s->y[i] = from[i] + t * step[i];
        evaluate(s);
        if (s->value <= value + 1e-4 * t * slope + slack)
            return true;
    }
    return false;
}

static double distance(int64_t n, const double *a, const double *x)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n * n; i++)
        sum += (a[i] - x[i]) * (a[i] - x[i]);
    return sqrt(sum);
}

double bk_birkhoff_project(int64_t n, const double *a, double *x, bk_arena *scratch)
{
    int64_t m = 2 * n;
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    state s = {n, a, x, BK_NEW(scratch, double, m), BK_NEW(scratch, double, m), 0.0};
    double *h = BK_NEW(scratch, double, m *m), *step = BK_NEW(scratch, double, m),
           *from = BK_NEW(scratch, double, m);
    begin(&s);
    bool going = isfinite(s.value);
    for (int i = 0; i < ITERATIONS && going && largest(m, s.r) > tolerance; i++)
        going = newton(&s, h, step) && move(&s, step, from);
    bool found = isfinite(s.value) && largest(m, s.r) <= tolerance;
    bk_arena_release(scratch, mark);
    return found ? distance(n, a, x) : NAN;
}

static double larger(double a, double b)
{
    return isnan(b) ? INFINITY : fmax(a, b);
}

void bk_birkhoff_errors(int64_t n, const double *a, double *row, double *column)
{
    for (int64_t i = 0; i < n; i++) {
        double across = 0.0, down = 0.0;
        for (int64_t j = 0; j < n; j++) {
            across += a[i * n + j];
            down += a[j * n + i];
        }
        *row = larger(*row, fabs(across - 1.0));
        *column = larger(*column, fabs(down - 1.0));
    }
}
