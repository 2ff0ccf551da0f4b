#include "tests/support/child.h"

#include "tests/support/check.h"

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static _Noreturn void leave(int exit_code)
{
    _exit(exit_code);
}

static _Noreturn void run(void (*body)(void *), void *context, int output)
{
    dup2(output, STDERR_FILENO);
    bk_set_abort(leave);
    body(context);
    fflush(NULL);
    _exit(0);
}

int bk_test_child(void (*body)(void *), void *context, char *said, size_t size)
{
    int ends[2], status;
    size_t used = 0;
    char rest[512];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        run(body, context, ends[1]);
    assert_true(child > 0);
    close(ends[1]);
    for (ssize_t n; (n = read(ends[0], rest, sizeof rest)) > 0;)
        for (ssize_t i = 0; i < n && used + 1 < size; i++)
            said[used++] = rest[i];
    said[used] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

void bk_test_dies(void (*body)(void *), void *context, const char *text)
{
    char said[4096];
    int status = bk_test_child(body, context, said, sizeof said);
    if (status != BK_FAULT || !strstr(said, text))
        fail_msg("status %d, not %d, or no '%s' in: %s", status, BK_FAULT, text, said);
}
