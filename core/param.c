#include "core/param.h"

#include "core/rng.h"

#include <string.h>

enum { FLOATS_ALIGN = 16, GROW = 64 };

bk_slab *bk_slab_new(bk_arena *arena)
{
    bk_slab *slab = BK_ZNEW(arena, bk_slab, 1);
    slab->arena = arena;
    return slab;
}

/* A list on an arena that grows by doubling; the old copy stays behind. */
static void *grown(bk_arena *arena, void *list, int count, size_t size)
{
    bool full = count == 0 || (count >= GROW && (count & (count - 1)) == 0);
    if (!full)
        return list;
    size_t room = count == 0 ? GROW : (size_t)count * 2;
    void *fresh = bk_arena_zalloc(arena, room * size);
    if (count > 0)
        memcpy(fresh, list, (size_t)count * size);
    return fresh;
}

static int64_t product(int dims, const int64_t *shape)
{
    int64_t count = 1;
    for (int i = 0; i < dims; i++)
        count *= shape[i];
    return count;
}

/* Elements of logical tensors, each counted once although several slices of it may be declared, all
 * of them among the parameters of one layer. */
static int64_t new_elements(const bk_slab *slab, const bk_parameter *p)
{
    for (int i = slab->parameters - 1; i >= 0 && slab->parameter[i]->layer == p->layer; i--)
        if (strcmp(slab->parameter[i]->name, p->name) == 0)
            return 0;
    return product(p->global_dims, p->global_shape);
}

bk_parameter *bk_slab_declare(bk_slab *slab, const bk_parameter *parameter)
{
    BK_ASSERT(!slab->value, "%s is declared after the layout", parameter->name);
    bk_parameter *p = BK_NEW(slab->arena, bk_parameter, 1);
    *p = *parameter;
    p->name = bk_arena_strdup(slab->arena, parameter->name);
    p->count = product(p->dims, p->shape);
    if (p->global_dims == 0) {
        p->global_dims = p->dims;
        memcpy(p->global_shape, p->shape, sizeof p->shape);
    }
    if (p->uses == 0)
        p->uses = 1;
    p->slab = slab;
    p->index = slab->parameters;
    slab->total_count += new_elements(slab, p);
    slab->parameter =
        grown(slab->arena, slab->parameter, slab->parameters, sizeof *slab->parameter);
    slab->parameter[slab->parameters++] = p;
    return p;
}

bk_buffer *bk_slab_declare_buffer(bk_slab *slab, const char *name, bk_dtype dtype, int dims,
                                  const int64_t *shape)
{
    bk_buffer *b = BK_ZNEW(slab->arena, bk_buffer, 1);
    b->name = bk_arena_strdup(slab->arena, name);
    b->dtype = dtype;
    b->dims = dims;
    if (dims > 0)
        memcpy(b->shape, shape, (size_t)dims * sizeof *shape);
    b->count = product(dims, b->shape);
    b->data = bk_arena_zalloc(slab->arena, (size_t)b->count * bk_dtype_size(dtype));
    slab->buffer = grown(slab->arena, slab->buffer, slab->buffers, sizeof *slab->buffer);
    slab->buffer[slab->buffers++] = b;
    return b;
}

bk_buffer *bk_slab_find_buffer(const bk_slab *slab, const char *name)
{
    for (int i = 0; i < slab->buffers; i++)
        if (strcmp(slab->buffer[i]->name, name) == 0)
            return slab->buffer[i];
    return NULL;
}

/* ---- layout ---- */

static int64_t round_up(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

static bk_bucket *add_bucket(bk_slab *slab, int expert)
{
    slab->bucket = grown(slab->arena, slab->bucket, slab->buckets, sizeof *slab->bucket);
    bk_bucket *b = &slab->bucket[slab->buckets++];
    *b = (bk_bucket){.expert = expert, .sibling = -1};
    return b;
}

/* The open bucket of one group (dense or one expert) while the walk goes on. */
typedef struct group {
    int expert;
    int64_t filled;
    int members;
    bk_parameter **member;
} group;

/* Gives the members of the group their places in a new bucket. */
static void close_group(bk_slab *slab, group *g, int64_t align)
{
    if (g->members == 0)
        return;
    int index = slab->buckets;
    bk_bucket *b = add_bucket(slab, g->expert);
    b->offset = slab->values;
    b->parameters = g->members;
    int64_t used = 0;
    for (int i = 0; i < g->members; i++) {
        bk_parameter *p = g->member[i];
        p->bucket = index;
        p->offset = p->grad_offset[0] = b->offset + used;
        used += round_up(p->count, FLOATS_ALIGN);
    }
    b->length = round_up(used, align);
    b->grad_offset = b->offset;
    slab->values += b->length;
    g->filled = 0;
    g->members = 0;
}

static group *group_of(group *groups, int *count, const bk_slab *slab, int expert)
{
    for (int i = 0; i < *count; i++)
        if (groups[i].expert == expert)
            return &groups[i];
    groups[*count] =
        (group){.expert = expert, .member = BK_NEW(slab->arena, bk_parameter *, slab->parameters)};
    return &groups[(*count)++];
}

static int group_count(const bk_slab *slab)
{
    int most = 0;
    for (int i = 0; i < slab->parameters; i++)
        if (slab->parameter[i]->expert >= most)
            most = slab->parameter[i]->expert + 1;
    return most + 1;
}

/* A second use has a bucket of its own, cut like that of the first use.  It comes first: the second
 * use is made last in forward, so its gradient is ready first. */
static void add_second_uses(bk_slab *slab)
{
    int buckets = slab->buckets;
    slab->grads = slab->values;
    for (int i = 0; i < slab->parameters; i++) {
        bk_parameter *p = slab->parameter[i];
        if (p->uses < 2)
            continue;
        bk_bucket *b = add_bucket(slab, p->expert);
        const bk_bucket *first = &slab->bucket[p->bucket];
        b->offset = first->offset;
        b->length = first->length;
        b->grad_offset = slab->grads;
        b->use = 1;
        b->sibling = p->bucket;
        b->parameters = 1;
        p->grad_offset[1] = slab->grads;
        slab->grads += b->length;
    }
    int added = slab->buckets - buckets;
    bk_bucket *ordered = BK_NEW(slab->arena, bk_bucket, slab->buckets > 0 ? slab->buckets : 1);
    memcpy(ordered, slab->bucket + buckets, (size_t)added * sizeof *ordered);
    memcpy(ordered + added, slab->bucket, (size_t)buckets * sizeof *ordered);
    slab->bucket = ordered;
    for (int i = 0; i < added; i++)
        ordered[i].sibling += added;
    for (int i = 0; i < slab->parameters; i++)
        slab->parameter[i]->bucket += added;
}

void bk_slab_layout(bk_slab *slab, int64_t bucket_floats, int64_t align)
{
    int groups = 0;
    group *list = BK_NEW(slab->arena, group, group_count(slab));
    for (int i = slab->parameters - 1; i >= 0; i--) {
        bk_parameter *p = slab->parameter[i];
        group *g = group_of(list, &groups, slab, p->expert);
        if (p->uses > 1)
            close_group(slab, g, align);
        g->member[g->members++] = p;
        g->filled += p->count;
        if (g->filled >= bucket_floats || p->uses > 1)
            close_group(slab, g, align);
    }
    for (int i = 0; i < groups; i++)
        close_group(slab, &list[i], align);
    add_second_uses(slab);
    slab->value = BK_ZNEW(slab->arena, float, slab->values);
}

void bk_slab_want_gradients(bk_slab *slab)
{
    slab->grad = BK_ZNEW(slab->arena, float, slab->grads);
}

/* ---- initial values ---- */

/* Four values for the elements 4 i .. 4 i + 3 of a logical tensor. */
static void draw_four(const bk_parameter *p, bk_philox_key key, uint64_t name, int64_t i,
                      double out[4])
{
    uint64_t word[4];
    bk_philox(key, name, 0, (uint64_t)i, word);
    if (p->init == BK_INIT_UNIFORM) {
        for (int j = 0; j < 4; j++)
            out[j] = 2.0 * bk_unit(word[j]) - 1.0;
        return;
    }
    bk_normal_pair(word[0], word[1], out);
    bk_normal_pair(word[2], word[3], out + 2);
}

static void draw(const bk_parameter *p, uint64_t seed, float *x)
{
    bk_philox_key key = bk_philox_for(seed, p->layer, BK_USE_INIT);
    uint64_t name = bk_hash_bytes(p->name, strlen(p->name));
    double four[4];
    int64_t drawn = -1;
    for (int64_t i = 0; i < p->count; i++) {
        int64_t place = p->global_offset + i;
        if (place / 4 != drawn) {
            drawn = place / 4;
            draw_four(p, key, name, drawn, four);
        }
        x[i] = (float)(four[place % 4] * p->init_scale);
    }
}

static void initialise(const bk_slab *slab, const bk_parameter *p, uint64_t seed)
{
    float *x = bk_parameter_value(slab, p);
    if (p->init == BK_INIT_ZERO || p->init == BK_INIT_ONE) {
        for (int64_t i = 0; i < p->count; i++)
            x[i] = p->init == BK_INIT_ONE ? 1.0f : 0.0f;
        return;
    }
    draw(p, seed, x);
}

static void initialise_buffer(const bk_buffer *b, uint64_t seed)
{
    bk_parameter like = {.name = b->name,
                         .count = b->count,
                         .init = BK_INIT_UNIFORM,
                         .init_scale = b->init_scale,
                         .layer = b->layer};
    if (b->init_scale > 0)
        draw(&like, seed, b->data);
}

void bk_slab_initialise(bk_slab *slab, uint64_t seed)
{
    for (int i = 0; i < slab->parameters; i++)
        initialise(slab, slab->parameter[i], seed);
    for (int i = 0; i < slab->buffers; i++)
        initialise_buffer(slab->buffer[i], seed);
}
