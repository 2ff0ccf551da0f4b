#include "core/ops/attention_kernel.h"

#include "core/vector_kernel.h"

#ifdef BK_AVX512
enum { BYTES = 64 };
#else
enum { BYTES = 32 };
#endif
enum { LANES = BYTES / sizeof(real), ROWS = 4 };
typedef real vector __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));

static int64_t padded(int64_t n)
{
    return (n + LANES - 1) / LANES * LANES;
}

/* ---- the one small product: C[m,n] (+)= A[m,k] B[k,n]; A by strides, n padded to whole vectors
 * ---- */

typedef struct matrix {
    const real *data;
    int64_t row, col; /* strides */
} matrix;

static inline void product_rows(int rows, int64_t k, matrix a, const real *b, int64_t ldb, real *c,
                                int64_t ldc, bool add)
{
    vector sum[ROWS];
    for (int i = 0; i < rows; i++)
        sum[i] = add ? *(const vector *)(c + i * ldc) : (vector){0};
    for (int64_t p = 0; p < k; p++) {
        vector right = *(const vector *)(b + p * ldb);
        for (int i = 0; i < rows; i++)
            sum[i] += a.data[i * a.row + p * a.col] * right;
    }
    for (int i = 0; i < rows; i++)
        *(vector *)(c + i * ldc) = sum[i];
}

static inline void product_rows_wide(int64_t k, matrix a, const real *b, int64_t ldb, real *c,
                                     int64_t ldc, bool add)
{
    vector low[ROWS], high[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++) {
        low[i] = add ? *(const vector *)(c + i * ldc) : (vector){0};
        high[i] = add ? *(const vector *)(c + i * ldc + LANES) : (vector){0};
    }
    for (int64_t p = 0; p < k; p++) {
        vector first = *(const vector *)(b + p * ldb),
               second = *(const vector *)(b + p * ldb + LANES);
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) {
            real x = a.data[i * a.row + p * a.col];
            low[i] += x * first;
            high[i] += x * second;
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++) {
        *(vector *)(c + i * ldc) = low[i];
        *(vector *)(c + i * ldc + LANES) = high[i];
    }
}

static void product(int64_t m, int64_t n, int64_t k, matrix a, const real *b, int64_t ldb, real *c,
                    int64_t ldc, bool add)
{
    for (int64_t j = 0; j < n; j += LANES) {
        bool wide = j + LANES < n;
        int64_t i = 0;
        for (; i + ROWS <= m; i += ROWS) {
            matrix rows = {a.data + i * a.row, a.row, a.col};
            if (wide)
                product_rows_wide(k, rows, b + j, ldb, c + i * ldc + j, ldc, add);
            else
                product_rows(ROWS, k, rows, b + j, ldb, c + i * ldc + j, ldc, add);
        }
        for (; i < m; i++) {
            matrix row = {a.data + i * a.row, a.row, a.col};
            product_rows(1, k, row, b + j, ldb, c + i * ldc + j, ldc, add);
            if (wide)
                product_rows(1, k, row, b + j + LANES, ldb, c + i * ldc + j + LANES, ldc, add);
        }
        j += wide ? LANES : 0;
    }
}

/* ---- work space ---- */

/* Tiles of `block` rows, padded; dq for all queries. */
typedef struct work {
    int64_t tile, wide;                     /* padded block and width */
    real *q, *k, *v, *dout, *out, *dk, *dv; /* [block,wide] */
    real *kt, *vt;                          /* [width,tile] */
    real *s, *dp;                           /* [block,tile] */
    real *top, *sum, *delta;                /* [block] */
    real *dq;                               /* [queries,wide] */
    uint32_t *word;                         /* [tile] */
} work;

static size_t work_reals(int64_t queries, int64_t width, int64_t block)
{
    int64_t tile = padded(block), wide = padded(width);
    return (size_t)(7 * block * wide + 2 * width * tile + 2 * block * tile + 3 * tile +
                    queries * wide) +
           (size_t)tile * sizeof(uint32_t) / sizeof(real) + 64;
}

static size_t work_size(int64_t queries, int64_t width, int64_t block)
{
    return work_reals(queries, width, block) * sizeof(real);
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
    w.q = take(&at, block * wide);
    w.k = take(&at, block * wide);
    w.v = take(&at, block * wide);
    w.dout = take(&at, block * wide);
    w.out = take(&at, block * wide);
    w.dk = take(&at, block * wide);
    w.dv = take(&at, block * wide);
    w.kt = take(&at, h->width * tile);
    w.vt = take(&at, h->width * tile);
    w.s = take(&at, block * tile);
    w.dp = take(&at, block * tile);
    w.top = take(&at, tile);
    w.sum = take(&at, tile);
    w.delta = take(&at, tile);
    w.dq = take(&at, h->queries * wide);
    w.word = (uint32_t *)(void *)at;
    return w;
}

/* Rows of an array [.,width]; those that are not real (mask 0) count as zeros, whatever they hold:
 * 0 times what stands there could be NaN. */
typedef struct row_block {
    const real *data;
    const int32_t *mask; /* NULL: all real */
    int64_t count, width;
} row_block;

static bool is_real(const int32_t *mask, int64_t i)
{
    return !mask || mask[i] != 0;
}

static row_block rows_of(const void *data, const int32_t *mask, int64_t first, int64_t count,
                         int64_t width)
{
    return (row_block){(const real *)data + first * width, mask ? mask + first : NULL, count,
                       width};
}

/* As they are, padded with zeros. */
static void load_rows(row_block x, int64_t wide, real *to)
{
    for (int64_t i = 0; i < x.count; i++) {
        int64_t used = is_real(x.mask, i) ? x.width : 0;
        memcpy(to + i * wide, x.data + i * x.width, (size_t)used * sizeof *to);
        for (int64_t d = used; d < wide; d++)
            to[i * wide + d] = 0;
    }
}

static void load_transposed(row_block x, int64_t tile, real *to)
{
    for (int64_t d = 0; d < x.width; d++) {
        for (int64_t i = 0; i < x.count; i++)
            to[d * tile + i] = x.data[i * x.width + d];
        for (int64_t i = x.count; i < tile; i++)
            to[d * tile + i] = 0;
    }
    for (int64_t i = 0; x.mask && i < x.count; i++)
        for (int64_t d = 0; !is_real(x.mask, i) && d < x.width; d++)
            to[d * tile + i] = 0;
}

/* ---- scores ---- */

typedef struct tile {
    int64_t query, queries; /* first and number */
    int64_t key, keys;
} tile;

static int64_t shorter(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static row_block queries_of(const bk_attention_head *h, const tile *t, const void *data)
{
    return rows_of(data, h->query_mask, t->query, t->queries, h->width);
}

static row_block keys_of(const bk_attention_head *h, const tile *t, const void *data)
{
    return rows_of(data, h->key_mask, t->key, t->keys, h->width);
}

/* Keys that query `i` may see among those of the tile: real, and not after it when causal. */
static int64_t visible_keys(const bk_attention_head *h, const tile *t, int64_t i)
{
    if (!h->causal)
        return t->keys;
    int64_t last = t->query + i + 1 - t->key;
    return last < 0 ? 0 : shorter(last, t->keys);
}

/* s = scale q k^T, -inf where the key is not seen, up to the padded width. */
static void scores(const bk_attention_head *h, const work *w, const tile *t)
{
    int64_t columns = padded(t->keys);
    real scale = (real)h->scale;
    product(t->queries, columns, h->width, (matrix){w->q, w->wide, 1}, w->kt, w->tile, w->s,
            w->tile, false);
    for (int64_t i = 0; i < t->queries; i++) {
        real *s = w->s + i * w->tile;
        int64_t visible = visible_keys(h, t, i);
        for (int64_t j = 0; j < columns; j++)
            s[j] *= scale;
        for (int64_t j = 0; h->key_mask && j < visible; j++)
            s[j] = h->key_mask[t->key + j] ? s[j] : -(real)INFINITY;
        for (int64_t j = visible; j < columns; j++)
            s[j] = -(real)INFINITY;
    }
}

/* x *= keep / (1 - p) on one row of the tile. */
static void drop(const bk_attention_head *h, const work *w, const tile *t, int64_t i, real *x)
{
    real scale = (real)h->keep_scale;
    h->words(h->words_context, t->query + i, t->key, t->keys, w->word);
    for (int64_t j = 0; j < t->keys; j++)
        x[j] = w->word[j] >= h->threshold ? x[j] * scale : 0;
}

/* ---- forward ---- */

static real row_max(const real *s, int64_t n, real most)
{
    real nan = 0;
    for (int64_t j = 0; j < n; j++) {
        most = s[j] > most ? s[j] : most;
        nan = s[j] != s[j] ? s[j] : nan;
    }
    return nan != nan ? nan : most;
}

/* One row of one tile: the running maximum, the sum, and the factor for what was summed before. */
static real stream_row(const bk_attention_head *h, const work *w, const tile *t, int64_t i)
{
    real *s = w->s + i * w->tile, sum = 0;
    int64_t columns = padded(t->keys);
    real top = row_max(s, columns, w->top[i]);
    if (top == -(real)INFINITY) {
        memset(s, 0, (size_t)columns * sizeof *s);
        return 1;
    }
    for (int64_t j = 0; j < columns; j++)
        s[j] = bk_exp(s[j] - top);
    for (int64_t j = 0; j < columns; j++)
        sum += s[j];
    real factor = w->top[i] == -(real)INFINITY ? 0 : bk_exp(w->top[i] - top);
    w->sum[i] = w->sum[i] * factor + sum;
    w->top[i] = top;
    if (h->words)
        drop(h, w, t, i, s);
    return factor;
}

static void write_rows(const bk_attention_head *h, const work *w, const tile *t)
{
    real *out = (real *)h->out + t->query * h->width, *lse = (real *)h->lse + t->query;
    for (int64_t i = 0; i < t->queries; i++) {
        bool seen = w->sum[i] != 0 && is_real(h->query_mask, t->query + i);
        lse[i] = seen ? w->top[i] + bk_log(w->sum[i]) : -(real)INFINITY;
        for (int64_t d = 0; d < h->width; d++)
            out[i * h->width + d] = seen ? w->out[i * w->wide + d] / w->sum[i] : 0;
    }
}

static void forward_tile(const bk_attention_head *h, const work *w, tile *t)
{
    load_rows(queries_of(h, t, h->q), w->wide, w->q);
    memset(w->out, 0, (size_t)(t->queries * w->wide) * sizeof *w->out);
    for (int64_t i = 0; i < t->queries; i++) {
        w->top[i] = -(real)INFINITY;
        w->sum[i] = 0;
    }
    int64_t end = h->causal ? shorter(h->keys, t->query + t->queries) : h->keys;
    for (t->key = 0; t->key < end; t->key += h->block) {
        t->keys = shorter(h->block, h->keys - t->key);
        load_transposed(keys_of(h, t, h->k), w->tile, w->kt);
        load_rows(keys_of(h, t, h->v), w->wide, w->v);
        scores(h, w, t);
        for (int64_t i = 0; i < t->queries; i++) {
            real factor = stream_row(h, w, t, i);
            for (int64_t d = 0; factor != 1 && d < w->wide; d++)
                w->out[i * w->wide + d] *= factor;
        }
        product(t->queries, w->wide, t->keys, (matrix){w->s, w->tile, 1}, w->v, w->wide, w->out,
                w->wide, true);
    }
    write_rows(h, w, t);
}

static void forward(const bk_attention_head *h)
{
    work w = layout(h);
    for (int64_t i = 0; i < h->queries; i += h->block) {
        tile t = {.query = i, .queries = shorter(h->block, h->queries - i)};
        forward_tile(h, &w, &t);
    }
}

/* ---- backward ---- */

/* s becomes P (and P' in place of it for dv), dp becomes dS. */
static void probabilities(const bk_attention_head *h, const work *w, const tile *t)
{
    const real *lse = (const real *)h->lse + t->query;
    int64_t columns = padded(t->keys);
    for (int64_t i = 0; i < t->queries; i++) {
        real *s = w->s + i * w->tile, *dp = w->dp + i * w->tile;
        if (lse[i] == -(real)INFINITY) {
            memset(s, 0, (size_t)columns * sizeof *s);
            memset(dp, 0, (size_t)columns * sizeof *dp);
            continue;
        }
        for (int64_t j = 0; j < columns; j++)
            s[j] = bk_exp(s[j] - lse[i]);
        if (h->words)
            drop(h, w, t, i, dp);
        for (int64_t j = 0; j < columns; j++)
            dp[j] = s[j] * (dp[j] - w->delta[i]);
        if (h->words)
            drop(h, w, t, i, s);
    }
}

/* delta_i = <dO_i, O_i>, a row of the tile each. */
static void load_queries(const bk_attention_head *h, const work *w, const tile *t)
{
    const real *out = (const real *)h->out + t->query * h->width;
    load_rows(queries_of(h, t, h->q), w->wide, w->q);
    load_rows(queries_of(h, t, h->dout), w->wide, w->dout);
    for (int64_t i = 0; i < t->queries; i++) {
        w->delta[i] = 0;
        for (int64_t d = 0; d < h->width; d++)
            w->delta[i] += w->dout[i * w->wide + d] * out[i * h->width + d];
    }
}

static void backward_pair(const bk_attention_head *h, const work *w, const tile *t)
{
    int64_t columns = padded(t->keys);
    load_queries(h, w, t);
    scores(h, w, t);
    product(t->queries, columns, h->width, (matrix){w->dout, w->wide, 1}, w->vt, w->tile, w->dp,
            w->tile, false);
    probabilities(h, w, t);
    product(t->keys, w->wide, t->queries, (matrix){w->s, 1, w->tile}, w->dout, w->wide, w->dv,
            w->wide, true);
    product(t->keys, w->wide, t->queries, (matrix){w->dp, 1, w->tile}, w->q, w->wide, w->dk,
            w->wide, true);
    product(t->queries, w->wide, t->keys, (matrix){w->dp, w->tile, 1}, w->k, w->wide,
            w->dq + t->query * w->wide, w->wide, true);
}

static void add_out(const real *from, int64_t rows, const bk_attention_head *h, int64_t wide,
                    double scale_, void *to_, int64_t first)
{
    real *to = to_, scale = (real)scale_;
    for (int64_t i = 0; to && i < rows; i++)
        for (int64_t d = 0; d < h->width; d++)
            to[(first + i) * h->width + d] += scale * from[i * wide + d];
}

static void backward(const bk_attention_head *h)
{
    work w = layout(h);
    memset(w.dq, 0, (size_t)(h->queries * w.wide) * sizeof *w.dq);
    for (int64_t key = 0; key < h->keys; key += h->block) {
        tile t = {.key = key, .keys = shorter(h->block, h->keys - key)};
        load_rows(keys_of(h, &t, h->k), w.wide, w.k);
        load_transposed(keys_of(h, &t, h->k), w.tile, w.kt);
        load_transposed(keys_of(h, &t, h->v), w.tile, w.vt);
        memset(w.dk, 0, (size_t)(t.keys * w.wide) * sizeof *w.dk);
        memset(w.dv, 0, (size_t)(t.keys * w.wide) * sizeof *w.dv);
        for (t.query = h->causal ? key / h->block * h->block : 0; t.query < h->queries;
             t.query += h->block) {
            t.queries = shorter(h->block, h->queries - t.query);
            backward_pair(h, &w, &t);
        }
        add_out(w.dk, t.keys, h, w.wide, h->scale, h->dk, key);
        add_out(w.dv, t.keys, h, w.wide, 1.0, h->dv, key);
    }
    add_out(w.dq, h->queries, h, w.wide, h->scale, h->dq, 0);
}

const bk_attention_kernels BK_KERNEL(bk_attention_kernels) = {
    .work_size = work_size, .forward = forward, .backward = backward};
