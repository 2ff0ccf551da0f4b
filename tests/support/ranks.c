#include "tests/support/ranks.h"

#include "core/blas.h"

#include <stdio.h>
#include <stdlib.h>

static bk_arena *arena; /* of the worlds */
static bk_world *world;
bk_world *bk_test_worlds[BK_TEST_DEGREES];

static void need(bk_status status)
{
    if (status == BK_OK)
        return;
    fprintf(stderr, "%s\n", bk_status_text());
    exit(1);
}

void bk_test_ranks_start(int *argc, char ***argv)
{
    need(bk_mpi_start(argc, argv));
    need(bk_blas_setup(1, BK_GEMM_AUTO));
    arena = bk_arena_new("worlds");
    if (bk_mpi_size() > 1)
        setenv("CMOCKA_TEST_ABORT", "1", 1);
}

int bk_test_ranks_stop(int failed)
{
    if (world)
        bk_world_close(world);
    for (int ep = 1; ep < BK_TEST_DEGREES; ep++)
        if (bk_test_worlds[ep])
            bk_world_close(bk_test_worlds[ep]);
    bk_arena_free(arena);
    bk_mpi_stop();
    return failed;
}

bk_world *bk_test_world(void)
{
    if (!world)
        need(bk_world_open(arena, 1, &world));
    return world;
}

void bk_test_worlds_open(void)
{
    for (int ep = 1; ep < BK_TEST_DEGREES; ep++)
        if (bk_mpi_size() % ep == 0)
            need(bk_world_open(arena, ep, &bk_test_worlds[ep]));
}
