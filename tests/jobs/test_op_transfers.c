/* test: labels=grad,mpi timeout=120 */
/* birkhoff op hidden, attention: a formula by hand, the same over ranks, what is refused. */
#include "tests/support/op.h"

#include <math.h>

static bk_test_op op;

static void put_mask(int64_t samples, int64_t positions)
{
    int64_t *mask = BK_NEW(op.arena, int64_t, samples * positions);
    for (int64_t i = 0; i < samples * positions; i++)
        mask[i] = i % 4 != 2;
    bk_test_op_integers(&op, "mask", BK_SHAPE(samples, positions), mask);
}

/* One position of one sample: (w x - t)^2 for scalars. */
static void by_hand(void **state)
{
    const double x = 3.0, w = -0.5, t = 2.0;
    (void)state;
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "student", BK_SHAPE(1, 1, 1), &x);
    bk_test_op_reals(&op, "teacher", BK_SHAPE(1, 1, 1), &t);
    bk_test_op_reals(&op, "w", BK_SHAPE(1, 1), &w);
    bk_test_op_run(&op, 1, "hidden dtype=f64");
    assert_true(bk_test_op_numbers(&op, "loss")[0] == 12.25);
    assert_true(bk_test_op_numbers(&op, "grad/student")[0] == 2.0 * -3.5 * w);
    assert_true(bk_test_op_numbers(&op, "grad/w")[0] == 2.0 * -3.5 * x);
    assert_false(bk_test_op_has(&op, "grad/teacher"));
}

static void ranks_agree(void **state)
{
    bool same;
    (void)state;
    for (int64_t samples = 2; samples <= 9; samples += 7) {
        bk_test_op_renew(&op);
        bk_test_op_random(&op, "student", BK_SHAPE(samples, 3, 4), 1, -1.0, 1.0);
        bk_test_op_random(&op, "teacher", BK_SHAPE(samples, 3, 6), 2, -1.0, 1.0);
        bk_test_op_random(&op, "w", BK_SHAPE(6, 4), 3, -1.0, 1.0);
        put_mask(samples, 3);
        bk_check_error(bk_test_op_compare(&op, 3, "hidden measure=cosine", "", &same), 1e-6,
                       "hidden");
        bk_check_error(bk_test_op_compare(&op, 4, "hidden", "", &same), 1e-6, "hidden");
        assert_true(same);
    }
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "student", BK_SHAPE(5, 4, 3, 3), 1, 0.01, 1.0);
    bk_test_op_random(&op, "teacher", BK_SHAPE(5, 2, 3, 3), 2, 0.01, 1.0);
    put_mask(5, 3);
    bk_check_error(bk_test_op_compare(&op, 2, "attention heads=mean measure=kl", "", &same), 1e-6,
                   "attention");
    assert_true(same);
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "student", BK_SHAPE(2, 3, 4), 1, -1.0, 1.0);
    bk_test_op_random(&op, "teacher", BK_SHAPE(2, 3, 6), 2, -1.0, 1.0);
    bk_test_op_refuses(&op, 3, 2, "the student is 4 wide, the teacher 6", "hidden");
    bk_test_op_refuses(&op, 2, 2, "did you mean mse", "hidden measure=mse2");
    bk_test_op_refuses(&op, 2, 2, "acts in training only", "hidden layers=last");
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "student", BK_SHAPE(2, 3, 4), 1, -1.0, 1.0);
    bk_test_op_random(&op, "teacher", BK_SHAPE(2, 2, 4), 2, -1.0, 1.0);
    bk_test_op_refuses(&op, 3, 2, "teacher has the shape [2, 2, 4]", "hidden");
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "student", BK_SHAPE(2, 3, 2, 2), 1, 0.1, 1.0);
    bk_test_op_random(&op, "teacher", BK_SHAPE(2, 2, 2, 2), 2, 0.1, 1.0);
    bk_test_op_refuses(&op, 3, 2, "use heads=mean", "attention");
}

/* By sample, whichever rank has it; a map by its own row. */
static void numbers_are_wanted(void **state)
{
    double student[3 * 2 * 2] = {0}, w[2 * 2] = {0};
    (void)state;
    for (int bad = 0; bad < 2; bad++) {
        student[2 * 2 * 2] = bad ? 0.0 : NAN;
        w[2] = bad ? INFINITY : 0.0;
        bk_test_op_renew(&op);
        bk_test_op_reals(&op, "student", BK_SHAPE(3, 2, 2), student);
        bk_test_op_random(&op, "teacher", BK_SHAPE(3, 2, 2), 2, -1.0, 1.0);
        bk_test_op_reals(&op, "w", BK_SHAPE(2, 2), w);
        bk_test_op_refuses(&op, 3, 2,
                           bad ? "w is not finite in row 1" : "student is not finite in row 2",
                           "hidden");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_hand),
        cmocka_unit_test(ranks_agree),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(numbers_are_wanted),
    };
    return bk_test_op_tests(&op, NULL, tests, sizeof tests / sizeof *tests);
}
