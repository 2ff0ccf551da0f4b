#include "models/moe_kernel.h"

#ifdef BK_AVX512
enum { BYTES = 64 };
#else
enum { BYTES = 32 };
#endif
enum { LANES = BYTES / sizeof(double) };
enum { ROWS = 8, CHUNK = 64 }; /* tokens and channels at a time */
typedef double vector __attribute__((vector_size(BYTES), aligned(sizeof(double)), may_alias));

/* ---- logits ---- */

/* panel[ceil(E / LANES)][channels][LANES] */
static void panels(int64_t experts, int64_t channels, const void *gate_, double *panel)
{
    const real *gate = gate_;
    for (int64_t e = 0; e < experts; e += LANES)
        for (int64_t c = 0; c < channels; c++)
            for (int64_t j = e; j < e + LANES; j++)
                *panel++ = j < experts ? (double)gate[j * channels + c] : 0.0;
}

static inline void widen(int64_t n, const real *x, double *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = (double)x[i];
}

/* h[rows,LANES] = x[rows,channels] panel[channels,LANES] */
static inline void panel_logits(int rows, int64_t channels, const real *x, const double *panel,
                                double h[ROWS][LANES])
{
    vector sum[ROWS] = {0};
    double part[ROWS][CHUNK];
    for (int64_t first = 0; first < channels; first += CHUNK) {
        int64_t n = channels - first < CHUNK ? channels - first : CHUNK;
        for (int i = 0; i < rows; i++)
            widen(n, x + i * channels + first, part[i]);
        for (int64_t c = 0; c < n; c++) {
            vector right = *(const vector *)(panel + (first + c) * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++)
                sum[i] += part[i][c] * right;
        }
    }
    for (int i = 0; i < rows; i++)
        *(vector *)h[i] = sum[i];
}

static void logits(int64_t tokens, int64_t channels, int64_t experts, const void *x_,
                   const double *panel, double *h)
{
    const real *x = x_;
    double part[ROWS][LANES];
    for (int64_t t = 0, rows; t < tokens; t += rows) {
        rows = tokens - t < ROWS ? 1 : ROWS;
        for (int64_t e = 0; e < experts; e += LANES) {
            if (rows == ROWS)
                panel_logits(ROWS, channels, x + t * channels, panel + e * channels, part);
            else
                panel_logits(1, channels, x + t * channels, panel + e * channels, part);
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = e; j < e + LANES && j < experts; j++)
                    h[(t + i) * experts + j] = part[i][j - e];
        }
    }
}

/* ---- gradients: most of g is 0, as only the kept experts have a weight ---- */

static void outer(int64_t experts, int64_t channels, int64_t stride, const double *g,
                  const void *x_, double *sum)
{
    const real *x = x_;
    for (int64_t e = 0; e < experts; e++) {
        if (g[e] == 0.0)
            continue;
        for (int64_t c = 0; c < channels; c++)
            sum[e * stride + c] += g[e] * (double)x[c];
    }
}

static void input_back(int64_t experts, int64_t channels, const double *g, const void *gate_,
                       void *dx_)
{
    const real *gate = gate_;
    real *dx = dx_;
    for (int64_t e = 0; e < experts; e++) {
        real factor = (real)g[e];
        if (g[e] == 0.0)
            continue;
        for (int64_t c = 0; c < channels; c++)
            dx[c] += factor * gate[e * channels + c];
    }
}

static void round_to(int64_t n, const double *x, void *y_)
{
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] = (real)x[i];
}

static void weigh(int64_t n, double w_, const void *x_, void *y_)
{
    const real *x = x_, w = (real)w_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] = w * x[i];
}

const bk_moe_kernels BK_KERNEL(bk_moe_kernels) = {
    .panels = panels,
    .logits = logits,
    .outer = outer,
    .input_back = input_back,
    .round = round_to,
    .weigh = weigh,
};
