/* What the makers of texts share: names of splits, classes in order, the splits of the source. */
#include "io/labelled.h"
#include "tests/support/check.h"
#include "tests/support/data.h"

#include <string.h>

static bk_arena *arena;

static void names_of_splits(void **state)
{
    static const struct {
        const char *path;
        int split;
    } known[] = {{"a/train.tsv", BK_LABELLED_TRAIN},
                 {"in_domain_dev.tsv", BK_LABELLED_VALIDATION},
                 {"new_aan_pairs.eval.tsv", BK_LABELLED_VALIDATION},
                 {"valid", BK_LABELLED_VALIDATION},
                 {"test/x-train.csv", BK_LABELLED_TRAIN},
                 {"msr_paraphrase_test.txt", BK_LABELLED_TEST},
                 {"training.tsv", BK_LABELLED_ANY},
                 {"dir.train/all.tsv", BK_LABELLED_ANY}};
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (bk_labelled_split_of_file(known[i].path) != known[i].split)
            fail_msg("%s", known[i].path);
    assert_int_equal(bk_labelled_split_named("tests", 4), BK_LABELLED_TEST);
    assert_int_equal(bk_labelled_split_named("tests", 5), BK_LABELLED_ANY);
}

static bk_labelled texts(void)
{
    return (bk_labelled){.arena = arena,
                         .pairs = true,
                         .first.arena = arena,
                         .second.arena = arena,
                         .other = "more"};
}

static void add(bk_labelled *x, const char *text, const char *class, int split)
{
    const bk_field fields[] = {{text, strlen(text)}, {"second", 6}};
    int32_t label = -1;
    assert_int_equal(bk_labelled_class(x, class, strlen(class), "here", &label), BK_OK);
    bk_labelled_add(x, fields, 3, label, split);
}

static void classes_by_value_and_name(void **state)
{
    static const char *const class[] = {"10.0", "b", "9", "-1", "a", "9"};
    static const int32_t sorted[] = {2, 4, 1, 0, 3, 1};
    (void)state;
    bk_labelled x = texts();
    bk_dataset d = {0};
    for (int i = 0; i < 6; i++)
        add(&x, "text", class[i], BK_LABELLED_TRAIN);
    bk_labelled_sort_classes(&x);
    assert_int_equal(bk_labelled_finish(&x, &(bk_split_wish){0}, "here", &d), BK_OK);
    assert_string_equal(d.label_name, "-1\n9\n10.0\na\nb");
    for (int i = 0; i < 6; i++)
        assert_int_equal(d.labels[i], sorted[i]);
    assert_int_equal(d.max_length, 3 + 1 + 3);
}

/* The source's own splits stay; what it leaves open is cut from training. */
static void splits_of_the_source(void **state)
{
    static const int split[] = {BK_LABELLED_TRAIN, BK_LABELLED_OTHER, BK_LABELLED_ANY,
                                BK_LABELLED_TEST};
    (void)state;
    bk_labelled x = texts();
    bk_dataset d = {0};
    for (int i = 0; i < 40; i++)
        add(&x, "text", i % 3 ? "a" : "b", split[i % 4]);
    assert_int_equal(
        bk_labelled_finish(&x, &(bk_split_wish){.validation = 4, .test = 5}, "here", &d), BK_OK);
    assert_int_equal(d.splits, 4);
    assert_int_equal(bk_test_split(&d, "train")->count, 16);
    assert_int_equal(bk_test_split(&d, "validation")->count, 4);
    assert_int_equal(bk_test_split(&d, "test")->count, 10);
    for (int64_t i = 0; i < 10; i++)
        assert_int_equal(bk_test_split(&d, "more")->index[i], 4 * i + 1);
}

/* They are texts all the same. */
static void empty_texts_of_pairs(void **state)
{
    const bk_field fields[2] = {{"", 0}, {"", 0}};
    int32_t label;
    (void)state;
    bk_labelled x = texts();
    bk_dataset d = {0};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(bk_labelled_class(&x, i ? "a" : "b", 1, "here", &label), BK_OK);
        bk_labelled_add(&x, fields, 3, label, BK_LABELLED_TRAIN);
    }
    assert_int_equal(bk_labelled_finish(&x, &(bk_split_wish){0}, "here", &d), BK_OK);
    assert_non_null(d.tokens);
    assert_non_null(d.tokens2);
    assert_int_equal(d.max_length, 1);
}

static void refusals(void **state)
{
    int32_t label;
    bk_labelled x = texts();
    bk_dataset d = {0};
    (void)state;
    assert_int_equal(bk_labelled_class(&x, "", 0, "x:1", &label), BK_INPUT);
    assert_int_equal(bk_labelled_class(&x, "a\0b", 3, "x:1", &label), BK_INPUT);
    assert_non_null(strstr(bk_status_text(), "x:1"));
    add(&x, "text", "a", BK_LABELLED_TEST);
    assert_int_equal(bk_labelled_finish(&x, &(bk_split_wish){0}, "there", &d), BK_INPUT);
    assert_non_null(strstr(bk_status_text(), "there"));
    add(&x, "text", "b", BK_LABELLED_TEST);
    assert_int_equal(bk_labelled_finish(&x, &(bk_split_wish){0}, "there", &d), BK_INPUT);
    assert_non_null(strstr(bk_status_text(), "for training"));
    for (int i = 2; i < BK_LABELLED_CLASSES; i++)
        add(&x, "text", bk_arena_printf(arena, "%d", i), BK_LABELLED_TRAIN);
    assert_int_equal(bk_labelled_class(&x, "one more", 8, "x:300", &label), BK_INPUT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_of_splits),
        cmocka_unit_test(classes_by_value_and_name),
        cmocka_unit_test(splits_of_the_source),
        cmocka_unit_test(empty_texts_of_pairs),
        cmocka_unit_test(refusals),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_arena_free(arena);
    return failed;
}
