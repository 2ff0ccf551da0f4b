/* test: labels=unit,grad timeout=60 */
#include "tests/support/check.h"
#include "tests/support/losses.h"

#include "losses/layers.h"

#include <math.h>
#include <string.h>

enum { B = 3, N = 4, C = 5, D = 7 };

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

/* Two pairs of layers: one through a map, one of equal width. */
typedef struct problem {
    bk_tensor *x[2], *y[2], *w;
    int32_t mask[B * N];
    bk_loss_layers layers;
} problem;

static void make(problem *p)
{
    bk_tape_begin(&tape);
    memset(p, 0, sizeof *p);
    p->x[0] = bk_test_fill(&tape, BK_SHAPE(B, N, C), 1, -1.0, 1.0);
    p->x[1] = bk_test_fill(&tape, BK_SHAPE(B, N, D), 2, -1.0, 1.0);
    p->y[0] = bk_test_fill(&tape, BK_SHAPE(B, N, D), 3, -1.0, 1.0);
    p->y[1] = bk_test_fill(&tape, BK_SHAPE(B, N, D), 4, -1.0, 1.0);
    p->w = bk_test_fill(&tape, BK_SHAPE(D, C), 5, -1.0, 1.0);
    for (int i = 0; i < B * N; i++)
        p->mask[i] = i % 5 != 3;
    for (int k = 0; k < 2; k++)
        p->y[k]->needs_grad = false;
    p->layers =
        (bk_loss_layers){.pairs = 2,
                         .student = {p->x[0], p->x[1]},
                         .teacher = {p->y[0], p->y[1]},
                         .weight = {p->w},
                         .mask = bk_tensor_wrap(tape.arena, BK_I32, BK_SHAPE(B, N), p->mask)};
    for (int i = 0; i < B * N; i++)
        p->layers.positions += p->mask[i];
}

static double loss_of(problem *p, const char *options)
{
    return bk_test_layers_loss(&tape, "hidden", &p->layers, options);
}

/* The formula in plain loops. */
static double plain(const problem *p, bool cosine)
{
    double sum = 0.0;
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < B * N; i++) {
            double h[D], square = 0.0, hh = 0.0, tt = 0.0, ht = 0.0;
            for (int d = 0; d < D && p->mask[i]; d++) {
                h[d] = k == 1 ? bk_f64(p->x[1])[i * D + d] : 0.0;
                for (int c = 0; c < C && k == 0; c++)
                    h[d] += bk_f64(p->w)[d * C + c] * bk_f64(p->x[0])[i * C + c];
                double t = bk_f64(p->y[k])[i * D + d];
                square += (h[d] - t) * (h[d] - t) / D;
                hh += h[d] * h[d];
                tt += t * t;
                ht += h[d] * t;
            }
            if (p->mask[i])
                sum += cosine ? 1.0 - ht / sqrt(hh * tt) : square;
        }
    return sum / 2.0;
}

static void values(void **state)
{
    (void)state;
    for (int cosine = 0; cosine < 2; cosine++) {
        problem p;
        make(&p);
        double want = plain(&p, cosine), positions = (double)p.layers.positions,
               mean = loss_of(&p, cosine ? "measure=cosine" : ""),
               sum = loss_of(&p, cosine ? "measure=cosine reduction=sum" : "reduction=sum");
        assert_true(fabs(mean - want / positions) < 1e-14 && fabs(sum - want) < 1e-13);
    }
}

/* Differences with respect to both students and the map; padded positions get nothing. */
static void derivatives(void **state)
{
    const double step = 1e-6;
    (void)state;
    for (int cosine = 0; cosine < 2; cosine++) {
        const char *options = cosine ? "measure=cosine" : "";
        problem p;
        make(&p);
        loss_of(&p, options);
        bk_tape_backward(&tape);
        bk_tensor *inputs[] = {p.x[0], p.x[1], p.w};
        double grad[3][B * N * D];
        for (int k = 0; k < 3; k++)
            for (int64_t i = 0; i < bk_count(inputs[k]); i++)
                grad[k][i] = bk_test_grad(inputs[k], i);
        for (int k = 0; k < 3; k++)
            for (int64_t i = 0; i < bk_count(inputs[k]); i++) {
                double side[2];
                for (int s = 0; s < 2; s++) {
                    make(&p);
                    bk_tensor *moved = k == 2 ? p.w : p.x[k];
                    ((double *)moved->data)[i] += s ? step : -step;
                    side[s] = loss_of(&p, options);
                }
                assert_true(fabs((side[1] - side[0]) / (2.0 * step) - grad[k][i]) < 1e-9);
                if (k < 2 && !p.mask[i / (k ? D : C)])
                    assert_true(grad[k][i] == 0.0);
            }
    }
}

/* Vectors of zeros have no direction: 1, and no gradient. */
static void zeros_have_no_direction(void **state)
{
    (void)state;
    problem p;
    make(&p);
    p.layers.pairs = 1;
    memset(p.x[0]->data, 0, B * N * C * sizeof(double));
    assert_true(fabs(loss_of(&p, "measure=cosine") - 1.0) < 1e-15);
    bk_tape_backward(&tape);
    for (int i = 0; i < B * N * C; i++)
        assert_true(bk_test_grad(p.x[0], i) == 0.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values),
        cmocka_unit_test(derivatives),
        cmocka_unit_test(zeros_have_no_direction),
    };
    return cmocka_run_group_tests(tests, open_tape, close_tape);
}
