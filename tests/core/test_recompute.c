/* Recomputation: the same bits as keeping everything, less memory, parameters ready once. */
#include "core/recompute.h"

#include "core/ops.h"
#include "core/param.h"
#include "tests/support/check.h"

#include <string.h>

enum { ROWS = 32, WIDTH = 16, STRETCHES = 6, LINKS = 40 };

static bk_arena *arena;
static bk_slab *slab;
static bk_parameter *weight[STRETCHES];
static int ready[STRETCHES];

static void on_ready(void *context, bk_parameter *p, int use)
{
    (void)context;
    assert_int_equal(use, 0);
    ready[p->index]++;
}

static int make(void **state)
{
    static const char *const names[STRETCHES] = {"a", "b", "c", "d", "e", "f"};
    (void)state;
    arena = bk_arena_new("run");
    slab = bk_slab_new(arena);
    for (int i = 0; i < STRETCHES; i++)
        weight[i] = bk_slab_declare(slab, &(bk_parameter){.name = names[i],
                                                          .shape = {WIDTH, WIDTH},
                                                          .dims = 2,
                                                          .expert = -1,
                                                          .init = BK_INIT_NORMAL,
                                                          .init_scale = 0.3});
    bk_slab_layout(slab, 1 << 20, 16);
    bk_slab_want_gradients(slab);
    bk_slab_initialise(slab, 1);
    return 0;
}

static int unmake(void **state)
{
    (void)state;
    bk_arena_free(arena);
    return 0;
}

/* x + dropout(gelu(x w)), behind many links that only take room. */
static bk_tensor *layer(void *context, bk_tape *t, bk_tensor *x)
{
    int i = *(const int *)context;
    bk_tensor *h = bk_linear(t, x, bk_tape_parameter(t, weight[i]), NULL);
    for (int j = 0; j < LINKS; j++)
        h = bk_scale(t, h, 1.0);
    h = bk_dropout(t, bk_activate(t, h, BK_GELU), 0.3, i, BK_USE_DROPOUT_FFN_OUT);
    return bk_add(t, x, h);
}

typedef struct outcome {
    float y[ROWS * WIDTH], dx[ROWS * WIDTH], *gradients;
    size_t peak;
} outcome;

static outcome run(bool recompute, int steps)
{
    static const int index[STRETCHES] = {0, 1, 2, 3, 4, 5};
    outcome out;
    bk_tape t = bk_test_tape(BK_F32, (bk_lanes){.total = 2, .count = 2, .batch = ROWS});
    bk_arena *inner = t.inner;
    t.training = true;
    t.grad_ready = on_ready;
    memset(ready, 0, sizeof ready);
    if (!recompute)
        t.inner = NULL;
    for (int step = 0; step < steps; step++) {
        bk_tape_begin(&t);
        bk_tensor *x = bk_test_fill(&t, BK_SHAPE(ROWS, WIDTH), 1, -1, 1), *y = x;
        for (int i = 0; i < STRETCHES; i++)
            y = bk_recompute(&t, layer, (void *)(uintptr_t)&index[i], y);
        bk_test_seed_fill(&t, y, 2, -1, 1);
        memcpy(out.y, y->data, sizeof out.y);
        bk_tape_backward_seeded(&t);
        memcpy(out.dx, x->grad, sizeof out.dx);
    }
    out.gradients = BK_NEW(arena, float, slab->grads);
    memcpy(out.gradients, slab->grad, (size_t)slab->grads * sizeof(float));
    out.peak = bk_arena_peak(t.arena) + bk_arena_peak(inner);
    for (int i = 0; i < STRETCHES; i++)
        assert_int_equal(ready[i], steps);
    t.inner = inner;
    bk_tape_forget_uses(&t);
    bk_test_tape_free(&t);
    return out;
}

static void the_same_bits_in_less_memory(void **state)
{
    (void)state;
    outcome kept = run(false, 1), again = run(true, 3);
    assert_memory_equal(kept.y, again.y, sizeof kept.y);
    assert_memory_equal(kept.dx, again.dx, sizeof kept.dx);
    assert_memory_equal(kept.gradients, again.gradients, (size_t)slab->grads * sizeof(float));
    assert_true(again.peak < kept.peak / 3);
}

static void evaluation_keeps_nothing(void **state)
{
    static const int index = 0;
    (void)state;
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(ROWS));
    t.recording = false;
    bk_tape_begin(&t);
    bk_tensor *x = bk_test_fill(&t, BK_SHAPE(ROWS, WIDTH), 1, -1, 1);
    size_t before = bk_arena_used(t.arena);
    bk_tensor *y = bk_recompute(&t, layer, (void *)(uintptr_t)&index, x);
    assert_null(t.last);
    assert_int_equal(bk_arena_used(t.inner), 0);
    assert_true(bk_arena_used(t.arena) - before < 2 * ROWS * WIDTH * sizeof(float));
    bk_tensor *plain = layer((void *)(uintptr_t)&index, &t, x);
    assert_memory_equal(y->data, plain->data, ROWS * WIDTH * sizeof(float));
    bk_test_tape_free(&t);
}

/* A stretch that no gradient reaches still makes its parameters ready, with zeros. */
static void unreached_parameters_become_ready(void **state)
{
    static const int index = 3;
    (void)state;
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(ROWS));
    t.grad_ready = on_ready;
    memset(ready, 0, sizeof ready);
    memset(slab->grad, 0x7F, (size_t)slab->grads * sizeof(float));
    bk_tape_begin(&t);
    bk_tensor *x = bk_test_fill(&t, BK_SHAPE(ROWS, WIDTH), 1, -1, 1);
    bk_recompute(&t, layer, (void *)(uintptr_t)&index, x);
    bk_tape_backward_seeded(&t);
    assert_int_equal(ready[3], 1);
    for (int64_t i = 0; i < weight[3]->count; i++)
        assert_true(slab->grad[weight[3]->grad_offset[0] + i] == 0.0f);
    assert_true(bk_test_grad(x, 0) == 0.0);
    bk_test_tape_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_same_bits_in_less_memory, make, unmake),
        cmocka_unit_test_setup_teardown(evaluation_keeps_nothing, make, unmake),
        cmocka_unit_test_setup_teardown(unreached_parameters_become_ready, make, unmake),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
