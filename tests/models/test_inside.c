/* What a forward pass leaves behind: the states between the blocks, the matrices that act in them.
 */
#include "tests/support/model.h"

#include <string.h>

static int64_t half(int64_t sample)
{
    return 3 + sample % 3;
}

static void only_what_is_asked_for(void **state)
{
    const bk_model_data data = bk_test_classes(8);
    (void)state;
    bk_test_model *m = bk_test_model_open("{kind: encoder, layers: 3, width: 8, heads: 2}", &data,
                                          bk_test_alone(), bk_lanes_single(4));
    bk_test_model_batch(m, 8, half, 0);
    bk_inside inside = {.want_hidden = {[0] = true, [3] = true}, .want_matrix = {[2] = true}};
    m->bundle.inside = &inside;
    bk_tensor *with = bk_test_model_forward(m);
    for (int l = 0; l < BK_BUNDLE_LAYERS; l++) {
        assert_true((inside.hidden[l] != NULL) == (l == 0 || l == 3));
        assert_true((inside.matrix[l] != NULL) == (l == 2));
    }
    assert_int_equal(inside.hidden[3]->shape[2], 8);
    assert_int_equal(inside.matrix[2]->shape[1], 2);
    assert_ptr_equal(inside.mask, bk_bundle_get(&m->bundle, "mask"));
    assert_int_equal(inside.positions, m->bundle.positions);
    assert_null(m->model->inside);
    int64_t count = bk_count(with);
    size_t bytes = (size_t)count * sizeof(float);
    float *kept = memcpy(bk_arena_alloc(m->arena, bytes), with->data, bytes);
    bk_test_model_batch(m, 8, half, 0);
    m->bundle.inside = NULL;
    bk_tensor *without = bk_test_model_forward(m);
    for (int64_t i = 0; i < count; i++) /* matrices are made by another path */
        assert_true(bk_f32(without)[i] - kept[i] < 1e-5f && kept[i] - bk_f32(without)[i] < 1e-5f);
    bk_test_model_close(m);
}

/* Rows of real queries are distributions over the real keys. */
static void matrices_are_those_of_attention(void **state)
{
    const bk_model_data data = bk_test_classes(8);
    (void)state;
    bk_test_model *m =
        bk_test_model_open("{kind: encoder, layers: 1, width: 8, heads: 2, pool: cls}", &data,
                           bk_test_alone(), bk_lanes_single(4));
    bk_test_model_batch(m, 8, half, 0);
    bk_inside inside = {.want_matrix = {[1] = true}};
    m->bundle.inside = &inside;
    bk_test_model_forward(m);
    const bk_tensor *a = inside.matrix[1];
    int64_t n = a->shape[3];
    assert_int_equal(inside.mask->shape[1], n);
    assert_int_equal(inside.positions, m->bundle.positions + 4); /* the class position counts */
    for (int64_t b = 0; b < 4; b++)
        for (int64_t i = 0; i < 2 * n; i++) {
            double sum = 0.0;
            for (int64_t j = 0; j < n; j++) {
                double x = (double)bk_f32(a)[(b * 2 * n + i) * n + j];
                assert_true(x >= 0.0 && (x == 0.0 || bk_i32(inside.mask)[b * n + j]));
                sum += x;
            }
            double want = bk_i32(inside.mask)[b * n + i % n] ? 1.0 : 0.0;
            assert_true(sum - want < 1e-5 && want - sum < 1e-5);
        }
    bk_test_model_close(m);
}

static void shapes(void **state)
{
    const bk_model_data data = bk_test_classes(8);
    (void)state;
    bk_test_model *m =
        bk_test_model_open("{kind: encoder, layers: 2, width: 8, heads: 2, pool: cls, "
                           "recompute: block, attention: [{kind: softmax}, {kind: qr}]}",
                           &data, bk_test_alone(), bk_lanes_single(4));
    bk_model_shape s = bk_model_shape_of(m->model);
    assert_true(s.layers == 2 && s.width == 8 && s.heads == 2 && s.front == 1 && s.recomputes);
    assert_null(bk_model_without_matrix(m->model, 0));
    bk_test_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_what_is_asked_for),
        cmocka_unit_test(matrices_are_those_of_attention),
        cmocka_unit_test(shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
