#include "dist/shard.h"

typedef struct moments {
    float *m, *v;
} moments;

/* The part of a parameter inside floats [lo, hi) of the slab; count 0 when there is none. */
static bk_run run_inside(const bk_parameter *p, int64_t lo, int64_t hi)
{
    int64_t first = lo > p->offset ? lo : p->offset;
    int64_t last = hi < p->offset + p->count ? hi : p->offset + p->count;
    return (bk_run){
        .parameter = p, .first = first - p->offset, .count = last > first ? last - first : 0};
}

/* Whole buckets with zero 0, own segments with zero 1. */
static bk_segment part_of_bucket(const bk_reduction *r, const bk_slab *slab, int bucket, bool whole)
{
    return whole ? (bk_segment){0, slab->bucket[bucket].length} : bk_reduction_segment(r, bucket);
}

static bk_run *list_runs(bk_arena *arena, const bk_reduction *r, const bk_slab *slab, bool whole,
                         int64_t *count)
{
    bk_run *list = BK_NEW(arena, bk_run, slab->parameters);
    *count = 0;
    for (int i = 0; i < slab->parameters; i++) {
        const bk_parameter *p = slab->parameter[i];
        bk_segment part = part_of_bucket(r, slab, p->bucket, whole);
        int64_t base = slab->bucket[p->bucket].offset;
        bk_run run = run_inside(p, base + part.lo, base + part.hi);
        if (run.count > 0)
            list[(*count)++] = run;
    }
    return list;
}

static int64_t floats_of(const bk_run *list, int64_t count)
{
    int64_t floats = 0;
    for (int64_t i = 0; i < count; i++)
        floats += (list[i].count + 15) / 16 * 16;
    return floats;
}

static void place_moments(bk_run *list, int64_t count, moments at)
{
    for (int64_t i = 0; i < count; i++) {
        int64_t room = (list[i].count + 15) / 16 * 16;
        list[i].m = at.m;
        list[i].v = at.v;
        at.m = at.m ? at.m + room : NULL;
        at.v = at.v ? at.v + room : NULL;
    }
}

/* With zero 0 the own runs point into the moments of the whole parameters. */
static void share_moments(bk_run *own, int64_t owned, const bk_run *update, int64_t updates)
{
    for (int64_t i = 0, j = 0; i < owned; i++) {
        while (j < updates && update[j].parameter != own[i].parameter)
            j++;
        BK_ASSERT(j < updates, "%s is owned but not updated", own[i].parameter->name);
        int64_t inside = own[i].first - update[j].first;
        own[i].m = update[j].m ? update[j].m + inside : NULL;
        own[i].v = update[j].v ? update[j].v + inside : NULL;
    }
}

bk_shard *bk_shard_new(bk_arena *arena, const bk_reduction *r, const bk_slab *slab, int count,
                       int zero)
{
    bk_shard *shard = BK_ZNEW(arena, bk_shard, 1);
    shard->own = list_runs(arena, r, slab, false, &shard->owned);
    shard->update = list_runs(arena, r, slab, zero == 0, &shard->updates);
    shard->moment_floats = floats_of(shard->update, shard->updates);
    moments at = {0};
    if (count > 0)
        at.m = BK_ZNEW(arena, float, shard->moment_floats);
    if (count > 1)
        at.v = BK_ZNEW(arena, float, shard->moment_floats);
    place_moments(shard->update, shard->updates, at);
    share_moments(shard->own, shard->owned, shard->update, shard->updates);
    return shard;
}

void bk_shard_update(const bk_shard *shard, const bk_slab *slab, const bk_optimizer_kind *kind,
                     const void *config, const bk_update *u)
{
    for (int64_t i = 0; i < shard->updates; i++) {
        const bk_run *run = &shard->update[i];
        const bk_parameter *p = run->parameter;
        bk_update one = *u;
        one.n = run->count;
        one.value = slab->value + p->offset + run->first;
        one.grad = slab->grad + p->grad_offset[0] + run->first;
        one.m = run->m;
        one.v = run->v;
        one.decay = p->decay ? u->decay : 0.0;
        kind->update(config, &one);
    }
}
