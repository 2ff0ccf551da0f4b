/* YAML to a tree: what is read, with lines, and what is refused, with lines. */
#include "io/yaml.h"
#include "tests/support/check.h"
#include "tests/support/files.h"

#include <stdlib.h>
#include <string.h>

static bk_arena *arena;

static bk_value *read_text(const char *text)
{
    bk_value *root = NULL;
    if (bk_yaml_parse(arena, "a.yaml", text, strlen(text), &root) != BK_OK)
        fail_msg("%s", bk_status_text());
    assert_int_equal(root->kind, BK_MAP);
    return root;
}

/* The value at "a.b.1". */
static bk_value *at(bk_value *root, const char *path)
{
    char *copy = bk_arena_strdup(arena, path), *rest = NULL;
    bk_value *v = root;
    for (char *part = strtok_r(copy, ".", &rest); part && v; part = strtok_r(NULL, ".", &rest)) {
        if (v->kind == BK_MAP) {
            v = bk_value_get(v, part);
            continue;
        }
        bk_value *item = v->child;
        for (int i = part[0] - '0'; i > 0 && item; i--)
            item = item->next;
        v = item;
    }
    if (!v)
        fail_msg("there is no %s", path);
    return v;
}

static void scalar(bk_value *root, const char *path, const char *text, int line)
{
    const bk_value *v = at(root, path);
    assert_int_equal(v->kind, BK_SCALAR);
    assert_string_equal(v->text, text);
    assert_int_equal(v->line, line);
    assert_string_equal(v->file, "a.yaml");
}

static void maps_lists_and_lines(void **state)
{
    (void)state;
    bk_value *r = read_text("# a comment\n"
                            "run: {dir: runs/x, seed: 1}\n"
                            "model:\n"
                            "  layers: 4   # four\n"
                            "  moe:\n"
                            "    every: 2\n"
                            "loss:\n"
                            "  - {kind: cross_entropy, weight: 0.2}\n"
                            "  - kind: kl\n"
                            "    temperature: 2\n"
                            "nested: [[1, 2], [3, [4]], {a: b}]\n"
                            "last: 'it''s'\n");
    scalar(r, "run.dir", "runs/x", 2);
    scalar(r, "model.layers", "4", 4);
    scalar(r, "model.moe.every", "2", 6);
    scalar(r, "loss.0.weight", "0.2", 8);
    scalar(r, "loss.1.temperature", "2", 10);
    scalar(r, "nested.1.1.0", "4", 11);
    scalar(r, "nested.2.a", "b", 11);
    scalar(r, "last", "it's", 12);
    assert_int_equal(at(r, "loss")->kind, BK_LIST);
    assert_int_equal(at(r, "model.moe")->line, 5);
    assert_true(at(r, "last")->quoted);
    assert_false(at(r, "run.seed")->quoted);
}

static void unusual_texts(void **state)
{
    (void)state;
    scalar(read_text("\xef\xbb\xbf"
                     "a: 1\n"),
           "a", "1", 1);
    scalar(read_text("a: 1\r\nb: 2\r\n"), "b", "2", 2);
    scalar(read_text("---\na: 1\n"), "a", "1", 2);
    scalar(read_text("a: 1"), "a", "1", 1);
    scalar(read_text("a: \"x: y # z\"\n"), "a", "x: y # z", 1);
    scalar(read_text("\"a b\": caf\xc3\xa9\n"), "a b", "caf\xc3\xa9", 1);
    scalar(read_text("a:\nb: 1\n"), "a", "", 1);
    static const char *const empty[] = {"",      "\n", "  \n\n",       "# only a comment\n",
                                        "---\n", "{}", "\xef\xbb\xbf", "\r\n"};
    for (size_t i = 0; i < sizeof empty / sizeof *empty; i++)
        assert_null(read_text(empty[i])->child);
}

/* The text ends where its length says, as a sanitizer sees. */
static void a_text_without_a_zero(void **state)
{
    (void)state;
    static const char *const text[] = {" ", "\r\n", "a: 1", "#"};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        bk_value *root;
        size_t length = strlen(text[i]);
        char *exact = malloc(length);
        assert_non_null(exact);
        memcpy(exact, text[i], length);
        assert_int_equal(bk_yaml_parse(arena, "a.yaml", exact, length, &root), BK_OK);
        assert_true(!root->child == (text[i][0] != 'a'));
        free(exact);
    }
}

/* What no person writes takes no longer for it: lists of any length are read, maps are not. */
static void long_texts(void **state)
{
    (void)state;
    enum { ENTRIES = 300000 };
    char *text = NULL;
    size_t length = 0;
    bk_value *root;
    FILE *stream = open_memstream(&text, &length);
    fputs("a:\n", stream);
    for (int i = 0; i < ENTRIES; i++)
        fputs("- x\n", stream);
    fclose(stream);
    assert_int_equal(bk_yaml_parse(arena, "a.yaml", text, length, &root), BK_OK);
    int entries = 0;
    for (const bk_value *v = at(root, "a")->child; v; v = v->next)
        entries++;
    assert_int_equal(entries, ENTRIES);
    free(text);
    stream = open_memstream(&text, &length);
    for (int i = 0; i < ENTRIES; i++)
        fprintf(stream, "k%d: x\n", i);
    fclose(stream);
    assert_int_equal(bk_yaml_parse(arena, "a.yaml", text, length, &root), BK_USAGE);
    assert_non_null(strstr(bk_status_text(), "more than 1000 keys (a.yaml:1001)"));
    free(text);
}

static void what_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *place, *word;
    } wrong[] = {
        {"a: 1\nb: 2\na: 3\n", "a.yaml:3", "'a' is given twice"},
        {"m:\n  x: 1\n  y: 2\n  x: 3\n", "a.yaml:4", "'x' is given twice"},
        {"m: {x: 1, x: 2}\n", "a.yaml:1", "twice"},
        {"a:\n\tb: 1\n", "a.yaml:2", ""},
        {"a: &name 1\nb: *name\n", "a.yaml", "alias"},
        {"base: &b {x: 1}\nc:\n  <<: *b\n", "a.yaml:3", ""},
        {"a: [1, 2\nb: 3\n", "a.yaml", "not YAML"},
        {"a: {x: 1\n", "a.yaml", "not YAML"},
        {"a: 'x\n", "a.yaml", "not YAML"},
        {"a: b: c\n", "a.yaml:1", "not YAML"},
        {"a: 1\n b: 2\n", "a.yaml:1", "not YAML"},
        {"? [x]\n: 1\n", "a.yaml", "key"},
        {"a: 1\n---\nb: 2\n", "a.yaml", "one document"},
        {"- 1\n- 2\n", "a.yaml:1", "key: value"},
        {"just words\n", "a.yaml:1", "key: value"},
        {"42", "a.yaml:1", "key: value"},
        {"\x7f"
         "ELF\x02\x01\x01",
         "a.yaml", ""},
        {"a: 1\nb: \xff\xfe\n", "a.yaml:2", "UTF-8"},
        {"a: !!int 3\nb: @x\n", "a.yaml", ""},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        bk_value *root;
        if (bk_yaml_parse(arena, "a.yaml", wrong[i].text, strlen(wrong[i].text), &root) != BK_USAGE)
            fail_msg("this was read: %s", wrong[i].text);
        if (!strstr(bk_status_text(), wrong[i].place) || !strstr(bk_status_text(), wrong[i].word))
            fail_msg("no '%s' and '%s' in: %s", wrong[i].place, wrong[i].word, bk_status_text());
        assert_null(strchr(bk_status_text(), '\n'));
    }
}

/* An anchor that nobody refers to changes nothing. */
static void anchors_alone_are_fine(void **state)
{
    (void)state;
    scalar(read_text("a: &x 1\nb: 2\n"), "a", "1", 1);
}

static void files(void **state)
{
    (void)state;
    bk_value *root;
    const char *path = bk_test_path("c.yaml");
    assert_int_equal(bk_yaml_read(arena, path, &root), BK_USAGE);
    assert_non_null(strstr(bk_status_text(), "c.yaml"));
    bk_test_write_text(path, "run: {seed: 5}\n");
    assert_int_equal(bk_yaml_read(arena, path, &root), BK_OK);
    assert_string_equal(at(root, "run.seed")->text, "5");
    assert_string_equal(at(root, "run.seed")->file, path);
    bk_test_write(path, "a: 1\0b: 2\n", 10);
    assert_int_equal(bk_yaml_read(arena, path, &root), BK_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps_lists_and_lines),
        cmocka_unit_test(unusual_texts),
        cmocka_unit_test(a_text_without_a_zero),
        cmocka_unit_test(long_texts),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(anchors_alone_are_fine),
        cmocka_unit_test(files),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
