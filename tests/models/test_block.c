/* test: labels=unit timeout=60 */
/* One block: x + attention(norm x), then + feed-forward(norm x), each layer with its own attention.
 */
#include "tests/support/model.h"

#include "core/blas.h"

#include <stdlib.h>
#include <string.h>

enum { BATCH = 4, N = 16, C = 12 };

static const bk_lanes two_lanes = {.total = 2, .count = 2, .batch = BATCH};

static bk_test_model *open_model(const char *section)
{
    const bk_model_data data = bk_test_classes(N);
    bk_test_model *m = bk_test_model_open(section, &data, bk_test_alone(), two_lanes);
    bk_test_model_batch(m, N, NULL, 0);
    return m;
}

static bk_tensor *input(bk_test_model *m)
{
    return bk_test_fill(&m->tape, BK_SHAPE(BATCH, N, C), 12, -1.0, 1.0);
}

static bk_tensor *use(bk_test_model *m, const char *name)
{
    return bk_tape_parameter(&m->tape, bk_test_parameter(m, name, -1));
}

static bk_tensor *heads_of(bk_test_model *m, bk_tensor *x, const char *w, int64_t heads)
{
    return bk_split_heads(&m->tape, bk_linear(&m->tape, x, use(m, w), NULL), heads);
}

/* The same block from ops alone. */
static bk_tensor *composed(bk_test_model *m, bk_tensor *x)
{
    bk_tape *t = &m->tape;
    bk_tensor *n = bk_layernorm(t, x, use(m, "model/block0/norm1/gain"),
                                use(m, "model/block0/norm1/bias"), 1e-5);
    bk_attention_args a = {.q = heads_of(m, n, "model/block0/attention/wq", 3),
                           .k = heads_of(m, n, "model/block0/attention/wk", 3),
                           .v = heads_of(m, n, "model/block0/attention/wv", 3),
                           .config = m->model->attention[0].config};
    bk_tensor *merged = bk_merge_heads(t, m->model->attention[0].kind->apply(t, &a));
    x = bk_add(t, x, bk_linear(t, merged, use(m, "model/block0/attention/wo"), NULL));
    n = bk_layernorm(t, x, use(m, "model/block0/norm2/gain"), use(m, "model/block0/norm2/bias"),
                     1e-5);
    bk_tensor *h = bk_activate(
        t, bk_linear(t, n, use(m, "model/block0/ffn/w1"), use(m, "model/block0/ffn/b1")), BK_GELU);
    return bk_add(t, x,
                  bk_linear(t, h, use(m, "model/block0/ffn/w2"), use(m, "model/block0/ffn/b2")));
}

static void a_block_is_its_composition(void **state)
{
    const char *section = "{layers: 1, width: 12, heads: 3}";
    (void)state;
    bk_test_model *a = open_model(section), *b = open_model(section);
    const bk_tensor *y = bk_block_forward(a->model, &a->tape, 0, input(a), NULL, BATCH * N),
                    *z = composed(b, input(b));
    assert_memory_equal(y->data, z->data, (size_t)bk_count(y) * sizeof(float));
    assert_string_equal(a->tape.segment_name[a->tape.segments - 1], "block0");
    bk_test_model_close(a);
    bk_test_model_close(b);
}

/* The output of block 1 of a model whose layers have attentions of their own. */
static void run_block(const char *attention, int layer, float *out)
{
    char *section = NULL;
    bk_arena *arena = bk_arena_new("text");
    section = bk_arena_printf(arena, "{layers: 2, width: 12, heads: 3, attention: %s}", attention);
    bk_test_model *m = open_model(section);
    const bk_tensor *y = bk_block_forward(m->model, &m->tape, layer, input(m), NULL, BATCH * N);
    memcpy(out, y->data, (size_t)bk_count(y) * sizeof(float));
    bk_test_model_close(m);
    bk_arena_free(arena);
}

static void every_layer_has_its_own_attention(void **state)
{
    static float list[2][BATCH * N * C], plain[2][BATCH * N * C], scaled[2][BATCH * N * C];
    (void)state;
    for (int layer = 0; layer < 2; layer++) {
        run_block("[{kind: softmax}, {kind: softmax, scale: 3}]", layer, list[layer]);
        run_block("{kind: softmax}", layer, plain[layer]);
        run_block("{kind: softmax, scale: 3}", layer, scaled[layer]);
    }
    assert_memory_equal(list[0], plain[0], sizeof list[0]);
    assert_memory_equal(list[1], scaled[1], sizeof list[1]);
    assert_memory_not_equal(list[1], plain[1], sizeof list[1]);
}

/* bias: auto is for decoders; given it is followed, by layer. */
static void biases_are_where_asked_for(void **state)
{
    const bk_model_data classes = bk_test_classes(N), language = bk_test_language(N);
    const struct {
        const char *section;
        bool decoder, bias[2];
    } list[] = {
        {"{layers: 2, width: 12, heads: 3}", false, {false, false}},
        {"{layers: 2, width: 12, heads: 3, attention: {bias: true}}", false, {true, true}},
        {"{layers: 2, width: 12, heads: 3, attention: [{bias: true}, {}]}", false, {true, false}},
        {"{kind: decoder, layers: 2, width: 12, heads: 3}", true, {true, true}},
        {"{kind: decoder, layers: 2, width: 12, heads: 3, attention: [{}, {bias: false}]}",
         true,
         {true, false}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        bk_test_model *m = bk_test_model_open(
            list[i].section, list[i].decoder ? &language : &classes, bk_test_alone(), two_lanes);
        for (int layer = 0; layer < 2; layer++) {
            const bk_attention_part *part = &m->model->block[layer].attention;
            const bk_linear_part *all[] = {&part->q, &part->k, &part->v, &part->o};
            for (int j = 0; j < 4; j++)
                assert_int_equal(all[j]->b != NULL, list[i].bias[layer]);
        }
        bk_test_model_close(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_block_is_its_composition),
        cmocka_unit_test(every_layer_has_its_own_attention),
        cmocka_unit_test(biases_are_where_asked_for),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
