/* test: labels=unit,mpi,io ranks=1,2 timeout=300 */
/* 200 saves of one process (fewer of two), in turn beside it and not, and a look at the newest now
 * and then: memory, files, objects of HDF5, threads and the directory do not grow. */
#include "dist/collective.h"
#include "io/checkpoint.h"
#include "io/files.h"
#include "tests/support/check.h"
#include "tests/support/checkpoint.h"
#include "tests/support/files.h"
#include "tests/support/some_ranks.h"

#include <hdf5.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The first saves fill caches.  HEAP: growth of an ordinary STRIDE of saves, of which each leaves
 * 400 bytes in HDF5; MPI may take a pool of 60 KiB in any one of them, a leak grows in all.  SPACE:
 * an arena kept by each would take 10 GiB. */
enum { SAVES = 200, FIRST = 40, STRIDE = 10, HEAP = STRIDE << 11, SPACE = 512 << 20 };

static bk_arena *arena;
static bk_comm *comm;
static char directory[4096];

static int begin(void **state)
{
    int failed = bk_mpi_rank() == 0 ? bk_test_directory_make_in_memory(state) : 0;
    if (bk_mpi_rank() == 0)
        snprintf(directory, sizeof directory, "%s", bk_test_path("x"));
    bk_test_broadcast(directory, sizeof directory);
    *strrchr(directory, '/') = '\0';
    comm = bk_test_comm_open(arena, bk_mpi_size());
    return failed;
}

static int end(void **state)
{
    bk_test_comm_close(comm);
    bk_test_barrier();
    return bk_mpi_rank() == 0 ? bk_test_directory_remove(state) : 0;
}

/* ---- what may not grow ---- */

typedef struct figures {
    int64_t heap, space; /* bytes in use; of the address space */
    int64_t files, threads, objects;
} figures;

static int64_t entries_of(const char *path)
{
    bk_arena *scratch = bk_arena_new("entries");
    int64_t count = 0;
    for (char **names = bk_list_directory(scratch, path); *names; names++)
        count++;
    bk_arena_free(scratch);
    return count;
}

static int64_t address_space(void)
{
    long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_true(file && fscanf(file, "%lld", &pages) == 1);
    fclose(file);
    return 4096 * pages;
}

static figures measure(void)
{
    H5garbage_collect();
    struct mallinfo2 heap = mallinfo2();
    return (figures){.heap = (int64_t)(heap.uordblks + heap.hblkhd),
                     .space = address_space(),
                     .files = entries_of("/proc/self/fd"),
                     .threads = entries_of("/proc/self/task"),
                     .objects = H5Fget_obj_count(H5F_OBJ_ALL, H5F_OBJ_ALL)};
}

/* ---- saves ---- */

static void save(bk_saver *beside, int64_t step)
{
    bk_arena *scratch = bk_arena_new("save");
    bk_save_options options = bk_test_options(bk_comm_size(comm));
    if (step % 2 == 0) {
        bk_test_save(comm, scratch, directory, step, (int)step, &options);
    } else {
        bk_piece list[BK_TEST_TENSORS];
        bk_run_state state = bk_test_state(step);
        bk_saved saved;
        int64_t count =
            bk_test_pieces(scratch, bk_comm_rank(comm), bk_comm_size(comm), (int)step, list);
        assert_int_equal(bk_saver_begin(beside, list, count, &state, &options), BK_OK);
        assert_int_equal(bk_saver_finish(beside, &saved), BK_OK);
    }
    bk_arena_free(scratch);
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* The median of what `count` figures add to the one before each. */
static int64_t ordinary_growth(int64_t count, const int64_t *heap)
{
    int64_t growth[SAVES / STRIDE];
    for (int64_t i = 1; i < count; i++)
        growth[i - 1] = heap[i] - heap[i - 1];
    qsort(growth, (size_t)(count - 1), sizeof *growth, by_size);
    return growth[(count - 1) / 2];
}

static void nothing_grows(void **state)
{
    (void)state;
    bk_saver *beside = bk_saver_new(comm, directory, true);
    int64_t heap[SAVES / STRIDE], count = 0;
    figures before = {0};
    const int64_t saves = SAVES / bk_mpi_size();
    for (int64_t step = 1; step <= saves; step++) {
        save(beside, step);
        if (step % 20 == 0)
            bk_test_check_newest(comm, directory, step, (int)step);
        if (step == FIRST)
            before = measure();
        if (step >= FIRST && step % STRIDE == 0)
            heap[count++] = measure().heap;
    }
    figures after = measure();
    bk_saver_free(beside);
    assert_true(ordinary_growth(count, heap) < HEAP);
    assert_true(after.space - before.space < SPACE);
    assert_int_equal(after.files, before.files);
    assert_int_equal(after.threads, before.threads);
    assert_int_equal(after.objects, 0);
    bk_test_barrier();
    assert_int_equal(entries_of(directory), 3 + 1); /* and `latest` */
    bk_test_barrier();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_grows)};
    arena = bk_arena_new("test");
    return bk_test_run_ranks(argc, argv, tests, begin, end);
}
