/* tests/support/ranks.h - threads in the part of ranks, with a reducer between them: what core does
 * through its hooks is tested without MPI. */
#ifndef BK_TESTS_SUPPORT_RANKS_H
#define BK_TESTS_SUPPORT_RANKS_H

#include "core/hooks.h"

enum { BK_TEST_RANKS = 8 };

/* Runs body(context, rank, size, reducer) on `size` threads at once (at most BK_TEST_RANKS); the
 * reducer sums by lane tree, in integers, and takes maxima over them. */
void bk_test_ranks(int size,
                   void (*body)(void *context, int rank, int size, const bk_reducer *reducer),
                   void *context);

#endif
