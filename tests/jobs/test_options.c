/* test: labels=unit timeout=60 */
/* Option tables as people and programs see them, and every table of the program: its presets are in
 * range, have a meaning, and survive being written and read. */
#include "tests/support/check.h"

#include "io/data.h"
#include "io/yaml.h"
#include "jobs/config.h"
#include "jobs/options.h"
#include "models/attention.h"
#include "models/model.h"
#include "models/router.h"

#include <stdlib.h>
#include <string.h>

typedef struct sample {
    int64_t count;
    double rate;
    float width;
    bool fast;
    int mode;
    const char *label, *path;
} sample;

static const bk_option table[] = {
    BK_OPTION_I64(sample, count, 3, 1, 10, "how many"),
    BK_OPTION_F64_ABOVE(sample, rate, 0.5, 0.0, 1.0, "how fast"),
    BK_OPTION_F32(sample, width, 2.5f, 0.0f, 2e15f, "how wide"),
    BK_OPTION_BOOL(sample, fast, true, "whether"),
    BK_OPTION_CHOICE(sample, mode, 1, "slow|quick|instant", "which way"),
    BK_OPTION_TEXT(sample, label, "none", "what to call it"),
    BK_OPTION_TEXT(sample, path, NULL, "where"),
    BK_OPTION_END,
};

/* ---- printing ---- */

static void text_table(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "  key    type     default  range               meaning\n",
        "  count  integer  3        [1, 10]             how many\n",
        "  rate   number   0.5      (0, 1]              how fast\n",
        "  width  number   2.5      >= 0                how wide\n",
        "  fast   boolean  true                         whether\n",
        "  mode   choice   quick    slow|quick|instant  which way\n",
        "  label  text     none                         what to call it\n",
        "  path   text     -                            where\n",
    };
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    bk_options_print(stream, table);
    bk_options_print(stream, NULL);
    fclose(stream);
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        if (!strstr(text, lines[i]))
            fail_msg("no line '%s' in:\n%s", lines[i], text);
    assert_non_null(strstr(text, "  no options\n"));
    free(text);
}

static void json_table(void **state)
{
    (void)state;
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    bk_json j = {.file = stream};
    bk_json_open(&j, NULL);
    bk_options_json(&j, "options", table);
    bk_options_json(&j, "none", NULL);
    bk_json_close(&j);
    fclose(stream);
    json_t *root = json_loads(text, 0, NULL), *list = json_object_get(root, "options");
    assert_int_equal(json_array_size(list), 7);
    assert_int_equal(json_array_size(json_object_get(root, "none")), 0);
    json_t *rate = json_array_get(list, 1), *mode = json_array_get(list, 4);
    assert_true(json_is_true(json_object_get(rate, "open_least")));
    assert_true(json_number_value(json_object_get(rate, "most")) == 1.0);
    assert_string_equal(json_string_value(json_object_get(mode, "default")), "quick");
    assert_int_equal(json_array_size(json_object_get(mode, "choices")), 3);
    assert_true(json_is_true(json_object_get(json_array_get(list, 3), "default")));
    assert_true(json_is_null(json_object_get(json_array_get(list, 6), "default")));
    json_decref(root);
    free(text);
}

/* ---- key=value arguments ---- */

static bk_status from_line(bk_arena *arena, const char *path, const char *text, sample *out)
{
    bk_override given = {.path = path, .text = text};
    bk_context context = {.arena = arena, .overrides = path ? 1 : 0, .override = &given};
    bk_status status = bk_options_from_context(&context, table, "sample", out);
    if (status == BK_OK && path)
        assert_true(given.used);
    return status;
}

static void arguments(void **state)
{
    (void)state;
    bk_arena *arena = bk_arena_new("test");
    sample s;
    assert_int_equal(from_line(arena, NULL, NULL, &s), BK_OK);
    assert_true(s.count == 3 && s.rate == 0.5 && s.width == 2.5f && s.fast && s.mode == 1);
    assert_string_equal(s.label, "none");
    assert_null(s.path);
    assert_int_equal(from_line(arena, "count", "1e1", &s), BK_OK);
    assert_int_equal(s.count, 10);
    assert_int_equal(from_line(arena, "mode", "instant", &s), BK_OK);
    assert_int_equal(s.mode, 2);
    assert_int_equal(from_line(arena, "label", "", &s), BK_OK);
    assert_string_equal(s.label, "none");
    bk_arena_free(arena);
}

static const char *const refused[][3] = {
    {"count", "x", "sample.count is 'x' (command line): write an integer (how many)"},
    {"count", "1.5", "sample.count is '1.5'"},
    {"count", "", "sample.count is ''"},
    {"count", "0", "sample.count=0 is out of range (command line): choose a number in [1, 10]"},
    {"count", "11", "choose a number in [1, 10]"},
    {"rate", "0", "choose a number in (0, 1]"},
    {"rate", "nan", "sample.rate is 'nan' (command line): write a number"},
    {"rate", "inf", "sample.rate is 'inf'"},
    {"width", "-1", "choose a number >= 0"},
    {"fast", "yes", "write true or false"},
    {"mode", "quik", "not one of slow|quick|instant (command line): did you mean quick?"},
    {"conut", "3", "unknown key sample.conut (command line): did you mean count?"},
    {"zzzzzzzz", "3", "unknown key sample.zzzzzzzz (command line): birkhoff kinds lists the keys"},
    {"count.deeper", "3", "sample.count is a mapping (command line): write an integer"},
};

static void bad_arguments(void **state)
{
    (void)state;
    bk_arena *arena = bk_arena_new("test");
    sample s;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        assert_int_equal(from_line(arena, refused[i][0], refused[i][1], &s), BK_USAGE);
        if (!strstr(bk_status_text(), refused[i][2]))
            fail_msg("%s=%s: %s", refused[i][0], refused[i][1], bk_status_text());
    }
    bk_arena_free(arena);
}

/* ---- every table of the program ---- */

typedef void visit(const char *name, const bk_option *options);

static void for_each_table(visit *f)
{
    for (int i = 0; bk_attentions[i]; i++)
        f(bk_attentions[i]->name, bk_attentions[i]->options);
    for (int i = 0; bk_routers[i]; i++)
        f(bk_routers[i]->name, bk_routers[i]->options);
    for (int i = 0; bk_losses[i]; i++)
        f(bk_losses[i]->name, bk_losses[i]->options);
    for (int i = 0; bk_data_kinds[i]; i++)
        f(bk_data_kinds[i]->name, bk_data_kinds[i]->options);
    for (int i = 0; bk_optimizers[i]; i++)
        f(bk_optimizers[i]->name, bk_optimizers[i]->options);
    for (const bk_section *s = bk_config_sections; s->path; s++)
        f(s->path, s->options);
    for (const bk_section *s = bk_model_sections; s->path; s++)
        f(s->path, s->options);
}

static int choices(const char *text)
{
    int count = 1;
    for (; *text; text++)
        count += *text == '|';
    return count;
}

static void check_sane(const char *name, const bk_option *options)
{
    for (const bk_option *o = options; o && o->name; o++) {
        bool number = o->type == BK_OPT_I64 || o->type == BK_OPT_F64 || o->type == BK_OPT_F32;
        bool in = (o->word && o->preset == o->word_value) ||
                  (o->preset <= o->most && o->preset >= o->least &&
                   !(o->open_least && o->preset == o->least));
        if (number && !in)
            fail_msg("%s.%s: the default is out of range", name, o->name);
        if (o->type == BK_OPT_CHOICE && (o->preset < 0 || o->preset >= choices(o->text)))
            fail_msg("%s.%s: the default is no choice", name, o->name);
        if (!o->help || !*o->help || o->help[strlen(o->help) - 1] == '.')
            fail_msg("%s.%s: the help is missing or ends in a full stop", name, o->name);
        for (const bk_option *other = options; other != o; other++)
            if (strcmp(other->name, o->name) == 0)
                fail_msg("%s.%s stands twice", name, o->name);
    }
}

static void tables_are_sane(void **state)
{
    (void)state;
    for_each_table(check_sane);
}

static char *written(const bk_option *options, const void *config)
{
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    bk_options_write(options, config, 0, stream);
    fclose(stream);
    return text;
}

static void check_survives(const char *name, const bk_option *options)
{
    char first[4096] = {0}, second[4096] = {0};
    bk_arena *arena = bk_arena_new("test");
    bk_value *map;
    assert_int_equal(bk_options_read(options, first, NULL, name, arena), BK_OK);
    char *text = written(options, first);
    assert_int_equal(bk_yaml_parse(arena, "written", text, strlen(text), &map), BK_OK);
    if (bk_options_read(options, second, map, name, arena) != BK_OK)
        fail_msg("%s: %s\n%s", name, bk_status_text(), text);
    char *again = written(options, second);
    assert_string_equal(again, text);
    free(text);
    free(again);
    bk_arena_free(arena);
}

static void tables_survive(void **state)
{
    (void)state;
    for_each_table(check_survives);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_table),      cmocka_unit_test(json_table),
        cmocka_unit_test(arguments),       cmocka_unit_test(bad_arguments),
        cmocka_unit_test(tables_are_sane), cmocka_unit_test(tables_survive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
