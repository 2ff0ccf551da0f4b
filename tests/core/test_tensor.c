/* Shapes, counts and types of tensors. */
#include "core/tensor.h"

#include "tests/support/check.h"
#include "tests/support/child.h"

#include <string.h>

static bk_arena *arena;

static int make(void **state)
{
    (void)state;
    arena = bk_arena_new("tensors");
    return 0;
}

static int unmake(void **state)
{
    (void)state;
    bk_arena_free(arena);
    return 0;
}

static void types_have_a_name_and_a_size(void **state)
{
    const struct {
        bk_dtype dtype;
        const char *name;
        size_t size;
    } type[] = {{BK_F32, "f32", 4}, {BK_F64, "f64", 8}, {BK_I32, "i32", 4},
                {BK_I64, "i64", 8}, {BK_U8, "u8", 1},   {BK_U16, "u16", 2}};
    (void)state;
    for (int i = 0; i < 6; i++) {
        assert_string_equal(bk_dtype_name(type[i].dtype), type[i].name);
        assert_int_equal(bk_dtype_size(type[i].dtype), type[i].size);
    }
}

static void shapes_are_counted(void **state)
{
    char text[BK_SHAPE_TEXT];
    (void)state;
    bk_tensor *x = bk_tensor_new(arena, BK_F32, BK_SHAPE(2, 3, 4));
    assert_true(bk_count(x) == 24 && bk_rows(x) == 6 && bk_cols(x) == 4);
    assert_string_equal(bk_shape_text(x, text), "[2, 3, 4]");
    bk_tensor *empty = bk_tensor_new(arena, BK_F32, BK_SHAPE(0, 5));
    assert_true(bk_count(empty) == 0 && bk_rows(empty) == 0 && bk_cols(empty) == 5);
    assert_non_null(empty->data);
    bk_tensor *row = bk_tensor_new(arena, BK_I64, BK_SHAPE(7));
    assert_true(bk_count(row) == 7 && bk_rows(row) == 1 && bk_cols(row) == 7);
    bk_tensor *scalar = bk_tensor_new(arena, BK_F64, 0, NULL);
    assert_true(bk_count(scalar) == 1 && bk_rows(scalar) == 1 && bk_cols(scalar) == 1);
    assert_string_equal(bk_shape_text(scalar, text), "[]");
    bk_tensor *long_text =
        bk_tensor_wrap(arena, BK_U8, BK_SHAPE(INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX), NULL);
    assert_in_range(strlen(bk_shape_text(long_text, text)), 80, BK_SHAPE_TEXT - 1);
}

static void fresh_tensors_are_leaves(void **state)
{
    (void)state;
    bk_tensor *x = bk_tensor_new(arena, BK_F64, BK_SHAPE(3, 5));
    assert_true(!x->grad && !x->needs_grad && !x->producer && !x->parameter && !x->consumers);
    memset(x->data, 0, 15 * sizeof(double));
    float own[6];
    bk_tensor *y = bk_tensor_wrap(arena, BK_F32, BK_SHAPE(2, 3), own);
    assert_ptr_equal(y->data, own);
    assert_ptr_equal(bk_f32(y), own);
}

static void shapes_are_compared(void **state)
{
    (void)state;
    bk_tensor *x = bk_tensor_new(arena, BK_F32, BK_SHAPE(2, 3)),
              *same = bk_tensor_new(arena, BK_F64, BK_SHAPE(2, 3)),
              *turned = bk_tensor_new(arena, BK_F32, BK_SHAPE(3, 2)),
              *deep = bk_tensor_new(arena, BK_F32, BK_SHAPE(2, 3, 1));
    assert_true(bk_same_shape(x, same));
    assert_false(bk_same_shape(x, turned) || bk_same_shape(x, deep));
}

static void five_axes(void *unused)
{
    (void)unused;
    bk_tensor_new(arena, BK_F32, BK_SHAPE(1, 1, 1, 1, 1));
}

static void four_axes_are_the_most(void **state)
{
    (void)state;
    bk_test_dies(five_axes, NULL, "5 axes");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(types_have_a_name_and_a_size), cmocka_unit_test(shapes_are_counted),
        cmocka_unit_test(fresh_tensors_are_leaves),     cmocka_unit_test(shapes_are_compared),
        cmocka_unit_test(four_axes_are_the_most),
    };
    return cmocka_run_group_tests(tests, make, unmake);
}
