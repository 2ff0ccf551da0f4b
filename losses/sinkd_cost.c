/* The cost of SinKD, C_ij = sum_v |p_iv - q_jv|, and its way back to the logits.  Both walk over
 * the vocabulary in chunks; of p, q and h there is never more than a chunk. */
#include "core/blas.h"
#include "core/vector.h"
#include "dist/collective.h"
#include "losses/sinkd.h"
#include "losses/sinkd_kernel.h"

#include <string.h>

enum { SMALL = 65536 }; /* elements below which one thread does the work */

static size_t element(const bk_sinkd *s)
{
    return bk_dtype_size(s->args.logits->dtype);
}

static int64_t padded(int64_t classes)
{
    return (classes + BK_SINKD_PAD - 1) / BK_SINKD_PAD * BK_SINKD_PAD;
}

/* ---- logits ---- */

static const char *student_row(const bk_sinkd *s, int64_t i)
{
    const bk_tensor *x = s->args.logits;
    return (const char *)x->data + (size_t)(s->place[i] * bk_cols(x)) * element(s);
}

static const char *teacher_row(const bk_sinkd *s, int64_t j)
{
    int64_t row = s->teacher_place ? s->teacher_place[j] : j;
    return s->teacher + (size_t)(row * bk_cols(s->args.logits)) * element(s);
}

/* Collective when groups straddle ranks: the valid teacher rows of all of them, packed. */
static void find_teacher(bk_tape *t, bk_sinkd *s)
{
    s->teacher = s->args.teacher->data;
    s->teacher_place = s->place;
    if (!s->shared)
        return;
    size_t row = (size_t)bk_cols(s->args.teacher) * element(s);
    char *own = bk_arena_alloc(t->scratch, (size_t)s->rows * row);
    for (int64_t i = 0; i < s->rows; i++)
        memcpy(own + (size_t)i * row, teacher_row(s, i), row);
    int size = bk_comm_size(s->args.comm);
    int64_t *bytes = BK_NEW(t->scratch, int64_t, size);
    for (int r = 0; r < size; r++)
        bytes[r] = s->count[r] * (int64_t)row;
    char *all = bk_arena_alloc(t->arena, (size_t)s->total * row);
    bk_allgather_bytes(s->args.comm, own, s->rows * (int64_t)row, bytes, all);
    s->teacher = all;
    s->teacher_place = NULL;
}

static void normalise(bk_tape *t, bk_sinkd *s)
{
    int64_t classes = bk_cols(s->args.logits);
    const bk_row_kernels *k = bk_rows_of(s->args.logits->dtype);
    s->p_norm = BK_NEW(t->arena, bk_row_norm, s->rows);
    s->q_norm = BK_NEW(t->arena, bk_row_norm, s->columns);
#pragma omp parallel for schedule(dynamic, 4) \
    num_threads(bk_blas_threads()) if ((s->rows + s->columns) * classes > SMALL)
    for (int64_t i = 0; i < s->rows + s->columns; i++)
        if (i < s->rows)
            s->p_norm[i] = k->normalise(classes, student_row(s, i), s->config->temperature);
        else
            s->q_norm[i - s->rows] =
                k->normalise(classes, teacher_row(s, i - s->rows), s->config->temperature);
}

/* ---- chunks ---- */

/* Probabilities of the classes first .. first+classes-1, padded with zeros to `width`.  Rows lie
 * ld elements apart, so that they do not all fall on the same lines of the cache. */
typedef struct chunk {
    int64_t first, classes, width, ld;
    char *p, *q;           /* [rows,ld], [columns,ld] */
    double *p_sum, *q_sum; /* sums of their rows */
} chunk;

static chunk chunk_new(bk_tape *t, const bk_sinkd *s)
{
    int64_t all = padded(bk_cols(s->args.logits)), width = padded(s->config->chunk);
    chunk c = {.width = width == 0 || all < width ? all : width};
    c.ld = c.width + BK_SINKD_PAD;
    c.p = bk_arena_alloc(t->scratch, (size_t)(s->rows * c.ld) * element(s));
    c.q = bk_arena_alloc(t->scratch, (size_t)(s->columns * c.ld) * element(s));
    c.p_sum = BK_NEW(t->scratch, double, s->rows);
    c.q_sum = BK_NEW(t->scratch, double, s->columns);
    return c;
}

static double fill_row(const bk_sinkd *s, const chunk *c, const char *x, bk_row_norm norm,
                       char *probabilities)
{
    size_t used = (size_t)c->classes * element(s);
    memset(probabilities + used, 0, (size_t)c->width * element(s) - used);
    return bk_rows_of(s->args.logits->dtype)
        ->softmax(c->classes, x + (size_t)c->first * element(s), s->config->temperature, norm,
                  probabilities);
}

/* Moves to the chunk that begins at class `first`; false behind the last one. */
static bool chunk_fill(const bk_sinkd *s, chunk *c, int64_t first)
{
    int64_t left = bk_cols(s->args.logits) - first;
    size_t row = (size_t)c->ld * element(s);
    if (left <= 0)
        return false;
    c->first = first;
    c->classes = left < c->width ? left : c->width;
    c->width = padded(c->classes);
#pragma omp parallel for schedule(dynamic, 4) \
    num_threads(bk_blas_threads()) if ((s->rows + s->columns) * c->width > SMALL)
    for (int64_t i = 0; i < s->rows + s->columns; i++) {
        int64_t j = i - s->rows;
        if (j < 0)
            c->p_sum[i] = fill_row(s, c, student_row(s, i), s->p_norm[i], c->p + (size_t)i * row);
        else
            c->q_sum[j] = fill_row(s, c, teacher_row(s, j), s->q_norm[j], c->q + (size_t)j * row);
    }
    bk_poll();
    return true;
}

/* ---- bands of rows, what threads share ---- */

typedef struct band {
    int64_t block, row, rows; /* rows row .. row+rows-1 of a block */
} band;

typedef struct bands {
    int64_t count;
    band *band;
} bands;

static bands cut_bands(bk_tape *t, const bk_sinkd *s)
{
    enum { BAND = 32 };
    bands b = {.band = BK_NEW(t->scratch, band, s->rows)};
    for (int64_t k = 0; k < s->blocks; k++)
        for (int64_t i = 0; i < s->block[k].rows; i += BAND) {
            int64_t left = s->block[k].rows - i;
            b.band[b.count++] = (band){k, i, left < BAND ? left : BAND};
        }
    return b;
}

static bk_sinkd_tile tile_of(const bk_sinkd *s, const chunk *c, const band *b)
{
    const bk_sinkhorn_block *k = &s->block[b->block];
    size_t row = (size_t)c->ld * element(s);
    return (bk_sinkd_tile){.rows = b->rows,
                           .columns = k->columns,
                           .width = c->width,
                           .p = c->p + (size_t)(k->first + b->row) * row,
                           .q = c->q + (size_t)k->column * row,
                           .ld = c->ld};
}

/* ---- cost ---- */

/* The own part of every group becomes a block of the transport problem.  Returns the arrays s of
 * the blocks, zero so far. */
static double *const *make_blocks(bk_tape *t, bk_sinkd *s)
{
    double **cost = BK_NEW(t->scratch, double *, s->groups + 1);
    s->block = BK_NEW(t->arena, bk_sinkhorn_block, s->groups + 1);
    for (int64_t g = 0; g < s->groups; g++) {
        int64_t lo = s->start[g], hi = s->start[g + 1];
        bk_sinkhorn_block *b = &s->block[s->blocks];
        *b = (bk_sinkhorn_block){.column = lo - s->column, .columns = hi - lo};
        lo = lo > s->first ? lo : s->first;
        hi = hi < s->first + s->rows ? hi : s->first + s->rows;
        if (lo >= hi)
            continue;
        b->first = lo - s->first;
        b->rows = hi - lo;
        b->s = cost[s->blocks++] = BK_ZNEW(t->arena, double, b->rows * b->columns);
    }
    return cost;
}

/* The distances of one chunk, added to a band of C. */
static void add_distances(const bk_sinkd *s, const chunk *c, const band *b, double *cost)
{
    const bk_sinkhorn_block *k = &s->block[b->block];
    bk_sinkd_tile tile = tile_of(s, c, b);
    bk_sinkd_of(s->args.logits->dtype)
        ->distances(&tile, c->p_sum + k->first + b->row, c->q_sum + k->column,
                    cost + b->row * k->columns);
}

/* S = -C/epsilon; what rounding left below 0 is 0, and NaN stays. */
static void scale_cost(const bk_sinkd *s, double *const *cost)
{
    for (int64_t k = 0; k < s->blocks; k++)
        for (int64_t i = 0; i < s->block[k].rows * s->block[k].columns; i++)
            cost[k][i] = -(cost[k][i] < 0.0 ? 0.0 : cost[k][i]) / s->config->epsilon;
}

void bk_sinkd_make_cost(bk_tape *t, bk_sinkd *s)
{
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    find_teacher(t, s);
    normalise(t, s);
    double *const *cost = make_blocks(t, s);
    chunk c = chunk_new(t, s);
    bands b = cut_bands(t, s);
    for (int64_t v = 0; chunk_fill(s, &c, v); v += c.classes) {
#pragma omp parallel for schedule(dynamic, 1) \
    num_threads(bk_blas_threads()) if (s->rows * s->columns * c.width > SMALL)
        for (int64_t i = 0; i < b.count; i++)
            add_distances(s, &c, &b.band[i], cost[b.band[i].block]);
    }
    scale_cost(s, cost);
    s->problem = (bk_sinkhorn){.block = s->block,
                               .blocks = s->blocks,
                               .rows = s->rows,
                               .columns = s->columns,
                               .lane_row = s->lane_row,
                               .lanes = &t->lanes,
                               .reducer = s->shared ? bk_comm_reducer(s->args.comm) : NULL,
                               .scratch = t->scratch};
    bk_arena_release(t->scratch, mark);
}

/* ---- back ---- */

/* ds_iv = w p_iv (h_iv - <p_i,h_i>) / T in two steps: <p_i,h_i> is known behind the last chunk. */
typedef struct back {
    double *factor, *inner; /* [rows] w/T, <p_i,h_i> so far */
    char *h;                /* [rows,ld] of the chunk */
    char *grad;
} back;

static char *grad_row(const bk_sinkd *s, const back *w, int64_t i)
{
    return w->grad + (size_t)(s->place[i] * bk_cols(s->args.logits)) * element(s);
}

static void add_signs(const bk_sinkd *s, const chunk *c, const band *b, const double *adjoint,
                      const back *w)
{
    const bk_sinkhorn_block *k = &s->block[b->block];
    bk_sinkd_tile tile = tile_of(s, c, b);
    size_t row = (size_t)c->ld * element(s);
    int64_t first = k->first + b->row;
    bk_sinkd_of(s->args.logits->dtype)
        ->sign_sum(&tile, adjoint + b->row * k->columns, w->h + (size_t)first * row);
    for (int64_t i = first; i < first + b->rows; i++)
        w->inner[i] +=
            bk_rows_of(s->args.logits->dtype)
                ->product_add(c->classes, c->p + (size_t)i * row, w->h + (size_t)i * row,
                              w->factor[i], grad_row(s, w, i) + (size_t)c->first * element(s));
}

static void subtract_inner(const bk_sinkd *s, const back *w)
{
    int64_t classes = bk_cols(s->args.logits);
    const bk_row_kernels *k = bk_rows_of(s->args.logits->dtype);
#pragma omp parallel for schedule(dynamic, 4) \
    num_threads(bk_blas_threads()) if (s->rows * classes > SMALL)
    for (int64_t i = 0; i < s->rows; i++)
        k->softmax_add(classes, student_row(s, i), s->config->temperature, s->p_norm[i],
                       -w->factor[i] * w->inner[i], grad_row(s, w, i));
}

void bk_sinkd_cost_back(bk_tape *t, const bk_sinkd *s, double *const *adjoint, const double *seed)
{
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    chunk c = chunk_new(t, s);
    bands b = cut_bands(t, s);
    back w = {.factor = BK_NEW(t->scratch, double, s->rows),
              .inner = BK_ZNEW(t->scratch, double, s->rows),
              .h = bk_arena_alloc(t->scratch, (size_t)(s->rows * c.ld) * element(s)),
              .grad = bk_grad(t, s->args.logits)};
    for (int64_t i = 0; i < s->rows; i++)
        w.factor[i] = s->weight * seed[bk_sinkhorn_lane(&s->problem, i)] / s->config->temperature;
    for (int64_t v = 0; chunk_fill(s, &c, v); v += c.classes) {
#pragma omp parallel for schedule(dynamic, 1) \
    num_threads(bk_blas_threads()) if (s->rows * s->columns * c.width > SMALL)
        for (int64_t i = 0; i < b.count; i++)
            add_signs(s, &c, &b.band[i], adjoint[b.band[i].block], &w);
    }
    subtract_inner(s, &w);
    bk_arena_release(t->scratch, mark);
}
