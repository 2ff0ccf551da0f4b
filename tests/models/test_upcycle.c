/* test: labels=unit timeout=60 */
/* A mixture of experts made of a dense model: which slice goes where, and the same output. */
#include "tests/support/model.h"

#include "core/blas.h"
#include "models/upcycle.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BATCH = 4, N = 8, C = 12, FFN = 16, EXPERTS = 8 };

static const bk_lanes two_lanes = {.total = 2, .count = 2, .batch = BATCH};

static bk_test_model *open_model(const char *section)
{
    const bk_model_data data = bk_test_classes(N);
    return bk_test_model_open(section, &data, bk_test_alone(), two_lanes);
}

static bk_test_model *open_mixture(const char *activation, int granularity, const char *rest)
{
    char section[512];
    snprintf(section, sizeof section,
             "{layers: 3, width: 12, heads: 2, ffn: 16, activation: %s, moe: {every: 2, experts: "
             "8, k: 4, activation: %s, upcycle: {from: dense, granularity: %d}%s}}",
             activation, activation, granularity, rest);
    return open_model(section);
}

static const float *value(const bk_test_model *m, const char *name, int expert)
{
    return bk_parameter_value(m->slab, bk_test_parameter(m, name, expert));
}

/* What a job does with the checkpoint of the dense model. */
static void upcycle(const bk_test_model *dense, bk_test_model *mixture)
{
    for (int i = 0; i < mixture->slab->parameters; i++) {
        const bk_parameter *p = mixture->slab->parameter[i];
        if (!bk_parameter_is_of_experts(p))
            memcpy(bk_parameter_value(mixture->slab, p), value(dense, p->name, -1),
                   (size_t)p->count * sizeof(float));
    }
    for (int i = 0; i < bk_model_moe_layers(mixture->model); i++) {
        bk_dense_tensor tensor[BK_DENSE_TENSORS];
        const float *data[BK_DENSE_TENSORS];
        bk_model_dense_tensors(mixture->model, i, tensor);
        for (int k = 0; k < BK_DENSE_TENSORS; k++) {
            const bk_parameter *p = bk_test_parameter(dense, tensor[k].name, -1);
            assert_int_equal(p->dims, tensor[k].dims);
            for (int d = 0; d < p->dims; d++)
                assert_int_equal(p->shape[d], tensor[k].shape[d]);
            data[k] = bk_parameter_value(dense->slab, p);
        }
        bk_model_upcycle(mixture->model, i, data);
    }
}

/* Expert r G + s: rows s of W1 and b1, columns s of W2 times G, all of b2; equal rows of the gate.
 */
static void check_slices(const bk_test_model *dense, const bk_test_model *m, int pieces)
{
    int hidden = FFN / pieces;
    const float *w1 = value(dense, "model/block1/ffn/w1", -1),
                *b1 = value(dense, "model/block1/ffn/b1", -1),
                *w2 = value(dense, "model/block1/ffn/w2", -1),
                *b2 = value(dense, "model/block1/ffn/b2", -1),
                *gate = value(m, "model/block1/moe/gate", -1);
    for (int e = 0; e < EXPERTS; e++) {
        int s = e % pieces;
        for (int f = 0; f < hidden; f++) {
            assert_true(value(m, "model/block1/moe/b1", e)[f] == b1[s * hidden + f]);
            for (int c = 0; c < C; c++) {
                assert_true(value(m, "model/block1/moe/w1", e)[f * C + c] ==
                            w1[(s * hidden + f) * C + c]);
                assert_true(value(m, "model/block1/moe/w2", e)[c * hidden + f] ==
                            (float)pieces * w2[c * FFN + s * hidden + f]);
            }
        }
        assert_memory_equal(value(m, "model/block1/moe/b2", e), b2, C * sizeof *b2);
        assert_memory_equal(gate + e * C, gate + e / pieces * pieces * C, C * sizeof *gate);
    }
    for (int r = 1; r < EXPERTS / pieces; r++)
        assert_memory_not_equal(gate, gate + r * pieces * C, C * sizeof *gate);
}

static void check_model(const char *activation, int pieces, const char *rest)
{
    char section[160];
    snprintf(section, sizeof section, "{layers: 3, width: 12, heads: 2, ffn: 16, activation: %s}",
             activation);
    bk_test_model *dense = open_model(section), *mixture = open_mixture(activation, pieces, rest);
    upcycle(dense, mixture);
    check_slices(dense, mixture, pieces);
    bk_test_model_batch(dense, N, NULL, 0);
    bk_test_model_batch(mixture, N, NULL, 0);
    const bk_tensor *a = bk_test_model_forward(dense), *b = bk_test_model_forward(mixture);
    double most = 0.0, worst = 0.0;
    for (int64_t i = 0; i < bk_count(a); i++) {
        most = fmax(most, fabs(bk_test_value(a, i)));
        worst = fmax(worst, fabs(bk_test_value(a, i) - bk_test_value(b, i)));
    }
    bk_check_error(worst / most, 1e-5, "%s in %d pieces%s", activation, pieces, rest);
    bk_test_model_close(dense);
    bk_test_model_close(mixture);
}

static void a_mixture_begins_as_the_dense_model(void **state)
{
    const char *const activation[] = {"gelu", "relu", "silu", "gelu_tanh"};
    (void)state;
    for (int i = 0; i < 4; i++)
        for (int pieces = 1; pieces <= 4; pieces *= 2)
            check_model(activation[i], pieces, "");
    check_model("gelu", 2, ", shared: 6, shared_gate: true");
    check_model("gelu", 4, ", router: {score: sigmoid}");
    check_model("gelu", 2, ", router: {kind: ssr, probability: 1}");
    check_model("gelu", 2, ", router: {kind: bias}");
    check_model("gelu", 2, ", router: {kind: uniform}");
}

static void what_is_of_experts(void **state)
{
    (void)state;
    assert_true(bk_parameter_is_of_experts(&(bk_parameter){.name = "model/block1/moe/w1"}));
    assert_true(bk_parameter_is_of_experts(&(bk_parameter){.name = "model/block11/moe/gate"}));
    assert_false(bk_parameter_is_of_experts(&(bk_parameter){.name = "model/block1/ffn/w1"}));
    assert_false(bk_parameter_is_of_experts(&(bk_parameter){.name = "model/head/w"}));
    assert_false(bk_parameter_is_of_experts(&(bk_parameter){.name = "model/embed/tokens"}));
}

static void nothing_to_begin_as(void **state)
{
    (void)state;
    bk_test_model *dense = open_model("{layers: 1, width: 12, heads: 2}"),
                  *fresh = open_model("{layers: 1, width: 12, heads: 2, moe: {every: 1}}"),
                  *mixture = open_mixture("gelu", 2, "");
    assert_null(bk_model_upcycle_from(dense->model));
    assert_null(bk_model_upcycle_from(fresh->model));
    assert_string_equal(bk_model_upcycle_from(mixture->model), "dense");
    bk_test_model_close(dense);
    bk_test_model_close(fresh);
    bk_test_model_close(mixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_mixture_begins_as_the_dense_model),
        cmocka_unit_test(what_is_of_experts),
        cmocka_unit_test(nothing_to_begin_as),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
