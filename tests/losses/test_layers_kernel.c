/* The kernels of every instruction set against sums in double, for every length of tail. */
#include "tests/support/check.h"

#include "losses/layers_kernel.h"

#include "core/rng.h"

#include <math.h>

enum { MOST = 70 };

typedef struct instance {
    const bk_layers_kernels *kernels;
    bool wide;
    double limit;
} instance;

static instance instances[4];
static int count;

static int list_instances(void **state)
{
    (void)state;
    instances[count++] = (instance){&bk_layers_kernels_f64, true, 1e-13};
    instances[count++] = (instance){&bk_layers_kernels_f32, false, 2e-6};
    if (bk_cpu_avx512()) {
        instances[count++] = (instance){&bk_layers_kernels_f64x, true, 1e-13};
        instances[count++] = (instance){&bk_layers_kernels_f32x, false, 2e-6};
    }
    return 0;
}

/* The same numbers in both arithmetics; some are 0. */
typedef struct rows {
    double x[MOST], y[MOST], dx[MOST];
    float x32[MOST], y32[MOST], dx32[MOST];
} rows;

static void fill(rows *r)
{
    for (int i = 0; i < MOST; i++) {
        r->x32[i] = i % 7 == 3 ? 0.0f : (float)bk_fill((uint64_t)i, 1, 0.01, 1.0);
        r->y32[i] = i % 5 == 3 ? 0.0f : (float)bk_fill((uint64_t)i, 2, 0.01, 1.0);
        r->dx32[i] = (float)i;
        r->x[i] = (double)r->x32[i];
        r->y[i] = (double)r->y32[i];
        r->dx[i] = i;
    }
}

static const void *x_of(const instance *k, const rows *r)
{
    return k->wide ? (const void *)r->x : (const void *)r->x32;
}

static const void *y_of(const instance *k, const rows *r)
{
    return k->wide ? (const void *)r->y : (const void *)r->y32;
}

static double logarithm(double x)
{
    return log(fmax(x, BK_LAYERS_LEAST));
}

static void sums(void **state)
{
    (void)state;
    for (int i = 0; i < count; i++)
        for (int64_t n = 0; n <= MOST; n++) {
            const instance *k = &instances[i];
            rows r;
            double square = 0.0, dot = 0.0, divergence = 0.0;
            fill(&r);
            for (int64_t j = 0; j < n; j++) {
                square += (r.x[j] - r.y[j]) * (r.x[j] - r.y[j]);
                dot += r.x[j] * r.y[j];
                divergence += r.y[j] * (logarithm(r.y[j]) - logarithm(r.x[j]));
            }
            double own[] = {k->kernels->square(n, x_of(k, &r), y_of(k, &r)),
                            k->kernels->dot(n, x_of(k, &r), y_of(k, &r)),
                            k->kernels->divergence(n, x_of(k, &r), y_of(k, &r))};
            const double want[] = {square, dot, divergence};
            for (int j = 0; j < 3; j++)
                bk_check_error(bk_test_error(1, &own[j], &want[j], 1.0), k->limit, "sum %d of %d",
                               j, (int)n);
        }
}

static void slopes(void **state)
{
    (void)state;
    for (int i = 0; i < count; i++)
        for (int64_t n = 0; n <= MOST; n++) {
            const instance *k = &instances[i];
            rows r;
            fill(&r);
            void *dx = k->wide ? (void *)r.dx : (void *)r.dx32;
            k->kernels->combine(n, 0.5, x_of(k, &r), -2.0, y_of(k, &r), dx);
            k->kernels->divergence_back(n, 0.25, x_of(k, &r), y_of(k, &r), dx);
            for (int64_t j = 0; j < MOST; j++) {
                double want = (double)j, own = k->wide ? r.dx[j] : (double)r.dx32[j];
                if (j < n)
                    want +=
                        0.5 * r.x[j] - 2.0 * r.y[j] - (r.x[j] > 0.0 ? 0.25 * r.y[j] / r.x[j] : 0.0);
                bk_check_error(bk_test_error(1, &own, &want, 1.0), k->limit, "slope %d of %d",
                               (int)j, (int)n);
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sums), cmocka_unit_test(slopes)};
    return cmocka_run_group_tests(tests, list_instances, NULL);
}
