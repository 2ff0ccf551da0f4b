/* test: labels=unit,golden,grad timeout=120 */
/* Batches of small problems against a plain twin in double: plans and gradients, rows and columns
 * without mass, scores that lie far apart, slots that do not know of each other. */
#include "tests/support/check.h"

#include "core/blas.h"
#include "core/rng.h"
#include "core/transport/batch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 64 };

/* ---- the twin: one problem, potentials in double, every formula as it is written ---- */

typedef struct twin {
    int64_t n, m, half_steps;
    bool last_only;
    double s[MOST * MOST], a[MOST], b[MOST], g[MOST * MOST];
    double plan[MOST * MOST], ds[MOST * MOST];
    double u[64][MOST], v[64][MOST];
} twin;

static double lse(int64_t n, const double *x)
{
    double most = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, x[i]);
    for (int64_t i = 0; i < n; i++)
        sum += exp(x[i] - most);
    return most + log(sum);
}

static void twin_forward(twin *w)
{
    double x[MOST];
    memset(w->u[0], 0, sizeof w->u[0]);
    memset(w->v[0], 0, sizeof w->v[0]);
    for (int64_t t = 0; t < w->half_steps; t++) {
        memcpy(w->u[t + 1], w->u[t], sizeof w->u[t]);
        memcpy(w->v[t + 1], w->v[t], sizeof w->v[t]);
        for (int64_t i = 0; i < w->n && t % 2 == 0; i++) {
            for (int64_t j = 0; j < w->m; j++)
                x[j] = w->b[j] > 0 ? w->s[i * w->m + j] + w->v[t][j] : -INFINITY;
            w->u[t + 1][i] = log(w->a[i]) - lse(w->m, x);
        }
        for (int64_t j = 0; j < w->m && t % 2 == 1; j++) {
            for (int64_t i = 0; i < w->n; i++)
                x[i] = w->a[i] > 0 ? w->s[i * w->m + j] + w->u[t][i] : -INFINITY;
            w->v[t + 1][j] = log(w->b[j]) - lse(w->n, x);
        }
    }
    for (int64_t i = 0; i < w->n; i++)
        for (int64_t j = 0; j < w->m; j++)
            w->plan[i * w->m + j] =
                w->a[i] > 0 && w->b[j] > 0
                    ? exp(w->s[i * w->m + j] + w->u[w->half_steps][i] + w->v[w->half_steps][j])
                    : 0.0;
}

/* The softmax of half step t at (i, j): over j of a row step, over i of a column step. */
static double softmax_of(const twin *w, int64_t t, int64_t i, int64_t j)
{
    if (w->a[i] <= 0 || w->b[j] <= 0)
        return 0.0;
    double s = w->s[i * w->m + j];
    return t % 2 == 0 ? exp(s + w->v[t][j] + w->u[t + 1][i] - log(w->a[i]))
                      : exp(s + w->u[t][i] + w->v[t + 1][j] - log(w->b[j]));
}

static void twin_backward(twin *w)
{
    double ub[MOST] = {0}, vb[MOST] = {0};
    for (int64_t i = 0; i < w->n; i++)
        for (int64_t j = 0; j < w->m; j++) {
            double x = w->g[i * w->m + j] * w->plan[i * w->m + j];
            w->ds[i * w->m + j] = x;
            ub[i] += x;
            vb[j] += x;
        }
    for (int64_t t = w->half_steps - 1; t >= (w->last_only ? w->half_steps - 1 : 0); t--) {
        for (int64_t i = 0; i < w->n; i++)
            for (int64_t j = 0; j < w->m; j++) {
                double x = softmax_of(w, t, i, j) * (t % 2 == 0 ? ub[i] : vb[j]);
                w->ds[i * w->m + j] -= x;
                *(t % 2 == 0 ? &vb[j] : &ub[i]) -= x;
            }
        memset(t % 2 == 0 ? ub : vb, 0, sizeof ub);
    }
}

/* ---- a batch ---- */

typedef struct batch {
    bk_batch k;
    int64_t slots, blocks;
    void *s, *a, *b, *g, *plan, *ds;
    bk_arena *arena;
} batch;

static void set(const batch *x, void *array, int64_t i, double value)
{
    bk_real_put(x->k.dtype, array, i, value);
}

static double get(const batch *x, const void *array, int64_t i)
{
    return bk_real_get(x->k.dtype, array, i);
}

/* Element i of `count` of problem p. */
static int64_t at(const batch *x, int64_t p, int64_t count, int64_t i)
{
    return (p / x->slots * count + i) * x->slots + p % x->slots;
}

/* Scores of problem p span `spread` (more in every third one); every fifth has a row and a column
 * less. */
static double score(int64_t p, int64_t i, double spread)
{
    return bk_fill((uint64_t)(p * 5000 + i), 1, 0.0, p % 3 == 2 ? spread : 4.0);
}

static double mass(int64_t p, int64_t i, int64_t n, uint64_t tag)
{
    if (p % 5 == 4 && n > 1 && i == n / 2)
        return 0.0;
    return bk_fill((uint64_t)(p * 100 + i), tag, 0.5, 1.5) / (double)n;
}

static void *take(batch *x, int64_t count)
{
    size_t bytes = (size_t)(x->blocks * count * x->slots) * bk_dtype_size(x->k.dtype);
    return bk_arena_zalloc(x->arena, bytes);
}

static batch make(bk_dtype dtype, int64_t problems, int64_t n, int64_t m, double spread)
{
    batch x = {.k = {.dtype = dtype, .problems = problems, .rows = n, .columns = m},
               .slots = bk_slots(dtype),
               .arena = bk_arena_new("batch")};
    x.blocks = (problems + x.slots - 1) / x.slots;
    void **square[] = {&x.s, &x.g, &x.plan, &x.ds};
    for (int i = 0; i < 4; i++)
        *square[i] = take(&x, n * m);
    x.a = take(&x, n);
    x.b = take(&x, m);
    for (int64_t p = 0; p < problems; p++) {
        for (int64_t i = 0; i < n * m; i++) {
            set(&x, x.s, at(&x, p, n * m, i), score(p, i, spread));
            set(&x, x.g, at(&x, p, n * m, i), bk_fill((uint64_t)(p * 5000 + i), 2, -1.0, 1.0));
        }
        for (int64_t i = 0; i < n; i++)
            set(&x, x.a, at(&x, p, n, i), mass(p, i, n, 3));
        for (int64_t j = 0; j < m; j++)
            set(&x, x.b, at(&x, p, m, j), mass(p, j, m, 4));
    }
    x.k.s = x.s;
    x.k.a = x.a;
    x.k.b = x.b;
    return x;
}

static twin *twin_of(const batch *x, int64_t p, bool last_only)
{
    twin *w = calloc(1, sizeof *w);
    w->n = x->k.rows;
    w->m = x->k.columns;
    w->half_steps = x->k.half_steps;
    w->last_only = last_only;
    for (int64_t i = 0; i < w->n * w->m; i++) {
        w->s[i] = get(x, x->s, at(x, p, w->n * w->m, i));
        w->g[i] = get(x, x->g, at(x, p, w->n * w->m, i));
    }
    for (int64_t i = 0; i < w->n; i++)
        w->a[i] = get(x, x->a, at(x, p, w->n, i));
    for (int64_t j = 0; j < w->m; j++)
        w->b[j] = get(x, x->b, at(x, p, w->m, j));
    twin_forward(w);
    twin_backward(w);
    return w;
}

/* Relative to the largest entry of the plan: gradients may cancel to nothing. */
static double error_of(const batch *x, const void *array, int64_t p, const double *reference,
                       const double *plan)
{
    int64_t count = x->k.rows * x->k.columns;
    double worst = 0.0, most = 0.0;
    for (int64_t i = 0; i < count; i++) {
        worst = fmax(worst, fabs(get(x, array, at(x, p, count, i)) - reference[i]));
        worst = isnan(get(x, array, at(x, p, count, i))) ? INFINITY : worst;
        most = fmax(most, plan[i]);
    }
    return worst / most;
}

static void hold(bk_dtype dtype, int64_t n, int64_t m, int64_t half_steps, double spread,
                 bool last_only)
{
    batch x = make(dtype, 21, n, m, spread);
    x.k.half_steps = half_steps;
    bk_transport_batch(&x.k, x.plan, x.arena);
    bk_transport_batch_backward(&x.k, last_only, x.g, x.ds, x.arena);
    for (int64_t p = 0; p < x.k.problems; p++) {
        twin *w = twin_of(&x, p, last_only);
        double limit = dtype == BK_F64 ? 1e-12 : 1e-5;
        limit *= spread > 10.0 ? spread / 4.0 : 1.0; /* scores have so many digits before the dot */
        bk_check_error(error_of(&x, x.plan, p, w->plan, w->plan), limit,
                       "plan %dx%d, %d half steps", (int)n, (int)m, (int)half_steps);
        bk_check_error(error_of(&x, x.ds, p, w->ds, w->plan), limit * 4,
                       "ds %dx%d, %d half steps of problem %d", (int)n, (int)m, (int)half_steps,
                       (int)p);
        free(w);
    }
    bk_arena_free(x.arena);
}

static void plans_and_gradients_are_those_of_the_twin(void **state)
{
    const int64_t shape[][2] = {{1, 1}, {4, 4}, {3, 7}, {16, 16}, {9, 5}, {64, 64}};
    (void)state;
    for (int i = 0; i < 6; i++)
        for (int64_t half_steps = 1; half_steps <= 6; half_steps++) {
            hold(BK_F64, shape[i][0], shape[i][1], half_steps, 4.0, half_steps == 4);
            hold(BK_F32, shape[i][0], shape[i][1], half_steps, 4.0, half_steps == 5);
        }
    hold(BK_F64, 8, 8, 41, 4.0, false);
}

/* Where multiplication alone would lose entries: some slots of the block take their potentials. */
static void scores_far_apart_lose_nothing(void **state)
{
    (void)state;
    for (int64_t half_steps = 1; half_steps <= 5; half_steps++) {
        hold(BK_F32, 6, 6, half_steps, 300.0, false);
        hold(BK_F64, 6, 6, half_steps, 3000.0, false);
        hold(BK_F64, 7, 3, half_steps, 3000.0, true);
    }
}

static void entries_without_mass_are_zero(void **state)
{
    batch x = make(BK_F32, 10, 6, 6, 4.0);
    (void)state;
    x.k.half_steps = 3;
    for (int64_t i = 0; i < 6; i++) { /* whatever stands there is not read */
        set(&x, x.s, at(&x, 4, 36, 3 * 6 + i), NAN);
        set(&x, x.g, at(&x, 4, 36, i * 6 + 3), NAN);
    }
    bk_transport_batch(&x.k, x.plan, x.arena);
    bk_transport_batch_backward(&x.k, false, x.g, x.ds, x.arena);
    for (int64_t i = 0; i < 36; i++) {
        bool gone = i / 6 == 3 || i % 6 == 3;
        assert_true((get(&x, x.plan, at(&x, 4, 36, i)) == 0.0) == gone);
        assert_true((get(&x, x.ds, at(&x, 4, 36, i)) == 0.0) == gone);
    }
    bk_arena_free(x.arena);
}

/* The bits of a problem among others, and in any slot, are those of the problem alone. */
static void slots_do_not_know_of_each_other(void **state)
{
    (void)state;
    batch all = make(BK_F32, 21, 5, 5, 300.0);
    all.k.half_steps = 5;
    bk_transport_batch(&all.k, all.plan, all.arena);
    bk_transport_batch_backward(&all.k, false, all.g, all.ds, all.arena);
    for (int64_t p = 0; p < 21; p++) {
        batch one = make(BK_F32, 1, 5, 5, 300.0);
        one.k.half_steps = 5;
        void *const to[] = {one.s, one.g, one.a, one.b}, *const from[] = {all.s, all.g, all.a,
                                                                          all.b};
        for (int k = 0; k < 4; k++)
            for (int64_t i = 0; i < (k < 2 ? 25 : 5); i++)
                set(&one, to[k], at(&one, 0, 0, 0) + i * one.slots,
                    get(&all, from[k], at(&all, p, k < 2 ? 25 : 5, i)));
        bk_transport_batch(&one.k, one.plan, one.arena);
        bk_transport_batch_backward(&one.k, false, one.g, one.ds, one.arena);
        for (int64_t i = 0; i < 25; i++) {
            assert_true(get(&one, one.plan, i * one.slots) ==
                        get(&all, all.plan, at(&all, p, 25, i)));
            assert_true(get(&one, one.ds, i * one.slots) == get(&all, all.ds, at(&all, p, 25, i)));
        }
        bk_arena_free(one.arena);
    }
    bk_arena_free(all.arena);
}

/* A larger problem by itself, against the twin at the size that it can hold. */
static void one_problem_is_that_of_the_twin(void **state)
{
    twin *w = calloc(1, sizeof *w);
    bk_arena *arena = bk_arena_new("single");
    (void)state;
    *w = (twin){.n = 64, .m = 49, .half_steps = 5};
    for (int64_t i = 0; i < w->n * w->m; i++) {
        w->s[i] = bk_fill((uint64_t)i, 1, 0.0, 2000.0); /* most columns see no mass at first */
        w->g[i] = bk_fill((uint64_t)i, 2, -1.0, 1.0);
    }
    for (int64_t i = 0; i < w->n; i++)
        w->a[i] = bk_fill((uint64_t)i, 3, 0.01, 0.02);
    for (int64_t j = 0; j < w->m; j++)
        w->b[j] = bk_fill((uint64_t)j, 4, 0.01, 0.02);
    twin_forward(w);
    twin_backward(w);
    bk_batch_single k = {.rows = w->n, .columns = w->m, .half_steps = 5, .s = w->s, .a = w->a};
    k.b = w->b;
    k.g = w->g;
    k.plan = BK_NEW(arena, double, w->n * w->m);
    k.ds = BK_NEW(arena, double, w->n * w->m);
    void *work = bk_arena_alloc(arena, bk_batch_single_size(BK_F64, w->n, w->m, 5));
    bk_batch_single_forward(BK_F64, &k, work);
    bk_batch_single_backward(BK_F64, &k);
    bk_check_error(bk_test_error(w->n * w->m, k.plan, w->plan, 1e-30), 1e-11, "plan");
    bk_check_error(bk_test_error(w->n * w->m, k.ds, w->ds, 1e-30), 1e-11, "ds");
    bk_arena_free(arena);
    free(w);
}

/* ---- scores of any size ---- */

/* Plan and ds of one problem of order n, uniform masses, by slots or by itself. */
typedef struct sharp {
    bk_dtype dtype;
    int64_t n, half_steps;
    void *s, *mass, *g, *plan, *ds;
    bk_arena *arena;
} sharp;

static sharp make_sharp(bk_dtype dtype, int64_t n, int64_t half_steps, double size)
{
    sharp x = {.dtype = dtype, .n = n, .half_steps = half_steps, .arena = bk_arena_new("sharp")};
    void **square[] = {&x.s, &x.g, &x.plan, &x.ds, &x.mass};
    for (int i = 0; i < 5; i++)
        *square[i] = bk_arena_zalloc(x.arena, (size_t)(n * n) * BK_SLOT_BYTES);
    for (int64_t i = 0; i < n * n; i++) {
        bk_real_put(dtype, x.s, i, bk_fill((uint64_t)i, 1, -size, size));
        bk_real_put(dtype, x.g, i, bk_fill((uint64_t)i, 2, -1.0, 1.0));
    }
    for (int64_t i = 0; i < n; i++)
        bk_real_put(dtype, x.mass, i, 1.0 / (double)n);
    return x;
}

static void solve_alone(const sharp *x)
{
    bk_batch_single k = {.rows = x->n,
                         .columns = x->n,
                         .half_steps = x->half_steps,
                         .s = x->s,
                         .a = x->mass,
                         .b = x->mass,
                         .plan = x->plan,
                         .g = x->g,
                         .ds = x->ds};
    size_t bytes = bk_batch_single_size(x->dtype, x->n, x->n, x->half_steps);
    bk_batch_single_forward(x->dtype, &k, bk_arena_alloc(x->arena, bytes));
    bk_batch_single_backward(x->dtype, &k);
}

/* The problem in slot 0, nothing in the others. */
static void solve_in_slots(const sharp *x)
{
    int64_t count = x->n * x->n, slots = bk_slots(x->dtype);
    size_t bytes = (size_t)count * BK_SLOT_BYTES;
    void *block[5], *const own[] = {x->s, x->mass, x->g, x->plan, x->ds};
    for (int i = 0; i < 5; i++)
        block[i] = bk_arena_zalloc(x->arena, bytes);
    for (int i = 0; i < 3; i++)
        for (int64_t j = 0; j < count; j++)
            bk_real_put(x->dtype, block[i], j * slots, bk_real_get(x->dtype, own[i], j));
    bk_batch k = {.dtype = x->dtype,
                  .problems = 1,
                  .rows = x->n,
                  .columns = x->n,
                  .half_steps = x->half_steps,
                  .s = block[0],
                  .a = block[1],
                  .b = block[1]};
    bk_transport_batch(&k, block[3], x->arena);
    bk_transport_batch_backward(&k, false, block[2], block[4], x->arena);
    for (int i = 3; i < 5; i++)
        for (int64_t j = 0; j < count; j++)
            bk_real_put(x->dtype, own[i], j, bk_real_get(x->dtype, block[i], j * slots));
}

/* Of n times the matrix, largest |sum of a line - target|. */
static double line_error(const sharp *x, const void *matrix, bool columns, double target)
{
    int64_t n = x->n;
    double worst = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double sum = 0.0;
        for (int64_t j = 0; j < n; j++)
            sum += bk_real_get(x->dtype, matrix, columns ? j * n + i : i * n + j);
        double error = fabs((double)n * sum - target);
        worst = error <= worst ? worst : error;
    }
    return worst;
}

/* n times the plan against the softmax of the rows of the scores. */
static double softmax_error(const sharp *x)
{
    int64_t n = x->n;
    double worst = 0.0, e[2 * MOST];
    for (int64_t i = 0; i < n; i++) {
        double most = -INFINITY, sum = 0.0;
        for (int64_t j = 0; j < n; j++)
            most = fmax(most, bk_real_get(x->dtype, x->s, i * n + j));
        for (int64_t j = 0; j < n; j++)
            sum += e[j] = exp(bk_real_get(x->dtype, x->s, i * n + j) - most);
        for (int64_t j = 0; j < n; j++) {
            double p = (double)n * bk_real_get(x->dtype, x->plan, i * n + j);
            worst = fabs(p - e[j] / sum) <= worst ? worst : fabs(p - e[j] / sum);
        }
    }
    return worst;
}

/* A constant on the scores of a row moves no plan: the rows of ds sum to 0. */
static void hold_sharp(bk_dtype dtype, int64_t n, double size)
{
    double limit = dtype == BK_F64 ? 1e-14 : 2e-6;
    for (int64_t half_steps = 1; half_steps <= 6; half_steps++) {
        sharp x = make_sharp(dtype, n, half_steps, size);
        (n <= BK_BATCH_MOST ? solve_in_slots : solve_alone)(&x);
        bk_check_error(line_error(&x, x.plan, half_steps % 2 == 0, 1.0), limit,
                       "%d half steps of %g, n = %d", (int)half_steps, size, (int)n);
        bk_check_error(line_error(&x, x.ds, false, 0.0), limit * 4, "rows of ds, %g", size);
        if (half_steps == 1)
            bk_check_error(softmax_error(&x), limit, "softmax of %g", size);
        bk_arena_free(x.arena);
    }
}

static void the_last_side_is_exact_for_any_scores(void **state)
{
    const int64_t orders[] = {1, 6, 64, 70};
    (void)state;
    for (int i = 0; i < 4; i++) {
        for (double size = 1.0; size < 2e20; size *= size < 1e6 ? 1e3 : 1e14) {
            hold_sharp(BK_F32, orders[i], size);
            hold_sharp(BK_F64, orders[i], size);
        }
        hold_sharp(BK_F64, orders[i], 1e300);
    }
}

/* sink_A_k = n P, sink_dS_k for G = dL/dA: with g = n G. */
static void golden_values(void **state)
{
    json_t *golden = bk_test_golden("ref_ot_golden.json");
    int64_t count;
    double *s = bk_test_numbers(json_object_get(golden, "S"), &count),
           *g = bk_test_numbers(json_object_get(golden, "G"), &count), a[16], ds[16];
    (void)state;
    for (int half_steps = 1; half_steps <= 5; half_steps += 2) {
        char name[32];
        batch x = make(BK_F64, 1, 4, 4, 4.0);
        x.k.half_steps = half_steps;
        for (int64_t i = 0; i < 16; i++) {
            set(&x, x.s, at(&x, 0, 16, i), s[i]);
            set(&x, x.g, at(&x, 0, 16, i), 4.0 * g[i]);
        }
        for (int64_t i = 0; i < 4; i++) {
            set(&x, x.a, at(&x, 0, 4, i), 0.25);
            set(&x, x.b, at(&x, 0, 4, i), 0.25);
        }
        bk_transport_batch(&x.k, x.plan, x.arena);
        bk_transport_batch_backward(&x.k, false, x.g, x.ds, x.arena);
        for (int64_t i = 0; i < 16; i++) {
            a[i] = 4.0 * get(&x, x.plan, at(&x, 0, 16, i));
            ds[i] = get(&x, x.ds, at(&x, 0, 16, i));
        }
        snprintf(name, sizeof name, "sink_A_%d", half_steps);
        double *reference = bk_test_numbers(json_object_get(golden, name), &count);
        bk_check_error(bk_test_error(16, a, reference, 1e-30), 1e-10, "%s", name);
        free(reference);
        snprintf(name, sizeof name, "sink_dS_%d", half_steps);
        reference = bk_test_numbers(json_object_get(golden, name), &count);
        bk_check_error(bk_test_error(16, ds, reference, 1e-30), 1e-10, "%s", name);
        free(reference);
        bk_arena_free(x.arena);
    }
    free(s);
    free(g);
    json_decref(golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_and_gradients_are_those_of_the_twin),
        cmocka_unit_test(scores_far_apart_lose_nothing),
        cmocka_unit_test(entries_without_mass_are_zero),
        cmocka_unit_test(slots_do_not_know_of_each_other),
        cmocka_unit_test(one_problem_is_that_of_the_twin),
        cmocka_unit_test(the_last_side_is_exact_for_any_scores),
        cmocka_unit_test(golden_values),
    };
    if (bk_blas_setup(2, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
