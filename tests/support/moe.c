#include "tests/support/moe.h"

#include "core/blas.h"
#include "core/rng.h"
#include "dist/collective.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bk_test_scene bk_test_scene_filled(bk_test_scene s)
{
    s.router = s.router ? s.router : "topk";
    s.options = s.options ? s.options : "";
    s.form = s.form ? s.form : BK_AUX_SWITCH;
    s.lanes = s.lanes ? s.lanes : 4;
    s.tokens = s.tokens ? s.tokens : 12;
    s.width = s.width ? s.width : 6;
    s.hidden = s.identity ? 2 * s.width : s.hidden ? s.hidden : 10;
    s.experts = s.experts ? s.experts : 7;
    s.k = s.k ? s.k : 2;
    s.threads = s.threads ? s.threads : 1;
    return s;
}

void bk_test_set(bk_tensor *x, int64_t i, double value)
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
        bk_test_set(x, i, bk_fill((uint64_t)(first + i), tag, -1.0, 1.0));
    return x;
}

static bk_tensor *expert_leaf(bk_test_layer *y, const bk_test_scene *s, int which, int64_t e)
{
    int64_t rows = which < 2 ? s->hidden : s->width, cols = which < 2 ? s->width : s->hidden;
    bool bias = which % 2 == 1;
    int64_t count = rows * (bias ? 1 : cols);
    bk_tensor *w = leaf(&y->tape, rows, bias ? 0 : cols, e * count, 20 + (uint64_t)which);
    for (int64_t i = 0; s->identity && i < count; i++) {
        int64_t hidden = which == 0 ? i / cols : i % cols,
                channel = which == 0 ? i % cols : i / cols;
        bk_test_set(w, i, hidden % s->width != channel ? 0.0 : hidden < s->width ? 1.0 : -1.0);
    }
    return w;
}

static void make_experts(bk_test_layer *y, const bk_test_scene *s)
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

enum { SHARED = 5 }; /* hidden width of the shared expert */

static void make_shared(bk_test_layer *y, const bk_test_scene *s)
{
    bk_tape *t = &y->tape;
    y->shared = (bk_moe_shared){.w1 = leaf(t, SHARED, s->width, 0, 50),
                                .b1 = s->unbiased ? NULL : leaf(t, SHARED, 0, 0, 51),
                                .w2 = leaf(t, s->width, SHARED, 0, 52),
                                .b2 = s->unbiased ? NULL : leaf(t, s->width, 0, 0, 53),
                                .gate = s->shared_gate ? leaf(t, s->width, 0, 0, 54) : NULL};
    y->args.shared = &y->shared;
}

static bk_tensor *make_gate(bk_test_layer *y, const bk_test_scene *s)
{
    bk_tensor *gate = leaf(&y->tape, s->experts, s->width, 0, 30);
    for (int64_t e = 0; e < s->experts; e++)
        if (e > 0 && (e == s->avoided || e == s->wanted))
            bk_test_set(gate, e * s->width,
                        e == s->wanted ? 100.0 : -100.0); /* channel 0 of x is 1 */
    return gate;
}

void bk_test_layer_options(bk_test_layer *y, const bk_test_scene *s)
{
    bk_test_router *p = bk_test_router_open(s->router, s->options, 1, s->experts, NULL);
    memcpy(y->config, p->config, sizeof y->config);
    bk_test_router_close(p);
}

bk_test_layer *bk_test_layer_open(const bk_test_scene *s, const bk_world *w)
{
    bk_test_layer *y = calloc(1, sizeof *y);
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
                            .wire_bf16 = s->wire_bf16,
                            .hierarchy = s->hierarchy,
                            .aux = s->aux ? s->form : BK_AUX_NONE,
                            .z = s->z,
                            .first_token = first,
                            .layer = 1,
                            .ep = w ? w->ep : NULL,
                            .route = w ? bk_comm_reducer(w->route) : NULL};
    bk_test_layer_options(y, s);
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
        bk_test_set(y->args.x, i * s->width, 1.0);
    y->args.gate = make_gate(y, s);
    if (y->args.router->flags & BK_ROUTER_NOISE_GATE)
        y->args.noise_gate = leaf(&y->tape, s->experts, s->width, 0, 31);
    make_experts(y, s);
    if (s->shared)
        make_shared(y, s);
    return y;
}

void bk_test_layer_close(bk_test_layer *y)
{
    bk_test_tape_free(&y->tape);
    free(y);
}

void bk_test_layer_run(bk_test_layer *y)
{
    y->result = bk_moe(&y->tape, &y->args);
    bk_tensor *out = y->result.y;
    int64_t first = y->args.first_token * bk_cols(out);
    bk_tensor grad = *out;
    grad.data = bk_grad(&y->tape, out);
    for (int64_t i = 0; i < bk_count(out); i++)
        bk_test_set(&grad, i, bk_fill((uint64_t)(first + i), 40, -1.0, 1.0));
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
static void compare(const bk_test_scene *s, const char *what, int64_t n, const float *x,
                    const float *one, const float *whole, int64_t of)
{
    double most = 1e-30, worst = 0.0;
    int ranks = bk_mpi_size();
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

/* The gradient of a weight that every rank has; NULL: it has none. */
static void compare_summed(const bk_test_scene *s, const bk_test_layer *part, const char *what,
                           bk_tensor *w, const bk_tensor *one)
{
    if (!w)
        return;
    sum_over_ranks(part->world->world, bk_count(w), w->grad);
    compare(s, what, bk_count(w), w->grad, one->grad, one->grad, bk_count(w));
}

static void compare_dense(const bk_test_scene *s, const bk_test_layer *part,
                          const bk_test_layer *one)
{
    int64_t rows = bk_rows(part->args.x), n = bk_count(part->args.x),
            slots = one->result.route.slots, at = part->args.first_token * s->width,
            all = bk_count(one->args.x);
    compare(s, "y", n, part->result.y->data, (const float *)one->result.y->data + at,
            one->result.y->data, all);
    compare(s, "dx", n, part->args.x->grad, (const float *)one->args.x->grad + at,
            one->args.x->grad, all);
    assert_memory_equal(part->result.route.index,
                        one->result.route.index + part->args.first_token * slots,
                        (size_t)(rows * slots) * sizeof(int32_t));
    compare_summed(s, part, "dgate", part->args.gate, one->args.gate);
    compare_summed(s, part, "noise dgate", part->args.noise_gate, one->args.noise_gate);
    compare_summed(s, part, "shared dw1", part->shared.w1, one->shared.w1);
    compare_summed(s, part, "shared db1", part->shared.b1, one->shared.b1);
    compare_summed(s, part, "shared dw2", part->shared.w2, one->shared.w2);
    compare_summed(s, part, "shared db2", part->shared.b2, one->shared.b2);
    compare_summed(s, part, "shared dgate", part->shared.gate, one->shared.gate);
}

static void compare_experts(const bk_test_scene *s, const bk_test_layer *part,
                            const bk_test_layer *one)
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

void bk_test_scene_check(bk_test_scene given)
{
    bk_test_scene whole = bk_test_scene_filled(given), *s = &whole;
    bk_test_layer *one = bk_test_layer_open(s, NULL);
    bk_test_layer_run(one);
    assert_int_equal(bk_blas_setup(s->threads, BK_GEMM_AUTO), BK_OK);
    for (int ep = 1; ep < BK_TEST_DEGREES; ep++)
        for (int64_t chunks = 1; chunks <= 4; chunks *= 2) {
            if (!bk_test_worlds[ep] || ep > s->experts)
                continue;
            bk_test_layer *part = bk_test_layer_open(s, bk_test_worlds[ep]);
            part->args.chunks = chunks;
            bk_test_layer_run(part);
            compare_dense(s, part, one);
            compare_experts(s, part, one);
            bk_test_layer_close(part);
        }
    bk_test_layer_close(one);
    assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
}

int32_t bk_test_some_padding(int64_t token)
{
    return token % 5 != 3;
}

int32_t bk_test_lane_1_is_empty(int64_t token)
{
    return token / 12 != 1 && token % 7 != 2;
}

int32_t bk_test_all_padding(int64_t token)
{
    return token < 0;
}
