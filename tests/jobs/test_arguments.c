/* test: labels=unit timeout=60 */
/* The command line as words: what is taken, what is refused, and with which text. */
#include "tests/support/check.h"

#include "jobs/arguments.h"

#include <stdlib.h>
#include <string.h>

enum { WORDS = 16 };

/* "train a.yaml optim.lr=1" parsed; a word "''" is empty. */
static bk_status parse(bk_arena *arena, const char *line, bk_call *call)
{
    char *words[WORDS + 1] = {"birkhoff"}, *rest = NULL;
    int count = 1;
    char *text = bk_arena_strdup(arena, line);
    for (char *word = strtok_r(text, " ", &rest); word && count < WORDS;
         word = strtok_r(NULL, " ", &rest))
        words[count++] = strcmp(word, "''") == 0 ? "" : word;
    return bk_arguments_parse(arena, count, words, call);
}

static void good_lines(void **state)
{
    (void)state;
    bk_arena *arena = bk_arena_new("test");
    bk_call call;
    const char *line = "-q train --dry-run a.yaml optim.lr=3e-4 --no-color model.layers=2 "
                       "loss.0.weight=a=b data.train=";
    assert_int_equal(parse(arena, line, &call), BK_OK);
    const bk_context *c = &call.context;
    assert_string_equal(call.command->name, "train");
    assert_true(c->quiet && c->dry_run && call.no_color);
    assert_false(c->json || c->help || call.version);
    assert_int_equal(c->argc, 1);
    assert_string_equal(c->argv[0], "a.yaml");
    assert_int_equal(c->overrides, 4);
    assert_string_equal(c->override[0].path, "optim.lr");
    assert_string_equal(c->override[0].text, "3e-4");
    assert_string_equal(c->override[2].text, "a=b");
    assert_string_equal(c->override[3].text, "");
    bk_arena_free(arena);
}

/* Words behind -- are plain; a path with a slash before = is no override; - is a word. */
static void plain_words(void **state)
{
    (void)state;
    bk_arena *arena = bk_arena_new("test");
    bk_call call;
    assert_int_equal(parse(arena, "data lines dir/a=b.txt - -- --json -x out.h5", &call), BK_OK);
    assert_int_equal(call.context.overrides, 0);
    assert_int_equal(call.context.argc, 6);
    assert_string_equal(call.context.argv[1], "dir/a=b.txt");
    assert_string_equal(call.context.argv[3], "--json");
    assert_null(call.context.argv[6]);
    bk_arena_free(arena);
}

static void pages(void **state)
{
    (void)state;
    bk_arena *arena = bk_arena_new("test");
    bk_call call;
    assert_int_equal(parse(arena, "--version", &call), BK_OK);
    assert_true(call.version && !call.command);
    assert_int_equal(parse(arena, "-V", &call), BK_OK);
    assert_true(call.version);
    assert_int_equal(parse(arena, "train -h", &call), BK_OK);
    assert_true(call.context.help);
    assert_string_equal(call.command->name, "train");
    assert_int_equal(parse(arena, "--help", &call), BK_OK);
    assert_true(call.context.help && !call.command);
    bk_arena_free(arena);
}

static const char *const refused[][2] = {
    {"", "no command is given"},
    {"trian a.yaml", "unknown command 'trian' (did you mean train?)"},
    {"zzzzzzzz", "unknown command 'zzzzzzzz': birkhoff help"},
    {"''", "unknown command ''"},
    {"kinds --jsn", "unknown option --jsn of kinds (did you mean --json?)"},
    {"--jsn kinds", "unknown option --jsn"},
    {"--no-colour kinds", "did you mean --no-color?"},
    {"-x kinds", "unknown option -x"},
    {"train --json a.yaml", "unknown option --json of train: birkhoff help train"},
    {"--json train a.yaml", "unknown option --json of train"},
    {"kinds --dry-run", "unknown option --dry-run of kinds"},
    {"--json", "unknown option --json"},
    {"kinds --json=1", "--json takes no value"},
    {"kinds --json --json", "--json is given twice"},
    {"kinds -q --quiet", "--quiet is given twice"},
    {"train a.yaml optim.lr=1 optim.lr=2", "optim.lr is given twice on the command line"},
    {"kinds optim.lr=1", "optim.lr=1 is not read by kinds"},
    {"optim.lr=1", "optim.lr=1 is not read by birkhoff"},
};

static void bad_lines(void **state)
{
    (void)state;
    bk_arena *arena = bk_arena_new("test");
    bk_call call;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        assert_int_equal(parse(arena, refused[i][0], &call), BK_USAGE);
        if (!strstr(bk_status_text(), refused[i][1]))
            fail_msg("'%s': %s", refused[i][0], bk_status_text());
    }
    bk_arena_free(arena);
}

static void usage_is_the_rule(void **state)
{
    (void)state;
    const bk_command c = {.name = "x", .usage = "x --in FILE [--json-lines] [key=value ...]"};
    assert_true(bk_command_takes(&c, "--in"));
    assert_true(bk_command_takes(&c, "key=value"));
    assert_true(bk_command_takes(&c, "--json-lines"));
    assert_false(bk_command_takes(&c, "--json"));
    assert_false(bk_command_takes(&c, "--i"));
}

/* Every command of the table is found by its name, which begins its usage. */
static void table(void **state)
{
    (void)state;
    for (int i = 0; bk_commands[i]; i++) {
        const bk_command *c = bk_commands[i];
        assert_ptr_equal(bk_command_find(c->name), c);
        assert_int_equal(strncmp(c->usage, c->name, strlen(c->name)), 0);
        assert_non_null(c->run);
        assert_true(c->summary && *c->summary && c->summary[strlen(c->summary) - 1] != '.');
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_lines), cmocka_unit_test(plain_words),       cmocka_unit_test(pages),
        cmocka_unit_test(bad_lines),  cmocka_unit_test(usage_is_the_rule), cmocka_unit_test(table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
