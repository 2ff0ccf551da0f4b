#include "models/probe.h"

#include "core/blas.h"
#include "core/hooks.h"
#include "dist/collective.h"
#include "models/internal.h"
#include "models/projection.h"

#include <math.h>
#include <string.h>

/* What is summed over matrices, for each layer. */
enum {
    SUM_MATRICES,
    SUM_ROWS,
    SUM_PRODUCTS,
    SUM_DISTANCE,
    SUM_ENTROPY,
    SUM_RANK,
    SUM_PRODUCT_RANK,
    SUM_EIGENVALUE,
    SUMS = SUM_EIGENVALUE + BK_PROBE_EIGENVALUES
};

/* The largest of what was seen, for each layer. */
enum { MAX_ROW, MAX_COLUMN, MAX_ORDER, MAXIMA };

struct bk_probe {
    bk_model *model;
    bk_tape *tape;
    const bk_bundle *bundle;
    int64_t own, at, rounds; /* samples of this rank, the next of them, most that a rank has */
    bk_tensor **matrix;      /* [layers]; NULL: the kind shows none */
    double *local, *max;     /* [lanes,layers,SUMS]; [layers,MAXIMA] */
};

/* Square matrices of one sample, all of order n, and room for what works on them. */
typedef struct sheet {
    int64_t n;
    const int64_t *position; /* [n] the real ones */
    double *a, *mean, *product, *work, *value;
} sheet;

/* ---- one matrix ---- */

static double entropy_of(int64_t n, const double *p, double total)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum -= p[i] > 0.0 ? p[i] / total * log(p[i] / total) : 0.0;
    return sum;
}

static double row_entropies(const sheet *s)
{
    double sum = 0.0;
    for (int64_t i = 0; i < s->n; i++)
        sum += entropy_of(s->n, s->a + i * s->n, 1.0);
    return sum;
}

/* NaN where LAPACK finds none. */
static double effective_rank(const sheet *s, const double *a)
{
    double total = 0.0;
    memcpy(s->work, a, (size_t)(s->n * s->n) * sizeof *a);
    if (bk_singular_values(s->n, s->work, s->value) != BK_OK)
        return NAN;
    for (int64_t i = 0; i < s->n; i++)
        total += s->value[i];
    return total > 0.0 ? exp(entropy_of(s->n, s->value, total)) : 0.0;
}

static void add_eigenvalues(const sheet *s, double *sum)
{
    memcpy(s->work, s->a, (size_t)(s->n * s->n) * sizeof *s->a);
    bool found = bk_eigenvalues(s->n, s->work, s->value) == BK_OK;
    for (int64_t i = 0; i < s->n && i < BK_PROBE_EIGENVALUES; i++)
        sum[i] += found ? s->value[i] : NAN;
}

static void measure(const sheet *s, bk_arena *scratch, double *sum, double *max)
{
    sum[SUM_MATRICES] += 1.0;
    sum[SUM_ROWS] += (double)s->n;
    sum[SUM_DISTANCE] += bk_birkhoff_project(s->n, s->a, s->work, scratch);
    sum[SUM_ENTROPY] += row_entropies(s);
    sum[SUM_RANK] += effective_rank(s, s->a);
    add_eigenvalues(s, sum + SUM_EIGENVALUE);
    bk_birkhoff_errors(s->n, s->a, &max[MAX_ROW], &max[MAX_COLUMN]);
    max[MAX_ORDER] = fmax(max[MAX_ORDER], (double)s->n);
}

/* ---- one sample ---- */

/* The class position in front is always real. */
static int64_t real_positions(const bk_probe *p, int64_t sample, int64_t length, int64_t *position)
{
    const bk_tensor *mask = bk_bundle_get(p->bundle, "mask");
    int64_t front = p->model->cls != NULL, n = 0;
    for (int64_t i = 0; i < length; i++)
        if (!mask || i < front || bk_i32(mask)[sample * (length - front) + i - front])
            position[n++] = i;
    return n;
}

/* The matrix of one head without the rows and columns of padding, and its share of the mean. */
static void take(const sheet *s, const bk_tensor *matrix, int64_t sample, int64_t head)
{
    int64_t heads = matrix->shape[1], length = matrix->shape[2];
    const float *from = bk_f32(matrix) + (sample * heads + head) * length * length;
    for (int64_t i = 0; i < s->n; i++)
        for (int64_t j = 0; j < s->n; j++) {
            double a = (double)from[s->position[i] * length + s->position[j]];
            s->a[i * s->n + j] = a;
            s->mean[i * s->n + j] = (head ? s->mean[i * s->n + j] : 0.0) + a / (double)heads;
        }
}

/* product = mean product */
static void multiply(const sheet *s)
{
    int64_t n = s->n;
    memcpy(s->work, s->product, (size_t)(n * n) * sizeof *s->work);
    bk_gemm_run(BK_F64, &(bk_gemm){.m = n,
                                   .n = n,
                                   .k = n,
                                   .alpha = 1.0,
                                   .a = s->mean,
                                   .lda = n,
                                   .b = s->work,
                                   .ldb = n,
                                   .c = s->product,
                                   .ldc = n,
                                   .varying = true});
}

static sheet sheet_of(const bk_probe *p, int64_t sample, int64_t length, bk_arena *scratch)
{
    int64_t *position = BK_NEW(scratch, int64_t, length),
            n = real_positions(p, sample, length, position);
    sheet s = {n,
               position,
               BK_NEW(scratch, double, n *n),
               BK_NEW(scratch, double, n *n),
               BK_ZNEW(scratch, double, n *n),
               BK_NEW(scratch, double, n *n),
               BK_NEW(scratch, double, n)};
    for (int64_t i = 0; i < n; i++)
        s.product[i * n + i] = 1.0;
    return s;
}

static void probe_sample(const bk_probe *p, int64_t sample, double *sum)
{
    bk_arena *scratch = p->tape->scratch;
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    sheet s = {0};
    for (int i = 0; i < bk_model_layers(p->model); i++) {
        const bk_tensor *matrix = p->matrix[i];
        double *own = sum + i * SUMS;
        if (!matrix)
            continue;
        if (!s.a)
            s = sheet_of(p, sample, matrix->shape[2], scratch);
        for (int64_t h = 0; h < matrix->shape[1] && s.n > 0; h++) {
            bk_place("probe");
            take(&s, matrix, sample, h);
            measure(&s, scratch, own, p->max + i * MAXIMA);
        }
        if (s.n == 0)
            continue;
        multiply(&s);
        own[SUM_PRODUCTS] += 1.0;
        own[SUM_PRODUCT_RANK] += effective_rank(&s, s.product);
    }
    bk_arena_release(scratch, mark);
}

/* ---- all samples ---- */

static void run_model(bk_model *model, bk_tape *t, bk_bundle *bundle, bk_tensor **matrix)
{
    bk_arena *inner = t->inner;
    t->training = t->recording = false;
    t->inner = NULL; /* the matrices stay when a block is done */
    model->matrix = matrix;
    bk_model_forward(model, t, bundle);
    model->matrix = NULL;
    t->inner = inner;
}

static void read_figures(int layer, const double *sum, const double *max, bk_probe_figures *f)
{
    double matrices = sum[SUM_MATRICES];
    *f = (bk_probe_figures){.layer = layer,
                            .matrices = (int64_t)matrices,
                            .distance = sum[SUM_DISTANCE] / matrices,
                            .entropy = sum[SUM_ENTROPY] / sum[SUM_ROWS],
                            .row_error = max[MAX_ROW],
                            .column_error = max[MAX_COLUMN],
                            .rank = sum[SUM_RANK] / matrices,
                            .product_rank = sum[SUM_PRODUCT_RANK] / sum[SUM_PRODUCTS],
                            .eigenvalues = (int)fmin(max[MAX_ORDER], BK_PROBE_EIGENVALUES)};
    for (int i = 0; i < f->eigenvalues; i++)
        f->eigenvalue[i] = sum[SUM_EIGENVALUE + i] / matrices;
}

int bk_model_layers(const bk_model *model)
{
    return (int)model->config.layers;
}

/* Samples of this rank that are to be looked at: the first ones. */
static int64_t own_samples(const bk_lanes *lanes, int64_t samples)
{
    int64_t own = bk_lanes_samples(lanes), left = samples - bk_lanes_first_sample(lanes);
    return left < 0 ? 0 : left < own ? left : own;
}

bk_probe *bk_probe_begin(bk_model *model, bk_tape *t, bk_bundle *bundle, int64_t samples)
{
    int layers = bk_model_layers(model);
    bk_probe *p = BK_ZNEW(t->arena, bk_probe, 1);
    *p = (bk_probe){.model = model,
                    .tape = t,
                    .bundle = bundle,
                    .own = own_samples(&t->lanes, samples),
                    .matrix = BK_ZNEW(t->arena, bk_tensor *, layers),
                    .local = BK_ZNEW(t->arena, double, (t->lanes.count + 1) * layers * SUMS),
                    .max = BK_ZNEW(t->arena, double, layers *MAXIMA)};
    p->rounds = p->own;
    bk_max_i64(model->world->loss, 1, &p->rounds);
    run_model(model, t, bundle, p->matrix);
    return p;
}

bool bk_probe_next(bk_probe *p)
{
    const bk_lanes *lanes = &p->tape->lanes;
    if (p->at < p->own) {
        int64_t lane = p->at * lanes->count / bk_lanes_samples(lanes);
        probe_sample(p, p->at, p->local + lane * bk_model_layers(p->model) * SUMS);
    }
    return ++p->at < p->rounds;
}

int bk_probe_end(bk_probe *p, bk_probe_figures *out)
{
    int layers = bk_model_layers(p->model), shown = 0;
    const bk_comm *comm = p->model->world->loss;
    double *sum = BK_NEW(p->tape->arena, double, layers *SUMS);
    bk_sum_lanes(comm, &p->tape->lanes, layers * SUMS, p->local, sum);
    bk_max_f64(comm, layers * MAXIMA, p->max);
    for (int i = 0; i < layers; i++)
        if (sum[i * SUMS + SUM_MATRICES] > 0.0)
            read_figures(i, sum + i * SUMS, p->max + i * MAXIMA, &out[shown++]);
    return shown;
}
