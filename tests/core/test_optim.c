/* Optimizers against plain double loops and values by hand; bits that do not depend on the cut. */
#include "core/optim.h"

#include "core/rng.h"
#include "tests/support/check.h"

#include <math.h>
#include <string.h>

enum { N = 1000, STEPS = 20 };

typedef struct state_of {
    float x[N], m[N], v[N];
} state_of;

static void start(state_of *s)
{
    memset(s, 0, sizeof *s);
    for (int i = 0; i < N; i++)
        s->x[i] = (float)bk_fill((uint64_t)i, 1, -1.0, 1.0);
}

static void gradient(int64_t step, float *g)
{
    for (int i = 0; i < N; i++)
        g[i] = (float)(bk_fill((uint64_t)i, (uint64_t)step + 2, -1.0, 1.0) *
                       pow(10.0, i % 9 - 6.0)); /* 1e-6 .. 1e2 */
}

static void defaults(const bk_optimizer_kind *kind, void *config)
{
    bk_arena *arena = bk_arena_new("options");
    assert_int_equal(bk_options_read(kind->options, config, NULL, "optim", arena), BK_OK);
    bk_arena_free(arena);
}

/* Runs STEPS updates, each in pieces of `piece` elements. */
static void run(const bk_optimizer_kind *kind, state_of *s, double decay, float clip, int64_t piece)
{
    char config[256] = {0};
    float g[N];
    assert_true(kind->config_size <= sizeof config);
    defaults(kind, config);
    start(s);
    for (int64_t step = 1; step <= STEPS; step++) {
        gradient(step, g);
        for (int64_t at = 0; at < N; at += piece)
            kind->update(config, &(bk_update){.n = N - at < piece ? N - at : piece,
                                              .value = s->x + at,
                                              .grad = g + at,
                                              .m = kind->moments > 0 ? s->m + at : NULL,
                                              .v = kind->moments > 1 ? s->v + at : NULL,
                                              .clip = clip,
                                              .lr = 1e-2 / (double)step,
                                              .decay = decay,
                                              .step = step});
    }
}

/* ---- the same in double ---- */

static void plain_adamw(int i, double decay, double clip, double *x)
{
    double m = 0.0, v = 0.0;
    float g[N];
    for (int step = 1; step <= STEPS; step++) {
        gradient(step, g);
        double lr = 1e-2 / step, d = g[i] * clip;
        m = 0.9 * m + 0.1 * d;
        v = 0.999 * v + 0.001 * d * d;
        double mhat = m / (1.0 - pow(0.9, step)), vhat = v / (1.0 - pow(0.999, step));
        *x -= lr * (mhat / (sqrt(vhat) + 1e-8) + decay * *x);
    }
}

static void plain_sgd(int i, double decay, double clip, double *x)
{
    double m = 0.0;
    float g[N];
    for (int step = 1; step <= STEPS; step++) {
        gradient(step, g);
        m = 0.9 * m + g[i] * clip;
        *x -= 1e-2 / step * (m + decay * *x);
    }
}

static void check_against(const bk_optimizer_kind *kind,
                          void (*plain)(int i, double decay, double clip, double *x), double decay,
                          float clip)
{
    static state_of s, first;
    run(kind, &s, decay, clip, N);
    start(&first);
    for (int i = 0; i < N; i += 7) {
        double x = (double)first.x[i];
        plain(i, decay, (double)clip, &x);
        bk_check_error(fabs((double)s.x[i] - x) / fmax(1.0, fabs(x)), 2e-6, "%s, element %d",
                       kind->name, i);
    }
}

static void adamw_is_the_plain_loop(void **state)
{
    (void)state;
    check_against(&bk_optimizer_adamw, plain_adamw, 0.0, 1.0f);
    check_against(&bk_optimizer_adamw, plain_adamw, 0.5, 0.25f);
}

static void sgd_is_the_plain_loop(void **state)
{
    (void)state;
    check_against(&bk_optimizer_sgd, plain_sgd, 0.0, 1.0f);
    check_against(&bk_optimizer_sgd, plain_sgd, 0.5, 0.25f);
}

/* ---- by hand ---- */

static float one_update(const bk_optimizer_kind *kind, float x, float g, double lr, double decay)
{
    char config[256] = {0};
    float m = 0.0f, v = 0.0f;
    defaults(kind, config);
    kind->update(config, &(bk_update){.n = 1,
                                      .value = &x,
                                      .grad = &g,
                                      .m = &m,
                                      .v = &v,
                                      .clip = 1.0f,
                                      .lr = lr,
                                      .decay = decay,
                                      .step = 1});
    return x;
}

static void first_steps_by_hand(void **state)
{
    (void)state;
    /* bias correction makes the first step of Adam lr sign(g), whatever the size of g */
    bk_check_error(fabs(one_update(&bk_optimizer_adamw, 1.0f, 3.0f, 0.1, 0.0) - 0.9), 1e-6, "adam");
    bk_check_error(fabs(one_update(&bk_optimizer_adamw, 1.0f, -3e4f, 0.1, 0.0) - 1.1), 1e-6,
                   "adam, other sign");
    bk_check_error(fabs(one_update(&bk_optimizer_sgd, 1.0f, 3.0f, 0.1, 0.0) - 0.7), 1e-6, "sgd");
    /* decoupled: the decay is not divided by the root of the second moment */
    bk_check_error(fabs(one_update(&bk_optimizer_adamw, 2.0f, 3.0f, 0.1, 0.5) - 1.8), 1e-6,
                   "adamw");
    bk_check_error(fabs(one_update(&bk_optimizer_sgd, 2.0f, 0.0f, 0.1, 0.5) - 1.9), 1e-6,
                   "sgd with decay");
}

static void nothing_moves_without_gradient_and_decay(void **state)
{
    (void)state;
    for (int i = 0; bk_optimizers[i]; i++) {
        assert_true(one_update(bk_optimizers[i], 0.7f, 0.0f, 0.1, 0.0) == 0.7f);
        assert_true(one_update(bk_optimizers[i], 0.7f, 5.0f, 0.0, 0.3) == 0.7f);
    }
}

/* ---- every optimizer of the table ---- */

static void bits_do_not_depend_on_the_cut(void **state)
{
    static state_of whole, cut;
    const int64_t pieces[] = {1, 7, 16, 333};
    (void)state;
    for (int i = 0; bk_optimizers[i]; i++) {
        run(bk_optimizers[i], &whole, 0.1, 0.3f, N);
        for (int j = 0; j < 4; j++) {
            run(bk_optimizers[i], &cut, 0.1, 0.3f, pieces[j]);
            assert_memory_equal(&whole, &cut, sizeof whole);
        }
    }
}

/* Beyond 65,536 elements the threads share the loop. */
static void bits_do_not_depend_on_the_length(void **state)
{
    enum { LONG = 70000 };
    static float x[2][LONG], g[LONG], m[2][LONG], v[2][LONG];
    char config[256];
    (void)state;
    for (int i = 0; bk_optimizers[i]; i++) {
        memset(m, 0, sizeof m);
        memset(v, 0, sizeof v);
        defaults(bk_optimizers[i], config);
        for (int j = 0; j < LONG; j++) {
            x[0][j] = x[1][j] = (float)bk_fill((uint64_t)j, 1, -1, 1);
            g[j] = (float)bk_fill((uint64_t)j, 2, -1, 1);
        }
        bk_update u = {.n = LONG, .clip = 0.7f, .lr = 0.1, .decay = 0.01, .step = 3};
        u.value = x[0], u.grad = g, u.m = m[0], u.v = v[0];
        bk_optimizers[i]->update(config, &u);
        for (int at = 0; at < LONG; at += 1000) {
            u.n = 1000, u.value = x[1] + at, u.grad = g + at, u.m = m[1] + at, u.v = v[1] + at;
            bk_optimizers[i]->update(config, &u);
        }
        assert_memory_equal(x[0], x[1], sizeof x[0]);
        assert_memory_equal(m[0], m[1], sizeof m[0]);
        assert_memory_equal(v[0], v[1], sizeof v[0]);
    }
}

static void the_table_is_whole(void **state)
{
    (void)state;
    for (int i = 0; bk_optimizers[i]; i++) {
        const bk_optimizer_kind *k = bk_optimizers[i];
        assert_true(strlen(k->name) > 0 && strlen(k->summary) > 0 && k->options);
        assert_in_range(k->moments, 0, 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adamw_is_the_plain_loop),
        cmocka_unit_test(sgd_is_the_plain_loop),
        cmocka_unit_test(first_steps_by_hand),
        cmocka_unit_test(nothing_moves_without_gradient_and_decay),
        cmocka_unit_test(bits_do_not_depend_on_the_cut),
        cmocka_unit_test(bits_do_not_depend_on_the_length),
        cmocka_unit_test(the_table_is_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
