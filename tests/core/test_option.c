/* Option tables: types, ranges, choices, names, and the way back to text. */
#include "core/option.h"

#include "io/yaml.h"
#include "tests/support/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct sample_config {
    int64_t iterations;
    double rate, temperature;
    float scale;
    bool tied;
    int form;
    const char *title, *note;
} sample_config;

static const bk_option options[] = {
    BK_OPTION_I64(sample_config, iterations, 20, 1, 10000, "sweeps"),
    BK_OPTION_F64(sample_config, rate, 3e-4, 0.0, 1.0, "share"),
    BK_OPTION_F64_ABOVE(sample_config, temperature, 1.0, 0.0, 100.0, "divides the logits"),
    BK_OPTION_F32(sample_config, scale, 0.1, -2.0, 2.0, "factor"),
    BK_OPTION_BOOL(sample_config, tied, true, "one table"),
    BK_OPTION_CHOICE(sample_config, form, 1, "none|switch|sequence", "of the loss"),
    BK_OPTION_TEXT(sample_config, title, "plain", "of the run"),
    BK_OPTION_TEXT(sample_config, note, NULL, "free text"),
    BK_OPTION_END,
};

static bk_arena *arena;

static int make(void **state)
{
    (void)state;
    arena = bk_arena_new("options");
    return 0;
}

static int unmake(void **state)
{
    (void)state;
    bk_arena_free(arena);
    return 0;
}

static bk_value *parse(const char *text)
{
    bk_value *root;
    assert_int_equal(bk_yaml_parse(arena, "a.yaml", text, strlen(text), &root), BK_OK);
    return root;
}

static sample_config read_good(const char *text)
{
    sample_config c;
    memset(&c, 0xff, sizeof c);
    bk_status status = bk_options_read(options, &c, parse(text), "part", arena);
    if (status != BK_OK)
        fail_msg("%s: %s", text, bk_status_text());
    return c;
}

/* The text is refused, and the message holds each of the words (NULL-ended). */
static void refuse(const char *text, const char *const *words)
{
    sample_config c;
    assert_int_equal(bk_options_read(options, &c, parse(text), "part", arena), BK_USAGE);
    for (; *words; words++)
        if (!strstr(bk_status_text(), *words))
            fail_msg("no '%s' in: %s", *words, bk_status_text());
}
#define REFUSE(text, ...) refuse(text, (const char *const[]){__VA_ARGS__, NULL})

static void check_defaults(const sample_config *c)
{
    assert_int_equal(c->iterations, 20);
    assert_true(c->rate == 3e-4 && c->temperature == 1.0 && c->scale == 0.1f);
    assert_true(c->tied);
    assert_int_equal(c->form, 1);
    assert_string_equal(c->title, "plain");
    assert_null(c->note);
}

static void what_is_absent_has_its_default(void **state)
{
    sample_config c;
    (void)state;
    memset(&c, 0xff, sizeof c);
    assert_int_equal(bk_options_read(options, &c, NULL, "part", arena), BK_OK);
    check_defaults(&c);
    c = read_good("");
    check_defaults(&c);
}

static void every_type_is_read(void **state)
{
    (void)state;
    sample_config c = read_good("iterations: 1e3\nrate: .5\ntemperature: 1e-9\nscale: -2\n"
                                "tied: False\nform: sequence\ntitle: \"12\"\nnote: true\n");
    assert_int_equal(c.iterations, 1000);
    assert_true(c.rate == 0.5 && c.temperature == 1e-9 && c.scale == -2.0f);
    assert_false(c.tied);
    assert_int_equal(c.form, 2);
    assert_string_equal(c.title, "12");
    assert_string_equal(c.note, "true");
}

static void ends_of_ranges(void **state)
{
    (void)state;
    assert_int_equal(read_good("iterations: 1").iterations, 1);
    assert_int_equal(read_good("iterations: 10000").iterations, 10000);
    assert_true(read_good("rate: 0").rate == 0.0 && read_good("rate: 1").rate == 1.0);
    assert_true(read_good("temperature: 100").temperature == 100.0);
    REFUSE("iterations: 0", "part.iterations=0", "[1, 10000]", "a.yaml:1");
    REFUSE("rate: 0.5\niterations: 10001", "10001", "a.yaml:2");
    REFUSE("rate: -1e-300", "out of range");
    REFUSE("rate: 1.0000000001", "out of range");
    REFUSE("temperature: 0", "part.temperature=0", "(0, 100]");
    REFUSE("temperature: -1", "(0, 100]");
}

static void wrong_types(void **state)
{
    (void)state;
    REFUSE("iterations: many", "part.iterations", "many", "an integer", "sweeps");
    REFUSE("iterations: 2.5", "2.5", "an integer");
    REFUSE("iterations: \"7\"", "7", "an integer");
    REFUSE("iterations: true", "an integer");
    REFUSE("iterations: ", "an integer");
    REFUSE("rate: x", "a number");
    REFUSE("rate: nan", "a number");
    REFUSE("rate: .inf", "a number");
    REFUSE("rate: 0x1p-2", "a number");
    REFUSE("rate: [1, 2]", "a list", "a number");
    REFUSE("rate: {a: 1}", "a mapping", "a number");
    REFUSE("tied: yes", "yes", "true or false");
    REFUSE("tied: 1", "true or false");
    REFUSE("tied: \"true\"", "true or false");
    REFUSE("title: [a]", "a list", "text");
}

static void choices_name_the_nearest(void **state)
{
    (void)state;
    assert_int_equal(read_good("form: none").form, 0);
    assert_int_equal(read_good("form: \"switch\"").form, 1);
    REFUSE("form: swich", "part.form=swich", "none|switch|sequence", "did you mean switch");
    REFUSE("form: none|switch", "not one of");
    REFUSE("form: \"\"", "not one of");
    REFUSE("form: 1", "not one of");
}

static void a_section_must_be_a_mapping(void **state)
{
    (void)state;
    sample_config c;
    bk_value *root = parse("number: 5\nlist: [1, 2]");
    assert_int_equal(bk_options_read(options, &c, bk_value_get(root, "number"), "number", arena),
                     BK_USAGE);
    assert_non_null(strstr(bk_status_text(), "number is 5, not a mapping (a.yaml:1)"));
    assert_int_equal(bk_options_read(options, &c, bk_value_get(root, "list"), "list", arena),
                     BK_USAGE);
    assert_non_null(strstr(bk_status_text(), "list is a list, not a mapping (a.yaml:2)"));
}

static void scalars(void **state)
{
    double x;
    int64_t n;
    bool b;
    (void)state;
    const char *const good[] = {"12", "-3", "+4", "1e6", "2.0", "9000000000000000"};
    const int64_t value[] = {12, -3, 4, 1000000, 2, 9000000000000000};
    for (int i = 0; i < 6; i++)
        assert_true(bk_parse_i64(good[i], &n) && n == value[i]);
    assert_true(bk_parse_i64("9223372036854775807", &n) && n == INT64_MAX);
    const char *const bad[] = {
        "",     " 1",  "1 ", "1x",  "x",   "0x10", "1.5", "9223372036854775808",
        "1e30", "--1", "1e", "nan", "inf", "."};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(bk_parse_i64(bad[i], &n));
    assert_true(bk_parse_f64("-1.5e-3", &x) && x == -1.5e-3);
    assert_true(bk_parse_f64("1e-400", &x) && x == 0.0);
    const char *const wrong[] = {"", " 1", "1 ", "1e400", "nan", "inf", "-Infinity", "0x1", "1,5"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_false(bk_parse_f64(wrong[i], &x));
    assert_true(bk_parse_bool("true", &b) && b);
    assert_true(bk_parse_bool("FALSE", &b) && !b);
    assert_false(bk_parse_bool("tRue", &b));
}

/* ---- names ---- */

static void the_nearest_name(void **state)
{
    const char *const names[] = {"sinkhorn", "ssr", "topk", NULL};
    (void)state;
    assert_string_equal(bk_nearest("sinkhorn", names), "sinkhorn");
    assert_string_equal(bk_nearest("sinkorn", names), "sinkhorn");
    assert_string_equal(bk_nearest("srr", names), "ssr");
    assert_string_equal(bk_nearest("top_k", names), "topk");
    assert_null(bk_nearest("quadratic", names));
    assert_null(bk_nearest("topk", (const char *const[]){NULL}));
    char word[300]; /* longer than any name */
    memset(word, 'a', sizeof word - 1);
    word[sizeof word - 1] = '\0';
    assert_null(bk_nearest(word, names));
}

static const bk_option more_options[] = {
    BK_OPTION_I64(sample_config, iterations, 1, 1, 2, "the same name in another table"),
    {.name = "beta", .type = BK_OPT_F64, .most = 1.0, .help = "decay"},
    BK_OPTION_END,
};

static void unknown_keys_are_found(void **state)
{
    const bk_option *const tables[] = {options, more_options, NULL};
    const char *const more[] = {"kind", NULL};
    sample_config c;
    (void)state;
    bk_value *map = parse("kind: x\nbeta: 0.5\nrate: 0.1\n");
    assert_int_equal(bk_options_unknown(map, "part", tables, more), BK_OK);
    assert_int_equal(bk_options_unknown(map, "part", tables, NULL), BK_USAGE);
    assert_non_null(strstr(bk_status_text(), "unknown key part.kind (a.yaml:1)"));
    map = parse("rate: 0.1\nitertions: 3\n");
    assert_int_equal(bk_options_unknown(map, "part", tables, more), BK_USAGE);
    assert_non_null(
        strstr(bk_status_text(), "part.itertions (a.yaml:2): did you mean iterations?"));
    map = parse("zzzzzzzzzz: 1");
    assert_int_equal(bk_options_unknown(map, "", tables, more), BK_USAGE);
    assert_string_equal(bk_status_text(),
                        "unknown key zzzzzzzzzz (a.yaml:1): birkhoff kinds lists the keys");
    map = parse("rate: 0.5"); /* a key that some table read is known */
    assert_int_equal(bk_options_read(options, &c, map, "part", arena), BK_OK);
    assert_true(bk_value_get(map, "rate")->used);
    const bk_option *const none[] = {NULL};
    assert_int_equal(bk_options_unknown(map, "part", none, NULL), BK_OK);
}

/* ---- and back ---- */

static char *written(const sample_config *c, int indent)
{
    char *text;
    size_t size;
    FILE *file = open_memstream(&text, &size);
    assert_non_null(file);
    bk_options_write(options, c, indent, file);
    fclose(file);
    char *copy = bk_arena_strdup(arena, text);
    free(text);
    return copy;
}

static void values_are_written_short(void **state)
{
    sample_config c = read_good("rate: 0.1\nscale: 0.1\nform: none\nnote: 'say \"hi\" \\ '\n");
    (void)state;
    assert_string_equal(written(&c, 2), "  iterations: 20\n  rate: 0.1\n  temperature: 1\n"
                                        "  scale: 0.1\n  tied: true\n  form: none\n"
                                        "  title: \"plain\"\n  note: \"say \\\"hi\\\" \\\\ \"\n");
}

static void what_is_written_reads_as_the_same(void **state)
{
    const double numbers[] = {0.1, 1.0 / 3.0, 2.2250738585072014e-308, 5e-324, 0.99999999999999989};
    const char *const texts[] = {"",         "a: b # c", "\"quoted\"\\", "two\nlines\tand a tab",
                                 "null",     "\x01",     "- {x",         "\xc3\xa9t\xc3\xa9",
                                 " spaces ", "it's"};
    (void)state;
    for (int i = 0; i < 10; i++) {
        sample_config c = read_good("");
        c.iterations = 1 + i;
        c.rate = numbers[i % 5];
        c.temperature = 100.0 * numbers[i % 5];
        c.scale = (float)(2.0 * numbers[i % 5]);
        c.tied = i % 2;
        c.form = i % 3;
        c.title = texts[i];
        sample_config again = read_good(written(&c, 0));
        assert_int_equal(again.iterations, c.iterations);
        assert_true(again.rate == c.rate && again.temperature == c.temperature);
        assert_true(again.scale == c.scale && again.tied == c.tied && again.form == c.form);
        assert_string_equal(again.title, c.title);
        assert_null(again.note);
    }
}

/* NaN stands for auto: by default, when it is written, and on the way back to text. */
static void auto_is_a_value(void **state)
{
    static const bk_option table[] = {
        BK_OPTION_F64_AUTO(sample_config, rate, 0.0, 1.0, true, "share; auto: as is best"),
        BK_OPTION_END,
    };
    sample_config c;
    char *text = NULL;
    size_t length;
    (void)state;
    const char *const given[] = {"{}", "{rate: auto}", "{rate: 0.5}"};
    const char *const written[] = {"rate: auto\n", "rate: auto\n", "rate: 0.5\n"};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(bk_options_read(table, &c, parse(given[i]), "part", arena), BK_OK);
        FILE *file = open_memstream(&text, &length);
        bk_options_write(table, &c, 0, file);
        fclose(file);
        assert_string_equal(text, written[i]);
        free(text);
    }
    assert_int_equal(bk_options_read(table, &c, parse("{rate: 0}"), "part", arena), BK_USAGE);
    assert_int_equal(bk_options_read(table, &c, parse("{rate: often}"), "part", arena), BK_USAGE);
    assert_int_equal(bk_options_read(options, &c, parse("{rate: auto}"), "part", arena), BK_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(auto_is_a_value),
        cmocka_unit_test(what_is_absent_has_its_default),
        cmocka_unit_test(every_type_is_read),
        cmocka_unit_test(ends_of_ranges),
        cmocka_unit_test(wrong_types),
        cmocka_unit_test(choices_name_the_nearest),
        cmocka_unit_test(a_section_must_be_a_mapping),
        cmocka_unit_test(scalars),
        cmocka_unit_test(the_nearest_name),
        cmocka_unit_test(unknown_keys_are_found),
        cmocka_unit_test(values_are_written_short),
        cmocka_unit_test(what_is_written_reads_as_the_same),
    };
    return cmocka_run_group_tests(tests, make, unmake);
}
