/* test: labels=unit timeout=60 */
/* The row kernels of every instruction set against sums in long double, for every length of tail.
 */
#include "tests/support/check.h"

#include "losses/row_kernel.h"

#include "core/rng.h"

#include <math.h>
#include <string.h>

enum { MOST = 70 };

typedef struct instance {
    const char *name;
    const bk_row_kernels *kernels;
    bool wide; /* double */
    double limit;
} instance;

static instance instances[4];
static int count;

static int list_instances(void **state)
{
    (void)state;
    instances[count++] = (instance){"f64", &bk_row_kernels_f64, true, 1e-13};
    instances[count++] = (instance){"f32", &bk_row_kernels_f32, false, 2e-6};
    if (bk_cpu_avx512()) {
        instances[count++] = (instance){"f32x", &bk_row_kernels_f32x, false, 2e-6};
        instances[count++] = (instance){"f64x", &bk_row_kernels_f64x, true, 1e-13};
    }
    return 0;
}

/* A row in the arithmetic of an instance. */
typedef union row {
    double f64[3 * MOST];
    float f32[3 * MOST];
} row;

static double get(const instance *k, const row *x, int64_t i)
{
    return k->wide ? x->f64[i] : (double)x->f32[i];
}

static void set(const instance *k, row *x, int64_t i, double value)
{
    if (k->wide)
        x->f64[i] = value;
    else
        x->f32[i] = (float)value;
}

static void fill(const instance *k, row *x, int64_t n, uint64_t tag)
{
    for (int64_t i = 0; i < n; i++)
        set(k, x, i, bk_fill((uint64_t)i, tag, -6.0, 6.0));
}

static void softmax_exactly(const instance *k, const row *x, int64_t n, double temperature,
                            long double *p)
{
    long double sum = 0.0L;
    for (int64_t i = 0; i < n; i++)
        sum += p[i] = expl((long double)get(k, x, i) / temperature);
    for (int64_t i = 0; i < n; i++)
        p[i] /= sum;
}

/* D of p and q, as the definition says it. */
static long double definition(const bk_divergence_options *o, int64_t n, const long double *p,
                              const long double *q)
{
    long double sum = 0.0L, a = o->skew, b = o->beta;
    for (int64_t i = 0; i < n; i++) {
        long double m = b * q[i] + (1.0L - b) * p[i];
        switch (o->kind) {
        case BK_KL:
            sum += q[i] * ((o->entropy ? logl(q[i]) : 0.0L) - logl(a * q[i] + (1.0L - a) * p[i]));
            break;
        case BK_REVERSE_KL:
            sum += p[i] * logl(p[i] / ((1.0L - a) * q[i] + a * p[i]));
            break;
        case BK_JS:
            sum += b * q[i] * logl(q[i] / m) + (1.0L - b) * p[i] * logl(p[i] / m);
            break;
        default:
            sum += 0.5L * fabsl(p[i] - q[i]);
        }
    }
    return sum;
}

static const bk_divergence_options divergences[] = {
    {.kind = BK_KL, .temperature = 2.0, .entropy = true},
    {.kind = BK_KL, .temperature = 1.0, .skew = 0.3},
    {.kind = BK_REVERSE_KL, .temperature = 2.0},
    {.kind = BK_REVERSE_KL, .temperature = 0.7, .skew = 0.1},
    {.kind = BK_JS, .temperature = 2.0, .beta = 0.5},
    {.kind = BK_JS, .temperature = 1.3, .beta = 0.2},
    {.kind = BK_TV, .temperature = 2.0},
};
enum { DIVERGENCES = sizeof divergences / sizeof *divergences };

static void divergences_follow_their_definition(void **state)
{
    (void)state;
    for (int c = 0; c < count; c++)
        for (int64_t n = 1; n <= MOST; n++)
            for (int d = 0; d < DIVERGENCES; d++) {
                const instance *k = &instances[c];
                row s, t, work;
                long double p[MOST], q[MOST];
                fill(k, &s, n, 1);
                fill(k, &t, n, 2);
                softmax_exactly(k, &s, n, divergences[d].temperature, p);
                softmax_exactly(k, &t, n, divergences[d].temperature, q);
                double want = (double)definition(&divergences[d], n, p, q),
                       value = k->kernels->divergence(n, &s, &t, &divergences[d], &work);
                bk_check_error(bk_test_error(1, &value, &want, 1.0), k->limit,
                               "divergence %d of %d classes, %s", d, (int)n, k->name);
            }
}

/* Against central differences of the definition. */
static void slopes_are_derivatives(void **state)
{
    (void)state;
    for (int c = 0; c < count; c++)
        for (int64_t n = 2; n <= 37; n += 5)
            for (int d = 0; d < DIVERGENCES; d++) {
                const instance *k = &instances[c];
                const double step = k->wide ? 1e-5 : 0x1p-10;
                row s, t, work, slope;
                double want[MOST], own[MOST];
                fill(k, &s, n, 1);
                fill(k, &t, n, 2);
                memset(&slope, 0, sizeof slope);
                k->kernels->divergence_back(n, &s, &t, &divergences[d], 1.5, &work, &slope);
                for (int64_t i = 0; i < n; i++) {
                    long double p[MOST], q[MOST], side[2];
                    double x = get(k, &s, i);
                    softmax_exactly(k, &t, n, divergences[d].temperature, q);
                    for (int j = 0; j < 2; j++) {
                        set(k, &s, i, x + (j ? step : -step));
                        softmax_exactly(k, &s, n, divergences[d].temperature, p);
                        side[j] = definition(&divergences[d], n, p, q);
                    }
                    set(k, &s, i, x);
                    want[i] = (double)(1.5L * (side[1] - side[0]) / (2.0L * step));
                    own[i] = get(k, &slope, i);
                }
                bk_check_error(bk_test_error(n, own, want, 0.1), k->wide ? 1e-8 : 1e-4,
                               "slope %d of %d classes, %s", d, (int)n, k->name);
            }
}

static void cross_entropy_follows_its_definition(void **state)
{
    (void)state;
    for (int c = 0; c < count; c++)
        for (int64_t n = 1; n <= MOST; n++)
            for (double smoothing = 0.0; smoothing < 0.3; smoothing += 0.2) {
                const instance *k = &instances[c];
                row x, dx;
                long double p[MOST], want = 0.0L;
                double lse, slope[MOST], own[MOST];
                int32_t label = (int32_t)(n / 2);
                fill(k, &x, n, 3);
                fill(k, &dx, n, 4);
                softmax_exactly(k, &x, n, 1.0, p);
                for (int64_t i = 0; i < n; i++) {
                    double y = smoothing / (double)n + (i == label ? 1.0 - smoothing : 0.0);
                    want -= y * logl(p[i]);
                    slope[i] = get(k, &dx, i) + 2.0 * ((double)p[i] - y);
                }
                double value = k->kernels->cross_entropy(n, &x, label, smoothing, &lse),
                       exact = (double)want;
                bk_check_error(bk_test_error(1, &value, &exact, 1.0), k->limit,
                               "cross-entropy of %d classes, %s", (int)n, k->name);
                k->kernels->cross_entropy_back(n, &x, lse, label, smoothing, 2.0, true, &dx);
                for (int64_t i = 0; i < n; i++)
                    own[i] = get(k, &dx, i);
                bk_check_error(bk_test_error(n, own, slope, 1.0), k->limit,
                               "slope of cross-entropy of %d classes, %s", (int)n, k->name);
            }
}

/* Overwriting (add = false) is adding to zeros. */
static void cross_entropy_can_overwrite(void **state)
{
    (void)state;
    for (int c = 0; c < count; c++) {
        const instance *k = &instances[c];
        row x, added, written;
        double lse;
        fill(k, &x, 21, 3);
        fill(k, &written, 21, 4);
        memset(&added, 0, sizeof added);
        k->kernels->cross_entropy(21, &x, 5, 0.1, &lse);
        k->kernels->cross_entropy_back(21, &x, lse, 5, 0.1, 2.0, true, &added);
        k->kernels->cross_entropy_back(21, &x, lse, 5, 0.1, 2.0, false, &written);
        for (int i = 0; i < 21; i++)
            assert_true(get(k, &added, i) == get(k, &written, i));
    }
}

static void softmax_by_parts(void **state)
{
    (void)state;
    for (int c = 0; c < count; c++)
        for (int64_t n = 1; n <= MOST; n++) {
            const instance *k = &instances[c];
            row s, p, h, ds;
            long double exact[MOST], inner = 0.0L;
            double want[MOST], own[MOST], back[MOST];
            fill(k, &s, n, 1);
            fill(k, &h, n, 2);
            memset(&ds, 0, sizeof ds);
            bk_row_norm norm = k->kernels->normalise(n, &s, 2.0);
            int64_t m = n / 2;
            size_t size = k->wide ? sizeof(double) : sizeof(float), skip = (size_t)m * size;
            double sum = k->kernels->softmax(m, &s, 2.0, norm, &p);
            sum += k->kernels->softmax(n - m, (char *)&s + skip, 2.0, norm, (char *)&p + skip);
            bk_check_error(fabs(sum - 1.0), k->limit, "sum of %d, %s", (int)n, k->name);
            double product = k->kernels->product_add(n, &p, &h, 1.5, &ds);
            k->kernels->softmax_add(n, &s, 2.0, norm, -1.5 * product, &ds);
            softmax_exactly(k, &s, n, 2.0, exact);
            for (int64_t i = 0; i < n; i++)
                inner += exact[i] * (long double)get(k, &h, i);
            for (int64_t i = 0; i < n; i++) {
                want[i] = (double)exact[i];
                own[i] = get(k, &p, i);
                back[i] = get(k, &ds, i);
            }
            bk_check_error(bk_test_error(n, own, want, 1.0), k->limit, "softmax of %d, %s", (int)n,
                           k->name);
            for (int64_t i = 0; i < n; i++)
                want[i] = (double)(1.5L * exact[i] * ((long double)get(k, &h, i) - inner));
            bk_check_error(bk_test_error(n, back, want, 1.0), 10.0 * k->limit,
                           "back through softmax of %d, %s", (int)n, k->name);
        }
}

static void nan_passes_through(void **state)
{
    (void)state;
    for (int c = 0; c < count; c++)
        for (int64_t place = 0; place < 19; place++) {
            const instance *k = &instances[c];
            row s, t, work;
            double lse;
            fill(k, &s, 19, 1);
            fill(k, &t, 19, 2);
            set(k, &s, place, NAN);
            for (int d = 0; d < DIVERGENCES; d++)
                assert_true(isnan(k->kernels->divergence(19, &s, &t, &divergences[d], &work)));
            assert_true(isnan(k->kernels->cross_entropy(19, &s, 4, 0.0, &lse)));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(divergences_follow_their_definition),
        cmocka_unit_test(slopes_are_derivatives),
        cmocka_unit_test(cross_entropy_follows_its_definition),
        cmocka_unit_test(cross_entropy_can_overwrite),
        cmocka_unit_test(softmax_by_parts),
        cmocka_unit_test(nan_passes_through),
    };
    return cmocka_run_group_tests(tests, list_instances, NULL);
}
