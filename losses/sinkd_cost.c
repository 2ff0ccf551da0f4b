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

/* Own row i of a side. */
static const char *row_of(const bk_sinkd *s, const bk_sinkd_side *side, int64_t i)
{
    return side->logits + (size_t)(s->place[i] * bk_cols(s->args.logits)) * element(s);
}

bk_sinkd_side *bk_sinkd_side_new(bk_tape *t, const bk_sinkd *s, const bk_tensor *logits)
{
    int64_t classes = bk_cols(logits);
    const bk_row_kernels *k = bk_rows_of(logits->dtype);
    bk_sinkd_side *side = BK_NEW(t->arena, bk_sinkd_side, 1);
    *side = (bk_sinkd_side){.logits = logits->data, .own = BK_NEW(t->arena, bk_row_norm, s->rows)};
#pragma omp parallel for schedule(dynamic, 4) \
    num_threads(bk_blas_threads()) if (s->rows * classes > SMALL)
    for (int64_t i = 0; i < s->rows; i++)
        side->own[i] = k->normalise(classes, row_of(s, side, i), s->config->temperature);
    return side;
}

size_t bk_sinkd_kept = 256 << 20;

/* Columns of the rank that holds most. */
static int64_t most_columns(const bk_sinkd *s)
{
    int64_t most = 0;
    for (int r = 0; r < bk_comm_size(s->args.comm); r++) {
        int64_t first, last;
        bk_sinkd_span(s, r, &first, &last);
        most = last - first > most ? last - first : most;
    }
    return most;
}

/* All ranks keep the logits, or none: the others would wait for them. */
void bk_sinkd_side_hold(bk_tape *t, const bk_sinkd *s, bk_sinkd_side *side)
{
    size_t row = (size_t)bk_cols(s->args.logits) * element(s);
    side->held = side->own;
    if (!s->shared)
        return;
    side->held = BK_NEW(t->arena, bk_row_norm, s->columns);
    bk_sinkd_exchange(t, s, sizeof *side->own, side->own, side->held);
    bool few = (size_t)most_columns(s) * row <= bk_sinkd_kept;
    side->kept = few ? bk_arena_alloc(t->arena, (size_t)s->columns * row) : NULL;
}

/* ---- chunks ---- */

/* Probabilities of the classes first .. first+classes-1, padded with zeros to `width`.  Rows lie
 * ld elements apart, so that they do not all fall on the same lines of the cache. */
typedef struct chunk {
    int64_t first, classes, width, ld;
    char *own, *held;      /* shared: logits of these classes, [rows,classes], [columns,classes] */
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
    if (s->shared)
        c.own = bk_arena_alloc(t->scratch, (size_t)(s->rows * c.width) * element(s));
    if (s->shared && !s->right->kept)
        c.held = bk_arena_alloc(t->scratch, (size_t)(s->columns * c.width) * element(s));
    return c;
}

/* Collective if s->shared.  The logits of the right side's rows in the chunk. */
static void chunk_hold(bk_tape *t, const bk_sinkd *s, chunk *c)
{
    bk_sinkd_side *right = s->right;
    size_t bytes = (size_t)c->classes * element(s);
    if (right->kept)
        c->held = right->kept + (size_t)(c->first * s->columns) * element(s);
    if (!s->shared || c->first < right->known)
        return;
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    for (int64_t i = 0; i < s->rows; i++)
        memcpy(c->own + (size_t)i * bytes, row_of(s, right, i) + (size_t)c->first * element(s),
               bytes);
    bk_sinkd_exchange(t, s, bytes, c->own, c->held);
    right->known = right->kept ? c->first + c->classes : 0;
    bk_arena_release(t->scratch, mark);
}

/* x: the classes of the chunk out of one row. */
static double fill_row(const bk_sinkd *s, const chunk *c, const char *x, bk_row_norm norm,
                       char *probabilities)
{
    size_t used = (size_t)c->classes * element(s);
    memset(probabilities + used, 0, (size_t)c->width * element(s) - used);
    return bk_rows_of(s->args.logits->dtype)
        ->softmax(c->classes, x, s->config->temperature, norm, probabilities);
}

static void fill_left(const bk_sinkd *s, chunk *c, int64_t i)
{
    c->p_sum[i] = fill_row(s, c, row_of(s, s->left, i) + (size_t)c->first * element(s),
                           s->left->own[i], c->p + (size_t)(i * c->ld) * element(s));
}

static void fill_right(const bk_sinkd *s, chunk *c, int64_t j)
{
    const char *x =
        s->shared ? c->held + (size_t)(j * c->classes) * element(s)
                  : row_of(s, s->right, j + s->column - s->first) + (size_t)c->first * element(s);
    c->q_sum[j] = fill_row(s, c, x, s->right->held[j], c->q + (size_t)(j * c->ld) * element(s));
}

/* Moves to the chunk that begins at class `first`; false behind the last one.  Collective if
 * s->shared. */
static bool chunk_fill(bk_tape *t, const bk_sinkd *s, chunk *c, int64_t first)
{
    int64_t left = bk_cols(s->args.logits) - first;
    if (left <= 0)
        return false;
    c->first = first;
    c->classes = left < c->width ? left : c->width;
    c->width = padded(c->classes);
    chunk_hold(t, s, c);
#pragma omp parallel for schedule(dynamic, 4) \
    num_threads(bk_blas_threads()) if ((s->rows + s->columns) * c->width > SMALL)
    for (int64_t i = 0; i < s->rows + s->columns; i++)
        if (i < s->rows)
            fill_left(s, c, i);
        else
            fill_right(s, c, i - s->rows);
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

double *const *bk_sinkd_make_blocks(bk_tape *t, bk_sinkd *s)
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
    s->problem = (bk_sinkhorn){.block = s->block,
                               .blocks = s->blocks,
                               .rows = s->rows,
                               .columns = s->columns,
                               .lane_row = s->lane_row,
                               .lanes = &t->lanes,
                               .reducer = s->reducer,
                               .scratch = t->scratch};
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

void bk_sinkd_scale_cost(const bk_sinkd *s, double *const *cost)
{
    for (int64_t k = 0; k < s->blocks; k++)
        for (int64_t i = 0; i < s->block[k].rows * s->block[k].columns; i++)
            cost[k][i] = -(cost[k][i] < 0.0 ? 0.0 : cost[k][i]) / s->config->epsilon;
}

void bk_sinkd_make_cost(bk_tape *t, bk_sinkd *s)
{
    double *const *cost = bk_sinkd_make_blocks(t, s);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    chunk c = chunk_new(t, s);
    bands b = cut_bands(t, s);
    for (int64_t v = 0; chunk_fill(t, s, &c, v); v += c.classes) {
#pragma omp parallel for schedule(dynamic, 1) \
    num_threads(bk_blas_threads()) if (s->rows * s->columns * c.width > SMALL)
        for (int64_t i = 0; i < b.count; i++)
            add_distances(s, &c, &b.band[i], cost[b.band[i].block]);
    }
    bk_sinkd_scale_cost(s, cost);
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
        k->softmax_add(classes, row_of(s, s->left, i), s->config->temperature, s->left->own[i],
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
    for (int64_t v = 0; chunk_fill(t, s, &c, v); v += c.classes) {
#pragma omp parallel for schedule(dynamic, 1) \
    num_threads(bk_blas_threads()) if (s->rows * s->columns * c.width > SMALL)
        for (int64_t i = 0; i < b.count; i++)
            add_signs(s, &c, &b.band[i], adjoint[b.band[i].block], &w);
    }
    subtract_inner(s, &w);
    bk_arena_release(t->scratch, mark);
}
