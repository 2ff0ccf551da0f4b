/* tests/support/some_ranks.h - communicators over the first ranks of a test program. */
#ifndef BK_TESTS_SUPPORT_SOME_RANKS_H
#define BK_TESTS_SUPPORT_SOME_RANKS_H

#include "dist/comm.h"

/* Collective over all ranks.  The first `count` ranks get a communicator, the others NULL. */
bk_comm *bk_test_comm_open(bk_arena *arena, int count);
void bk_test_comm_close(bk_comm *comm); /* NULL is fine */

/* Collective over all ranks. */
void bk_test_barrier(void);
/* Collective over all ranks: rank 0's bytes to all. */
void bk_test_broadcast(void *data, size_t bytes);

/* cmocka's runner under MPI: starts and stops it; ranks other than 0 print failures only. */
#define bk_test_run_ranks(argc, argv, tests, setup, teardown) \
    (bk_mpi_start(&(argc), &(argv)) != BK_OK                  \
         ? 1                                                  \
         : bk_test_stop(cmocka_run_group_tests((tests), (setup), (teardown))))
int bk_test_stop(int failed);

#endif
