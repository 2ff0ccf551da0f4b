/* Failures carry a text and a trail; asserts and fatal errors leave through the abort hook. */
#include "tests/support/check.h"
#include "tests/support/child.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static void a_failure_has_a_text(void **state)
{
    (void)state;
    assert_int_equal(bk_fail(BK_INPUT, "%s is truncated (%s:%d): copy it again", "a.h5", "a", 7),
                     BK_INPUT);
    assert_string_equal(bk_status_text(), "a.h5 is truncated (a:7): copy it again");
    assert_string_equal(bk_status_trail(), "");
}

static void the_former_text_may_be_an_argument(void **state)
{
    (void)state;
    assert_int_equal(bk_fail(BK_USAGE, "first"), BK_USAGE);
    assert_int_equal(bk_fail(BK_FAULT, "then: %s", bk_status_text()), BK_FAULT);
    assert_string_equal(bk_status_text(), "then: first");
}

/* A key of a file may hold a line end or steer the terminal; a letter beyond ASCII is none. */
static void a_text_is_plain(void **state)
{
    (void)state;
    assert_int_equal(bk_fail(BK_INPUT, "key '%s'", "a\n\033[2J\tb\177\xc3\xa9"), BK_INPUT);
    assert_string_equal(bk_status_text(), "key 'a??[2J?b?\xc3\xa9'");
    char lines[] = "a\n\tb\033[2J\r";
    bk_plain_lines(lines);
    assert_string_equal(lines, "a\n\tb?[2J?");
}

static void the_trail_grows_from_inside_out(void **state)
{
    (void)state;
    bk_status status = bk_fail(BK_INPUT, "what");
    assert_int_equal(bk_within(status, "in shard %d", 3), BK_INPUT);
    assert_int_equal(bk_within(status, "while loading %s", "runs/a"), BK_INPUT);
    assert_string_equal(bk_status_trail(), "in shard 3\nwhile loading runs/a");
    assert_int_equal(bk_within(BK_OK, "nothing happened"), BK_OK);
    assert_string_equal(bk_status_trail(), "in shard 3\nwhile loading runs/a");
    assert_int_equal(bk_fail(BK_USAGE, "new"), BK_USAGE);
    assert_string_equal(bk_status_trail(), "");
}

static void long_texts_are_cut(void **state)
{
    char word[5000];
    (void)state;
    memset(word, 'x', sizeof word - 1);
    word[sizeof word - 1] = '\0';
    bk_status status = bk_fail(BK_INPUT, "%s", word);
    assert_in_range(strlen(bk_status_text()), 1000, sizeof word - 2);
    for (int i = 0; i < 20; i++)
        assert_int_equal(bk_within(status, "%s", word + 4000), BK_INPUT);
    assert_in_range(strlen(bk_status_trail()), 1000, sizeof word);
}

static void agreement_replaces_the_text(void **state)
{
    (void)state;
    assert_int_equal(bk_within(bk_fail(BK_INPUT, "own"), "own trail"), BK_INPUT);
    bk_status_set_text("that of rank 3");
    assert_string_equal(bk_status_text(), "that of rank 3");
    assert_string_equal(bk_status_trail(), "");
}

static bk_status twice(bk_status first, int *calls)
{
    BK_TRY(first);
    ++*calls;
    return BK_OK;
}

static void try_leaves_at_the_first_failure(void **state)
{
    int calls = 0;
    (void)state;
    assert_int_equal(twice(BK_INPUT, &calls), BK_INPUT);
    assert_int_equal(twice(BK_OK, &calls), BK_OK);
    assert_int_equal(calls, 1);
}

static void *other_thread(void *seen)
{
    strcpy(seen, bk_status_text());
    if (bk_fail(BK_FAULT, "of the other thread") != BK_FAULT)
        abort();
    return NULL;
}

static void texts_belong_to_a_thread(void **state)
{
    char seen[4096] = "?";
    pthread_t thread;
    (void)state;
    assert_int_equal(bk_fail(BK_USAGE, "own"), BK_USAGE);
    assert_int_equal(pthread_create(&thread, NULL, other_thread, seen), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_string_equal(seen, "");
    assert_string_equal(bk_status_text(), "own");
}

/* ---- ways to give up ---- */

static void fatal(void *context)
{
    (void)context;
    bk_fatal("MPI is broken: %d", 5);
}

static void fatal_with_a_trail(void *context)
{
    if (bk_within(bk_fail(BK_FAULT, "x"), "in bucket 5") == BK_FAULT)
        fatal(context);
}

static void broken(void *context)
{
    int x = *(int *)context;
    BK_ASSERT(x > 3, "x is %d", x);
}

static void no_hook(void *context)
{
    bk_set_abort(NULL);
    signal(SIGABRT, SIG_DFL);
    fatal(context);
}

static void the_end_goes_through_the_hook(void **state)
{
    char said[1024];
    int wrong = 2, right = 4;
    (void)state;
    bk_test_dies(fatal, NULL, "birkhoff: fatal: MPI is broken: 5\n");
    bk_test_dies(fatal_with_a_trail, NULL, "MPI is broken: 5\nin bucket 5\n");
    bk_test_dies(broken, &wrong, "test_status.c");
    bk_test_dies(broken, &wrong, "x > 3: x is 2");
    assert_int_equal(bk_test_child(broken, &right, said, sizeof said), 0);
    assert_string_equal(said, "");
    assert_int_equal(bk_test_child(no_hook, NULL, said, sizeof said), 128 + SIGABRT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failure_has_a_text),
        cmocka_unit_test(the_former_text_may_be_an_argument),
        cmocka_unit_test(a_text_is_plain),
        cmocka_unit_test(the_trail_grows_from_inside_out),
        cmocka_unit_test(long_texts_are_cut),
        cmocka_unit_test(agreement_replaces_the_text),
        cmocka_unit_test(try_leaves_at_the_first_failure),
        cmocka_unit_test(texts_belong_to_a_thread),
        cmocka_unit_test(the_end_goes_through_the_hook),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
