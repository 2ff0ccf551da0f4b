/* test: labels=unit timeout=60 */
/* Documents of jobs/json.c, read back by another library. */
#include "tests/support/check.h"

#include "jobs/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What `write` writes, parsed. */
static json_t *document(void (*write)(bk_json *j))
{
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    assert_non_null(stream);
    bk_json j = {.file = stream};
    write(&j);
    bk_json_end(&j);
    fclose(stream);
    json_error_t error;
    json_t *root = json_loads(text, JSON_DECODE_ANY, &error);
    if (!root)
        print_error("%s in: %s\n", error.text, text);
    assert_non_null(root);
    assert_int_equal(text[length - 1], '\n');
    free(text);
    return root;
}

static void write_nested(bk_json *j)
{
    bk_json_open(j, NULL);
    bk_json_open_list(j, "empty");
    bk_json_close_list(j);
    bk_json_open(j, "object");
    bk_json_close(j);
    bk_json_open_list(j, "list");
    bk_json_integer(j, NULL, 1);
    bk_json_open(j, NULL);
    bk_json_bool(j, "yes", true);
    bk_json_bool(j, "no", false);
    bk_json_close(j);
    bk_json_open_list(j, NULL);
    bk_json_close_list(j);
    bk_json_text(j, NULL, "last");
    bk_json_close_list(j);
    bk_json_integers(j, "shape", 3, (const int64_t[]){4, 0, INT64_MAX});
    bk_json_numbers(j, "ladder", 2, (const double[]){0.5, INFINITY});
    bk_json_close(j);
}

static void nesting(void **state)
{
    (void)state;
    json_t *root = document(write_nested), *list = json_object_get(root, "list");
    assert_int_equal(json_object_size(root), 5);
    assert_int_equal(json_array_size(json_object_get(root, "empty")), 0);
    assert_int_equal(json_array_size(list), 4);
    assert_true(json_is_true(json_object_get(json_array_get(list, 1), "yes")));
    assert_true(json_is_false(json_object_get(json_array_get(list, 1), "no")));
    assert_string_equal(json_string_value(json_array_get(list, 3)), "last");
    json_t *shape = json_object_get(root, "shape"), *ladder = json_object_get(root, "ladder");
    assert_true(json_integer_value(json_array_get(shape, 2)) == INT64_MAX);
    assert_true(json_is_null(json_array_get(ladder, 1)));
    json_decref(root);
}

static void write_numbers(bk_json *j)
{
    bk_json_open(j, NULL);
    bk_json_number(j, "third", 1.0 / 3.0);
    bk_json_number(j, "whole", 2.0);
    bk_json_number(j, "tiny", 1e-300);
    bk_json_number(j, "nan", NAN);
    bk_json_number(j, "minus_infinity", -INFINITY);
    bk_json_integer(j, "least", INT64_MIN);
    bk_json_text(j, "none", NULL);
    bk_json_close(j);
}

static void numbers(void **state)
{
    (void)state;
    json_t *root = document(write_numbers);
    assert_true(fabs(json_number_value(json_object_get(root, "third")) - 1.0 / 3.0) < 1e-15);
    assert_true(json_number_value(json_object_get(root, "whole")) == 2.0);
    assert_true(json_number_value(json_object_get(root, "tiny")) == 1e-300);
    assert_true(json_is_null(json_object_get(root, "nan")));
    assert_true(json_is_null(json_object_get(root, "minus_infinity")));
    assert_true(json_integer_value(json_object_get(root, "least")) == INT64_MIN);
    assert_true(json_is_null(json_object_get(root, "none")));
    json_decref(root);
}

/* The texts, and what a reader gets. */
static const char *const texts[][2] = {
    {"plain", "plain"},
    {"\"quoted\" \\ back", "\"quoted\" \\ back"},
    {"tab\tnewline\nbell\a", "tab\tnewline\nbell\a"},
    {"gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80",
     "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80"},
    {"latin \xe9.", "latin \xef\xbf\xbd."},
    {"cut \xe2\x82", "cut \xef\xbf\xbd\xef\xbf\xbd"},
    {"overlong \xc0\xaf", "overlong \xef\xbf\xbd\xef\xbf\xbd"},
    {"surrogate \xed\xa0\x80", "surrogate \xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    {"", ""},
};
enum { TEXTS = sizeof texts / sizeof *texts };

static void write_texts(bk_json *j)
{
    bk_json_open_list(j, NULL);
    for (int i = 0; i < TEXTS; i++)
        bk_json_text(j, NULL, texts[i][0]);
    bk_json_open(j, NULL);
    for (int i = 0; i < TEXTS; i++)
        bk_json_integer(j, texts[i][0], i);
    bk_json_close(j);
    bk_json_close_list(j);
}

static void strings(void **state)
{
    (void)state;
    json_t *root = document(write_texts), *keys = json_array_get(root, TEXTS);
    for (int i = 0; i < TEXTS; i++) {
        assert_string_equal(json_string_value(json_array_get(root, (size_t)i)), texts[i][1]);
        assert_int_equal(json_integer_value(json_object_get(keys, texts[i][1])), i);
    }
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nesting),
        cmocka_unit_test(numbers),
        cmocka_unit_test(strings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
