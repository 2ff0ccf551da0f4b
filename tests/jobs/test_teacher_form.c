/* Rows of a teacher in the form that the losses can read: which form that is, and the way there and
 * back. */
#include "jobs/teacher.h"

#include "io/yaml.h"
#include "tests/support/check.h"
#include "tests/support/losses.h"

#include <math.h>
#include <string.h>

#define HEAD "run: {dir: r}\ndata: {train: t.h5}\ndistill: {teacher: t%s}\nloss:\n"

static bk_arena *arena;

/* A configuration with these keys of `distill` and these losses. */
static const bk_config *config_of(const char *distill, const char *losses)
{
    bk_value *root;
    bk_config *config;
    const char *text = bk_arena_printf(arena, HEAD "%s", distill, losses);
    if (bk_yaml_parse(arena, "test", text, strlen(text), &root) != BK_OK ||
        bk_config_read(arena, root, &config) != BK_OK)
        fail_msg("%s", bk_status_text());
    return config;
}

static bk_teacher_form chosen(const char *distill, const char *losses, bool suits)
{
    bk_teacher_form form;
    if (bk_teacher_form_choose(config_of(distill, losses), 100, suits, true, &form) != BK_OK)
        fail_msg("%s", bk_status_text());
    return form;
}

static void one_top_k_of_all_losses(void **state)
{
    (void)state;
    static const char same[] = "  - {kind: cross_entropy}\n"
                               "  - {kind: kl, top_k: 8, temperature: 3}\n"
                               "  - {kind: js, top_k: 8, temperature: 1.5}\n"
                               "  - {kind: tv, top_k: 8, temperature: 3}\n";
    bk_teacher_form f = chosen("", same, false);
    assert_int_equal(f.top_k, 8);
    assert_false(f.bf16);
    assert_int_equal(f.temperatures, 2);
    assert_true(f.temperature[0] == 1.5 && f.temperature[1] == 3.0);
    f = chosen(", cache_form: dense", same, false);
    assert_int_equal(f.top_k, 0);
    assert_true(f.bf16);
    assert_int_equal(chosen(", cache_form: dense", same, true).top_k, 8); /* not of a file */
}

static void dense_for_all_else(void **state)
{
    (void)state;
    static const char *const losses[] = {
        "  - {kind: kl}\n",
        "  - {kind: kl, top_k: 8}\n  - {kind: js}\n",
        "  - {kind: kl, top_k: 8}\n  - {kind: js, top_k: 4}\n",
        "  - {kind: kl, top_k: 8, temperature: 2, temperature_end: 1}\n",
        "  - {kind: kl, top_k: 100}\n",
        "  - {kind: kl, top_k: 1000}\n",
    };
    for (size_t i = 0; i < sizeof losses / sizeof *losses; i++)
        for (int suits = 0; suits < 2; suits++) {
            bk_teacher_form f = chosen("", losses[i], suits);
            assert_int_equal(f.top_k, 0);
            assert_int_equal(f.vocabulary, 100);
            assert_true(f.bf16);
        }
    assert_int_equal(
        chosen(", cache_form: top_k", "  - {kind: kl, top_k: 8}\n  - {kind: js, top_k: 4}\n", false)
            .top_k,
        8);
}

static void refused(const char *distill, const char *losses, const char *word)
{
    bk_teacher_form form;
    assert_int_equal(bk_teacher_form_choose(config_of(distill, losses), 100, false, false, &form),
                     BK_USAGE);
    if (!strstr(bk_status_text(), word))
        fail_msg("no '%s' in: %s", word, bk_status_text());
}

static void forms_that_the_losses_cannot_read(void **state)
{
    (void)state;
    refused(", cache_form: top_k", "  - {kind: kl}\n", "the loss kl reads all classes");
    refused(", cache_form: top_k", "  - {kind: kl, top_k: 8}\n  - {kind: tv}\n", "the loss tv");
    refused(", cache_form: top_k", "  - {kind: kl, top_k: 8, temperature_end: 1}\n",
            "temperature_end");
}

static void check_serves(bk_status wanted, const char *losses, const char *word)
{
    static const double temperature[] = {1.0, 2.0};
    const bk_teacher_form top = {.vocabulary = 100,
                                 .top_k = 8,
                                 .temperatures = 2,
                                 .temperature = temperature},
                          dense = {.vocabulary = 100};
    const bk_config *c = config_of("", losses);
    assert_int_equal(bk_teacher_form_serves(c, &dense, "FILE"), BK_OK);
    assert_int_equal(bk_teacher_form_serves(c, &top, "FILE"), wanted);
    if (wanted != BK_OK && !strstr(bk_status_text(), word))
        fail_msg("no '%s' in: %s", word, bk_status_text());
}

static void a_file_serves_losses_that_ask_for_no_more(void **state)
{
    (void)state;
    check_serves(BK_OK, "  - {kind: kl, top_k: 8}\n  - {kind: js, top_k: 3, temperature: 1}\n", "");
    check_serves(BK_INPUT, "  - {kind: kl, top_k: 9}\n", "top_k=9");
    check_serves(BK_INPUT, "  - {kind: kl}\n", "top_k=0 (all)");
    check_serves(BK_INPUT, "  - {kind: kl, top_k: 8, temperature: 1.5}\n", "is for 1, 2");
    check_serves(BK_INPUT, "  - {kind: kl, top_k: 8, temperature_end: 1}\n", "temperature_end");
    check_serves(BK_OK, "  - {kind: kl, top_k: 8, temperature_end: 2}\n", "");
}

/* ---- rows ---- */

enum { ROWS = 5, CLASSES = 37 };

static float *logits(void)
{
    float *x = BK_NEW(arena, float, ROWS *CLASSES);
    for (int i = 0; i < ROWS * CLASSES; i++) /* with equal ones */
        x[i] = (float)(floor(40.0 * sin(0.37 * i + 0.013 * i * i)) / 4.0);
    return x;
}

static bk_bundle there_and_back(const bk_teacher_form *form, const float *x)
{
    bk_bundle bundle = {0};
    bk_teacher_rows rows = bk_teacher_rows_new(arena, form, ROWS);
    bk_teacher_encode(form, ROWS, x, rows);
    bk_teacher_hand(arena, form, ROWS, rows, &bundle);
    return bundle;
}

static void dense_rows_stay_as_they_are(void **state)
{
    (void)state;
    const float *x = logits();
    for (int bf16 = 0; bf16 < 2; bf16++) {
        bk_teacher_form form = {.vocabulary = CLASSES, .bf16 = bf16};
        bk_bundle b = there_and_back(&form, x);
        const bk_tensor *y = bk_bundle_need(&b, "teacher.logits");
        assert_int_equal(bk_rows(y), ROWS);
        assert_int_equal(bk_cols(y), CLASSES);
        assert_null(bk_bundle_get(&b, "teacher.index"));
        for (int i = 0; i < ROWS * CLASSES; i++) /* quarters below 16 are bf16 */
            assert_true(bk_f32(y)[i] == x[i]);
    }
    float third = 1.0f / 3.0f, row[CLASSES] = {third, -third};
    bk_teacher_form form = {.vocabulary = CLASSES, .bf16 = true};
    bk_teacher_rows rows = bk_teacher_rows_new(arena, &form, 1);
    bk_bundle b = {0};
    bk_teacher_encode(&form, 1, row, rows);
    bk_teacher_hand(arena, &form, 1, rows, &b);
    const float *y = bk_f32(bk_bundle_need(&b, "teacher.logits"));
    assert_true(y[0] == 0.333984375f && y[1] == -0.333984375f); /* 8 bits, ties to even */
}

static void the_largest_logits_of_a_row(void **state)
{
    (void)state;
    static const double temperature[] = {0.5, 2.0};
    const float *x = logits();
    bk_teacher_form form = {
        .vocabulary = CLASSES, .top_k = 6, .temperatures = 2, .temperature = temperature};
    bk_bundle b = there_and_back(&form, x);
    const int32_t *index = bk_i32(bk_bundle_need(&b, "teacher.index"));
    const float *value = bk_f32(bk_bundle_need(&b, "teacher.value")),
                *lse = bk_f32(bk_bundle_need(&b, "teacher.lse"));
    assert_null(bk_bundle_get(&b, "teacher.logits"));
    for (int i = 0; i < ROWS; i++) {
        const float *row = x + i * CLASSES;
        for (int j = 0; j < 6; j++) {
            int larger = 0, v = index[i * 6 + j];
            for (int u = 0; u < CLASSES; u++) /* those before it: larger, or equal and lower */
                larger += row[u] > row[v] || (row[u] == row[v] && u < v);
            assert_int_equal(larger, j);
            assert_true(value[i * 6 + j] == row[v]);
        }
        for (int t = 0; t < 2; t++) {
            double sum = 0.0;
            for (int u = 0; u < CLASSES; u++)
                sum += exp((double)row[u] / temperature[t]);
            bk_check_error(fabs((double)lse[i * 2 + t] - log(sum)), 4e-6, "lse of row %d", i);
        }
    }
}

/* ---- what a loss makes of the largest logits ---- */

enum { MANY = 24, WORDS = 2000 };

/* A teacher whose classes fall off with their rank as words do, p ~ rank^-2.5 at T = 2, each row
 * in an order of its own; and a student that is off by up to 1.5. */
static void fill_words(float *student, float *teacher)
{
    for (int64_t i = 0; i < MANY; i++)
        for (int64_t v = 0; v < WORDS; v++) {
            int64_t rank = (v * (2 * i + 7) + 131 * i) % WORDS; /* 2i+7 is no divisor of 2000 */
            teacher[i * WORDS + v] = (float)(-5.0 * log(1.0 + (double)rank));
            student[i * WORDS + v] =
                teacher[i * WORDS + v] + 1.5f * (float)sin(0.7 * (double)(v * (i + 3)));
        }
}

/* The loss over all rows; *tail: the term of that name, 0 without. */
static double loss_of(const char *name, const char *options, bk_loss_args args, double *tail)
{
    const bk_loss_kind *kind = bk_loss_find(name);
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(MANY));
    args.config = bk_test_loss_options(kind, options, BK_F32, t.arena);
    double value = bk_f64(kind->apply(&t, &args))[0];
    *tail = 0.0;
    for (int i = 0; i < t.terms; i++)
        if (strcmp(t.term[i].name, "teacher_tail") == 0)
            *tail = bk_f64(t.term[i].value)[0];
    bk_test_tape_free(&t);
    return value;
}

static void sixty_four_classes_are_nearly_all(void **state)
{
    static const char *const kinds[] = {"kl", "sinkd"};
    static const double temperature[] = {2.0};
    (void)state;
    bk_teacher_form form = {
        .vocabulary = WORDS, .top_k = 64, .temperatures = 1, .temperature = temperature};
    bk_tensor *student = bk_tensor_new(arena, BK_F32, BK_SHAPE(MANY, WORDS)),
              *teacher = bk_tensor_new(arena, BK_F32, BK_SHAPE(MANY, WORDS));
    bk_teacher_rows rows = bk_teacher_rows_new(arena, &form, MANY);
    fill_words(student->data, teacher->data);
    bk_teacher_encode(&form, MANY, teacher->data, rows);
    bk_teacher_top top = {64, rows.part[0], rows.part[1], 1, temperature, rows.part[2], BK_F32};
    for (int i = 0; i < 2; i++) {
        bk_loss_args whole = {.logits = student, .teacher = teacher, .rows = MANY},
                     part = {.logits = student, .teacher_top = &top, .rows = MANY};
        double none, tail, dense = loss_of(kinds[i], "", whole, &none),
                           loss = loss_of(kinds[i], "top_k=64", part, &tail);
        bk_check_error(fabs(loss - dense) / dense, 5e-3, "%s: %g, dense %g", kinds[i], loss, dense);
        assert_true(loss < dense); /* a coarser view sees less */
        assert_true(none == 0.0 && tail > 2e-4 && tail < 1e-2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_top_k_of_all_losses),
        cmocka_unit_test(dense_for_all_else),
        cmocka_unit_test(forms_that_the_losses_cannot_read),
        cmocka_unit_test(a_file_serves_losses_that_ask_for_no_more),
        cmocka_unit_test(dense_rows_stay_as_they_are),
        cmocka_unit_test(the_largest_logits_of_a_row),
        cmocka_unit_test(sixty_four_classes_are_nearly_all),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_arena_free(arena);
    return failed;
}
