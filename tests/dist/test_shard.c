/* test: labels=unit,mpi ranks=1,2,3,4 timeout=120 */
/* Updates on shards against one serial update of every parameter. */
#include "tests/support/check.h"
#include "tests/support/ranks.h"
#include "tests/support/slabs.h"

#include "dist/collective.h"
#include "dist/shard.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct trainer {
    bk_test_slab s;
    bk_shard *shard;
    const bk_optimizer_kind *kind;
    void *config;
    int zero;
} trainer;

static const bk_update settings = {.clip = 0.5f, .lr = 0.01, .decay = 0.1};

static trainer open_trainer(const bk_optimizer_kind *kind, const bk_test_layout *layout, int zero)
{
    trainer t = {.s = bk_test_slab_open(layout), .kind = kind, .zero = zero};
    bk_arena *arena = t.s.arena;
    t.shard = bk_shard_new(arena, t.s.reduction, t.s.slab, kind->moments, zero);
    t.config = bk_arena_zalloc(arena, kind->config_size);
    assert_int_equal(bk_options_read(kind->options, t.config, NULL, "optim", arena), BK_OK);
    return t;
}

static void step(trainer *t, int64_t number)
{
    bk_update u = settings;
    u.step = number;
    bk_test_slab_backward(&t->s, number);
    if (t->zero == 0)
        bk_reduction_allgather(t->s.reduction, t->s.slab->grad);
    bk_shard_update(t->shard, t->s.slab, t->kind, t->config, &u);
    if (t->zero == 1)
        bk_reduction_allgather(t->s.reduction, t->s.slab->value);
}

/* The same on the whole slab: m and v of the size of the values, one update a parameter. */
static void serial_step(trainer *t, float *m, float *v, int64_t number)
{
    bk_slab *whole = t->s.whole;
    for (int k = 0; k < whole->parameters; k++) {
        const bk_parameter *p = whole->parameter[k];
        bk_update u = settings;
        u.step = number;
        u.n = p->count;
        u.value = whole->value + p->offset;
        u.grad = whole->grad + p->grad_offset[0];
        u.m = t->kind->moments > 0 ? m + p->offset : NULL;
        u.v = t->kind->moments > 1 ? v + p->offset : NULL;
        u.decay = p->decay ? settings.decay : 0.0;
        t->kind->update(t->config, &u);
    }
}

static void check_values(const bk_test_slab *s)
{
    for (int k = 0; k < s->slab->parameters; k++) {
        const bk_parameter *p = s->slab->parameter[k];
        const float *own = s->slab->value + p->offset,
                    *want = s->whole->value + bk_test_slab_twin(s, p)->offset;
        for (int64_t i = 0; i < p->count; i++)
            if (bk_test_slab_exact(s))
                assert_memory_equal(&own[i], &want[i], sizeof *own);
            else /* AdamW divides by the gradient's size: a rounding difference may be 2 lr */
                assert_true(fabs((double)own[i] - (double)want[i]) <= 0.1);
    }
}

/* own runs carry the moments that a serial run has for those elements */
static void check_moments(const trainer *t, const float *m, const float *v)
{
    if (!bk_test_slab_exact(&t->s))
        return;
    for (int64_t i = 0; i < t->shard->owned; i++) {
        const bk_run *run = &t->shard->own[i];
        int64_t at = bk_test_slab_twin(&t->s, run->parameter)->offset + run->first;
        size_t bytes = (size_t)run->count * sizeof(float);
        if (t->kind->moments > 0)
            assert_memory_equal(run->m, m + at, bytes);
        if (t->kind->moments > 1)
            assert_memory_equal(run->v, v + at, bytes);
    }
}

static void check_training(const bk_optimizer_kind *kind, const bk_test_layout *layout, int zero)
{
    trainer t = open_trainer(kind, layout, zero);
    size_t values = (size_t)t.s.whole->values;
    float *m = calloc(values, sizeof *m), *v = calloc(values, sizeof *v);
    assert_true(m && v);
    check_values(&t.s);
    for (int64_t number = 1; number <= 3; number++) {
        step(&t, number);
        serial_step(&t, m, v, number);
        check_values(&t.s);
        check_moments(&t, m, v);
    }
    free(m);
    free(v);
    bk_test_slab_close(&t.s);
}

/* Both ways of sharding give the bits of a serial run, so they give those of each other. */
static void shards_train_like_one_rank(void **state)
{
    (void)state;
    for (int i = 0; bk_optimizers[i]; i++)
        for (int zero = 0; zero < 2; zero++)
            check_training(bk_optimizers[i], &(bk_test_layout){.lanes = 4, .bucket_floats = 150},
                           zero);
}

static void experts_train_like_one_rank(void **state)
{
    (void)state;
    for (int ep = 1; ep <= bk_mpi_size(); ep++)
        for (int zero = 0; zero < 2 && bk_mpi_size() % ep == 0; zero++)
            check_training(
                &bk_optimizer_adamw,
                &(bk_test_layout){.lanes = 4, .bucket_floats = 60, .expert = ep, .experts = 5},
                zero);
}

/* Every element has one owner; with zero 1 a rank updates what it owns, with zero 0 everything. */
static void every_element_has_one_owner(void **state)
{
    (void)state;
    for (int zero = 0; zero < 2; zero++) {
        trainer t = open_trainer(&bk_optimizer_adamw,
                                 &(bk_test_layout){.lanes = 4, .bucket_floats = 150}, zero);
        const bk_slab *slab = t.s.slab;
        int64_t *owners = calloc((size_t)slab->values, sizeof *owners), elements = 0, updated = 0;
        assert_non_null(owners);
        for (int64_t i = 0; i < t.shard->owned; i++)
            for (int64_t j = 0; j < t.shard->own[i].count; j++)
                owners[t.shard->own[i].parameter->offset + t.shard->own[i].first + j]++;
        bk_sum_i64(t.s.world->ctl, slab->values, owners);
        for (int k = 0; k < slab->parameters; k++)
            for (int64_t i = 0; i < slab->parameter[k]->count; i++, elements++)
                assert_int_equal(owners[slab->parameter[k]->offset + i], 1);
        for (int64_t i = 0; i < t.shard->updates; i++)
            updated += t.shard->update[i].count;
        assert_true(t.shard->moment_floats >= updated);
        assert_true(t.shard->moment_floats <= updated + 15 * t.shard->updates);
        if (zero == 1)
            bk_sum_i64(t.s.world->ctl, 1, &updated);
        assert_int_equal(updated, elements);
        free(owners);
        bk_test_slab_close(&t.s);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shards_train_like_one_rank),
        cmocka_unit_test(experts_train_like_one_rank),
        cmocka_unit_test(every_element_has_one_owner),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
