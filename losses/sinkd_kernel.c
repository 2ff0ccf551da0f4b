#include "losses/sinkd_kernel.h"

#include <immintrin.h>

/* ROWS x COLUMNS sums are kept in registers, of which AVX-512 has 32 and AVX2 16.  A segment of so
 * many rows of q stays in the second-level cache. */
#ifdef BK_AVX512
enum { BYTES = 64, COLUMNS = 4 };
#else
enum { BYTES = 32, COLUMNS = 3 };
#endif
enum {
    ROWS = 4,
    LANES = BYTES / sizeof(real),
    SEGMENT = 4096 / sizeof(real),
    SEGMENT_ROWS = 32 * COLUMNS
};
typedef real vector __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));

/* Vector operators cannot say minimum; compilers make two slower instructions of a choice. */
#if defined(BK_AVX512) && BK_REAL == 64
#define INTRINSIC(name) _mm512_##name##_pd
typedef __m512d native;
#elif defined(BK_AVX512)
#define INTRINSIC(name) _mm512_##name##_ps
typedef __m512 native;
#elif BK_REAL == 64
#define INTRINSIC(name) _mm256_##name##_pd
typedef __m256d native;
#else
#define INTRINSIC(name) _mm256_##name##_ps
typedef __m256 native;
#endif

static inline vector smaller(vector a, vector b)
{
    return (vector)INTRINSIC(min)((native)a, (native)b);
}

/* -one, 0 or one by the sign of x, where |x| is 0 or at least `one`. */
static inline vector sign_of(vector x, vector one)
{
#ifdef BK_AVX512
    enum { ABSOLUTE_MINIMUM = 2 }; /* with the sign of the first */
    return (vector)INTRINSIC(range)((native)x, (native)one, ABSOLUTE_MINIMUM);
#else
    return (vector)INTRINSIC(max)((native)smaller(x, one), (native)-one);
#endif
}

static inline vector all(real x)
{
    return x - (vector){0};
}

static inline double horizontal(vector x)
{
    double sum[LANES];
    for (int i = 0; i < LANES; i++)
        sum[i] = (double)x[i];
#pragma GCC unroll 4
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            sum[i] += sum[i + half];
    return sum[0];
}

/* The first `count` of the rows of x, the last one again where there are fewer: a block always does
 * the same work, and what it did too much is left out. */
static inline void row_pointers(int64_t count, const real *x, int64_t ld, int rows,
                                const real **out)
{
    for (int i = 0; i < rows; i++)
        out[i] = x + (i < count ? i : count - 1) * ld;
}

static inline int64_t at_most(int64_t count, int64_t most)
{
    return count < most ? count : most;
}

/* ---- distances ---- */

/* c[m,n] -= 2 sum_v min(p_iv, q_jv), m <= ROWS, n <= COLUMNS: every load serves several sums. */
static void subtract_minima(const bk_sinkd_tile *t, int64_t i, int64_t j, double *c)
{
    int64_t m = at_most(t->rows - i, ROWS), n = at_most(t->columns - j, COLUMNS);
    const real *p[ROWS], *q[COLUMNS];
    vector sum[ROWS][COLUMNS] = {{{0}}};
    row_pointers(m, (const real *)t->p + i * t->ld, t->ld, ROWS, p);
    row_pointers(n, (const real *)t->q + j * t->ld, t->ld, COLUMNS, q);
    for (int64_t v = 0; v < t->width; v += LANES) {
        vector right[COLUMNS];
        for (int k = 0; k < COLUMNS; k++)
            right[k] = *(const vector *)(q[k] + v);
        for (int l = 0; l < ROWS; l++) {
            vector left = *(const vector *)(p[l] + v);
            for (int k = 0; k < COLUMNS; k++)
                sum[l][k] += smaller(left, right[k]);
        }
    }
    for (int l = 0; l < m; l++)
        for (int k = 0; k < n; k++)
            c[(i + l) * t->columns + j + k] -= 2.0 * horizontal(sum[l][k]);
}

/* The part of a tile from column v on, at most one segment. */
static bk_sinkd_tile segment_of(const bk_sinkd_tile *t, int64_t v)
{
    bk_sinkd_tile part = *t;
    part.width = at_most(t->width - v, SEGMENT);
    part.p = (const real *)t->p + v;
    part.q = (const real *)t->q + v;
    return part;
}

static void distances(const bk_sinkd_tile *t, const double *p_sum, const double *q_sum, double *c)
{
    for (int64_t i = 0; i < t->rows; i++)
        for (int64_t j = 0; j < t->columns; j++)
            c[i * t->columns + j] += p_sum[i] + q_sum[j];
    for (int64_t v = 0; v < t->width; v += SEGMENT) {
        bk_sinkd_tile part = segment_of(t, v);
        for (int64_t first = 0; first < t->columns; first += SEGMENT_ROWS)
            for (int64_t i = 0; i < t->rows; i += ROWS)
                for (int64_t j = first; j < at_most(t->columns, first + SEGMENT_ROWS); j += COLUMNS)
                    subtract_minima(&part, i, j, c);
    }
}

/* ---- signs ---- */

/* Differences of numbers in [0,1] times `huge` are 0 or at least `least`, so that their sign comes
 * without a comparison.  Both are powers of two: nothing is rounded. */
#if BK_REAL == 64
static const real huge = 0x1p1022, least = 0x1p-52;
#else
static const real huge = 0x1p126f, least = 0x1p-23f;
#endif

/* Weights of ROWS rows against the columns [first, first + columns), one row after the other. */
typedef struct weights {
    int64_t first, columns;
    real g[SEGMENT_ROWS][ROWS];
} weights;

static void pack(const bk_sinkd_tile *t, int64_t i, const double *g, weights *w)
{
    int64_t m = at_most(t->rows - i, ROWS);
    for (int64_t j = 0; j < w->columns; j++)
        for (int l = 0; l < ROWS; l++)
            w->g[j][l] = (real)g[(i + (l < m ? l : m - 1)) * t->columns + w->first + j];
}

/* h[i..] (+)= sum_j g_ij sign(p_iv - q_jv) over the columns of w. */
static void add_signs(const bk_sinkd_tile *t, int64_t i, const weights *w, real *h)
{
    int64_t m = at_most(t->rows - i, ROWS);
    const real *p[ROWS], *q = (const real *)t->q + w->first * t->ld;
    row_pointers(m, (const real *)t->p + i * t->ld, t->ld, ROWS, p);
    for (int64_t v = 0; v < t->width; v += LANES) {
        vector left[ROWS], sum[ROWS] = {{0}};
        for (int l = 0; l < ROWS; l++)
            left[l] = *(const vector *)(p[l] + v) * huge;
        for (int64_t j = 0; j < w->columns; j++) {
            vector right = *(const vector *)(q + j * t->ld + v);
            for (int l = 0; l < ROWS; l++)
                sum[l] += sign_of(left[l] - right * huge, all(least)) * w->g[j][l];
        }
        for (int l = 0; l < m; l++) {
            vector *to = (vector *)(h + (i + l) * t->ld + v);
            *to = w->first == 0 ? sum[l] * (1 / least) : *to + sum[l] * (1 / least);
        }
    }
}

static void sign_sum(const bk_sinkd_tile *t, const double *g, void *h)
{
    weights w;
    for (int64_t v = 0; v < t->width; v += SEGMENT) {
        bk_sinkd_tile part = segment_of(t, v);
        for (w.first = 0; w.first < t->columns; w.first += SEGMENT_ROWS) {
            w.columns = at_most(t->columns - w.first, SEGMENT_ROWS);
            for (int64_t i = 0; i < t->rows; i += ROWS) {
                pack(t, i, g, &w);
                add_signs(&part, i, &w, (real *)h + v);
            }
        }
    }
}

/* ---- the limit ---- */

static double min_add(int64_t rounds)
{
    enum { CHAINS = 10 }; /* latency 4, two units: at least 8 independent chains */
    vector sum[CHAINS] = {{0}}, left = all((real)0.5), right = all((real)0.25);
    for (int64_t n = 0; n < rounds; n++) {
#pragma GCC unroll 10
        for (int i = 0; i < CHAINS; i++) {
            __asm__ volatile("" : "+x"(left)); /* else one minimum serves all sums */
            sum[i] += smaller(left, right);
        }
    }
    double keep = 0.0;
    for (int i = 0; i < CHAINS; i++)
        keep += horizontal(sum[i]);
    return keep >= 0.0 ? (double)rounds * CHAINS * LANES : 0.0;
}

const bk_sinkd_kernels BK_KERNEL(bk_sinkd_kernels) = {
    .distances = distances, .sign_sum = sign_sum, .min_add = min_add};
