#include "core/ops/attention.h"

#include "core/blas.h"
#include "core/hooks.h"
#include "core/ops.h"
#include "core/ops/attention_kernel.h"
#include "core/rng.h"

#include <omp.h>
#include <string.h>

enum { Q, K, V, MASK, QUERY_MASK, INPUTS };

static const bk_attention_kernels *kernels(const bk_node *n)
{
    return BK_KERNEL_SELECT(bk_attention_kernels, n->in[Q]->dtype);
}

/* The arrays as heads: row n of a head is `stride` elements behind row n - 1. */
typedef struct layout {
    int64_t samples, heads, queries, keys, width, stride;
} layout;

static layout layout_of(const bk_node *n)
{
    const bk_attention_options *o = n->attributes;
    const int64_t *q = n->in[Q]->shape, *k = n->in[K]->shape;
    if (o->heads > 0)
        return (layout){q[0], o->heads, q[1], k[1], q[2] / o->heads, q[2]};
    return (layout){q[0], q[1], q[2], k[2], q[3], q[3]};
}

/* Element 0 of a head in an array with so many rows a head. */
static void *head_at(const layout *l, const bk_tensor *like, const void *data, int64_t unit,
                     int64_t rows)
{
    bool apart = l->stride == l->width;
    int64_t sample = unit / l->heads, head = unit % l->heads;
    int64_t element = apart ? unit * rows * l->width : sample * rows * l->stride + head * l->width;
    return (char *)(uintptr_t)data + (size_t)element * bk_dtype_size(like->dtype);
}

static void attention_shape(bk_tape *t, bk_node *n)
{
    const bk_attention_options *o = n->attributes;
    const bk_tensor *q = n->in[Q], *k = n->in[K], *v = n->in[V], *mask = n->in[MASK],
                    *query_mask = n->in[QUERY_MASK];
    int dims = o->heads > 0 ? 3 : 4;
    (void)t;
    BK_ASSERT(q->dims == dims && k->dims == dims && bk_same_shape(k, v),
              "q, k, v are [B,H,N,D] or [B,N,H*D]");
    layout l = layout_of(n);
    BK_ASSERT(q->shape[0] == k->shape[0] && bk_cols(q) == bk_cols(k) &&
                  (dims == 3 || q->shape[1] == k->shape[1]),
              "q and k differ");
    BK_ASSERT(dims == 4 || q->shape[2] % o->heads == 0, "%lld heads", (long long)o->heads);
    BK_ASSERT(!mask || (mask->dtype == BK_I32 && mask->shape[1] == l.keys), "mask[B,M]");
    BK_ASSERT(!query_mask || (query_mask->dtype == BK_I32 && query_mask->shape[1] == l.queries),
              "query_mask[B,N]");
    n->out[0]->dtype = n->out[1]->dtype = q->dtype;
    n->out[0]->dims = dims;
    memcpy(n->out[0]->shape, q->shape, sizeof q->shape);
    n->out[1]->dims = 3;
    memcpy(n->out[1]->shape, (int64_t[]){l.samples, l.heads, l.queries}, 3 * sizeof(int64_t));
}

/* ---- dropout: eight words a Philox call, index = (head 2^40 + query 2^20 + key) / 8 ---- */

typedef struct words_context {
    bk_philox_key key;
    uint64_t step, sample, head;
} words_context;

static void words(const void *context, int64_t query, int64_t key, int64_t count, uint32_t *word)
{
    const words_context *c = context;
    uint64_t base = (c->head << 40) + ((uint64_t)query << 20);
    int64_t before = key % 8;
    bk_philox_words(c->key, c->step, c->sample, (base + (uint64_t)key) / 8,
                    (before + count + 7) / 8, word);
    if (before > 0)
        memmove(word, word + before, (size_t)count * sizeof *word);
}

/* ---- one (sample, head) ---- */

/* Rows of a tile: no more than there are. */
static int64_t block_of(const bk_node *n)
{
    const bk_attention_options *o = n->attributes;
    layout l = layout_of(n);
    int64_t longest = l.queries > l.keys ? l.queries : l.keys;
    longest = longest > 0 ? longest : 1;
    return longest < o->block ? longest : o->block;
}

static int64_t effective_length(const bk_tensor *mask, int64_t sample, int64_t positions)
{
    if (!mask)
        return positions;
    const int32_t *row = bk_i32(mask) + sample * positions;
    while (positions > 0 && row[positions - 1] == 0)
        positions--;
    return positions;
}

static bk_attention_head head_of(const bk_tape *t, const bk_node *n, int64_t unit,
                                 words_context *context)
{
    const bk_attention_options *o = n->attributes;
    const bk_tensor *q = n->in[Q], *k = n->in[K], *v = n->in[V], *out = n->out[0];
    const bk_tensor *mask = n->in[MASK], *query_mask = n->in[QUERY_MASK];
    layout l = layout_of(n);
    int64_t sample = unit / l.heads;
    if (!query_mask && l.queries == l.keys)
        query_mask = mask;
    bk_attention_head h = {
        .queries = effective_length(query_mask, sample, l.queries),
        .keys = effective_length(mask, sample, l.keys),
        .width = l.width,
        .stride = l.stride,
        .block = block_of(n),
        .query_mask = query_mask ? bk_i32(query_mask) + sample * l.queries : NULL,
        .key_mask = mask ? bk_i32(mask) + sample * l.keys : NULL,
        .causal = o->causal,
        .scale = o->scale,
        .q = head_at(&l, q, q->data, unit, l.queries),
        .k = head_at(&l, k, k->data, unit, l.keys),
        .v = head_at(&l, v, v->data, unit, l.keys),
        .out = head_at(&l, out, out->data, unit, l.queries),
        .lse = (char *)n->out[1]->data + (size_t)(unit * l.queries) * bk_dtype_size(q->dtype)};
    if (t->training && o->dropout > 0) {
        uint64_t place = (uint64_t)(bk_lanes_first_sample(&t->lanes) + sample);
        *context = (words_context){bk_philox_for(t->seed, o->layer, BK_USE_DROPOUT_ATTENTION),
                                   (uint64_t)t->step, place, (uint64_t)(unit % l.heads)};
        h.words = words;
        h.words_context = context;
        h.threshold = (uint32_t)(o->dropout * 4294967296.0);
        h.keep_scale = 1.0 / (1.0 - o->dropout);
    }
    return h;
}

/* ---- work shared out over the threads: parts of the rows of a head ---- */

typedef struct plan {
    layout layout;
    int64_t units, parts, block;
    size_t bytes; /* of work space for one thread */
    char *work;
} plan;

/* At least `tasks` parts of heads, as far as there are blocks. */
static plan plan_for(bk_tape *t, const bk_node *n, int64_t tasks)
{
    layout l = layout_of(n);
    int64_t longest = l.queries > l.keys ? l.queries : l.keys;
    plan p = {.layout = l, .units = l.samples * l.heads, .block = block_of(n)};
    int64_t blocks = (longest + p.block - 1) / p.block;
    p.parts = p.units > 0 ? (tasks + p.units - 1) / p.units : 1;
    p.parts = p.parts > blocks ? blocks : p.parts;
    p.parts = p.parts > 0 ? p.parts : 1;
    p.bytes = (kernels(n)->work_size(l.keys, l.width, p.block) + 63) / 64 * 64;
    p.work = bk_arena_alloc(t->scratch, p.bytes * (size_t)bk_blas_threads());
    return p;
}

static bk_attention_range part_of(const plan *p, int64_t part, int64_t rows)
{
    int64_t blocks = (rows + p->block - 1) / p->block;
    bk_attention_range r = {blocks * part / p->parts * p->block,
                            blocks * (part + 1) / p->parts * p->block};
    r.last = r.last < rows ? r.last : rows;
    return r;
}

static void *own_work(const plan *p)
{
    return p->work + p->bytes * (size_t)omp_get_thread_num();
}

/* ---- forward ---- */

static void clear_rows(const bk_attention_head *h, bk_dtype dtype, void *data, bk_attention_range r)
{
    size_t row = (size_t)h->width * bk_dtype_size(dtype);
    size_t step = (size_t)h->stride * bk_dtype_size(dtype);
    for (int64_t i = r.first; i < r.last; i++)
        memset((char *)data + (size_t)i * step, 0, row);
}

/* Padding gives 0. */
static void pad_rows(const bk_attention_head *h, bk_dtype dtype, bk_attention_range r)
{
    r.first = r.first > h->queries ? r.first : h->queries;
    clear_rows(h, dtype, h->out, r);
    for (int64_t i = r.first; i < r.last; i++) {
        if (dtype == BK_F64)
            ((double *)h->lse)[i] = -(double)__builtin_inf();
        else
            ((float *)h->lse)[i] = -__builtin_inff();
    }
}

/* The later parts come first: they are the larger ones when causal. */
static void attention_forward(bk_tape *t, bk_node *n)
{
    enum { TASKS = 8 }; /* a thread: little is left over when one is slow */
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    plan p = plan_for(t, n, TASKS * bk_blas_threads());
#pragma omp parallel for schedule(dynamic, 1) num_threads(bk_blas_threads())
    for (int64_t i = p.units * p.parts - 1; i >= 0; i--) {
        words_context context;
        bk_attention_head h = head_of(t, n, i % p.units, &context);
        bk_attention_range part = part_of(&p, i / p.units, p.layout.queries);
        h.work = own_work(&p);
        kernels(n)->forward(&h, part);
        pad_rows(&h, n->in[Q]->dtype, part);
    }
    bk_arena_release(t->scratch, mark);
    bk_poll();
}

/* ---- backward ---- */

/* A gradient of q, k or v. */
typedef struct head_grad {
    const bk_tensor *of;
    void *data; /* NULL where not wanted */
    bool fresh; /* to be zeroed */
} head_grad;

static head_grad grad_of(bk_tape *t, bk_tensor *x)
{
    double beta = 1.0;
    head_grad g = {.of = x, .data = x->needs_grad ? bk_grad_slot(t, x, &beta) : NULL};
    g.fresh = beta == 0.0;
    return g;
}

/* That of one head of `positions` rows, of which this task makes `rows`. */
static void *head_of_grad(const head_grad *g, const layout *l, const bk_attention_head *h,
                          int64_t unit, int64_t positions, bk_attention_range rows)
{
    if (!g->data)
        return NULL;
    void *head = head_at(l, g->of, g->data, unit, positions);
    if (g->fresh)
        clear_rows(h, g->of->dtype, head, rows);
    return head;
}

/* Whole heads take five products of a pair of tiles; dq by itself takes three and dk with dv four,
 * which pays when there are few heads for the threads.  An array that is q and k or v has one
 * gradient: one thread adds to it. */
static bool whole_heads(const bk_node *n, int64_t units, int64_t threads)
{
    if (n->in[Q] == n->in[K] || n->in[Q] == n->in[V])
        return true;
    return 5 * ((units + threads - 1) / threads) * threads <= 7 * units;
}

/* What one thread makes at a time: dq of all keys, dk and dv of all queries, or both. */
typedef struct task {
    int64_t unit;
    bool dq, dkv;
    bk_attention_range query, key;
} task;

static task task_of(const plan *p, bool whole, int64_t i)
{
    const layout *l = &p->layout;
    task k = {.dq = true, .dkv = true, .query = {0, l->queries}, .key = {0, l->keys}};
    k.unit = (whole ? i : i / 2) % p->units;
    if (whole)
        return k;
    int64_t part = i / 2 / p->units;
    k.dq = i % 2;
    k.dkv = !k.dq;
    if (k.dq)
        k.query = part_of(p, p->parts - 1 - part, l->queries); /* the larger ones first */
    else
        k.key = part_of(p, part, l->keys);
    return k;
}

typedef struct back {
    plan plan;
    head_grad dq, dk, dv;
} back;

static void run_task(const bk_tape *t, const bk_node *n, const back *b, const task *k)
{
    words_context context;
    const layout *l = &b->plan.layout;
    const bk_tensor *out = n->out[0];
    bk_attention_head h = head_of(t, n, k->unit, &context);
    h.work = own_work(&b->plan);
    h.dout = head_at(l, out, out->grad, k->unit, l->queries);
    if (k->dq)
        h.dq = head_of_grad(&b->dq, l, &h, k->unit, l->queries, k->query);
    if (k->dkv) {
        h.dk = head_of_grad(&b->dk, l, &h, k->unit, l->keys, k->key);
        h.dv = head_of_grad(&b->dv, l, &h, k->unit, l->keys, k->key);
    }
    kernels(n)->backward(&h, k->query, k->key);
}

static void attention_backward(bk_tape *t, bk_node *n)
{
    enum { TASKS = 4 };
    layout l = layout_of(n);
    int64_t threads = bk_blas_threads();
    bool whole = whole_heads(n, l.samples * l.heads, threads);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    back b = {plan_for(t, n, whole ? 1 : TASKS * threads), grad_of(t, n->in[Q]),
              grad_of(t, n->in[K]), grad_of(t, n->in[V])};
    int64_t tasks = b.plan.units * b.plan.parts * (whole ? 1 : 2);
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)threads)
    for (int64_t i = 0; i < tasks; i++) {
        task k = task_of(&b.plan, whole, i);
        run_task(t, n, &b, &k);
    }
    bk_arena_release(t->scratch, mark);
    bk_poll();
}

static bk_tensor *attention_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *q = bk_sample_input(s, BK_SHAPE(4, 2, 5, 3)),
              *k = bk_sample_input(s, BK_SHAPE(4, 2, 5, 3));
    bk_tensor *v = bk_sample_input(s, BK_SHAPE(4, 2, 5, 3)),
              *mask = bk_sample_mask(s, BK_SHAPE(4, 5));
    t->training = true;
    bk_attention_options o = {.scale = 0.7, .block = 2, .causal = true, .dropout = 0.3, .layer = 1};
    bk_tensor *apart = bk_attention(t, q, k, v, mask, NULL, &o, NULL);
    bk_tensor *x = bk_sample_input(s, BK_SHAPE(4, 5, 6));
    o.heads = 2;
    return bk_add(t, bk_merge_heads(t, apart), bk_attention(t, x, x, x, mask, NULL, &o, NULL));
}

const bk_op bk_op_attention = {.name = "attention",
                               .shape = attention_shape,
                               .forward = attention_forward,
                               .backward = attention_backward,
                               .sample = attention_sample};

bk_tensor *bk_attention(bk_tape *t, bk_tensor *q, bk_tensor *k, bk_tensor *v, bk_tensor *mask,
                        bk_tensor *query_mask, const bk_attention_options *options, bk_tensor **lse)
{
    bk_tensor *in[INPUTS] = {q, k, v, mask, query_mask};
    bk_node *n = bk_apply(t, &bk_op_attention, INPUTS, in, 2, options, sizeof *options);
    n->out[1]->needs_grad = false;
    if (lse)
        *lse = n->out[1];
    return n->out[0];
}
