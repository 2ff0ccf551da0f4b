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

static void *at(const void *data, const bk_tensor *like, int64_t row)
{
    return (char *)(uintptr_t)data + (size_t)(row * bk_cols(like)) * bk_dtype_size(like->dtype);
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
                           .block = block_of(n),
                           .query_mask = query_mask ? bk_i32(query_mask) + sample * queries : NULL,
                           .key_mask = mask ? bk_i32(mask) + sample * keys : NULL,
                           .causal = o->causal,
                           .scale = o->scale,
                           .q = at(q->data, q, unit * queries),
                           .k = at(k->data, k, unit * keys),
                           .v = at(n->in[V]->data, k, unit * keys),
                           .out = at(n->out[0]->data, q, unit * queries),
                           .lse = (char *)n->out[1]->data +
                                  (size_t)(unit * queries) * bk_dtype_size(q->dtype)};
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

static size_t work_bytes(const bk_node *n)
{
    size_t bytes = kernels(n)->work_size(n->in[Q]->shape[2], n->in[Q]->shape[3], block_of(n));
    return (bytes + 63) / 64 * 64;
}

static void attention_forward(bk_tape *t, bk_node *n)
{
    const bk_tensor *q = n->in[Q];
    int64_t units = q->shape[0] * q->shape[1], queries = q->shape[2], width = q->shape[3];
    size_t size = bk_dtype_size(q->dtype), bytes = work_bytes(n);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    char *work = bk_arena_alloc(t->scratch, bytes * (size_t)bk_blas_threads());
#pragma omp parallel for schedule(dynamic, 1) num_threads(bk_blas_threads())
    for (int64_t u = 0; u < units; u++) {
        words_context context;
        bk_attention_head h = head_of(t, n, u, &context);
        h.work = work + bytes * (size_t)omp_get_thread_num();
        kernels(n)->forward(&h);
        size_t padding = (size_t)(queries - h.queries);
        memset((char *)h.out + (size_t)(h.queries * width) * size, 0,
               padding * (size_t)width * size);
        for (int64_t i = h.queries; i < queries; i++) {
            if (q->dtype == BK_F64)
                ((double *)h.lse)[i] = -(double)__builtin_inf();
            else
                ((float *)h.lse)[i] = -__builtin_inff();
        }
    }
    bk_arena_release(t->scratch, mark);
    bk_poll();
}

/* A gradient of q, k or v, one block of `bytes` for each (sample, head). */
typedef struct head_grad {
    char *data; /* NULL where not wanted */
    bool fresh; /* to be zeroed */
    size_t bytes;
} head_grad;

static head_grad grad_of(bk_tape *t, bk_tensor *x)
{
    double beta = 1.0;
    head_grad g = {.bytes = (size_t)(x->shape[2] * x->shape[3]) * bk_dtype_size(x->dtype)};
    g.data = x->needs_grad ? bk_grad_slot(t, x, &beta) : NULL;
    g.fresh = beta == 0.0;
    return g;
}

static void *head_of_grad(const head_grad *g, int64_t unit)
{
    char *head = g->data ? g->data + (size_t)unit * g->bytes : NULL;
    if (g->fresh)
        memset(head, 0, g->bytes);
    return head;
}

static void attention_backward(bk_tape *t, bk_node *n)
{
    const bk_tensor *q = n->in[Q];
    int64_t units = q->shape[0] * q->shape[1], queries = q->shape[2];
    size_t bytes = work_bytes(n);
    head_grad dq = grad_of(t, n->in[Q]), dk = grad_of(t, n->in[K]), dv = grad_of(t, n->in[V]);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    char *work = bk_arena_alloc(t->scratch, bytes * (size_t)bk_blas_threads());
#pragma omp parallel for schedule(dynamic, 1) num_threads(bk_blas_threads())
    for (int64_t u = 0; u < units; u++) {
        words_context context;
        bk_attention_head h = head_of(t, n, u, &context);
        h.work = work + bytes * (size_t)omp_get_thread_num();
        h.dout = at(n->out[0]->grad, q, u * queries);
        h.dq = head_of_grad(&dq, u);
        h.dk = head_of_grad(&dk, u);
        h.dv = head_of_grad(&dv, u);
        kernels(n)->backward(&h);
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
