/* Who writes which slice of which tensor: a function of what the ranks own, the same everywhere. */
#include "io/checkpoint_internal.h"

#include "dist/agree.h"
#include "dist/collective.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One rank's piece, as it travels. */
typedef struct claim {
    char name[BK_NAME_TEXT];
    int64_t shape[BK_MAX_DIMS];
    int64_t offset, count, index;
    int32_t dtype, dims, rank, unused;
} claim;

/* ---- gathering the claims ---- */

static claim claim_of(const bk_piece *p, int64_t index, int rank)
{
    claim c = {.offset = p->offset,
               .count = p->count,
               .index = index,
               .dtype = (int32_t)p->dtype,
               .dims = p->dims,
               .rank = rank};
    BK_ASSERT(strlen(p->name) < sizeof c.name, "the name %s is too long", p->name);
    snprintf(c.name, sizeof c.name, "%s", p->name);
    memcpy(c.shape, p->global_shape, sizeof c.shape);
    return c;
}

static int64_t gather(const bk_comm *comm, bk_arena *arena, const bk_piece *pieces, int64_t count,
                      claim **out)
{
    int size = bk_comm_size(comm);
    claim *mine = BK_ZNEW(arena, claim, count);
    int64_t kept = 0, total = 0;
    for (int64_t i = 0; i < count; i++)
        if (pieces[i].count > 0)
            mine[kept++] = claim_of(&pieces[i], i, bk_comm_rank(comm));
    int64_t *bytes = BK_NEW(arena, int64_t, size);
    bk_gather_counts(comm, kept * (int64_t)sizeof *mine, bytes);
    for (int r = 0; r < size; r++)
        total += bytes[r];
    *out = bk_arena_alloc(arena, (size_t)total);
    bk_allgather_bytes(comm, mine, bytes[bk_comm_rank(comm)], bytes, *out);
    return total / (int64_t)sizeof *mine;
}

static int by_place(const void *a, const void *b)
{
    const claim *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    if (order == 0)
        order = (x->offset > y->offset) - (x->offset < y->offset);
    return order ? order : x->rank - y->rank;
}

/* ---- tensors ---- */

static bool same_tensor(const claim *a, const claim *b)
{
    return a->dtype == b->dtype && a->dims == b->dims &&
           memcmp(a->shape, b->shape, sizeof a->shape) == 0;
}

/* The claims [first, end) of one name cover one tensor once. */
static bk_status make_tensor(const claim *first, const claim *end, bk_stored_tensor *t)
{
    int64_t at = 0;
    *t = (bk_stored_tensor){
        .name = first->name, .dtype = (bk_dtype)first->dtype, .dims = first->dims};
    memcpy(t->shape, first->shape, sizeof t->shape);
    t->count = bk_shape_count(t->dims, t->shape);
    for (const claim *c = first; c < end; at += c->count, c++)
        if (c->offset != at || !same_tensor(c, first))
            return bk_fail(BK_FAULT, "the ranks do not own tensor %s exactly once (element %lld)",
                           t->name, (long long)at);
    return at == t->count ? BK_OK
                          : bk_fail(BK_FAULT, "nobody owns tensor %s from element %lld on", t->name,
                                    (long long)at);
}

static bk_status make_tensors(bk_arena *arena, const claim *claims, int64_t count, bk_manifest *m)
{
    m->tensor = BK_ZNEW(arena, bk_stored_tensor, count);
    for (int64_t i = 0, end; i < count; i = end) {
        for (end = i + 1; end < count && strcmp(claims[end].name, claims[i].name) == 0;)
            end++;
        BK_TRY(make_tensor(claims + i, claims + end, &m->tensor[m->tensors++]));
    }
    return BK_OK;
}

/* ---- cutting ---- */

static int64_t tensor_bytes(const bk_stored_tensor *t)
{
    return t->count * (int64_t)bk_dtype_size(t->dtype);
}

/* The element of `t` (whose bytes begin at `start` of all) where the byte `cut` falls, rounded up
 * to a leaf. */
static int64_t cut_element(const bk_stored_tensor *t, int64_t start, int64_t cut)
{
    int64_t size = (int64_t)bk_dtype_size(t->dtype);
    int64_t element = cut <= start ? 0 : (cut - start + size - 1) / size;
    element = (element + BK_LEAF - 1) / BK_LEAF * BK_LEAF;
    return element < t->count ? element : t->count;
}

static void cut_tensors(bk_arena *arena, bk_manifest *m)
{
    int64_t total = 0, start = 0;
    for (int64_t i = 0; i < m->tensors; i++)
        total += tensor_bytes(&m->tensor[i]);
    for (int64_t i = 0; i < m->tensors; i++) {
        bk_stored_tensor *t = &m->tensor[i];
        t->piece = BK_ZNEW(arena, bk_stored_piece, m->shards);
        for (int s = 0; s < m->shards; s++) {
            int64_t first = s == 0 ? 0 : cut_element(t, start, total * s / m->shards);
            int64_t end =
                s == m->shards - 1 ? t->count : cut_element(t, start, total * (s + 1) / m->shards);
            if (end > first)
                t->piece[t->pieces++] = (bk_stored_piece){s, first, end - first};
        }
        start += tensor_bytes(t);
    }
}

/* ---- transfers ---- */

static int sign(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

static int by_route(const void *a, const void *b)
{
    const bk_transfer *x = a, *y = b;
    int order = sign(x->rank, y->rank);
    order = order ? order : sign(x->shard, y->shard);
    order = order ? order : sign(x->tensor, y->tensor);
    return order ? order : sign(x->to, y->to);
}

static void add_transfers(const claim *c, int64_t tensor, bk_plan *plan)
{
    const bk_stored_tensor *t = &plan->manifest->tensor[tensor];
    for (int k = 0; k < t->pieces; k++) {
        const bk_stored_piece *p = &t->piece[k];
        int64_t lo = c->offset > p->offset ? c->offset : p->offset;
        int64_t end = c->offset + c->count, stop = p->offset + p->length;
        int64_t hi = end < stop ? end : stop;
        if (lo < hi)
            plan->transfer[plan->transfers++] = (bk_transfer){.rank = c->rank,
                                                              .index = c->index,
                                                              .from = lo - c->offset,
                                                              .shard = p->shard,
                                                              .tensor = tensor,
                                                              .piece = k,
                                                              .to = lo - p->offset,
                                                              .count = hi - lo};
    }
}

static void route(bk_arena *arena, const claim *claims, int64_t count, bk_plan *plan)
{
    const bk_manifest *m = plan->manifest;
    int64_t room = count, tensor = 0;
    for (int64_t i = 0; i < m->tensors; i++)
        room += m->tensor[i].pieces;
    plan->transfer = BK_NEW(arena, bk_transfer, room);
    for (int64_t i = 0; i < count; i++) {
        while (strcmp(m->tensor[tensor].name, claims[i].name) != 0)
            tensor++;
        add_transfers(&claims[i], tensor, plan);
    }
    qsort(plan->transfer, (size_t)plan->transfers, sizeof *plan->transfer, by_route);
}

bk_status bk_plan_make(const bk_comm *comm, bk_arena *arena, const bk_piece *pieces, int64_t count,
                       int shards, bk_plan *out)
{
    claim *claims;
    int64_t all = gather(comm, arena, pieces, count, &claims);
    qsort(claims, (size_t)all, sizeof *claims, by_place);
    *out = (bk_plan){.manifest = BK_ZNEW(arena, bk_manifest, 1)};
    out->manifest->shards = shards;
    BK_TRY(make_tensors(arena, claims, all, out->manifest)); /* the same on every rank */
    cut_tensors(arena, out->manifest);
    route(arena, claims, all, out);
    return BK_OK;
}
