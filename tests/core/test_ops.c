/* test: labels=unit,grad timeout=120 */
/* Every op of the table against central differences, for several numbers of lanes. */
#include "tests/support/check.h"

#include "core/blas.h"
#include "core/ops.h"
#include "core/rng.h"
#include "core/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bk_tape tape_of(bk_dtype dtype, int64_t lanes)
{
    return bk_test_tape(dtype, (bk_lanes){.total = lanes, .count = lanes, .batch = 4});
}

/* sum of out times fixed weights */
static double scalar(const bk_tensor *out)
{
    double sum = 0.0;
    for (int64_t i = 0; i < bk_count(out); i++)
        sum += bk_test_value(out, i) * bk_fill((uint64_t)i, 77, -1.0, 1.0);
    return sum;
}

static double moved(const bk_op *op, int64_t lanes, int input, int64_t element, double delta)
{
    bk_tape t = tape_of(BK_F64, lanes);
    bk_sample s = {.tape = &t, .perturbed = input, .element = element, .delta = delta};
    double value = scalar(op->sample(&t, &s));
    bk_test_tape_free(&t);
    return value;
}

/* Largest relative error of the gradient over all inputs. */
static double gradient_error(const bk_op *op, int64_t lanes)
{
    const double step = 1e-6;
    bk_tape t = tape_of(BK_F64, lanes);
    bk_sample s = {.tape = &t, .perturbed = -1};
    bk_tensor *out = op->sample(&t, &s);
    bk_test_seed_fill(&t, out, 77, -1.0, 1.0);
    bk_tape_backward_seeded(&t);
    double worst = 0.0;
    for (int i = 0; i < s.inputs; i++)
        for (int64_t j = 0; j < bk_count(s.input[i]); j++) {
            double numeric =
                (moved(op, lanes, i, j, step) - moved(op, lanes, i, j, -step)) / (2.0 * step);
            double error = fabs(numeric - bk_test_grad(s.input[i], j)) / fmax(1.0, fabs(numeric));
            worst = error > worst || isnan(error) ? error : worst;
        }
    bk_test_tape_free(&t);
    return worst;
}

static void every_gradient(void **state)
{
    (void)state;
    for (int i = 0; bk_ops[i]; i++) {
        if (!bk_ops[i]->backward) {
            assert_true(bk_ops[i]->nondifferentiable);
            continue;
        }
        assert_non_null(bk_ops[i]->sample);
        for (int64_t lanes = 1; lanes <= 4; lanes *= 2)
            bk_check_error(gradient_error(bk_ops[i], lanes), 1e-6, "op %s, %d lanes",
                           bk_ops[i]->name, (int)lanes);
    }
}

static void single_precision_agrees(void **state)
{
    (void)state;
    for (int i = 0; bk_ops[i]; i++) {
        bk_tensor *out[2], *in[2] = {NULL, NULL};
        bk_tape tape[2];
        for (int k = 0; k < 2; k++) {
            tape[k] = tape_of(k ? BK_F64 : BK_F32, 2);
            bk_sample s = {.tape = &tape[k], .perturbed = -1};
            out[k] = bk_ops[i]->sample(&tape[k], &s);
            bk_test_seed_fill(&tape[k], out[k], 77, -1.0, 1.0);
            bk_tape_backward_seeded(&tape[k]);
            in[k] = s.input[0];
        }
        for (int64_t j = 0; j < bk_count(out[0]); j++)
            bk_check_error(fabs(bk_test_value(out[0], j) - bk_test_value(out[1], j)), 1e-4, "%s",
                           bk_ops[i]->name);
        for (int64_t j = 0; j < bk_count(in[0]); j++)
            bk_check_error(fabs(bk_test_grad(in[0], j) - bk_test_grad(in[1], j)), 1e-4,
                           "grad of %s", bk_ops[i]->name);
        bk_test_tape_free(&tape[0]);
        bk_test_tape_free(&tape[1]);
    }
}

/* ---- the check can fail ---- */

static void wrong_shape(bk_tape *t, bk_node *n)
{
    (void)t;
    *n->out[0] = *n->in[0];
    n->out[0]->data = n->out[0]->grad = NULL;
    n->out[0]->producer = NULL;
}

static void wrong_forward(bk_tape *t, bk_node *n)
{
    (void)t;
    for (int64_t i = 0; i < bk_count(n->in[0]); i++)
        ((double *)n->out[0]->data)[i] = bk_f64(n->in[0])[i] * bk_f64(n->in[0])[i];
}

static void wrong_backward(bk_tape *t, bk_node *n)
{
    double *grad = bk_grad(t, n->in[0]);
    for (int64_t i = 0; i < bk_count(n->in[0]); i++)
        grad[i] += ((const double *)n->out[0]->grad)[i] *
                   bk_f64(n->in[0])[i]; /* the factor 2 is missing */
}

static const bk_op wrong;

static bk_tensor *wrong_sample(bk_tape *t, bk_sample *s)
{
    bk_tensor *x = bk_sample_input(s, BK_SHAPE(4, 3));
    return bk_apply(t, &wrong, 1, &x, 1, NULL, 0)->out[0];
}

static const bk_op wrong = {.name = "wrong",
                            .shape = wrong_shape,
                            .forward = wrong_forward,
                            .backward = wrong_backward,
                            .sample = wrong_sample};

static void the_check_can_fail(void **state)
{
    (void)state;
    assert_true(gradient_error(&wrong, 1) > 1e-2);
}

/* ---- lanes ---- */

/* Gradients of w and b of linear over `rows` samples of lanes [first, first+count) of 4. */
static void linear_gradients(int64_t first, int64_t count, float *dw, float *db)
{
    enum { B = 8, N = 5, I = 7, O = 3 };
    bk_tape t =
        bk_test_tape(BK_F32, (bk_lanes){.total = 4, .first = first, .count = count, .batch = B});
    int64_t samples = bk_lanes_samples(&t.lanes), start = bk_lanes_first_sample(&t.lanes);
    bk_tensor *x = bk_tape_variable(&t, BK_SHAPE(samples, N, I));
    bk_tensor *w = bk_test_fill(&t, BK_SHAPE(O, I), 2, -1, 1),
              *b = bk_test_fill(&t, BK_SHAPE(O), 3, -1, 1);
    for (int64_t i = 0; i < bk_count(x); i++)
        ((float *)x->data)[i] = (float)bk_fill((uint64_t)(start * N * I + i), 1, -1, 1);
    bk_tensor *y = bk_linear(&t, x, w, b);
    float *grad = bk_grad(&t, y);
    for (int64_t i = 0; i < bk_count(y); i++)
        grad[i] = (float)bk_fill((uint64_t)(start * N * O + i), 4, -1, 1);
    bk_tape_backward_seeded(&t);
    memcpy(dw, w->grad, O * I * sizeof *dw);
    memcpy(db, b->grad, O * sizeof *db);
    bk_test_tape_free(&t);
}

static void lanes_give_equal_bits(void **state)
{
    enum { SIZE = 21 + 3 };
    float all[SIZE], part[4][SIZE], pair[2][SIZE];
    (void)state;
    linear_gradients(0, 4, all, all + 21);
    for (int l = 0; l < 4; l++)
        linear_gradients(l, 1, part[l], part[l] + 21);
    for (int l = 0; l < 2; l++)
        linear_gradients(2 * l, 2, pair[l], pair[l] + 21);
    for (int i = 0; i < SIZE; i++) {
        float four = (part[0][i] + part[1][i]) + (part[2][i] + part[3][i]),
              two = pair[0][i] + pair[1][i];
        assert_memory_equal(&all[i], &four, sizeof four);
        assert_memory_equal(&all[i], &two, sizeof two);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_gradient),
        cmocka_unit_test(single_precision_agrees),
        cmocka_unit_test(the_check_can_fail),
        cmocka_unit_test(lanes_give_equal_bits),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
