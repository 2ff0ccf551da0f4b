/* The cost of SinKD, C_ij = sum_v |p_iv - q_jv|, and its way back to the logits. */
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

/* Bytes of one padded row of p, q or h. */
static size_t line(const bk_sinkd *s)
{
    return (size_t)s->ld * element(s);
}

/* ---- probabilities ---- */

/* softmax(x_i / T) of rows place[i] (all in order when NULL), padded with zeros. */
static char *padded_softmax(bk_tape *t, const bk_sinkd *s, const char *logits, int64_t rows,
                            const int64_t *place)
{
    int64_t v = bk_cols(s->args.logits);
    const bk_row_kernels *k = bk_rows_of(s->args.logits->dtype);
    char *out = bk_arena_zalloc(t->arena, (size_t)rows * line(s));
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (rows * v > SMALL)
    for (int64_t i = 0; i < rows; i++)
        k->softmax(v, logits + (size_t)((place ? place[i] : i) * v) * element(s),
                   s->config->temperature, out + (size_t)i * line(s));
    return out;
}

/* The valid teacher rows of this rank, packed; those of all ranks when groups straddle. */
static const char *teacher_rows(bk_tape *t, const bk_sinkd *s)
{
    const bk_tensor *x = s->args.teacher;
    size_t row = (size_t)bk_cols(x) * element(s);
    char *own = bk_arena_alloc(t->scratch, (size_t)s->rows * row);
    for (int64_t i = 0; i < s->rows; i++)
        memcpy(own + (size_t)i * row, (const char *)x->data + (size_t)s->place[i] * row, row);
    if (!s->shared)
        return own;
    int size = bk_comm_size(s->args.comm);
    int64_t *bytes = BK_NEW(t->scratch, int64_t, size);
    for (int r = 0; r < size; r++)
        bytes[r] = s->count[r] * (int64_t)row;
    char *all = bk_arena_alloc(t->scratch, (size_t)s->total * row);
    bk_allgather_bytes(s->args.comm, own, s->rows * (int64_t)row, bytes, all);
    return all;
}

/* ---- cost ---- */

/* Columns of the vocabulary from `from` on that are taken at a time. */
static int64_t chunk_width(const bk_sinkd *s, int64_t from)
{
    int64_t chunk = (s->config->chunk + BK_SINKD_PAD - 1) / BK_SINKD_PAD * BK_SINKD_PAD;
    return chunk == 0 || s->ld - from < chunk ? s->ld - from : chunk;
}

/* S = -C/epsilon of one block, a band of rows for each thread. */
static double *block_cost(bk_tape *t, const bk_sinkd *s, const bk_sinkhorn_block *b)
{
    enum { BAND = 16 };
    const bk_sinkd_kernels *k = bk_sinkd_of(s->args.logits->dtype);
    const char *p = s->p + (size_t)b->first * line(s), *q = s->q + (size_t)b->column * line(s);
    double *c = BK_ZNEW(t->arena, double, b->rows * b->columns);
#pragma omp parallel for schedule(static) \
    num_threads(bk_blas_threads()) if (b->rows * b->columns * s->ld > SMALL)
    for (int64_t i = 0; i < b->rows; i += BAND) {
        int64_t rows = b->rows - i < BAND ? b->rows - i : BAND;
        for (int64_t v = 0; v < s->ld; v += chunk_width(s, v))
            k->distances(rows, b->columns, chunk_width(s, v),
                         p + (size_t)i * line(s) + (size_t)v * element(s),
                         q + (size_t)v * element(s), s->ld, c + i * b->columns);
    }
    bk_vector_kernels_f64.scale(b->rows * b->columns, -1.0 / s->config->epsilon, c);
    return c;
}

/* The own part of every group becomes a block of the transport problem. */
static void make_blocks(bk_tape *t, bk_sinkd *s)
{
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
        b->s = block_cost(t, s, b);
        s->blocks++;
    }
}

void bk_sinkd_make_cost(bk_tape *t, bk_sinkd *s)
{
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    s->ld = (bk_cols(s->args.logits) + BK_SINKD_PAD - 1) / BK_SINKD_PAD * BK_SINKD_PAD;
    s->p = padded_softmax(t, s, s->args.logits->data, s->rows, s->place);
    s->q = padded_softmax(t, s, teacher_rows(t, s), s->columns, NULL);
    make_blocks(t, s);
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

static void block_cost_back(const bk_sinkd *s, const bk_sinkhorn_block *b, const double *adjoint,
                            char *h)
{
    enum { BAND = 4 };
    const bk_sinkd_kernels *k = bk_sinkd_of(s->args.logits->dtype);
    const char *q = s->q + (size_t)b->column * line(s);
#pragma omp parallel for schedule(static) \
    num_threads(bk_blas_threads()) if (b->rows * b->columns * s->ld > SMALL)
    for (int64_t i = 0; i < b->rows; i += BAND) {
        size_t place = (size_t)(b->first + i) * line(s);
        k->sign_sum(b->rows - i < BAND ? b->rows - i : BAND, b->columns, s->ld, s->p + place, q,
                    s->ld, adjoint + i * b->columns, h + place);
    }
}

void bk_sinkd_cost_back(bk_tape *t, const bk_sinkd *s, double *const *adjoint, const double *seed)
{
    bk_tensor *x = s->args.logits;
    const bk_row_kernels *k = bk_rows_of(x->dtype);
    size_t row = (size_t)bk_cols(x) * element(s);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    char *grad = bk_grad(t, x), *h = bk_arena_alloc(t->scratch, (size_t)s->rows * line(s));
    for (int64_t i = 0; i < s->blocks; i++)
        block_cost_back(s, &s->block[i], adjoint[i], h);
    for (int64_t i = 0; i < s->rows; i++)
        k->softmax_back(bk_cols(x), s->p + (size_t)i * line(s), h + (size_t)i * line(s),
                        s->weight * seed[bk_sinkhorn_lane(&s->problem, i)], s->config->temperature,
                        grad + (size_t)s->place[i] * row);
    bk_arena_release(t->scratch, mark);
}
