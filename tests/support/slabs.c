#include "tests/support/slabs.h"

#include "core/rng.h"
#include "dist/collective.h"
#include "tests/support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- parameters ---- */

static void declare(bk_slab *slab, const char *name, int64_t count, int expert, int uses)
{
    bk_slab_declare(slab, &(bk_parameter){.name = name,
                                          .shape = {count},
                                          .dims = 1,
                                          .expert = expert,
                                          .uses = uses,
                                          .decay = count > 10,
                                          .init = BK_INIT_NORMAL,
                                          .init_scale = 1.0});
}

static bk_slab *make_slab(bk_arena *arena, const bk_test_layout *l, int64_t align, int first,
                          int last)
{
    bk_slab *slab = bk_slab_new(arena);
    declare(slab, "embed", 301, -1, 2);
    for (int layer = 0; layer < 2; layer++) {
        declare(slab, layer ? "block1/w" : "block0/w", 97, -1, 1);
        for (int e = first; e < last; e++) {
            declare(slab, layer ? "block1/moe/w" : "block0/moe/w", 45, e, 1);
            declare(slab, layer ? "block1/moe/b" : "block0/moe/b", 5, e, 1);
        }
        declare(slab, layer ? "block1/b" : "block0/b", 1, -1, 1);
    }
    declare(slab, "head", 130, -1, 1);
    bk_slab_layout(slab, l->bucket_floats, align);
    bk_slab_want_gradients(slab);
    bk_slab_initialise(slab, 3);
    return slab;
}

bool bk_test_slab_exact(const bk_test_slab *s)
{
    return bk_lanes_exact(&s->lanes, s->world->size);
}

bk_test_slab bk_test_slab_open(const bk_test_layout *layout)
{
    bk_test_slab s = {.layout = *layout, .arena = bk_arena_new("slab")};
    int ep = layout->expert > 0 ? layout->expert : 1;
    assert_int_equal(bk_world_open(s.arena, ep, &s.world), BK_OK);
    int rank = s.world->rank, size = s.world->size, place = rank % ep;
    int64_t share = layout->experts / ep, more = layout->experts % ep;
    int64_t first = place * share + (place < more ? place : more);
    s.lanes = bk_lanes_of_rank(layout->lanes, layout->lanes, rank, size);
    int64_t align = 16 * (bk_test_slab_exact(&s) ? layout->lanes : size);
    s.slab = make_slab(s.arena, layout, align, (int)first, (int)(first + share + (place < more)));
    s.whole = make_slab(s.arena, layout, align, 0, (int)layout->experts);
    s.reduction = bk_reduction_new(s.arena, s.world, s.slab, &s.lanes, layout->overlap);
    s.tape = BK_NEW(s.arena, bk_tape, 1);
    *s.tape = bk_test_tape(BK_F32, s.lanes);
    return s;
}

void bk_test_slab_close(bk_test_slab *s)
{
    bk_world_close(s->world);
    bk_test_tape_free(s->tape);
    bk_arena_free(s->arena);
}

const bk_parameter *bk_test_slab_twin(const bk_test_slab *s, const bk_parameter *p)
{
    for (int i = 0; i < s->whole->parameters; i++) {
        const bk_parameter *q = s->whole->parameter[i];
        if (strcmp(p->name, q->name) == 0 && p->expert == q->expert)
            return q;
    }
    fail_msg("%s of expert %d has no twin", p->name, p->expert);
    return NULL;
}

/* ---- gradients ---- */

/* What one lane adds to element i: magnitudes differ, so that another order of additions shows. */
static float lane_gradient(const bk_parameter *p, int use, int64_t step, int64_t lane, int64_t i)
{
    uint64_t h = BK_HASH64(bk_hash_bytes(p->name, strlen(p->name)), (uint64_t)p->expert,
                           (uint64_t)use, (uint64_t)step, (uint64_t)lane, (uint64_t)i);
    return (float)ldexp(2.0 * bk_unit(h) - 1.0, (int)(h % 16) - 8);
}

/* The lane tree over lanes first .. first+count-1; any other count: split as evenly. */
static float lane_sum(const bk_parameter *p, int use, int64_t step, bk_segment lanes, int64_t i)
{
    int64_t middle = (lanes.lo + lanes.hi) / 2;
    if (lanes.lo >= lanes.hi)
        return 0.0f;
    if (lanes.lo + 1 == lanes.hi)
        return lane_gradient(p, use, step, lanes.lo, i);
    return lane_sum(p, use, step, (bk_segment){lanes.lo, middle}, i) +
           lane_sum(p, use, step, (bk_segment){middle, lanes.hi}, i);
}

/* A dense parameter sees the own lanes; an expert those of all ranks that send it tokens. */
static bk_segment lanes_seen(const bk_test_slab *s, const bk_parameter *p)
{
    int ep = p->expert < 0 ? 1 : s->world->expert, group = s->world->rank / ep;
    int64_t total = s->lanes.total, size = s->world->size;
    return (bk_segment){total * group * ep / size, total * (group + 1) * ep / size};
}

static void fill_leaf(const bk_test_slab *s, const bk_parameter *p, int use, int64_t step)
{
    bk_tensor *leaf = bk_tape_parameter(s->tape, s->slab->parameter[p->index]);
    bk_segment lanes = lanes_seen(s, p);
    for (int64_t i = 0; i < p->count; i++)
        ((float *)leaf->grad)[i] = lane_sum(p, use, step, lanes, i);
    leaf->grad_fresh = false;
}

static void fill_whole(const bk_test_slab *s, int64_t step)
{
    bk_segment all = {0, s->lanes.total};
    for (int k = 0; k < s->whole->parameters; k++) {
        const bk_parameter *p = s->whole->parameter[k];
        float *grad = s->whole->grad + p->grad_offset[0];
        for (int64_t i = 0; i < p->count; i++) {
            grad[i] = lane_sum(p, 0, step, all, i);
            if (p->uses > 1)
                grad[i] += lane_sum(p, 1, step, all, i);
        }
    }
}

void bk_test_slab_backward(bk_test_slab *s, int64_t step)
{
    bk_tape_begin(s->tape);
    bk_reduction_begin(s->reduction, s->tape);
    for (int k = 0; k < s->slab->parameters; k++)
        for (int use = 0; use < s->slab->parameter[k]->uses; use++)
            fill_leaf(s, s->slab->parameter[k], use, step);
    bk_tape_backward_seeded(s->tape);
    bk_reduction_finish(s->reduction);
    fill_whole(s, step);
}

/* ---- the norm ---- */

static double squares(const float *x, int64_t n)
{
    double a[8] = {0};
    for (int64_t i = 0; i < n; i++)
        a[i % 8] += (double)x[i] * (double)x[i];
    return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
}

static double tree(const double *x, int64_t n)
{
    return n == 1 ? x[0] : tree(x, n / 2) + tree(x + n / 2, n / 2);
}

/* Blocks of one kind of bucket: dense (-1) or one expert. */
static double squares_of(const bk_test_slab *s, int expert)
{
    int64_t blocks = s->lanes.total;
    double *record = calloc((size_t)blocks, sizeof *record);
    assert_non_null(record);
    for (int k = 0; k < s->whole->buckets; k++) {
        const bk_bucket *b = &s->whole->bucket[k];
        int64_t width = b->length / blocks;
        for (int64_t i = 0; i < blocks && b->use == 0 && b->expert == expert; i++)
            record[i] += squares(s->whole->grad + b->grad_offset + i * width, width);
    }
    double sum = tree(record, blocks);
    free(record);
    return sum;
}

double bk_test_slab_norm(const bk_test_slab *s)
{
    double sum = squares_of(s, -1);
    for (int e = 0; e < s->layout.experts; e++)
        sum += squares_of(s, e);
    return sqrt(sum);
}
