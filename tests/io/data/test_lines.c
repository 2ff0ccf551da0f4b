/* Corpora for language models: documents, separators, the held-out tail. */
#include "tests/support/check.h"
#include "tests/support/data.h"
#include "tests/support/files.h"

#include <string.h>

static bk_arena *arena;

static void make(const char *const *inputs, const char *const *options, bk_dataset *d)
{
    if (bk_test_make(arena, "lines", inputs, options, d) != BK_OK)
        fail_msg("%s: %s", inputs[0], bk_status_text());
    assert_string_equal(d->task, "language_model");
    assert_int_equal(d->vocabulary, 257);
    assert_int_equal(d->classes, 0);
    assert_null(d->labels);
}

static const char *file(const char *name, const char *text)
{
    const char *path = bk_arena_strdup(arena, bk_test_path("%s", name));
    bk_test_write_text(path, text);
    return path;
}

static void check(const bk_dataset *d, const char *const *documents)
{
    int64_t i = 0;
    for (; documents[i]; i++) {
        assert_true(i < d->samples);
        assert_string_equal(bk_test_bytes(arena, d, i), documents[i]);
    }
    assert_int_equal(d->samples, i);
}

static void check_split(const bk_dataset *d, const char *name, int64_t first, int64_t count)
{
    const bk_split *s = bk_test_split(d, name);
    assert_int_equal(s->count, count);
    for (int64_t i = 0; i < count; i++)
        assert_int_equal(s->index[i], first + i);
}

static void one_file_is_one_document(void **state)
{
    (void)state;
    bk_dataset d;
    make(BK_TEXTS(file("a", "first\nfile"), file("b", "second"), file("c", "")),
         BK_TEXTS("validation=0"), &d);
    check(&d, BK_TEXTS("first\nfile", "second"));
    check_split(&d, "train", 0, 2);
    assert_int_equal(d.splits, 1);
    assert_int_equal(d.max_length, 10);
}

static void separators_cut_documents(void **state)
{
    (void)state;
    bk_dataset d;
    const char *path = file("s", "\xef\xbb\xbfone\n\ntwo\n\n\n\nthree\n");
    make(BK_TEXTS(path), BK_TEXTS("separator=\\n\\n", "validation=0"), &d);
    check(&d, BK_TEXTS("one", "two", "three\n"));
    make(BK_TEXTS(path), BK_TEXTS("separator=\n\n", "validation=0", "limit=2"), &d);
    check(&d, BK_TEXTS("one", "two"));
    make(BK_TEXTS(path), BK_TEXTS("separator=\\n\\n", "validation=0", "max_length=3"), &d);
    check(&d, BK_TEXTS("one", "two", "thr"));
    make(BK_TEXTS(file("t", "a\\b|c")), BK_TEXTS("separator=\\\\", "validation=0"), &d);
    check(&d, BK_TEXTS("a", "b|c"));
}

/* Enough documents: whole ones are held out, the last tenth. */
static void the_last_documents_are_held_out(void **state)
{
    (void)state;
    bk_dataset d;
    char text[256] = "";
    for (int i = 0; i < 20; i++)
        sprintf(text + strlen(text), "%s%02d", i ? "|" : "", i);
    const char *path = file("v", text);
    make(BK_TEXTS(path), BK_TEXTS("separator=|"), &d);
    check_split(&d, "train", 0, 18);
    check_split(&d, "validation", 18, 2);
    make(BK_TEXTS(path), BK_TEXTS("separator=|", "validation=3", "test=0.25"), &d);
    check_split(&d, "train", 0, 12);
    check_split(&d, "validation", 12, 3);
    check_split(&d, "test", 15, 5);
    assert_int_equal(d.samples, 20);
}

/* Too few documents: the last tenth of the bytes. */
static void a_single_document_is_cut(void **state)
{
    (void)state;
    bk_dataset d;
    const char *path = file("w", "0123456789abcdefghij");
    make(BK_TEXTS(path), BK_NONE, &d);
    check(&d, BK_TEXTS("0123456789abcdefgh", "ij"));
    check_split(&d, "train", 0, 1);
    check_split(&d, "validation", 1, 1);
    make(BK_TEXTS(path), BK_TEXTS("validation=0.2", "test=0.1"), &d);
    check(&d, BK_TEXTS("0123456789abcd", "efgh", "ij"));
    check_split(&d, "test", 2, 1);
    make(BK_TEXTS(file("x", "0123456789"), file("y", "abcdefghij")), BK_TEXTS("validation=0.2"),
         &d);
    check(&d, BK_TEXTS("0123456789", "abcdef", "ghij"));
    check_split(&d, "train", 0, 2);
    check_split(&d, "validation", 2, 1);
}

static void every_byte_has_its_symbol(void **state)
{
    (void)state;
    bk_dataset d;
    const unsigned char bytes[] = {0, 255, 10};
    bk_test_write(bk_test_path("bytes"), bytes, sizeof bytes);
    make(BK_TEXTS(bk_test_path("bytes")), BK_TEXTS("validation=0"), &d);
    assert_int_equal(d.tokens[0], 1);
    assert_int_equal(d.tokens[1], 256);
    assert_int_equal(d.tokens[2], 11);
}

static void refusals(void **state)
{
    (void)state;
    const char *empty = file("empty", ""), *some = file("some", "text");
    bk_test_refused("lines", BK_NONE, BK_NONE, BK_USAGE, BK_TEXTS("FILE"));
    bk_test_refused("lines", BK_TEXTS(empty), BK_NONE, BK_INPUT, BK_TEXTS("empty", "no text"));
    bk_test_refused("lines", BK_TEXTS(some), BK_TEXTS("separator=text"), BK_INPUT,
                    BK_TEXTS("no text"));
    bk_test_refused("lines", BK_TEXTS(bk_test_path("nowhere")), BK_NONE, BK_INPUT,
                    BK_TEXTS("nowhere"));
    const char *place = bk_test_path("dir/x");
    bk_test_refused("lines",
                    BK_TEXTS(bk_arena_printf(arena, "%.*s", (int)strlen(place) - 2, place)),
                    BK_NONE, BK_INPUT, BK_TEXTS("dir"));
    bk_test_refused("lines", BK_TEXTS(some), BK_TEXTS("validation=0.9", "test=0.9"), BK_USAGE,
                    BK_TEXTS("nothing to train on"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_file_is_one_document),
        cmocka_unit_test(separators_cut_documents),
        cmocka_unit_test(the_last_documents_are_held_out),
        cmocka_unit_test(a_single_document_is_cut),
        cmocka_unit_test(every_byte_has_its_symbol),
        cmocka_unit_test(refusals),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
