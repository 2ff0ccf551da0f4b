/* test: labels=unit timeout=60 */
/* The loops over the vocabulary, of every instruction set, against plain ones. */
#include "tests/support/check.h"

#include "losses/sinkd_kernel.h"

#include "core/rng.h"

#include <math.h>

enum { ROWS = 9, LD = 3 * BK_SINKD_PAD };

typedef union matrix {
    double f64[ROWS * LD];
    float f32[ROWS * LD];
} matrix;

typedef struct instance {
    const char *name;
    const bk_sinkd_kernels *kernels;
    bool wide; /* double */
} instance;

static instance instances[3];
static int count;

static int list_instances(void **state)
{
    (void)state;
    instances[count++] = (instance){"f64", &bk_sinkd_kernels_f64, true};
    instances[count++] = (instance){"f32", &bk_sinkd_kernels_f32, false};
    if (bk_cpu_avx512())
        instances[count++] = (instance){"f32x", &bk_sinkd_kernels_f32x, false};
    return 0;
}

static double get(const instance *k, const matrix *x, int64_t i, int64_t v)
{
    return k->wide ? x->f64[i * LD + v] : (double)x->f32[i * LD + v];
}

/* Multiples of 1/64, so that sums are exact in any order and ties happen. */
static void fill(const instance *k, matrix *x, uint64_t tag)
{
    for (int i = 0; i < ROWS * LD; i++) {
        double value = floor(bk_fill((uint64_t)i, tag, 0.0, 64.0)) / 64.0;
        if (k->wide)
            x->f64[i] = value;
        else
            x->f32[i] = (float)value;
    }
}

static void distances_are_added(void **state)
{
    (void)state;
    for (int c = 0; c < count; c++)
        for (int64_t rows = 0; rows <= ROWS; rows++)
            for (int64_t columns = 0; columns <= ROWS; columns++) {
                const instance *k = &instances[c];
                matrix p, q;
                double cost[ROWS * ROWS];
                fill(k, &p, 1);
                fill(k, &q, 2);
                for (int i = 0; i < ROWS * ROWS; i++)
                    cost[i] = 7.0;
                k->kernels->distances(rows, columns, 2 * BK_SINKD_PAD, &p, &q, LD, cost);
                for (int64_t i = 0; i < ROWS * ROWS; i++) {
                    double want = 7.0;
                    for (int64_t v = 0; v < 2 * BK_SINKD_PAD && i < rows * columns; v++)
                        want += fabs(get(k, &p, i / columns, v) - get(k, &q, i % columns, v));
                    assert_true(cost[i] == want);
                }
            }
}

static void signs_are_summed(void **state)
{
    (void)state;
    for (int c = 0; c < count; c++)
        for (int64_t rows = 1; rows <= ROWS; rows++)
            for (int64_t columns = 1; columns <= ROWS; columns++) {
                const instance *k = &instances[c];
                matrix p, q, h;
                double g[ROWS * ROWS];
                int ties = 0;
                fill(k, &p, 1);
                fill(k, &q, 2);
                for (int i = 0; i < ROWS * ROWS; i++)
                    g[i] = floor(bk_fill((uint64_t)i, 3, -64.0, 64.0)) / 8.0;
                k->kernels->sign_sum(rows, columns, LD, &p, &q, LD, g, &h);
                for (int64_t i = 0; i < rows; i++)
                    for (int64_t v = 0; v < LD; v++) {
                        double want = 0.0;
                        for (int64_t j = 0; j < columns; j++) {
                            double d = get(k, &p, i, v) - get(k, &q, j, v);
                            want += d > 0 ? g[i * columns + j] : d < 0 ? -g[i * columns + j] : 0.0;
                            ties += d == 0;
                        }
                        assert_true(get(k, &h, i, v) == want);
                    }
                assert_true(ties > 0 || rows * columns < 9);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(distances_are_added),
        cmocka_unit_test(signs_are_summed),
    };
    return cmocka_run_group_tests(tests, list_instances, NULL);
}
