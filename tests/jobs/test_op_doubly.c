/* test: labels=golden,grad,mpi timeout=300 */
/* birkhoff op attention.sinkformer, .qr and .qds: golden values from a file, sums, invariances,
 * refusals, and the same over ranks. */
#include "tests/support/op.h"

#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bk_test_op op;
static const char *const kinds[] = {"sinkformer", "qr", "qds"};

static const json_t *reference(const char *name)
{
    return json_object_get(op.golden, name);
}

/* [n,n] or [n,d] of the golden file as [1,1,n,...]. */
static void put_golden(const char *name, const char *key, int64_t columns)
{
    int64_t count;
    double *x = bk_test_numbers(reference(key), &count);
    bk_test_op_reals(&op, name, BK_SHAPE(1, 1, count / columns, columns), x);
    free(x);
}

static void put_identity(const char *name)
{
    double x[16] = {0};
    for (int i = 0; i < 4; i++)
        x[5 * i] = 1.0;
    bk_test_op_reals(&op, name, BK_SHAPE(1, 1, 4, 4), x);
}

/* q = S, k = v = I, scale = 1: M = S, out = A, grad/out = G, so grad/q = dM. */
static void put_square(void)
{
    bk_test_op_renew(&op);
    put_golden("q", "S", 4);
    put_identity("k");
    put_identity("v");
    put_golden("grad/out", "G", 4);
}

/* Golden arrays are flat in a different number of axes. */
static void hold(const char *name, const char *key, double limit)
{
    int64_t count;
    double *numbers = bk_test_numbers(reference(key), &count);
    assert_int_equal(bk_count(bk_test_op_array(&op, name)), count);
    bk_check_error(bk_test_error(count, bk_test_op_numbers(&op, name), numbers, 1e-30), limit, "%s",
                   key);
    free(numbers);
}

static void hold_square(const char *options, const char *a, const char *dm)
{
    for (int wide = 0; wide < 2; wide++) {
        double limit = wide ? 1e-10 : 2e-5;
        bk_test_op_run(&op, 1,
                       bk_arena_printf(op.arena, "attention.%s scale=1 matrix=true%s", options,
                                       wide ? " dtype=f64" : ""));
        hold("out", a, limit);
        hold("matrix", a, limit);
        hold("grad/q", dm, limit);
    }
}

static void golden_matrices(void **state)
{
    int64_t count;
    (void)state;
    put_square();
    hold_square("sinkformer half_steps=1", "sink_A_1", "sink_dS_1");
    hold_square("sinkformer", "sink_A_3", "sink_dS_3");
    hold_square("sinkformer half_steps=5", "sink_A_5", "sink_dS_5");
    hold_square("qr noise=0", "qr_P", "qr_dM");
    put_square();
    double *theta = bk_test_numbers(reference("qds_theta"), &count);
    bk_test_op_reals(&op, "theta", BK_SHAPE(1, count), theta);
    free(theta);
    hold_square("qds circuit_layers=1", "qds_P", "qds_dM");
    hold("grad/theta", "qds_dtheta", 1e-10);
    hold_square("qds circuit_layers=1 angles=trained", "qds_P", "qds_dM");
}

static void golden_mask(void **state)
{
    const int64_t mask[] = {1, 1, 0, 1};
    (void)state;
    bk_test_op_renew(&op);
    put_golden("q", "att_q", 3);
    put_golden("k", "att_k", 3);
    put_golden("v", "att_v", 3);
    put_golden("grad/out", "att_G", 3);
    bk_test_op_integers(&op, "mask", BK_SHAPE(1, 4), mask);
    for (int wide = 0; wide < 2; wide++) {
        double limit = wide ? 1e-10 : 2e-5;
        bk_test_op_run(&op, 1,
                       wide ? "attention.sinkformer matrix=true dtype=f64"
                            : "attention.sinkformer matrix=true");
        hold("out", "att_out", limit);
        hold("matrix", "att_matrix", limit);
        hold("grad/q", "att_dq", limit);
        hold("grad/k", "att_dk", limit);
        hold("grad/v", "att_dv", limit);
    }
}

/* ---- larger inputs ---- */

enum { B = 3, H = 2, MOST = 80 };

static void put_scaled(const char *name, int64_t n, int64_t d, uint64_t tag, double factor)
{
    double *x = BK_NEW(op.arena, double, B *H *n *d);
    for (int64_t i = 0; i < B * H * n * d; i++)
        x[i] = factor * bk_fill((uint64_t)i, tag, -1.5, 1.5);
    bk_test_op_reals(&op, name, BK_SHAPE(B, H, n, d), x);
}

static void put_filled(const char *name, int64_t n, int64_t d, uint64_t tag)
{
    put_scaled(name, n, d, tag, 1.0);
}

static void put_case(int64_t n, int64_t d)
{
    bk_test_op_renew(&op);
    put_filled("q", n, d, 1);
    put_filled("k", n, d, 2);
    put_filled("v", n, d, 3);
    put_filled("grad/out", n, d, 99);
}

static void put_mask(int64_t n)
{
    int64_t mask[B * MOST];
    for (int64_t i = 0; i < B * n; i++)
        mask[i] = i / n == 0 || (i / n == 1 && i % n % 3 != 1) || i % n == 2; /* all, some, one */
    bk_test_op_integers(&op, "mask", BK_SHAPE(B, n), mask);
}

static void hold_sums(const char *arguments, double rows, double columns)
{
    bk_test_op_run(&op, 1, arguments);
    bk_check_error(bk_test_op_attribute(&op, "row_error"), rows, "%s, rows", arguments);
    bk_check_error(bk_test_op_attribute(&op, "column_error"), columns, "%s, columns", arguments);
    const bk_tensor *matrix = bk_test_op_array(&op, "matrix");
    int64_t n = matrix->shape[3];
    double worst = 0.0;
    for (int64_t r = 0; r < B * H * n; r++) {
        double sum = 0.0;
        for (int64_t j = 0; j < n; j++)
            sum += bk_f64(matrix)[r * n + j];
        worst = fmax(worst, sum == 0.0 ? 0.0 : fabs(sum - 1.0)); /* padding: a row of zeros */
    }
    bk_check_error(fabs(worst - bk_test_op_attribute(&op, "row_error")), 1e-15, "row_error");
}

static void rows_and_columns_sum_to_one(void **state)
{
    const int64_t sizes[] = {8, 40, 72}; /* slots; LAPACK; potentials */
    (void)state;
    for (int i = 0; i < 3; i++) {
        put_case(sizes[i], 6); /* fewer than rows: singular */
        put_mask(sizes[i]);
        hold_sums("attention.qr matrix=true dtype=f64", 1e-12, 1e-12);
        hold_sums("attention.qr matrix=true", 4e-6, 4e-6);
        hold_sums("attention.sinkformer matrix=true dtype=f64", 1e-13, 10.0);
        hold_sums("attention.sinkformer matrix=true half_steps=4 dtype=f64", 10.0, 1e-13);
        hold_sums("attention.sinkformer matrix=true half_steps=401 dtype=f64", 1e-6, 1e-6);
        hold_sums("attention.sinkformer matrix=true half_steps=401", 1e-5, 1e-5);
    }
    put_case(8, 6);
    hold_sums("attention.qds matrix=true dtype=f64", 1e-12, 1e-12);
    hold_sums("attention.qds matrix=true", 2e-6, 2e-6);
    hold_sums("attention.qds matrix=true preset=paper", 1e-5, 1e-5);
}

static void put_sharp(int64_t n, double factor)
{
    bk_test_op_renew(&op);
    put_scaled("q", n, 8, 1, factor);
    put_filled("k", n, 8, 2);
    put_filled("v", n, 8, 3);
    put_filled("grad/out", n, 8, 99);
}

static void sharp_scores_keep_the_last_side(void **state)
{
    const int64_t sizes[] = {6, 72};
    const double factors[] = {1e3, 1e6, 1e20};
    (void)state;
    for (int i = 0; i < 2; i++) {
        for (int f = 0; f < 3; f++) {
            put_sharp(sizes[i], factors[f]);
            hold_sums("attention.sinkformer matrix=true", 2e-6, 100.0);
            hold_sums("attention.sinkformer matrix=true half_steps=4", 100.0, 2e-6);
        }
        put_sharp(sizes[i], 1e300);
        hold_sums("attention.sinkformer matrix=true dtype=f64", 1e-14, 100.0);
        hold_sums("attention.sinkformer matrix=true half_steps=4 dtype=f64", 100.0, 1e-14);
    }
}

static void nan_is_the_largest_error(void **state)
{
    (void)state;
    put_sharp(8, NAN);
    for (int kind = 0; kind < 3; kind++) {
        bk_test_op_run(&op, 1, bk_arena_printf(op.arena, "attention.%s matrix=true", kinds[kind]));
        assert_true(bk_test_op_attribute(&op, "row_error") == INFINITY);
        assert_true(bk_test_op_attribute(&op, "column_error") == INFINITY);
    }
}

/* max|x - y| of an array of the last run and one that was kept. */
static double difference(const bk_tensor *x, const bk_tensor *y)
{
    double worst = 0.0;
    for (int64_t i = 0; i < bk_count(x); i++) {
        double d = fabs(bk_f64(x)[i] - bk_f64(y)[i]);
        worst = d <= worst ? worst : d;
    }
    return worst;
}

static void one_half_step_is_softmax(void **state)
{
    const char *const names[] = {"out", "grad/q", "grad/k", "grad/v"};
    const int64_t sizes[] = {9, 70};
    (void)state;
    for (int i = 0; i < 2; i++) {
        const bk_tensor *kept[4];
        put_case(sizes[i], 5);
        put_mask(sizes[i]);
        bk_test_op_run(&op, 1, "attention.softmax dtype=f64");
        for (int k = 0; k < 4; k++)
            kept[k] = bk_test_op_array(&op, names[k]);
        bk_test_op_run(&op, 1, "attention.sinkformer half_steps=1 dtype=f64");
        for (int k = 0; k < 4; k++)
            bk_check_error(difference(bk_test_op_array(&op, names[k]), kept[k]), 1e-13, "%s",
                           names[k]);
    }
}

/* At convergence both are the gradient of the same function. */
static void implicit_is_unrolled_at_convergence(void **state)
{
    const char *const names[] = {"grad/q", "grad/k", "grad/v"};
    const int64_t sizes[] = {9, 70};
    (void)state;
    for (int i = 0; i < 2; i++) {
        const bk_tensor *kept[3];
        put_case(sizes[i], 5);
        put_mask(sizes[i]);
        bk_test_op_run(&op, 1, "attention.sinkformer half_steps=601 dtype=f64");
        for (int k = 0; k < 3; k++)
            kept[k] = bk_test_op_array(&op, names[k]);
        bk_test_op_run(&op, 1, "attention.sinkformer half_steps=601 gradient=implicit dtype=f64");
        for (int k = 0; k < 3; k++)
            bk_check_error(difference(bk_test_op_array(&op, names[k]), kept[k]), 1e-9, "%s",
                           names[k]);
    }
}

/* The rows of q, k and v in reverse: the rows of sinkformer's result are, and only there. */
static void only_sinkformer_commutes_with_permutations(void **state)
{
    enum { N = 8, D = 9 };
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        const char *arguments = bk_arena_printf(op.arena, "attention.%s dtype=f64", kinds[kind]);
        const char *const names[] = {"q", "k", "v"};
        put_case(N, D);
        bk_test_op_run(&op, 1, arguments);
        const bk_tensor *out = bk_test_op_array(&op, "out");
        bk_test_op_renew(&op);
        for (int i = 0; i < 3; i++) {
            double *x = BK_NEW(op.arena, double, B *H *N *D);
            for (int64_t j = 0; j < B * H * N * D; j++) {
                int64_t row = j / D, turned = row / N * N + N - 1 - row % N;
                x[j] = bk_fill((uint64_t)(turned * D + j % D), (uint64_t)i + 1, -1.5, 1.5);
            }
            bk_test_op_reals(&op, names[i], BK_SHAPE(B, H, N, D), x);
        }
        bk_test_op_run(&op, 1, arguments);
        const double *turned = bk_test_op_numbers(&op, "out");
        double worst = 0.0;
        for (int64_t j = 0; j < B * H * N * D; j++) {
            int64_t row = j / D, place = row / N * N + N - 1 - row % N;
            worst = fmax(worst, fabs(turned[place * D + j % D] - bk_f64(out)[j]));
        }
        assert_true(kind == 0 ? worst < 1e-12 : worst > 1e-3);
    }
}

/* ---- qr ---- */

static void put_square_of(const double *m, int64_t n)
{
    double *one = BK_ZNEW(op.arena, double, n *n);
    for (int64_t i = 0; i < n; i++)
        one[i * n + i] = 1.0;
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "q", BK_SHAPE(1, 1, n, n), m);
    bk_test_op_reals(&op, "k", BK_SHAPE(1, 1, n, n), one);
    bk_test_op_reals(&op, "v", BK_SHAPE(1, 1, n, n), one);
}

static const bk_tensor *matrix_of_square(const double *m, int64_t n, const char *options)
{
    put_square_of(m, n);
    bk_test_op_run(&op, 1,
                   bk_arena_printf(op.arena, "attention.qr dtype=f64 matrix=true %s", options));
    return bk_test_op_array(&op, "matrix");
}

static void qr_sees_neither_signs_nor_scale(void **state)
{
    enum { N = 40 }; /* and, of its leading part, 8 */
    static double m[N * N], other[N * N];
    (void)state;
    for (int64_t n = 8; n <= N; n += N - 8) {
        for (int64_t i = 0; i < n * n; i++) {
            m[i] = bk_fill((uint64_t)i, 5, -1.0, 1.0);
            other[i] = i % n % 3 == 1 ? -m[i] : m[i];
        }
        const bk_tensor *a = matrix_of_square(m, n, "noise=0");
        bk_check_error(difference(a, matrix_of_square(other, n, "noise=0")), 1e-12, "signs");
        bk_check_error(difference(a, matrix_of_square(m, n, "noise=0 scale=1000")), 1e-12, "scale");
        bk_check_error(difference(a, matrix_of_square(m, n, "")), 1e-4, "noise");
        assert_true(difference(a, matrix_of_square(m, n, "")) > 0.0);
    }
}

/* A power of two on the scores, to the ends of double: the bits of A, and its inverse on dM. */
static void qr_takes_scores_of_any_size(void **state)
{
    enum { N = 40 };
    static double m[N * N];
    const int powers[] = {-1060, -565, 531, 1019};
    (void)state;
    for (int64_t n = 8; n <= N; n += N - 8) {
        const bk_tensor *a[5], *dm[5];
        double *g = BK_NEW(op.arena, double, n *n);
        for (int64_t i = 0; i < n * n; i++)
            g[i] = bk_fill((uint64_t)i, 6, -1.0, 1.0);
        for (int p = 0; p < 5; p++) {
            for (int64_t i = 0; i < n * n; i++) /* few digits: none is lost among denormals */
                m[i] = ldexp(floor(bk_fill((uint64_t)i, 5, -4.0, 4.0)), p < 4 ? powers[p] : 0);
            put_square_of(m, n);
            bk_test_op_reals(&op, "grad/out", BK_SHAPE(1, 1, n, n), g);
            bk_test_op_run(&op, 1, "attention.qr scale=1 dtype=f64 matrix=true");
            a[p] = bk_test_op_array(&op, "matrix");
            dm[p] = bk_test_op_array(&op, "grad/q");
        }
        for (int p = 0; p < 4; p++) {
            assert_true(difference(a[p], a[4]) == 0.0);
            for (int64_t i = 0; i < n * n && powers[p] > -1000 && powers[p] < 1000; i++)
                assert_true(ldexp(bk_f64(dm[p])[i], powers[p]) == bk_f64(dm[4])[i]);
        }
    }
}

static void qr_of_a_permutation_is_that_permutation(void **state)
{
    double m[64] = {0};
    (void)state;
    for (int i = 0; i < 8; i++)
        m[i * 8 + 3 * i % 8] = 1.0;
    const bk_tensor *a = matrix_of_square(m, 8, "noise=0");
    for (int i = 0; i < 64; i++)
        assert_true(fabs(bk_f64(a)[i] - m[i]) < 1e-15);
    memset(m, 0, sizeof m);
    a = matrix_of_square(m, 8, "");
    for (int i = 0; i < 64; i++)
        assert_true(bk_f64(a)[i] == (i / 8 == i % 8));
}

/* Two columns span the scores of eight tokens. */
static void qr_of_singular_scores_is_finite(void **state)
{
    (void)state;
    put_case(8, 2);
    for (int wide = 0; wide < 2; wide++) {
        bk_test_op_run(&op, 1, wide ? "attention.qr dtype=f64" : "attention.qr");
        assert_true(bk_test_op_attribute(&op, "row_error") < 4e-6);
        assert_true(bk_test_op_attribute(&op, "clamped") >= B * H);
        const char *const names[] = {"out", "grad/q", "grad/k", "grad/v"};
        for (int i = 0; i < 4; i++)
            for (int64_t j = 0; j < B * H * 8 * 2; j++)
                assert_true(isfinite(bk_test_op_numbers(&op, names[i])[j]));
    }
}

/* ---- gradients of the matrix, padding, seeds ---- */

/* grad/matrix adds to grad/out: with grad/matrix = dout v' the gradients of q and k double. */
static void a_gradient_of_the_matrix_adds(void **state)
{
    enum { N = 8, D = 9 };
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        const char *arguments =
            bk_arena_printf(op.arena, "attention.%s dtype=f64 matrix=true", kinds[kind]);
        put_case(N, D);
        bk_test_op_run(&op, 1, arguments);
        const bk_tensor *dq = bk_test_op_array(&op, "grad/q"),
                        *dv = bk_test_op_array(&op, "grad/v");
        double *g = BK_ZNEW(op.arena, double, B *H *N *N);
        for (int64_t i = 0; i < B * H * N * N; i++)
            for (int64_t d = 0; d < D; d++)
                g[i] += bk_fill((uint64_t)(i / N * D + d), 99, -1.5, 1.5) *
                        bk_fill((uint64_t)((i / N / N * N + i % N) * D + d), 3, -1.5, 1.5);
        put_case(N, D);
        bk_test_op_reals(&op, "grad/matrix", BK_SHAPE(B, H, N, N), g);
        bk_test_op_run(&op, 1, arguments);
        const double *twice = bk_test_op_numbers(&op, "grad/q");
        for (int64_t i = 0; i < B * H * N * D; i++)
            bk_check_error(fabs(twice[i] - 2.0 * bk_f64(dq)[i]), 1e-9, "%s", kinds[kind]);
        assert_true(difference(bk_test_op_array(&op, "grad/v"), dv) == 0.0);
    }
}

/* A drawn theta is written, and given back it gives the same; another seed draws another. */
static void theta_is_drawn_and_written(void **state)
{
    (void)state;
    put_case(4, 5);
    bk_test_op_run(&op, 1, "attention.qds dtype=f64 seed=7");
    const bk_tensor *out = bk_test_op_array(&op, "out"), *theta = bk_test_op_array(&op, "theta"),
                    *grad = bk_test_op_array(&op, "grad/theta");
    assert_int_equal(theta->shape[0], H);
    assert_int_equal(theta->shape[1], 3 * 3 + 8 * 4 * 2);
    bk_test_op_run(&op, 1, "attention.qds dtype=f64 seed=8");
    assert_true(difference(bk_test_op_array(&op, "theta"), theta) > 0.1);
    put_case(4, 5);
    bk_test_op_reals(&op, "theta", 2, theta->shape, theta->data);
    bk_test_op_run(&op, 1, "attention.qds dtype=f64");
    assert_true(difference(bk_test_op_array(&op, "out"), out) == 0.0);
    assert_true(difference(bk_test_op_array(&op, "grad/theta"), grad) == 0.0);
    assert_false(bk_test_op_has(&op, "theta"));
    assert_int_equal(bk_test_op_status(&op, 1, "attention.qds circuit_layers=1"), 3);
    assert_true(bk_test_op_says(&op, "K = 73 columns, not 25"));
}

/* Zero rows up to eight: the real block of a doubly stochastic matrix. */
static void zero_rows_fill_up(void **state)
{
    (void)state;
    put_case(6, 5);
    bk_test_op_run(&op, 1, "attention.qds pad=zero dtype=f64 matrix=true");
    const bk_tensor *matrix = bk_test_op_array(&op, "matrix");
    for (int64_t r = 0; r < B * H * 6; r++) {
        double sum = 0.0;
        for (int64_t j = 0; j < 6; j++)
            sum += bk_f64(matrix)[r * 6 + j];
        assert_true(sum > 0.0 && sum < 1.0 + 1e-12);
    }
}

/* ---- ranks ---- */

static void ranks_agree(void **state)
{
    bool same;
    (void)state;
    for (int kind = 0; kind < 3; kind++)
        for (int ranks = 2; ranks <= 4; ranks++) {
            put_case(8, 9);
            double worst = bk_test_op_compare(
                &op, ranks,
                bk_arena_printf(op.arena, "attention.%s matrix=true dtype=f64", kinds[kind]), "",
                &same);
            assert_true(worst < 1e-12);
            assert_true(same || (kind == 2 && ranks == 3)); /* grad/theta: another tree */
        }
}

/* ---- refusals ---- */

static void refused(const char *arguments, const char *text)
{
    bk_test_op_refuses(&op, 2, 1, text, arguments);
}

static void what_cannot_be_is_refused(void **state)
{
    (void)state;
    put_case(8, 5);
    for (int kind = 0; kind < 3; kind++)
        refused(bk_arena_printf(op.arena, "attention.%s causal=true", kinds[kind]),
                bk_arena_printf(op.arena,
                                "attention kind '%s' cannot be causal (causal=true): a causal "
                                "doubly stochastic matrix is the identity; use softmax",
                                kinds[kind]));
    refused("attention.sinkformer gradient=implicit", "half_steps=3");
    refused("attention.sinkformer seed=1", "seed");
    put_case(6, 5);
    refused("attention.qds", "not 6: make them 8");
    put_case(8, 5);
    put_mask(8);
    refused("attention.qds", "no padding");
    put_case(32, 5);
    refused("attention.qds ancilla=6", "at most 10 qubits, not 11");
    for (int kind = 0; kind < 3; kind++) {
        bk_test_op_renew(&op);
        put_filled("q", 4, 5, 1);
        put_filled("k", 8, 5, 2);
        put_filled("v", 8, 5, 3);
        refused(bk_arena_printf(op.arena, "attention.%s", kinds[kind]), "as many keys as queries");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_matrices),
        cmocka_unit_test(golden_mask),
        cmocka_unit_test(rows_and_columns_sum_to_one),
        cmocka_unit_test(sharp_scores_keep_the_last_side),
        cmocka_unit_test(nan_is_the_largest_error),
        cmocka_unit_test(one_half_step_is_softmax),
        cmocka_unit_test(implicit_is_unrolled_at_convergence),
        cmocka_unit_test(only_sinkformer_commutes_with_permutations),
        cmocka_unit_test(qr_sees_neither_signs_nor_scale),
        cmocka_unit_test(qr_takes_scores_of_any_size),
        cmocka_unit_test(qr_of_a_permutation_is_that_permutation),
        cmocka_unit_test(qr_of_singular_scores_is_finite),
        cmocka_unit_test(a_gradient_of_the_matrix_adds),
        cmocka_unit_test(theta_is_drawn_and_written),
        cmocka_unit_test(zero_rows_fill_up),
        cmocka_unit_test(ranks_agree),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return bk_test_op_tests(&op, "ref_ot_golden.json", tests, sizeof tests / sizeof *tests);
}
