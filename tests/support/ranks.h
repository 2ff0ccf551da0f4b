/* tests/support/ranks.h - test programs that run on one or more ranks. */
#ifndef BK_TESTS_SUPPORT_RANKS_H
#define BK_TESTS_SUPPORT_RANKS_H

#include "dist/comm.h"

/* Collective.  Starts MPI and one BLAS thread.  A check that fails ends the whole job: the other
 * ranks would wait for this one for ever. */
void bk_test_ranks_start(int *argc, char ***argv);
/* Collective.  Ends MPI; returns `failed`, the result of the group of tests. */
int bk_test_ranks_stop(int failed);

/* Collective.  The communicators of all ranks, expert-parallel degree 1; made at the first call. */
bk_world *bk_test_world(void);

/* The same by expert-parallel degree; NULL where it does not divide the ranks. */
enum { BK_TEST_DEGREES = 5 };
extern bk_world *bk_test_worlds[BK_TEST_DEGREES];
/* Collective.  Makes them; bk_test_ranks_stop closes them. */
void bk_test_worlds_open(void);

#endif
