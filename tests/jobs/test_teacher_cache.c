/* test: labels=unit,mpi,io ranks=1,2,3 timeout=120 */
/* The file of a teacher's logits against the teacher itself, row by row: gathered in memory or
 * written from front to back, held in memory or read when needed, whole batches or single lanes. */
#include "tests/support/check.h"
#include "tests/support/files.h"
#include "tests/support/some_ranks.h"

#include "core/log.h"
#include "dist/agree.h"
#include "jobs/load.h"
#include "jobs/teacher.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 12, LANES = 4, BATCH = 8, VOCABULARY = 21 };

static bk_arena *arena;
static char shared[4096];

static void good(bk_status status)
{
    if (status != BK_OK)
        fail_msg("%s", bk_status_text());
}

/* ---- a data set, a teacher, and jobs that know them ---- */

/* Documents of 2 to 40 tokens; the split has them in no order, leaves some out and one is there
 * twice. */
static void write_data(void)
{
    static const int64_t index[] = {7, 3, 10, 0, 3, 8, 1, 11, 5};
    int64_t offsets[SAMPLES + 1] = {0};
    int32_t tokens[SAMPLES * 40];
    for (int64_t i = 0; i < SAMPLES; i++)
        offsets[i + 1] = offsets[i] + 2 + i * 13 % 39;
    for (int64_t k = 0; k < offsets[SAMPLES]; k++)
        tokens[k] = (int32_t)(1 + k * k % (VOCABULARY - 1));
    bk_dataset d = {.task = "language_model",
                    .source = "squares",
                    .samples = SAMPLES,
                    .vocabulary = VOCABULARY,
                    .tokens = tokens,
                    .offsets = offsets,
                    .split = {{.name = "train", .index = index, .count = 9}},
                    .splits = 1};
    good(bk_dataset_write(&d, bk_arena_printf(arena, "%s/d.h5", shared), 0, NULL));
}

static bk_job *open_job(bk_purpose purpose, const char *more)
{
    bk_context context = {.arena = arena};
    bk_config *config;
    bk_job *job;
    const char *text = bk_arena_printf(
        arena,
        "data: {train: %s/d.h5, eval_split: train, batch: %d, length: 6}\n"
        "parallel: {lanes: %d, threads: 1}\nmodel: {kind: decoder, layers: 1, width: 8, heads: "
        "2}\n%s",
        shared, BATCH, LANES, more);
    good(bk_load_config_text(&context, "test", text, &config));
    good(bk_job_open(arena, config, purpose, (bk_given){0}, &job));
    return job;
}

static void make_teacher(void)
{
    bk_saved saved;
    bk_job *job = open_job(
        BK_TRAIN,
        bk_arena_printf(arena, "run: {dir: %s/teacher}\ncheckpoint: {async: false}\n", shared));
    good(bk_job_resume(job));
    good(bk_job_claim_directory(job));
    good(bk_job_save(job));
    good(bk_saver_finish(job->saver, &saved));
    bk_job_close(job);
}

static const char *student_of(const char *loss, const char *placement)
{
    return bk_arena_printf(arena,
                           "run: {dir: %s/none, steps: 100}\nloss: [%s]\n"
                           "distill: {teacher: %s/teacher, %s}\n",
                           shared, loss, shared, placement);
}

static const char *student(const char *placement)
{
    return student_of("{kind: kl}", placement);
}

static const char *path_of(const char *name)
{
    return bk_arena_printf(arena, "%s/%s.h5", shared, name);
}

/* A file, written with so much memory. */
static const char *written(const char *name, size_t keep, const char *keys)
{
    bk_teacher_keep = keep;
    bk_job *job = open_job(BK_CACHE, student(keys));
    good(bk_teacher_cache_write(job, path_of(name)));
    bk_job_close(job);
    return path_of(name);
}

static bk_job *reading(const char *path, size_t keep)
{
    bk_teacher_keep = keep;
    return open_job(BK_DRY_RUN,
                    student(bk_arena_printf(arena, "placement: cached, cache: %s", path)));
}

/* ---- rows ---- */

enum { HELD = 1 << 20, UNHELD = 0 };

static void batch_of(bk_job *job, int64_t batch, bk_lanes lanes, bk_bundle *bundle)
{
    *bundle = (bk_bundle){0};
    job->tape.lanes = lanes;
    bk_tape_begin(&job->tape);
    bk_sampler_batch(job->train_sampler, batch, &lanes, job->tape.arena, bundle);
    bk_job_teach(job, (bk_lesson){.batch = batch, .batches = 100}, bundle);
}

/* The rows that count are the teacher's, those behind the end of a window zeros. */
static void check_batch(bk_job *file, bk_job *here, int64_t batch, bk_lanes lanes)
{
    bk_bundle a, b;
    batch_of(file, batch, lanes, &a);
    batch_of(here, batch, lanes, &b);
    const bk_tensor *x = bk_bundle_need(&a, "teacher.logits"),
                    *y = bk_bundle_need(&b, "teacher.logits");
    const int32_t *label = bk_i32(bk_bundle_need(&a, "labels"));
    static const float zero[VOCABULARY];
    assert_true(bk_same_shape(x, y));
    assert_int_equal(file->tape.status, BK_OK);
    for (int64_t i = 0; i < bk_rows(x); i++)
        assert_memory_equal(bk_f32(x) + i * VOCABULARY,
                            label[i] >= 0 ? bk_f32(y) + i * VOCABULARY : zero, sizeof zero);
}

static void rows_are_the_teachers(void **state)
{
    bk_job *here = open_job(BK_DRY_RUN, student("placement: colocated"));
    (void)state;
    for (int k = 0; k < 4; k++) {
        const char *path = written("rows", k & 1 ? HELD : UNHELD, "");
        bk_job *file = reading(path, k & 2 ? HELD : UNHELD);
        assert_int_equal(file->teacher->file->kept.part[0] != NULL, (k & 2) != 0);
        assert_null(file->teacher->model);
        for (int64_t batch = 0; batch < 12; batch++) { /* about two epochs */
            check_batch(file, here, batch, file->lanes);
            for (int64_t l = 0; l < file->lanes.count; l++) {
                bk_lanes one = file->lanes;
                one.first += l;
                one.count = 1;
                check_batch(file, here, batch, one);
            }
        }
        bk_job_close(file);
    }
    bk_job_close(here);
}

static void both_ways_make_the_same_file(void **state)
{
    static const char *const keys[] = {"", "cache_dtype: bf16"};
    (void)state;
    for (int k = 0; k < 2; k++) {
        bk_teacher_file a, b;
        good(bk_teacher_file_open(arena, written("a", HELD, keys[k]), 0, &a));
        good(bk_teacher_file_open(arena, written("b", UNHELD, keys[k]), 0, &b));
        assert_int_equal(a.form.bf16, k == 1);
        assert_string_equal(a.digest, b.digest);
        good(bk_teacher_file_close(&a));
        good(bk_teacher_file_close(&b));
    }
}

/* The largest logits of a row may be all of it: then the rows are whole, and the file fits. */
static void all_of_the_largest_are_dense(void **state)
{
    const char *loss = bk_arena_printf(arena, "{kind: kl, top_k: %d}", VOCABULARY),
               *keys = bk_arena_printf(arena, "cache_form: top_k, placement: cached, cache: %s",
                                       path_of("all"));
    (void)state;
    bk_teacher_keep = HELD;
    bk_job *job = open_job(BK_CACHE, student_of(loss, keys));
    good(bk_teacher_cache_write(job, path_of("all")));
    bk_job_close(job);
    job = open_job(BK_DRY_RUN, student_of(loss, keys));
    assert_int_equal(job->teacher->form.top_k, 0);
    bk_job_close(job);
}

/* For evaluations the teacher comes, and goes again; one that is gone is no failure. */
static void evaluations_have_the_teacher(void **state)
{
    bk_job *file = reading(written("rows", HELD, ""), HELD),
           *here = open_job(BK_DRY_RUN, student("placement: colocated"));
    (void)state;
    bk_slab_initialise(file->slab, 2); /* the teacher has seed 1 */
    bk_slab_initialise(here->slab, 2);
    bk_evaluation a = bk_job_evaluate(file, 0), b = bk_job_evaluate(here, 0);
    assert_null(file->teacher->model);
    assert_true(a.teacher_kl == b.teacher_kl && a.teacher_agreement == b.teacher_agreement);
    assert_true(a.teacher_kl > 0.0);
    const char *from = bk_arena_printf(arena, "%s/teacher", shared),
               *to = bk_arena_printf(arena, "%s/away", shared);
    bk_test_barrier();
    if (bk_mpi_rank() == 0)
        assert_int_equal(rename(from, to), 0);
    bk_test_barrier();
    bk_evaluation c = bk_job_evaluate(file, 0);
    assert_true(c.cross_entropy == b.cross_entropy && isnan(c.teacher_kl));
    assert_null(file->teacher->model);
    bk_test_barrier();
    if (bk_mpi_rank() == 0)
        assert_int_equal(rename(to, from), 0);
    bk_test_barrier();
    bk_job_close(file);
    bk_job_close(here);
}

static void evaluations_do_without(void **state)
{
    bk_job *file = reading(written("rows", HELD, ""), HELD);
    bk_bundle bundle = {0};
    (void)state;
    file->teacher->evaluates = false;
    assert_false(bk_teacher_enter_evaluation(file));
    bk_job_teach(file, (bk_lesson){.evaluation = true, .batches = 1}, &bundle);
    assert_int_equal(bundle.entries, 0);
    bk_job_close(file);
}

/* A file that goes bad under a training: the step fails on all ranks, with the reason. */
static void damage_ends_the_step(void **state)
{
    const char *path = written("rows", HELD, "");
    bk_job *file = reading(path, UNHELD);
    size_t bytes = 0;
    (void)state;
    bk_slab_initialise(file->slab, 1);
    assert_int_equal(bk_job_step(file).status, BK_OK);
    if (bk_mpi_rank() == 0) {
        char *text = bk_test_read(path, &bytes);
        for (size_t at = 4096; at < bytes; at += 512) /* the rows, wherever they stand */
            bk_test_flip(path, at, 3);
        free(text);
    }
    bk_test_barrier();
    bk_step_result r = bk_job_step(file);
    assert_int_equal(r.status, BK_INPUT);
    assert_non_null(strstr(bk_status_text(), "/logits cannot be read"));
    bk_job_close(file);
}

/* ---- begin and end ---- */

static int begin(void **state)
{
    int failed = bk_mpi_rank() == 0 ? bk_test_directory_make_in_memory(state) : 0;
    if (bk_mpi_rank() == 0)
        snprintf(shared, sizeof shared, "%s", bk_test_path("x"));
    bk_test_broadcast(shared, sizeof shared);
    *strrchr(shared, '/') = '\0';
    bk_log_setup(BK_LOG_QUIET, bk_mpi_rank() == 0, false);
    arena = bk_arena_new("test");
    if (bk_mpi_rank() == 0)
        write_data();
    bk_test_barrier();
    make_teacher();
    return failed;
}

static int end(void **state)
{
    bk_arena_free(arena);
    bk_test_barrier();
    return bk_mpi_rank() == 0 ? bk_test_directory_remove(state) : 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_the_teachers),
        cmocka_unit_test(both_ways_make_the_same_file),
        cmocka_unit_test(all_of_the_largest_are_dense),
        cmocka_unit_test(evaluations_have_the_teacher),
        cmocka_unit_test(evaluations_do_without),
        cmocka_unit_test(damage_ends_the_step),
    };
    return bk_test_run_ranks(argc, argv, tests, begin, end);
}
