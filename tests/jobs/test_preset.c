/* Presets of losses: the numbers of the recipe, and what is refused. */
#include "tests/support/check.h"

#include "io/yaml.h"
#include "jobs/preset.h"

#include <math.h>
#include <string.h>

static bk_arena *arena;

static int open_arena(void **state)
{
    (void)state;
    arena = bk_arena_new("test");
    return 0;
}

static int close_arena(void **state)
{
    (void)state;
    bk_arena_free(arena);
    return 0;
}

static bk_status expand(const char *text, bk_value **out)
{
    bk_value *root;
    assert_int_equal(bk_yaml_parse(arena, "test.yaml", text, strlen(text), &root), BK_OK);
    return bk_presets_expand(arena, bk_value_get(root, "loss"), out);
}

static const char *text_of(const bk_value *entry, const char *key)
{
    const bk_value *value = bk_value_get(entry, key);
    return value ? value->text : "";
}

static double number_of(const bk_value *entry, const char *key)
{
    double x;
    assert_true(bk_parse_f64(text_of(entry, key), &x));
    return x;
}

/* The table of the recipe: alpha, T, batch, whether T falls to 1. */
static void the_table_of_tasks(void **state)
{
    static const struct {
        const char *task;
        double alpha, temperature, batch;
        bool annealed;
    } rows[] = {{"cola", 0.9, 1, 16, false}, {"mnli", 0.8, 3, 16, true},
                {"mrpc", 1.0, 4, 16, true},  {"qnli", 0.8, 3, 16, false},
                {"qqp", 1.0, 4, 32, true},   {"rte", 0.9, 3.5, 16, false},
                {"sst2", 0.9, 2, 32, false}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int official = 0; official < 2; official++) {
            bk_value *list;
            assert_int_equal(
                expand(bk_arena_printf(arena, "loss: [{kind: preset, name: %s, task: %s}]",
                                       official ? "official" : "default", rows[i].task),
                       &list),
                BK_OK);
            const bk_value *ce = list->child, *kl = ce->next, *sinkd = kl->next;
            assert_null(sinkd->next);
            assert_string_equal(text_of(ce, "kind"), "cross_entropy");
            assert_true(fabs(number_of(ce, "weight") - (1.0 - rows[i].alpha)) < 1e-12);
            assert_string_equal(text_of(kl, "kind"), "kl");
            assert_true(number_of(kl, "weight") == rows[i].alpha);
            assert_true(number_of(kl, "temperature") == rows[i].temperature);
            assert_string_equal(text_of(kl, "t_squared"), "false");
            assert_string_equal(text_of(kl, "entropy"), "false");
            assert_string_equal(text_of(kl, "temperature_end"), rows[i].annealed ? "1" : "");
            assert_string_equal(text_of(sinkd, "kind"), "sinkd");
            double weight = official ? 0.0008 : 0.0008 * rows[i].batch;
            assert_true(fabs(number_of(sinkd, "weight") - weight) < 1e-12);
            assert_true(number_of(sinkd, "temperature") == 2);
            assert_true(number_of(sinkd, "epsilon") == 0.1);
            assert_true(number_of(sinkd, "iterations") == 20);
            assert_string_equal(text_of(sinkd, "reduction"), official ? "sum" : "mean");
            assert_string_equal(text_of(sinkd, "group"), official ? "lane" : "global");
        }
}

static void other_entries_stay_where_they_are(void **state)
{
    bk_value *list;
    (void)state;
    assert_int_equal(
        expand("loss: [{kind: tv, weight: 3}, {kind: preset, name: default}, {kind: js}]", &list),
        BK_OK);
    static const char *const kinds[] = {"tv", "cross_entropy", "kl", "sinkd", "js"};
    const bk_value *entry = list->child;
    for (int i = 0; i < 5; i++, entry = entry->next)
        assert_string_equal(text_of(entry, "kind"), kinds[i]);
    assert_null(entry);
    assert_string_equal(text_of(list->child, "weight"), "3");
    assert_int_equal(expand("loss: [{kind: preset, name: official, task: t0}]", &list), BK_OK);
    assert_true(number_of(list->child, "weight") == 1.0);
    assert_true(number_of(list->child->next, "weight") == 0.1);
    assert_int_equal(expand("loss: [{kind: tv}]", &list), BK_OK);
    assert_string_equal(text_of(list->child, "kind"), "tv");
}

static void wrong_ones_are_refused(void **state)
{
    static const struct {
        const char *entry, *says;
    } cases[] = {{"name: oficial, task: cola", "did you mean official"},
                 {"name: official", "needs a task (test.yaml:1): add task: one of cola|mnli"},
                 {"name: official, task: kola", "cola"},
                 {"name: default, weight: 2", "unknown key loss.0.weight"},
                 {"task: cola", "without a name"}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bk_value *list;
        assert_int_equal(
            expand(bk_arena_printf(arena, "loss: [{kind: preset, %s}]", cases[i].entry), &list),
            BK_USAGE);
        if (!strstr(bk_status_text(), cases[i].says))
            fail_msg("%s", bk_status_text());
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_of_tasks),
        cmocka_unit_test(other_entries_stay_where_they_are),
        cmocka_unit_test(wrong_ones_are_refused),
    };
    return cmocka_run_group_tests(tests, open_arena, close_arena);
}
