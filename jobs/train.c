/* birkhoff train: config -> data -> forward -> loss -> backward -> reduce -> step -> checkpoint. */
#include "core/blas.h"
#include "core/log.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "dist/watchdog.h"
#include "io/metrics.h"
#include "jobs/best.h"
#include "jobs/command.h"
#include "jobs/load.h"
#include "jobs/machine.h"
#include "jobs/memory.h"
#include "jobs/peak.h"
#include "jobs/probe.h"
#include "jobs/progress.h"
#include "jobs/repro.h"
#include "jobs/routing.h"
#include "jobs/saving.h"
#include "jobs/slurm.h"
#include "jobs/teacher.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* What the loop keeps beside the job. */
typedef struct loop {
    bk_job *job;
    bk_metrics *metrics; /* rank 0; NULL elsewhere */
    bk_progress progress;
    bk_best best;
    double peak; /* FLOP/s of this rank */
    /* Seconds between two looks for requests to stop: a step, or a sample of a probe. */
    double longest_step;
    double end; /* of the time limit, bk_seconds(); INFINITY without */
    int64_t logged_step, logged_positions;
    double logged_at;
    double waited;   /* since then, for the teacher's rows */
    int64_t skipped; /* steps in a row */
    bk_saving saving;
    bool is_best; /* the evaluation of this step was the best so far */
} loop;

/* ---- lines of metrics ---- */

/* Collective. */
static void write_moe(loop *l)
{
    bk_job *job = l->job;
    int layers = bk_model_moe_layers(job->model);
    if (layers == 0)
        return;
    bk_moe_figures *f = BK_ZNEW(job->tape.arena, bk_moe_figures, layers);
    bk_model_moe_figures(job->model, f);
    bk_routing_write(l->metrics, layers, f, job->tape.arena);
}

/* "row_violation" of "sinkd", "row_violation.2" of "sinkd.2". */
static void write_figures(const loop *l, const bk_config_loss *loss, const bk_attributes *figures)
{
    const char *place = loss->name + strlen(loss->kind->name);
    for (int i = 0; i < figures->entries; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s%s", figures->entry[i].name, place);
        if (figures->entry[i].integer)
            bk_metrics_integer(l->metrics, name, (int64_t)figures->entry[i].value);
        else
            bk_metrics_number(l->metrics, name, figures->entry[i].value);
    }
}

/* "kl_share": what each term makes of the weighted sum of absolute values.  Of values, not of
 * gradients: those of the terms are never apart. */
static void write_shares(const loop *l, const bk_step_result *r)
{
    const bk_config *c = l->job->config;
    double sum = 0.0;
    for (int i = 0; i < c->losses; i++)
        sum += c->loss[i].weight * fabs(r->term[i]);
    for (int i = 0; i < c->losses && c->losses > 1 && sum > 0.0; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s_share", c->loss[i].name);
        bk_metrics_number(l->metrics, name, c->loss[i].weight * fabs(r->term[i]) / sum);
    }
}

static void write_terms(const loop *l, const bk_step_result *r)
{
    const bk_job *job = l->job;
    for (int i = 0; i < job->config->losses; i++) {
        bk_metrics_number(l->metrics, job->config->loss[i].name, r->term[i]);
        write_figures(l, &job->config->loss[i], &job->figures[i]);
    }
    write_shares(l, r);
    if (r->tails)
        bk_metrics_number(l->metrics, "teacher_tail", r->tail);
    if (r->clamps)
        bk_metrics_integer(l->metrics, "clamped", (int64_t)r->clamped);
    if (bk_model_moe_layers(job->model) > 0) {
        bk_metrics_number(l->metrics, "moe_aux", r->aux);
        bk_metrics_number(l->metrics, "moe_z", r->z);
    }
}

static void restart_clock(loop *l)
{
    l->logged_step = l->job->state.step;
    l->logged_positions = l->job->state.tokens_seen;
    l->logged_at = bk_seconds();
    l->waited = 0.0;
}

/* Seconds a step that this rank waited for the teacher's rows, or read them, since the last line.
 */
static double mean_wait(const loop *l)
{
    int64_t steps = l->job->state.step - l->logged_step;
    return steps > 0 ? l->waited / (double)steps : 0.0;
}

/* What a line says about the machine. */
typedef struct machine_figures {
    double tokens_per_second, utilization;
    int64_t peak_bytes;
} machine_figures;

/* Positions a second since the last line, and the share of the machine's peak that the model's
 * FLOPs make. */
static void rates(const loop *l, machine_figures *out)
{
    const bk_job *job = l->job;
    const bk_teacher *teacher = job->teacher;
    double seconds = bk_seconds() - l->logged_at;
    double samples = (double)(job->state.step - l->logged_step) * (double)job->lanes.batch;
    double flops = 3.0 * bk_model_measure(job->model).flops_per_sample;
    if (teacher && teacher->placement != BK_CACHED)
        flops += teacher->flops_per_sample;
    out->tokens_per_second = (double)(job->state.tokens_seen - l->logged_positions) / seconds;
    out->utilization = flops * samples / seconds / (l->peak * bk_mpi_size());
}

static void write_line(loop *l, const bk_step_result *r, const machine_figures *f)
{
    bk_metrics_begin(l->metrics, l->job->state.step, "train");
    bk_metrics_number(l->metrics, "loss", r->loss);
    write_terms(l, r);
    bk_metrics_number(l->metrics, "lr", r->lr);
    bk_metrics_number(l->metrics, "grad_norm", r->grad_norm);
    bk_metrics_number(l->metrics, "tokens_per_second", f->tokens_per_second);
    bk_metrics_number(l->metrics, "seconds", bk_seconds() - l->job->started);
    bk_metrics_number(l->metrics, "model_flops_utilization", f->utilization);
    bk_metrics_integer(l->metrics, "peak_bytes", f->peak_bytes);
    bk_traffic sent = bk_traffic_sum(r->sent);
    bk_metrics_integer(l->metrics, "bytes_sent", sent.bytes);
    bk_metrics_integer(l->metrics, "messages_sent", sent.messages);
    bk_metrics_number(l->metrics, "seconds_blocked", sent.blocked);
    if (l->job->teacher && l->job->teacher->placement != BK_COLOCATED)
        bk_metrics_number(l->metrics, "teacher_wait", mean_wait(l));
    write_moe(l);
    bk_metrics_end(l->metrics);
}

static void report(loop *l, const bk_step_result *r)
{
    bk_job *job = l->job;
    bool due = bk_job_line_due(job, job->state.step);
    machine_figures f = {0};
    rates(l, &f);
    f.peak_bytes = due ? bk_peak_bytes_of_ranks(job->world->ctl) : bk_peak_bytes();
    char text[160], wait[32] = "";
    if (job->teacher && job->teacher->placement == BK_SPLIT)
        snprintf(wait, sizeof wait, "  waits %.3f s", mean_wait(l));
    snprintf(text, sizeof text, "loss %.4f  lr %.3g  %.0f tokens/s  %.2f GB%s", r->loss, r->lr,
             f.tokens_per_second, 1e-9 * (double)f.peak_bytes, wait);
    bk_progress_show(&l->progress, job->state.step, due, text);
    if (!due)
        return;
    write_line(l, r, &f);
    restart_clock(l);
}

/* ---- evaluation ---- */

static bool evaluation_due(const loop *l)
{
    const bk_config *c = l->job->config;
    int64_t step = l->job->state.step, interval = c->log.eval_interval;
    return step == c->run.steps || (interval > 0 && step % interval == 0);
}

static bk_stop write_evaluation(loop *l, const bk_evaluation *e)
{
    const bk_job *job = l->job;
    bk_metrics_begin(l->metrics, job->state.step, job->eval_split->name);
    bk_metrics_number(l->metrics, "loss", e->cross_entropy);
    bk_metrics_number(l->metrics, "cross_entropy", e->cross_entropy);
    bk_metrics_number(l->metrics, "accuracy", e->accuracy);
    if (job->metric >= 0)
        bk_metrics_number(l->metrics, bk_metric_names[job->metric], e->metric[job->metric]);
    bk_metrics_integer(l->metrics, "rows", e->rows);
    if (bk_teacher_evaluates(job->teacher)) {
        bk_metrics_number(l->metrics, "teacher_agreement", e->teacher_agreement);
        bk_metrics_number(l->metrics, "teacher_kl", e->teacher_kl);
    }
    bk_stop stop = bk_job_probe(l->job, l->metrics, &l->longest_step);
    bk_metrics_number(l->metrics, "seconds", e->seconds);
    bk_metrics_end(l->metrics);
    return stop;
}

/* The whole split at the end of the run. */
static bk_status evaluate(loop *l, bk_stop *stop)
{
    bk_job *job = l->job;
    bool last = job->state.step == job->config->run.steps;
    bk_evaluation e = bk_job_evaluate(job, last ? 0 : job->config->log.eval_batches);
    BK_TRY(e.status);
    *stop = e.stop;
    if (e.stop != BK_GO_ON)
        return BK_OK;
    char ladder[128], metric[64] = "";
    l->is_best = bk_best_improved(&l->best, &e, &job->state);
    bk_progress_break(&l->progress);
    *stop = write_evaluation(l, &e);
    if (job->metric >= 0)
        snprintf(metric, sizeof metric, ", %s %.4f", bk_metric_names[job->metric],
                 e.metric[job->metric]);
    bk_note("%s at step %lld: cross-entropy %.4f, accuracy %.4f%s%s%s", job->eval_split->name,
            (long long)job->state.step, e.cross_entropy, e.accuracy, metric,
            bk_ladder_text(job->eval_split, e.accuracy, ladder), l->is_best ? ", the best" : "");
    restart_clock(l);
    return BK_OK;
}

/* ---- the loop ---- */

/* When this rank must begin to stop, so that a save still fits. */
static void plan_stop(loop *l)
{
    l->job->stop_at =
        l->end - l->job->config->run.stop_margin - 1.5 * l->saving.longest - 2.0 * l->longest_step;
}

static bk_status stop_on_request(loop *l, bk_stop stop)
{
    BK_TRY(bk_saving_for_good(&l->saving, l->is_best));
    return bk_fail(BK_STOPPED, "stopped after step %lld on %s (%s): start it again to go on",
                   (long long)l->job->state.step,
                   stop == BK_STOP_SIGNAL ? "a signal" : "the time limit", l->job->config->run.dir);
}

/* The step counts, its update does not. */
static void leave_out(loop *l, const bk_step_result *r)
{
    bk_repro_write(l->job, r, l->saving.saved_step);
    bk_progress_break(&l->progress);
    bk_job_advance(l->job, r->positions);
    l->job->state.updates_skipped++;
}

/* The step was not applied: the state is the last good one. */
static bk_status not_finite(loop *l, const bk_step_result *r)
{
    bk_job *job = l->job;
    if (++l->skipped <= job->config->optim.skip_nonfinite) {
        leave_out(l, r);
        bk_warn("step %lld skipped: %lld values of loss or gradient are not finite",
                (long long)job->state.step, (long long)r->nonfinite);
        return BK_OK;
    }
    bk_repro_write(job, r, l->saving.saved_step);
    BK_TRY(bk_saving_for_good(&l->saving, l->is_best));
    return bk_fail(BK_NONFINITE,
                   "loss or gradient is not finite at step %lld (%lld values; %s): the last good "
                   "state is kept; lower optim.lr or set optim.skip_nonfinite",
                   (long long)job->state.step + 1, (long long)r->nonfinite, job->config->run.dir);
}

static bk_status spike(loop *l, const bk_step_result *r)
{
    const bk_spike_state *s = &l->job->state.spike;
    leave_out(l, r);
    bk_warn("step %lld skipped: the gradient's norm is %.3g, %.1f standard deviations above %.3g",
            (long long)l->job->state.step, r->grad_norm,
            (r->grad_norm - s->mean) / sqrt(s->variance), s->mean);
    return BK_OK;
}

static void warn_of_tail(const bk_step_result *r)
{
    static bool warned;
    if (r->tail > 0.01)
        bk_warn_once(&warned,
                     "the teacher's classes outside top_k hold %.2g %% of its probability "
                     "(teacher_tail): above 1 %% the losses are off by as much; raise top_k",
                     100.0 * r->tail);
}

static bk_status one_step(loop *l, bk_step_result *r)
{
    double start = bk_seconds();
    *r = bk_job_step(l->job);
    l->longest_step = fmax(l->longest_step, bk_seconds() - start);
    l->waited += r->teacher_wait;
    BK_TRY(bk_saving_move(&l->saving, r));
    if (r->status == BK_NONFINITE)
        return not_finite(l, r);
    BK_TRY(r->status);
    warn_of_tail(r);
    l->skipped = 0;
    if (r->spike)
        return spike(l, r);
    report(l, r);
    return BK_OK;
}

/* What stands behind a step: an evaluation, a request to stop, a checkpoint.  The evaluation comes
 * before the save, so that a checkpoint knows the best value up to its step. */
static bk_status milestone(loop *l, const bk_step_result *r)
{
    bk_stop stop = r->stop;
    l->is_best = false;
    if (stop == BK_GO_ON && evaluation_due(l))
        BK_TRY(evaluate(l, &stop));
    if (stop != BK_GO_ON)
        return stop_on_request(l, stop);
    if (l->job->state.step == l->job->config->run.steps)
        return bk_saving_for_good(&l->saving, l->is_best);
    return l->is_best || bk_saving_due(&l->saving, r) ? bk_saving_begin(&l->saving, l->is_best)
                                                      : BK_OK;
}

/* An evaluation that a request to stop cut short is made up for. */
static bk_status catch_up(loop *l)
{
    const bk_job *job = l->job;
    int64_t step = job->state.step;
    int made = job->world->rank == 0 && bk_metrics_has(l->metrics, step, "accuracy");
    bk_broadcast(job->world->ctl, 0, &made, sizeof made);
    if (step == 0 || made || step > job->config->run.steps || !evaluation_due(l))
        return BK_OK;
    return milestone(l, &(bk_step_result){.stop = BK_GO_ON});
}

static bk_status run_steps(loop *l)
{
    const bk_job *job = l->job;
    bk_step_result r;
    BK_TRY(catch_up(l));
    if (job->state.step >= job->config->run.steps)
        bk_note("all %lld steps are done (%s): raise run.steps to go on",
                (long long)job->state.step, job->config->run.dir);
    while (job->state.step < job->config->run.steps) {
        plan_stop(l);
        BK_TRY(one_step(l, &r));
        BK_TRY(milestone(l, &r));
    }
    return BK_OK;
}

/* ---- begin and end ---- */

static bool only_sinkd(const bk_config *c)
{
    for (int i = 0; i < c->losses; i++)
        if (strcmp(c->loss[i].kind->name, "sinkd") != 0 && c->loss[i].weight > 0.0)
            return false;
    return true;
}

static void note_teacher(const bk_job *job)
{
    const bk_teacher *t = job->teacher;
    char form[64];
    if (!t)
        return;
    const char *path = job->config->distill.teacher;
    if (t->placement == BK_CACHED)
        bk_note("teacher's logits of %lld rows, %s (%s)", (long long)t->file->rows,
                bk_teacher_form_text(&t->form, form), t->file->path);
    else if (t->placement == BK_SPLIT)
        bk_note("teacher of %lld parameters on %lld other ranks, which send %s (%s)",
                (long long)t->parameters, (long long)job->config->distill.teacher_ranks,
                bk_teacher_form_text(&t->form, form), path);
    else
        bk_note("teacher of %lld parameters (%s)", (long long)t->parameters, path);
}

static void begin_notes(const bk_job *job)
{
    bk_model_figures f = bk_model_measure(job->model);
    bk_note("%s of %lld parameters (%lld active), %lld samples in %s, %d ranks x %d threads, %lld "
            "lanes, %s",
            bk_model_kind_of(job->model)->name, (long long)f.parameters,
            (long long)f.active_parameters, (long long)job->train_split->count,
            job->train_split->name, job->world->size, bk_blas_threads(),
            (long long)job->lanes.total, bk_blas_description());
    if (job->checkpoint)
        bk_note("resuming from step %lld (%s)", (long long)job->state.step,
                bk_checkpoint_path(job->checkpoint));
    if (job->dense)
        bk_note("the experts begin as the dense feed-forward of %s",
                bk_checkpoint_path(job->dense));
    note_teacher(job);
    bk_model_advise(job->model, job->config->run.steps);
    if (only_sinkd(job->config))
        bk_warn("sinkd is the only loss: it cannot know which sample is which (permutation "
                "invariance); add cross_entropy or kl");
}

static void warn_of_margin(const bk_job *job, const char *what, double seconds)
{
    double margin = job->config->run.stop_margin;
    if (seconds <= margin)
        bk_warn("%s=%g is not above run.stop_margin=%g: the run stops after one step", what,
                seconds, margin);
}

/* What Slurm leaves this job, as rank 0 finds it. */
static double time_left(const bk_job *job)
{
    double left = job->world->rank == 0 ? bk_slurm_time_left() : 0;
    bk_broadcast(job->world->ctl, 0, &left, sizeof left);
    if (left < 0) {
        bk_warn("Slurm does not say when it ends this job: give run.time_limit in seconds");
        return INFINITY;
    }
    if (isfinite(left))
        bk_note("Slurm ends this job in %.0f s: the run stops in time", left);
    warn_of_margin(job, "the time left", left);
    return left;
}

/* run.time_limit counts from the start of the program, what Slurm leaves from now. */
static double find_end(const bk_job *job)
{
    double limit = job->config->run.time_limit;
    if (limit <= 0)
        return bk_seconds() + time_left(job);
    warn_of_margin(job, "run.time_limit", limit);
    return job->started + limit;
}

static bk_status open_metrics(loop *l)
{
    bk_job *job = l->job;
    const bk_config *c = job->config;
    bk_status status = job->world->rank == 0
                           ? bk_metrics_open(job->arena, c->run.dir, job->state.step,
                                             c->log.tensorboard, &l->metrics)
                           : BK_OK;
    return bk_agree(job->world->ctl, status);
}

static bk_status train_watched(bk_job *job, const bk_best *best)
{
    BK_TRY(bk_job_resume(job));
    loop l = {.job = job, .best = *best};
    l.saving = bk_saving_of(job, &l.progress);
    l.peak = bk_measure_peak(job->tape.bf16);
    BK_TRY(open_metrics(&l));
    begin_notes(job);
    l.end = find_end(job);
    l.progress = bk_progress_start(job->state.step, job->config->run.steps);
    restart_clock(&l);
    bk_status status = run_steps(&l);
    const char *text = bk_arena_strdup(job->arena, bk_status_text());
    bk_progress_break(&l.progress);
    bk_status ended = bk_saving_end(&l.saving);
    bk_status closed = bk_agree(job->world->ctl, l.metrics ? bk_metrics_close(l.metrics) : BK_OK);
    return status != BK_OK ? bk_fail(status, "%s", text) : ended != BK_OK ? ended : closed;
}

static bk_status train(bk_job *job, const bk_best *best)
{
    const bk_config_run *c = &job->config->run;
    BK_TRY(bk_job_check_resume(job));
    BK_TRY(bk_job_claim_directory(job));
    bk_watchdog_start(
        &(bk_watchdog_options){.directory = bk_arena_printf(job->arena, "%s/stall", c->dir),
                               .run_id = job->run_id,
                               .seconds = c->stall_seconds});
    bk_status status = train_watched(job, best);
    bk_watchdog_stop();
    return status;
}

/* ---- the command ---- */

static bk_status work(const bk_context *context, bk_job *job, const bk_best *best)
{
    bk_status status = BK_OK;
    if (!context->dry_run)
        bk_machine_warn(job->world, bk_blas_threads()); /* all ranks of the job meet in it */
    if (job->teaches)
        bk_teacher_serve(job);
    else if ((status = bk_best_fits(best, job)) == BK_OK)
        status = context->dry_run ? bk_dry_run(job) : train(job, best);
    bk_teacher_split_release(job);
    return bk_job_meet(job, status);
}

static bk_status run(bk_context *context)
{
    bk_config *config;
    bk_job *job;
    bk_best best;
    BK_TRY(bk_load_config(context, &config));
    BK_TRY(bk_best_read(config, &best));
    BK_TRY(bk_job_open(context->arena, config, context->dry_run ? BK_DRY_RUN : BK_TRAIN,
                       (bk_given){0}, &job));
    bk_status status = work(context, job, &best);
    bk_job_close(job);
    return status;
}

const bk_command bk_command_train = {
    .name = "train",
    .summary = "train a model, or distil one from a teacher; resumes by itself",
    .usage = "train CONFIG.yaml [--dry-run] [key=value ...]",
    .help = "Trains as the configuration says and resumes from the newest valid checkpoint in "
            "run.dir.\n"
            "Status: 0 done, 75 stopped on request after a checkpoint (start again to go on), 4 "
            "loss not finite,\n"
            "76 a rank stood still for run.stall_seconds (RUN/stall says which).\n"
            "--dry-run prints the resolved configuration, parameters, memory, messages and "
            "checkpoint size, and stops.\n",
    .stops = true,
    .run = run,
};
