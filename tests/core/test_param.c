/* The slab: places, buckets and initial values. */
#include "core/param.h"

#include "core/rng.h"
#include "tests/support/check.h"
#include "tests/support/child.h"

#include <math.h>
#include <string.h>

enum { EXPERTS = 4, ALIGN = 64 };

static bk_arena *arena;

static int make(void **state)
{
    (void)state;
    arena = bk_arena_new("run");
    return 0;
}

static int unmake(void **state)
{
    (void)state;
    bk_arena_free(arena);
    return 0;
}

static bk_parameter *declare(bk_slab *slab, const char *name, int64_t rows, int64_t cols, int uses)
{
    return bk_slab_declare(slab, &(bk_parameter){.name = name,
                                                 .shape = {rows, cols},
                                                 .dims = 2,
                                                 .uses = uses,
                                                 .expert = -1,
                                                 .init = BK_INIT_NORMAL,
                                                 .init_scale = 0.02,
                                                 .layer = 1});
}

/* One expert of "moe/w" [EXPERTS,5,3]. */
static bk_parameter *declare_expert(bk_slab *slab, const char *name, int expert)
{
    return bk_slab_declare(slab, &(bk_parameter){.name = name,
                                                 .global_shape = {EXPERTS, 5, 3},
                                                 .global_dims = 3,
                                                 .global_offset = expert * 15,
                                                 .shape = {5, 3},
                                                 .dims = 2,
                                                 .expert = expert,
                                                 .init = BK_INIT_NORMAL,
                                                 .init_scale = 0.02,
                                                 .layer = 2});
}

/* A model of dense parameters around the experts first .. first + count - 1. */
static bk_slab *model(int first, int count, int64_t bucket_floats, int64_t align)
{
    bk_slab *slab = bk_slab_new(arena);
    declare(slab, "embed", 30, 4, 2);
    for (int i = 0; i < 6; i++) {
        char name[32];
        snprintf(name, sizeof name, "block%d/w", i);
        declare(slab, name, 10 + i, 7, 1);
        for (int e = first; i == 3 && e < first + count; e++) {
            declare_expert(slab, "moe/w1", e);
            declare_expert(slab, "moe/w2", e);
        }
    }
    bk_slab_layout(slab, bucket_floats, align);
    return slab;
}

static bk_parameter *find(const bk_slab *slab, const char *name, int expert)
{
    for (int i = 0; i < slab->parameters; i++)
        if (strcmp(slab->parameter[i]->name, name) == 0 && slab->parameter[i]->expert == expert)
            return slab->parameter[i];
    fail_msg("no %s", name);
    return NULL;
}

/* ---- declaration ---- */

/* Each is compared with those of its layer only: 20 billion comparisons would not end in time. */
static void many_layers(void **state)
{
    enum { LAYERS = 20000, PARTS = 10 };
    bk_slab *slab = bk_slab_new(arena);
    (void)state;
    for (int i = 0; i < LAYERS * PARTS; i++)
        bk_slab_declare(slab, &(bk_parameter){.name = bk_arena_printf(arena, "block%d/part%d",
                                                                      i / PARTS, i % PARTS),
                                              .shape = {2},
                                              .dims = 1,
                                              .expert = -1,
                                              .layer = i / PARTS});
    assert_int_equal(slab->total_count, 2 * LAYERS * PARTS);
}

static void a_declaration_is_copied(void **state)
{
    bk_slab *slab = bk_slab_new(arena);
    char name[] = "wq";
    (void)state;
    bk_parameter *p = declare(slab, name, 6, 5, 0);
    memset(name, 'x', 2);
    assert_string_equal(p->name, "wq");
    assert_true(p->count == 30 && p->uses == 1 && p->index == 0 && p->slab == slab);
    assert_true(p->global_dims == 2 && p->global_shape[0] == 6 && p->global_shape[1] == 5);
    declare(slab, "wk", 2, 2, 1);
    for (int e = 0; e < 3; e++) /* three slices of one logical tensor */
        declare_expert(slab, "moe/w1", e);
    assert_int_equal(slab->parameters, 5);
    assert_int_equal(slab->total_count, 30 + 4 + EXPERTS * 15);
}

static void many_parameters_and_buffers(void **state)
{
    enum { MANY = 300 };
    bk_slab *slab = bk_slab_new(arena);
    char name[32];
    (void)state;
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "p%d", i);
        declare(slab, name, 1, 1 + i % 3, 1);
        bk_slab_declare_buffer(slab, name, BK_F64, BK_SHAPE(3));
    }
    bk_slab_layout(slab, 16, 16);
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "p%d", i);
        assert_string_equal(slab->parameter[i]->name, name);
        assert_string_equal(slab->buffer[i]->name, name);
        assert_int_equal(slab->parameter[i]->index, i);
    }
}

static void buffers_start_at_zero(void **state)
{
    bk_slab *slab = bk_slab_new(arena);
    (void)state;
    bk_buffer *bias = bk_slab_declare_buffer(slab, "router_bias", BK_F64, BK_SHAPE(8)),
              *steps = bk_slab_declare_buffer(slab, "ot_steps", BK_I64, 0, NULL);
    assert_true(bias->count == 8 && steps->count == 1);
    for (int i = 0; i < 8; i++)
        assert_true(((const double *)bias->data)[i] == 0.0);
    assert_true(*(const int64_t *)steps->data == 0);
    assert_ptr_equal(bk_slab_find_buffer(slab, "ot_steps"), steps);
    assert_null(bk_slab_find_buffer(slab, "ot"));
}

static void declare_late(void *slab)
{
    declare(slab, "late", 1, 1, 1);
}

static void nothing_is_declared_after_the_layout(void **state)
{
    (void)state;
    bk_test_dies(declare_late, model(0, 1, 100, ALIGN), "late is declared after the layout");
}

/* ---- layout ---- */

/* Parameters lie in their bucket, aligned and apart; buckets lie one behind the other. */
static void check_layout(const bk_slab *slab, int64_t align)
{
    int members[64] = {0};
    int64_t value = 0, grad = slab->values;
    assert_in_range(slab->buckets, 1, 63);
    for (int i = 0; i < slab->buckets; i++) {
        const bk_bucket *b = &slab->bucket[i];
        assert_int_equal(b->length % align, 0);
        assert_true(b->length > 0);
        assert_int_equal(b->use == 1 ? b->grad_offset : b->offset, b->use == 1 ? grad : value);
        if (b->use == 1) {
            assert_int_equal(b->offset, slab->bucket[b->sibling].offset);
            assert_int_equal(b->length, slab->bucket[b->sibling].length);
            grad += b->length;
        } else {
            assert_int_equal(b->sibling, -1);
            assert_int_equal(b->grad_offset, b->offset);
            value += b->length;
        }
    }
    assert_int_equal(slab->values, value);
    assert_int_equal(slab->grads, grad);
    for (int i = 0; i < slab->parameters; i++) {
        const bk_parameter *p = slab->parameter[i];
        const bk_bucket *b = &slab->bucket[p->bucket];
        members[p->bucket]++;
        assert_int_equal(p->offset % 16, 0);
        assert_int_equal(p->grad_offset[0], p->offset);
        assert_true(p->offset >= b->offset && p->offset + p->count <= b->offset + b->length);
        assert_int_equal(p->expert, b->expert);
        for (int j = 0; j < i; j++) {
            const bk_parameter *q = slab->parameter[j];
            assert_true(p->offset + p->count <= q->offset || q->offset + q->count <= p->offset);
        }
    }
    for (int i = 0; i < slab->buckets; i++)
        assert_int_equal(slab->bucket[i].parameters, slab->bucket[i].use == 1 ? 1 : members[i]);
}

static void every_cut_is_sound(void **state)
{
    const int64_t floats[] = {1, 64, 100, 1000, 1 << 20}, aligns[] = {16, 48, 64, 256};
    (void)state;
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 4; j++) {
            bk_slab *slab = model(0, EXPERTS, floats[i], aligns[j]);
            check_layout(slab, aligns[j]);
            for (int64_t k = 0; k < slab->values; k++)
                assert_true(slab->value[k] == 0.0f);
            assert_null(slab->grad);
            bk_slab_want_gradients(slab);
            for (int64_t k = 0; k < slab->grads; k++)
                assert_true(slab->grad[k] == 0.0f);
        }
}

static void buckets_follow_the_order_of_backward(void **state)
{
    bk_slab *slab = model(0, 0, 100, ALIGN);
    int before = -1;
    (void)state;
    assert_true(slab->buckets > 3);
    for (int i = slab->parameters - 1; i >= 0; i--) {
        assert_true(slab->parameter[i]->bucket >= before);
        before = slab->parameter[i]->bucket;
    }
    for (int i = 0; i < slab->buckets; i++) { /* about the size asked for */
        int64_t filled = 0, largest = 0;
        for (int j = 0; j < slab->parameters; j++)
            if (slab->parameter[j]->bucket == i) {
                filled += slab->parameter[j]->count;
                largest = slab->parameter[j]->count > largest ? slab->parameter[j]->count : largest;
            }
        assert_true(filled - largest < 100);
    }
}

static void a_tied_parameter_has_buckets_of_its_own(void **state)
{
    (void)state;
    bk_slab *slab = model(0, 2, 1 << 20, ALIGN);
    const bk_parameter *embed = find(slab, "embed", -1);
    int second = 0;
    assert_int_equal(slab->bucket[embed->bucket].parameters, 1);
    while (slab->bucket[second].use != 1)
        second++;
    assert_int_equal(second, 0); /* made last in forward, so ready first */
    assert_int_equal(slab->bucket[second].sibling, embed->bucket);
    assert_int_equal(embed->grad_offset[1], slab->bucket[second].grad_offset);
    assert_true(embed->grad_offset[1] >= slab->values);
}

static void an_expert_bucket_holds_one_expert(void **state)
{
    (void)state;
    bk_slab *slab = model(0, EXPERTS, 1 << 20, ALIGN);
    for (int e = 0; e < EXPERTS; e++) {
        assert_int_equal(find(slab, "moe/w1", e)->bucket, find(slab, "moe/w2", e)->bucket);
        assert_int_equal(slab->bucket[find(slab, "moe/w1", e)->bucket].expert, e);
    }
}

/* What a rank holds of the experts moves dense parameters as a whole, and does not cut them
 * otherwise. */
static void the_dense_cut_does_not_depend_on_the_experts_held(void **state)
{
    (void)state;
    for (int64_t floats = 50; floats <= 400; floats += 50) {
        bk_slab *all = model(0, EXPERTS, floats, ALIGN), *half = model(2, 2, floats, ALIGN),
                *none = model(0, 0, floats, ALIGN);
        for (int i = 0; i < none->parameters; i++) {
            const char *name = none->parameter[i]->name;
            const bk_parameter *p = none->parameter[i], *a = find(all, name, -1),
                               *h = find(half, name, -1);
            int64_t inside = p->offset - none->bucket[p->bucket].offset;
            assert_int_equal(a->offset - all->bucket[a->bucket].offset, inside);
            assert_int_equal(h->offset - half->bucket[h->bucket].offset, inside);
            assert_int_equal(all->bucket[a->bucket].length, none->bucket[p->bucket].length);
            assert_int_equal(half->bucket[h->bucket].length, none->bucket[p->bucket].length);
        }
    }
}

/* ---- initial values ---- */

static void experts_start_alike_wherever_they_lie(void **state)
{
    (void)state;
    bk_slab *all = model(0, EXPERTS, 100, ALIGN), *part = model(2, 2, 1000, 16);
    bk_slab_initialise(all, 5);
    bk_slab_initialise(part, 5);
    for (int i = 0; i < part->parameters; i++) {
        const bk_parameter *p = part->parameter[i], *q = find(all, p->name, p->expert);
        assert_memory_equal(bk_parameter_value(part, p), bk_parameter_value(all, q),
                            (size_t)p->count * sizeof(float));
    }
}

/* The slices of a logical tensor hold the values of the whole one. */
static void a_slice_starts_like_the_whole(void **state)
{
    (void)state;
    bk_slab *slices = model(0, EXPERTS, 100, ALIGN), *whole = bk_slab_new(arena);
    bk_parameter *w = bk_slab_declare(whole, &(bk_parameter){.name = "moe/w1",
                                                             .shape = {EXPERTS, 5, 3},
                                                             .dims = 3,
                                                             .expert = -1,
                                                             .init = BK_INIT_NORMAL,
                                                             .init_scale = 0.02,
                                                             .layer = 2});
    bk_slab_layout(whole, 100, 16);
    bk_slab_initialise(whole, 9);
    bk_slab_initialise(slices, 9);
    for (int e = 0; e < EXPERTS; e++)
        assert_memory_equal(bk_parameter_value(slices, find(slices, "moe/w1", e)),
                            bk_parameter_value(whole, w) + e * 15, 15 * sizeof(float));
}

static double difference(bk_init init, double scale, const char *name, int layer, uint64_t seed)
{
    static float first[4000];
    bk_slab *slab = bk_slab_new(arena);
    bk_parameter *p = bk_slab_declare(slab, &(bk_parameter){.name = name,
                                                            .shape = {4000},
                                                            .dims = 1,
                                                            .expert = -1,
                                                            .init = init,
                                                            .init_scale = scale,
                                                            .layer = layer});
    bk_slab_layout(slab, 100, 16);
    bk_slab_initialise(slab, seed);
    const float *x = bk_parameter_value(slab, p);
    double most = 0.0;
    for (int i = 0; i < 4000; i++) {
        most = fmax(most, fabs((double)x[i] - (double)first[i]));
        first[i] = x[i];
    }
    return most;
}

static void values_depend_on_seed_layer_and_name(void **state)
{
    (void)state;
    difference(BK_INIT_NORMAL, 0.02, "w", 1, 1);
    assert_true(difference(BK_INIT_NORMAL, 0.02, "w", 1, 1) == 0.0);
    assert_true(difference(BK_INIT_NORMAL, 0.02, "w", 1, 2) > 0.02);
    assert_true(difference(BK_INIT_NORMAL, 0.02, "w", 2, 2) > 0.02);
    assert_true(difference(BK_INIT_NORMAL, 0.02, "v", 2, 2) > 0.02);
}

static void values_have_their_distribution(void **state)
{
    const bk_init inits[] = {BK_INIT_ZERO, BK_INIT_ONE, BK_INIT_NORMAL, BK_INIT_UNIFORM};
    const double mean[] = {0.0, 1.0, 0.0, 0.0}, square[] = {0.0, 1.0, 0.25, 0.25 / 3.0};
    (void)state;
    for (int k = 0; k < 4; k++) {
        bk_slab *slab = bk_slab_new(arena);
        bk_parameter *p = bk_slab_declare(slab, &(bk_parameter){.name = "w",
                                                                .shape = {100, 201},
                                                                .dims = 2,
                                                                .expert = -1,
                                                                .init = inits[k],
                                                                .init_scale = 0.5});
        bk_slab_layout(slab, 100, 16);
        bk_slab_initialise(slab, 3);
        double sum = 0.0, squares = 0.0, most = 0.0;
        for (int64_t i = 0; i < p->count; i++) {
            double x = (double)bk_parameter_value(slab, p)[i];
            sum += x / (double)p->count;
            squares += x * x / (double)p->count;
            most = fmax(most, fabs(x));
        }
        assert_true(fabs(sum - mean[k]) < 0.02 && fabs(squares - square[k]) < 0.01);
        if (inits[k] == BK_INIT_UNIFORM)
            assert_true(most <= 0.5 && most > 0.499);
        for (int64_t i = p->count; i < slab->values; i++) /* padding stays zero */
            assert_true(slab->value[i] == 0.0f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_declaration_is_copied),
        cmocka_unit_test(many_layers),
        cmocka_unit_test(many_parameters_and_buffers),
        cmocka_unit_test(buffers_start_at_zero),
        cmocka_unit_test(nothing_is_declared_after_the_layout),
        cmocka_unit_test(every_cut_is_sound),
        cmocka_unit_test(buckets_follow_the_order_of_backward),
        cmocka_unit_test(a_tied_parameter_has_buckets_of_its_own),
        cmocka_unit_test(an_expert_bucket_holds_one_expert),
        cmocka_unit_test(the_dense_cut_does_not_depend_on_the_experts_held),
        cmocka_unit_test(experts_start_alike_wherever_they_lie),
        cmocka_unit_test(a_slice_starts_like_the_whole),
        cmocka_unit_test(values_depend_on_seed_layer_and_name),
        cmocka_unit_test(values_have_their_distribution),
    };
    return cmocka_run_group_tests(tests, make, unmake);
}
