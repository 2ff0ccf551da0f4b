/* Pairs of texts: columns by number and by name, quotes, splits, the real corpus, and what goes
 * wrong. */
#include "tests/support/check.h"
#include "tests/support/data.h"
#include "tests/support/files.h"

#include <stdlib.h>
#include <string.h>

static bk_arena *arena;

static const char *file(const char *name, const char *text)
{
    const char *path = bk_arena_strdup(arena, bk_test_path("%s", name));
    bk_test_write_text(path, text);
    return path;
}

static void make(const char *const *inputs, const char *const *options, bk_dataset *d)
{
    if (bk_test_make(arena, "pairs", inputs, options, d) != BK_OK)
        fail_msg("%s: %s", inputs[0], bk_status_text());
    assert_string_equal(d->task, "pair_classification");
    assert_int_equal(d->vocabulary, 257);
}

static void check(const bk_dataset *d, int64_t sample, const char *first, const char *second,
                  int32_t label)
{
    assert_string_equal(bk_test_bytes(arena, d, sample), first);
    assert_string_equal(bk_test_bytes2(arena, d, sample), second);
    assert_int_equal(d->labels[sample], label);
}

#define AAN                          \
    "1.0\tp1\tp2\tone text\ta \"b\n" \
    "0.0\tp3\tp4\t\"x, y\"\tz\r\n"   \
    "\n"                             \
    "1.0\tp1\tp9\tone\tlonger text\n"

/* Five columns without a header; nothing is a quote. */
static void columns_by_number(void **state)
{
    (void)state;
    bk_dataset d;
    make(BK_TEXTS(file("new_pairs.train.tsv", AAN), file("new_pairs.eval.tsv", AAN)), BK_NONE, &d);
    assert_int_equal(d.samples, 6);
    check(&d, 0, "one text", "a \"b", 1);
    check(&d, 1, "\"x, y\"", "z", 0);
    check(&d, 2, "one", "longer text", 1);
    assert_string_equal(d.label_name, "0.0\n1.0");
    assert_int_equal(d.max_length, 3 + 1 + 11);
    assert_int_equal(bk_test_split(&d, "train")->count, 3);
    assert_int_equal(bk_test_split(&d, "validation")->count, 3);
    assert_int_equal(d.splits, 2);
    make(BK_TEXTS(file("t", "b\ta\tx\nd\tc\ty\n")),
         BK_TEXTS("columns=text2,text1,label", "validation=0", "test=0"), &d);
    check(&d, 0, "a", "b", 0);
    check(&d, 1, "c", "d", 1);
}

static void columns_by_name(void **state)
{
    (void)state;
    bk_dataset d;
    const char *path = file("named.tsv", "id\tq\ta\tright\n1\twhat\tthis\tno\n2\twho\tme\tyes\n");
    make(BK_TEXTS(path),
         BK_TEXTS("header=true", "text1=q", "text2=a", "label=right", "validation=0", "test=0"),
         &d);
    assert_int_equal(d.samples, 2);
    check(&d, 0, "what", "this", 0);
    check(&d, 1, "who", "me", 1);
    make(BK_TEXTS(path),
         BK_TEXTS("header=true", "columns=-,text1,text2,label", "validation=0", "test=0"), &d);
    check(&d, 1, "who", "me", 1);
}

static void commas_have_quotes(void **state)
{
    (void)state;
    bk_dataset d;
    const char *path = file("t.csv", "yes,\"a, \"\"b\"\"\",\"two\nlines\"\nno,c,\n");
    make(BK_TEXTS(path), BK_TEXTS("columns=label,text1,text2", "validation=0", "test=0"), &d);
    check(&d, 0, "a, \"b\"", "two\nlines", 1);
    check(&d, 1, "c", "", 0);
    assert_string_equal(d.note, "1 texts are empty");
}

static void cut_and_limited(void **state)
{
    (void)state;
    bk_dataset d;
    make(BK_TEXTS(file("new_pairs.train.tsv", AAN)),
         BK_TEXTS("max_length=2", "limit=2", "validation=0", "test=0"), &d);
    assert_int_equal(d.samples, 2);
    check(&d, 0, "on", "a ", 1);
    check(&d, 1, "\"x", "z", 0);
    assert_int_equal(d.max_length, 5);
}

static void refusals(void **state)
{
    (void)state;
    const char *good = file("good", AAN), *empty = file("empty", ""),
               *torn = file("torn", "1\t2\t3\ta\tb\n0\t2\t3\ta\n"),
               *blank = file("blank", "1\t2\t3\ta\tb\n\t2\t3\ta\tb\n"),
               *one = file("one", "1\t2\t3\ta\tb\n1\t2\t3\ta\tb\n"),
               *quoted = file("q.csv", "1,\"a,b\n");
    bk_test_refused("pairs", BK_NONE, BK_NONE, BK_USAGE, BK_TEXTS("FILE"));
    bk_test_refused("pairs", BK_TEXTS(bk_test_path("nowhere")), BK_NONE, BK_INPUT,
                    BK_TEXTS("nowhere"));
    bk_test_refused("pairs", BK_TEXTS(empty), BK_NONE, BK_INPUT, BK_TEXTS("no pair", "empty"));
    bk_test_refused("pairs", BK_TEXTS(torn), BK_NONE, BK_INPUT,
                    BK_TEXTS("torn:2", "4 columns, not 5"));
    bk_test_refused("pairs", BK_TEXTS(blank), BK_NONE, BK_INPUT, BK_TEXTS("blank:2", "no label"));
    bk_test_refused("pairs", BK_TEXTS(one), BK_NONE, BK_INPUT, BK_TEXTS("two classes"));
    bk_test_refused("pairs", BK_TEXTS(quoted), BK_TEXTS("columns=label,text1,text2"), BK_INPUT,
                    BK_TEXTS("q.csv", "line 1", "never closed"));
    bk_test_refused("pairs", BK_TEXTS(good), BK_TEXTS("columns=label,text1"), BK_USAGE,
                    BK_TEXTS("has no text2"));
    bk_test_refused("pairs", BK_TEXTS(good), BK_TEXTS("columns=label,text1,text1,text2"), BK_USAGE,
                    BK_TEXTS("text1 twice"));
    bk_test_refused("pairs", BK_TEXTS(good), BK_TEXTS("columns=label,text,text2"), BK_USAGE,
                    BK_TEXTS("'text' is neither"));
    bk_test_refused("pairs", BK_TEXTS(good), BK_TEXTS("text1=a", "text2=b", "label=c"), BK_USAGE,
                    BK_TEXTS("header=true"));
    bk_test_refused("pairs", BK_TEXTS(good), BK_TEXTS("header=true", "text1=a"), BK_USAGE,
                    BK_TEXTS("missing"));
    bk_test_refused("pairs", BK_TEXTS(good),
                    BK_TEXTS("header=true", "text1=p1", "text2=p2", "label=none"), BK_INPUT,
                    BK_TEXTS("no column none", "good:1", "label="));
    bk_test_refused("pairs", BK_TEXTS(good), BK_TEXTS("validation=9", "test=9"), BK_USAGE,
                    BK_TEXTS("nothing to train on"));
}

/* The paraphrase corpus of Dolan and Brockett 2005, where it is at hand. */
static void the_real_corpus(void **state)
{
    (void)state;
    const char *data = getenv("BIRKHOFF_DATA");
    if (!data) {
        print_message("BIRKHOFF_DATA is not set\n");
        skip();
    }
    bk_dataset d;
    make(BK_TEXTS(bk_arena_printf(arena, "%s/text/mrpc/msr_paraphrase_train.txt", data),
                  bk_arena_printf(arena, "%s/text/mrpc/msr_paraphrase_test.txt", data)),
         BK_TEXTS("header=true"), &d);
    assert_int_equal(d.samples, 4076 + 1725);
    assert_int_equal(bk_test_split(&d, "test")->count, 1725);
    assert_int_equal(bk_test_split(&d, "train")->count, 3668);
    assert_int_equal(d.classes, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(columns_by_number),  cmocka_unit_test(columns_by_name),
        cmocka_unit_test(commas_have_quotes), cmocka_unit_test(cut_and_limited),
        cmocka_unit_test(refusals),           cmocka_unit_test(the_real_corpus),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
