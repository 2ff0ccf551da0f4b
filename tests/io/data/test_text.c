/* Texts with classes: trees, tables with RFC 4180 quotes, labelled lines, and what goes wrong. */
#include "tests/support/check.h"
#include "tests/support/data.h"
#include "tests/support/files.h"

#include <string.h>

static bk_arena *arena;

static void make(const char *const *inputs, const char *const *options, bk_dataset *d)
{
    if (bk_test_make(arena, "text", inputs, options, d) != BK_OK)
        fail_msg("%s: %s", inputs[0], bk_status_text());
}

static const char *file(const char *name, const char *text)
{
    const char *path = bk_arena_strdup(arena, bk_test_path("%s", name));
    bk_test_write_text(path, text);
    return path;
}

static const char *directory(const char *name)
{
    const char *path = bk_test_path("%s/x", name);
    return bk_arena_printf(arena, "%.*s", (int)strlen(path) - 2, path);
}

/* The label of the sample with these bytes, by name. */
static const char *label(const bk_dataset *d, const char *bytes)
{
    int64_t sample = bk_test_sample(arena, d, bytes);
    if (sample < 0)
        fail_msg("no sample '%s'", bytes);
    const char *name = d->label_name;
    for (int32_t i = d->labels[sample]; i > 0; i--)
        name = strchr(name, '\n') + 1;
    return bk_arena_printf(arena, "%.*s", (int)strcspn(name, "\n"), name);
}

static bool in_split(const bk_dataset *d, const char *split, const char *bytes)
{
    int64_t sample = bk_test_sample(arena, d, bytes);
    const bk_split *s = bk_test_split(d, split);
    for (int64_t i = 0; i < s->count; i++)
        if (s->index[i] == sample)
            return true;
    return false;
}

/* ---- trees ---- */

static void a_directory_a_class(void **state)
{
    (void)state;
    bk_dataset d;
    for (int i = 0; i < 60; i++) {
        const char *class_name = i % 3 == 0 ? "ham" : "spam";
        file(bk_arena_printf(arena, "tree/%s/%d.txt", class_name, i),
             bk_arena_printf(arena, "text %d", i));
    }
    file("tree/README", "beside the classes");
    file("tree/.hidden", "never read");
    make(BK_TEXTS(directory("tree")), BK_NONE, &d);
    assert_int_equal(d.samples, 60);
    assert_int_equal(d.vocabulary, 257);
    assert_int_equal(d.classes, 2);
    assert_string_equal(d.label_name, "ham\nspam");
    assert_string_equal(label(&d, "text 3"), "ham");
    assert_string_equal(label(&d, "text 4"), "spam");
    assert_int_equal(bk_test_split(&d, "train")->count, 48);
    assert_int_equal(bk_test_split(&d, "validation")->count, 6);
    assert_int_equal(bk_test_split(&d, "test")->count, 6);
    assert_non_null(strstr(d.note, "1 entries beside"));
    make(BK_TEXTS(directory("tree")), BK_TEXTS("limit=4", "validation=3", "test=0"), &d);
    assert_int_equal(d.samples, 8);
    assert_int_equal(bk_test_split(&d, "validation")->count, 3);
    assert_int_equal(d.splits, 2);
}

static void splits_follow_the_seed(void **state)
{
    (void)state;
    bk_dataset a, b, c;
    const char *tree[] = {directory("tree"), NULL};
    make(tree, BK_NONE, &a);
    make(tree, BK_NONE, &b);
    make(tree, BK_TEXTS("seed=2"), &c);
    size_t bytes = 48 * sizeof(int64_t);
    assert_memory_equal(bk_test_split(&a, "train")->index, bk_test_split(&b, "train")->index,
                        bytes);
    assert_true(
        memcmp(bk_test_split(&a, "train")->index, bk_test_split(&c, "train")->index, bytes) != 0);
    int seen[60] = {0};
    for (int k = 0; k < a.splits; k++)
        for (int64_t i = 0; i < a.split[k].count; i++)
            seen[a.split[k].index[i]]++;
    for (int i = 0; i < 60; i++)
        assert_int_equal(seen[i], 1);
}

static void the_layout_of_imdb(void **state)
{
    (void)state;
    bk_dataset d;
    for (int i = 0; i < 20; i++)
        for (int k = 0; k < 4; k++)
            file(bk_arena_printf(arena, "imdb/%s/%s/%d_7.txt", k & 1 ? "train" : "test",
                                 k & 2 ? "pos" : "neg", i),
                 bk_arena_printf(arena, "%d<br />%d", k, i));
    file("imdb/train/unsup/1_0.txt", "without a label");
    file("imdb/train/urls_pos.txt", "http://example.org");
    make(BK_TEXTS(directory("imdb")), BK_NONE, &d);
    assert_string_equal(d.label_name, "neg\npos");
    assert_int_equal(d.samples, 80);
    assert_int_equal(bk_test_split(&d, "train")->count, 36);
    assert_int_equal(bk_test_split(&d, "validation")->count, 4);
    assert_int_equal(bk_test_split(&d, "test")->count, 40);
    assert_true(in_split(&d, "test", "0<br />7") && in_split(&d, "test", "2<br />7"));
    assert_string_equal(label(&d, "3<br />0"), "pos");
    assert_non_null(strstr(d.note, "2 entries beside"));
}

static void trees_that_are_none(void **state)
{
    (void)state;
    file("deep/a/b/c.txt", "x");
    file("deep/d/e.txt", "y");
    file("one/a/b.txt", "x");
    directory("hollow/a");
    file("hollow/b/c.txt", "x");
    bk_test_refused("text", BK_TEXTS(directory("deep")), BK_NONE, BK_INPUT,
                    BK_TEXTS("deep/a/b", "directory"));
    bk_test_refused("text", BK_TEXTS(directory("one")), BK_NONE, BK_INPUT, BK_TEXTS("two classes"));
    bk_test_refused("text", BK_TEXTS(directory("hollow")), BK_NONE, BK_INPUT,
                    BK_TEXTS("hollow/a", "holds no file"));
    bk_test_refused("text", BK_TEXTS(directory("empty")), BK_NONE, BK_INPUT,
                    BK_TEXTS("0 texts", "empty"));
    bk_test_refused("text", BK_TEXTS(bk_test_path("nowhere")), BK_NONE, BK_INPUT,
                    BK_TEXTS("nowhere"));
    bk_test_refused("text", BK_NONE, BK_NONE, BK_USAGE, BK_TEXTS("DIR|FILE"));
}

/* ---- bytes ---- */

static void every_byte_has_its_symbol(void **state)
{
    (void)state;
    bk_dataset d;
    char all[256];
    for (int i = 0; i < 256; i++)
        all[i] = (char)i;
    bk_test_write(bk_test_path("bytes/a/all"), all, sizeof all);
    file("bytes/b/short", "ab");
    file("bytes/b/empty", "");
    make(BK_TEXTS(directory("bytes")), BK_TEXTS("validation=0", "test=0"), &d);
    assert_int_equal(d.samples, 2);
    assert_int_equal(d.max_length, 256);
    for (int i = 0; i < 256; i++)
        assert_int_equal(d.tokens[i], i + 1);
    assert_non_null(strstr(d.note, "1 empty"));
    make(BK_TEXTS(directory("bytes")), BK_TEXTS("validation=0", "test=0", "max_length=10"), &d);
    assert_int_equal(d.offsets[1], 10);
    assert_int_equal(d.offsets[2], 12);
}

static void duplicates_are_dropped_and_counted(void **state)
{
    (void)state;
    bk_dataset d;
    file("twice/a/1", "the same");
    file("twice/a/2", "the same");
    file("twice/a/3", "another");
    file("twice/b/1", "the same");
    file("twice/b/2", "the same, longer");
    make(BK_TEXTS(directory("twice")), BK_TEXTS("validation=0", "test=0"), &d);
    assert_int_equal(d.samples, 3);
    assert_non_null(strstr(d.note, "2 duplicates"));
    /* equal only after truncation: two texts */
    make(BK_TEXTS(directory("twice")), BK_TEXTS("validation=0", "test=0", "max_length=8"), &d);
    assert_int_equal(d.samples, 3);
    make(BK_TEXTS(directory("twice")), BK_TEXTS("validation=0", "test=0", "deduplicate=false"), &d);
    assert_int_equal(d.samples, 5);
    assert_non_null(strstr(d.note, "0 duplicates"));
}

static void bodies_of_mails(void **state)
{
    (void)state;
    bk_dataset d;
    file("mail/a/1", "From: x\nSubject: y\n\nbody\n\nmore\n");
    file("mail/a/2", "From: x\r\nSubject: y\r\n\r\nbody 2\r\n");
    file("mail/a/3", "\nno headers");
    file("mail/b/1", "From: z\n\nbody\n\nmore\n"); /* the same body */
    file("mail/b/2", "headers: only\n");
    make(BK_TEXTS(directory("mail")), BK_TEXTS("mail=body", "validation=0", "test=0"), &d);
    assert_int_equal(d.samples, 3);
    assert_true(bk_test_sample(arena, &d, "body\n\nmore\n") >= 0);
    assert_true(bk_test_sample(arena, &d, "body 2\r\n") >= 0);
    assert_true(bk_test_sample(arena, &d, "no headers") >= 0);
    assert_non_null(strstr(d.note, "1 duplicates"));
    assert_non_null(strstr(d.note, "1 empty"));
}

/* ---- tables ---- */

static const char *const all_train[] = {"validation=0", "test=0", NULL};

static void tables_with_tabs(void **state)
{
    (void)state;
    bk_dataset d;
    make(BK_TEXTS(file("t.tsv", "id\tSource\tTarget\n1\tgood \"film\"\tpos\n2\tbad, film\tneg\n")),
         all_train, &d);
    assert_string_equal(d.label_name, "neg\npos");
    assert_string_equal(label(&d, "good \"film\""), "pos"); /* no quoting in TSV */
    assert_string_equal(label(&d, "bad, film"), "neg");
    /* byte-order mark, CR LF, no line end at the end, names by option */
    make(BK_TEXTS(file("u.tsv", "\xef\xbb\xbfkind\tsaid\r\na\tone\r\nb\ttwo")),
         BK_TEXTS("text=said", "label=kind", "validation=0", "test=0"), &d);
    assert_string_equal(label(&d, "two"), "b");
    make(BK_TEXTS(file("v.txt", "s\t1\t\tOne.\ns\t0\t*\tTwo.\n")),
         BK_TEXTS("header=false", "text=4", "label=2", "validation=0", "test=0"), &d);
    assert_string_equal(label(&d, "One."), "1");
    assert_string_equal(d.label_name, "0\n1");
}

static void tables_with_commas_and_quotes(void **state)
{
    (void)state;
    bk_dataset d;
    make(BK_TEXTS(file("q.csv",
                       "Target,Source\n1,\"a, b\"\n2,\"she said \"\"no\"\"\"\n"
                       "1,\"two\nlines\"\r\n2,plain \"inside\"\n\"10\",\"\"\"\"\n1,\"\"\n")),
         all_train, &d);
    assert_int_equal(d.samples, 5);
    assert_string_equal(label(&d, "a, b"), "1");
    assert_string_equal(label(&d, "she said \"no\""), "2");
    assert_string_equal(label(&d, "two\nlines"), "1");
    assert_string_equal(label(&d, "plain \"inside\""), "2");
    assert_string_equal(label(&d, "\""), "10");
    assert_string_equal(d.label_name, "1\n2\n10"); /* numbers by value */
    assert_non_null(strstr(d.note, "1 empty"));
}

static void labelled_lines(void **state)
{
    (void)state;
    bk_dataset d;
    make(BK_TEXTS(file("train.txt", "1 good film\n0 bad film\n\n1 fine"),
                  file("dev.txt", "0 dull\r\n"), file("x_test.txt", "1 great\n")),
         BK_TEXTS("layout=label_first"), &d);
    assert_string_equal(d.label_name, "0\n1");
    assert_string_equal(label(&d, "good film"), "1");
    assert_true(in_split(&d, "train", "fine"));
    assert_true(in_split(&d, "validation", "dull"));
    assert_true(in_split(&d, "test", "great"));
    assert_int_equal(bk_test_split(&d, "validation")->count, 1);
    make(BK_TEXTS(file("contest.txt", "a x\nb y\n")), all_train, &d); /* no word of it is a split */
    assert_int_equal(bk_test_split(&d, "train")->count, 2);
    make(BK_TEXTS(file("l.txt", "a 1\nb 2\na 3\nb 4\n")),
         BK_TEXTS("limit=2", "validation=0", "test=0"), &d);
    assert_int_equal(d.samples, 2);
}

static void wrong(const char *name, const char *content, const char *option,
                  const char *const *texts)
{
    bk_test_refused("text", BK_TEXTS(file(name, content)), BK_TEXTS(option ? option : "seed=1"),
                    BK_INPUT, texts);
}

static void trouble_names_file_and_line(void **state)
{
    (void)state;
    wrong("n.txt", "1 good\n0 bad\nunlabelled\n", NULL, BK_TEXTS("n.txt:3", "label"));
    wrong("o.txt", "1 good\n 0 bad\n", NULL, BK_TEXTS("o.txt:2", "no label"));
    wrong("a.tsv", "Source\tTarget\nx\t1\ny\n", NULL, BK_TEXTS("a.tsv:3", "1 columns"));
    wrong("b.tsv", "Source\tTarget\nx\t1\n\ny\t\n", NULL, BK_TEXTS("b.tsv:4", "no label"));
    wrong("c.tsv", "Text\tTarget\nx\t1\n", NULL, BK_TEXTS("c.tsv:1", "Source", "text="));
    wrong("d.csv", "Source,Target\nx,1\n\"y,2\n", NULL, BK_TEXTS("d.csv", "line 3", "closed"));
    wrong("e.csv", "Source,Target\n\"a\nb\",1\n\"y\"z,2\n", NULL, BK_TEXTS("e.csv", "line 4"));
    wrong("f.txt", "", NULL, BK_TEXTS("f.txt", "no text"));
    wrong("g.tsv", "Source\tTarget\n", NULL, BK_TEXTS("g.tsv", "no text"));
    wrong("h.csv", "1,2\n", "layout=tsv", BK_TEXTS("h.csv:1"));
    wrong("test.txt", "1 x\n0 y\n", NULL, BK_TEXTS("training"));
    bk_test_refused("text", BK_TEXTS(file("i.txt", "1 x\n0 y\n")),
                    BK_TEXTS("validation=1", "test=1"), BK_USAGE, BK_TEXTS("nothing to train on"));
    bk_test_refused("text", BK_TEXTS(file("j.tsv", "a\tb\n")), BK_TEXTS("header=false"), BK_USAGE,
                    BK_TEXTS("text=Source", "column number"));
}

static void many_labels_are_no_labels(void **state)
{
    (void)state;
    char text[4096], *to = text;
    for (int i = 0; i < 300; i++)
        to += sprintf(to, "%d x\n", i);
    wrong("many.txt", text, NULL, BK_TEXTS("many.txt:257", "256 classes"));
    bk_test_write(bk_test_path("zero.txt"), "a\0b text\n", 9);
    bk_test_refused("text", BK_TEXTS(bk_test_path("zero.txt")), BK_NONE, BK_INPUT,
                    BK_TEXTS("zero.txt:1"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_directory_a_class),
        cmocka_unit_test(splits_follow_the_seed),
        cmocka_unit_test(the_layout_of_imdb),
        cmocka_unit_test(trees_that_are_none),
        cmocka_unit_test(every_byte_has_its_symbol),
        cmocka_unit_test(duplicates_are_dropped_and_counted),
        cmocka_unit_test(bodies_of_mails),
        cmocka_unit_test(tables_with_tabs),
        cmocka_unit_test(tables_with_commas_and_quotes),
        cmocka_unit_test(labelled_lines),
        cmocka_unit_test(trouble_names_file_and_line),
        cmocka_unit_test(many_labels_are_no_labels),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
