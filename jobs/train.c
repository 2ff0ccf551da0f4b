/* birkhoff train: config -> data -> forward -> loss -> backward -> reduce -> step -> checkpoint. */
#include "core/blas.h"
#include "core/log.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "io/metrics.h"
#include "jobs/command.h"
#include "jobs/job.h"
#include "jobs/load.h"
#include "jobs/machine.h"
#include "jobs/peak.h"
#include "jobs/progress.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the loop keeps beside the job. */
typedef struct loop {
    bk_job *job;
    bk_metrics *metrics; /* rank 0 with a run directory; NULL elsewhere */
    bk_progress progress;
    double started, peak; /* seconds; FLOP/s of this rank */
    double longest_step, longest_save;
    int64_t logged_step, logged_positions;
    double logged_at;
    int failures, skipped;
    int64_t saved_step;
} loop;

/* ---- lines of metrics ---- */

static void write_moe(loop *l)
{
    bk_job *job = l->job;
    int layers = bk_model_moe_layers(job->model);
    if (layers == 0)
        return;
    bk_moe_figures *f = BK_ZNEW(job->tape.arena, bk_moe_figures, layers);
    bk_model_moe_figures(job->model, f);
    bk_metrics_open_list(l->metrics, "moe");
    for (int i = 0; i < layers; i++) {
        bk_metrics_next_item(l->metrics);
        bk_metrics_integer(l->metrics, "layer", f[i].layer);
        bk_metrics_number(l->metrics, "load_max_over_mean", f[i].load_max_over_mean);
        bk_metrics_number(l->metrics, "load_min_over_mean", f[i].load_min_over_mean);
        bk_metrics_number(l->metrics, "load_cv", f[i].load_cv);
        bk_metrics_number(l->metrics, "load_entropy", f[i].load_entropy);
        bk_metrics_number(l->metrics, "token_entropy", f[i].token_entropy);
        bk_metrics_number(l->metrics, "confidence", f[i].confidence);
        bk_metrics_integer(l->metrics, "dead", f[i].dead);
        bk_metrics_integer(l->metrics, "router_iterations", f[i].router_iterations);
        bk_metrics_integer(l->metrics, "ot_steps", f[i].ot_steps);
        bk_metrics_integer(l->metrics, "nonfinite_logits", f[i].nonfinite_logits);
        bk_metrics_integer(l->metrics, "bytes_sent", f[i].bytes_sent);
        bk_metrics_number(l->metrics, "route", f[i].seconds_route);
        bk_metrics_number(l->metrics, "exchange", f[i].seconds_exchange);
        bk_metrics_number(l->metrics, "gemm", f[i].seconds_gemm);
    }
    bk_metrics_close_list(l->metrics);
}

static void write_terms(const loop *l, const bk_step_result *r)
{
    const bk_job *job = l->job;
    for (int i = 0; i < job->config->losses; i++)
        bk_metrics_number(l->metrics, job->config->loss[i].kind->name, r->term[i]);
    if (bk_model_moe_layers(job->model) > 0) {
        bk_metrics_number(l->metrics, "moe_aux", r->aux);
        bk_metrics_number(l->metrics, "moe_z", r->z);
    }
}

/* Positions a second since the last line, and the share of the machine's peak that the model's
 * FLOPs make. */
static void rates(const loop *l, double *tokens_per_second, double *utilization)
{
    const bk_job *job = l->job;
    double seconds = bk_seconds() - l->logged_at;
    double samples = (double)(job->state.step - l->logged_step) * (double)job->lanes.batch;
    double flops = 3.0 * bk_model_measure(job->model).flops_per_sample;
    if (job->teacher)
        flops += bk_model_measure(job->teacher).flops_per_sample;
    *tokens_per_second = (double)(job->state.tokens_seen - l->logged_positions) / seconds;
    *utilization = flops * samples / seconds / (l->peak * job->world->size);
}

static void write_line(loop *l, const bk_step_result *r, double tokens_per_second,
                       double utilization)
{
    bk_metrics_begin(l->metrics, l->job->state.step, "train");
    bk_metrics_number(l->metrics, "loss", r->loss);
    write_terms(l, r);
    bk_metrics_number(l->metrics, "lr", r->lr);
    bk_metrics_number(l->metrics, "grad_norm", r->grad_norm);
    bk_metrics_number(l->metrics, "tokens_per_second", tokens_per_second);
    bk_metrics_number(l->metrics, "seconds", bk_seconds() - l->started);
    bk_metrics_number(l->metrics, "model_flops_utilization", utilization);
    write_moe(l);
    bk_metrics_end(l->metrics);
}

static void report(loop *l, const bk_step_result *r)
{
    bk_job *job = l->job;
    bool due = job->state.step % job->config->log.interval == 0 ||
               job->state.step == job->config->run.steps;
    double tokens_per_second, utilization;
    rates(l, &tokens_per_second, &utilization);
    char text[160];
    snprintf(text, sizeof text, "loss %.4f  lr %.3g  %.0f tokens/s", r->loss, r->lr,
             tokens_per_second);
    bk_progress_show(&l->progress, job->state.step, due, text);
    if (!due)
        return;
    write_line(l, r, tokens_per_second, utilization);
    l->logged_step = job->state.step;
    l->logged_positions = job->state.tokens_seen;
    l->logged_at = bk_seconds();
}

/* ---- evaluation ---- */

static void evaluate(loop *l, int64_t batches)
{
    bk_job *job = l->job;
    bk_evaluation e = bk_job_evaluate(job, job->eval_sampler, batches);
    char ladder[128];
    bk_progress_break(&l->progress);
    bk_metrics_begin(l->metrics, job->state.step, job->eval_split->name);
    bk_metrics_number(l->metrics, "loss", e.cross_entropy);
    bk_metrics_number(l->metrics, "cross_entropy", e.cross_entropy);
    bk_metrics_number(l->metrics, "accuracy", e.accuracy);
    bk_metrics_integer(l->metrics, "rows", e.rows);
    if (job->teacher) {
        bk_metrics_number(l->metrics, "teacher_agreement", e.teacher_agreement);
        bk_metrics_number(l->metrics, "teacher_kl", e.teacher_kl);
    }
    bk_metrics_number(l->metrics, "seconds", e.seconds);
    bk_metrics_end(l->metrics);
    bk_note("%s at step %lld: cross-entropy %.4f, accuracy %.4f%s", job->eval_split->name,
            (long long)job->state.step, e.cross_entropy, e.accuracy,
            bk_ladder_text(job->eval_split, e.accuracy, ladder));
    l->logged_at = bk_seconds();
    l->logged_step = job->state.step;
    l->logged_positions = job->state.tokens_seen;
}

/* ---- checkpoints ---- */

static bk_status save(loop *l)
{
    bk_saved saved = {0};
    double start = bk_seconds();
    bk_status status = bk_job_save(l->job, &saved);
    double seconds = bk_seconds() - start;
    bk_max_f64(l->job->world->ctl, 1, &seconds);
    l->longest_save = fmax(l->longest_save, seconds);
    bk_progress_break(&l->progress);
    if (status == BK_OK) {
        l->failures = 0;
        l->saved_step = l->job->state.step;
        bk_note("saved step %lld (%.1f MB, %.2f s, stall %.2f s)", (long long)l->job->state.step,
                (double)saved.bytes / 1e6, saved.seconds, seconds);
        return BK_OK;
    }
    l->failures++;
    bk_warn("the checkpoint of step %lld was not saved (%s)", (long long)l->job->state.step,
            bk_status_text());
    return l->failures >= l->job->config->checkpoint.failures ? status : BK_OK;
}

static bk_status save_if_new(loop *l)
{
    return l->saved_step == l->job->state.step ? BK_OK : save(l);
}

/* ---- the loop ---- */

static bool time_is_near(const loop *l)
{
    const bk_config_run *c = &l->job->config->run;
    if (c->time_limit <= 0)
        return false;
    double left = c->time_limit - (bk_seconds() - l->started);
    return left < 1.5 * l->longest_save + 2.0 * l->longest_step + c->stop_margin;
}

static bk_status stop_on_request(loop *l, const bk_step_result *r)
{
    BK_TRY(save_if_new(l));
    return bk_fail(BK_STOPPED, "stopped after step %lld on %s (%s): start it again to go on",
                   (long long)l->job->state.step, r->stop_signal ? "a signal" : "the time limit",
                   l->job->config->run.dir);
}

/* The step was not applied: the state is the last good one. */
static bk_status not_finite(loop *l, const bk_step_result *r)
{
    bk_job *job = l->job;
    if (++l->skipped <= job->config->optim.skip_nonfinite) {
        bk_warn("step %lld skipped: %lld values of loss or gradient are not finite",
                (long long)job->state.step + 1, (long long)r->nonfinite);
        job->state.step++;
        job->state.updates_skipped++;
        return BK_OK;
    }
    BK_TRY(save_if_new(l));
    return bk_fail(BK_NONFINITE,
                   "loss or gradient is not finite at step %lld (%lld values; %s): the last good "
                   "state is kept; lower optim.lr or set optim.skip_nonfinite",
                   (long long)job->state.step + 1, (long long)r->nonfinite, job->config->run.dir);
}

static bk_status after_step(loop *l, const bk_step_result *r)
{
    const bk_job *job = l->job;
    const bk_config *c = job->config;
    int64_t step = job->state.step;
    l->skipped = 0;
    report(l, r);
    if (c->log.eval_interval > 0 && step % c->log.eval_interval == 0 && step < c->run.steps)
        evaluate(l, c->log.eval_batches);
    if (r->stop_signal || r->stop_time)
        return step < c->run.steps ? stop_on_request(l, r) : BK_OK;
    return c->checkpoint.every > 0 && step % c->checkpoint.every == 0 ? save(l) : BK_OK;
}

static bk_status run_steps(loop *l)
{
    bk_job *job = l->job;
    while (job->state.step < job->config->run.steps) {
        double start = bk_seconds();
        bk_step_result r = bk_job_step(job, time_is_near(l));
        l->longest_step = fmax(l->longest_step, bk_seconds() - start);
        if (r.status == BK_NONFINITE)
            BK_TRY(not_finite(l, &r));
        else if (r.status != BK_OK)
            return r.status;
        else
            BK_TRY(after_step(l, &r));
    }
    BK_TRY(save_if_new(l));
    evaluate(l, 0);
    return BK_OK;
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
    for (int i = 0; i < job->config->losses; i++)
        if (job->config->losses == 1 && strcmp(job->config->loss[i].kind->name, "sinkd") == 0)
            bk_warn("sinkd is the only loss: it cannot know which sample is which (permutation "
                    "invariance); add cross_entropy or kl");
}

static bk_status train(bk_job *job)
{
    BK_TRY(bk_job_check_resume(job));
    BK_TRY(bk_job_claim_directory(job));
    BK_TRY(bk_job_resume(job));
    loop l = {
        .job = job, .started = bk_seconds(), .saved_step = job->checkpoint ? job->state.step : -1};
    l.logged_step = job->state.step;
    l.logged_positions = job->state.tokens_seen;
    l.peak = bk_measure_peak();
    bk_status opened = job->world->rank == 0
                           ? bk_metrics_open(job->arena, job->config->run.dir, job->state.step,
                                             job->config->log.tensorboard, &l.metrics)
                           : BK_OK;
    BK_TRY(bk_agree(job->world->ctl, opened));
    begin_notes(job);
    bk_machine_warn(job->world, bk_blas_threads());
    l.progress = bk_progress_start(job->state.step, job->config->run.steps);
    l.logged_at = bk_seconds();
    bk_status status = run_steps(&l);
    bk_progress_break(&l.progress);
    bk_status closed = l.metrics ? bk_metrics_close(l.metrics) : BK_OK;
    return status != BK_OK ? status : bk_agree(job->world->ctl, closed);
}

/* ---- the command ---- */

static bk_status run(bk_context *context)
{
    bk_config *config;
    bk_job *job;
    BK_TRY(bk_load_config(context, &config));
    BK_TRY(bk_job_open(context->arena, config, true, &job));
    bk_status status = context->dry_run ? bk_dry_run(job) : train(job);
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
            "loss not finite.\n"
            "--dry-run prints the resolved configuration, parameters, memory, messages and "
            "checkpoint size, and stops.\n",
    .stops = true,
    .run = run,
};
