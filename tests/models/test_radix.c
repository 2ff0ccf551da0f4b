/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
/* Order statistics over the ranks, against sorting all values. */
#include "models/radix.h"

#include "tests/support/ranks.h"
#include "tests/support/router.h"

#include <math.h>
#include <stdlib.h>

enum { T = 53, E = 4 };

static bk_world *world;

static int falling(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* Wide and tiny numbers of both signs, both zeros, ties. */
static void fill(double *x)
{
    bk_test_spread(T * E, x, 3, 1.0);
    for (int t = 0; t < T; t++) {
        x[t * E + 1] = t % 3 == 0 ? -0.0 : t % 3 == 1 ? 0.0 : x[t * E + 1];
        x[t * E + 2] = (double)(t * 7 % 5) - 2.0;
        x[t * E + 3] = ldexp(x[t * E + 3], 37 * (t % 40) - 700);
    }
}

/* First row of a rank: of four the first has none. */
static int64_t cut(int rank, int size)
{
    return T * rank * rank * rank / (size * size * size);
}

static void check_place(const double *x, int64_t wanted, bk_arena *arena)
{
    double threshold[E], column[T];
    int64_t ties[E], first = cut(world->rank, world->size);
    bk_radix r = {.rows = cut(world->rank + 1, world->size) - first,
                  .columns = E,
                  .value = x + first * E,
                  .wanted = wanted,
                  .reducer = bk_comm_reducer(world->route),
                  .scratch = arena};
    bk_radix_largest(&r, threshold, ties);
    for (int e = 0; e < E; e++) {
        int64_t above = 0;
        for (int64_t t = 0; t < T; t++)
            column[t] = x[t * E + e];
        qsort(column, T, sizeof *column, falling);
        for (int64_t t = 0; t < T; t++)
            above += column[t] > column[wanted - 1];
        assert_true(threshold[e] == column[wanted - 1]);
        assert_int_equal(ties[e], wanted - above);
    }
}

static void every_place_is_found(void **state)
{
    double x[T * E];
    bk_arena *arena = bk_arena_new("scratch");
    (void)state;
    fill(x);
    for (int64_t wanted = 1; wanted <= T; wanted++)
        check_place(x, wanted, arena);
    bk_arena_free(arena);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_place_is_found)};
    bk_test_ranks_start(&argc, &argv);
    world = bk_test_world();
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
