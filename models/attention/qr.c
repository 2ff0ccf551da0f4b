/* models/attention/qr.c - attention by the squares of an orthogonal matrix (Born et al., NeurIPS
 * 2025).   M = scale q k' + noise = U R,  A = U .* U: rows and columns sum to 1 exactly.
 *   Ub = 2 U .* G,  X = -Ub' U,  B = Ub + U (tril(X) + tril(X,-1)'),  dM = B R^-T.
 * O(N^3).  Neither the scale of M nor signs move A; a permutation of tokens does.  Not collective.
 */
#include "core/attributes.h"
#include "core/blas.h"
#include "core/rng.h"
#include "core/vector.h"
#include "models/doubly.h"
#include "models/qr_kernel.h"

#include <math.h>
#include <omp.h>
#include <string.h>

typedef struct qr_config {
    double noise, r_min, scale;
} qr_config;

static const bk_option options[] = {
    BK_OPTION_F64_OR(qr_config, noise, -1.0, "auto", -1.0, 0.0, 1.0,
                     "standard deviation over the root mean square of the scores; auto: 1e-4 in "
                     "fp32, 1e-7 in double"),
    BK_OPTION_F64(qr_config, r_min, 1e-3, 0.0, 0.1,
                  "least diagonal of R in backward, over the largest"),
    BK_DOUBLY_SCALE(qr_config),
    BK_OPTION_END,
};

static double noise_of(const bk_doubly_group *g)
{
    const qr_config *c = g->config;
    double preset = g->tape->dtype == BK_F64 ? 1e-7 : 1e-4;
    return c->noise < 0.0 ? preset : c->noise;
}

/* ---- scores: over their root mean square, plus noise ---- */

/* Eight words a Philox call, index = (head 2^40 + row 2^20 + column) / 8 over the real positions,
 * each two of them a pair of normals. */
static void add_noise(const bk_doubly_group *g, int64_t p, double noise, void *m)
{
    const bk_tape *t = g->tape;
    int64_t unit = bk_doubly_unit(g, p), n = g->order[p];
    uint64_t sample = (uint64_t)(bk_lanes_first_sample(&t->lanes) + unit / g->heads);
    uint64_t head = (uint64_t)(unit % g->heads) << 40, step = t->training ? (uint64_t)t->step : 0;
    bk_philox_key key = bk_philox_for(t->seed, g->args->layer, BK_USE_ATTENTION_NOISE);
    uint32_t word[BK_QR_NOISE];
    for (int64_t i = 0; i < n && noise > 0; i++)
        for (int64_t j = 0; j < n; j += BK_QR_NOISE) {
            int64_t count = n - j < BK_QR_NOISE ? n - j : BK_QR_NOISE;
            uint64_t index = (head + ((uint64_t)i << 20) + (uint64_t)j) / 8;
            bk_philox_words(key, step, sample, index, (count + 7) / 8, word);
            BK_KERNEL_SELECT(bk_qr_kernels, t->dtype)
                ->noise(count, word, noise,
                        (char *)m + (size_t)(i * n + j) * bk_dtype_size(t->dtype));
        }
}

/* 1/rms of the scores, in two factors, so that neither they nor squares overflow or are lost: a
 * power of two near the inverse of the largest entry, and the rest; 0 where all scores are 0. */
typedef struct inverse_rms {
    double power, rest;
} inverse_rms;

static double largest(bk_dtype dtype, int64_t count, const void *x)
{
    double most = 0.0;
    for (int64_t i = 0; i < count; i++)
        most = fmax(most, fabs(bk_real_get(dtype, x, i)));
    return most;
}

/* 2^-e for x in [2^e, 2^(e+1)), as far as normal numbers of the dtype go; 1 for 0 and infinity. */
static double power_against(bk_dtype dtype, double x)
{
    const int most = dtype == BK_F64 ? 1022 : 126;
    if (x == 0.0 || !isfinite(x))
        return 1.0;
    int e = ilogb(x);
    e = e < -most ? -most : e > most ? most : e;
    return ldexp(1.0, -e);
}

/* m := m / rms(m), with noise in m, without in `clean`; all zeros: the identity. */
static inverse_rms prepare(const bk_doubly_group *g, int64_t p, void *clean)
{
    bk_dtype dtype = g->tape->dtype;
    int64_t n = g->order[p];
    void *m = g->m[p];
    inverse_rms inverse = {.power = power_against(dtype, largest(dtype, n * n, m))};
    bk_vector(dtype)->scale(n * n, inverse.power, m);
    double square = bk_vector(dtype)->dot(n * n, m, m);
    if (square == 0) {
        for (int64_t i = 0; i < n; i++)
            bk_real_put(dtype, m, i * n + i, 1.0);
        return inverse;
    }
    inverse.rest = (double)n / sqrt(square);
    bk_vector(dtype)->scale(n * n, inverse.rest, m);
    if (clean)
        memcpy(clean, m, (size_t)(n * n) * bk_dtype_size(dtype));
    add_noise(g, p, noise_of(g), m);
    return inverse;
}

/* From the gradient of clean + noise to that of the scores: A does not change with their scale, so
 * what lies along clean goes.  dM := (dM - <dM, clean>/n^2 clean) / rms. */
static void finish(const bk_doubly_group *g, int64_t p, const void *clean, inverse_rms inverse)
{
    bk_dtype dtype = g->tape->dtype;
    int64_t n = g->order[p];
    if (inverse.rest == 0) {
        memset(g->dm[p], 0, (size_t)(n * n) * bk_dtype_size(dtype));
        return;
    }
    double along = bk_vector(dtype)->dot(n * n, g->dm[p], clean) / (double)(n * n);
    bk_vector(dtype)->axpy(n * n, -along, clean, g->dm[p]);
    bk_vector(dtype)->scale(n * n, inverse.rest, g->dm[p]);
    bk_vector(dtype)->scale(n * n, inverse.power, g->dm[p]);
}

/* ---- a group ---- */

typedef struct qr {
    const bk_doubly_group *g;
    const qr_config *c;
    inverse_rms *inverse; /* [problems] */
    void **clean;         /* [problems]; NULL: forward */
    size_t bytes;         /* of the work of a thread */
    char *work;
} qr;

/* Up to BK_QR_MOST rows: in slots. */
static void run_slots(const qr *x, const int64_t *small, int64_t count, char *work)
{
    const bk_doubly_group *g = x->g;
    const bk_qr_kernels *kernels = BK_KERNEL_SELECT(bk_qr_kernels, g->tape->dtype);
    bk_doubly_slots s = bk_doubly_slots_of(g, small, count);
    size_t square = (size_t)(s.n * s.n) * BK_SLOT_BYTES;
    bk_qr_block k = {.n = s.n,
                     .m = work,
                     .u = work + square,
                     .least = x->c->r_min,
                     .g = work + 2 * square,
                     .work = work + 3 * square,
                     .diagonal = work + 4 * square};
    memcpy(k.order, s.order, sizeof k.order);
    bk_doubly_pack(g, &s, g->m, NULL, k.m);
    kernels->forward(&k);
    kernels->square(s.n * s.n, k.u, k.work);
    bk_doubly_unpack(g, &s, g->a, NULL, k.work);
    for (int64_t i = 0; i < s.count; i++)
        g->clamped[s.problem[i]] = k.clamped[i];
    if (!g->g)
        return;
    bk_doubly_pack(g, &s, g->g, NULL, k.g);
    kernels->backward(&k);
    bk_doubly_unpack(g, &s, g->dm, NULL, k.g);
}

static void run_small(const qr *x, const int64_t *small, int64_t smalls)
{
    int64_t slots = bk_slots(x->g->tape->dtype), blocks = (smalls + slots - 1) / slots;
#pragma omp parallel for schedule(dynamic, 1) num_threads(bk_blas_threads())
    for (int64_t i = 0; i < blocks; i++)
        run_slots(x, small + i * slots, smalls - i * slots,
                  x->work + x->bytes * (size_t)omp_get_thread_num());
}

/* ---- larger: LAPACK ---- */

/* Replaces clamped diagonals; returns how many. */
static int64_t clamp(const qr *x, int64_t n, void *r)
{
    bk_dtype dtype = x->g->tape->dtype;
    double most = 0.0;
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs(bk_real_get(dtype, r, i * n + i)));
    for (int64_t i = 0; i < n; i++) {
        double d = bk_real_get(dtype, r, i * n + i);
        if (!(fabs(d) < x->c->r_min * most))
            continue;
        bk_real_put(dtype, r, i * n + i, copysign(x->c->r_min * most, d));
        count++;
    }
    return count;
}

/* X := tril(X) + tril(X,-1)'. */
static void symmetrise(bk_dtype dtype, int64_t n, void *x)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++)
            bk_real_put(dtype, x, i * n + j, bk_real_get(dtype, x, j * n + i));
}

/* The large problems: R and X of each. */
typedef struct large_work {
    const qr *x;
    const int64_t *problem;
    int64_t count;
    void **r, **inner;
    bk_gemm *product;
} large_work;

/* U in place of m, A, R; with a gradient Ub in dm. */
static void factorise(const large_work *w, int64_t i)
{
    const bk_doubly_group *g = w->x->g;
    bk_dtype dtype = g->tape->dtype;
    int64_t p = w->problem[i], n = g->order[p];
    void *u = g->m[p];
    bk_qr(dtype, n, u, w->r[i], w->inner[i]);
    g->clamped[p] = clamp(w->x, n, w->r[i]);
    for (int64_t j = 0; j < n * n; j++)
        bk_real_put(dtype, g->a[p], j, bk_real_get(dtype, u, j) * bk_real_get(dtype, u, j));
    for (int64_t j = 0; j < n * n && g->g; j++)
        bk_real_put(dtype, g->dm[p], j,
                    2.0 * bk_real_get(dtype, u, j) * bk_real_get(dtype, g->g[p], j));
}

/* For each problem X = -Ub' U, or, `second`, Ub += U X. */
static void multiply(const large_work *w, bool second)
{
    const bk_doubly_group *g = w->x->g;
    for (int64_t i = 0; i < w->count; i++) {
        int64_t p = w->problem[i], n = g->order[p];
        w->product[i] = (bk_gemm){.ta = second ? BK_N : BK_T,
                                  .m = n,
                                  .n = n,
                                  .k = n,
                                  .alpha = second ? 1.0 : -1.0,
                                  .a = second ? g->m[p] : g->dm[p],
                                  .lda = n,
                                  .b = second ? w->inner[i] : g->m[p],
                                  .ldb = n,
                                  .beta = second ? 1.0 : 0.0,
                                  .c = second ? g->dm[p] : w->inner[i],
                                  .ldc = n,
                                  .varying = true};
    }
    bk_gemm_batch(g->tape->dtype, w->count, w->product);
}

static void large_gradients(const large_work *w)
{
    const bk_doubly_group *g = w->x->g;
    bk_dtype dtype = g->tape->dtype;
    multiply(w, false);
    for (int64_t i = 0; i < w->count; i++)
        symmetrise(dtype, g->order[w->problem[i]], w->inner[i]);
    multiply(w, true);
#pragma omp parallel for schedule(dynamic, 1) num_threads(bk_blas_threads())
    for (int64_t i = 0; i < w->count; i++)
        bk_solve_upper_transposed(dtype, g->order[w->problem[i]], w->r[i], g->dm[w->problem[i]]);
}

static void run_large(const qr *x, const int64_t *problem, int64_t count)
{
    const bk_doubly_group *g = x->g;
    bk_arena *s = g->scratch;
    large_work w = {.x = x,
                    .problem = problem,
                    .count = count,
                    .r = BK_NEW(s, void *, count),
                    .inner = BK_NEW(s, void *, count),
                    .product = BK_NEW(s, bk_gemm, count)};
    for (int64_t i = 0; i < count; i++) {
        int64_t n = g->order[problem[i]];
        w.r[i] = bk_arena_alloc(s, (size_t)(n * n) * bk_dtype_size(g->tape->dtype));
        w.inner[i] = bk_arena_alloc(s, (size_t)(n * n) * bk_dtype_size(g->tape->dtype));
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(bk_blas_threads())
    for (int64_t i = 0; i < count; i++)
        factorise(&w, i);
    if (g->g)
        large_gradients(&w);
}

/* ---- the rule ---- */

static void prepare_all(qr *x)
{
    const bk_doubly_group *g = x->g;
    x->inverse = BK_ZNEW(g->scratch, inverse_rms, g->problems);
    x->clean = BK_ZNEW(g->scratch, void *, g->problems);
    for (int64_t p = 0; p < g->problems && g->g; p++)
        x->clean[p] = bk_arena_alloc(g->scratch, (size_t)(g->order[p] * g->order[p]) *
                                                     bk_dtype_size(g->tape->dtype));
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads())
    for (int64_t p = 0; p < g->problems; p++)
        if (g->order[p] > 0)
            x->inverse[p] = prepare(g, p, x->clean[p]);
}

static void apply_rule(const bk_doubly_group *g)
{
    int64_t *small = BK_NEW(g->scratch, int64_t, g->problems), larges,
            *large = BK_NEW(g->scratch, int64_t, g->problems),
            smalls = bk_doubly_sort(g, BK_QR_MOST, small, large, &larges);
    int64_t most = g->n < BK_QR_MOST ? g->n : BK_QR_MOST;
    qr x = {.g = g, .c = g->config, .bytes = (size_t)(4 * most * most + most) * BK_SLOT_BYTES};
    x.work = bk_arena_alloc(g->scratch, x.bytes * (size_t)bk_blas_threads());
    prepare_all(&x);
    run_small(&x, small, smalls);
    run_large(&x, large, larges);
    for (int64_t p = 0; p < g->problems && g->g; p++)
        if (g->order[p] > 0)
            finish(g, p, x.clean[p], x.inverse[p]);
}

/* So many diagonals of each lane were clamped: a term of weight 0. */
static void add_figure(bk_tape *t, int layer, int64_t samples, const int64_t *counted)
{
    bk_tensor *value = bk_tape_constant(t, BK_F64, BK_SHAPE(t->lanes.count));
    for (int64_t l = 0; l < t->lanes.count; l++) {
        double sum = 0.0;
        for (int64_t b = bk_lane_row(&t->lanes, samples, l);
             b < bk_lane_row(&t->lanes, samples, l + 1); b++)
            sum += (double)counted[b];
        ((double *)value->data)[l] = sum;
    }
    bk_tape_add_term(t, "clamped", layer, value, 0.0);
}

/* 4/3 n^3 of R, 4/3 n^3 more of U. */
static double flop(const void *config, int64_t order)
{
    (void)config;
    return 8.0 / 3.0 * (double)(order * order * order);
}

static bk_tensor *apply(bk_tape *t, const bk_attention_args *a)
{
    const qr_config *c = a->config;
    bk_doubly_rule rule = {
        .apply = apply_rule, .flop = flop, .config = c, .scale = bk_doubly_scale(c->scale, a)};
    int64_t samples = a->q->shape[0], all = 0, *counted = BK_ZNEW(t->arena, int64_t, samples);
    bk_tensor *out = bk_doubly(t, a, &rule, counted);
    for (int64_t b = 0; b < samples; b++)
        all += counted[b];
    bk_attribute_set_integer(a->attributes, "clamped", all);
    if (a->figures && t->training)
        add_figure(t, a->layer, samples, counted);
    return out;
}

const bk_attention_kind bk_attention_qr = {
    .name = "qr",
    .summary = "squares of the orthogonal factor of the scores: rows and columns sum to 1",
    .source = "Born et al. 2025",
    .options = options,
    .config_size = sizeof(qr_config),
    .not_causal = bk_doubly_not_causal,
    .apply = apply,
    .flags = BK_ATTENTION_MASK | BK_ATTENTION_DROPOUT | BK_ATTENTION_MATRIX | BK_ATTENTION_SEED,
};
