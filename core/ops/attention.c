#include "core/ops/attention.h"

#include "core/blas.h"
#include "core/hooks.h"
#include "core/ops/attention_kernel.h"
#include "core/rng.h"

#include <omp.h>
#include <string.h>

enum { Q, K, V, MASK, QUERY_MASK, INPUTS };

static const bk_attention_kernels *kernels(const bk_node *n)
{
    return BK_KERNEL_SELECT(bk_attention_kernels, n->in[Q]->dtype);
}

static void attention_shape(bk_tape *t, bk_node *n)
{
    const bk_tensor *q = n->in[Q], *k = n->in[K], *v = n->in[V], *mask = n->in[MASK],
                    *query_mask = n->in[QUERY_MASK];
    (void)t;
    BK_ASSERT(q->dims == 4 && k->dims == 4 && bk_same_shape(k, v), "q, k, v are [B,H,N,D]");
    BK_ASSERT(q->shape[0] == k->shape[0] && q->shape[1] == k->shape[1] &&
                  q->shape[3] == k->shape[3],
              "q and k differ");
    BK_ASSERT(!mask || (mask->dtype == BK_I32 && mask->shape[1] == k->shape[2]), "mask[B,M]");
    BK_ASSERT(!query_mask || (query_mask->dtype == BK_I32 && query_mask->shape[1] == q->shape[2]),
              "query_mask[B,N]");
    for (int i = 0; i < 2; i++) {
        n->out[i]->dtype = q->dtype;
        n->out[i]->dims = 4 - i;
        memcpy(n->out[i]->shape, q->shape, sizeof q->shape);
    }
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
    uint32_t eight[8];
    for (int64_t j = 0; j < count; j++) {
        int64_t place = key + j;
        if (j == 0 || place % 8 == 0) {
            uint64_t four[4];
            bk_philox(c->key, c->step, c->sample, (base + (uint64_t)place) / 8, four);
            memcpy(eight, four, sizeof eight);
        }
        word[j] = eight[place % 8];
    }
}

/* ---- one (sample, head) ---- */

/* Rows of a tile: no more than there are. */
static int64_t block_of(const bk_node *n)
{
    const bk_attention_options *o = n->attributes;
    int64_t queries = n->in[Q]->shape[2], keys = n->in[K]->shape[2];
    int64_t longest = queries > keys ? queries : keys;
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

static void *at(const void *data, bk_dtype dtype, int64_t element)
{
    return (char *)(uintptr_t)data + (size_t)element * bk_dtype_size(dtype);
}

/* Element 0 of a head of an array like q or k. */
static void *head_at(const void *data, const bk_tensor *like, int64_t unit)
{
    return at(data, like->dtype, unit * like->shape[2] * like->shape[3]);
}

static bk_attention_head head_of(const bk_tape *t, const bk_node *n, int64_t unit,
                                 words_context *context)
{
    const bk_attention_options *o = n->attributes;
    const bk_tensor *q = n->in[Q], *k = n->in[K], *mask = n->in[MASK];
    const bk_tensor *query_mask = n->in[QUERY_MASK];
    bool cross = query_mask || q->shape[2] != k->shape[2];
    int64_t heads = q->shape[1], sample = unit / heads, queries = q->shape[2], keys = k->shape[2];
    if (!cross)
        query_mask = mask;
    bk_attention_head h = {.queries = effective_length(query_mask, sample, queries),
                           .keys = effective_length(mask, sample, keys),
                           .width = q->shape[3],
                           .stride = q->shape[3],
                           .block = block_of(n),
                           .query_mask = query_mask ? bk_i32(query_mask) + sample * queries : NULL,
                           .key_mask = mask ? bk_i32(mask) + sample * keys : NULL,
                           .causal = o->causal,
                           .scale = o->scale,
                           .q = head_at(q->data, q, unit),
                           .k = head_at(k->data, k, unit),
                           .v = head_at(n->in[V]->data, k, unit),
                           .out = head_at(n->out[0]->data, q, unit),
                           .lse = at(n->out[1]->data, q->dtype, unit * queries)};
    if (t->training && o->dropout > 0) {
        uint64_t place = (uint64_t)(bk_lanes_first_sample(&t->lanes) + sample);
        *context = (words_context){bk_philox_for(t->seed, o->layer, BK_USE_DROPOUT_ATTENTION),
                                   (uint64_t)t->step, place, (uint64_t)(unit % heads)};
        h.words = words;
        h.words_context = context;
        h.threshold = (uint32_t)(o->dropout * 4294967296.0);
        h.keep_scale = 1.0 / (1.0 - o->dropout);
    }
    return h;
}

/* ---- work shared out over the threads: parts of the rows of a head ---- */

typedef struct plan {
    int64_t units, parts, block;
    size_t bytes; /* of work space for one thread */
    char *work;
} plan;

/* At least `tasks` parts of heads, as far as there are blocks. */
static plan plan_for(bk_tape *t, const bk_node *n, int64_t tasks)
{
    const bk_tensor *q = n->in[Q];
    int64_t keys = n->in[K]->shape[2], longest = q->shape[2] > keys ? q->shape[2] : keys;
    plan p = {.units = q->shape[0] * q->shape[1], .block = block_of(n)};
    int64_t blocks = (longest + p.block - 1) / p.block;
    p.parts = p.units > 0 ? (tasks + p.units - 1) / p.units : 1;
    p.parts = p.parts > blocks ? blocks : p.parts;
    p.parts = p.parts > 0 ? p.parts : 1;
    p.bytes = (kernels(n)->work_size(keys, q->shape[3], p.block) + 63) / 64 * 64;
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
    for (int64_t i = r.first; i < r.last; i++)
        memset(at(data, dtype, i * h->stride), 0, row);
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
    const bk_tensor *q = n->in[Q];
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    plan p = plan_for(t, n, TASKS * bk_blas_threads());
#pragma omp parallel for schedule(dynamic, 1) num_threads(bk_blas_threads())
    for (int64_t i = p.units * p.parts - 1; i >= 0; i--) {
        words_context context;
        bk_attention_head h = head_of(t, n, i % p.units, &context);
        bk_attention_range part = part_of(&p, i / p.units, q->shape[2]);
        h.work = own_work(&p);
        kernels(n)->forward(&h, part);
        pad_rows(&h, q->dtype, part);
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

/* Its head, `rows` of which this task makes. */
static void *head_of_grad(const head_grad *g, const bk_attention_head *h, int64_t unit,
                          bk_attention_range rows)
{
    void *head = g->data ? head_at(g->data, g->of, unit) : NULL;
    if (g->fresh)
        clear_rows(h, g->of->dtype, head, rows);
    return head;
}

/* Whole heads take five products of a pair of tiles; dq by itself takes three and dk with dv four,
 * which pays when there are few heads for the threads. */
static bool whole_heads(int64_t units, int64_t threads)
{
    return 5 * ((units + threads - 1) / threads) * threads <= 7 * units;
}

static void attention_backward(bk_tape *t, bk_node *n)
{
    enum { TASKS = 4 };
    const bk_tensor *q = n->in[Q], *k = n->in[K];
    int64_t units = q->shape[0] * q->shape[1], threads = bk_blas_threads();
    bool whole = whole_heads(units, threads);
    head_grad dq = grad_of(t, n->in[Q]), dk = grad_of(t, n->in[K]), dv = grad_of(t, n->in[V]);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    plan p = plan_for(t, n, whole ? 1 : TASKS * threads);
    int64_t halves = whole ? 1 : 2;
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)threads)
    for (int64_t i = 0; i < p.units * p.parts * halves; i++) {
        words_context context;
        int64_t unit = i / halves % p.units, part = i / halves / p.units;
        bk_attention_head h = head_of(t, n, unit, &context);
        bk_attention_range query = {0, q->shape[2]}, key = {0, k->shape[2]};
        h.work = own_work(&p);
        h.dout = head_at(n->out[0]->grad, q, unit);
        if (!whole && i % 2 == 0)
            key = part_of(&p, part, key.last);
        if (!whole && i % 2 == 1)
            query = part_of(&p, p.parts - 1 - part, query.last);
        if (whole || i % 2 == 1)
            h.dq = head_of_grad(&dq, &h, unit, query);
        if (whole || i % 2 == 0) {
            h.dk = head_of_grad(&dk, &h, unit, key);
            h.dv = head_of_grad(&dv, &h, unit, key);
        }
        kernels(n)->backward(&h, query, key);
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
    return bk_attention(t, q, k, v, mask, NULL, &o, NULL);
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
