/* test: labels=unit,grad timeout=120 */
/* Every op of the table against central differences, and its bits for several numbers of lanes,
 * ranks and threads. */
#include "tests/support/check.h"

#include "core/blas.h"
#include "core/ops.h"
#include "core/rng.h"
#include "core/sample.h"

#include <glob.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bk_tape tape_of(bk_dtype dtype, int64_t lanes)
{
    return bk_test_tape(dtype,
                        (bk_lanes){.total = lanes, .count = lanes, .batch = BK_SAMPLE_BATCH});
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

/* ---- ranks and threads: the same bits ---- */

enum { MOST_RANKS = 8 };

/* One rank's run of an op's sample, forward and backward. */
typedef struct part {
    bk_tape tape;
    bk_sample sample;
    bk_tensor *out;
} part;

/* The place of a rank's first element in the global array of a tensor cut by samples. */
static int64_t first_element(const part *p, const bk_tensor *x)
{
    int64_t samples = bk_lanes_samples(&p->tape.lanes);
    return samples > 0 ? bk_lanes_first_sample(&p->tape.lanes) * (bk_count(x) / samples) : 0;
}

static void run_part(const bk_op *op, int64_t lanes, int rank, int ranks, part *p)
{
    p->tape = bk_test_tape(BK_F32, bk_lanes_of_rank(lanes, BK_SAMPLE_BATCH, rank, ranks));
    p->sample = (bk_sample){.tape = &p->tape, .perturbed = -1};
    p->out = op->sample(&p->tape, &p->sample);
    float *grad = bk_grad(&p->tape, p->out);
    int64_t first = first_element(p, p->out);
    for (int64_t i = 0; i < bk_count(p->out); i++)
        grad[i] = (float)bk_fill((uint64_t)(first + i), 77, -1.0, 1.0);
    bk_tape_backward_seeded(&p->tape);
}

static bool same_bits(double a, double b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}

static bool is_cut(const bk_tensor *whole)
{
    return whole->dims > 0 && whole->shape[0] == BK_SAMPLE_BATCH;
}

/* Element j of the gradient of a parameter: the lane tree over the ranks that have a lane. */
static double tree_over_ranks(const part *p, int ranks, int input, int64_t j)
{
    float sum[MOST_RANKS];
    int n = 0;
    for (int r = 0; r < ranks; r++)
        if (p[r].tape.lanes.count > 0)
            sum[n++] = (float)bk_test_grad(p[r].sample.input[input], j);
        else
            assert_true(bk_test_grad(p[r].sample.input[input], j) == 0.0);
    for (; n > 1; n /= 2)
        for (int i = 0; i < n / 2; i++)
            sum[i] = sum[2 * i] + sum[2 * i + 1];
    return (double)sum[0];
}

static void check_part(const bk_op *op, const part *whole, const part *p)
{
    int64_t first = first_element(p, p->out);
    for (int64_t j = 0; j < bk_count(p->out); j++)
        if (!same_bits(bk_test_value(p->out, j), bk_test_value(whole->out, first + j)))
            fail_msg("%s: output %d differs", op->name, (int)j);
    for (int i = 0; i < p->sample.inputs; i++) {
        const bk_tensor *x = p->sample.input[i], *all = whole->sample.input[i];
        first = first_element(p, x);
        for (int64_t j = 0; is_cut(all) && j < bk_count(x); j++)
            if (!same_bits(bk_test_grad(x, j), bk_test_grad(all, first + j)))
                fail_msg("%s: gradient of input %d differs", op->name, i);
    }
}

/* A rank's rows do not depend on how many ranks there are; parameters' gradients do not for powers
 * of two. */
static void check_ranks(const bk_op *op, const part *whole, int ranks)
{
    part p[MOST_RANKS];
    for (int r = 0; r < ranks; r++) {
        run_part(op, whole->tape.lanes.total, r, ranks, &p[r]);
        check_part(op, whole, &p[r]);
    }
    for (int i = 0; i < whole->sample.inputs; i++) {
        const bk_tensor *x = whole->sample.input[i];
        for (int64_t j = 0; !is_cut(x) && ranks != 3 && j < bk_count(x); j++)
            if (!same_bits(tree_over_ranks(p, ranks, i, j), bk_test_grad(x, j)))
                fail_msg("%s: gradient of parameter %d differs on %d ranks", op->name, i, ranks);
    }
    for (int r = 0; r < ranks; r++)
        bk_test_tape_free(&p[r].tape);
}

static void ranks_give_equal_bits(void **state)
{
    const int ranks[] = {1, 2, 3, 4, 8};
    (void)state;
    for (int i = 0; bk_ops[i]; i++) {
        part whole;
        run_part(bk_ops[i], 4, 0, 1, &whole);
        for (int k = 0; k < 5; k++)
            check_ranks(bk_ops[i], &whole, ranks[k]);
        bk_test_tape_free(&whole.tape);
    }
}

static void threads_give_equal_bits(void **state)
{
    (void)state;
    for (int i = 0; bk_ops[i]; i++) {
        part one, two;
        run_part(bk_ops[i], 1, 0, 1, &one);
        assert_int_equal(bk_blas_setup(2, BK_GEMM_AUTO), BK_OK);
        run_part(bk_ops[i], 1, 0, 1, &two);
        assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
        check_part(bk_ops[i], &one, &two);
        for (int k = 0; k < one.sample.inputs; k++)
            for (int64_t j = 0; j < bk_count(one.sample.input[k]); j++)
                assert_true(same_bits(bk_test_grad(one.sample.input[k], j),
                                      bk_test_grad(two.sample.input[k], j)));
        bk_test_tape_free(&one.tape);
        bk_test_tape_free(&two.tape);
    }
}

/* ---- the table ---- */

static int definitions(const char *path)
{
    char line[512];
    int found = 0;
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file))
        found += strncmp(line, "const bk_op bk_op_", 18) == 0;
    fclose(file);
    return found;
}

static void every_op_is_listed(void **state)
{
    const char *source = getenv("BIRKHOFF_SOURCE");
    char pattern[4096];
    glob_t files;
    int defined = 0, listed = 0;
    (void)state;
    snprintf(pattern, sizeof pattern, "%s/core/ops/*.c", source ? source : ".");
    assert_int_equal(glob(pattern, 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; i++)
        defined += definitions(files.gl_pathv[i]);
    globfree(&files);
    while (bk_ops[listed])
        listed++;
    assert_int_equal(listed, defined);
    for (int i = 0; i < listed; i++)
        for (int j = 0; j < i; j++)
            assert_string_not_equal(bk_ops[i]->name, bk_ops[j]->name);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op_is_listed),      cmocka_unit_test(every_gradient),
        cmocka_unit_test(single_precision_agrees), cmocka_unit_test(the_check_can_fail),
        cmocka_unit_test(ranks_give_equal_bits),   cmocka_unit_test(threads_give_equal_bits),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
