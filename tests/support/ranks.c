#include "tests/support/ranks.h"

#include "core/blas.h"

#include <stdio.h>
#include <stdlib.h>

static bk_arena *arena;
static bk_world *world;

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
    if (bk_mpi_size() > 1)
        setenv("CMOCKA_TEST_ABORT", "1", 1);
}

int bk_test_ranks_stop(int failed)
{
    if (world)
        bk_world_close(world);
    bk_arena_free(arena);
    bk_mpi_stop();
    return failed;
}

bk_world *bk_test_world(void)
{
    if (world)
        return world;
    arena = bk_arena_new("world");
    need(bk_world_open(arena, 1, &world));
    return world;
}
