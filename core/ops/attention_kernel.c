/* A tile of scores is kept transposed, s[key,query]: a vector holds queries, so that maxima, sums
 * and exponentials need nothing across a vector, and a hidden key is a row. */
#include "core/ops/attention_kernel.h"

#include "core/vector_kernel.h"

#ifdef BK_AVX512
enum { BYTES = 64, WIDE = 4 }; /* WIDE: vectors of the widest strip of a product */
#else
enum { BYTES = 32, WIDE = 2 };
#endif
enum { LANES = BYTES / sizeof(real) };
typedef real vector __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

static int64_t padded(int64_t n)
{
    return (n + LANES - 1) / LANES * LANES;
}

static int64_t shorter(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- the one small product ---- */

typedef struct matrix {
    const real *data;
    int64_t row, col; /* strides */
} matrix;

/* C[m,n] (+)= A[m,k] B[k,n], n whole vectors; an element is one chain of sums over k, wherever it
 * stands. */
typedef struct product {
    int64_t m, n, k;
    matrix a;
    const real *b;
    int64_t ldb;
    real *c;
    int64_t ldc;
    bool add;
} product;

/* rows x cols vectors of C, all in registers. */
INLINE void multiply_block(int rows, int cols, const product *p)
{
    vector sum[16][WIDE];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < cols; j++) sum[i][j] =
        p->add ? *(const vector *)(p->c + i * p->ldc + j * LANES) : (vector){0};
    const real *a = p->a.data, *b = p->b;
    for (int64_t l = 0; l < p->k; l++, a += p->a.col, b += p->ldb) {
        vector right[WIDE];
        UNROLL for (int j = 0; j < cols; j++) right[j] = *(const vector *)(b + j * LANES);
        UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < cols; j++) sum[i][j] +=
            a[i * p->a.row] * right[j];
    }
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < cols; j++) *
        (vector *)(p->c + i * p->ldc + j * LANES) = sum[i][j];
}

INLINE product rows_from(const product *p, int64_t i)
{
    product q = *p;
    q.a.data += i * p->a.row;
    q.c += i * p->ldc;
    return q;
}

INLINE void multiply_strip(int rows, int cols, const product *p)
{
    int64_t i = 0;
    for (; i + rows <= p->m; i += rows) {
        product q = rows_from(p, i);
        multiply_block(rows, cols, &q);
    }
    for (; i + 4 <= p->m; i += 4) {
        product q = rows_from(p, i);
        multiply_block(4, cols, &q);
    }
    for (; i < p->m; i++) {
        product q = rows_from(p, i);
        multiply_block(1, cols, &q);
    }
}

/* Strips of the widest block that fits: 24 or, on 16 registers, 12 sums at a time. */
static void multiply(product p)
{
    for (int64_t left = p.n / LANES, cols; left > 0; left -= cols) {
        cols = left >= WIDE ? WIDE : left >= 2 ? 2 : 1;
        if (cols == WIDE)
            multiply_strip(6, WIDE, &p);
        else if (cols == 2)
            multiply_strip(12, 2, &p);
        else
            multiply_strip(WIDE == 4 ? 16 : 12, 1, &p);
        p.b += cols * LANES;
        p.c += cols * LANES;
    }
}

/* ---- work space ---- */

/* Rows are padded to `wide`, tiles to `tile` elements. */
typedef struct work {
    int64_t tile, wide;
    real *k, *v, *dk, *dv;                  /* [keys,wide] */
    real *q, *dout, *out;                   /* [block,wide]; out: dq in backward */
    real *qt, *doutt, *outt;                /* [width,tile]; qt: times the scale */
    real *s, *dp;                           /* [block,tile]: key, query */
    real *keep;                             /* [block,tile]: dropout's factors */
    real *top, *base, *sum, *part, *factor; /* [tile]: of the queries */
    uint32_t *word;                         /* [block,tile]: query, key */
} work;

static size_t work_size(int64_t keys, int64_t width, int64_t block)
{
    int64_t tile = padded(block), wide = padded(width);
    return (size_t)(4 * keys * wide + 3 * block * wide + 3 * width * tile + 3 * block * tile +
                    5 * tile) *
               sizeof(real) +
           (size_t)(block * tile + BK_ATTENTION_SPARE) * sizeof(uint32_t);
}

static real *take(real **at, int64_t count)
{
    real *p = *at;
    *at += count;
    return p;
}

static work layout(const bk_attention_head *h)
{
    real *at = h->work;
    int64_t block = h->block, tile = padded(block), wide = padded(h->width);
    work w = {.tile = tile, .wide = wide};
    real **row[] = {&w.q, &w.dout, &w.out}, **keys[] = {&w.k, &w.v, &w.dk, &w.dv};
    real **square[] = {&w.s, &w.dp, &w.keep},
         **line[] = {&w.top, &w.base, &w.sum, &w.part, &w.factor};
    for (int i = 0; i < 4; i++)
        *keys[i] = take(&at, h->keys * wide);
    for (int i = 0; i < 3; i++) {
        *row[i] = take(&at, block * wide);
        *square[i] = take(&at, block * tile);
    }
    w.qt = take(&at, h->width * tile);
    w.doutt = take(&at, h->width * tile);
    w.outt = take(&at, h->width * tile);
    for (int i = 0; i < 5; i++)
        *line[i] = take(&at, tile);
    w.word = (uint32_t *)(void *)at;
    return w;
}

/* Rows [first, last) of an array; those that are not real (mask 0) count as zeros, whatever they
 * hold: 0 times what stands there could be NaN. */
typedef struct row_block {
    const real *data;
    const int32_t *mask; /* NULL: all real */
    int64_t count, width, stride;
} row_block;

static bool is_real(const int32_t *mask, int64_t i)
{
    return !mask || mask[i] != 0;
}

static row_block rows_of(const bk_attention_head *h, const void *data, const int32_t *mask,
                         bk_attention_range r)
{
    return (row_block){(const real *)data + r.first * h->stride, mask ? mask + r.first : NULL,
                       r.last - r.first, h->width, h->stride};
}

/* As they are, padded with zeros. */
static void load_rows(row_block x, int64_t wide, real *to)
{
    for (int64_t i = 0; i < x.count; i++) {
        int64_t used = is_real(x.mask, i) ? x.width : 0;
        memcpy(to + i * wide, x.data + i * x.stride, (size_t)used * sizeof *to);
        for (int64_t d = used; d < wide; d++)
            to[i * wide + d] = 0;
    }
}

typedef struct tile {
    int64_t query, queries, columns; /* first, number, padded number */
    int64_t key, keys;
} tile;

/* to[width,tile] = scale times the rows that load_rows left in from[rows,wide]. */
static void transpose(const work *w, const tile *t, int64_t width, real scale, const real *from,
                      real *to)
{
    int64_t rows = t->queries;
    for (int64_t d = 0; d < width; d++) {
        for (int64_t i = 0; i < rows; i++)
            to[d * w->tile + i] = scale * from[i * w->wide + d];
        for (int64_t i = rows; i < w->tile; i++)
            to[d * w->tile + i] = 0;
    }
}

/* ---- scores ---- */

/* s = scale k q^T, -inf where the key is not seen by the query. */
static void scores(const bk_attention_head *h, const work *w, const tile *t, const real *k)
{
    multiply((product){.m = t->keys,
                       .n = t->columns,
                       .k = h->width,
                       .a = {k, w->wide, 1},
                       .b = w->qt,
                       .ldb = w->tile,
                       .c = w->s,
                       .ldc = w->tile});
    for (int64_t j = 0; j < t->keys; j++) {
        int64_t before = h->causal ? shorter(t->key + j - t->query, t->columns) : 0;
        before = is_real(h->key_mask, t->key + j) ? before : t->columns;
        for (int64_t i = 0; i < before; i++)
            w->s[j * w->tile + i] = -(real)INFINITY;
    }
}

/* keep = 0 or 1 / (1 - p) for every pair of the tile. */
static void draw(const bk_attention_head *h, const work *w, const tile *t)
{
    real scale = (real)h->keep_scale;
    for (int64_t i = 0; i < t->queries; i++)
        h->words(h->words_context, t->query + i, t->key, t->keys, w->word + i * w->tile);
    for (int64_t j = 0; j < t->keys; j++)
        for (int64_t i = 0; i < t->queries; i++)
            w->keep[j * w->tile + i] = w->word[i * w->tile + j] >= h->threshold ? scale : 0;
}

static void drop(const work *w, const tile *t, real *x)
{
    for (int64_t j = 0; j < t->keys; j++)
        for (int64_t i = 0; i < t->queries; i++)
            x[j * w->tile + i] *= w->keep[j * w->tile + i];
}

/* ---- forward ---- */

/* s becomes exp(s - maximum so far); sum is brought up to date, factor is for what was added
 * up under the maximum before.  A query that has seen no key has the maximum -inf and the base 0:
 * its exponentials are 0, or NaN where a score is. */
static void stream(const work *w, const tile *t)
{
    int64_t n = t->columns;
    real *restrict s, *restrict top = w->top, *restrict base = w->base, *restrict sum = w->sum,
                                *restrict part = w->part, *restrict factor = w->factor;
    memcpy(factor, top, (size_t)n * sizeof *top);
    for (int64_t j = 0; j < t->keys; j++) {
        s = w->s + j * w->tile;
        for (int64_t i = 0; i < n; i++)
            top[i] = s[i] > top[i] ? s[i] : top[i];
    }
    for (int64_t i = 0; i < n; i++) {
        base[i] = top[i] == -(real)INFINITY ? 0 : top[i];
        factor[i] = bk_exp_negative(factor[i] - base[i]);
        part[i] = 0;
    }
    for (int64_t j = 0; j < t->keys; j++) {
        s = w->s + j * w->tile;
        for (int64_t i = 0; i < n; i++) {
            s[i] = bk_exp_negative(s[i] - base[i]);
            part[i] += s[i];
        }
    }
    for (int64_t i = 0; i < n; i++)
        sum[i] = sum[i] * factor[i] + part[i];
}

static void rescale(const work *w, int64_t rows)
{
    for (int64_t i = 0; i < rows; i++) {
        real factor = w->factor[i];
        for (int64_t d = 0; factor != 1 && d < w->wide; d++)
            w->out[i * w->wide + d] *= factor;
    }
}

static void write_rows(const bk_attention_head *h, const work *w, const tile *t)
{
    real *out = (real *)h->out + t->query * h->stride, *lse = (real *)h->lse + t->query;
    for (int64_t i = 0; i < t->queries; i++) {
        bool seen = w->sum[i] != 0 && is_real(h->query_mask, t->query + i);
        lse[i] = seen ? w->top[i] + bk_log(w->sum[i]) : -(real)INFINITY;
        for (int64_t d = 0; d < h->width; d++)
            out[i * h->stride + d] = seen ? w->out[i * w->wide + d] / w->sum[i] : 0;
    }
}

static void start_queries(const bk_attention_head *h, const work *w, const tile *t)
{
    bk_attention_range r = {t->query, t->query + t->queries};
    load_rows(rows_of(h, h->q, h->query_mask, r), w->wide, w->q);
    transpose(w, t, h->width, (real)h->scale, w->q, w->qt);
    memset(w->out, 0, (size_t)(t->queries * w->wide) * sizeof *w->out);
}

/* Keys that some query of the tile may see. */
static int64_t end_of_keys(const bk_attention_head *h, const tile *t, int64_t keys)
{
    return h->causal ? shorter(keys, t->query + t->queries) : keys;
}

static void forward_tile(const bk_attention_head *h, const work *w, tile *t)
{
    start_queries(h, w, t);
    for (int64_t i = 0; i < w->tile; i++) {
        w->top[i] = -(real)INFINITY;
        w->sum[i] = 0;
    }
    for (t->key = 0; t->key < end_of_keys(h, t, h->keys); t->key += h->block) {
        t->keys = shorter(h->block, h->keys - t->key);
        scores(h, w, t, w->k + t->key * w->wide);
        stream(w, t);
        rescale(w, t->queries);
        if (h->words) {
            draw(h, w, t);
            drop(w, t, w->s);
        }
        multiply((product){.m = t->queries,
                           .n = w->wide,
                           .k = t->keys,
                           .a = {w->s, 1, w->tile},
                           .b = w->v + t->key * w->wide,
                           .ldb = w->wide,
                           .c = w->out,
                           .ldc = w->wide,
                           .add = true});
    }
    write_rows(h, w, t);
}

static tile queries_at(const bk_attention_head *h, int64_t query, int64_t last)
{
    int64_t queries = shorter(h->block, last - query);
    return (tile){.query = query, .queries = queries, .columns = padded(queries)};
}

static void load_keys(const bk_attention_head *h, const work *w, bk_attention_range key)
{
    load_rows(rows_of(h, h->k, h->key_mask, key), w->wide, w->k);
    load_rows(rows_of(h, h->v, h->key_mask, key), w->wide, w->v);
}

static void forward(const bk_attention_head *h, bk_attention_range query)
{
    work w = layout(h);
    int64_t last = shorter(query.last, h->queries);
    if (query.first < last)
        load_keys(h, &w, (bk_attention_range){0, h->causal ? shorter(last, h->keys) : h->keys});
    for (int64_t i = query.first; i < last; i += h->block) {
        tile t = queries_at(h, i, last);
        forward_tile(h, &w, &t);
    }
}

/* ---- backward ---- */

/* part = delta, delta_i = <dO_i, O_i>: added up as dP is, so that where P is 1 the slope is 0. */
static void start_delta(const bk_attention_head *h, const work *w, const tile *t)
{
    bk_attention_range r = {t->query, t->query + t->queries};
    real *restrict delta = w->part;
    load_rows(rows_of(h, h->out, h->query_mask, r), w->wide, w->dout);
    transpose(w, t, h->width, 1, w->dout, w->outt);
    load_rows(rows_of(h, h->dout, h->query_mask, r), w->wide, w->dout);
    transpose(w, t, h->width, 1, w->dout, w->doutt);
    memset(delta, 0, (size_t)w->tile * sizeof *delta);
    for (int64_t d = 0; d < h->width; d++)
        for (int64_t i = 0; i < w->tile; i++)
            delta[i] += w->doutt[d * w->tile + i] * w->outt[d * w->tile + i];
}

/* base = lse.  A query without keys has the lse -inf, one of padding scores of 0: +inf in its place
 * makes the probabilities 0. */
static void load_queries(const bk_attention_head *h, const work *w, const tile *t)
{
    const real *lse = (const real *)h->lse + t->query;
    start_queries(h, w, t);
    start_delta(h, w, t);
    for (int64_t i = 0; i < w->tile; i++)
        w->base[i] = i < t->queries && lse[i] != -(real)INFINITY ? lse[i] : (real)INFINITY;
}

/* s becomes P, dp becomes dS = P (dP - delta). */
static void probabilities(const work *w, const tile *t)
{
    const real *restrict base = w->base, *restrict delta = w->part;
    for (int64_t j = 0; j < t->keys; j++) {
        real *restrict s = w->s + j * w->tile, *restrict dp = w->dp + j * w->tile;
        for (int64_t i = 0; i < t->columns; i++) {
            s[i] = bk_exp_negative(s[i] - base[i]);
            dp[i] = s[i] * (dp[i] - delta[i]);
        }
    }
}

/* The rows of one tile of keys in the arrays of all. */
typedef struct key_rows {
    const real *k, *v;
    real *dk, *dv;
} key_rows;

/* P and dS. */
static void slopes(const bk_attention_head *h, const work *w, const tile *t, const real *v)
{
    multiply((product){.m = t->keys,
                       .n = t->columns,
                       .k = h->width,
                       .a = {v, w->wide, 1},
                       .b = w->doutt,
                       .ldb = w->tile,
                       .c = w->dp,
                       .ldc = w->tile});
    if (h->words) {
        draw(h, w, t);
        drop(w, t, w->dp);
    }
    probabilities(w, t);
    if (h->words)
        drop(w, t, w->s);
}

/* dK += dS^T Q, or dV += P^T dO. */
static void add_keys(const work *w, const tile *t, const real *a, const real *b, real *c)
{
    multiply((product){.m = t->keys,
                       .n = w->wide,
                       .k = t->queries,
                       .a = {a, w->tile, 1},
                       .b = b,
                       .ldb = w->wide,
                       .c = c,
                       .ldc = w->wide,
                       .add = true});
}

static void backward_pair(const bk_attention_head *h, const work *w, const tile *t,
                          const key_rows *x)
{
    scores(h, w, t, x->k);
    slopes(h, w, t, x->v);
    if (h->dv)
        add_keys(w, t, w->s, w->dout, x->dv);
    if (h->dk)
        add_keys(w, t, w->dp, w->q, x->dk);
    if (h->dq)
        multiply((product){.m = t->queries,
                           .n = w->wide,
                           .k = t->keys,
                           .a = {w->dp, 1, w->tile},
                           .b = x->k,
                           .ldb = w->wide,
                           .c = w->out,
                           .ldc = w->wide,
                           .add = true});
}

static void add_rows(const bk_attention_head *h, double scale_, const real *from, void *to_,
                     bk_attention_range r)
{
    real *to = to_, scale = (real)scale_;
    for (int64_t i = r.first; to && i < r.last; i++, from += padded(h->width))
        for (int64_t d = 0; d < h->width; d++)
            to[i * h->stride + d] += scale * from[d];
}

static void backward_tile(const bk_attention_head *h, const work *w, tile *t,
                          bk_attention_range key)
{
    load_queries(h, w, t);
    for (t->key = key.first; t->key < end_of_keys(h, t, key.last); t->key += h->block) {
        int64_t at = (t->key - key.first) * w->wide;
        t->keys = shorter(h->block, key.last - t->key);
        backward_pair(h, w, t, &(key_rows){w->k + at, w->v + at, w->dk + at, w->dv + at});
    }
    add_rows(h, h->scale, w->out, h->dq, (bk_attention_range){t->query, t->query + t->queries});
}

static void backward(const bk_attention_head *h, bk_attention_range query, bk_attention_range key)
{
    work w = layout(h);
    query.last = shorter(query.last, h->queries);
    key.last = shorter(key.last, h->keys);
    if (query.first >= query.last || key.first >= key.last)
        return;
    load_keys(h, &w, key);
    memset(w.dk, 0, (size_t)((key.last - key.first) * w.wide) * sizeof *w.dk);
    memset(w.dv, 0, (size_t)((key.last - key.first) * w.wide) * sizeof *w.dv);
    int64_t from = h->causal && key.first > query.first ? key.first : query.first;
    for (int64_t i = from; i < query.last; i += h->block) {
        tile t = queries_at(h, i, query.last);
        backward_tile(h, &w, &t, key);
    }
    add_rows(h, h->scale, w.dk, h->dk, key);
    add_rows(h, 1.0, w.dv, h->dv, key);
}

const bk_attention_kernels BK_KERNEL(bk_attention_kernels) = {
    .work_size = work_size, .forward = forward, .backward = backward};
