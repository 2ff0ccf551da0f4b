/* models/attention/sinkformer.c - attention whose matrix a few Sinkhorn half steps have made nearly
 * doubly stochastic (Sander, Ablin, Blondel, Peyre, AISTATS 2022).
 *   S = scale q k' / epsilon,  A = n exp(S + u 1' + 1 v'),  u, v of `half_steps` half steps, rows
 * first, marginals 1/n: one half step is softmax.   O(N^2 (D + half_steps)).   Not collective. */
#include "core/blas.h"
#include "core/transport/batch.h"
#include "core/vector.h"
#include "models/doubly.h"

#include <math.h>
#include <omp.h>

enum { UNROLLED, LAST, IMPLICIT };

typedef struct sinkformer_config {
    int64_t half_steps;
    double epsilon, scale;
    int gradient;
} sinkformer_config;

static const bk_option options[] = {
    BK_OPTION_I64(sinkformer_config, half_steps, 3, 1, 1000, "half steps, rows first"),
    BK_OPTION_F64_ABOVE(sinkformer_config, epsilon, 1.0, 0.0, 1e6, "divides the scores"),
    BK_DOUBLY_SCALE(sinkformer_config),
    BK_OPTION_CHOICE(sinkformer_config, gradient, UNROLLED, "unrolled|last|implicit",
                     "through all half steps, the last alone, or that of the converged plan"),
    BK_OPTION_END,
};

enum { LEAST_IMPLICIT = 50 };

static bk_status check(const void *config)
{
    const sinkformer_config *c = config;
    if (c->gradient == IMPLICIT && c->half_steps < LEAST_IMPLICIT)
        return bk_fail(BK_USAGE,
                       "gradient=implicit with half_steps=%lld is the gradient of another function "
                       "(attention.sinkformer): take gradient=unrolled, or half_steps >= %d",
                       (long long)c->half_steps, LEAST_IMPLICIT);
    return BK_OK;
}

static void set_range(bk_dtype dtype, void *x, int64_t first, int64_t step, int64_t count,
                      double value)
{
    for (int64_t i = 0; i < count; i++)
        bk_real_put(dtype, x, first + i * step, value);
}

static void scale_matrix(bk_dtype dtype, int64_t count, double factor, void *x)
{
    bk_vector(dtype)->scale(count, factor, x);
}

/* ---- implicit: the converged plan P = A/n, W = n G .* P = G .* A ----
 * [diag(r) P; P' diag(c)] [alpha; beta] = [W 1; W' 1],  dS = W - P .* (alpha 1' + 1 beta'),
 * by the Schur complement in double, the last beta pinned to 0. */

typedef struct implicit {
    int64_t n;
    double *p, *w, *r, *c, *row, *column, *left, *schur;
} implicit;

static implicit implicit_of(const bk_doubly_group *g, int64_t problem, bk_arena *arena)
{
    int64_t n = g->order[problem];
    implicit x = {.n = n};
    double **square[] = {&x.p, &x.w, &x.left, &x.schur}, **line[] = {&x.r, &x.c, &x.row, &x.column};
    for (int i = 0; i < 4; i++) {
        *square[i] = BK_NEW(arena, double, n *n);
        *line[i] = BK_ZNEW(arena, double, n);
    }
    for (int64_t i = 0; i < n * n; i++) {
        double a = bk_real_get(g->tape->dtype, g->a[problem], i);
        double d = bk_real_get(g->tape->dtype, g->g[problem], i);
        x.p[i] = a / (double)n;
        x.w[i] = d * a;
        x.r[i / n] += x.p[i];
        x.c[i % n] += x.p[i];
        x.row[i / n] += x.w[i];
        x.column[i % n] += x.w[i];
    }
    return x;
}

/* column := beta, row := alpha. */
static bk_status solve(implicit *x)
{
    int64_t n = x->n, m = n - 1;
    for (int64_t i = 0; i < n * n; i++)
        x->left[i] = x->p[i] / x->r[i / n];
    bk_gemm_run(BK_F64, &(bk_gemm){.ta = BK_T,
                                   .m = m,
                                   .n = m,
                                   .k = n,
                                   .alpha = -1.0,
                                   .a = x->p,
                                   .lda = n,
                                   .b = x->left,
                                   .ldb = n,
                                   .c = x->schur,
                                   .ldc = m});
    for (int64_t j = 0; j < m; j++) {
        x->schur[j * m + j] += x->c[j] * (1.0 + 1e-14);
        for (int64_t i = 0; i < n; i++)
            x->column[j] -= x->left[i * n + j] * x->row[i];
    }
    bk_status status = m > 0 ? bk_solve_spd(m, x->schur, x->column) : BK_OK;
    x->column[m] = 0.0;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++)
            x->row[i] -= x->p[i * n + j] * x->column[j];
        x->row[i] /= x->r[i];
    }
    return status;
}

/* A plan of NaN has no factors: its gradient is NaN, which the step's check of gradients sees. */
static void implicit_gradient(const bk_doubly_group *g, int64_t problem)
{
    bk_arena_mark mark = bk_arena_get_mark(g->scratch);
    implicit x = implicit_of(g, problem, g->scratch);
    double bad = solve(&x) == BK_OK ? 0.0 : NAN;
    for (int64_t i = 0; i < x.n * x.n; i++)
        x.w[i] += bad - x.p[i] * (x.row[i / x.n] + x.column[i % x.n]);
    for (int64_t i = 0; i < x.n * x.n; i++)
        bk_real_put(g->tape->dtype, g->dm[problem], i, x.w[i]);
    bk_arena_release(g->scratch, mark);
}

/* ---- up to 64 rows: in slots ---- */

typedef struct slot_work {
    void *s, *plan, *g, *ds, *mass, *rest;
} slot_work;

typedef struct sinkformer {
    const bk_doubly_group *g;
    const sinkformer_config *c;
    bool unrolled; /* gradients by half steps */
    size_t bytes;  /* of the work of a thread */
    char *work;
} sinkformer;

static slot_work slot_work_at(char *at, int64_t n)
{
    size_t square = (size_t)(n * n) * BK_SLOT_BYTES;
    slot_work w = {.s = at, .plan = at + square, .g = at + 2 * square, .ds = at + 3 * square};
    w.mass = at + 4 * square;
    w.rest = at + 4 * square + (size_t)n * BK_SLOT_BYTES;
    return w;
}

static size_t slot_bytes(bk_dtype dtype, const sinkformer_config *c, int64_t n)
{
    bk_batch_block k = {.rows = n, .columns = n, .half_steps = c->half_steps};
    return (size_t)(4 * n * n + n) * BK_SLOT_BYTES + bk_batch_work_size(dtype, &k) + 64;
}

static void masses(bk_dtype dtype, const bk_doubly_slots *s, void *mass)
{
    int64_t slots = bk_slots(dtype);
    set_range(dtype, mass, 0, 1, s->n * slots, 0.0);
    for (int64_t i = 0; i < s->count; i++)
        set_range(dtype, mass, i, slots, s->order[i], 1.0 / (double)s->order[i]);
}

/* A = n P, and dL/dP = n G. */
static void run_slots(const sinkformer *x, const int64_t *small, int64_t count, char *work)
{
    const bk_doubly_group *g = x->g;
    bk_dtype dtype = g->tape->dtype;
    bk_doubly_slots s = bk_doubly_slots_of(g, small, count);
    slot_work w = slot_work_at(work, s.n);
    double order[BK_SLOTS];
    bk_batch_block k = {.rows = s.n,
                        .columns = s.n,
                        .half_steps = x->c->half_steps,
                        .s = w.s,
                        .a = w.mass,
                        .b = w.mass,
                        .plan = w.plan,
                        .last_only = x->c->gradient == LAST,
                        .g = w.g,
                        .ds = w.ds};
    for (int64_t i = 0; i < s.count; i++)
        order[i] = (double)s.order[i];
    masses(dtype, &s, w.mass);
    bk_doubly_pack(g, &s, g->m, NULL, w.s);
    bk_batch_block_forward(dtype, &k, w.rest);
    bk_doubly_unpack(g, &s, g->a, order, w.plan);
    if (!x->unrolled)
        return;
    bk_doubly_pack(g, &s, g->g, order, w.g);
    bk_batch_block_backward(dtype, &k, w.rest);
    bk_doubly_unpack(g, &s, g->dm, NULL, w.ds);
}

/* ---- larger: potentials ---- */

static size_t single_bytes(bk_dtype dtype, const sinkformer_config *c, int64_t n)
{
    return bk_batch_single_size(dtype, n, n, c->half_steps) + (size_t)n * 8 + 64;
}

static void run_single(const sinkformer *x, int64_t p, char *work)
{
    const bk_doubly_group *g = x->g;
    bk_dtype dtype = g->tape->dtype;
    int64_t n = g->order[p];
    char *rest = work + ((size_t)n * 8 + 63) / 64 * 64;
    set_range(dtype, work, 0, 1, n, 1.0 / (double)n);
    bk_batch_single k = {.rows = n,
                         .columns = n,
                         .half_steps = x->c->half_steps,
                         .s = g->m[p],
                         .a = work,
                         .b = work,
                         .plan = g->a[p],
                         .last_only = x->c->gradient == LAST};
    bk_batch_single_forward(dtype, &k, rest);
    if (x->unrolled) {
        k.g = g->g[p];
        k.ds = g->dm[p];
        scale_matrix(dtype, n * n, (double)n, g->g[p]);
        bk_batch_single_backward(dtype, &k);
    }
    scale_matrix(dtype, n * n, (double)n, g->a[p]);
}

/* ---- all ---- */

static void run_all(const sinkformer *x, const int64_t *small, int64_t smalls, const int64_t *large,
                    int64_t larges)
{
    int64_t slots = bk_slots(x->g->tape->dtype), blocks = (smalls + slots - 1) / slots;
#pragma omp parallel for schedule(dynamic, 1) num_threads(bk_blas_threads())
    for (int64_t i = 0; i < blocks + larges; i++) {
        char *work = x->work + x->bytes * (size_t)omp_get_thread_num();
        if (i < blocks)
            run_slots(x, small + i * slots, smalls - i * slots, work);
        else
            run_single(x, large[i - blocks], work);
    }
}

static void apply_rule(const bk_doubly_group *g)
{
    const sinkformer_config *c = g->config;
    bk_dtype dtype = g->tape->dtype;
    int64_t *small = BK_NEW(g->scratch, int64_t, g->problems), larges,
            *large = BK_NEW(g->scratch, int64_t, g->problems),
            smalls = bk_doubly_sort(g, BK_BATCH_MOST, small, large, &larges);
    int64_t most = g->n < BK_BATCH_MOST ? g->n : BK_BATCH_MOST;
    sinkformer x = {.g = g, .c = c, .unrolled = g->g && c->gradient != IMPLICIT};
    x.bytes = slot_bytes(dtype, c, most) + (larges ? single_bytes(dtype, c, g->n) : 0);
    x.bytes = (x.bytes + 63) / 64 * 64;
    x.work = bk_arena_alloc(g->scratch, x.bytes * (size_t)bk_blas_threads());
    run_all(&x, small, smalls, large, larges);
    for (int64_t p = 0; p < g->problems && g->g && !x.unrolled; p++)
        if (g->order[p] > 0)
            implicit_gradient(g, p);
}

/* A multiplication and a sum an element and half step. */
static double flop(const void *config, int64_t order)
{
    const sinkformer_config *c = config;
    return 2.0 * (double)(c->half_steps * order * order);
}

static bk_tensor *apply(bk_tape *t, const bk_attention_args *a)
{
    const sinkformer_config *c = a->config;
    bk_doubly_rule rule = {.apply = apply_rule,
                           .flop = flop,
                           .config = c,
                           .scale = bk_doubly_scale(c->scale, a) / c->epsilon};
    return bk_doubly(t, a, &rule, NULL);
}

const bk_attention_kind bk_attention_sinkformer = {
    .name = "sinkformer",
    .summary = "a few Sinkhorn half steps on the scores: rows and columns sum to 1",
    .source = "Sander, Ablin, Blondel, Peyre 2022",
    .options = options,
    .config_size = sizeof(sinkformer_config),
    .check = check,
    .not_causal = bk_doubly_not_causal,
    .apply = apply,
    .flags = BK_ATTENTION_MASK | BK_ATTENTION_DROPOUT | BK_ATTENTION_MATRIX,
};
