/* test: labels=unit,grad timeout=60 */
#include "tests/support/check.h"
#include "tests/support/losses.h"

#include "core/blas.h"
#include "losses/layers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { B = 2, H = 3, G = 2, N = 4 };

static bk_tape tape;

static int open_tape(void **state)
{
    (void)state;
    tape = bk_test_tape(BK_F64, bk_lanes_of_rank(1, B, 0, 1));
    return 0;
}

static int close_tape(void **state)
{
    (void)state;
    bk_test_tape_free(&tape);
    return 0;
}

/* Rows of probabilities, some of them 0. */
static bk_tensor *matrices(int64_t heads, uint64_t tag)
{
    bk_tensor *x = bk_test_fill(&tape, BK_SHAPE(B, heads, N, N), tag, 0.05, 1.0);
    double *a = x->data;
    for (int64_t i = 0; i < B * heads * N; i++) {
        double sum = 0.0;
        a[i * N + i % N] = i % 3 == 0 ? 0.0 : a[i * N + i % N];
        for (int j = 0; j < N; j++)
            sum += a[i * N + j];
        for (int j = 0; j < N; j++)
            a[i * N + j] /= sum;
    }
    return x;
}

typedef struct problem {
    bk_tensor *x, *y;
    int32_t mask[B * N];
    bk_loss_layers layers;
} problem;

static void make(problem *p, int64_t teacher_heads)
{
    bk_tape_begin(&tape);
    memset(p, 0, sizeof *p);
    p->x = matrices(H, 1);
    p->y = matrices(teacher_heads, 2);
    p->y->needs_grad = false;
    for (int i = 0; i < B * N; i++)
        p->mask[i] = i != 2 && i != 7;
    p->layers =
        (bk_loss_layers){.pairs = 1,
                         .student = {p->x},
                         .teacher = {p->y},
                         .mask = bk_tensor_wrap(tape.arena, BK_I32, BK_SHAPE(B, N), p->mask),
                         .positions = B * N - 2};
}

static double loss_of(problem *p, const char *options)
{
    return bk_test_layers_loss(&tape, "attention", &p->layers, options);
}

/* Entry of the mean of the heads, or of one. */
static double entry(const bk_tensor *x, bool mean, int b, int h, int i, int j)
{
    int64_t heads = x->shape[1];
    double sum = 0.0;
    for (int64_t k = mean ? 0 : h; k < (mean ? heads : h + 1); k++)
        sum += bk_f64(x)[((b * heads + k) * N + i) * N + j];
    return mean ? sum / (double)heads : sum;
}

static double plain(const problem *p, bool kl, bool mean)
{
    double sum = 0.0;
    int units = mean ? 1 : H;
    for (int b = 0; b < B; b++)
        for (int h = 0; h < units; h++)
            for (int i = 0; i < N; i++)
                for (int j = 0; j < N && p->mask[b * N + i]; j++) {
                    double a = fmax(entry(p->x, mean, b, h, i, j), 0.0),
                           t = entry(p->y, mean, b, h, i, j);
                    if (kl)
                        sum += t > 0.0 ? t * (log(t) - log(fmax(a, 1e-30))) : 0.0;
                    else
                        sum += (a - t) * (a - t);
                }
    return sum / (double)units / (double)p->layers.positions;
}

static const struct {
    const char *options;
    bool kl, mean;
    int64_t heads; /* of the teacher */
} cases[] = {{"", false, false, H},
             {"measure=kl", true, false, H},
             {"heads=mean", false, true, G},
             {"measure=kl heads=mean", true, true, G}};

static void values(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        problem p;
        make(&p, cases[k].heads);
        double x = loss_of(&p, cases[k].options), want = plain(&p, cases[k].kl, cases[k].mean);
        bk_check_error(bk_test_error(1, &x, &want, 1e-30), 1e-13, "%s", cases[k].options);
    }
}

static void derivatives(void **state)
{
    const double step = 1e-6;
    (void)state;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        problem p;
        double grad[B * H * N * N];
        make(&p, cases[k].heads);
        loss_of(&p, cases[k].options);
        bk_tape_backward(&tape);
        for (int i = 0; i < B * H * N * N; i++)
            grad[i] = bk_test_grad(p.x, i);
        for (int i = 0; i < B * H * N * N; i++) {
            double side[2];
            make(&p, cases[k].heads);
            if (bk_f64(p.x)[i] == 0.0 && cases[k].kl)
                continue; /* held at the least probability */
            for (int s = 0; s < 2; s++) {
                make(&p, cases[k].heads);
                ((double *)p.x->data)[i] += s ? step : -step;
                side[s] = loss_of(&p, cases[k].options);
            }
            assert_true(fabs((side[1] - side[0]) / (2.0 * step) - grad[i]) < 1e-8);
        }
    }
}

static void equal_matrices_are_at_distance_zero(void **state)
{
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        problem p;
        make(&p, H);
        memcpy(p.x->data, p.y->data, B * H * N * N * sizeof(double));
        assert_true(fabs(loss_of(&p, cases[k].options)) < 1e-15);
    }
}

/* Large enough to be shared out. */
static void threads_change_no_bit(void **state)
{
    enum { LARGE = 80, HEADS = 8 };
    const int64_t count = B * HEADS * LARGE * LARGE;
    double value[2], *grad = malloc((size_t)count * sizeof *grad);
    (void)state;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++)
        for (int run = 0; run < 5; run++) {
            bk_tape_begin(&tape);
            bk_tensor *x = bk_test_fill(&tape, BK_SHAPE(B, HEADS, LARGE, LARGE), 1, 0.01, 1.0),
                      *y = bk_test_fill(&tape, BK_SHAPE(B, HEADS, LARGE, LARGE), 2, 0.01, 1.0);
            y->needs_grad = false;
            problem p = {
                .layers = {.pairs = 1, .student = {x}, .teacher = {y}, .positions = B * LARGE}};
            assert_int_equal(bk_blas_setup(run ? 4 : 1, BK_GEMM_AUTO), BK_OK);
            value[run > 0] = loss_of(&p, cases[k].options);
            bk_tape_backward(&tape);
            if (run == 0)
                memcpy(grad, x->grad, (size_t)count * sizeof *grad);
            else
                assert_memory_equal(grad, x->grad, (size_t)count * sizeof *grad);
            assert_true(run == 0 || value[1] == value[0]);
        }
    assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
    free(grad);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values),
        cmocka_unit_test(derivatives),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(equal_matrices_are_at_distance_zero),
    };
    return cmocka_run_group_tests(tests, open_tape, close_tape);
}
