/* test: labels=unit,mpi ranks=1,2 timeout=60 */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "dist/topology.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void values_are_sane(void **state)
{
    bk_topology t;
    char host[64] = "";
    (void)state;
    bk_topology_read(&t);
    gethostname(host, sizeof host - 1);
    assert_string_equal(t.host, host);
    assert_true(t.cores >= 1 && t.threads >= t.cores);
    assert_true(t.bound_cores >= 1 && t.bound_cores <= t.cores);
    assert_true(t.bound_threads >= t.bound_cores && t.bound_threads <= t.threads);
    assert_true(t.packages >= 0 && t.packages <= t.cores && t.numa >= 0);
    assert_true(t.memory > 1 << 20);
    assert_int_equal(t.ranks, bk_mpi_size());
    assert_true(t.nodes >= 1 && t.nodes <= t.ranks);
    assert_true(t.node_ranks >= 1 && t.node_ranks <= t.ranks);
    assert_true(t.sharing >= 1 && t.sharing <= t.node_ranks);
    assert_int_equal(t.nodes, bk_test_world()->nodes);
    assert_int_equal(t.node_ranks, bk_comm_size(bk_test_world()->node));
}

/* Ranks that share cores share them out. */
static void threads_fit_the_cores(void **state)
{
    bk_topology t;
    (void)state;
    bk_topology_read(&t);
    setenv("OMP_NUM_THREADS", "3,2", 1);
    assert_int_equal(bk_topology_threads(), 3);
    setenv("OMP_NUM_THREADS", "many", 1);
    int threads = bk_topology_threads();
    unsetenv("OMP_NUM_THREADS");
    assert_int_equal(bk_topology_threads(), threads);
    assert_true(threads >= 1);
    assert_true(threads == 1 || threads * t.sharing <= t.bound_cores);
}

static void launcher_says_the_rank(void **state)
{
    static const char *const ranks[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"},
                             *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"};
    (void)state;
    if (bk_mpi_size() > 1) {
        assert_int_equal(bk_launch_rank(), bk_mpi_rank());
        assert_int_equal(bk_launch_size(), bk_mpi_size());
    }
    for (int i = 0; i < 3; i++)
        unsetenv(ranks[i]);
    for (int i = 0; i < 2; i++)
        unsetenv(sizes[i]);
    assert_int_equal(bk_launch_rank(), 0);
    assert_int_equal(bk_launch_size(), 1);
    for (int i = 2; i >= 0; i--) { /* the first name of the list counts */
        char text[8];
        snprintf(text, sizeof text, "%d", i + 4);
        setenv(ranks[i], text, 1);
        assert_int_equal(bk_launch_rank(), i + 4);
    }
    setenv("PMI_SIZE", "9", 1);
    assert_int_equal(bk_launch_size(), 9);
    setenv("OMPI_COMM_WORLD_SIZE", "", 1); /* empty is unset */
    assert_int_equal(bk_launch_size(), 9);
    setenv("OMPI_COMM_WORLD_SIZE", "6", 1);
    assert_int_equal(bk_launch_size(), 6);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_sane),
        cmocka_unit_test(threads_fit_the_cores),
        cmocka_unit_test(launcher_says_the_rank),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
