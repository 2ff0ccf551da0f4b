#include "tests/support/transport.h"

#include "core/rng.h"

#include <string.h>

bk_test_transport bk_test_transport_open(bk_dtype dtype, int64_t n, int64_t m, uint64_t tag)
{
    bk_test_transport t = {.dtype = dtype,
                           .n = n,
                           .m = m,
                           .size = 1,
                           .arena = bk_arena_new("transport"),
                           .scratch = bk_arena_new("scratch")};
    t.cost = bk_test_transport_fill(&t, n * m, tag, 0.0, 1.0);
    return t;
}

void bk_test_transport_close(bk_test_transport *t)
{
    bk_arena_free(t->arena);
    bk_arena_free(t->scratch);
}

double *bk_test_transport_fill(bk_test_transport *t, int64_t n, uint64_t tag, double lo, double hi)
{
    double *x = BK_NEW(t->arena, double, n);
    for (int64_t i = 0; i < n; i++)
        x[i] = bk_fill((uint64_t)i, tag, lo, hi);
    return x;
}

static double *masses(bk_test_transport *t, int64_t n, uint64_t tag, double mass)
{
    double *x = bk_test_transport_fill(t, n, tag, 0.5, 1.5), sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i];
    for (int64_t i = 0; i < n; i++)
        x[i] *= mass / sum;
    return x;
}

void bk_test_transport_masses(bk_test_transport *t, uint64_t tag, double mass)
{
    t->a = masses(t, t->n, tag, mass);
    t->b = masses(t, t->m, tag + 1, mass);
}

void bk_test_transport_points(bk_test_transport *t, int64_t width, uint64_t tag, double shift)
{
    t->cost = NULL;
    t->width = width;
    t->x = bk_test_transport_fill(t, t->n * width, tag, -1.0, 1.0);
    t->y = bk_test_transport_fill(t, t->m * width, tag + 1, -1.0, 1.0);
    for (int64_t i = 0; i < t->m * width; i++)
        t->y[i] += shift;
}

/* ---- a solve ---- */

static bk_transport_config read_options(bk_arena *arena, const char *options)
{
    bk_transport_config config;
    bk_value *map = bk_value_new(arena, BK_MAP, "options", 0);
    char *text = bk_arena_strdup(arena, options), *rest = NULL;
    for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        char *equals = strchr(word, '=');
        assert_non_null(equals);
        *equals = '\0';
        assert_int_equal(bk_value_set(arena, map, word, equals + 1), BK_OK);
    }
    const bk_option *const tables[] = {bk_transport_options, NULL};
    bk_status status = bk_options_read(bk_transport_options, &config, map, "transport", arena);
    if (status == BK_OK)
        status = bk_options_unknown(map, "transport", tables, NULL);
    if (status != BK_OK)
        fail_msg("%s", bk_status_text());
    return config;
}

/* x[n] in the problem's dtype; NULL stays NULL. */
static const void *typed(bk_test_transport *t, int64_t n, const double *x)
{
    if (!x || t->dtype == BK_F64)
        return x;
    float *y = BK_NEW(t->arena, float, n);
    for (int64_t i = 0; i < n; i++)
        y[i] = (float)x[i];
    return y;
}

static void prepare(bk_test_transport *t, const char *options)
{
    int64_t blocks = t->blocks > 0 ? t->blocks : bk_transport_blocks(t->n);
    t->config = read_options(t->arena, options);
    t->lanes = bk_lanes_of_rank(blocks, t->n, t->rank, t->size);
    t->first = bk_lanes_first_sample(&t->lanes);
    t->rows = bk_lanes_samples(&t->lanes);
    t->problem =
        (bk_transport){.dtype = t->dtype,
                       .total = t->n,
                       .rows = t->rows,
                       .columns = t->m,
                       .cost = typed(t, t->rows * t->m, t->cost ? t->cost + t->first * t->m : NULL),
                       .x = typed(t, t->rows * t->width, t->x ? t->x + t->first * t->width : NULL),
                       .y = typed(t, t->m * t->width, t->y),
                       .width = t->width,
                       .a = t->a ? t->a + t->first : NULL,
                       .b = t->b,
                       .lanes = &t->lanes,
                       .reducer = t->reducer,
                       .differentiate = t->differentiate,
                       .arena = t->arena,
                       .scratch = t->scratch};
}

bk_status bk_test_transport_try(bk_test_transport *t, const char *options)
{
    prepare(t, options);
    return bk_transport_solve(&t->problem, &t->config, &t->result);
}

void bk_test_transport_solve(bk_test_transport *t, const char *options)
{
    if (bk_test_transport_try(t, options) != BK_OK)
        fail_msg("%s: %s", options, bk_status_text());
}

void bk_test_transport_converge(bk_test_transport *t, const char *options)
{
    bk_test_transport_solve(t, options);
    if (t->result.status != BK_TRANSPORT_CONVERGED)
        fail_msg("%s: ended as %s after %lld sweeps, residual %g", options,
                 bk_transport_status_name(t->result.status), (long long)t->result.sweeps,
                 t->result.residual_a + t->result.residual_b);
}

void bk_test_transport_diverge(bk_test_transport *t, const char *options)
{
    prepare(t, options);
    if (bk_divergence_solve(&t->problem, &t->config, &t->divergence) != BK_OK)
        fail_msg("%s: %s", options, bk_status_text());
}

double *bk_test_transport_plan(bk_test_transport *t)
{
    double *plan = BK_NEW(t->arena, double, t->rows * t->m);
    float *row = BK_NEW(t->arena, float, t->m);
    for (int64_t i = 0; i < t->rows; i++) {
        double *out = plan + i * t->m;
        bk_transport_plan_row(&t->result, i, t->dtype == BK_F64 ? (void *)out : (void *)row);
        for (int64_t j = 0; t->dtype == BK_F32 && j < t->m; j++)
            out[j] = (double)row[j];
    }
    return plan;
}

bk_status bk_test_transport_try_gradient(bk_test_transport *t, const double *plan, double value,
                                         bk_test_gradient *out)
{
    *out = (bk_test_gradient){BK_ZNEW(t->arena, double, t->rows * t->m),
                              BK_ZNEW(t->arena, double, t->rows), BK_ZNEW(t->arena, double, t->m)};
    bk_transport_adjoint adjoint = {.plan = plan ? plan + t->first * t->m : NULL,
                                    .value = value,
                                    .cost = out->cost,
                                    .a = out->a,
                                    .b = out->b};
    return bk_transport_gradient(&t->result, &adjoint);
}

bk_test_gradient bk_test_transport_gradient(bk_test_transport *t, const double *plan, double value)
{
    bk_test_gradient g;
    if (bk_test_transport_try_gradient(t, plan, value, &g) != BK_OK)
        fail_msg("gradient: %s", bk_status_text());
    return g;
}

double bk_test_dot(int64_t n, const double *x, const double *y)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}
