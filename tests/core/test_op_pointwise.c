/* Pointwise ops against libm, and bits that do not depend on an element's place. */
#include "core/blas.h"
#include "core/ops.h"
#include "core/ops/pointwise_kernel.h"
#include "core/rng.h"
#include "tests/support/check.h"
#include "tests/support/child.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* ---- activations by libm ---- */

static double normal_cdf(double x)
{
    return 0.5 * erfc(-x * sqrt(0.5));
}

static double inner(double x)
{
    return sqrt(2.0 / acos(-1.0)) * (x + 0.044715 * x * x * x);
}

static double value_of(int kind, double x)
{
    switch (kind) {
    case BK_GELU:
        return x * normal_cdf(x);
    case BK_GELU_TANH:
        return 0.5 * x * (1.0 + tanh(inner(x)));
    case BK_RELU:
        return x > 0.0 ? x : 0.0;
    default:
        return x / (1.0 + exp(-x));
    }
}

static double slope_of(int kind, double x)
{
    double pi = acos(-1.0), t = tanh(inner(x)), s = 1.0 / (1.0 + exp(-x));
    switch (kind) {
    case BK_GELU:
        return normal_cdf(x) + x * exp(-0.5 * x * x) / sqrt(2.0 * pi);
    case BK_GELU_TANH:
        return 0.5 * (1.0 + t) +
               0.5 * x * (1.0 - t * t) * sqrt(2.0 / pi) * (1.0 + 3.0 * 0.044715 * x * x);
    case BK_RELU:
        return x > 0.0;
    default:
        return s * (1.0 + x * (1.0 - s));
    }
}

static const int kinds[] = {BK_GELU, BK_GELU_TANH, BK_RELU, BK_SILU};

static void activations_are_those_of_libm(void **state)
{
    enum { N = 20000 };
    (void)state;
    for (int k = 0; k < 8; k++) {
        bk_dtype dtype = k % 2 ? BK_F64 : BK_F32;
        bk_tape t = bk_test_tape(dtype, bk_lanes_single(1));
        bk_tensor *x = bk_test_fill(&t, BK_SHAPE(N), 1, -12, 12),
                  *y = bk_activate(&t, x, (bk_activation)kinds[k / 2]);
        double limit = dtype == BK_F64 ? 1e-14 : 1e-6;
        bk_test_seed_fill(&t, y, 0, 1, 1);
        bk_tape_backward_seeded(&t);
        for (int64_t i = 0; i < N; i++) {
            double at = bk_test_value(x, i), value = value_of(kinds[k / 2], at);
            bk_check_error(fabs(bk_test_value(y, i) - value), limit * fmax(1.0, fabs(value)),
                           "activation %d at %.17g", k / 2, at);
            bk_check_error(fabs(bk_test_grad(x, i) - slope_of(kinds[k / 2], at)), 2.0 * limit,
                           "slope of activation %d at %.17g", k / 2, at);
        }
        bk_test_tape_free(&t);
    }
}

/* Large arguments, infinities and NaN: no overflow on the way. */
static void activations_at_the_edge(void **state)
{
    const float x[] = {-INFINITY, -FLT_MAX, -1e10f, -200.0f, -0.0f, 0.0f, 200.0f, 1e10f, NAN};
    (void)state;
    for (int k = 0; k < 4; k++) {
        float y[9], dx[9] = {0};
        const float dy[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
        bk_pointwise(BK_F32)->activate(kinds[k], 9, x, y);
        bk_pointwise(BK_F32)->activate_back(kinds[k], 9, x, dy, dx);
        for (int i = 2; i < 4; i++)
            assert_true(y[i] == 0.0f && dx[i] == 0.0f);
        for (int i = 6; i < 8; i++)
            assert_true(y[i] == x[i] && dx[i] == 1.0f);
        assert_true(y[4] == 0.0f && y[5] == 0.0f);
        assert_true(isnan(y[8]));
    }
}

/* dx *= act'(x) is dx += dy act'(x) from zero. */
static void slopes_agree(void **state)
{
    enum { N = 37 };
    (void)state;
    for (int k = 0; k < 4; k++) {
        float x[N], dy[N], dx[N] = {0};
        for (int i = 0; i < N; i++) {
            x[i] = (float)bk_fill((uint64_t)i, 1, -4.0, 4.0);
            dy[i] = (float)bk_fill((uint64_t)i, 2, -1.0, 1.0);
        }
        bk_pointwise(BK_F32)->activate_back(kinds[k], N, x, dy, dx);
        bk_pointwise(BK_F32)->times_slope(kinds[k], N, x, dy);
        for (int i = 0; i < N; i++)
            assert_true(dx[i] == dy[i]);
    }
}

/* ---- arithmetic ---- */

static void arithmetic(void **state)
{
    enum { N = 37 };
    (void)state;
    for (int k = 0; k < 2; k++) {
        double limit = k ? 1e-15 : 1e-6;
        bk_tape t = bk_test_tape(k ? BK_F64 : BK_F32, bk_lanes_single(1));
        bk_tensor *a = bk_test_fill(&t, BK_SHAPE(N), 1, -1, 1),
                  *b = bk_test_fill(&t, BK_SHAPE(N), 2, -1, 1);
        bk_tensor *sum = bk_add(&t, a, b), *product = bk_mul(&t, a, sum),
                  *y = bk_scale(&t, product, -2.5);
        bk_test_seed_fill(&t, y, 3, -1, 1);
        bk_tape_backward_seeded(&t);
        for (int i = 0; i < N; i++) { /* y = -2.5 a (a + b) */
            double x = bk_test_value(a, i), z = bk_test_value(b, i), dy = bk_test_grad(y, i);
            bk_check_error(fabs(bk_test_value(y, i) + 2.5 * x * (x + z)), 10 * limit, "y");
            bk_check_error(fabs(bk_test_grad(a, i) + 2.5 * dy * (2 * x + z)), 20 * limit, "da");
            bk_check_error(fabs(bk_test_grad(b, i) + 2.5 * dy * x), 10 * limit, "db");
        }
        bk_test_tape_free(&t);
    }
}

/* ---- places ---- */

enum { PLACES = 67, LOOPS = 16 };

/* Loop number `which` of the kernel table on n elements; y starts at 1/8. */
static void run_loop(int which, bk_dtype dtype, int64_t n, const void *x, void *y)
{
    const bk_pointwise_kernels *k = bk_pointwise(dtype);
    static const uint32_t word[PLACES];
    if (which < 4)
        k->activate(kinds[which], n, x, y);
    else if (which < 8)
        k->activate_back(kinds[which - 4], n, x, x, y);
    else if (which == 8)
        k->add(n, x, x, y);
    else if (which == 9)
        k->mul(n, x, x, y);
    else if (which == 10)
        k->mul_add(n, x, x, y);
    else if (which == 11)
        k->keep_add(n, x, word, 0, 1.0 / 0.7, y);
    else
        k->times_slope(kinds[which - 12], n, x, y);
}

static void set(bk_dtype dtype, void *x, int64_t i, double value)
{
    if (dtype == BK_F64)
        ((double *)x)[i] = value;
    else
        ((float *)x)[i] = (float)value;
}

/* The result of each element alone, against arrays of every length at every offset. */
static void check_places(int which, bk_dtype dtype)
{
    double x[PLACES], alone[PLACES], y[PLACES];
    size_t size = bk_dtype_size(dtype);
    for (int64_t i = 0; i < PLACES; i++) {
        set(dtype, x, i, bk_fill((uint64_t)i, 4, -4.0, 4.0));
        set(dtype, alone, i, 0.125);
        run_loop(which, dtype, 1, (char *)x + (size_t)i * size, (char *)alone + (size_t)i * size);
    }
    for (int64_t first = 0; first < 17; first++)
        for (int64_t n = 0; first + n <= PLACES; n++) {
            size_t at = (size_t)first * size;
            for (int64_t i = 0; i < PLACES; i++)
                set(dtype, y, i, 0.125);
            run_loop(which, dtype, n, (char *)x + at, (char *)y + at);
            if (memcmp((char *)y + at, (char *)alone + at, (size_t)n * size) != 0)
                fail_msg("loop %d, %s: %d elements from %d", which, bk_dtype_name(dtype), (int)n,
                         (int)first);
        }
}

static void bits_do_not_depend_on_the_place(void **state)
{
    (void)state;
    for (int which = 0; which < LOOPS; which++) {
        check_places(which, BK_F32);
        check_places(which, BK_F64);
    }
}

/* Beyond 16,384 elements the threads share the pieces. */
static void threads_give_equal_bits(void **state)
{
    enum { N = 40000 };
    (void)state;
    for (int k = 0; k < 4; k++) {
        bk_tensor *x[2], *y[2];
        bk_tape t[2];
        for (int i = 0; i < 2; i++) {
            assert_int_equal(bk_blas_setup(i + 1, BK_GEMM_AUTO), BK_OK);
            t[i] = bk_test_tape(BK_F32, bk_lanes_single(1));
            x[i] = bk_test_fill(&t[i], BK_SHAPE(N), 1, -5, 5);
            y[i] = bk_activate(&t[i], x[i], (bk_activation)kinds[k]);
            bk_test_seed_fill(&t[i], y[i], 2, -1, 1);
            bk_tape_backward_seeded(&t[i]);
        }
        assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
        assert_memory_equal(y[0]->data, y[1]->data, N * sizeof(float));
        assert_memory_equal(x[0]->grad, x[1]->grad, N * sizeof(float));
        bk_test_tape_free(&t[0]);
        bk_test_tape_free(&t[1]);
    }
}

static void wrong_operands(void *unused)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(1));
    (void)unused;
    bk_add(&t, bk_test_fill(&t, BK_SHAPE(2, 3), 1, 0, 1),
           bk_test_fill(&t, BK_SHAPE(3, 2), 1, 0, 1));
}

static void wrong_shapes_are_faults(void **state)
{
    (void)state;
    bk_test_dies(wrong_operands, NULL, "operands differ in shape");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(activations_are_those_of_libm),
        cmocka_unit_test(activations_at_the_edge),
        cmocka_unit_test(slopes_agree),
        cmocka_unit_test(arithmetic),
        cmocka_unit_test(bits_do_not_depend_on_the_place),
        cmocka_unit_test(threads_give_equal_bits),
        cmocka_unit_test(wrong_shapes_are_faults),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
