/* Products against plain double loops, over shapes that cross tiles; lanes of a linear layer. */
#include "core/blas.h"
#include "core/ops.h"
#include "core/rng.h"
#include "core/vector.h"
#include "tests/support/check.h"
#include "tests/support/child.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- linear ---- */

/* sum_k a(i,k) b(k,j): element (i,j) of a product, with the sum of the sizes of its terms. */
typedef struct entry {
    double value, size;
} entry;

static void add(entry *e, double a, double b)
{
    e->value += a * b;
    e->size += fabs(a * b);
}

static void check(const char *what, bk_dtype dtype, double value, entry e)
{
    double unit = dtype == BK_F64 ? 1e-15 : 1e-6;
    bk_check_error(fabs(value - e.value), unit * fmax(1.0, e.size), "%s", what);
}

typedef struct layer {
    bk_tape tape;
    bk_tensor *x, *w, *b, *y;
    int64_t rows, in, out;
} layer;

static bool bf16;

static void run_layer(layer *l, bk_dtype dtype, int64_t lanes, bool bias)
{
    l->tape = bk_test_tape(dtype, (bk_lanes){.total = lanes, .count = lanes, .batch = lanes});
    l->tape.bf16 = bf16;
    l->x = bk_test_fill(&l->tape, BK_SHAPE(l->rows, l->in), 1, -1, 1);
    l->w = bk_test_fill(&l->tape, BK_SHAPE(l->out, l->in), 2, -1, 1);
    l->b = bias ? bk_test_fill(&l->tape, BK_SHAPE(l->out), 3, -1, 1) : NULL;
    l->y = bk_linear(&l->tape, l->x, l->w, l->b);
    bk_test_seed_fill(&l->tape, l->y, 4, -1, 1);
    bk_tape_backward_seeded(&l->tape);
}

static void check_forward(const layer *l)
{
    for (int64_t i = 0; i < l->rows; i++)
        for (int64_t j = 0; j < l->out; j++) {
            entry e = {0};
            for (int64_t k = 0; k < l->in; k++)
                add(&e, bk_test_value(l->x, i * l->in + k), bk_test_value(l->w, j * l->in + k));
            if (l->b)
                add(&e, bk_test_value(l->b, j), 1.0);
            check("y", l->x->dtype, bk_test_value(l->y, i * l->out + j), e);
        }
}

static void check_backward(const layer *l)
{
    for (int64_t k = 0; k < l->in; k++) {
        for (int64_t i = 0; i < l->rows; i++) {
            entry e = {0};
            for (int64_t j = 0; j < l->out; j++)
                add(&e, bk_test_grad(l->y, i * l->out + j), bk_test_value(l->w, j * l->in + k));
            check("dx", l->x->dtype, bk_test_grad(l->x, i * l->in + k), e);
        }
        for (int64_t j = 0; j < l->out; j++) {
            entry e = {0};
            for (int64_t i = 0; i < l->rows; i++)
                add(&e, bk_test_grad(l->y, i * l->out + j), bk_test_value(l->x, i * l->in + k));
            check("dw", l->x->dtype, bk_test_grad(l->w, j * l->in + k), e);
        }
    }
    for (int64_t j = 0; l->b && j < l->out; j++) {
        entry e = {0};
        for (int64_t i = 0; i < l->rows; i++)
            add(&e, bk_test_grad(l->y, i * l->out + j), 1.0);
        check("db", l->x->dtype, bk_test_grad(l->b, j), e);
    }
}

static void linear_is_the_plain_loop(void **state)
{
    const int64_t size[][3] = {{4, 1, 1}, {4, 7, 3}, {12, 17, 33}, {280, 12, 5}, {8, 3, 800}};
    (void)state;
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 4; k++) {
            layer l = {.rows = size[i][0], .in = size[i][1], .out = size[i][2]};
            run_layer(&l, k % 2 ? BK_F64 : BK_F32, k < 2 ? 1 : 4, k != 3);
            check_forward(&l);
            check_backward(&l);
            bk_test_tape_free(&l.tape);
        }
}

/* dw over all lanes is the tree over the products of single lanes, to the bit. */
static void a_weight_gradient_is_the_tree_over_lanes(void **state)
{
    enum { LANES = 8, ROWS = 5, IN = 9, OUT = 6 };
    static float part[LANES][OUT * IN];
    layer all = {.rows = LANES * ROWS, .in = IN, .out = OUT};
    (void)state;
    run_layer(&all, BK_F32, LANES, true);
    for (int l = 0; l < LANES; l++) {
        bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(1));
        bk_tensor *x = bk_test_fill(&t, BK_SHAPE(ROWS, IN), 1, -1, 1),
                  *w = bk_test_fill(&t, BK_SHAPE(OUT, IN), 2, -1, 1);
        memcpy(x->data, bk_f32(all.x) + l * ROWS * IN, ROWS * IN * sizeof(float));
        bk_tensor *y = bk_linear(&t, x, w, NULL);
        memcpy(bk_grad(&t, y), (float *)all.y->grad + l * ROWS * OUT, ROWS * OUT * sizeof(float));
        bk_tape_backward_seeded(&t);
        memcpy(part[l], w->grad, sizeof part[l]);
        assert_memory_equal(x->grad, (float *)all.x->grad + l * ROWS * IN,
                            ROWS * IN * sizeof(float));
        bk_test_tape_free(&t);
    }
    for (int half = 1; half < LANES; half *= 2)
        for (int l = 0; l < LANES; l += 2 * half)
            for (int j = 0; j < OUT * IN; j++)
                part[l][j] += part[l + half][j];
    assert_memory_equal(all.w->grad, part[0], sizeof part[0]);
    bk_test_tape_free(&all.tape);
}

/* With operands in bf16 the results are those of the rounded arrays; the bias is not an operand. */
static void operands_are_rounded(void **state)
{
    const bk_gemm_library library[] = {BK_GEMM_CBLAS, BK_GEMM_AUTO};
    (void)state;
    bf16 = true;
    for (int i = 0; i < 2; i++) {
        layer l = {.rows = 24, .in = 40, .out = 33};
        assert_int_equal(bk_blas_setup(2, library[i]), BK_OK);
        run_layer(&l, BK_F32, 4, false);
        bk_tensor *const operand[] = {l.x, l.w};
        for (int j = 0; j < 2; j++)
            bk_vector(BK_F32)->round_bf16(bk_count(operand[j]), operand[j]->data, operand[j]->data);
        bk_vector(BK_F32)->round_bf16(bk_count(l.y), l.y->grad, l.y->grad);
        check_forward(&l);
        check_backward(&l);
        bk_test_tape_free(&l.tape);
    }
    bf16 = false;
}

static void double_precision_is_never_rounded(void **state)
{
    layer l = {.rows = 4, .in = 5, .out = 3};
    (void)state;
    bf16 = true;
    run_layer(&l, BK_F64, 1, true);
    check_forward(&l);
    check_backward(&l);
    bk_test_tape_free(&l.tape);
    bf16 = false;
}

/* The second reader of a weight adds to what the first one left. */
static void a_weight_read_twice_sums(void **state)
{
    bk_tape t = bk_test_tape(BK_F64, (bk_lanes){.total = 2, .count = 2, .batch = 2});
    bk_tensor *x = bk_test_fill(&t, BK_SHAPE(2, 3), 1, -1, 1),
              *w = bk_test_fill(&t, BK_SHAPE(3, 3), 2, -1, 1);
    (void)state;
    bk_tensor *y = bk_linear(&t, x, w, NULL), *z = bk_linear(&t, y, w, NULL);
    y->kept = true;
    bk_test_seed_fill(&t, z, 4, -1, 1);
    bk_tape_backward_seeded(&t);
    for (int64_t j = 0; j < 3; j++)
        for (int64_t k = 0; k < 3; k++) {
            entry e = {0};
            for (int64_t i = 0; i < 2; i++) {
                add(&e, bk_test_grad(z, i * 3 + j), bk_test_value(y, i * 3 + k));
                add(&e, bk_test_grad(y, i * 3 + j), bk_test_value(x, i * 3 + k));
            }
            check("dw of two uses", BK_F64, bk_test_grad(w, j * 3 + k), e);
        }
    bk_test_tape_free(&t);
}

/* ---- matmul ---- */

static void check_matmul(bk_dtype dtype, bool transposed, const int64_t s[4])
{
    int64_t L = s[0], M = s[1], K = s[2], N = s[3];
    bk_tape t = bk_test_tape(dtype, bk_lanes_single(L));
    bk_tensor *a = bk_test_fill(&t, BK_SHAPE(1, L, M, K), 1, -1, 1);
    bk_tensor *b = transposed ? bk_test_fill(&t, BK_SHAPE(1, L, N, K), 2, -1, 1)
                              : bk_test_fill(&t, BK_SHAPE(1, L, K, N), 2, -1, 1);
    bk_tensor *c = transposed ? bk_matmul_nt(&t, a, b) : bk_matmul(&t, a, b);
    assert_true(c->dims == 4 && c->shape[1] == L && c->shape[2] == M && c->shape[3] == N);
    bk_test_seed_fill(&t, c, 4, -1, 1);
    bk_tape_backward_seeded(&t);
    for (int64_t l = 0; l < L; l++)
        for (int64_t i = 0; i < M; i++)
            for (int64_t j = 0; j < N; j++) {
                entry e = {0};
                for (int64_t k = 0; k < K; k++)
                    add(&e, bk_test_value(a, (l * M + i) * K + k),
                        bk_test_value(b, transposed ? (l * N + j) * K + k : (l * K + k) * N + j));
                check("c", dtype, bk_test_value(c, (l * M + i) * N + j), e);
            }
    for (int64_t l = 0; l < L; l++)
        for (int64_t k = 0; k < K; k++) {
            for (int64_t i = 0; i < M; i++) {
                entry e = {0};
                for (int64_t j = 0; j < N; j++)
                    add(&e, bk_test_grad(c, (l * M + i) * N + j),
                        bk_test_value(b, transposed ? (l * N + j) * K + k : (l * K + k) * N + j));
                check("da", dtype, bk_test_grad(a, (l * M + i) * K + k), e);
            }
            for (int64_t j = 0; j < N; j++) {
                entry e = {0};
                for (int64_t i = 0; i < M; i++)
                    add(&e, bk_test_grad(c, (l * M + i) * N + j),
                        bk_test_value(a, (l * M + i) * K + k));
                check("db", dtype,
                      bk_test_grad(b, transposed ? (l * N + j) * K + k : (l * K + k) * N + j), e);
            }
        }
    bk_test_tape_free(&t);
}

static void matmul_is_the_plain_loop(void **state)
{
    const int64_t size[][4] = {{1, 1, 1, 1}, {3, 5, 7, 2}, {2, 270, 3, 5}, {2, 3, 4, 780}};
    (void)state;
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++)
            check_matmul(k % 2 ? BK_F64 : BK_F32, k / 2, size[i]);
}

/* No rows, no columns, nothing to sum over. */
static void empty_products(void **state)
{
    const int64_t size[][4] = {{0, 2, 3, 4}, {2, 0, 3, 4}, {2, 3, 0, 4}, {2, 3, 4, 0}};
    (void)state;
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++)
            check_matmul(k % 2 ? BK_F64 : BK_F32, k / 2, size[i]);
}

/* ---- mistakes ---- */

static void wrong_columns(void *unused)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(1));
    (void)unused;
    bk_linear(&t, bk_test_fill(&t, BK_SHAPE(1, 3), 1, 0, 1),
              bk_test_fill(&t, BK_SHAPE(2, 4), 1, 0, 1), NULL);
}

static void wrong_bias(void *unused)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(1));
    (void)unused;
    bk_linear(&t, bk_test_fill(&t, BK_SHAPE(1, 4), 1, 0, 1),
              bk_test_fill(&t, BK_SHAPE(2, 4), 1, 0, 1), bk_test_fill(&t, BK_SHAPE(3), 1, 0, 1));
}

static void wrong_inner_axes(void *unused)
{
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(1));
    (void)unused;
    bk_matmul(&t, bk_test_fill(&t, BK_SHAPE(2, 3), 1, 0, 1),
              bk_test_fill(&t, BK_SHAPE(2, 3), 1, 0, 1));
}

static void wrong_shapes_are_faults(void **state)
{
    (void)state;
    bk_test_dies(wrong_columns, NULL, "x has 3 columns, w 4");
    bk_test_dies(wrong_bias, NULL, "bias of 3 for 2 outputs");
    bk_test_dies(wrong_inner_axes, NULL, "inner axes differ");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_is_the_plain_loop),
        cmocka_unit_test(a_weight_gradient_is_the_tree_over_lanes),
        cmocka_unit_test(operands_are_rounded),
        cmocka_unit_test(double_precision_is_never_rounded),
        cmocka_unit_test(a_weight_read_twice_sums),
        cmocka_unit_test(matmul_is_the_plain_loop),
        cmocka_unit_test(empty_products),
        cmocka_unit_test(wrong_shapes_are_faults),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
