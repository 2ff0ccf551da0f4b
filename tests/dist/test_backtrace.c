/* SIGUSR2 writes where the work stands and the stack of the main thread, and the work goes on. */
#include "tests/support/check.h"
#include "tests/support/files.h"

#include "dist/backtrace.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void where(int file)
{
    assert_int_equal(write(file, "here\n", 5), 5);
}

static int times(const char *text, char what)
{
    int count = 0;
    for (; *text; text++)
        count += *text == what;
    return count;
}

/* The text since `from`, with a line for the place and one for each of at least three frames. */
static size_t check(const char *path, size_t from)
{
    size_t bytes;
    char *text = bk_test_read(path, &bytes);
    assert_true(bytes > from);
    assert_memory_equal(text + from, "here\n", 5);
    text[bytes - 1] = '\0';
    assert_true(times(text + from, '\n') >= 3);
    assert_non_null(strstr(text + from, "test_backtrace"));
    free(text);
    return bytes;
}

static void a_signal_appends(void **state)
{
    (void)state;
    const char *path = bk_test_path("rank-0.txt");
    bk_backtrace_install(path, where);
    raise(SIGUSR2);
    size_t first = check(path, 0);
    raise(SIGUSR2);
    assert_true(check(path, first) > first);
}

static void *ask(void *asked)
{
    *(bool *)asked = bk_backtrace_ask();
    return NULL;
}

static void *signal_itself(void *unused)
{
    raise(SIGUSR2);
    return unused;
}

/* Whichever thread the signal comes to, the main thread's stack is what counts. */
static void other_threads_ask_the_main_thread(void **state)
{
    (void)state;
    const char *path = bk_test_path("asked.txt");
    pthread_t thread;
    bool asked = false;
    bk_backtrace_install(path, where);
    assert_int_equal(pthread_create(&thread, NULL, ask, &asked), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(asked);
    size_t first = check(path, 0);
    assert_int_equal(pthread_create(&thread, NULL, signal_itself, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    size_t bytes;
    char *text = bk_test_read(path, &bytes);
    assert_non_null(strstr(text + first, "libcmocka")); /* that called the main thread's test */
    free(text);
}

/* A file that cannot be made is no trouble. */
static void an_unwritable_file_is_passed_over(void **state)
{
    (void)state;
    bk_backtrace_install("/dev/null/rank-0.txt", where);
    raise(SIGUSR2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_signal_appends),
        cmocka_unit_test(other_threads_ask_the_main_thread),
        cmocka_unit_test(an_unwritable_file_is_passed_over),
    };
    return cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
}
