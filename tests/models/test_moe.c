/* test: labels=unit,golden,grad,mpi ranks=1,2,3,4 timeout=120 */
/* The mixture-of-experts layer: golden values, differences, identities, and the same numbers for
 * every number of ranks, every expert-parallel degree and every number of chunks. */
#include "tests/support/router.h"

#include "core/blas.h"
#include "core/rng.h"
#include "dist/collective.h"
#include "models/moe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int ranks, rank;
static bk_world *world[5]; /* by expert-parallel degree; NULL where it does not divide the ranks */

/* One layer on the rows of some lanes, and its world (NULL: alone). */
typedef struct layer {
    bk_tape tape;
    bk_moe_args args;
    bk_moe_result result;
    const bk_world *world;
    int32_t *mask;
    double config[64];
} layer;

/* What differs between the cases: 0 stands for the default of `filled`. */
typedef struct scene {
    const char *name, *router, *options;
    int64_t lanes, tokens; /* L lanes of N tokens each */
    int64_t width, hidden, experts, k;
    bool aux, z, unbiased, bf16;
    bk_capacity capacity;
    int64_t avoided, wanted; /* expert that no token likes, that every token likes; not expert 0 */
    int32_t (*mask)(int64_t token);
    bool identity; /* relu experts W1 = [I; -I], W2 = [I, -I] */
    bk_dtype dtype;
    int threads; /* of a rank, against one alone */
} scene;

static scene filled(scene s)
{
    s.router = s.router ? s.router : "topk";
    s.options = s.options ? s.options : "";
    s.lanes = s.lanes ? s.lanes : 4;
    s.tokens = s.tokens ? s.tokens : 12;
    s.width = s.width ? s.width : 6;
    s.hidden = s.identity ? 2 * s.width : s.hidden ? s.hidden : 10;
    s.experts = s.experts ? s.experts : 7;
    s.k = s.k ? s.k : 2;
    s.threads = s.threads ? s.threads : 1;
    return s;
}

static void set(bk_tensor *x, int64_t i, double value)
{
    if (x->dtype == BK_F64)
        ((double *)x->data)[i] = value;
    else
        ((float *)x->data)[i] = (float)value;
}

/* Leaf [rows,cols] (cols = 0: [rows]) whose element i is that of number first + i. */
static bk_tensor *leaf(bk_tape *t, int64_t rows, int64_t cols, int64_t first, uint64_t tag)
{
    bk_tensor *x =
        cols ? bk_tape_variable(t, BK_SHAPE(rows, cols)) : bk_tape_variable(t, BK_SHAPE(rows));
    for (int64_t i = 0; i < bk_count(x); i++)
        set(x, i, bk_fill((uint64_t)(first + i), tag, -1.0, 1.0));
    return x;
}

static bk_tensor *expert_leaf(layer *y, const scene *s, int which, int64_t e)
{
    int64_t rows = which < 2 ? s->hidden : s->width, cols = which < 2 ? s->width : s->hidden;
    bool bias = which % 2 == 1;
    int64_t count = rows * (bias ? 1 : cols);
    bk_tensor *w = leaf(&y->tape, rows, bias ? 0 : cols, e * count, 20 + (uint64_t)which);
    for (int64_t i = 0; s->identity && i < count; i++) {
        int64_t hidden = which == 0 ? i / cols : i % cols,
                channel = which == 0 ? i % cols : i / cols;
        set(w, i, hidden % s->width != channel ? 0.0 : hidden < s->width ? 1.0 : -1.0);
    }
    return w;
}

static void make_experts(layer *y, const scene *s)
{
    bk_tensor **list[4] = {0};
    for (int which = 0; which < 4; which++) {
        if (which % 2 == 1 && s->unbiased)
            continue;
        list[which] = BK_NEW(y->tape.arena, bk_tensor *, y->args.count);
        for (int64_t e = 0; e < y->args.count; e++)
            list[which][e] = expert_leaf(y, s, which, y->args.first + e);
    }
    y->args.w1 = list[0];
    y->args.b1 = list[1];
    y->args.w2 = list[2];
    y->args.b2 = list[3];
}

static bk_tensor *make_gate(layer *y, const scene *s)
{
    bk_tensor *gate = leaf(&y->tape, s->experts, s->width, 0, 30);
    for (int64_t e = 0; e < s->experts; e++)
        if (e > 0 && (e == s->avoided || e == s->wanted))
            set(gate, e * s->width, e == s->wanted ? 100.0 : -100.0); /* channel 0 of x is 1 */
    return gate;
}

static void read_options(layer *y, const scene *s)
{
    bk_test_router *p = bk_test_router_open(s->router, s->options, 1, s->experts, NULL);
    memcpy(y->config, p->config, sizeof y->config);
    bk_test_router_close(p);
}

/* Makes the layer for the lanes of this rank in `w`, or for all of them. */
static layer *open_layer(const scene *s, const bk_world *w)
{
    layer *y = calloc(1, sizeof *y);
    assert_non_null(y);
    bk_lanes lanes = bk_lanes_of_rank(s->lanes, s->lanes * 2, w ? w->rank : 0, w ? w->size : 1);
    y->world = w;
    y->tape = bk_test_tape(s->dtype, lanes);
    y->tape.training = true;
    y->tape.bf16 = s->bf16;
    int64_t half = s->tokens / 2, count = bk_lanes_samples(&lanes) * half,
            first = bk_lanes_first_sample(&lanes) * half;
    y->args = (bk_moe_args){.experts = s->experts,
                            .k = s->k,
                            .hidden = s->hidden,
                            .activation = s->identity ? BK_RELU : BK_GELU,
                            .router = bk_router_find(s->router),
                            .capacity = s->capacity,
                            .aux = s->aux ? BK_AUX_SWITCH : BK_AUX_NONE,
                            .z = s->z,
                            .first_token = first,
                            .layer = 1,
                            .ep = w ? w->ep : NULL,
                            .route = w ? bk_comm_reducer(w->route) : NULL};
    read_options(y, s);
    y->args.router_config = y->config;
    bk_moe_experts_of(w ? bk_comm_rank(w->ep) : 0, s->experts, w ? w->expert : 1, &y->args.first,
                      &y->args.count);
    y->mask = BK_NEW(y->tape.arena, int32_t, count);
    for (int64_t t = 0; t < s->lanes * s->tokens; t++) {
        int32_t real = s->mask ? s->mask(t) : 1;
        y->args.valid += real;
        if (t >= first && t < first + count)
            y->mask[t - first] = real;
    }
    y->args.mask = s->mask ? y->mask : NULL;
    y->args.x = leaf(&y->tape, count, s->width, first * s->width, 10);
    for (int64_t i = 0; i < count; i++)
        set(y->args.x, i * s->width, 1.0);
    y->args.gate = make_gate(y, s);
    make_experts(y, s);
    return y;
}

static void close_layer(layer *y)
{
    bk_test_tape_free(&y->tape);
    free(y);
}

/* Forward, and backward from a fixed dy and seeds of 1 for the losses. */
static void run_layer(layer *y)
{
    y->result = bk_moe(&y->tape, &y->args);
    bk_tensor *out = y->result.y;
    int64_t first = y->args.first_token * bk_cols(out);
    bk_tensor grad = *out;
    grad.data = bk_grad(&y->tape, out);
    for (int64_t i = 0; i < bk_count(out); i++)
        set(&grad, i, bk_fill((uint64_t)(first + i), 40, -1.0, 1.0));
    if (y->result.aux)
        bk_tape_add_term(&y->tape, "aux", 1, y->result.aux, 1.0);
    if (y->result.z)
        bk_tape_add_term(&y->tape, "z", 1, y->result.z, 1.0);
    bk_tape_backward(&y->tape);
}

/* ---- comparison over ranks ---- */

/* grad[n] of all ranks, added in the lane tree over the ranks (of one expert: over its holders). */
static void sum_over_ranks(const bk_comm *comm, int64_t n, float *grad)
{
    int size = bk_comm_size(comm);
    float *all = malloc((size_t)(n * size + 1) * sizeof *all);
    int64_t *bytes = malloc((size_t)size * sizeof *bytes);
    assert_true(all && bytes);
    for (int r = 0; r < size; r++)
        bytes[r] = n * (int64_t)sizeof *all;
    bk_allgather_bytes(comm, grad, bytes[0], bytes, all);
    for (int step = 1; step < size; step *= 2)
        for (int r = 0; r + step < size; r += 2 * step)
            for (int64_t i = 0; i < n; i++)
                all[r * n + i] += all[(r + step) * n + i];
    memcpy(grad, all, (size_t)n * sizeof *grad);
    free(all);
    free(bytes);
}

/* Power of two that divides the lanes: equal to the bit; any other: 1e-5 of the largest entry. */
static void compare(const scene *s, const char *what, int64_t n, const float *x, const float *one,
                    const float *whole, int64_t of)
{
    double most = 1e-30, worst = 0.0;
    bool exact = (ranks & (ranks - 1)) == 0 && s->lanes % ranks == 0;
    for (int64_t i = 0; i < of; i++)
        most = fmax(most, fabs((double)whole[i]));
    for (int64_t i = 0; i < n; i++) {
        double error = fabs((double)x[i] - (double)one[i]);
        worst = error > worst || isnan(error) ? error : worst;
    }
    if (exact && n > 0 && memcmp(x, one, (size_t)n * sizeof *x) != 0)
        fail_msg("%s, %d ranks: bits of %s differ by %g", s->name, ranks, what, worst / most);
    bk_check_error(worst / most, 1e-5, "%s, %d ranks, %s", s->name, ranks, what);
}

static void compare_dense(const scene *s, const layer *part, const layer *one)
{
    int64_t rows = bk_rows(part->args.x), n = bk_count(part->args.x),
            at = part->args.first_token * s->width, all = bk_count(one->args.x);
    compare(s, "y", n, part->result.y->data, (const float *)one->result.y->data + at,
            one->result.y->data, all);
    compare(s, "dx", n, part->args.x->grad, (const float *)one->args.x->grad + at,
            one->args.x->grad, all);
    assert_memory_equal(part->result.route.index,
                        one->result.route.index + part->args.first_token * s->k,
                        (size_t)(rows * s->k) * sizeof(int32_t));
    int64_t gates = bk_count(part->args.gate);
    sum_over_ranks(part->world->world, gates, part->args.gate->grad);
    compare(s, "dgate", gates, part->args.gate->grad, one->args.gate->grad, one->args.gate->grad,
            gates);
}

static void compare_experts(const scene *s, const layer *part, const layer *one)
{
    const char *name[4] = {"dw1", "db1", "dw2", "db2"};
    bk_tensor **own[4] = {part->args.w1, part->args.b1, part->args.w2, part->args.b2};
    bk_tensor **all[4] = {one->args.w1, one->args.b1, one->args.w2, one->args.b2};
    for (int which = 0; which < 4; which++)
        for (int64_t e = 0; own[which] && e < part->args.count; e++) {
            bk_tensor *w = own[which][e], *expected = all[which][part->args.first + e];
            assert_true(w->grad && expected->grad); /* zeros for an idle expert, never absent */
            sum_over_ranks(part->world->edp, bk_count(w), w->grad);
            compare(s, name[which], bk_count(w), w->grad, expected->grad, expected->grad,
                    bk_count(w));
        }
}

static void check_scene(scene given)
{
    scene whole = filled(given), *s = &whole;
    layer *one = open_layer(s, NULL);
    run_layer(one);
    assert_int_equal(bk_blas_setup(s->threads, BK_GEMM_AUTO), BK_OK);
    for (int ep = 1; ep <= ranks; ep++)
        for (int64_t chunks = 1; chunks <= 4; chunks *= 2) {
            if (!world[ep] || ep > s->experts)
                continue;
            layer *part = open_layer(s, world[ep]);
            part->args.chunks = chunks;
            run_layer(part);
            compare_dense(s, part, one);
            compare_experts(s, part, one);
            close_layer(part);
        }
    close_layer(one);
    assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
}

static int32_t some_padding(int64_t token)
{
    return token % 5 != 3;
}

static int32_t lane_1_is_empty(int64_t token)
{
    return token / 12 != 1 && token % 7 != 2;
}

static int32_t all_padding(int64_t token)
{
    return token < 0;
}

static void ranks_degrees_and_chunks_change_no_bit(void **state)
{
    (void)state;
    check_scene((scene){.name = "seven experts"});
    check_scene((scene){.name = "eight experts, no biases", .experts = 8, .unbiased = true});
    check_scene((scene){.name = "losses", .aux = true, .z = true, .mask = some_padding});
    check_scene((scene){
        .name = "sinkhorn", .router = "sinkhorn", .options = "weights=scores", .aux = true});
    check_scene((scene){.name = "ssr",
                        .router = "ssr",
                        .mask = some_padding,
                        .options = "probability=1 gradient=implicit tolerance=1e-6"});
    check_scene((scene){.name = "ssr, lanes alone",
                        .router = "ssr",
                        .mask = some_padding,
                        .options = "probability=1 gradient=implicit scope=local"});
    check_scene((scene){.name = "the largest scores",
                        .capacity = {.factor = 0.8, .least = 2, .policy = BK_DROP_PROBS},
                        .mask = some_padding,
                        .aux = true});
    check_scene((scene){.name = "first choices",
                        .capacity = {.factor = 0.6, .least = 1, .policy = BK_DROP_POSITION},
                        .router = "ssr",
                        .options = "probability=1 gradient=implicit"});
    check_scene((scene){.name = "noise", .options = "noise=logits noise_scale=0.5"});
    for (int i = 0; i < 2; i++)
        check_scene((scene){.name = "three threads, every loop shared out",
                            .bf16 = i == 1,
                            .threads = 3,
                            .tokens = 256,
                            .experts = 64,
                            .width = 256,
                            .hidden = 32,
                            .aux = true});
}

static void nothing_here_and_there_changes_no_bit(void **state)
{
    (void)state;
    check_scene((scene){.name = "a lane without tokens", .mask = lane_1_is_empty, .aux = true});
    check_scene((scene){.name = "an expert without tokens", .avoided = 3});
    check_scene((scene){.name = "all tokens to one expert", .wanted = 4, .k = 1});
    check_scene((scene){.name = "no token at all", .mask = all_padding, .aux = true, .z = true});
    check_scene((scene){
        .name = "no token at all, of few", .mask = all_padding, .capacity = {.factor = 0.1}});
    check_scene((scene){.name = "no token at all, by transport",
                        .mask = all_padding,
                        .router = "ssr",
                        .options = "probability=1 gradient=implicit"});
    check_scene((scene){.name = "one token a lane", .tokens = 2, .width = 3});
    check_scene((scene){.name = "fewer lanes than ranks", .lanes = 1, .aux = true});
    check_scene((scene){.name = "every expert for every token", .experts = 4, .k = 4});
}

/* ---- identities ---- */

static void check_identity(const char *what, int64_t wanted)
{
    const scene whole = filled(
                    (scene){.name = what, .identity = true, .unbiased = true, .wanted = wanted}),
                *s = &whole;
    for (int ep = 1; ep <= ranks; ep++) {
        if (!world[ep])
            continue;
        layer *y = open_layer(s, world[ep]);
        run_layer(y);
        const bk_tensor *x = y->args.x, *out = y->result.y;
        for (int64_t i = 0; i < bk_count(x); i++) {
            assert_true(fabs(bk_test_value(out, i) - bk_test_value(x, i)) < 1e-6);
            double dy = bk_fill((uint64_t)(y->args.first_token * s->width + i), 40, -1.0, 1.0);
            assert_true(fabs(bk_test_grad(x, i) - dy) < 2e-6);
        }
        close_layer(y);
    }
}

static void identity_experts_change_nothing(void **state)
{
    (void)state;
    check_identity("identity experts", 0);
    check_identity("identity experts, one liked by all", 2);
}

/* With a gate of zeros every logit ties: experts 0 .. k-1 with weights 1/k. */
static void equal_logits_weigh_equally(void **state)
{
    const scene s =
        filled((scene){.name = "equal logits", .identity = true, .unbiased = true, .k = 4});
    (void)state;
    layer *y = open_layer(&s, NULL);
    memset(y->args.gate->data, 0, (size_t)bk_count(y->args.gate) * sizeof(float));
    run_layer(y);
    for (int64_t i = 0; i < bk_rows(y->args.x) * 4; i++) {
        assert_int_equal(y->result.route.index[i], i % 4);
        assert_true(y->result.route.weight[i] == 0.25);
    }
    const float *x = y->args.x->data, *out = y->result.y->data, *dx = y->args.x->grad;
    for (int64_t i = 0; i < bk_count(y->args.x); i++)
        assert_true(out[i] == x[i] && dx[i] == ((const float *)y->result.y->grad)[i]);
    close_layer(y);
}

/* ---- golden values and differences, on one rank ---- */

static void check_array(const json_t *reference, int64_t count, const double *x, double limit,
                        const char *what)
{
    int64_t n;
    double *numbers = bk_test_numbers(reference, &n);
    assert_int_equal(n, count);
    bk_check_error(bk_test_error(n, x, numbers, 1e-30), limit, "%s", what);
    free(numbers);
}

static void check_tensor(const json_t *reference, bool grad, bk_tensor *const *x, int64_t count,
                         const char *what)
{
    double values[1024];
    int64_t n = 0;
    for (int64_t e = 0; e < count; e++)
        for (int64_t i = 0; i < bk_count(x[e]); i++)
            values[n++] = grad ? bk_test_grad(x[e], i) : bk_test_value(x[e], i);
    check_array(reference, n, values, x[0]->dtype == BK_F64 ? 1e-9 : 1e-5, what);
}

static bk_tensor **json_leaves(bk_tape *t, const json_t *array)
{
    bk_tensor **list = BK_NEW(t->arena, bk_tensor *, json_array_size(array));
    for (size_t e = 0; e < json_array_size(array); e++)
        list[e] = bk_test_json(t, json_array_get(array, e));
    return list;
}

static void check_golden(bk_dtype dtype)
{
    json_t *golden = bk_test_golden("ref_moe_golden.json"), *c = json_object_get(golden, "moe");
    layer y = {.tape = bk_test_tape(dtype, bk_lanes_single(12))};
    bk_tape *t = &y.tape;
    const scene plain = filled((scene){.name = "golden", .experts = 4});
    read_options(&y, &plain);
    y.args = (bk_moe_args){.x = bk_test_json(t, json_object_get(golden, "x")),
                           .gate = bk_test_json(t, json_object_get(golden, "gate")),
                           .w1 = json_leaves(t, json_object_get(c, "w1")),
                           .b1 = json_leaves(t, json_object_get(c, "b1")),
                           .w2 = json_leaves(t, json_object_get(c, "w2")),
                           .b2 = json_leaves(t, json_object_get(c, "b2")),
                           .experts = 4,
                           .k = 2,
                           .count = 4,
                           .hidden = 5,
                           .router = bk_router_find("topk"),
                           .router_config = y.config,
                           .valid = 12};
    bk_tensor *out = bk_moe(t, &y.args).y, *grad = bk_test_json(t, json_object_get(c, "grad_y"));
    memcpy(bk_grad(t, out), grad->data, (size_t)bk_count(out) * bk_dtype_size(dtype));
    bk_tape_backward_seeded(t);
    check_tensor(json_object_get(c, "y"), false, &out, 1, "y");
    check_tensor(json_object_get(c, "grad_x"), true, &y.args.x, 1, "grad of x");
    check_tensor(json_object_get(c, "grad_gate"), true, &y.args.gate, 1, "grad of gate");
    check_tensor(json_object_get(c, "grad_w1"), true, y.args.w1, 4, "grad of w1");
    check_tensor(json_object_get(c, "grad_b1"), true, y.args.b1, 4, "grad of b1");
    check_tensor(json_object_get(c, "grad_w2"), true, y.args.w2, 4, "grad of w2");
    check_tensor(json_object_get(c, "grad_b2"), true, y.args.b2, 4, "grad of b2");
    bk_test_tape_free(t);
    json_decref(golden);
}

static void golden_layer(void **state)
{
    (void)state;
    check_golden(BK_F32);
    check_golden(BK_F64);
}

static scene perturbed_scene;

/* <dy, y> + aux + z with element i of a leaf moved. */
static double moved(int leaf_number, int64_t i, double delta)
{
    layer *y = open_layer(&perturbed_scene, NULL);
    bk_tensor *leaves[] = {y->args.x,     y->args.gate,  y->args.w1[1],
                           y->args.b1[1], y->args.w2[1], y->args.b2[1]};
    double sum = 0.0;
    ((double *)leaves[leaf_number]->data)[i] += delta;
    run_layer(y);
    for (int64_t j = 0; j < bk_count(y->result.y); j++)
        sum += bk_test_value(y->result.y, j) * bk_test_grad(y->result.y, j);
    for (int64_t l = 0; l < y->tape.lanes.count; l++)
        sum += bk_f64(y->result.aux)[l] + bk_f64(y->result.z)[l];
    close_layer(y);
    return sum;
}

static void check_layer_gradient(scene given)
{
    const double step = 1e-5;
    perturbed_scene = filled(given);
    layer *y = open_layer(&perturbed_scene, NULL);
    run_layer(y);
    bk_tensor *leaves[] = {y->args.x,     y->args.gate,  y->args.w1[1],
                           y->args.b1[1], y->args.w2[1], y->args.b2[1]};
    for (int n = 0; n < 6; n++)
        for (int64_t i = 0; i < bk_count(leaves[n]); i += 1 + bk_count(leaves[n]) / 12) {
            double numeric = (moved(n, i, step) - moved(n, i, -step)) / (2.0 * step);
            bk_check_error(fabs(numeric - bk_test_grad(leaves[n], i)) / fmax(1.0, fabs(numeric)),
                           1e-6, "%s, leaf %d", given.name, n);
        }
    close_layer(y);
}

static void gradients_are_differences(void **state)
{
    (void)state;
    check_layer_gradient(
        (scene){.name = "topk", .dtype = BK_F64, .mask = some_padding, .aux = true, .z = true});
    check_layer_gradient((scene){.name = "dropped choices",
                                 .dtype = BK_F64,
                                 .capacity = {.factor = 0.7, .least = 1},
                                 .mask = some_padding,
                                 .aux = true,
                                 .z = true});
    check_layer_gradient((scene){.name = "ssr",
                                 .dtype = BK_F64,
                                 .router = "ssr",
                                 .aux = true,
                                 .z = true,
                                 .options = BK_TEST_TIGHT "probability=1 gradient=implicit"});
}

/* ---- padding, strange input, shapes ---- */

static void padding_gives_zero_and_takes_nothing(void **state)
{
    const scene s =
        filled((scene){.name = "padding", .mask = some_padding, .aux = true, .z = true});
    layer *y[2] = {open_layer(&s, NULL), open_layer(&s, NULL)};
    (void)state;
    for (int64_t i = 0; i < bk_count(y[1]->args.x); i++)
        if (!some_padding(i / s.width))
            set(y[1]->args.x, i, NAN);
    for (int i = 0; i < 2; i++)
        run_layer(y[i]);
    assert_memory_equal(y[0]->result.y->data, y[1]->result.y->data,
                        (size_t)bk_count(y[0]->result.y) * sizeof(float));
    assert_memory_equal(y[0]->result.aux->data, y[1]->result.aux->data, 4 * sizeof(double));
    assert_memory_equal(y[0]->args.gate->grad, y[1]->args.gate->grad,
                        (size_t)bk_count(y[0]->args.gate) * sizeof(float));
    assert_memory_equal(y[0]->args.x->grad, y[1]->args.x->grad,
                        (size_t)bk_count(y[0]->args.x) * sizeof(float));
    for (int64_t i = 0; i < bk_count(y[1]->result.y); i++)
        if (!some_padding(i / s.width))
            assert_true(bk_test_value(y[1]->result.y, i) == 0.0 &&
                        bk_test_grad(y[1]->args.x, i) == 0.0);
    close_layer(y[0]);
    close_layer(y[1]);
}

static void strange_logits_reach_no_weight(void **state)
{
    const scene s = filled((scene){.name = "strange logits"});
    (void)state;
    layer *y = open_layer(&s, NULL);
    set(y->args.gate, 0, NAN); /* the logit of expert 0 is NaN for every token */
    set(y->args.gate, s.width, INFINITY);
    run_layer(y);
    for (int64_t i = 0; i < bk_rows(y->args.x) * s.k; i++)
        assert_true(y->result.route.index[i] > 0 && isfinite(y->result.route.weight[i]));
    for (int64_t i = 0; i < bk_count(y->result.y); i++)
        assert_true(isfinite(bk_test_value(y->result.y, i)));
    close_layer(y);
}

/* The owner rule: contiguous, the first E mod EP coordinates hold one more. */
static void experts_have_one_owner(void **state)
{
    (void)state;
    for (int64_t experts = 1; experts < 20; experts++)
        for (int ep = 1; ep <= experts; ep++) {
            int64_t next = 0;
            for (int c = 0; c < ep; c++) {
                int64_t first, count;
                bk_moe_experts_of(c, experts, ep, &first, &count);
                assert_int_equal(first, next);
                assert_int_equal(count, experts / ep + (c < experts % ep));
                for (int64_t e = first; e < first + count; e++)
                    assert_int_equal(bk_moe_owner(e, experts, ep), c);
                next = first + count;
            }
            assert_int_equal(next, experts);
        }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_degrees_and_chunks_change_no_bit),
        cmocka_unit_test(nothing_here_and_there_changes_no_bit),
        cmocka_unit_test(identity_experts_change_nothing),
    };
    const struct CMUnitTest alone[] = {
        cmocka_unit_test(equal_logits_weigh_equally),
        cmocka_unit_test(golden_layer),
        cmocka_unit_test(gradients_are_differences),
        cmocka_unit_test(padding_gives_zero_and_takes_nothing),
        cmocka_unit_test(strange_logits_reach_no_weight),
        cmocka_unit_test(experts_have_one_owner),
    };
    bk_arena *arena = bk_arena_new("run");
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK || bk_mpi_start(&argc, &argv) != BK_OK)
        return 1;
    ranks = bk_mpi_size();
    rank = bk_mpi_rank();
    for (int ep = 1; ep <= ranks && ep < 5; ep++)
        if (ranks % ep == 0 && bk_world_open(arena, ep, &world[ep]) != BK_OK)
            return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (ranks == 1)
        failed += cmocka_run_group_tests(alone, NULL, NULL);
    for (int ep = 1; ep < 5; ep++)
        if (world[ep])
            bk_world_close(world[ep]);
    bk_mpi_stop();
    bk_arena_free(arena);
    return failed;
}
