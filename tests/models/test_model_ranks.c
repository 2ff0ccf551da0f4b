/* test: labels=unit,mpi ranks=1,2,3,4 timeout=120 */
/* Every kind of model, dense and with every router, over ranks and expert-parallel degrees: logits,
 * reduced gradients and their norm are those of one rank. */
#include "tests/support/model.h"
#include "tests/support/ranks.h"

#include "dist/bucket.h"
#include "dist/collective.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 4, BATCH = 8, LENGTH = 16 };

static int ranks;
static bool bf16;  /* operands of linear maps */
static bool whole; /* samples of one length */

static int64_t ragged(int64_t sample)
{
    return whole                        ? LENGTH
           : sample == 2 || sample == 3 ? 0
                                        : 1 + sample * 5 % 14; /* lane 1 has no token */
}

/* Power of two: to the bit.  Else to 1e-5 of the largest entry. */
static void compare(const char *what, const char *name, int64_t n, const float *x,
                    const float *expected)
{
    double most = 1e-6, worst = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double error = fabs((double)x[i] - (double)expected[i]);
        most = fmax(most, fabs((double)expected[i]));
        worst = error > worst || isnan(error) ? error : worst;
    }
    if ((ranks & (ranks - 1)) == 0 && n > 0 && memcmp(x, expected, (size_t)n * sizeof *x) != 0)
        fail_msg("%s, %d ranks: bits of %s differ by %g", what, ranks, name, worst / most);
    bk_check_error(worst / most, 1e-5, "%s, %d ranks, %s", what, ranks, name);
}

static bk_test_model *open_part(const char *section, const bk_model_data *data, const bk_world *w,
                                bk_lanes lanes)
{
    bk_test_model *m = bk_test_model_open(section, data, w, lanes);
    bk_test_model_batch(m, LENGTH, ragged, 0);
    m->tape.bf16 = bf16;
    return m;
}

static double norm_of_slab(const bk_slab *slab)
{
    double squares = 0.0;
    for (int i = 0; i < slab->parameters; i++) {
        const bk_parameter *p = slab->parameter[i];
        for (int64_t j = 0; j < p->count; j++) {
            double g = (double)slab->grad[p->grad_offset[0] + j] +
                       (p->uses == 2 ? (double)slab->grad[p->grad_offset[1] + j] : 0.0);
            squares += g * g;
        }
    }
    return sqrt(squares);
}

static double reduced_norm(const bk_reduction *r, const bk_world *w, bk_arena *arena)
{
    int64_t n = bk_reduction_norm_records(r), nonfinite = 0,
            *bytes = BK_NEW(arena, int64_t, w->size);
    double *mine = BK_NEW(arena, double, n), *all = BK_NEW(arena, double, n * w->size);
    bk_reduction_squares(r, mine, &nonfinite);
    assert_int_equal(nonfinite, 0);
    for (int i = 0; i < w->size; i++)
        bytes[i] = n * (int64_t)sizeof *mine;
    bk_allgather_bytes(w->ctl, mine, bytes[0], bytes, all);
    return bk_reduction_norm(r, all);
}

static void compare_gradients(const char *what, const bk_test_model *part, const bk_test_model *one)
{
    for (int i = 0; i < part->slab->parameters; i++) {
        const bk_parameter *p = part->slab->parameter[i],
                           *q = bk_test_parameter(one, p->name, p->expert);
        float *expected = malloc((size_t)p->count * sizeof *expected);
        assert_non_null(expected);
        for (int64_t j = 0; j < p->count; j++)
            expected[j] = one->slab->grad[q->grad_offset[0] + j] +
                          (q->uses == 2 ? one->slab->grad[q->grad_offset[1] + j] : 0.0f);
        compare(what, p->name, p->count, part->slab->grad + p->grad_offset[0], expected);
        free(expected);
    }
}

static void check_degree(const char *section, const bk_model_data *data, const bk_world *w,
                         bk_test_model *one)
{
    bk_lanes lanes = bk_lanes_of_rank(LANES, BATCH, w->rank, w->size);
    bk_test_model *part = open_part(section, data, w, lanes);
    bk_reduction *r = bk_reduction_new(part->arena, w, part->slab, &part->tape.lanes, true);
    bk_reduction_begin(r, &part->tape);
    bk_tensor *logits = bk_test_model_forward(part),
              *expected = bk_bundle_need(&one->bundle, "logits");
    int64_t row = bk_count(expected) / BATCH, first = bk_lanes_first_sample(&lanes);
    compare(section, "logits", bk_count(logits), bk_f32(logits), bk_f32(expected) + first * row);
    bk_test_model_backward(part, logits);
    bk_reduction_finish(r);
    double norm = reduced_norm(r, w, part->arena);
    bk_check_error(fabs(norm / norm_of_slab(one->slab) - 1.0), 1e-6, "%s, EP %d: norm", section,
                   w->expert);
    bk_reduction_allgather(r, part->slab->grad);
    compare_gradients(section, part, one);
    bk_test_model_close(part);
}

/* The model of `section` on these ranks against that of `reference` on one. */
static void check_models(const char *section, const char *reference, const bk_model_data *data)
{
    bk_test_model *one = open_part(reference, data, bk_test_alone(),
                                   (bk_lanes){.total = LANES, .count = LANES, .batch = BATCH});
    bk_tensor *logits = bk_test_model_forward(one);
    logits->kept = true;
    bk_test_model_backward(one, logits);
    for (int ep = 1; ep < BK_TEST_DEGREES; ep++)
        if (bk_test_worlds[ep])
            check_degree(section, data, bk_test_worlds[ep], one);
    bk_test_model_close(one);
}

static void check_model(const char *section, const bk_model_data *data)
{
    check_models(section, section, data);
}

static bk_model_data data_of(const bk_model_kind *kind)
{
    bk_arena *arena = bk_arena_new("run");
    bk_model_data data = bk_test_classes(LENGTH);
    bk_model *model;
    const char *section = bk_arena_printf(arena, "{kind: %s, layers: 1}", kind->name);
    if (bk_test_model_read(arena, section, &data, bk_test_alone(), &model) != BK_OK)
        data = bk_test_language(LENGTH);
    bk_arena_free(arena);
    return data;
}

static void every_kind_of_model(void **state)
{
    static const char *const auxes[] = {"switch", "seq", "global"};
    char section[256];
    (void)state;
    for (int i = 0; bk_models[i]; i++) {
        const char *kind = bk_models[i]->name;
        const bk_model_data data = data_of(bk_models[i]);
        snprintf(section, sizeof section,
                 "{kind: %s, layers: 2, width: 16, heads: 2, dropout: 0.1}", kind);
        check_model(section, &data);
        for (int j = 0; bk_routers[j]; j++) {
            const bk_router_kind *router = bk_routers[j];
            bool experts_choose = router->flags & BK_ROUTER_EXPERTS;
            if (experts_choose && data.classes == 0) /* not in a decoder */
                continue;
            snprintf(section, sizeof section,
                     "{kind: %s, layers: 2, width: 16, heads: 2, moe: {experts: 6, hidden: 8, aux: "
                     "%s, z_weight: 0.01, router: {kind: %s}}}",
                     kind,
                     experts_choose    ? "none"
                     : router->measure ? "cv"
                                       : auxes[j % 3],
                     router->name);
            check_model(section, &data);
        }
    }
}

/* Kinds that take no padding get samples of one length. */
static void check_attention(const char *section)
{
    bk_arena *arena = bk_arena_new("run");
    bk_model_data data = bk_test_classes(LENGTH);
    bk_model *model;
    whole = bk_test_model_read(arena, section, &data, bk_test_alone(), &model) != BK_OK;
    data.min_length = whole ? LENGTH : 0;
    check_model(section, &data);
    whole = false;
    bk_arena_free(arena);
}

static void every_attention(void **state)
{
    char section[256];
    (void)state;
    for (int i = 0; bk_attentions[i]; i++) {
        snprintf(section, sizeof section, "{layers: 1, width: 16, heads: 2, attention: {kind: %s}}",
                 bk_attentions[i]->name);
        check_attention(section);
    }
    check_attention("{layers: 1, width: 16, heads: 2, attention: {kind: qds, angles: trained}}");
    check_attention("{layers: 1, width: 16, heads: 2, pool: cls, attention: {kind: sinkformer}}");
}

static void transport_with_its_gradient(void **state)
{
    const bk_model_data data = bk_test_classes(LENGTH);
    (void)state;
    check_model("{layers: 2, width: 16, heads: 2, pool: cls, moe: {every: 1, experts: 5, hidden: "
                "8, router: {kind: ssr, probability: 1, gradient: implicit, tolerance: 1e-6}}}",
                &data);
}

static void pairs_of_texts(void **state)
{
    const bk_model_data data = bk_test_pairs(LENGTH);
    (void)state;
    check_model("{layers: 1, width: 16, heads: 2, pool: cls, dropout: 0.1}", &data);
    check_model("{layers: 2, width: 16, heads: 2, moe: {experts: 6, hidden: 8}}", &data);
}

/* With recompute: block, the bits of a model that keeps everything. */
static void blocks_made_again(void **state)
{
    const bk_model_data classes = bk_test_classes(LENGTH), language = bk_test_language(LENGTH);
    (void)state;
    check_models("{layers: 3, width: 16, heads: 2, dropout: 0.1, recompute: block}",
                 "{layers: 3, width: 16, heads: 2, dropout: 0.1}", &classes);
    check_models("{kind: decoder, layers: 2, width: 16, heads: 2, recompute: block}",
                 "{kind: decoder, layers: 2, width: 16, heads: 2}", &language);
    check_models("{layers: 2, width: 16, heads: 2, recompute: block, moe: {experts: 6, hidden: 8, "
                 "router: {kind: ssr, probability: 1}}}",
                 "{layers: 2, width: 16, heads: 2, moe: {experts: 6, hidden: 8, router: {kind: "
                 "ssr, probability: 1}}}",
                 &classes);
}

/* Experts in pieces, with and without recomputation: the bits of all at once. */
static void experts_in_chunks(void **state)
{
    const bk_model_data classes = bk_test_classes(LENGTH);
    (void)state;
    check_models(
        "{layers: 2, width: 16, heads: 2, moe: {every: 1, experts: 6, hidden: 8, chunks: 3}}",
        "{layers: 2, width: 16, heads: 2, moe: {every: 1, experts: 6, hidden: 8}}", &classes);
    check_models("{layers: 2, width: 16, heads: 2, recompute: block, moe: {experts: 6, hidden: 8, "
                 "chunks: 2}}",
                 "{layers: 2, width: 16, heads: 2, moe: {experts: 6, hidden: 8}}", &classes);
}

/* What drops choices, goes beside the experts, or shortens rows, on every grid of ranks. */
static void layers_with_everything(void **state)
{
    const bk_model_data classes = bk_test_classes(LENGTH);
    (void)state;
    check_model(
        "{layers: 2, width: 16, heads: 2, moe: {every: 1, experts: 6, hidden: 8, shared: 12, "
        "shared_gate: true, capacity_factor: 0.9, min_capacity: 2, wire: bf16, chunks: 2}}",
        &classes);
}

static void operands_in_bf16(void **state)
{
    const bk_model_data classes = bk_test_classes(LENGTH), language = bk_test_language(LENGTH);
    (void)state;
    bf16 = true;
    check_model("{kind: encoder, layers: 2, width: 16, heads: 2, moe: {experts: 6, hidden: 8}}",
                &classes);
    check_model("{kind: decoder, layers: 2, width: 16, heads: 2}", &language);
    bf16 = false;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_of_model),
        cmocka_unit_test(every_attention),
        cmocka_unit_test(transport_with_its_gradient),
        cmocka_unit_test(blocks_made_again),
        cmocka_unit_test(experts_in_chunks),
        cmocka_unit_test(layers_with_everything),
        cmocka_unit_test(operands_in_bf16),
        cmocka_unit_test(pairs_of_texts),
    };
    bk_test_ranks_start(&argc, &argv);
    ranks = bk_mpi_size();
    bk_test_worlds_open();
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
