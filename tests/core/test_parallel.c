/* Every index once, in pieces that begin at multiples of the unit. */
#include "tests/support/check.h"

#include "core/blas.h"
#include "core/parallel.h"

#include <string.h>

enum { MOST = 300 };

typedef struct seen {
    int64_t unit;
    int count[MOST];
} seen;

static void see(void *context, int64_t first, int64_t last)
{
    seen *s = context;
    assert_true(first == last || first % s->unit == 0);
    for (int64_t i = first; i < last; i++)
        s->count[i]++;
}

static void covers_each_index_once(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 5; threads++) {
        assert_int_equal(bk_blas_setup(threads, BK_GEMM_CBLAS), BK_OK);
        for (int64_t unit = 1; unit <= 16; unit += 5)
            for (int64_t n = 0; n < MOST; n += 7)
                for (int64_t cost = 1; cost <= 1 << 20; cost <<= 20) {
                    seen s = {.unit = unit};
                    bk_parallel(n, unit, cost, see, &s);
                    for (int64_t i = 0; i < MOST; i++)
                        assert_int_equal(s.count[i], i < n);
                }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(covers_each_index_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
