/* test: labels=unit,grad timeout=120 */
/* What the doubly stochastic kinds share: dropout, padding whatever stands in it, groups, noise. */
#include "tests/support/check.h"

#include "core/blas.h"
#include "core/rng.h"
#include "models/attention.h"

#include <math.h>
#include <string.h>

enum { B = 2, H = 2, N = 8, D = 9 };

static const char *const kinds[] = {"sinkformer", "qr", "qds"};

typedef struct call {
    const bk_attention_kind *kind;
    double config[32];
    bk_tape tape;
    bk_tensor *x[4], *out; /* q, k, v, theta */
    bk_attention_args args;
} call;

static void open_call(call *c, int kind, bk_dtype dtype, int64_t samples)
{
    bk_arena *arena = bk_arena_new("options");
    memset(c, 0, sizeof *c);
    c->kind = bk_attention_find(kinds[kind]);
    assert_int_equal(bk_options_read(c->kind->options, c->config, NULL, "attention", arena), BK_OK);
    bk_arena_free(arena);
    c->tape = bk_test_tape(dtype, bk_lanes_single(samples));
    c->args.config = c->config;
}

static void fill(call *c, int64_t samples)
{
    bk_attention_parameter own[BK_ATTENTION_PARAMETERS];
    bk_tape_begin(&c->tape);
    for (int i = 0; i < 3; i++)
        c->x[i] = bk_test_fill(&c->tape, BK_SHAPE(samples, H, N, D), (uint64_t)i + 1, -1.5, 1.5);
    if (c->kind->declare && c->kind->declare(c->config, H, D, N, own) == 1)
        c->x[3] = bk_test_fill(&c->tape, own[0].dims, own[0].shape, 4, -1.0, 1.0);
    c->args.q = c->x[0];
    c->args.k = c->x[1];
    c->args.v = c->x[2];
    c->args.parameter[0] = c->x[3];
}

static double run(call *c)
{
    double sum = 0.0;
    c->out = c->kind->apply(&c->tape, &c->args);
    for (int64_t i = 0; i < bk_count(c->out); i++)
        sum += bk_fill((uint64_t)i, 9, -1.0, 1.0) * bk_test_value(c->out, i);
    return sum;
}

static void back(call *c)
{
    bk_test_seed_fill(&c->tape, c->out, 9, -1.0, 1.0);
    bk_tape_backward_seeded(&c->tape);
}

static double moved(call *c, int which, int64_t j, double step)
{
    fill(c, B);
    ((double *)c->x[which]->data)[j] += step;
    return run(c);
}

/* The kept entries are those of forward again in backward; with none kept there is no gradient. */
static void gradients_go_through_dropout(void **state)
{
    const double step = 1e-5;
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        call c, other;
        open_call(&c, kind, BK_F64, B);
        open_call(&other, kind, BK_F64, B);
        c.tape.training = other.tape.training = true;
        c.args.dropout = other.args.dropout = 0.3;
        fill(&c, B);
        run(&c);
        back(&c);
        for (int which = 0; which < 4 && c.x[which]; which++)
            for (int64_t j = 0; j < bk_count(c.x[which]); j += 17) {
                double numeric =
                    (moved(&other, which, j, step) - moved(&other, which, j, -step)) / (2 * step);
                bk_check_error(fabs(numeric - bk_test_grad(c.x[which], j)) /
                                   fmax(1.0, fabs(numeric)),
                               1e-6, "%s, input %d", kinds[kind], which);
            }
        bk_test_tape_free(&c.tape);
        bk_test_tape_free(&other.tape);
    }
}

static void dropout_keeps_the_mean(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        call c;
        double sum = 0.0;
        open_call(&c, kind, BK_F32, B);
        c.tape.training = true;
        c.args.dropout = 0.5;
        for (c.tape.step = 0; c.tape.step < 400; c.tape.step++) {
            fill(&c, B);
            for (int64_t j = 0; j < bk_count(c.x[2]); j++)
                ((float *)c.x[2]->data)[j] = 1.0f; /* out: the sums of the rows that are left */
            run(&c);
            for (int64_t j = 0; j < bk_count(c.out); j++)
                sum += bk_test_value(c.out, j) / (double)bk_count(c.out) / 400.0;
        }
        assert_true(fabs(sum - 1.0) < 0.03);
        bk_test_tape_free(&c.tape);
    }
}

static void set_padding(call *c, float value)
{
    bk_tensor *mask = bk_tape_constant(&c->tape, BK_I32, BK_SHAPE(B, N));
    for (int64_t i = 0; i < B * N; i++) {
        bool padding = i % N == 2 || (i >= N && i % N > 4);
        ((int32_t *)mask->data)[i] = !padding;
        for (int k = 0; k < 3 && padding; k++)
            for (int64_t h = 0; h < H; h++)
                for (int64_t d = 0; d < D; d++)
                    ((float *)c->x[k]->data)[((i / N * H + h) * N + i % N) * D + d] = value;
    }
    c->args.mask = mask;
}

/* Infinities and NaN, too; and gradients there are 0. */
static void padding_is_never_read(void **state)
{
    const float fillers[] = {NAN, INFINITY};
    (void)state;
    for (int kind = 0; kind < 2; kind++)
        for (int f = 0; f < 2; f++) {
            call c[2];
            for (int i = 0; i < 2; i++) {
                open_call(&c[i], kind, BK_F32, B);
                fill(&c[i], B);
                set_padding(&c[i], i == 0 ? 0.5f : fillers[f]);
                run(&c[i]);
                back(&c[i]);
            }
            size_t bytes = (size_t)bk_count(c[0].out) * sizeof(float);
            assert_memory_equal(c[0].out->data, c[1].out->data, bytes);
            for (int k = 0; k < 3; k++) {
                assert_memory_equal(c[0].x[k]->grad, c[1].x[k]->grad, bytes);
                for (int64_t d = 0; d < D; d++)
                    assert_true(bk_test_grad(c[1].x[k], 2 * D + d) == 0.0);
            }
            bk_test_tape_free(&c[0].tape);
            bk_test_tape_free(&c[1].tape);
        }
}

/* More problems than a group holds, on one thread and on two: sample 0 stays what it is. */
static void groups_and_threads_move_no_bit(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        call c[3];
        for (int i = 0; i < 3; i++) {
            const int64_t samples = i == 0 ? B : 9000;
            assert_int_equal(bk_blas_setup(i < 2 ? 1 : 2, BK_GEMM_AUTO), BK_OK);
            open_call(&c[i], kind, BK_F32, samples);
            fill(&c[i], samples);
            run(&c[i]);
            back(&c[i]);
        }
        size_t first = (size_t)bk_count(c[0].out) * sizeof(float),
               all = (size_t)bk_count(c[1].out) * sizeof(float);
        assert_memory_equal(c[0].out->data, c[1].out->data, first);
        assert_memory_equal(c[1].out->data, c[2].out->data, all);
        for (int k = 0; k < 3; k++) {
            assert_memory_equal(c[0].x[k]->grad, c[1].x[k]->grad, first);
            assert_memory_equal(c[1].x[k]->grad, c[2].x[k]->grad, all);
        }
        for (int i = 0; i < 3; i++)
            bk_test_tape_free(&c[i].tape);
    }
    assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
}

/* qr: another step of training draws other noise, evaluation always that of step 0. */
static void noise_is_that_of_the_step(void **state)
{
    double value[4];
    call c;
    (void)state;
    open_call(&c, 1, BK_F32, B);
    for (int i = 0; i < 4; i++) {
        c.tape.training = i < 2;
        c.tape.step = i % 2 == 0 ? 0 : 5;
        fill(&c, B);
        value[i] = run(&c);
    }
    assert_true(value[0] != value[1]);
    assert_true(value[2] == value[3] && value[2] == value[0]);
    bk_test_tape_free(&c.tape);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_go_through_dropout),
        cmocka_unit_test(dropout_keeps_the_mean),
        cmocka_unit_test(padding_is_never_read),
        cmocka_unit_test(groups_and_threads_move_no_bit),
        cmocka_unit_test(noise_is_that_of_the_step),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
