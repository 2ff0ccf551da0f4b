/* What goes to stderr, from whom, and when it is silent. */
#include "core/log.h"

#include "tests/support/check.h"
#include "tests/support/child.h"

typedef struct setting {
    bk_log_level level;
    bool speaks, color;
} setting;

static void say_all(void *context)
{
    const setting *s = context;
    bool done = false;
    bk_log_setup(s->level, s->speaks, s->color);
    bk_note("step %d", 3);
    bk_warn("slow %s", "link");
    bk_error_line("lost (a:1): look");
    for (int i = 0; i < 3; i++)
        bk_warn_once(&done, "once, at %d", i);
}

static void check(setting s, const char *expected)
{
    char said[1024];
    assert_int_equal(bk_test_child(say_all, &s, said, sizeof said), 0);
    assert_string_equal(said, expected);
}

static void lines(void **state)
{
    (void)state;
    const char *rest = "birkhoff: warning: slow link\nbirkhoff: error: lost (a:1): look\n"
                       "birkhoff: warning: once, at 0\n";
    char all[256];
    snprintf(all, sizeof all, "birkhoff: step 3\n%s", rest);
    check((setting){BK_LOG_NORMAL, true, false}, all);
    check((setting){BK_LOG_VERBOSE, true, false}, all);
    check((setting){BK_LOG_QUIET, true, false}, rest);
    check((setting){BK_LOG_VERBOSE, false, false}, "");
    check((setting){BK_LOG_NORMAL, true, true},
          "birkhoff: step 3\nbirkhoff: \033[33mwarning: \033[0mslow link\n"
          "birkhoff: \033[31merror: \033[0mlost (a:1): look\n"
          "birkhoff: \033[33mwarning: \033[0monce, at 0\n");
}

static void only_a_speaker_says_that_it_speaks(void **state)
{
    (void)state;
    assert_true(bk_log_speaks());
    bk_log_setup(BK_LOG_NORMAL, false, false);
    assert_false(bk_log_speaks());
    bk_log_setup(BK_LOG_NORMAL, true, false);
}

static void seconds_never_go_back(void **state)
{
    (void)state;
    double before = bk_seconds();
    for (int i = 0; i < 1000; i++) {
        double now = bk_seconds();
        assert_true(now >= before);
        before = now;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines),
        cmocka_unit_test(only_a_speaker_says_that_it_speaks),
        cmocka_unit_test(seconds_never_go_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
