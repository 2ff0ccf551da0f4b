#include "jobs/teacher.h"

#include "core/log.h"
#include "dist/collective.h"
#include "dist/signal.h"
#include "dist/watchdog.h"

#include <math.h>

/* Sums of one batch, one row for each own lane: loss, and with a teacher KL(teacher | student). */
enum { SUM_LOSS, SUM_KL, SUMS };

static int64_t argmax(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

/* confusion: a count for each class and the class that it is taken for, or NULL. */
static void count_rows(const bk_bundle *bundle, int64_t counts[3], int64_t *confusion)
{
    const bk_tensor *logits = bk_bundle_need(bundle, "logits"),
                    *teacher = bk_bundle_get(bundle, "teacher.logits");
    const int32_t *labels = bk_i32(bk_bundle_need(bundle, "labels"));
    int64_t width = bk_cols(logits);
    for (int64_t i = 0; i < bk_rows(logits); i++) {
        if (labels[i] < 0)
            continue;
        int64_t best = argmax(bk_f32(logits) + i * width, width);
        counts[0]++;
        counts[1] += best == labels[i];
        if (confusion)
            confusion[labels[i] * width + best]++;
        counts[2] += teacher && best == argmax(bk_f32(teacher) + i * width, width);
    }
}

/* A loss kind over the rows, as a sum. */
static const double *sum_of(bk_job *job, const char *kind, const bk_loss_args *args)
{
    const bk_loss_kind *loss = bk_loss_find(kind);
    bk_loss_args a = *args;
    bk_arena *arena = job->tape.arena;
    void *config = bk_arena_zalloc(arena, loss->config_size + 1);
    bk_value *map = bk_value_new(arena, BK_MAP, "evaluation", 0);
    if (loss->flags & BK_LOSS_TEACHER && bk_value_set(arena, map, "temperature", "1") != BK_OK)
        bk_fatal("%s", bk_status_text());
    if (bk_options_read(loss->options, config, map, kind, arena) != BK_OK)
        bk_fatal("%s", bk_status_text());
    a.config = config;
    return bk_f64(loss->apply(&job->tape, &a));
}

static void add_sums(bk_job *job, const bk_bundle *bundle, double sums[SUMS])
{
    bk_arena *arena = job->tape.arena;
    const bk_tensor *logits = bk_bundle_need(bundle, "logits");
    const int32_t *labels = bk_i32(bk_bundle_need(bundle, "labels"));
    int64_t rows = bk_rows(logits), lanes = job->lanes.count;
    int32_t *valid = BK_NEW(arena, int32_t, rows);
    for (int64_t i = 0; i < rows; i++)
        valid[i] = labels[i] >= 0;
    bk_loss_args a = {.logits = bk_bundle_need(bundle, "logits"),
                      .teacher = bk_bundle_get(bundle, "teacher.logits"),
                      .labels = labels,
                      .valid = valid,
                      .rows = 1, /* a mean over one row is the sum */
                      .comm = job->world->loss};
    double *local = BK_ZNEW(arena, double, lanes *SUMS), batch[SUMS];
    const double *loss = sum_of(job, "cross_entropy", &a);
    const double *kl = a.teacher ? sum_of(job, "kl", &a) : NULL;
    for (int64_t l = 0; l < lanes; l++) {
        local[l * SUMS + SUM_LOSS] = loss[l];
        local[l * SUMS + SUM_KL] = kl ? kl[l] : 0.0;
    }
    bk_sum_lanes(job->world->loss, &job->lanes, SUMS, local, batch);
    for (int i = 0; i < SUMS; i++)
        sums[i] += batch[i];
}

bk_stop bk_job_stop_asked(const bk_job *job)
{
    bool asked = bk_signals_any() || (job->teacher && job->teacher->seen);
    int64_t stop = asked ? BK_STOP_SIGNAL : bk_seconds() >= job->stop_at ? BK_STOP_TIME : BK_GO_ON;
    bk_max_i64(job->world->ctl, 1, &stop);
    return (bk_stop)stop;
}

static bool counts_confusion(const bk_job *job)
{
    return job->data.classes > 0 && job->data.classes <= BK_METRIC_CLASSES;
}

/* Sums the counts of all ranks first. */
static void add_metrics(const bk_job *job, int64_t *confusion, bk_evaluation *e)
{
    int64_t classes = job->data.classes;
    if (confusion)
        bk_sum_i64(job->world->loss, classes * classes, confusion);
    for (int i = 0; i < BK_METRICS; i++)
        e->metric[i] = confusion ? bk_metric_of(i, classes, confusion) : NAN;
}

bk_evaluation bk_job_evaluate(bk_job *job, int64_t batches)
{
    const bk_sampler *sampler = job->eval_sampler;
    bk_tape *t = &job->tape;
    double start = bk_seconds(), sums[SUMS] = {0};
    int64_t counts[3] = {0}, all = bk_sampler_batches(sampler);
    int64_t last = batches > 0 && batches < all ? batches : all;
    bk_stop stop = BK_GO_ON;
    bk_status status = BK_OK;
    bk_arena *scratch = bk_arena_new("evaluation");
    int64_t classes = job->data.classes;
    int64_t *confusion =
        counts_confusion(job) ? BK_ZNEW(scratch, int64_t, classes * classes) : NULL;
    bk_watchdog_phase(BK_PHASE_EVALUATE);
    bool judged = bk_teacher_enter_evaluation(job);
    for (int64_t i = 0; i < last && stop == BK_GO_ON && status == BK_OK; i++) {
        bk_bundle bundle = {0};
        bk_tape_begin(t);
        t->training = t->recording = false;
        bk_sampler_batch(sampler, i, &job->lanes, t->arena, &bundle);
        bk_job_teach(job, (bk_lesson){.evaluation = true, .batch = i, .batches = last}, &bundle);
        bk_model_forward(job->model, t, &bundle);
        count_rows(&bundle, counts, confusion);
        add_sums(job, &bundle, sums);
        status = t->status;
        stop = i + 1 < last ? bk_job_stop_asked(job) : BK_GO_ON;
    }
    bk_teacher_leave_evaluation(job);
    bk_sum_i64(job->world->loss, 3, counts);
    double rows = counts[0] > 0 ? (double)counts[0] : 1.0;
    bk_evaluation e = {.status = status,
                       .rows = counts[0],
                       .correct = counts[1],
                       .cross_entropy = sums[SUM_LOSS] / rows,
                       .accuracy = (double)counts[1] / rows,
                       .teacher_agreement = judged ? (double)counts[2] / rows : NAN,
                       .teacher_kl = judged ? sums[SUM_KL] / rows : NAN,
                       .stop = stop};
    add_metrics(job, confusion, &e);
    bk_arena_free(scratch);
    e.seconds = bk_seconds() - start;
    return e;
}
