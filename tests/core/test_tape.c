/* The tape: what is recorded, in which order backward runs, and when a parameter is ready. */
#include "core/tape.h"

#include "core/hooks.h"
#include "core/ops.h"
#include "core/param.h"
#include "tests/support/check.h"
#include "tests/support/child.h"

#include <string.h>
#include <unistd.h>

enum { W = 4 }; /* elements of every tensor here */

/* ---- a fixture: three parameters and a log of what became ready ---- */

typedef struct event {
    const bk_parameter *parameter;
    int use;
    float grad; /* its first element at that moment */
} event;

typedef struct world {
    bk_arena *arena;
    bk_slab *slab;
    bk_tape tape;
    bk_parameter *p[3]; /* p[2] may be used twice */
    event ready[16];
    int events;
} world;

static world w;

static void on_ready(void *context, bk_parameter *p, int use)
{
    world *x = context;
    assert_in_range(x->events, 0, 15);
    x->ready[x->events++] = (event){p, use, x->slab->grad[p->grad_offset[use]]};
}

static int make(void **state)
{
    (void)state;
    const char *const names[] = {"a", "b", "tied"};
    memset(&w, 0, sizeof w);
    w.arena = bk_arena_new("run");
    w.slab = bk_slab_new(w.arena);
    for (int i = 0; i < 3; i++)
        w.p[i] = bk_slab_declare(w.slab, &(bk_parameter){.name = names[i],
                                                         .shape = {W},
                                                         .dims = 1,
                                                         .uses = i == 2 ? 2 : 1,
                                                         .expert = -1,
                                                         .init = BK_INIT_ONE});
    bk_slab_layout(w.slab, 1 << 20, 16);
    bk_slab_want_gradients(w.slab);
    bk_slab_initialise(w.slab, 1);
    for (int64_t i = 0; i < w.slab->grads; i++)
        w.slab->grad[i] = 99.0f; /* of the step before */
    w.tape = bk_test_tape(BK_F32, bk_lanes_single(1));
    w.tape.grad_ready = on_ready;
    w.tape.grad_ready_context = &w;
    return 0;
}

static int unmake(void **state)
{
    (void)state;
    bk_test_tape_free(&w.tape);
    bk_arena_free(w.arena);
    return 0;
}

static float *grad_of(int i, int use)
{
    return w.slab->grad + w.p[i]->grad_offset[use];
}

static void seed(bk_tensor *x, float value)
{
    float *grad = bk_grad(&w.tape, x);
    for (int64_t i = 0; i < bk_count(x); i++)
        grad[i] = value;
}

static void check_event(int i, int parameter, int use, float grad)
{
    assert_true(i < w.events);
    assert_ptr_equal(w.ready[i].parameter, w.p[parameter]);
    assert_int_equal(w.ready[i].use, use);
    assert_true(w.ready[i].grad == grad);
}

/* ---- parameters ---- */

static void parameters_are_ready_once_in_reverse_order(void **state)
{
    (void)state;
    bk_tape_begin(&w.tape);
    bk_tensor *x = bk_tape_variable(&w.tape, BK_SHAPE(W));
    memset(x->data, 0, W * sizeof(float));
    bk_tensor *a = bk_tape_parameter(&w.tape, w.p[0]), *b = bk_tape_parameter(&w.tape, w.p[1]);
    bk_tensor *y = bk_add(&w.tape, bk_scale(&w.tape, bk_add(&w.tape, x, a), 3.0), b);
    assert_ptr_equal(a->data, bk_parameter_value(w.slab, w.p[0]));
    seed(y, 2.0f);
    bk_tape_backward_seeded(&w.tape);
    assert_int_equal(w.events, 2);
    check_event(0, 1, 0, 2.0f);
    check_event(1, 0, 0, 6.0f);
    assert_true(grad_of(0, 0)[W - 1] == 6.0f && grad_of(1, 0)[W - 1] == 2.0f);
}

/* Ready means complete: all readers of the leaf have added their share. */
static void a_leaf_read_three_times_is_ready_once(void **state)
{
    (void)state;
    bk_tape_begin(&w.tape);
    bk_tensor *a = bk_tape_parameter(&w.tape, w.p[0]);
    bk_tensor *y = bk_add(&w.tape, bk_scale(&w.tape, a, 10.0), bk_mul(&w.tape, a, a));
    seed(y, 1.0f);
    bk_tape_backward_seeded(&w.tape);
    assert_int_equal(w.events, 1);
    check_event(0, 0, 0, 12.0f);
}

static void a_tied_parameter_has_a_slot_for_each_use(void **state)
{
    (void)state;
    bk_tape_begin(&w.tape);
    bk_tensor *first = bk_tape_parameter(&w.tape, w.p[2]);
    bk_tensor *x = bk_scale(&w.tape, first, 5.0);
    bk_tensor *second = bk_tape_parameter(&w.tape, w.p[2]);
    assert_ptr_equal(first->data, second->data);
    seed(bk_add(&w.tape, x, bk_scale(&w.tape, second, 7.0)), 1.0f);
    bk_tape_backward_seeded(&w.tape);
    assert_int_equal(w.events, 2);
    check_event(0, 2, 1, 7.0f);
    check_event(1, 2, 0, 5.0f);
    assert_true(grad_of(2, 0)[0] == 5.0f && grad_of(2, 1)[0] == 7.0f);
}

static void an_unused_parameter_gets_zeros(void **state)
{
    (void)state;
    bk_tape_begin(&w.tape);
    bk_tape_parameter(&w.tape, w.p[0]);                         /* nobody reads it */
    bk_scale(&w.tape, bk_tape_parameter(&w.tape, w.p[1]), 2.0); /* nobody reads what does */
    seed(bk_scale(&w.tape, bk_tape_parameter(&w.tape, w.p[2]), 3.0), 1.0f);
    bk_tape_backward_seeded(&w.tape);
    assert_int_equal(w.events, 3);
    for (int i = 0; i < W; i++)
        assert_true(grad_of(0, 0)[i] == 0.0f && grad_of(1, 0)[i] == 0.0f &&
                    grad_of(2, 0)[i] == 3.0f);
    assert_true(grad_of(2, 1)[0] == 99.0f); /* the second use was not asked for */
}

static void a_new_step_starts_afresh(void **state)
{
    (void)state;
    for (int step = 0; step < 3; step++) {
        w.events = 0;
        bk_tape_begin(&w.tape);
        bk_tape_segment(&w.tape, "x");
        seed(bk_scale(&w.tape, bk_tape_parameter(&w.tape, w.p[0]), step + 1.0), 1.0f);
        bk_tape_backward_seeded(&w.tape);
        assert_int_equal(w.events, 1);
        check_event(0, 0, 0, (float)step + 1.0f); /* not added to that of the step before */
        assert_int_equal(w.tape.segments, 1);
    }
}

static void use_too_often(void *unused)
{
    (void)unused;
    bk_tape_begin(&w.tape);
    bk_tape_parameter(&w.tape, w.p[0]);
    bk_tape_parameter(&w.tape, w.p[0]);
}

static void more_uses_than_declared_are_a_fault(void **state)
{
    (void)state;
    bk_test_dies(use_too_often, NULL, "a is used more often than declared");
}

static void evaluation_records_nothing(void **state)
{
    (void)state;
    w.tape.recording = false;
    bk_tape_begin(&w.tape);
    for (int i = 0; i < 3; i++) { /* any number of uses */
        bk_tensor *y = bk_scale(&w.tape, bk_tape_parameter(&w.tape, w.p[0]), 2.0);
        assert_false(y->needs_grad);
        assert_true(bk_test_value(y, 0) == 2.0);
    }
    assert_null(w.tape.last);
    bk_tape_backward_seeded(&w.tape);
    assert_int_equal(w.events, 0);
}

static void constants_leave_no_trace(void **state)
{
    (void)state;
    bk_tape_begin(&w.tape);
    bk_tensor *x = bk_tape_constant(&w.tape, BK_F32, BK_SHAPE(W));
    memset(x->data, 0, W * sizeof(float));
    bk_tensor *y = bk_scale(&w.tape, x, 2.0);
    assert_false(y->needs_grad);
    assert_null(w.tape.last);
    bk_tensor *a = bk_tape_parameter(&w.tape, w.p[0]);
    seed(bk_mul(&w.tape, y, a), 1.0f);
    bk_tape_backward_seeded(&w.tape);
    assert_null(x->grad);
    assert_null(y->grad);
}

/* ---- gradients ---- */

static void a_slot_says_whether_it_is_fresh(void **state)
{
    double beta;
    (void)state;
    bk_tape_begin(&w.tape);
    bk_tensor *x = bk_tape_variable(&w.tape, BK_SHAPE(W)),
              *y = bk_tape_variable(&w.tape, BK_SHAPE(W));
    float *grad = bk_grad_slot(&w.tape, x, &beta);
    assert_true(beta == 0.0 && grad == x->grad);
    for (int i = 0; i < W; i++)
        grad[i] = 7.0f;
    assert_ptr_equal(bk_grad_slot(&w.tape, x, &beta), grad);
    assert_true(beta == 1.0 && grad[0] == 7.0f);
    assert_ptr_equal(bk_grad(&w.tape, x), grad);
    assert_true(grad[0] == 7.0f);
    grad = bk_grad(&w.tape, y);
    for (int i = 0; i < W; i++)
        assert_true(grad[i] == 0.0f);
}

static void gradient_of_a_constant(void *unused)
{
    (void)unused;
    bk_grad(&w.tape, bk_tape_constant(&w.tape, BK_F32, BK_SHAPE(W)));
}

static void a_constant_has_no_gradient(void **state)
{
    (void)state;
    bk_test_dies(gradient_of_a_constant, NULL, "gradient of a constant");
}

/* ---- ops of this test ---- */

static int backward_calls;

static void same(bk_tape *t, bk_node *n)
{
    (void)t;
    n->out[0]->dims = n->in[0]->dims;
    memcpy(n->out[0]->shape, n->in[0]->shape, sizeof n->in[0]->shape);
}

static void pass(bk_tape *t, bk_node *n)
{
    (void)t;
    memcpy(n->out[0]->data, n->in[0]->data, W * sizeof(float));
}

static void pass_back(bk_tape *t, bk_node *n)
{
    float *grad = bk_grad(t, n->in[0]);
    backward_calls++;
    usleep(60); /* longer than the least time between polls */
    assert_non_null(n->out[0]->grad);
    for (int i = 0; i < W; i++)
        grad[i] += ((const float *)n->out[0]->grad)[i] + 1.0f;
}

static const bk_op local_op = {"local", same, pass, pass_back, .sample = NULL};
static const bk_op collective_op = {"collective", same, pass, pass_back, .collective = true};
static const bk_op fixed_op = {"fixed", same, pass, .nondifferentiable = true};

static bk_tensor *apply(const bk_op *op, bk_tensor *x)
{
    return bk_apply(&w.tape, op, 1, &x, 1, NULL, 0)->out[0];
}

static void collective_ops_run_backward_always(void **state)
{
    (void)state;
    bk_tape_begin(&w.tape);
    backward_calls = 0;
    apply(&local_op, bk_tape_parameter(&w.tape, w.p[0]));
    apply(&collective_op, bk_tape_parameter(&w.tape, w.p[1]));
    bk_tape_backward_seeded(&w.tape);
    assert_int_equal(backward_calls, 1);
    assert_true(grad_of(0, 0)[0] == 0.0f && grad_of(1, 0)[0] == 1.0f);
    assert_int_equal(w.events, 2);
}

static void nothing_flows_through_a_nondifferentiable_op(void **state)
{
    (void)state;
    bk_tape_begin(&w.tape);
    bk_tensor *a = bk_tape_parameter(&w.tape, w.p[0]), *y = apply(&fixed_op, a);
    assert_false(y->needs_grad);
    seed(bk_add(&w.tape, y, a), 4.0f);
    bk_tape_backward_seeded(&w.tape);
    assert_true(grad_of(0, 0)[0] == 4.0f);
}

/* ---- segments ---- */

static int polls;

static void count_poll(void)
{
    polls++;
}

static void a_poll_at_the_end_of_each_segment(void **state)
{
    (void)state;
    bk_tape_begin(&w.tape);
    bk_tensor *x = bk_tape_parameter(&w.tape, w.p[0]);
    const char *const names[] = {"embed", "block0", "block1", "head"};
    for (int i = 0; i < 4; i++) {
        bk_tape_segment(&w.tape, names[i]);
        x = apply(&local_op, apply(&local_op, x));
        assert_int_equal(x->producer->segment, i);
    }
    assert_int_equal(w.tape.segments, 4);
    assert_string_equal(w.tape.segment_name[2], "block1");
    polls = 0;
    bk_set_poll(count_poll);
    seed(x, 1.0f);
    bk_tape_backward_seeded(&w.tape);
    bk_set_poll(NULL);
    assert_int_equal(polls, 4);
    assert_true(grad_of(0, 0)[0] == 9.0f);
}

static char places[128];

static void note_place(const char *segment)
{
    strcat(strcat(places, segment), " ");
}

/* Forward and backward, a segment is told once, when the work comes to it. */
static void segments_are_told(void **state)
{
    (void)state;
    bk_tape_begin(&w.tape);
    bk_tensor *x = bk_tape_parameter(&w.tape, w.p[0]);
    places[0] = '\0';
    bk_set_place(note_place);
    x = apply(&local_op, x);
    bk_tape_segment(&w.tape, "block0");
    x = apply(&local_op, apply(&local_op, x));
    bk_tape_segment(&w.tape, "head");
    x = apply(&local_op, x);
    seed(x, 1.0f);
    bk_tape_backward_seeded(&w.tape);
    bk_set_place(NULL);
    bk_tape_segment(&w.tape, "unheard");
    assert_string_equal(places, "block0 head head block0 ");
}

/* ---- terms ---- */

static bk_tensor *record_of(bk_tensor *x)
{
    bk_tensor *value = bk_tape_variable(&w.tape, BK_SHAPE(2));
    value->dtype = BK_F64; /* a lane record is double on an fp32 tape */
    value->data = bk_arena_zalloc(w.tape.arena, 2 * sizeof(double));
    value->needs_grad = x->needs_grad;
    return value;
}

static void terms_are_seeded_by_their_weight(void **state)
{
    (void)state;
    bk_tape_begin(&w.tape);
    bk_tensor *x = bk_tape_variable(&w.tape, BK_SHAPE(W)),
              *fixed = bk_tape_constant(&w.tape, BK_F32, BK_SHAPE(W));
    bk_tensor *value = record_of(x), *figure = record_of(fixed);
    bk_tape_add_term(&w.tape, "kl", -1, value, 0.25);
    bk_tape_add_term(&w.tape, "moe_aux", 3, value, 0.5);
    bk_tape_add_term(&w.tape, "accuracy", -1, figure, 0.0);
    assert_int_equal(w.tape.terms, 3);
    assert_string_equal(w.tape.term[1].name, "moe_aux");
    assert_int_equal(w.tape.term[1].layer, 3);
    bk_tape_backward(&w.tape);
    for (int l = 0; l < 2; l++)
        assert_true(bk_test_grad(value, l) == 0.75);
    assert_null(figure->grad);
    bk_tape_begin(&w.tape);
    assert_int_equal(w.tape.terms, 0);
}

/* ---- memory ---- */

enum { BIG = 1 << 16 };

/* x scaled `links` times, each a node of its own. */
static bk_tensor *chain(bk_tensor *x, int links)
{
    for (int i = 0; i < links; i++)
        x = bk_scale(&w.tape, x, 1.0);
    return x;
}

/* Gradients live as long as the walk needs them: the seed and two more, whatever the depth. */
static void dead_gradients_make_room(void **state)
{
    (void)state;
    enum { LINKS = 20 };
    bk_tape_begin(&w.tape);
    bk_tensor *x = bk_tape_variable(&w.tape, BK_SHAPE(BIG));
    memset(x->data, 0, BIG * sizeof(float));
    bk_tensor *y = chain(x, LINKS);
    size_t forward = bk_arena_peak(w.tape.arena);
    seed(y, 2.0f);
    bk_tape_backward_seeded(&w.tape);
    assert_true(bk_arena_peak(w.tape.arena) < forward + 4 * BIG * sizeof(float));
    assert_true(bk_arena_used(w.tape.arena) < 6 * BIG * sizeof(float));
    assert_true(bk_test_grad(x, 0) == 2.0 && bk_test_grad(x, BIG - 1) == 2.0);
}

static void what_was_seeded_or_kept_stays(void **state)
{
    (void)state;
    bk_tape_begin(&w.tape);
    bk_tensor *x = bk_tape_variable(&w.tape, BK_SHAPE(BIG));
    memset(x->data, 0, BIG * sizeof(float));
    bk_tensor *kept = chain(x, 1), *dead = chain(kept, 1), *y = chain(dead, 1);
    kept->kept = true;
    seed(y, 3.0f);
    bk_tape_backward_seeded(&w.tape);
    assert_null(dead->data);
    assert_null(dead->grad);
    assert_true(bk_test_grad(y, 5) == 3.0 && bk_test_value(y, 5) == 0.0);
    assert_true(bk_test_grad(kept, 5) == 3.0 && bk_test_value(kept, 5) == 0.0);
}

/* An op that writes its gradient where its input stood. */
static bool in_place;

static void like_input(bk_tape *t, bk_node *n)
{
    (void)t;
    n->out[0]->dtype = n->in[0]->dtype;
    n->out[0]->dims = 1;
    n->out[0]->shape[0] = bk_count(n->in[0]);
}

static void square(bk_tape *t, bk_node *n)
{
    (void)t;
    for (int64_t i = 0; i < bk_count(n->in[0]); i++)
        ((float *)n->out[0]->data)[i] = bk_f32(n->in[0])[i] * bk_f32(n->in[0])[i];
}

static void square_back(bk_tape *t, bk_node *n)
{
    double beta;
    const float *x = bk_f32(n->in[0]), *dy = n->out[0]->grad;
    float *dx = bk_grad_in_place(t, n->in[0], &beta);
    in_place = dx == x;
    for (int64_t i = 0; i < bk_count(n->in[0]); i++)
        dx[i] = (beta == 0.0 ? 0.0f : dx[i]) + 2.0f * x[i] * dy[i];
}

static const bk_op op_square = {
    .name = "square", .shape = like_input, .forward = square, .backward = square_back};

static bk_tensor *squared(bk_tensor *x)
{
    return bk_apply(&w.tape, &op_square, 1, &x, 1, NULL, 0)->out[0];
}

/* In place only behind a product, whose backward does not look at its output, and only at the last
 * reader. */
static void a_gradient_takes_the_place_of_its_tensor(void **state)
{
    (void)state;
    for (int readers = 1; readers <= 2; readers++) {
        bk_tape_begin(&w.tape);
        bk_tensor *x = bk_test_fill(&w.tape, BK_SHAPE(1, 2), 1, 1, 2),
                  *eye = bk_test_fill(&w.tape, BK_SHAPE(2, 2), 2, 0, 0);
        ((float *)eye->data)[0] = ((float *)eye->data)[3] = 1.0f;
        bk_tensor *h = bk_linear(&w.tape, x, eye, NULL), *y = squared(h);
        if (readers == 2)
            y = bk_add(&w.tape, y, squared(h));
        seed(y, 1.0f);
        bk_tape_backward_seeded(&w.tape);
        assert_true(in_place == (readers == 1));
        for (int i = 0; i < 2; i++)
            assert_true(bk_test_grad(x, i) == 2.0 * readers * bk_test_value(x, i));
    }
    bk_tape_begin(&w.tape);
    bk_tensor *x = bk_test_fill(&w.tape, BK_SHAPE(2), 1, 1, 2), *y = squared(x);
    seed(y, 1.0f);
    bk_tape_backward_seeded(&w.tape);
    assert_false(in_place);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(parameters_are_ready_once_in_reverse_order, make, unmake),
        cmocka_unit_test_setup_teardown(a_leaf_read_three_times_is_ready_once, make, unmake),
        cmocka_unit_test_setup_teardown(a_tied_parameter_has_a_slot_for_each_use, make, unmake),
        cmocka_unit_test_setup_teardown(an_unused_parameter_gets_zeros, make, unmake),
        cmocka_unit_test_setup_teardown(a_new_step_starts_afresh, make, unmake),
        cmocka_unit_test_setup_teardown(more_uses_than_declared_are_a_fault, make, unmake),
        cmocka_unit_test_setup_teardown(evaluation_records_nothing, make, unmake),
        cmocka_unit_test_setup_teardown(constants_leave_no_trace, make, unmake),
        cmocka_unit_test_setup_teardown(a_slot_says_whether_it_is_fresh, make, unmake),
        cmocka_unit_test_setup_teardown(a_constant_has_no_gradient, make, unmake),
        cmocka_unit_test_setup_teardown(collective_ops_run_backward_always, make, unmake),
        cmocka_unit_test_setup_teardown(nothing_flows_through_a_nondifferentiable_op, make, unmake),
        cmocka_unit_test_setup_teardown(a_poll_at_the_end_of_each_segment, make, unmake),
        cmocka_unit_test_setup_teardown(segments_are_told, make, unmake),
        cmocka_unit_test_setup_teardown(terms_are_seeded_by_their_weight, make, unmake),
        cmocka_unit_test_setup_teardown(dead_gradients_make_room, make, unmake),
        cmocka_unit_test_setup_teardown(what_was_seeded_or_kept_stays, make, unmake),
        cmocka_unit_test_setup_teardown(a_gradient_takes_the_place_of_its_tensor, make, unmake),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
