/* tests/support/threads.h - threads in the part of ranks, with a reducer between them: what core
 * does through its hooks is tested without MPI. */
#ifndef BK_TESTS_SUPPORT_THREADS_H
#define BK_TESTS_SUPPORT_THREADS_H

#include "core/hooks.h"

enum { BK_TEST_THREADS = 8 };

/* Runs body(context, rank, size, reducer) on `size` threads at once (at most BK_TEST_THREADS); the
 * reducer sums by lane tree, in integers, and takes maxima over them. */
void bk_test_threads(int size,
                     void (*body)(void *context, int rank, int size, const bk_reducer *reducer),
                     void *context);

#endif
