/* test: labels=golden,mpi timeout=300 */
/* birkhoff op <loss>: the golden values from a file, and the same over ranks. */
#include "tests/support/op.h"

#include "core/rng.h"

#include <math.h>
#include <string.h>

static bk_test_op op;

/* s[i][v] = 2.5 sin(1 + 0.9 i + 0.37 v (i+1)), t[i][v] = 2.5 cos(0.5 + 0.6 i + 0.53 v (i+2)). */
static void put_closed_form(const char *student, int64_t rows, int64_t classes)
{
    double *s = BK_NEW(op.arena, double, rows *classes),
           *t = BK_NEW(op.arena, double, rows *classes);
    for (int64_t k = 0; k < rows * classes; k++) {
        double i = (double)(k / classes), v = (double)(k % classes);
        s[k] = 2.5 * sin(1.0 + 0.9 * i + 0.37 * v * (i + 1.0));
        t[k] = 2.5 * cos(0.5 + 0.6 * i + 0.53 * v * (i + 2.0));
    }
    bk_test_op_reals(&op, student, BK_SHAPE(rows, classes), s);
    if (strcmp(student, "student") == 0)
        bk_test_op_reals(&op, "teacher", BK_SHAPE(rows, classes), t);
}

/* ---- one golden entry ---- */

/* Loss, the first numbers of row 0 of the gradient, the sum of its absolute values. */
static void hold(const json_t *entry, const char *row, const char *student, bool wide)
{
    int64_t count;
    double loss = json_number_value(json_object_get(entry, "loss")), sum = 0.0, most = 0.0;
    double *reference = bk_test_numbers(json_object_get(entry, row), &count);
    const bk_tensor *grad = bk_test_op_array(&op, bk_arena_printf(op.arena, "grad/%s", student));
    for (int64_t i = 0; i < bk_count(grad); i++) {
        sum += fabs(bk_f64(grad)[i]);
        most = fmax(most, fabs(bk_f64(grad)[i]));
    }
    double limit = wide ? 1e-8 : 1e-5;
    bk_check_error(fabs(bk_test_op_numbers(&op, "loss")[0] - loss) / fabs(loss), wide ? 1e-9 : 1e-6,
                   "loss");
    bk_check_error(bk_test_error(count, grad->data, reference, most), limit, "%s", row);
    if (strcmp(row, "grad_row0") == 0) {
        double total = json_number_value(json_object_get(entry, "grad_sum_abs"));
        bk_check_error(fabs(sum - total) / total, limit, "sum of the gradient");
    }
    free(reference);
}

/* In double on three ranks, and every fourth in float on one; the last output stays open. */
static void golden_entry(const json_t *entry, const char *student, const char *arguments)
{
    static int entries;
    if (entries++ % 4 == 0) {
        bk_test_op_run(&op, 1, arguments);
        hold(entry, "grad_row0", student, false);
    }
    bk_test_op_run(&op, 3, bk_arena_printf(op.arena, "%s dtype=f64", arguments));
    hold(entry, "grad_row0", student, true);
}

static const char *option(const json_t *entry, const char *key)
{
    const json_t *value = json_object_get(entry, key);
    if (!value)
        return "";
    return bk_arena_printf(op.arena, " %s=%.17g", key, json_number_value(value));
}

static void put_labels(const json_t *entry)
{
    int64_t count, labels[64];
    double *numbers = bk_test_numbers(json_object_get(entry, "labels"), &count);
    assert_in_range(count, 1, 64);
    for (int64_t i = 0; i < count; i++)
        labels[i] = (int64_t)numbers[i];
    bk_test_op_integers(&op, "labels", BK_SHAPE(count), labels);
    free(numbers);
}

static void golden_rows(void **state)
{
    size_t i;
    json_t *entry;
    int held = 0;
    (void)state;
    json_array_foreach(json_object_get(op.golden, "rows"), i, entry)
    {
        const char *kind = json_string_value(json_object_get(entry, "kind"));
        bool labels = json_object_get(entry, "labels") != NULL;
        bk_test_op_renew(&op);
        put_closed_form(labels ? "logits" : "student", 8, 50);
        if (labels)
            put_labels(entry);
        golden_entry(entry, labels ? "logits" : "student",
                     bk_arena_printf(op.arena, "%s%s%s%s%s", kind, option(entry, "skew"),
                                     option(entry, "beta"), labels ? "" : option(entry, "top_k"),
                                     option(entry, "label_smoothing")));
        held++;
    }
    assert_int_equal(held, 16);
}

static void hold_plan(const json_t *entry, int64_t rows)
{
    const char *const names[] = {"C00", "C01", "P00", "P01"};
    const double *cost = bk_test_op_numbers(&op, "cost"), *plan = bk_test_op_numbers(&op, "plan");
    const double own[] = {cost[0], cost[1], plan[0], plan[1]};
    assert_int_equal(bk_count(bk_test_op_array(&op, "plan")), rows * rows);
    for (int i = 0; i < 4; i++) {
        double reference = json_number_value(json_object_get(entry, names[i]));
        bk_check_error(fabs(own[i] - reference), 1e-9, "%s", names[i]);
    }
    double violation = json_number_value(json_object_get(entry, "row_violation"));
    bk_check_error(fabs(bk_test_op_attribute(&op, "row_violation") - violation), 1e-9,
                   "row violation");
}

static void golden_sinkd(void **state)
{
    size_t i;
    json_t *entry;
    (void)state;
    json_array_foreach(json_object_get(op.golden, "sinkd"), i, entry)
    {
        int64_t rows = json_integer_value(json_object_get(entry, "B"));
        bk_test_op_renew(&op);
        put_closed_form("student", rows, json_integer_value(json_object_get(entry, "V")));
        const char *options =
            bk_arena_printf(op.arena, "sinkd reduction=sum%s%s", option(entry, "epsilon"),
                            option(entry, "iterations"));
        golden_entry(entry, "student", bk_arena_printf(op.arena, "%s plan=true", options));
        hold_plan(entry, rows);
        bk_test_op_run(&op, 1, bk_arena_printf(op.arena, "%s gradient=envelope", options));
        hold(entry, "envelope_row0", "student", false);
        bk_test_op_run(&op, 1,
                       bk_arena_printf(op.arena, "%s gradient=implicit dtype=f64", options));
        hold(entry, "implicit_row0", "student", true);
        assert_true(bk_test_op_attribute(&op, "cg_residual") <= 1e-12);
    }
}

static void put_integers(const json_t *entry, const char *key)
{
    const json_t *array = json_object_get(entry, key);
    int64_t values[64];
    for (size_t i = 0; i < json_array_size(array); i++)
        values[i] = json_integer_value(json_array_get(array, i));
    if (array)
        bk_test_op_integers(&op, key, BK_SHAPE((int64_t)json_array_size(array)), values);
}

static void golden_options(void **state)
{
    size_t i;
    json_t *entry;
    int held = 0;
    (void)state;
    json_array_foreach(json_object_get(op.golden, "options"), i, entry)
    {
        bool debias = strcmp(json_string_value(json_object_get(entry, "option")), "debias") == 0;
        const json_t *group = json_object_get(entry, "group");
        bk_test_op_renew(&op);
        put_closed_form("student", json_integer_value(json_object_get(entry, "B")),
                        json_integer_value(json_object_get(entry, "V")));
        put_integers(entry, "mask");
        put_integers(entry, "groups");
        const char *value = json_is_string(group) ? json_string_value(group)
                            : group
                                ? bk_arena_printf(op.arena, "%d", (int)json_integer_value(group))
                                : "global";
        golden_entry(entry, "student",
                     bk_arena_printf(op.arena, "sinkd reduction=sum group=%s%s%s", value,
                                     option(entry, "top_k"), debias ? " debias=true" : ""));
        if (json_object_get(entry, "mean_tail"))
            bk_check_error(fabs(bk_test_op_attribute(&op, "teacher_tail") -
                                json_number_value(json_object_get(entry, "mean_tail"))),
                           1e-12, "teacher_tail");
        held++;
    }
    assert_int_equal(held, 8);
}

/* ---- over ranks, with fewer rows than ranks, and none ---- */

static void put_random(int64_t rows, int64_t classes, bool masked)
{
    bk_test_op_renew(&op);
    bk_test_op_random(&op, "student", BK_SHAPE(rows, classes), 60, -4.0, 4.0);
    bk_test_op_random(&op, "teacher", BK_SHAPE(rows, classes), 61, -4.0, 4.0);
    int64_t *mask = BK_NEW(op.arena, int64_t, rows);
    for (int64_t i = 0; i < rows; i++)
        mask[i] = i % 4 != 1;
    if (masked)
        bk_test_op_integers(&op, "mask", BK_SHAPE(rows), mask);
}

static void ranks_agree(void **state)
{
    const char *const calls[] = {"kl skew=0.1", "sinkd plan=true",
                                 "sinkd group=5 gradient=envelope"};
    const struct {
        int64_t rows;
        bool masked;
        int ranks;
        bool bits;
    } cases[] = {
        {70, false, 2, true}, {70, true, 4, true}, {2, false, 4, true}, {11, true, 3, false}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool same;
        put_random(cases[i].rows, 9, cases[i].masked);
        for (size_t k = 0; k < sizeof calls / sizeof *calls; k++) {
            bk_check_error(bk_test_op_compare(&op, cases[i].ranks, calls[k], "", &same), 1e-6, "%s",
                           calls[k]);
            assert_true(same || !cases[i].bits);
        }
    }
}

/* The three largest of random rows: the same as the whole rows with top_k=3. */
static void the_largest_logits_are_enough(void **state)
{
    enum { ROWS = 6, V = 9, K = 3 };
    const char *const calls[] = {"kl", "sinkd", "js top_k=3"};
    (void)state;
    for (size_t n = 0; n < sizeof calls / sizeof *calls; n++) {
        int64_t index[ROWS * K];
        double value[ROWS * K], lse[ROWS], teacher[ROWS * V], *student;
        put_random(ROWS, V, false);
        bk_test_op_run(
            &op, 1, bk_arena_printf(op.arena, "%s %s dtype=f64", calls[n], n < 2 ? "top_k=3" : ""));
        double loss = bk_test_op_numbers(&op, "loss")[0];
        bk_tensor *grad = bk_test_op_array(&op, "grad/student");
        student = BK_NEW(op.arena, double, ROWS *V);
        for (int64_t i = 0; i < ROWS * V; i++) {
            student[i] = bk_fill((uint64_t)i, 60, -4.0, 4.0);
            teacher[i] = bk_fill((uint64_t)i, 61, -4.0, 4.0);
        }
        for (int i = 0; i < ROWS; i++) {
            lse[i] = 0.0;
            for (int v = 0; v < V; v++) {
                int place = 0;
                lse[i] += exp(teacher[i * V + v] / 2.0);
                for (int u = 0; u < V; u++)
                    place += teacher[i * V + u] > teacher[i * V + v];
                if (place < K) {
                    index[i * K + place] = v;
                    value[i * K + place] = teacher[i * V + v];
                }
            }
            lse[i] = log(lse[i]);
        }
        bk_test_op_renew(&op);
        bk_test_op_reals(&op, "student", BK_SHAPE(ROWS, V), student);
        bk_test_op_integers(&op, "teacher_index", BK_SHAPE(ROWS, K), index);
        bk_test_op_reals(&op, "teacher_value", BK_SHAPE(ROWS, K), value);
        bk_test_op_reals(&op, "teacher_lse", BK_SHAPE(ROWS), lse);
        bk_test_op_run(&op, 2, bk_arena_printf(op.arena, "%s dtype=f64", calls[n]));
        bk_check_error(fabs(bk_test_op_numbers(&op, "loss")[0] - loss), 1e-13, "%s", calls[n]);
        bk_check_error(
            bk_test_error(ROWS * V, bk_test_op_array(&op, "grad/student")->data, grad->data, 1e-30),
            1e-10, "%s", calls[n]);
    }
}

static void wrong_teachers_are_refused(void **state)
{
    static const struct {
        const char *arguments, *says;
        int64_t index; /* of the second class of row 1 */
        double value;  /* its logit */
        bool whole;
        double lse; /* of row 1; 0: not given */
        int status;
    } cases[] = {
        {"kl", "none of 5 classes", 5, 1.0, false, 2.0, 3},
        {"sinkd", "none of 5 classes", -1, 1.0, false, 2.0, 3},
        {"kl", "class 0 twice in row 1", 0, 1.0, false, 2.0, 3},
        {"js", "teacher_value is not finite in row 1", 1, NAN, false, 2.0, 3},
        {"tv top_k=1", "teacher_value rises in row 1", 1, 9.0, false, 2.0, 3},
        {"kl top_k=4", "top_k=4, but 2 classes", 1, 1.0, false, 2.0, 2},
        {"kl top_k=-1", "top_k=-1 is out of range", 1, 1.0, false, 2.0, 2},
        {"kl", "teacher_index is not read by kl beside teacher", 1, 1.0, true, 2.0, 2},
        {"kl", "input teacher_lse is missing", 1, 1.0, false, 0.0, 2},
        {"sinkd debias=true", "with debias", 1, 1.0, false, 2.0, 2},
        {"reverse_kl", "teacher_lse is not finite in row 1", 1, 1.0, false, NAN, 3},
        {"sinkd debias=true top_k=2", "would not cancel", 1, 1.0, false, 2.0, 2},
    };
    const double student[10] = {0};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t index[4] = {3, 1, 0, cases[i].index};
        double value[4] = {2.0, 1.0, 2.0, cases[i].value}, lse[2] = {2.0, cases[i].lse};
        bk_test_op_renew(&op);
        bk_test_op_reals(&op, "student", BK_SHAPE(2, 5), student);
        if (cases[i].whole)
            bk_test_op_reals(&op, "teacher", BK_SHAPE(2, 5), student);
        bk_test_op_integers(&op, "teacher_index", BK_SHAPE(2, 2), index);
        bk_test_op_reals(&op, "teacher_value", BK_SHAPE(2, 2), value);
        if (cases[i].lse != 0.0)
            bk_test_op_reals(&op, "teacher_lse", BK_SHAPE(2), lse);
        bk_test_op_refuses(&op, cases[i].status, i % 2 ? 2 : 1, cases[i].says, cases[i].arguments);
    }
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "student", BK_SHAPE(2, 5), student);
    bk_test_op_refuses(&op, 2, 1, "input teacher is missing", "kl");
}

static void a_given_gradient_scales(void **state)
{
    (void)state;
    put_random(5, 7, false);
    bk_test_op_run(&op, 1, "kl dtype=f64");
    bk_tensor *plain = bk_test_op_array(&op, "grad/student");
    put_random(5, 7, false);
    bk_test_op_reals(&op, "grad/loss", 0, NULL, &(double){-2.5});
    bk_test_op_run(&op, 1, "kl dtype=f64");
    bk_tensor *scaled = bk_test_op_array(&op, "grad/student");
    for (int64_t i = 0; i < bk_count(plain); i++)
        assert_true(fabs(bk_f64(scaled)[i] + 2.5 * bk_f64(plain)[i]) <= 1e-15);
}

/* Rows alike are matched at once; the other group lies on the last rank, which alone has a word to
 * say. */
static void newton_that_ends_early_is_heard(void **state)
{
    double student[8 * 9] = {0}, teacher[8 * 9] = {0};
    (void)state;
    for (int i = 4 * 9; i < 8 * 9; i++) {
        student[i] = bk_fill((uint64_t)i, 62, -9.0, 9.0);
        teacher[i] = bk_fill((uint64_t)i, 63, -9.0, 9.0);
    }
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "student", BK_SHAPE(8, 9), student);
    bk_test_op_reals(&op, "teacher", BK_SHAPE(8, 9), teacher);
    for (int ranks = 1; ranks <= 2; ranks++) {
        bk_test_op_run(&op, ranks,
                       "sinkd solver=newton gradient=implicit group=4 epsilon=0.02 tolerance=1e-9 "
                       "iterations=1");
        assert_true(bk_test_op_says(&op, "Newton did not converge (1 of a rank's matchings)"));
        bk_test_op_run(&op, ranks,
                       "sinkd solver=newton gradient=implicit group=4 epsilon=0.02 tolerance=1e-9 "
                       "iterations=100");
        assert_false(bk_test_op_says(&op, "warning"));
    }
}

static void no_rows_give_zero(void **state)
{
    (void)state;
    put_random(0, 7, false);
    bk_test_op_run(&op, 2, "sinkd");
    assert_true(bk_test_op_numbers(&op, "loss")[0] == 0.0);
    assert_int_equal(bk_count(bk_test_op_array(&op, "grad/student")), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_rows),
        cmocka_unit_test(golden_sinkd),
        cmocka_unit_test(golden_options),
        cmocka_unit_test(ranks_agree),
        cmocka_unit_test(the_largest_logits_are_enough),
        cmocka_unit_test(wrong_teachers_are_refused),
        cmocka_unit_test(a_given_gradient_scales),
        cmocka_unit_test(newton_that_ends_early_is_heard),
        cmocka_unit_test(no_rows_give_zero),
    };
    return bk_test_op_tests(&op, "ref_sinkd_golden.json", tests, sizeof tests / sizeof *tests);
}
