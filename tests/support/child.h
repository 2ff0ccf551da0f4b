/* tests/support/child.h - code that is meant to die runs in a child process. */
#ifndef BK_TESTS_SUPPORT_CHILD_H
#define BK_TESTS_SUPPORT_CHILD_H

#include <stddef.h>

/* Runs body(context) in a forked child whose abort hook leaves with the given exit code.  Returns
 * the exit status (0 when body came back, 128 + signal when it was killed); `said` receives the
 * start of what it wrote to stderr. */
int bk_test_child(void (*body)(void *context), void *context, char *said, size_t size);

/* Fails unless body ends in BK_ASSERT or bk_fatal with `text` in the message. */
void bk_test_dies(void (*body)(void *context), void *context, const char *text);

#endif
