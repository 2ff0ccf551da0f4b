/* test: labels=unit,grad,golden,mpi ranks=1,2,3,4 timeout=120 */
#include "tests/support/check.h"
#include "tests/support/losses.h"
#include "tests/support/ranks.h"

#include "core/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void copy_ints(const json_t *array, int32_t **to)
{
    if (!array)
        return;
    *to = calloc(json_array_size(array), sizeof **to);
    assert_non_null(*to);
    for (size_t i = 0; i < json_array_size(array); i++)
        (*to)[i] = (int32_t)json_integer_value(json_array_get(array, i));
}

static bk_test_batch batch_of(const json_t *entry)
{
    bk_test_batch b = bk_test_batch_new(json_integer_value(json_object_get(entry, "B")),
                                        json_integer_value(json_object_get(entry, "V")));
    copy_ints(json_object_get(entry, "mask"), &b.valid);
    copy_ints(json_object_get(entry, "groups"), &b.sequence);
    return b;
}

/* ---- golden values ---- */

static double number(const json_t *entry, const char *name)
{
    return json_number_value(json_object_get(entry, name));
}

static void golden_figures(const json_t *entry, const bk_test_batch *b, const char *options)
{
    bk_test_result r =
        bk_test_loss("sinkd", b, &(bk_test_way){.options = options, .dtype = BK_F64, .plan = true});
    const double own[] = {r.cost[0], r.cost[1], r.plan[0], r.plan[1],
                          bk_test_figure(&r, "row_violation")};
    const double want[] = {number(entry, "C00"), number(entry, "C01"), number(entry, "P00"),
                           number(entry, "P01"), number(entry, "row_violation")};
    for (int i = 0; i < 5; i++)
        bk_check_error(bk_test_error(1, &own[i], &want[i], 1e-5), 1e-9, "figure %d of %s", i,
                       options);
    assert_true(bk_test_figure(&r, "rows") == (double)b->rows);
    assert_true(bk_test_figure(&r, "groups") == 1.0);
    assert_true(bk_test_figure(&r, "iterations") == number(entry, "iterations"));
    bk_test_result_free(&r);
}

static void golden(void **state)
{
    static const struct {
        const char *gradient, *row0;
    } modes[] = {
        {"unrolled", "grad_row0"}, {"envelope", "envelope_row0"}, {"implicit", "implicit_row0"}};
    json_t *file, *entry;
    size_t i;
    (void)state;
    if (bk_mpi_size() > 1)
        skip();
    file = bk_test_golden("ref_sinkd_golden.json");
    json_array_foreach(json_object_get(file, "sinkd"), i, entry)
    {
        char options[256];
        bk_test_batch b = batch_of(entry);
        for (int k = 0; k < 3; k++) {
            snprintf(options, sizeof options,
                     "temperature=%g epsilon=%g iterations=%d reduction=sum gradient=%s",
                     number(entry, "T"), number(entry, "epsilon"), (int)number(entry, "iterations"),
                     modes[k].gradient);
            bk_test_golden_entry("sinkd", entry, &b, options, modes[k].row0);
        }
        golden_figures(entry, &b, options);
        bk_test_batch_free(&b);
    }
    assert_int_equal(i, 10);
    json_decref(file);
}

static void golden_options(void **state)
{
    json_t *file, *entry;
    size_t i;
    int checked = 0;
    (void)state;
    if (bk_mpi_size() > 1)
        skip();
    file = bk_test_golden("ref_sinkd_golden.json");
    json_array_foreach(json_object_get(file, "options"), i, entry)
    {
        const char *option = json_string_value(json_object_get(entry, "option"));
        const json_t *group = json_object_get(entry, "group");
        char options[128] = "reduction=sum";
        if (json_is_string(group))
            strcat(options, " group=sequence");
        else if (group)
            snprintf(options, sizeof options, "reduction=sum group=%d",
                     (int)json_integer_value(group));
        else if (strcmp(option, "mask") != 0)
            snprintf(options, sizeof options, "reduction=sum %s=%s", option,
                     json_object_get(entry, "top_k")
                         ? (json_integer_value(json_object_get(entry, "top_k")) == 5 ? "5" : "20")
                         : "true");
        bk_test_batch b = batch_of(entry);
        bk_test_golden_entry("sinkd", entry, &b, options, "grad_row0");
        bk_test_batch_free(&b);
        checked++;
    }
    assert_int_equal(checked, 8);
    json_decref(file);
}

/* ---- ranks ---- */

static void cut_rows(int64_t rows, int size, int how, int64_t *cut)
{
    for (int r = 0; r <= size; r++)
        cut[r] = how == 0   ? rows * r / size                       /* even */
                 : how == 1 ? rows * r * r / ((int64_t)size * size) /* ragged, the first empty */
                 : how == 2 ? (r == size ? rows : 0)                /* all on the last */
                            : (r == 0 ? 0 : rows);                  /* all on the first */
}

static void same_on_all_ranks(const bk_test_batch *b, const char *options)
{
    const bk_comm *comm = bk_test_world()->loss;
    bk_test_way w = {.options = options, .dtype = BK_F64};
    bk_test_result one = bk_test_loss("sinkd", b, &w);
    for (int how = 0; how < 4; how++) {
        int64_t cut[9];
        cut_rows(b->rows, bk_comm_size(comm), how, cut);
        w.comm = comm;
        w.cut = cut;
        bk_test_result all = bk_test_loss("sinkd", b, &w);
        bk_test_same_loss(b, &all, &one, 1e-12, 1e-8, options);
        static const char *const figures[] = {"rows", "groups", "iterations"};
        for (int i = 0; i < 3; i++)
            assert_true(bk_test_figure(&all, figures[i]) == bk_test_figure(&one, figures[i]));
        assert_true(fabs(bk_test_figure(&all, "row_violation") -
                         bk_test_figure(&one, "row_violation")) < 1e-12);
        assert_true(fabs(bk_test_figure(&all, "entropic_value") -
                         bk_test_figure(&one, "entropic_value")) < 1e-11);
        bk_test_result_free(&all);
    }
    bk_test_result_free(&one);
}

static void ranks_agree_in_every_mode(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(11, 19);
    b.sequence = calloc(11, sizeof *b.sequence);
    for (int32_t i = 0; i < 11; i++)
        b.sequence[i] = 3 * (i / 4);
    static const char *const options[] = {"",
                                          "gradient=envelope",
                                          "debias=true",
                                          "top_k=4 group=5",
                                          "gradient=implicit",
                                          "group=3",
                                          "group=4 gradient=envelope",
                                          "group=sequence",
                                          "group=1",
                                          "iterations=1",
                                          "epsilon=0.005 iterations=50",
                                          "group=3 tolerance=0.01 iterations=500",
                                          "tolerance=1e-6 iterations=500",
                                          "group=1 tolerance=0.5",
                                          "group=3 gradient=implicit",
                                          "group=4 debias=true gradient=envelope",
                                          "group=sequence debias=true gradient=implicit",
                                          "group=3 debias=true domain=log",
                                          "top_k=1 gradient=implicit",
                                          "top_k=18 group=sequence gradient=envelope",
                                          "debias=true solver=newton gradient=implicit "
                                          "tolerance=1e-10 iterations=100"};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        same_on_all_ranks(&b, options[i]);
    b.valid = calloc(11, sizeof *b.valid);
    for (int i = 0; i < 11; i++)
        b.valid[i] = i % 4 != 1;
    for (size_t i = 0; i < 8; i++)
        same_on_all_ranks(&b, options[i]);
    bk_test_batch_free(&b);
}

/* Groups of one lane: the number of ranks does not matter, the number of lanes does. */
static void lanes_as_groups(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(12, 9);
    const bk_comm *comm = bk_test_world()->loss;
    bk_test_way w = {.options = "group=lane", .dtype = BK_F64, .lanes = 4};
    bk_test_result one = bk_test_loss("sinkd", &b, &w);
    w.comm = comm;
    bk_test_result all = bk_test_loss("sinkd", &b, &w);
    bk_test_same_loss(&b, &all, &one, 1e-12, 1e-8, "group=lane");
    assert_true(bk_test_figure(&all, "groups") == 4.0);
    w.options = "group=3";
    bk_test_result sized = bk_test_loss("sinkd", &b, &w);
    bk_test_same_loss(&b, &sized, &one, 1e-12, 1e-8, "4 groups of 3 rows are the 4 lanes");
    bk_test_result_free(&one);
    bk_test_result_free(&all);
    bk_test_result_free(&sized);
    bk_test_batch_free(&b);
}

/* The plan's rows live with the student's rows. */
static void plan_is_sharded_by_rows(void **state)
{
    (void)state;
    enum { B = 8 };
    bk_test_batch b = bk_test_batch_new(B, 6);
    const bk_comm *comm = bk_test_world()->loss;
    int64_t cut[9];
    bk_test_way w = {.dtype = BK_F64, .plan = true};
    bk_test_result one = bk_test_loss("sinkd", &b, &w);
    cut_rows(B, bk_comm_size(comm), 1, cut);
    w.comm = comm;
    w.cut = cut;
    bk_test_result all = bk_test_loss("sinkd", &b, &w);
    int64_t first = cut[bk_comm_rank(comm)] * B, n = cut[bk_comm_rank(comm) + 1] * B - first;
    bk_check_error(bk_test_error(n, all.plan, one.plan + first, 1.0), 1e-13, "plan");
    bk_check_error(bk_test_error(n, all.cost, one.cost + first, 1.0), 1e-15, "cost");
    bk_test_result_free(&one);
    bk_test_result_free(&all);
    bk_test_batch_free(&b);
}

/* ---- what the definition implies ---- */

static void teacher_order_does_not_matter(void **state)
{
    (void)state;
    enum { B = 8, V = 50 };
    bk_test_batch b = bk_test_batch_new(B, V), turned = bk_test_batch_new(B, V);
    bk_test_way w = {.dtype = BK_F64};
    for (int i = 0; i < B; i++)
        memcpy(turned.teacher + i * V, b.teacher + (5 * i + 3) % B * V, V * sizeof *b.teacher);
    bk_test_result x = bk_test_loss("sinkd", &b, &w), y = bk_test_loss("sinkd", &turned, &w);
    bk_test_same_loss(&b, &y, &x, 1e-12, 1e-11, "teacher rows in another order");
    bk_test_result_free(&x);
    bk_test_result_free(&y);
    bk_test_batch_free(&b);
    bk_test_batch_free(&turned);
}

/* One row, and rows alone in their group: twice the total variation. */
static void single_rows_are_total_variation(void **state)
{
    static const char *const modes[] = {"gradient=unrolled group=1", "gradient=envelope group=1",
                                        "gradient=unrolled group=sequence"};
    (void)state;
    for (int64_t rows = 1; rows <= 8; rows += 7)
        for (int k = 0; k < 3; k++) {
            bk_test_batch b = bk_test_batch_new(rows, 50);
            bk_test_result x = bk_test_loss("sinkd", &b,
                                            &(bk_test_way){.options = modes[k], .dtype = BK_F64}),
                           tv = bk_test_loss("tv", &b, &(bk_test_way){.dtype = BK_F64});
            tv.loss *= 2.0;
            for (int64_t i = 0; i < rows * 50; i++)
                tv.grad[i] *= 2.0;
            bk_test_same_loss(&b, &x, &tv, 1e-12, 1e-12, modes[k]);
            bk_test_result_free(&x);
            bk_test_result_free(&tv);
            bk_test_batch_free(&b);
        }
}

static void large_groups_are_global(void **state)
{
    static const char *const sizes[] = {"group=8", "group=9", "group=9223372036854775807"};
    (void)state;
    bk_test_batch b = bk_test_batch_new(8, 50);
    double global = bk_test_loss_value("sinkd", &b, &(bk_test_way){.dtype = BK_F64});
    for (int i = 0; i < 3; i++)
        assert_true(
            bk_test_loss_value("sinkd", &b, &(bk_test_way){.options = sizes[i], .dtype = BK_F64}) ==
            global);
    bk_test_batch_free(&b);
}

/* A perfect student: the entropic plan still mixes rows, the loss is small, never negative. */
static void perfect_student(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(8, 50);
    memcpy(b.student, b.teacher, 8 * 50 * sizeof *b.student);
    double loss = bk_test_loss_value("sinkd", &b, &(bk_test_way){.dtype = BK_F64}),
           sharp = bk_test_loss_value("sinkd", &b,
                                      &(bk_test_way){.options = "epsilon=0.01", .dtype = BK_F64});
    assert_true(loss > 0.0 && loss < 0.1);
    assert_true(sharp >= 0.0 && sharp < 1e-9);
    bk_test_batch_free(&b);
}

static double norm(const bk_test_batch *b, const char *options)
{
    bk_test_result r =
        bk_test_loss("sinkd", b, &(bk_test_way){.options = options, .dtype = BK_F64});
    double sum = 0.0;
    for (int64_t i = 0; i < b->rows * b->classes; i++)
        sum += r.grad[i] * r.grad[i];
    bk_test_result_free(&r);
    return sqrt(sum);
}

/* Debiased, a perfect student has nothing to learn: its gradient is below 1 % of that of a noisy
 * one, where the plain loss still pulls. */
static void debiased_perfect_student_stays(void **state)
{
    static const int64_t classes[] = {2, 3, 26};
    static const char *const modes[] = {"debias=true", "debias=true gradient=implicit",
                                        "debias=true gradient=envelope"};
    (void)state;
    for (int k = 0; k < 3; k++) {
        bk_test_batch b = bk_test_batch_new(32, classes[k]);
        int64_t n = 32 * classes[k];
        for (int64_t i = 0; i < n; i++) {
            b.teacher[i] = 2.0 * bk_fill((uint64_t)i, 1, -1.7, 1.7);
            b.student[i] = b.teacher[i] + bk_fill((uint64_t)i, 2, -1.7, 1.7);
        }
        double plain = norm(&b, ""), noisy[3];
        for (int m = 0; m < 3; m++)
            noisy[m] = norm(&b, modes[m]);
        memcpy(b.student, b.teacher, (size_t)n * sizeof *b.student);
        for (int m = 0; m < 3; m++)
            assert_true(noisy[m] > 1e-3 && norm(&b, modes[m]) < 0.01 * noisy[m]);
        assert_true(k == 2 || norm(&b, "") > 0.05 * plain);
        bk_test_batch_free(&b);
    }
}

static void bad_groups_are_refused(void **state)
{
    static const char *const groups[] = {"0", "-3", "globl", "2.5"};
    const bk_loss_kind *kind = bk_loss_find("sinkd");
    (void)state;
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        bk_arena *arena = bk_arena_new("test");
        void *config = bk_arena_zalloc(arena, kind->config_size);
        bk_value *map = bk_value_new(arena, BK_MAP, "test", 0);
        assert_int_equal(bk_value_set(arena, map, "group", groups[i]), BK_OK);
        assert_int_equal(bk_options_read(kind->options, config, map, "loss", arena), BK_OK);
        assert_int_equal(kind->check(config, BK_F64), BK_USAGE);
        assert_non_null(strstr(bk_status_text(), "group="));
        bk_arena_free(arena);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),
        cmocka_unit_test(golden_options),
        cmocka_unit_test(ranks_agree_in_every_mode),
        cmocka_unit_test(lanes_as_groups),
        cmocka_unit_test(plan_is_sharded_by_rows),
        cmocka_unit_test(teacher_order_does_not_matter),
        cmocka_unit_test(single_rows_are_total_variation),
        cmocka_unit_test(large_groups_are_global),
        cmocka_unit_test(perfect_student),
        cmocka_unit_test(debiased_perfect_student_stays),
        cmocka_unit_test(bad_groups_are_refused),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
