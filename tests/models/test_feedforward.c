/* test: labels=unit timeout=60 */
/* The second half of a block: which blocks have experts, and what a layer of experts reads, adds to
 * the loss and keeps. */
#include "tests/support/model.h"

#include "core/blas.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BATCH = 4, N = 16, C = 12 };

static const bk_lanes two_lanes = {.total = 2, .count = 2, .batch = BATCH};

static bk_test_model *open_model(const char *section)
{
    const bk_model_data data = bk_test_classes(N);
    return bk_test_model_open(section, &data, bk_test_alone(), two_lanes);
}

/* A step of its own; the result lives until the next one. */
static bk_tensor *run(bk_test_model *m, int layer, const int32_t *real)
{
    bk_test_model_batch(m, N, NULL, 0);
    bk_tensor *mask = real ? bk_tape_constant(&m->tape, BK_I32, BK_SHAPE(BATCH, N)) : NULL;
    if (mask)
        memcpy(mask->data, real, BATCH * N * sizeof *real);
    bk_tensor *x = bk_test_fill(&m->tape, BK_SHAPE(BATCH, N, C), 12, -1.0, 1.0);
    return bk_feedforward(m->model, &m->tape, layer, x, mask, BATCH * N);
}

static void experts_stand_every_so_often(void **state)
{
    char section[128];
    (void)state;
    for (int every = 1; every <= 5; every++) {
        snprintf(section, sizeof section, "{layers: 5, width: 12, heads: 2, moe: {every: %d}}",
                 every);
        bk_test_model *m = open_model(section);
        for (int layer = 0; layer < 5; layer++)
            assert_int_equal(m->model->block[layer].moe != NULL, (layer + 1) % every == 0);
        assert_int_equal(bk_model_moe_layers(m->model), 5 / every);
        bk_test_model_close(m);
    }
}

/* One expert with k = 1 and weight 1 (softmax over one) is the dense feed-forward. */
static void one_expert_is_dense(void **state)
{
    const char *names[][2] = {
        {"ffn/w1", "moe/w1"}, {"ffn/b1", "moe/b1"}, {"ffn/w2", "moe/w2"}, {"ffn/b2", "moe/b2"}};
    char name[64];
    (void)state;
    bk_test_model *dense = open_model("{layers: 1, width: 12, heads: 2}"),
                  *mixed = open_model("{layers: 1, width: 12, heads: 2, moe: {every: 1, experts: "
                                      "1, k: 1}}");
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "model/block0/%s", names[i][0]);
        const bk_parameter *from = bk_test_parameter(dense, name, -1);
        snprintf(name, sizeof name, "model/block0/%s", names[i][1]);
        const bk_parameter *to = bk_test_parameter(mixed, name, 0);
        memcpy(mixed->slab->value + to->offset, dense->slab->value + from->offset,
               (size_t)from->count * sizeof(float));
    }
    const bk_tensor *a = run(dense, 0, NULL), *b = run(mixed, 0, NULL);
    assert_true(bk_same_shape(a, b));
    for (int64_t i = 0; i < bk_count(a); i++)
        bk_check_error(fabs(bk_test_value(a, i) - bk_test_value(b, i)), 1e-6, "one expert");
    bk_test_model_close(dense);
    bk_test_model_close(mixed);
}

/* A gated shared expert adds sigmoid(<gate, x>) FFN(x) to what the others give. */
static void a_shared_expert_is_added(void **state)
{
    const char *names[] = {"w1", "b1", "w2", "b2"};
    char name[64];
    (void)state;
    bk_test_model *plain = open_model("{layers: 1, width: 12, heads: 2, moe: {every: 1}}"),
                  *dense = open_model("{layers: 1, width: 12, heads: 2, ffn: 20}"),
                  *both = open_model("{layers: 1, width: 12, heads: 2, moe: {every: 1, shared: 20, "
                                     "shared_gate: true}}");
    for (int i = 0; i < both->slab->parameters; i++) {
        const bk_parameter *to = both->slab->parameter[i];
        if (!strstr(to->name, "/moe/") || strstr(to->name, "shared"))
            continue;
        const bk_parameter *from = bk_test_parameter(plain, to->name, to->expert);
        memcpy(both->slab->value + to->offset, plain->slab->value + from->offset,
               (size_t)to->count * sizeof(float));
    }
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "model/block0/ffn/%s", names[i]);
        const bk_parameter *from = bk_test_parameter(dense, name, -1);
        snprintf(name, sizeof name, "model/block0/moe/shared_%s", names[i]);
        const bk_parameter *to = bk_test_parameter(both, name, -1);
        memcpy(both->slab->value + to->offset, dense->slab->value + from->offset,
               (size_t)to->count * sizeof(float));
    }
    const float *gate =
        both->slab->value + bk_test_parameter(both, "model/block0/moe/shared_gate", -1)->offset;
    const bk_tensor *a = run(plain, 0, NULL), *b = run(dense, 0, NULL), *c = run(both, 0, NULL);
    const bk_tensor *x = bk_test_fill(&both->tape, BK_SHAPE(BATCH, N, C), 12, -1.0, 1.0);
    for (int64_t i = 0; i < bk_count(c); i++) {
        double score = 0.0;
        for (int64_t j = 0; j < C; j++)
            score += (double)gate[j] * bk_test_value(x, i / C * C + j);
        double y = bk_test_value(a, i) + bk_test_value(b, i) / (1.0 + exp(-score));
        bk_check_error(fabs(bk_test_value(c, i) - y), 1e-6, "shared expert");
    }
    bk_test_model_close(plain);
    bk_test_model_close(dense);
    bk_test_model_close(both);
}

static void losses_become_terms(void **state)
{
    const struct {
        const char *moe;
        int terms;
        double aux, z;
    } list[] = {
        {"{every: 1}", 0, 0, 0},
        {"{every: 1, aux: switch}", 1, 0.01, 0},
        {"{every: 1, aux: none, aux_weight: 3, z_weight: 0.5}", 1, 0, 0.5},
        {"{every: 1, aux: switch, aux_weight: 0.25, z_weight: 0.001}", 2, 0.25, 0.001},
    };
    char section[160];
    (void)state;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        snprintf(section, sizeof section, "{layers: 1, width: 12, heads: 2, moe: %s}", list[i].moe);
        bk_test_model *m = open_model(section);
        run(m, 0, NULL);
        assert_int_equal(m->tape.terms, list[i].terms);
        for (int j = 0; j < m->tape.terms; j++) {
            const bk_term *term = &m->tape.term[j];
            bool aux = strcmp(term->name, "moe_aux") == 0;
            assert_true(aux || strcmp(term->name, "moe_z") == 0);
            assert_true(term->weight == (aux ? list[i].aux : list[i].z));
            assert_int_equal(term->layer, 0);
            assert_int_equal(bk_count(term->value), 2);
        }
        bk_test_model_close(m);
    }
}

/* Only training steps that were applied count transport steps and move the potentials. */
static void state_moves_while_training(void **state)
{
    const char *section = "{layers: 1, width: 12, heads: 2, moe: {every: 1, experts: 4, router: "
                          "{kind: ssr, probability: 1}}}";
    (void)state;
    bk_test_model *m = open_model(section);
    const bk_moe_part *part = m->model->block[0].moe;
    const double *bias = part->router_bias->data;
    const int64_t *steps = part->router_ot_steps->data;
    m->tape.training = false;
    run(m, 0, NULL);
    assert_true(*steps == 0 && bias[0] == 0.0);
    m->tape.training = true;
    run(m, 0, NULL);
    assert_true(*steps == 0 && bias[0] == 0.0); /* not yet, or not at all */
    for (int i = 0; i < 2; i++) {
        run(m, 0, NULL);
        bk_model_step_routers(m->model);
    }
    assert_true(*steps == 2 && bias[0] != 0.0);
    m->tape.training = false;
    double kept = bias[0];
    run(m, 0, NULL);
    bk_model_step_routers(m->model);
    assert_true(*steps == 2 && bias[0] == kept);
    bk_moe_figures f;
    bk_model_moe_figures(m->model, &f);
    assert_int_equal(f.ot_steps, 2);
    assert_int_equal(f.layer, 0);
    bk_test_model_close(m);
}

/* Counts of the last training step, without padding, move the bias of their layer. */
static void counts_move_the_bias(void **state)
{
    (void)state;
    bk_test_model *m = open_model("{layers: 2, width: 12, heads: 2, moe: {every: 1, experts: 4, "
                                  "router: {kind: bias, rate: 0.5}}}");
    const bk_moe_part *part = m->model->block[0].moe, *other = m->model->block[1].moe;
    const double *bias = part->router_bias->data;
    int32_t mask[BATCH * N];
    for (int i = 0; i < BATCH * N; i++)
        mask[i] = i % 3 != 1;
    assert_null(part->router_ot_steps);
    m->tape.training = true;
    run(m, 0, mask);
    int64_t tokens = 0;
    for (int e = 0; e < 4; e++)
        tokens += part->state.load[e];
    assert_int_equal(tokens, 2 * 43); /* real ones */
    assert_true(bias[0] == 0.0 && bias[1] == 0.0);
    bk_model_step_routers(m->model);
    for (int e = 0; e < 4; e++) {
        int64_t below = tokens - 4 * part->state.load[e];
        assert_true(bias[e] == 0.5 * (double)((below > 0) - (below < 0)));
        assert_true(((const double *)other->router_bias->data)[e] == 0.0); /* all are even at 0 */
    }
    bk_test_model_close(m);
}

/* Padding is not dispatched: its rows are 0, and the others do not see it. */
static void padding_is_not_dispatched(void **state)
{
    (void)state;
    bk_test_model *m = open_model("{layers: 1, width: 12, heads: 2, moe: {every: 1, experts: 3}}");
    int32_t mask[BATCH * N];
    float all[BATCH * N * C];
    for (int i = 0; i < BATCH * N; i++)
        mask[i] = i % 3 != 1;
    memcpy(all, run(m, 0, NULL)->data, sizeof all);
    const bk_tensor *some = run(m, 0, mask);
    for (int64_t i = 0; i < BATCH * N * C; i++) {
        double expected = mask[i / C] ? (double)all[i] : 0.0;
        bk_check_error(fabs(bk_test_value(some, i) - expected), 1e-6, "padding");
    }
    bk_test_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(experts_stand_every_so_often), cmocka_unit_test(one_expert_is_dense),
        cmocka_unit_test(a_shared_expert_is_added),     cmocka_unit_test(losses_become_terms),
        cmocka_unit_test(state_moves_while_training),   cmocka_unit_test(padding_is_not_dispatched),
        cmocka_unit_test(counts_move_the_bias),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
