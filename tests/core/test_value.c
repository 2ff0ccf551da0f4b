/* The tree of values and the key=value arguments laid over it. */
#include "core/option.h"
#include "io/yaml.h"
#include "tests/support/check.h"

#include <string.h>

static bk_arena *arena;

static int make(void **state)
{
    (void)state;
    arena = bk_arena_new("values");
    return 0;
}

static int unmake(void **state)
{
    (void)state;
    bk_arena_free(arena);
    return 0;
}

static bk_value *parse(void)
{
    const char text[] = "optim: {lr: 1e-3, kind: \"adamw\"}\n"
                        "loss:\n  - {kind: kl, weight: 0.2}\n  - {kind: tv}\n"
                        "run: {dir: runs/a}\n";
    bk_value *root;
    assert_int_equal(bk_yaml_parse(arena, "a.yaml", text, strlen(text), &root), BK_OK);
    return root;
}

/* The value at a path of map keys. */
static const bk_value *at(const bk_value *root, const char *section, const char *key)
{
    const bk_value *v = bk_value_get(bk_value_get(root, section), key);
    assert_non_null(v);
    return v;
}

static void keys_are_found_in_maps_only(void **state)
{
    bk_value *root = parse();
    (void)state;
    assert_string_equal(at(root, "optim", "lr")->text, "1e-3");
    assert_null(bk_value_get(root, "model"));
    assert_null(bk_value_get(NULL, "lr"));
    assert_null(bk_value_get(bk_value_get(root, "loss"), "kind"));
    assert_null(bk_value_get(at(root, "optim", "lr"), "lr"));
}

static void a_value_is_replaced(void **state)
{
    bk_value *root = parse();
    char text[] = "sgd", path[] = "optim.kind";
    (void)state;
    assert_true(at(root, "optim", "kind")->quoted);
    assert_int_equal(bk_value_set(arena, root, path, text), BK_OK);
    memset(text, 'x', 3); /* nothing of the caller's is kept */
    memset(path, 'x', sizeof path - 1);
    const bk_value *kind = at(root, "optim", "kind");
    assert_string_equal(kind->text, "sgd");
    assert_false(kind->quoted);
    assert_string_equal(kind->file, "command line");
    assert_int_equal(kind->line, 0);
    assert_string_equal(at(root, "optim", "lr")->text, "1e-3");
    assert_string_equal(at(root, "run", "dir")->text, "runs/a");
}

static void missing_maps_are_made(void **state)
{
    bk_value *root = parse();
    char path[] = "model.moe.router.kind";
    (void)state;
    assert_int_equal(bk_value_set(arena, root, path, "ssr"), BK_OK);
    assert_int_equal(bk_value_set(arena, root, "model.moe.k", "2"), BK_OK);
    memset(path, 'x', sizeof path - 1);
    const bk_value *moe = at(root, "model", "moe");
    assert_int_equal(moe->kind, BK_MAP);
    assert_string_equal(at(moe, "router", "kind")->text, "ssr");
    assert_string_equal(bk_value_get(moe, "k")->text, "2");
}

static void a_number_is_a_place_in_a_list(void **state)
{
    bk_value *root = parse();
    (void)state;
    assert_int_equal(bk_value_set(arena, root, "loss.1.weight", "0.7"), BK_OK);
    assert_int_equal(bk_value_set(arena, root, "loss.0.kind", "js"), BK_OK);
    const bk_value *first = bk_value_get(root, "loss")->child;
    assert_string_equal(bk_value_get(first, "kind")->text, "js");
    assert_string_equal(bk_value_get(first, "weight")->text, "0.2");
    assert_string_equal(bk_value_get(first->next, "kind")->text, "tv");
    assert_string_equal(bk_value_get(first->next, "weight")->text, "0.7");
    assert_null(first->next->next);
    assert_int_equal(bk_value_set(arena, root, "loss.0", "plain"), BK_OK); /* the entry itself */
    first = bk_value_get(root, "loss")->child;
    assert_int_equal(first->kind, BK_SCALAR);
    assert_non_null(first->next);
}

static void wrong_paths(void **state)
{
    const struct {
        const char *path, *word;
    } wrong[] = {{"loss.2.kind", "no entry '2'"},
                 {"loss.-1.kind", "not a list index"},
                 {"loss.kind", "not a list index"},
                 {"optim.lr.peak", "below a plain value"},
                 {"loss.0.kind.x", "below a plain"},
                 {"", "names no key"},
                 {".", "names no key"},
                 {"optim.", "names no key"},
                 {".optim.lr", "names no key"},
                 {"optim..lr", "names no key"}};
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        bk_value *root = parse();
        assert_int_equal(bk_value_set(arena, root, wrong[i].path, "1"), BK_USAGE);
        if (!strstr(bk_status_text(), wrong[i].word))
            fail_msg("%s: no '%s' in: %s", wrong[i].path, wrong[i].word, bk_status_text());
        assert_string_equal(at(root, "optim", "lr")->text, "1e-3");
    }
}

static void a_section_may_be_replaced_as_a_whole(void **state)
{
    bk_value *root = parse();
    (void)state;
    assert_int_equal(bk_value_set(arena, root, "loss", "none"), BK_OK);
    const bk_value *loss = bk_value_get(root, "loss");
    assert_int_equal(loss->kind, BK_SCALAR);
    assert_null(loss->child);
    assert_string_equal(at(root, "run", "dir")->text, "runs/a"); /* what follows is still there */
}

static void copies_are_apart(void **state)
{
    bk_value *root = parse();
    (void)state;
    bk_value *copy = bk_value_copy(arena, root);
    assert_int_equal(bk_value_set(arena, copy, "optim.lr", "5"), BK_OK);
    assert_int_equal(bk_value_set(arena, copy, "loss.1.kind", "js"), BK_OK);
    assert_string_equal(at(root, "optim", "lr")->text, "1e-3");
    assert_string_equal(at(copy, "optim", "lr")->text, "5");
    assert_string_equal(at(copy, "run", "dir")->text, "runs/a");
    assert_string_equal(bk_value_get(bk_value_get(root, "loss")->child->next, "kind")->text, "tv");
    assert_string_equal(at(copy, "optim", "kind")->file, "a.yaml");
    assert_true(at(copy, "optim", "kind")->quoted);
}

static void entries_keep_their_order(void **state)
{
    bk_value *list = bk_value_new(arena, BK_LIST, "x", 3), *entry[3];
    (void)state;
    assert_true(list->line == 3 && !list->child && !list->used);
    for (int i = 0; i < 3; i++)
        bk_value_append(list, entry[i] = bk_value_new(arena, BK_SCALAR, "x", i));
    assert_ptr_equal(list->child, entry[0]);
    assert_ptr_equal(entry[0]->next, entry[1]);
    assert_ptr_equal(entry[1]->next, entry[2]);
    assert_null(entry[2]->next);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_are_found_in_maps_only),
        cmocka_unit_test(a_value_is_replaced),
        cmocka_unit_test(missing_maps_are_made),
        cmocka_unit_test(a_number_is_a_place_in_a_list),
        cmocka_unit_test(wrong_paths),
        cmocka_unit_test(a_section_may_be_replaced_as_a_whole),
        cmocka_unit_test(copies_are_apart),
        cmocka_unit_test(entries_keep_their_order),
    };
    return cmocka_run_group_tests(tests, make, unmake);
}
