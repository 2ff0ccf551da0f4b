/* test: labels=unit timeout=60 */
/* Every instance against plain loops in double. */
#include "tests/support/check.h"

#include "losses/sinkd_top_kernel.h"

#include "core/rng.h"

#include <math.h>

enum { V = 60, MOST = 41 };

typedef struct instance {
    const bk_sinkd_top_kernels *kernels;
    bool wide;
} instance;

static instance instances[4];
static int count;

static int list_instances(void **state)
{
    (void)state;
    instances[count++] = (instance){&bk_sinkd_top_kernels_f64, true};
    instances[count++] = (instance){&bk_sinkd_top_kernels_f32, false};
    if (bk_cpu_avx512()) {
        instances[count++] = (instance){&bk_sinkd_top_kernels_f64x, true};
        instances[count++] = (instance){&bk_sinkd_top_kernels_f32x, false};
    }
    return 0;
}

/* A row of p that sums to 1, k of its classes, and q with ties; multiples of 2^-12, so that nothing
 * is rounded in either arithmetic. */
typedef struct problem {
    double p[V], q[MOST + 1];
    float p32[V], q32[MOST + 1];
    int32_t index[MOST];
    int64_t k;
} problem;

static void make(int64_t k, problem *x)
{
    double left = 4096.0;
    for (int v = 0; v < V; v++) {
        double part = v == V - 1 ? left : floor(bk_fill((uint64_t)v, 3, 0.0, 100.0));
        x->p[v] = part / 4096.0;
        x->p32[v] = (float)x->p[v];
        left -= part;
    }
    for (int64_t j = 0; j <= k; j++) {
        if (j < k)
            x->index[j] = (int32_t)((7 * j + 2) % V);
        x->q[j] = j % 3 == 0 && j < k ? x->p[x->index[j]]
                                      : floor(bk_fill((uint64_t)j, 4, 0.0, 200.0)) / 4096.0;
        x->q32[j] = (float)x->q[j];
    }
    x->k = k;
}

static bk_sinkd_top_row row_of(const problem *x, bool wide)
{
    return (bk_sinkd_top_row){
        .k = x->k, .index = x->index, .q = wide ? (const void *)x->q : (const void *)x->q32};
}

static double rest_gap(const problem *x)
{
    double kept = 0.0;
    for (int64_t j = 0; j < x->k; j++)
        kept += x->p[x->index[j]];
    return fmax(0.0, 1.0 - kept) - x->q[x->k];
}

static double sign(double x)
{
    return (double)((x > 0) - (x < 0));
}

static void distances(void **state)
{
    (void)state;
    for (int64_t k = 1; k <= MOST; k++) {
        problem x;
        make(k, &x);
        double want = fabs(rest_gap(&x));
        for (int64_t j = 0; j < k; j++)
            want += fabs(x.p[x.index[j]] - x.q[j]);
        for (int i = 0; i < count; i++) {
            bk_sinkd_top_row row = row_of(&x, instances[i].wide);
            const void *p = instances[i].wide ? (const void *)x.p : (const void *)x.p32;
            assert_true(instances[i].kernels->distance(p, &row) == want);
        }
    }
}

static void signs(void **state)
{
    (void)state;
    for (int64_t k = 1; k <= MOST; k++)
        for (int i = 0; i < count; i++) {
            problem x;
            double want[V], h[V];
            float h32[V];
            make(k, &x);
            for (int v = 0; v < V; v++)
                h32[v] = (float)(h[v] = want[v] = v);
            for (int64_t j = 0; j < k; j++)
                want[x.index[j]] += 0.25 * (sign(x.p[x.index[j]] - x.q[j]) - sign(rest_gap(&x)));
            bk_sinkd_top_row row = row_of(&x, instances[i].wide);
            if (instances[i].wide)
                instances[i].kernels->add_signs(x.p, &row, 0.25, h);
            else
                instances[i].kernels->add_signs(x.p32, &row, 0.25, h32);
            for (int v = 0; v < V; v++)
                assert_true((instances[i].wide ? h[v] : (double)h32[v]) == want[v]);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(distances), cmocka_unit_test(signs)};
    return cmocka_run_group_tests(tests, list_instances, NULL);
}
