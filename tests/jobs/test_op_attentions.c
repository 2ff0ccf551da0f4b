/* test: labels=golden,mpi timeout=300 */
/* birkhoff op attention.<kind>: the golden values from a file, and the same over ranks. */
#include "tests/support/op.h"

#include "core/rng.h"

#include <math.h>

enum { B = 2, H = 2, N = 12, D = 3, SHORT = 5 };

static bk_test_op op;

/* fill(shape, tag) of the reference; with fewer rows than it was filled with, the first of each
 * head. */
static void put_filled(const char *name, int64_t rows, int64_t filled, uint64_t tag,
                       const double range[2])
{
    double *x = BK_NEW(op.arena, double, B *H *rows *D);
    for (int64_t i = 0; i < B * H * rows * D; i++) {
        int64_t place = i / (rows * D) * (filled * D) + i % (rows * D);
        x[i] = bk_fill((uint64_t)place, tag, range[0], range[1]);
    }
    bk_test_op_reals(&op, name, BK_SHAPE(B, H, rows, D), x);
}

static void put_mask(void)
{
    int64_t mask[B * N];
    for (int i = 0; i < B * N; i++)
        mask[i] = i < N + 9;
    bk_test_op_integers(&op, "mask", BK_SHAPE(B, N), mask);
}

static void put_case(int64_t queries)
{
    const double wide[] = {-1.5, 1.5}, unit[] = {-1.0, 1.0};
    bk_test_op_renew(&op);
    put_filled("q", queries, N, 1, wide);
    put_filled("k", N, N, 2, wide);
    put_filled("v", N, N, 3, wide);
    put_filled("grad/out", queries, queries, 99, unit);
    put_mask();
}

/* Golden arrays are flat. */
static void hold(const char *name, const json_t *reference, double limit)
{
    int64_t count;
    double *numbers = bk_test_numbers(reference, &count);
    const bk_tensor *x = bk_test_op_array(&op, name);
    assert_int_equal(bk_count(x), count);
    bk_check_error(bk_test_error(count, x->data, numbers, 1.0), limit, "%s", name);
    free(numbers);
}

static void hold_case(const char *name, double limit)
{
    const json_t *entry = json_object_get(json_object_get(op.golden, "cases"), name);
    const json_t *grad = json_object_get(entry, "grad");
    hold("out", json_object_get(entry, "out"), limit);
    hold("grad/q", json_object_get(grad, "q"), limit);
    hold("grad/k", json_object_get(grad, "k"), limit);
    hold("grad/v", json_object_get(grad, "v"), limit);
}

static void golden_case(const char *name, int64_t queries, const char *options)
{
    put_case(queries);
    for (int ranks = 1; ranks <= 3; ranks += 2) {
        bk_test_op_run(&op, ranks, bk_arena_printf(op.arena, "%s dtype=f64", options));
        hold_case(name, 1e-12 + 5e-12); /* the file has 12 digits of numbers below 10 */
        bk_test_op_run(&op, ranks, options);
        hold_case(name, 1e-5);
    }
}

static void golden_softmax(void **state)
{
    (void)state;
    golden_case("softmax", N, "attention.softmax");
    golden_case("softmax_causal", N, "attention.softmax causal=true block=5");
    golden_case("softmax_cross", SHORT, "attention.softmax");
}

/* out = matrix v, its rows sum to 1 or (padded queries) to 0, and lse belongs to it. */
static void matrix_and_lse_belong_to_the_output(void **state)
{
    (void)state;
    put_case(N);
    bk_test_op_run(&op, 1, "attention.softmax matrix=true dtype=f64");
    const double *matrix = bk_test_op_numbers(&op, "matrix"), *out = bk_test_op_numbers(&op, "out");
    const double *lse = bk_test_op_numbers(&op, "lse");
    for (int64_t i = 0; i < B * H * N; i++) {
        bool real_query = i < H * N || i % N < 9;
        double sum = 0.0, value = 0.0;
        for (int64_t j = 0; j < N; j++) {
            sum += matrix[i * N + j];
            value += matrix[i * N + j] * bk_fill((uint64_t)((i / N * N + j) * D), 3, -1.5, 1.5);
        }
        assert_true(fabs(sum - real_query) < 1e-14);
        assert_true(fabs(value - out[i * D]) < 1e-14);
        assert_true(isfinite(lse[i]) == real_query);
    }
    assert_true(bk_test_op_attribute(&op, "pairs") == H * (12 * 12 + 9 * 9));
    assert_true(bk_test_op_attribute(&op, "flop") == 4.0 * D * H * (12 * 12 + 9 * 9));
}

/* Two samples: with three or four ranks some are idle. */
static void ranks_agree_to_the_bit(void **state)
{
    bool same;
    (void)state;
    put_case(N);
    for (int ranks = 2; ranks <= 4; ranks++) {
        bk_test_op_compare(&op, ranks, "attention.softmax matrix=true", "", &same);
        assert_true(same);
        assert_true(bk_test_op_attribute(&op, "pairs") == H * (12 * 12 + 9 * 9));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_softmax),
        cmocka_unit_test(matrix_and_lse_belong_to_the_output),
        cmocka_unit_test(ranks_agree_to_the_bit),
    };
    return bk_test_op_tests(&op, "ref_attention_golden.json", tests, sizeof tests / sizeof *tests);
}
