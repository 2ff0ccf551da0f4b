/* losses/sinkd.c - batch-wise Sinkhorn distance between student and teacher ("Sinkhorn Distance
 * Minimization for Knowledge Distillation", LREC-COLING 2024, arXiv 2402.17110).  For one group of
 * B rows: C_ij = sum_v |p_iv - q_jv|;  X = exp(-C/epsilon);  N times: rows, then columns
 * normalised;  L = sum_ij P_ij C_ij. Student rows stay on their rank, teacher rows are gathered;
 * one sum of B numbers (rule F3) an iteration.
 *
 * Rows are numbered over all ranks in rank order, masked rows left out.  Potentials and sums are
 * double. */
#include "core/attributes.h"
#include "core/blas.h"
#include "core/transport/sinkhorn.h"
#include "core/vector.h"
#include "dist/collective.h"
#include "losses/row.h"
#include "losses/sinkd_kernel.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { UNROLLED, ENVELOPE };

typedef struct sinkd_config {
    double temperature, epsilon, tolerance;
    int64_t iterations, chunk;
    int gradient, reduction;
    const char *group;
} sinkd_config;

static const bk_option options[] = {
    BK_OPTION_F64_ABOVE(sinkd_config, temperature, 2.0, 0.0, 1e6, "T: softmax of logits / T"),
    BK_OPTION_F64(sinkd_config, epsilon, 0.1, 1e-3, 1e3, "entropic regularisation"),
    BK_OPTION_I64(sinkd_config, iterations, 20, 1, 10000, "normalisations of rows and columns"),
    BK_OPTION_F64(sinkd_config, tolerance, 0.0, 0.0, 1.0,
                  "> 0: stop when the row sums are this near to 1"),
    BK_OPTION_CHOICE(sinkd_config, gradient, 0, "unrolled|envelope",
                     "unrolled: of the printed loss; envelope: plan held"),
    BK_OPTION_CHOICE(sinkd_config, reduction, 0, "mean|sum",
                     "mean: divided by the global row count"),
    BK_OPTION_TEXT(sinkd_config, group, "global",
                   "rows matched together: global, lane, sequence, or a size"),
    BK_OPTION_I64(sinkd_config, chunk, 4096, 0, 1 << 30, "vocabulary columns at a time; 0 = all"),
    BK_OPTION_END,
};

static bk_status check(const void *config)
{
    const sinkd_config *c = config;
    int64_t size;
    if (strcmp(c->group, "global") == 0 || strcmp(c->group, "lane") == 0 ||
        strcmp(c->group, "sequence") == 0)
        return BK_OK;
    if (bk_parse_i64(c->group, &size) && size >= 1)
        return BK_OK;
    return bk_fail(BK_USAGE,
                   "group=%s of sinkd is not known: use global, lane, sequence or a number of rows",
                   c->group);
}

/* ---- the state of one call, kept for backward ---- */

typedef struct state {
    bk_loss_args args;
    const sinkd_config *config;
    int64_t *place;        /* [rows] index of the own valid row in logits */
    int64_t rows, first;   /* own valid rows, global number of the first */
    int64_t total;         /* over all ranks */
    int64_t ld;            /* padded V */
    void *p, *q;           /* [rows,ld], [columns,ld] */
    int64_t base, columns; /* columns held: global base .. base+columns-1 */
    bk_sinkhorn_block *block;
    int64_t blocks;
    bk_sinkhorn problem;
    int64_t *lane_row; /* [m+1] in own valid rows */
    int64_t iterations;
    double **f, **g; /* f[1..N] of rows, g[0..N] of columns */
    double weight;
} state;

/* C = -epsilon S, entry by entry. */
static double cost_of(const state *s, double scaled)
{
    return -s->config->epsilon * scaled;
}

/* ---- rows ---- */

static void number_rows(bk_tape *t, state *s)
{
    int64_t rows = bk_rows(s->args.logits), l = 0;
    s->place = BK_NEW(t->arena, int64_t, rows);
    s->lane_row = BK_NEW(t->arena, int64_t, t->lanes.count + 1);
    for (l = 0; l < t->lanes.count; l++) {
        s->lane_row[l] = s->rows;
        for (int64_t i = bk_lane_row(&t->lanes, rows, l); i < bk_lane_row(&t->lanes, rows, l + 1);
             i++)
            if (bk_row_valid(&s->args, i))
                s->place[s->rows++] = i;
    }
    s->lane_row[t->lanes.count] = s->rows;
}

static int64_t *gather_row_counts(bk_tape *t, state *s)
{
    int size = bk_comm_size(s->args.comm), rank = bk_comm_rank(s->args.comm);
    int64_t *count = BK_NEW(t->arena, int64_t, size);
    bk_gather_counts(s->args.comm, s->rows, count);
    for (int r = 0; r < size; r++) {
        s->first += r < rank ? count[r] : 0;
        s->total += count[r];
    }
    return count;
}

/* ---- groups: starts[0..n] in global row numbers ---- */

/* An identity for each row of all ranks: its lane or its sequence. */
static int32_t *gather_identities(bk_tape *t, const state *s, const int64_t *count, bool lane)
{
    int size = bk_comm_size(s->args.comm);
    int32_t *mine = BK_NEW(t->scratch, int32_t, s->rows),
            *all = BK_NEW(t->arena, int32_t, s->total);
    int64_t *bytes = BK_NEW(t->scratch, int64_t, size);
    for (int64_t i = 0; i < s->rows; i++) {
        int64_t l = 0;
        while (l + 1 < t->lanes.count && i >= s->lane_row[l + 1])
            l++;
        mine[i] = lane               ? (int32_t)(t->lanes.first + l)
                  : s->args.sequence ? s->args.sequence[s->place[i]]
                                     : (int32_t)(s->first + i);
    }
    for (int r = 0; r < size; r++)
        bytes[r] = count[r] * (int64_t)sizeof *mine;
    bk_allgather_bytes(s->args.comm, mine, s->rows * (int64_t)sizeof *mine, bytes, all);
    return all;
}

static int64_t *group_starts(bk_tape *t, const state *s, const int64_t *count, int64_t *groups)
{
    int64_t *start = BK_NEW(t->arena, int64_t, s->total + 2), size = s->total;
    *groups = 0;
    start[0] = 0;
    if (s->total == 0)
        return start;
    if (strcmp(s->config->group, "lane") == 0 || strcmp(s->config->group, "sequence") == 0) {
        const int32_t *id = gather_identities(t, s, count, s->config->group[0] == 'l');
        for (int64_t i = 1; i <= s->total; i++)
            if (i == s->total || id[i] != id[i - 1])
                start[++*groups] = i;
        return start;
    }
    if (strcmp(s->config->group, "global") != 0)
        bk_parse_i64(s->config->group, &size);
    *groups = (s->total + size - 1) / size;
    for (int64_t i = 1; i <= *groups; i++)
        start[i] = i * s->total / *groups;
    return start;
}

/* Some group has rows on two ranks. */
static bool straddles(const int64_t *count, int ranks, const int64_t *start, int64_t groups)
{
    int64_t border = 0, g = 0;
    for (int r = 0; r + 1 < ranks; r++) {
        border += count[r];
        while (g < groups && start[g] < border)
            g++;
        if (border > 0 && g < groups + 1 && start[g] != border && border < start[groups])
            return true;
    }
    return false;
}

/* ---- probabilities ---- */

static void *padded_softmax(bk_tape *t, const state *s, const char *logits, int64_t rows,
                            const int64_t *place)
{
    bk_dtype dtype = s->args.logits->dtype;
    int64_t v = bk_cols(s->args.logits);
    size_t size = bk_dtype_size(dtype);
    char *out = bk_arena_zalloc(t->arena, (size_t)(rows * s->ld) * size);
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (rows * v > 65536)
    for (int64_t i = 0; i < rows; i++)
        bk_rows_of(dtype)->softmax(v, logits + (size_t)((place ? place[i] : i) * v) * size,
                                   s->config->temperature, out + (size_t)(i * s->ld) * size);
    return out;
}

/* The valid teacher rows of this rank, packed; of all ranks when groups straddle. */
static void *teacher_logits(bk_tape *t, state *s, const int64_t *count, bool all)
{
    const bk_tensor *x = s->args.teacher;
    size_t row = (size_t)bk_cols(x) * bk_dtype_size(x->dtype);
    char *mine = bk_arena_alloc(t->scratch, (size_t)s->rows * row);
    for (int64_t i = 0; i < s->rows; i++)
        memcpy(mine + (size_t)i * row, (const char *)x->data + (size_t)s->place[i] * row, row);
    s->base = all ? 0 : s->first;
    s->columns = all ? s->total : s->rows;
    if (!all)
        return mine;
    int size = bk_comm_size(s->args.comm);
    int64_t *bytes = BK_NEW(t->scratch, int64_t, size);
    for (int r = 0; r < size; r++)
        bytes[r] = count[r] * (int64_t)row;
    char *gathered = bk_arena_alloc(t->scratch, (size_t)s->total * row);
    bk_allgather_bytes(s->args.comm, mine, s->rows * (int64_t)row, bytes, gathered);
    return gathered;
}

/* ---- cost ---- */

static int64_t chunk_width(const state *s, int64_t from)
{
    int64_t chunk = s->config->chunk > 0
                        ? (s->config->chunk + BK_SINKD_PAD - 1) / BK_SINKD_PAD * BK_SINKD_PAD
                        : s->ld;
    return s->ld - from < chunk ? s->ld - from : chunk;
}

static const void *at(const void *data, bk_dtype dtype, int64_t element)
{
    return (const char *)data + (size_t)element * bk_dtype_size(dtype);
}

/* -C/epsilon of one block, a band of rows for each thread. */
static double *block_cost(bk_tape *t, const state *s, const bk_sinkhorn_block *b)
{
    enum { BAND = 16 };
    bk_dtype dtype = s->args.logits->dtype;
    double *c = BK_ZNEW(t->arena, double, b->rows * b->columns);
    const void *q = at(s->q, dtype, b->column * s->ld);
#pragma omp parallel for schedule(static) \
    num_threads(bk_blas_threads()) if (b->rows * b->columns * s->ld > 65536)
    for (int64_t i = 0; i < b->rows; i += BAND) {
        int64_t rows = b->rows - i < BAND ? b->rows - i : BAND;
        for (int64_t v = 0; v < s->ld; v += chunk_width(s, v))
            bk_sinkd_of(dtype)->distances(rows, b->columns, chunk_width(s, v),
                                          at(s->p, dtype, (b->first + i) * s->ld + v),
                                          at(q, dtype, v), s->ld, c + i * b->columns);
    }
    bk_vector_kernels_f64.scale(b->rows * b->columns, -1.0 / s->config->epsilon, c);
    return c;
}

/* The own part of every group becomes a block of the transport problem. */
static void make_blocks(bk_tape *t, state *s, const int64_t *start, int64_t groups)
{
    s->block = BK_NEW(t->arena, bk_sinkhorn_block, groups + 1);
    for (int64_t g = 0; g < groups; g++) {
        int64_t lo = start[g] > s->first ? start[g] : s->first;
        int64_t hi = start[g + 1] < s->first + s->rows ? start[g + 1] : s->first + s->rows;
        if (lo >= hi)
            continue;
        bk_sinkhorn_block *b = &s->block[s->blocks++];
        *b = (bk_sinkhorn_block){.first = lo - s->first,
                                 .rows = hi - lo,
                                 .column = start[g] - s->base,
                                 .columns = start[g + 1] - start[g]};
        b->s = block_cost(t, s, b);
    }
}

/* ---- forward ---- */

static double *vector_of(bk_tape *t, int64_t n)
{
    return BK_ZNEW(t->arena, double, n);
}

/* max_i |sum_j P_ij - 1| over all ranks, P = exp(S + f + g). */
static double row_violation(bk_tape *t, const state *s, const double *f, const double *g)
{
    double worst = 0.0, *x = BK_NEW(t->scratch, double, s->columns);
    for (int64_t k = 0; k < s->blocks; k++) {
        const bk_sinkhorn_block *b = &s->block[k];
        for (int64_t i = 0; i < b->rows; i++) {
            for (int64_t j = 0; j < b->columns; j++)
                x[j] = b->s[i * b->columns + j] + g[b->column + j];
            worst =
                fmax(worst,
                     fabs(bk_vector_kernels_f64.exp_sum(b->columns, x, -f[b->first + i], x) - 1.0));
        }
    }
    bk_reduce_max(s->problem.reducer, 1, &worst);
    return worst;
}

static void iterate(bk_tape *t, state *s)
{
    int64_t most = s->config->iterations;
    s->f = BK_NEW(t->arena, double *, most + 1);
    s->g = BK_NEW(t->arena, double *, most + 1);
    s->g[0] = vector_of(t, s->columns);
    for (int64_t n = 1; n <= most; n++) {
        double *f = s->f[n] = vector_of(t, s->rows), *g = s->g[n] = vector_of(t, s->columns);
        bool underflow = false;
        bk_sinkhorn_sweep(&s->problem, s->g[n - 1], f, g, NULL);
        for (int64_t j = 0; j < s->columns; j++)
            underflow = underflow || g[j] < 1e-280;
        if (underflow) {
            bk_sinkhorn_shifted_columns(&s->problem, f, g);
        } else {
            bk_log_f64(s->columns, g, g);
            for (int64_t j = 0; j < s->columns; j++)
                g[j] = s->g[n - 1][j] - g[j];
        }
        s->iterations = n;
        if (s->config->tolerance > 0 && row_violation(t, s, f, g) <= s->config->tolerance)
            break;
    }
}

/* x = P of row i of a block, from the potentials of iteration n (rows) and k (columns). */
static void plan_row(const state *s, const bk_sinkhorn_block *b, int64_t i, int64_t n, int64_t k,
                     double *x)
{
    const double *row = b->s + i * b->columns, *g = s->g[k] + b->column;
    double f = s->f[n][b->first + i];
    for (int64_t j = 0; j < b->columns; j++)
        x[j] = row[j] + f + g[j];
    bk_exp_f64(b->columns, x, x);
}

/* Loss by lane: sum_ij P_ij C_ij in row order; entropic value for the log. */
static void value_by_lane(bk_tape *t, const state *s, double *value, double *entropic)
{
    double *x = BK_NEW(t->scratch, double, s->columns);
    memset(value, 0, (size_t)t->lanes.count * sizeof *value);
    *entropic = 0.0;
    for (int64_t k = 0; k < s->blocks; k++) {
        const bk_sinkhorn_block *b = &s->block[k];
        for (int64_t i = 0; i < b->rows; i++) {
            plan_row(s, b, i, s->iterations, s->iterations, x);
            double sum = 0.0;
            for (int64_t j = 0; j < b->columns; j++) {
                sum += x[j] * cost_of(s, b->s[i * b->columns + j]);
                *entropic += x[j] > 0 ? s->config->epsilon * x[j] * (log(x[j]) - 1.0) : 0.0;
            }
            value[bk_sinkhorn_lane(&s->problem, b->first + i)] += s->weight * sum;
            *entropic += sum;
        }
    }
}

static void report(bk_tape *t, const state *s, int64_t groups, double entropic)
{
    bk_attributes *a = s->args.attributes;
    if (!a)
        return;
    double *local = BK_ZNEW(t->scratch, double, t->lanes.count + 1), sum = 0.0;
    local[0] = entropic;
    bk_reduce_vector(s->problem.reducer, &t->lanes, 1, local, &sum, t->scratch);
    bk_attribute_set_integer(a, "rows", s->total);
    bk_attribute_set_integer(a, "groups", groups);
    bk_attribute_set_integer(a, "iterations", s->iterations);
    bk_attribute_set(
        a, "row_violation",
        s->iterations > 0 ? row_violation(t, s, s->f[s->iterations], s->g[s->iterations]) : 0.0);
    bk_attribute_set(a, "entropic_value", sum);
}

static void write_plan(bk_tape *t, const state *s)
{
    bk_tensor *plan = bk_tape_constant(t, BK_F64, BK_SHAPE(s->rows, s->total));
    bk_tensor *cost = bk_tape_constant(t, BK_F64, BK_SHAPE(s->rows, s->total));
    BK_ASSERT(s->blocks <= 1 && (s->blocks == 0 || s->block[0].columns == s->total),
              "a plan needs one global group");
    for (int64_t i = 0; i < s->rows; i++) {
        plan_row(s, &s->block[0], i, s->iterations, s->iterations,
                 (double *)plan->data + i * s->total);
        for (int64_t j = 0; j < s->total; j++)
            ((double *)cost->data)[i * s->total + j] = cost_of(s, s->block[0].s[i * s->total + j]);
    }
    *s->args.plan = plan;
    *s->args.cost = cost;
}

static void shape(bk_tape *t, bk_node *n)
{
    const bk_loss_args *a = n->attributes;
    BK_ASSERT(a->teacher && bk_same_shape(n->in[0], a->teacher),
              "student and teacher differ in shape");
    n->out[0]->dtype = BK_F64;
    n->out[0]->dims = 1;
    n->out[0]->shape[0] = t->lanes.count;
}

static void forward(bk_tape *t, bk_node *n)
{
    state *s = n->saved = BK_ZNEW(t->arena, state, 1);
    s->args = *(const bk_loss_args *)n->attributes;
    s->config = s->args.config;
    s->ld = (bk_cols(n->in[0]) + BK_SINKD_PAD - 1) / BK_SINKD_PAD * BK_SINKD_PAD;
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    number_rows(t, s);
    const int64_t *count = gather_row_counts(t, s);
    int64_t groups;
    const int64_t *start = group_starts(t, s, count, &groups);
    bool shared = straddles(count, bk_comm_size(s->args.comm), start, groups);
    s->weight = s->config->reduction == 1 ? 1.0 : s->total > 0 ? 1.0 / (double)s->total : 0.0;
    const void *teacher = teacher_logits(t, s, count, shared);
    s->p = padded_softmax(t, s, n->in[0]->data, s->rows, s->place);
    s->q = padded_softmax(t, s, teacher, s->columns, NULL);
    make_blocks(t, s, start, groups);
    s->problem = (bk_sinkhorn){.block = s->block,
                               .blocks = s->blocks,
                               .rows = s->rows,
                               .columns = s->columns,
                               .lane_row = s->lane_row,
                               .lanes = &t->lanes,
                               .reducer = shared ? bk_comm_reducer(s->args.comm) : NULL,
                               .scratch = t->scratch};
    double entropic = 0.0;
    if (s->total > 0)
        iterate(t, s);
    value_by_lane(t, s, n->out[0]->data, &entropic);
    report(t, s, groups, entropic);
    if (s->args.plan)
        write_plan(t, s);
    bk_arena_release(t->scratch, mark);
}

/* ---- backward ---- */

/* out_j = sum_i P(n,k)_ij C_ij over all ranks (rule F3). */
static void cost_columns(bk_tape *t, const state *s, double *out)
{
    double *local = BK_ZNEW(t->scratch, double, t->lanes.count * s->columns),
           *x = BK_NEW(t->scratch, double, s->columns);
    for (int64_t k = 0; k < s->blocks; k++) {
        const bk_sinkhorn_block *b = &s->block[k];
        for (int64_t i = 0; i < b->rows; i++) {
            double *to =
                local + bk_sinkhorn_lane(&s->problem, b->first + i) * s->columns + b->column;
            plan_row(s, b, i, s->iterations, s->iterations, x);
            for (int64_t j = 0; j < b->columns; j++)
                to[j] += x[j] * cost_of(s, b->s[i * b->columns + j]);
        }
    }
    bk_sinkhorn_sum(&s->problem, s->columns, local, out);
}

/* G = P (1 - C/epsilon) (unrolled) or P (envelope), one array a block. */
static double **start_adjoint(bk_tape *t, const state *s)
{
    double **adjoint = BK_NEW(t->scratch, double *, s->blocks + 1);
    for (int64_t k = 0; k < s->blocks; k++) {
        const bk_sinkhorn_block *b = &s->block[k];
        adjoint[k] = BK_NEW(t->scratch, double, b->rows * b->columns);
        for (int64_t i = 0; i < b->rows; i++) {
            double *x = adjoint[k] + i * b->columns;
            plan_row(s, b, i, s->iterations, s->iterations, x);
            for (int64_t j = 0; s->config->gradient == UNROLLED && j < b->columns; j++)
                x[j] *= 1.0 + b->s[i * b->columns + j];
        }
    }
    return adjoint;
}

/* One iteration of the reverse sweep on one row; returns through `to` its share of the new column
 * adjoint. */
static void reverse_row(const state *s, const bk_sinkhorn_block *b, int64_t i, int64_t n,
                        const double *gb, double *fb, double *x, double *adjoint, double *to)
{
    double scale = 1.0 / s->config->epsilon, sum = 0.0;
    plan_row(s, b, i, n, n, x); /* columns sum to 1 */
    for (int64_t j = 0; j < b->columns; j++) {
        adjoint[j] += x[j] * gb[b->column + j] * scale;
        sum += x[j] * gb[b->column + j];
    }
    double f = fb[b->first + i] - sum;
    plan_row(s, b, i, n, n - 1, x); /* rows sum to 1 */
    for (int64_t j = 0; j < b->columns; j++) {
        adjoint[j] += x[j] * f * scale;
        to[b->column + j] -= x[j] * f;
    }
    fb[b->first + i] = 0.0;
}

static void row_costs(const state *s, double *fb, double *x)
{
    for (int64_t k = 0; k < s->blocks; k++) {
        const bk_sinkhorn_block *b = &s->block[k];
        for (int64_t i = 0; i < b->rows; i++) {
            plan_row(s, b, i, s->iterations, s->iterations, x);
            fb[b->first + i] = 0.0;
            for (int64_t j = 0; j < b->columns; j++)
                fb[b->first + i] += x[j] * cost_of(s, b->s[i * b->columns + j]);
        }
    }
}

static void unroll(bk_tape *t, const state *s, double **adjoint)
{
    double *gb = BK_NEW(t->scratch, double, s->columns), *fb = BK_NEW(t->scratch, double, s->rows);
    double *local = BK_NEW(t->scratch, double, t->lanes.count * s->columns),
           *x = BK_NEW(t->scratch, double, s->columns);
    cost_columns(t, s, gb);
    row_costs(s, fb, x);
    for (int64_t n = s->iterations; n >= 1; n--) {
        memset(local, 0, (size_t)(t->lanes.count * s->columns) * sizeof *local);
        for (int64_t k = 0; k < s->blocks; k++) {
            const bk_sinkhorn_block *b = &s->block[k];
            for (int64_t i = 0; i < b->rows; i++)
                reverse_row(s, b, i, n, gb, fb, x, adjoint[k] + i * b->columns,
                            local + bk_sinkhorn_lane(&s->problem, b->first + i) * s->columns);
        }
        if (n > 1)
            bk_sinkhorn_sum(&s->problem, s->columns, local, gb);
    }
}

/* From G = dL/dC to the logits: h by signs, then the softmax. */
static void to_logits(bk_tape *t, const state *s, double **adjoint, const double *seed)
{
    bk_tensor *x = s->args.logits;
    bk_dtype dtype = x->dtype;
    char *grad = bk_grad(t, x),
         *h = bk_arena_alloc(t->scratch, (size_t)(s->rows * s->ld) * bk_dtype_size(dtype));
    for (int64_t k = 0; k < s->blocks; k++) {
        const bk_sinkhorn_block *b = &s->block[k];
#pragma omp parallel for schedule(static) \
    num_threads(bk_blas_threads()) if (b->rows * b->columns * s->ld > 65536)
        for (int64_t i = 0; i < b->rows; i += 4)
            bk_sinkd_of(dtype)->sign_sum(b->rows - i < 4 ? b->rows - i : 4, b->columns, s->ld,
                                         at(s->p, dtype, (b->first + i) * s->ld),
                                         at(s->q, dtype, b->column * s->ld), s->ld,
                                         adjoint[k] + i * b->columns,
                                         (void *)(uintptr_t)at(h, dtype, (b->first + i) * s->ld));
    }
    for (int64_t i = 0; i < s->rows; i++)
        bk_rows_of(dtype)->softmax_back(
            bk_cols(x), at(s->p, dtype, i * s->ld), at(h, dtype, i * s->ld),
            s->weight * seed[bk_sinkhorn_lane(&s->problem, i)], s->config->temperature,
            (void *)(uintptr_t)at(grad, dtype, s->place[i] * bk_cols(x)));
}

static void backward(bk_tape *t, bk_node *n)
{
    const state *s = n->saved;
    if (s->total == 0)
        return;
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    double **adjoint = start_adjoint(t, s);
    if (s->config->gradient == UNROLLED)
        unroll(t, s, adjoint);
    to_logits(t, s, adjoint, n->out[0]->grad);
    bk_arena_release(t->scratch, mark);
}

static const bk_op sinkd = {
    .name = "sinkd", .shape = shape, .forward = forward, .backward = backward, .collective = true};

static bk_tensor *apply(bk_tape *t, const bk_loss_args *args)
{
    return bk_apply(t, &sinkd, 1, &args->logits, 1, args, sizeof *args)->out[0];
}

const bk_loss_kind bk_loss_sinkd = {
    .name = "sinkd",
    .summary = "batch-wise Sinkhorn distance between student and teacher rows",
    .source = "arXiv 2402.17110",
    .options = options,
    .config_size = sizeof(sinkd_config),
    .flags = BK_LOSS_TEACHER | BK_LOSS_COLLECTIVE | BK_LOSS_GROUPS,
    .check = check,
    .apply = apply,
};
