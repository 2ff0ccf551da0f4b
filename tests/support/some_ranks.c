#include "tests/support/some_ranks.h"

#include "dist/internal.h"

bk_comm *bk_test_comm_open(bk_arena *arena, int count)
{
    MPI_Comm handle;
    int rank = bk_mpi_rank();
    BK_MPI(MPI_Comm_split(MPI_COMM_WORLD, rank < count ? 0 : MPI_UNDEFINED, rank, &handle));
    if (handle == MPI_COMM_NULL)
        return NULL;
    bk_comm *c = BK_ZNEW(arena, bk_comm, 1);
    *c = (bk_comm){.handle = handle,
                   .rank = rank,
                   .size = count < bk_mpi_size() ? count : bk_mpi_size(),
                   .world_rank = rank,
                   .world_size = bk_mpi_size(),
                   .name = "test",
                   .scratch = bk_arena_new("test")};
    c->reducer = (bk_reducer){.context = c,
                              .sum_vector = bk_reducer_vector,
                              .sum_fixed = bk_reducer_fixed,
                              .max = bk_reducer_max};
    return c;
}

void bk_test_comm_close(bk_comm *comm)
{
    if (!comm)
        return;
    BK_MPI(MPI_Comm_free(&comm->handle));
    bk_arena_free(comm->scratch);
}

void bk_test_barrier(void)
{
    BK_MPI(MPI_Barrier(MPI_COMM_WORLD));
}

void bk_test_broadcast(void *data, size_t bytes)
{
    BK_MPI(MPI_Bcast(data, (int)bytes, MPI_BYTE, 0, MPI_COMM_WORLD));
}

/* A failed test may have left the others waiting: then the job ends at once. */
int bk_test_stop(int failed)
{
    if (failed && bk_mpi_size() > 1)
        MPI_Abort(MPI_COMM_WORLD, 1);
    bk_mpi_stop();
    return failed;
}
