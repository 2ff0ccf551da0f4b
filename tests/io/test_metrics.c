/* metrics.jsonl: one JSON object a line, one story after a resume. */
#include "io/metrics.h"
#include "tests/support/check.h"
#include "tests/support/files.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bk_arena *arena;

static const char *run_named(const char *name)
{
    const char *path = bk_test_path("%s/x", name);
    return bk_arena_printf(arena, "%.*s", (int)strlen(path) - 2, path);
}

static bk_metrics *opened(const char *run, int64_t step)
{
    bk_metrics *m;
    if (bk_metrics_open(arena, run, step, false, &m) != BK_OK)
        fail_msg("%s", bk_status_text());
    return m;
}

static void write_step(bk_metrics *m, int64_t step, double loss)
{
    bk_metrics_begin(m, step, "train");
    bk_metrics_number(m, "loss", loss);
    bk_metrics_end(m);
}

/* Every line parsed; a line that is no object fails. */
static json_t *lines_of(const char *run)
{
    size_t bytes;
    json_t *list = json_array();
    char *text = bk_test_read(bk_arena_printf(arena, "%s/metrics.jsonl", run), &bytes);
    assert_true(bytes == 0 || text[bytes - 1] == '\n');
    for (char *at = text, *end; (end = strchr(at, '\n')); at = end + 1) {
        json_t *line = json_loadb(at, (size_t)(end - at), JSON_REJECT_DUPLICATES, NULL);
        if (!json_is_object(line))
            fail_msg("no object: %.*s", (int)(end - at), at);
        json_array_append_new(list, line);
    }
    free(text);
    return list;
}

static int64_t step_at(const json_t *lines, size_t i)
{
    return json_integer_value(json_object_get(json_array_get(lines, i), "step"));
}

static void every_kind_of_field(void **state)
{
    (void)state;
    const char *run = run_named("fields");
    bk_metrics *m = opened(run, 0);
    bk_metrics_begin(m, 7, "validation");
    bk_metrics_number(m, "loss", 1.0 / 3.0);
    bk_metrics_number(m, "nan", NAN);
    bk_metrics_number(m, "inf", -INFINITY);
    bk_metrics_number(m, "whole", 3.0);
    bk_metrics_integer(m, "tokens", 1LL << 52);
    bk_metrics_text(m, "note", "a \"quote\"\nand a line");
    bk_metrics_numbers(m, "decay", 3, (const double[]){1.0, 0.25, NAN});
    bk_metrics_open_list(m, "routing");
    for (int i = 0; i < 2; i++) {
        bk_metrics_next_item(m);
        bk_metrics_integer(m, "layer", i);
        bk_metrics_number(m, "entropy", i ? NAN : 0.5);
    }
    bk_metrics_close_list(m);
    bk_metrics_number(m, "after", 2.5);
    bk_metrics_end(m);
    assert_int_equal(bk_metrics_close(m), BK_OK);
    json_t *lines = lines_of(run);
    assert_int_equal(json_array_size(lines), 1);
    const json_t *o = json_array_get(lines, 0);
    const char *keys[] = {"step", "split", "loss"};
    void *at = json_object_iter((json_t *)(uintptr_t)o);
    for (int i = 0; i < 3; i++, at = json_object_iter_next((json_t *)(uintptr_t)o, at))
        assert_string_equal(json_object_iter_key(at), keys[i]); /* in the order written */
    assert_string_equal(json_string_value(json_object_get(o, "split")), "validation");
    bk_check_error(fabs(json_real_value(json_object_get(o, "loss")) - 1.0 / 3.0), 1e-8, "loss");
    assert_true(json_is_null(json_object_get(o, "nan")));
    assert_true(json_is_null(json_object_get(o, "inf")));
    assert_true(json_number_value(json_object_get(o, "whole")) == 3.0);
    assert_true(json_integer_value(json_object_get(o, "tokens")) == 1LL << 52);
    assert_string_equal(json_string_value(json_object_get(o, "note")), "a \"quote\"\nand a line");
    const json_t *decay = json_object_get(o, "decay");
    assert_int_equal(json_array_size(decay), 3);
    assert_true(json_real_value(json_array_get(decay, 1)) == 0.25);
    assert_true(json_is_null(json_array_get(decay, 2)));
    const json_t *routing = json_object_get(o, "routing");
    assert_int_equal(json_array_size(routing), 2);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(routing, 1), "layer")), 1);
    assert_true(json_is_null(json_object_get(json_array_get(routing, 1), "entropy")));
    assert_non_null(json_object_get(o, "after")); /* of the line, not of the list */
    json_decref(lines);
}

static void a_resume_tells_one_story(void **state)
{
    (void)state;
    const char *run = run_named("resume");
    bk_metrics *m = opened(run, 0);
    for (int64_t step = 1; step <= 9; step++)
        write_step(m, step, 10.0);
    assert_int_equal(bk_metrics_close(m), BK_OK);
    m = opened(run, 4);
    for (int64_t step = 5; step <= 6; step++)
        write_step(m, step, 20.0);
    assert_int_equal(bk_metrics_close(m), BK_OK);
    json_t *lines = lines_of(run);
    assert_int_equal(json_array_size(lines), 6);
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(step_at(lines, i), i + 1);
        double loss = json_number_value(json_object_get(json_array_get(lines, i), "loss"));
        assert_true(loss == (i < 4 ? 10.0 : 20.0));
    }
    json_decref(lines);
    assert_int_equal(bk_metrics_close(opened(run, 0)), BK_OK); /* from the start */
    lines = lines_of(run);
    assert_int_equal(json_array_size(lines), 0);
    json_decref(lines);
}

/* What a killed job leaves: a torn line, garbage, an empty file. */
static void torn_files(void **state)
{
    (void)state;
    static const char *const before[] = {"{\"step\":1}\n{\"step\":2}\n{\"step\":3,\"lo",
                                         "{\"step\":1}\nnot json\n\n{\"step\":2}\n",
                                         "{\"step\":1}\n{\"step\":2}\n[1]\n{\"step\":\"3\"}\n{}\n",
                                         "{\"step\":1}\n{\"step\":2}\n{\"step\":3}"};
    for (int i = 0; i < 4; i++) {
        const char *run = run_named("torn");
        bk_test_write_text(bk_arena_printf(arena, "%s/metrics.jsonl", run), before[i]);
        bk_metrics *m = opened(run, 5);
        write_step(m, 6, 1.0);
        assert_int_equal(bk_metrics_close(m), BK_OK);
        json_t *lines = lines_of(run);
        assert_int_equal(json_array_size(lines), 3);
        assert_int_equal(step_at(lines, 1), 2);
        assert_int_equal(step_at(lines, 2), 6);
        json_decref(lines);
    }
}

/* A line is there as soon as it is ended: who looks meanwhile sees whole lines. */
static void lines_are_flushed(void **state)
{
    (void)state;
    const char *run = run_named("flushed");
    bk_metrics *m = opened(run, 0);
    for (int64_t step = 1; step <= 3; step++) {
        write_step(m, step, 1.0);
        json_t *lines = lines_of(run);
        assert_int_equal(json_array_size(lines), step);
        json_decref(lines);
    }
    assert_int_equal(bk_metrics_close(m), BK_OK);
}

static void without_a_file(void **state)
{
    (void)state;
    bk_metrics *m;
    write_step(NULL, 1, 1.0); /* ranks other than 0 */
    bk_metrics_open_list(NULL, "x");
    bk_metrics_next_item(NULL);
    bk_metrics_close_list(NULL);
    assert_int_equal(bk_metrics_open(arena, bk_arena_printf(arena, "%s/none", run_named("without")),
                                     0, false, &m),
                     BK_USAGE);
    assert_non_null(strstr(bk_status_text(), "none"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_of_field), cmocka_unit_test(a_resume_tells_one_story),
        cmocka_unit_test(torn_files),          cmocka_unit_test(lines_are_flushed),
        cmocka_unit_test(without_a_file),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
