/* test: labels=unit,mpi ranks=1,2,3,4 timeout=300 */
/* Rows over ranks: plan, potentials, values and gradients have the bits that one rank gives, on any
 * power of two of ranks, and agree to rounding on three. */
#include "tests/support/transport.h"

#include "tests/support/ranks.h"

#include <math.h>
#include <string.h>

static void share(bk_test_transport *t)
{
    const bk_world *world = bk_test_world();
    t->rank = world->rank;
    t->size = world->size;
    t->reducer = bk_comm_reducer(world->loss);
}

/* x[n] here against the same place of what one rank made. */
static void same(int64_t n, const double *x, const double *one, const char *what, const char *way)
{
    bool two = (bk_mpi_size() & (bk_mpi_size() - 1)) == 0;
    if (two && n > 0 && memcmp(x, one, (size_t)n * sizeof *x) != 0)
        fail_msg("%s of %s: other bits than on one rank", what, way);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(x[i] - one[i]) <= 1e-12 || x[i] == one[i]))
            fail_msg("%s[%d] of %s: %.17g, not %.17g", what, (int)i, way, x[i], one[i]);
}

static void same_counts(const bk_transport_result *x, const bk_transport_result *y)
{
    assert_int_equal(x->status, y->status);
    assert_int_equal(x->sweeps, y->sweeps);
    assert_int_equal(x->newton_steps, y->newton_steps);
    assert_int_equal(x->cg_iterations, y->cg_iterations);
    assert_int_equal(x->guard_events, y->guard_events);
    assert_int_equal(x->shifted_sweeps, y->shifted_sweeps);
    assert_int_equal(x->escalations, y->escalations);
}

static void same_results(bk_test_transport *part, bk_test_transport *one, const char *way)
{
    const bk_transport_result *x = &part->result, *y = &one->result;
    const double own[] = {x->cost, x->kl, x->entropy, x->dual, x->residual_a, x->residual_b},
                 other[] = {y->cost, y->kl, y->entropy, y->dual, y->residual_a, y->residual_b};
    same_counts(x, y);
    same(6, own, other, "values", way);
    same(part->rows, x->f, y->f + part->first, "f", way);
    same(part->m, x->g, y->g, "g", way);
    same(part->rows * part->m, bk_test_transport_plan(part),
         bk_test_transport_plan(one) + part->first * part->m, "plan", way);
}

static void same_gradients(bk_test_transport *part, bk_test_transport *one, const double *plan,
                           const char *way)
{
    bk_test_gradient x = bk_test_transport_gradient(part, plan, 0.7),
                     y = bk_test_transport_gradient(one, plan, 0.7);
    same(part->rows * part->m, x.cost, y.cost + part->first * part->m, "dcost", way);
    same(part->rows, x.a, y.a + part->first, "da", way);
    same(part->m, x.b, y.b, "db", way);
}

/* ---- one problem ---- */

static const char *const ways[] = {
    "mode=pform tolerance=1e-9 gradient=implicit",
    "mode=pform tolerance=0 iterations=4 gradient=unrolled",
    "mode=log tolerance=0 iterations=3 gradient=unrolled",
    "mode=absorbed tolerance=1e-9 gradient=implicit",
    "mode=log tolerance=1e-9 value=kl gradient=envelope",
    "omega=1.6 tolerance=1e-9 gradient=implicit",
    "omega=1.99 tolerance=1e-9 gradient=implicit",
    "scaling=doubling tolerance=1e-9 gradient=implicit cost_scale=mean",
    "method=newton solver=dense gradient=implicit",
    "method=newton solver=cg gradient=implicit",
    "method=newton solver=dense gradient=implicit value=kl unbalanced=0.4",
    "method=sns gradient=implicit",
    "unbalanced=0.5 tolerance=1e-9 gradient=implicit value=kl",
    "unbalanced_b=0.5 tolerance=0 iterations=4 gradient=unrolled"};

static void open_pair(bk_test_transport *part, bk_test_transport *one, int64_t n, int64_t m)
{
    *part = bk_test_transport_open(BK_F64, n, m, 41);
    bk_test_transport_masses(part, 42, 1.0);
    if (n > 200) { /* a whole row block without mass, and single rows */
        for (int64_t i = 0; i < n / 4; i++)
            part->a[i] = 0.0;
        part->a[n - 1] = 0.0;
        part->b[0] = 0.0;
    }
    if (n > 1 && m > 3)
        part->cost[(n - 2) * m + 3] = INFINITY;
    part->differentiate = true;
    *one = *part;
    share(part);
}

static void check_way(int64_t n, int64_t m, bk_dtype dtype, const char *way)
{
    bk_test_transport part, one;
    open_pair(&part, &one, n, m);
    part.dtype = one.dtype = dtype;
    const char *options = bk_arena_printf(part.arena, "epsilon=0.1 marginals=normalize %s", way);
    bk_test_transport_solve(&one, options);
    bk_test_transport_solve(&part, options);
    assert_true(one.result.status <= BK_TRANSPORT_FIXED);
    same_results(&part, &one, options);
    double *plan =
        strstr(way, "envelope") ? NULL : bk_test_transport_fill(&part, n * m, 43, -1.0, 1.0);
    same_gradients(&part, &one, plan, options);
    bk_test_transport_close(&part);
}

static void rows_of_several_blocks(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        check_way(300, 37, BK_F64, ways[i]);
        check_way(1000, 20, BK_F64, ways[i]);
    }
}

static void fewer_rows_than_ranks(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        check_way(3, 5, BK_F64, ways[i]);
        check_way(1, 4, BK_F64, ways[i]);
    }
}

static void single_precision(void **state)
{
    static const char *const narrow[] = {
        "mode=pform gradient=implicit", "mode=absorbed gradient=implicit",
        "mode=log gradient=implicit", "method=newton gradient=implicit",
        "tolerance=0 iterations=4 gradient=unrolled"};
    (void)state;
    for (size_t i = 0; i < sizeof narrow / sizeof *narrow; i++)
        check_way(1000, 20, BK_F32, narrow[i]);
}

/* The strips of the Schur complement: more columns than one tile. */
static void more_columns_than_a_tile(void **state)
{
    (void)state;
    check_way(300, 290, BK_F64, "method=newton solver=dense gradient=implicit");
    check_way(300, 257, BK_F64, "mode=auto tolerance=1e-9 gradient=implicit");
}

/* ---- a divergence ---- */

static void check_divergence(int64_t n, int64_t m, const char *options)
{
    bk_test_transport part, one;
    open_pair(&part, &one, n, m);
    bk_test_transport_points(&one, 2, 44, 0.3);
    part.cost = NULL;
    part.x = one.x;
    part.y = one.y;
    part.width = 2;
    bk_test_transport_diverge(&one, options);
    bk_test_transport_diverge(&part, options);
    assert_true(one.divergence.converged && part.divergence.converged);
    same(1, &part.divergence.value, &one.divergence.value, "value", options);
    same(part.rows, part.divergence.f, one.divergence.f + part.first, "f", options);
    same(m, part.divergence.g, one.divergence.g, "g", options);
    for (int side = 0; side < 2; side++)
        assert_int_equal(part.divergence.self_iterations[side],
                         one.divergence.self_iterations[side]);
    bk_test_transport *t[] = {&part, &one};
    double *x[2], *y[2], *a[2], *b[2];
    for (int k = 0; k < 2; k++) {
        x[k] = BK_ZNEW(part.arena, double, 2 * n);
        y[k] = BK_ZNEW(part.arena, double, 2 * m);
        a[k] = BK_ZNEW(part.arena, double, n);
        b[k] = BK_ZNEW(part.arena, double, m);
        assert_int_equal(bk_divergence_gradient(&t[k]->divergence, 0.7, x[k], y[k], a[k], b[k]),
                         BK_OK);
    }
    same(2 * part.rows, x[0], x[1] + 2 * part.first, "dx", options);
    same(2 * m, y[0], y[1], "dy", options);
    same(part.rows, a[0], a[1] + part.first, "da", options);
    same(m, b[0], b[1], "db", options);
    bk_test_transport_close(&part);
}

static void divergences(void **state)
{
    static const char *const kinds[] = {
        "epsilon=0.3 marginals=normalize tolerance=1e-9",
        "epsilon=0.3 marginals=normalize tolerance=1e-9 unbalanced=1 metric=euclidean",
        "epsilon=0.3 marginals=normalize method=newton metric=l1"};
    (void)state;
    for (int i = 0; i < 3; i++) {
        check_divergence(300, 140, kinds[i]);
        check_divergence(3, 4, kinds[i]);
    }
}

/* ---- what is refused is refused by all ---- */

static void every_rank_refuses(void **state)
{
    static const char *const texts[] = {"a[290]",  "cost[290,1]", "row 290", "column 2 has mass",
                                        "no mass", "differ"};
    const bk_status wanted[] = {BK_INPUT, BK_INPUT, BK_INPUT, BK_INPUT, BK_INPUT, BK_USAGE};
    (void)state;
    for (int k = 0; k < 6; k++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 300, 5, 41);
        bk_test_transport_masses(&t, 42, 1.0);
        share(&t);
        for (int j = 0; k == 2 && j < 5; j++)
            t.cost[290 * 5 + j] = INFINITY;
        for (int i = 0; k == 3 && i < 300; i++)
            t.cost[i * 5 + 2] = INFINITY;
        for (int i = 0; k == 4 && i < 300; i++)
            t.a[i] = 0.0;
        t.a[290] = k == 0 ? -1.0 : k == 5 ? 0.5 : t.a[290];
        t.cost[290 * 5 + 1] = k == 1 ? NAN : t.cost[290 * 5 + 1];
        assert_int_equal(bk_test_transport_try(&t, ""), wanted[k]);
        if (!strstr(bk_status_text(), texts[k]))
            fail_msg("no '%s' in: %s", texts[k], bk_status_text());
        bk_test_transport_close(&t);
    }
}

/* A number that overflows on one rank ends the solve on all. */
static void every_rank_sees_what_is_not_finite(void **state)
{
    static const char *const forms[] = {"mode=absorbed", "mode=log", "method=newton", "method=sns"};
    (void)state;
    for (int k = 0; k < 4; k++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, 300, 5, 41);
        share(&t);
        for (int j = 0; j < 5; j++)
            t.cost[290 * 5 + j] = 1e300;
        bk_test_transport_solve(
            &t, bk_arena_printf(t.arena, "epsilon=1e-200 scaling=none %s", forms[k]));
        assert_int_equal(t.result.status, BK_TRANSPORT_NOT_FINITE);
        bk_test_transport_close(&t);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_of_several_blocks),
        cmocka_unit_test(fewer_rows_than_ranks),
        cmocka_unit_test(single_precision),
        cmocka_unit_test(more_columns_than_a_tile),
        cmocka_unit_test(divergences),
        cmocka_unit_test(every_rank_refuses),
        cmocka_unit_test(every_rank_sees_what_is_not_finite),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
