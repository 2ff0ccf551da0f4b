/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
/* Figures of a routing, against their definitions, the same for every number of ranks. */
#include "tests/support/ranks.h"
#include "tests/support/router.h"

#include "models/moe_figures.h"

#include <math.h>
#include <string.h>

enum { T = 24, E = 4, K = 2 };

static bk_world *world;

static int32_t mask_of(int64_t t)
{
    return t % 5 != 2;
}

/* Figures of the rows shared out over the ranks (comm NULL: all here). */
static bk_moe_figures figures_of(bk_moe_state *state, const char *kind, const char *options,
                                 const double *h, const bk_comm *comm)
{
    int rank = bk_comm_rank(comm), size = bk_comm_size(comm);
    int64_t first = T * rank / size, count = T * (rank + 1) / size - first;
    int32_t mask[T];
    bk_moe_figures f;
    double aux = 0.25 / size, z = 2.0 / size;
    for (int64_t t = 0; t < count; t++)
        mask[t] = mask_of(first + t);
    bk_test_router *p = bk_test_router_open(kind, options, count, E, h + first * E);
    p->args.mask = mask;
    p->args.valid = 0;
    for (int64_t t = 0; t < T; t++)
        p->args.valid += mask_of(t);
    p->args.reducer = bk_comm_reducer(comm);
    const bk_route *r = bk_test_router_run(p);
    bk_moe_state_count(state, &p->args, r, &aux, &z);
    state->received = count;
    bk_moe_state_figures(state, comm, &f);
    bk_test_router_close(p);
    return f;
}

/* Sums over the valid tokens, made from the definitions. */
typedef struct sums {
    double load[E], column[E], entropy, confidence, kept;
    int tokens;
} sums;

static void add_token(sums *s, const double *h)
{
    double p[E], sum = 0.0;
    int order[E] = {0, 1, 2, 3};
    for (int e = 0; e < E; e++)
        sum += p[e] = exp(h[e]);
    for (int e = 0; e < E; e++) {
        p[e] /= sum;
        s->column[e] += p[e];
        s->entropy -= p[e] * log(p[e]) / log(E);
    }
    for (int i = 0; i < K; i++)
        for (int j = i + 1; j < E; j++)
            if (p[order[j]] > p[order[i]]) {
                int swapped = order[i];
                order[i] = order[j];
                order[j] = swapped;
            }
    s->confidence += p[order[0]];
    s->kept += p[order[0]] + p[order[1]];
    s->load[order[0]]++;
    s->load[order[1]]++;
    s->tokens++;
}

static void figures_are_their_definitions(void **state)
{
    double h[T * E];
    sums s = {0};
    bk_arena *arena = bk_arena_new("run");
    bk_moe_state counters;
    (void)state;
    bk_moe_state_init(&counters, arena, E);
    bk_test_spread(T * E, h, 5, 2.0);
    for (int t = 0; t < T; t++)
        if (mask_of(t))
            add_token(&s, h + t * E);
    bk_moe_figures f = figures_of(&counters, "topk", "", h, NULL);
    double mean = s.tokens * K / (double)E, most = 0, least = INFINITY, squares = 0, shares = 0,
           error = 0;
    for (int e = 0; e < E; e++) {
        most = fmax(most, s.load[e]);
        least = fmin(least, s.load[e]);
        squares += (s.load[e] - mean) * (s.load[e] - mean) / E;
        assert_true(f.share[e] == s.load[e] / (s.tokens * K));
        shares -= s.load[e] / (s.tokens * K) * log(s.load[e] / (s.tokens * K)) / log(E);
        error = fmax(error, fabs(s.column[e] * E / s.tokens - 1.0));
    }
    const double got[] = {f.load_max_over_mean,
                          f.load_min_over_mean,
                          f.load_cv,
                          f.load_entropy,
                          f.token_entropy,
                          f.confidence,
                          f.kept_mass,
                          f.soft_column_error,
                          f.aux,
                          f.z};
    const double expected[] = {most / mean,
                               least / mean,
                               sqrt(squares) / mean,
                               shares,
                               s.entropy / s.tokens,
                               s.confidence / s.tokens,
                               s.kept / s.tokens,
                               error,
                               0.25,
                               2.0};
    for (int i = 0; i < 10; i++)
        bk_check_error(fabs(got[i] - expected[i]), 1e-8, "figure %d", i);
    assert_true(f.nonfinite_logits == 0 && f.router_iterations == 0 && f.router_unconverged == 0);
    bk_arena_free(arena);
}

/* Experts without a token, and transport steps above the tolerance, since the last figures. */
static void some_count_since_the_last_figures(void **state)
{
    double h[T * E];
    bk_arena *arena = bk_arena_new("run");
    bk_moe_state counters;
    (void)state;
    bk_moe_state_init(&counters, arena, E);
    bk_test_spread(T * E, h, 5, 2.0);
    for (int t = 0; t < T; t++)
        h[t * E + 3] = -50.0;
    bk_moe_figures f = figures_of(&counters, "topk", "", h, NULL);
    assert_true(f.dead == 1 && f.load_min_over_mean == 0.0);
    f = figures_of(&counters, "sinkhorn", "iterations=1 tolerance=1e-9", h, NULL);
    assert_true(f.router_unconverged == 1 && f.router_iterations == 1);
    f = figures_of(&counters, "sinkhorn", "iterations=1000 tolerance=1e-9", h, NULL);
    assert_true(f.dead == 0 && f.router_unconverged == 0 && f.soft_column_error < 1e-6);
    bk_arena_free(arena);
}

static void strange_logits_are_counted(void **state)
{
    double h[T * E];
    bk_arena *arena = bk_arena_new("run");
    bk_moe_state counters;
    (void)state;
    bk_moe_state_init(&counters, arena, E);
    bk_test_spread(T * E, h, 5, 2.0);
    h[0] = NAN;
    h[E + 1] = INFINITY;
    h[2 * E] = NAN; /* token 2 is padding */
    bk_moe_figures f = figures_of(&counters, "topk", "", h, NULL);
    assert_int_equal(f.nonfinite_logits, 2);
    assert_true(isfinite(f.token_entropy) && isfinite(f.soft_column_error));
    bk_arena_free(arena);
}

static void figures_do_not_depend_on_ranks(void **state)
{
    const char *kind[] = {"topk", "ssr"}, *options[] = {"", "probability=1 tolerance=1e-6"};
    double h[T * E];
    bk_arena *arena = bk_arena_new("run");
    (void)state;
    bk_test_spread(T * E, h, 5, 2.0);
    for (int i = 0; i < 2; i++) {
        bk_moe_state one, part;
        bk_moe_state_init(&one, arena, E);
        bk_moe_state_init(&part, arena, E);
        bk_moe_figures a = figures_of(&one, kind[i], options[i], h, NULL),
                       b = figures_of(&part, kind[i], options[i], h, world->route);
        double rows = 0.0;
        for (int e = 0; e < E; e++)
            rows += (double)one.load[e];
        int64_t most = (T + world->size - 1) / world->size;
        bk_check_error(fabs(b.rank_load_max_over_mean - (double)most * world->size / rows), 1e-12,
                       "rank load");
        bk_check_error(fabs(b.aux - a.aux), 1e-8, "aux");
        b.rank_load_max_over_mean = a.rank_load_max_over_mean;
        b.aux = a.aux; /* records of a quarter over three ranks round */
        b.z = a.z;
        assert_memory_equal(a.share, b.share, E * sizeof *a.share);
        b.share = a.share;
        assert_memory_equal(&a, &b, sizeof a);
    }
    bk_arena_free(arena);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures_are_their_definitions),
        cmocka_unit_test(some_count_since_the_last_figures),
        cmocka_unit_test(strange_logits_are_counted),
        cmocka_unit_test(figures_do_not_depend_on_ranks),
    };
    bk_test_ranks_start(&argc, &argv);
    world = bk_test_world();
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
