#include "models/qr_kernel.h"

#include "core/vector_kernel.h"

static inline real magnitude(real x)
{
    return x < 0 ? -x : x;
}

/* ---- factorisation ---- */

/* The reflection that takes column k from row k on to alpha e_k; its vector stays in the column.
 * beta = 2 / v'v, 0 where there is nothing to reflect. */
static void make_reflection(int64_t n, int64_t k, slots *m, slots *diagonal, slots *beta)
{
    slots norm2;
    EACH norm2.x[s] = 0;
    for (int64_t i = k; i < n; i++)
        EACH norm2.x[s] += m[i * n + k].x[s] * m[i * n + k].x[s];
    EACH
    {
        real x = m[k * n + k].x[s], norm = (real)sqrt((double)norm2.x[s]);
        real alpha = x > 0 ? -norm : norm, half = norm2.x[s] - x * alpha;
        diagonal[k].x[s] = alpha;
        m[k * n + k].x[s] = x - alpha;
        beta->x[s] = half != 0 ? 1 / half : 0;
    }
}

/* Columns [from, n) of x -= beta v v' x, v in column k of m. */
static void reflect(int64_t n, int64_t k, int64_t from, const slots *restrict m, const slots *beta,
                    slots *restrict x)
{
    for (int64_t j = from; j < n; j++) {
        slots w;
        EACH w.x[s] = 0;
        for (int64_t i = k; i < n; i++)
            EACH w.x[s] += m[i * n + k].x[s] * x[i * n + j].x[s];
        EACH w.x[s] *= beta->x[s];
        for (int64_t i = k; i < n; i++)
            EACH x[i * n + j].x[s] -= w.x[s] * m[i * n + k].x[s];
    }
}

/* The same for the columns behind k of m itself, which do not overlap column k. */
static void reflect_rest(int64_t n, int64_t k, slots *m, const slots *beta)
{
    slots v[BK_QR_MOST];
    for (int64_t i = k; i < n; i++)
        v[i] = m[i * n + k];
    for (int64_t j = k + 1; j < n; j++) {
        slots w;
        EACH w.x[s] = 0;
        for (int64_t i = k; i < n; i++)
            EACH w.x[s] += v[i].x[s] * m[i * n + j].x[s];
        EACH w.x[s] *= beta->x[s];
        for (int64_t i = k; i < n; i++)
            EACH m[i * n + j].x[s] -= w.x[s] * v[i].x[s];
    }
}

static void largest_diagonal(int64_t n, const slots *diagonal, slots *most)
{
    EACH most->x[s] = 0;
    for (int64_t k = 0; k < n; k++)
        EACH
        {
            real d = magnitude(diagonal[k].x[s]);
            most->x[s] = d > most->x[s] ? d : most->x[s];
        }
}

static void count_clamped(bk_qr_block *b, const slots *diagonal)
{
    slots most;
    largest_diagonal(b->n, diagonal, &most);
    for (int s = 0; s < SLOTS; s++) {
        b->clamped[s] = 0;
        for (int64_t k = 0; k < b->order[s]; k++)
            b->clamped[s] += magnitude(diagonal[k].x[s]) < (real)b->least * most.x[s];
    }
}

static void forward(bk_qr_block *b)
{
    int64_t n = b->n;
    slots *m = b->m, *u = b->u, *diagonal = b->diagonal, beta[BK_QR_MOST];
    for (int64_t k = 0; k < n; k++) {
        make_reflection(n, k, m, diagonal, &beta[k]);
        reflect_rest(n, k, m, &beta[k]);
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            EACH u[i * n + j].x[s] = i == j;
    for (int64_t k = n - 1; k >= 0; k--)
        reflect(n, k, k, m, &beta[k], u);
    count_clamped(b, diagonal);
}

/* ---- backward ---- */

/* g := 2 u .* g, x := -g' u. */
static void inner_products(int64_t n, const slots *restrict u, slots *restrict g, slots *restrict x)
{
    for (int64_t i = 0; i < n * n; i++)
        EACH g[i].x[s] *= 2 * u[i].x[s];
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            slots sum;
            EACH sum.x[s] = 0;
            for (int64_t k = 0; k < n; k++)
                EACH sum.x[s] -= g[k * n + i].x[s] * u[k * n + j].x[s];
            x[i * n + j] = sum;
        }
}

/* g += u (tril(x) + tril(x,-1)'). */
static void add_symmetric(int64_t n, const slots *restrict u, const slots *restrict x,
                          slots *restrict g)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            slots sum = g[i * n + j];
            for (int64_t k = 0; k < n; k++) {
                const slots *of = k >= j ? &x[k * n + j] : &x[j * n + k];
                EACH sum.x[s] += u[i * n + k].x[s] * of->x[s];
            }
            g[i * n + j] = sum;
        }
}

/* |R_kk| < least * max counts as that value, with its sign. */
static void inverse_diagonal(const bk_qr_block *b, slots *inverse)
{
    const slots *diagonal = b->diagonal;
    const real least = (real)b->least;
    slots most;
    largest_diagonal(b->n, diagonal, &most);
    for (int64_t k = 0; k < b->n; k++)
        EACH
        {
            real d = diagonal[k].x[s], floor = least * most.x[s];
            real clamped = d < 0 ? -floor : floor;
            d = magnitude(d) < floor ? clamped : d;
            inverse[k].x[s] = 1 / d;
        }
}

/* g := g R^-T, a row at a time from the last column on. */
static void solve(const bk_qr_block *b)
{
    int64_t n = b->n;
    const slots *restrict r = b->m;
    slots *restrict g = b->g, inverse[BK_QR_MOST];
    inverse_diagonal(b, inverse);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = n - 1; j >= 0; j--) {
            slots sum = g[i * n + j];
            for (int64_t k = j + 1; k < n; k++)
                EACH sum.x[s] -= g[i * n + k].x[s] * r[j * n + k].x[s];
            EACH g[i * n + j].x[s] = sum.x[s] * inverse[j].x[s];
        }
}

static void backward(bk_qr_block *b)
{
    inner_products(b->n, b->u, b->g, b->work);
    add_symmetric(b->n, b->u, b->work, b->g);
    solve(b);
}

#if BK_REAL == 64
#define SQRT sqrt
#else
#define SQRT sqrtf
#endif

static void noise(int64_t count, const uint32_t *word, double deviation, void *to)
{
    real even[BK_QR_NOISE / 2], odd[BK_QR_NOISE / 2], *x = to;
    const real unit = (real)0x1p-32, size = (real)deviation;
    for (int64_t i = 0; i < (count + 1) / 2; i++) {
        real u = ((real)word[2 * i] + BK_R(0.5)) * unit, sine, cosine;
        real angle = ((real)word[2 * i + 1] + BK_R(0.5)) * (unit * BK_R(6.28318530717958647693));
        real radius = size * SQRT(BK_R(-2.0) * bk_log(u));
        bk_sincos(angle, &sine, &cosine);
        even[i] = radius * cosine;
        odd[i] = radius * sine;
    }
    for (int64_t i = 0; i < count; i++)
        x[i] += i % 2 == 0 ? even[i / 2] : odd[i / 2];
}

static void square(int64_t n, const void *from, void *to)
{
    const slots *u = from;
    slots *a = to;
    for (int64_t i = 0; i < n; i++)
        EACH a[i].x[s] = u[i].x[s] * u[i].x[s];
}

const bk_qr_kernels BK_KERNEL(bk_qr_kernels) = {
    .forward = forward, .backward = backward, .noise = noise, .square = square};
