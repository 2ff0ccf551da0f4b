#include "losses/sinkd_kernel.h"

#ifdef BK_AVX512
enum { BYTES = 64 };
#else
enum { BYTES = 32 };
#endif
enum { LANES = BYTES / sizeof(real), BLOCK = 4 };
typedef real vector __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));
#if BK_REAL == 64
typedef int64_t bits __attribute__((vector_size(BYTES)));
static const int64_t all_but_sign = INT64_MAX;
#else
typedef int32_t bits __attribute__((vector_size(BYTES)));
static const int32_t all_but_sign = INT32_MAX;
#endif

static inline vector absolute(vector x)
{
    return (vector)((bits)x & all_but_sign);
}

static inline double horizontal(vector x)
{
    double sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += (double)x[i];
    return sum;
}

/* rows x columns of c, at most BLOCK each, over one chunk of the vocabulary: every load serves
 * BLOCK results. */
static inline void distance_block(int rows, int columns, int64_t width, const real *p,
                                  const real *q, int64_t ld, double *c, int64_t ldc)
{
    vector sum[BLOCK][BLOCK] = {{{0}}};
    for (int64_t v = 0; v < width; v += LANES) {
        vector right[BLOCK];
        for (int j = 0; j < columns; j++)
            right[j] = *(const vector *)(q + j * ld + v);
        for (int i = 0; i < rows; i++) {
            vector left = *(const vector *)(p + i * ld + v);
            for (int j = 0; j < columns; j++)
                sum[i][j] += absolute(left - right[j]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++)
            c[i * ldc + j] += horizontal(sum[i][j]);
}

static void distances(int64_t rows, int64_t columns, int64_t width, const void *p_, const void *q_,
                      int64_t ld, double *c)
{
    const real *p = p_, *q = q_;
    for (int64_t i = 0; i < rows; i += BLOCK)
        for (int64_t j = 0; j < columns; j += BLOCK) {
            int m = rows - i < BLOCK ? (int)(rows - i) : BLOCK,
                n = columns - j < BLOCK ? (int)(columns - j) : BLOCK;
            if (m == BLOCK && n == BLOCK)
                distance_block(BLOCK, BLOCK, width, p + i * ld, q + j * ld, ld, c + i * columns + j,
                               columns);
            else
                distance_block(m, n, width, p + i * ld, q + j * ld, ld, c + i * columns + j,
                               columns);
        }
}

static void sign_sum(int64_t rows, int64_t columns, int64_t width, const void *p_, const void *q_,
                     int64_t ld, const double *g, void *h_)
{
    const real *p = p_, *q = q_;
    real *h = h_;
    for (int64_t v = 0; v < width; v += LANES)
        for (int64_t i = 0; i < rows; i += BLOCK) {
            int m = rows - i < BLOCK ? (int)(rows - i) : BLOCK;
            vector left[BLOCK], sum[BLOCK] = {{0}};
            for (int k = 0; k < m; k++)
                left[k] = *(const vector *)(p + (i + k) * ld + v);
            for (int64_t j = 0; j < columns; j++) {
                vector right = *(const vector *)(q + j * ld + v);
                for (int k = 0; k < m; k++) {
                    bits weight = (bits)((real)g[(i + k) * columns + j] - (vector){0});
                    sum[k] +=
                        (vector)((left[k] > right) & weight) - (vector)((left[k] < right) & weight);
                }
            }
            for (int k = 0; k < m; k++)
                *(vector *)(h + (i + k) * ld + v) = sum[k];
        }
}

const bk_sinkd_kernels BK_KERNEL(bk_sinkd_kernels) = {.distances = distances, .sign_sum = sign_sum};
