/* test: labels=unit,golden timeout=300 */
/* Step counts of newton and sns, and sweeps of sinkhorn, beside those that the NumPy reference
 * takes on the same numbers: assignment (costs uniform on [0,1], masses 1/n), and two images of 20
 * x 20 pixels, each of four bells on a floor, under the squared and the plain distance along the
 * axes. */
#include "tests/support/transport.h"

#include <math.h>

static void near(int64_t steps, int64_t reference, int64_t slack, const char *what)
{
    if (steps < reference - slack || steps > reference + slack)
        fail_msg("%s: %lld steps, %lld expected", what, (long long)steps, (long long)reference);
}

/* ---- assignment ---- */

static void assignment_takes_the_steps_of_the_reference(void **state)
{
    static const struct {
        int64_t n;
        double eta;
        int64_t newton, sweeps, sns; /* sns 0: not compared */
    } cases[] = {{500, 10.0, 1, 5, 0},   {500, 50.0, 2, 5, 0},    {500, 200.0, 3, 15, 4},
                 {500, 600.0, 6, 25, 3}, {500, 1200.0, 8, 30, 6}, {200, 1200.0, 12, 30, 0},
                 {100, 1e5, 13, 60, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bk_test_transport t = bk_test_transport_open(BK_F64, cases[i].n, cases[i].n, 101);
        const char *common = bk_arena_printf(t.arena, "epsilon=%.17g tolerance=%g",
                                             1.0 / cases[i].eta, cases[i].n == 100 ? 1e-12 : 1e-11);
        bk_test_transport_converge(&t, bk_arena_printf(t.arena, "method=newton %s", common));
        near(t.result.newton_steps, cases[i].newton, 2, common);
        assert_int_equal(t.result.sweeps, cases[i].sweeps);
        if (cases[i].sns > 0) {
            bk_test_transport_converge(&t, bk_arena_printf(t.arena, "method=sns %s", common));
            near(t.result.newton_steps, cases[i].sns, 2, "sns");
            assert_int_equal(t.result.sweeps, 20);
        }
        bk_test_transport_close(&t);
    }
}

static void assignment_takes_the_sweeps_of_the_reference(void **state)
{
    static const struct {
        double eta;
        int64_t sweeps;
    } cases[] = {{10.0, 7}, {50.0, 14}, {200.0, 43}, {600.0, 482}};
    static const char *const modes[] = {"pform", "absorbed", "log"};
    (void)state;
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 3; k++) {
            bk_test_transport t = bk_test_transport_open(BK_F64, 500, 500, 101);
            bk_test_transport_converge(&t, bk_arena_printf(t.arena,
                                                           "mode=%s epsilon=%.17g tolerance=1e-11",
                                                           modes[k], 1.0 / cases[i].eta));
            near(t.result.sweeps, cases[i].sweeps, 1, modes[k]);
            bk_test_transport_close(&t);
        }
}

/* ---- messages ---- */

static void count_vector(void *context, const bk_lanes *lanes, int64_t n, const double *local,
                         double *out)
{
    bk_arena *scratch = bk_arena_new("count");
    bk_lane_tree_values(lanes->count, n, local, out, scratch);
    bk_arena_free(scratch);
    ++*(int64_t *)context;
}

static void count_fixed(void *context, int64_t n, int64_t *x)
{
    (void)n;
    (void)x;
    ++*(int64_t *)context;
}

static void count_max(void *context, int64_t n, double *x)
{
    (void)n;
    (void)x;
    ++*(int64_t *)context;
}

/* Tokens against experts: a sweep is one message, a Newton step at most three, and what comes
 * before and behind them a fixed number. */
static void messages_are_few(void **state)
{
    enum { AROUND = 8 };
    int64_t messages = 0, most;
    const bk_reducer reducer = {&messages, count_vector, count_fixed, count_max};
    (void)state;
    bk_test_transport t = bk_test_transport_open(BK_F64, 20000, 256, 7);
    t.reducer = &reducer;
    for (int sharp = 0; sharp < 2; sharp++) {
        messages = 0;
        bk_test_transport_converge(&t, sharp ? "method=newton epsilon=0.002"
                                             : "method=newton epsilon=0.05");
        most = t.result.sweeps + 3 * t.result.newton_steps + AROUND;
        assert_true(t.result.newton_steps >= 1 && (sharp || t.result.newton_steps < 10));
        if (messages > most)
            fail_msg("%lld messages for %lld sweeps and %lld steps", (long long)messages,
                     (long long)t.result.sweeps, (long long)t.result.newton_steps);
    }
    bk_test_transport_close(&t);
}

/* ---- images ---- */

enum { SIDE = 20, PIXELS = SIDE * SIDE, BELLS = 4 };

static double brightness(const double *bell, int pixel)
{
    double x = (double)(pixel / SIDE) / (SIDE - 1), y = (double)(pixel % SIDE) / (SIDE - 1),
           sum = 0.0;
    for (int k = 0; k < BELLS; k++, bell += 3) {
        double dx = x - (0.2 + 0.6 * bell[0]), dy = y - (0.2 + 0.6 * bell[1]);
        double width = 0.05 + 0.07 * bell[2];
        sum += exp(-(dx * dx + dy * dy) / (2.0 * width * width));
    }
    return sum;
}

static double *image(bk_test_transport *t, uint64_t tag)
{
    double *bell = bk_test_transport_fill(t, 3 * BELLS, tag, 0.0, 1.0), most = 0.0, mass = 0.0;
    double *x = BK_NEW(t->arena, double, PIXELS);
    for (int i = 0; i < PIXELS; i++) {
        x[i] = brightness(bell, i);
        most = fmax(most, x[i]);
    }
    for (int i = 0; i < PIXELS; i++) {
        x[i] = x[i] / most + 0.01;
        mass += x[i];
    }
    for (int i = 0; i < PIXELS; i++)
        x[i] /= mass;
    return x;
}

static bk_test_transport images(int power)
{
    bk_test_transport t = bk_test_transport_open(BK_F64, PIXELS, PIXELS, 1);
    t.a = image(&t, 131);
    t.b = image(&t, 132);
    for (int k = 0; k < PIXELS * PIXELS; k++) {
        int i = k / PIXELS, j = k % PIXELS;
        double dx = fabs((double)(i / SIDE - j / SIDE)) / (SIDE - 1),
               dy = fabs((double)(i % SIDE - j % SIDE)) / (SIDE - 1);
        t.cost[k] = 0.5 * (power == 2 ? dx * dx + dy * dy : dx + dy);
    }
    return t;
}

static void images_take_the_steps_of_the_reference(void **state)
{
    static const int64_t steps[2][4] = {{4, 7, 11, 13}, {6, 16, 25, 29}},
                         sweeps[4] = {5, 15, 25, 30};
    static const double eta[4] = {50.0, 200.0, 600.0, 1200.0};
    (void)state;
    for (int k = 0; k < 8; k++) {
        bk_test_transport t = images(k < 4 ? 2 : 1);
        const char *options = bk_arena_printf(
            t.arena, "method=newton epsilon=%.17g tolerance=1e-11", 1.0 / eta[k % 4]);
        bk_test_transport_converge(&t, options);
        near(t.result.newton_steps, steps[k / 4][k % 4], 2, options);
        assert_int_equal(t.result.sweeps, sweeps[k % 4]);
        bk_test_transport_close(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_are_few),
        cmocka_unit_test(assignment_takes_the_steps_of_the_reference),
        cmocka_unit_test(assignment_takes_the_sweeps_of_the_reference),
        cmocka_unit_test(images_take_the_steps_of_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
