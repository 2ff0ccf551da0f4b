#include "jobs/teacher.h"

#include "core/fault.h"
#include "core/log.h"
#include "dist/signal.h"
#include "dist/step.h"
#include "dist/watchdog.h"
#include "jobs/spike.h"
#include "jobs/transfer.h"

#include <math.h>
#include <string.h>

bool bk_job_line_due(const bk_job *job, int64_t step)
{
    return step % job->config->log.interval == 0 || step == job->config->run.steps ||
           job->purpose == BK_DRY_RUN;
}

static void add_losses(bk_job *job, const bk_bundle *bundle)
{
    const bk_config *c = job->config;
    const bk_tensor *sequence = bk_bundle_get(bundle, "sequence");
    bk_loss_args a = {.logits = bk_bundle_need(bundle, "logits"),
                      .teacher = bk_bundle_get(bundle, "teacher.logits"),
                      .teacher_top = bk_job_teacher_top(job, bundle),
                      .labels = bk_i32(bk_bundle_need(bundle, "labels")),
                      .sequence = sequence && job->data.classes == 0 ? bk_i32(sequence) : NULL,
                      .rows = bundle->rows,
                      .step = job->state.step,
                      .steps = c->run.steps,
                      .comm = job->world->loss};
    bk_arena *arena = job->tape.arena;
    int64_t rows = bk_rows(a.logits);
    int32_t *valid = BK_NEW(arena, int32_t, rows);
    for (int64_t i = 0; i < rows; i++)
        valid[i] = a.labels[i] >= 0;
    a.valid = valid;
    for (int i = 0; i < c->losses; i++) {
        job->figures[i].entries = 0;
        a.attributes = bk_job_line_due(job, job->state.step + 1) ? &job->figures[i] : NULL;
        a.config = c->loss[i].config;
        a.layers = bk_transfer_layers(job, i);
        bk_tape_add_term(&job->tape, c->loss[i].name, -1, c->loss[i].kind->apply(&job->tape, &a),
                         c->loss[i].weight);
    }
}

/* The terms of the lanes that the tape ran over, own lane `first` and on. */
static void keep_records(bk_job *job, int64_t first)
{
    const bk_tape *t = &job->tape;
    for (int i = 0; i < t->terms; i++)
        for (int64_t l = 0; l < t->lanes.count; l++)
            job->records[(first + l) * t->terms + i] = bk_f64(t->term[i].value)[l];
}

static int64_t nonfinite_records(const bk_job *job)
{
    int64_t count = 0;
    for (int64_t i = 0; i < job->lanes.count * job->tape.terms; i++)
        count += !isfinite(job->records[i]);
    return count;
}

static void read_terms(const bk_job *job, const double *sum, bk_step_result *out)
{
    const bk_tape *t = &job->tape;
    int auxes = 0, zs = 0, losses = 0;
    for (int i = 0; i < t->terms; i++) {
        out->loss += t->term[i].weight * sum[i];
        if (t->term[i].layer < 0) {
            out->term[losses++] = sum[i];
        } else if (strcmp(t->term[i].name, "clamped") == 0) {
            out->clamps = true;
            out->clamped += sum[i];
        } else if (strcmp(t->term[i].name, "teacher_tail") == 0) {
            out->tail = fmax(out->tail, sum[i]);
            out->tails = true;
        } else if (strcmp(t->term[i].name, "moe_aux") == 0) {
            out->aux += sum[i];
            auxes++;
        } else {
            out->z += sum[i];
            zs++;
        }
    }
    out->aux /= auxes ? auxes : 1;
    out->z /= zs ? zs : 1;
}

/* The step's message: statistics, norm and every flag travel together. */
static double agree(bk_job *job, bk_step_result *out)
{
    bk_tape *t = &job->tape;
    int64_t blocks = bk_reduction_norm_records(job->reduction);
    double *block = BK_NEW(t->arena, double, blocks);
    int64_t nonfinite = 0;
    bk_reduction_squares(job->reduction, block, &nonfinite);
    bk_saver_part part = bk_saver_part_of(job->saver);
    bool clock = job->world->rank == 0;
    double now = bk_seconds();
    const bk_teacher *teacher = job->teacher;
    bk_step_message m = {.status = t->status == BK_OK && teacher ? teacher->status : t->status,
                         .flag = {[BK_STEP_NONFINITE] = nonfinite + nonfinite_records(job),
                                  [BK_STEP_TERM] = bk_signals_term() || (teacher && teacher->seen),
                                  [BK_STEP_USR1] = bk_signals_usr1(),
                                  [BK_STEP_TIME] = now >= job->stop_at,
                                  [BK_STEP_SAVE_DONE] = part == BK_PART_DONE,
                                  [BK_STEP_SAVE_FAILED] = part == BK_PART_FAILED,
                                  [BK_STEP_SAVE_DUE] = clock && now >= job->save_at,
                                  [BK_STEP_SAVE_DEAR] = clock && now < job->save_from},
                         .terms = t->terms,
                         .record = job->records,
                         .sum = BK_NEW(t->arena, double, t->terms),
                         .blocks = blocks,
                         .block = block,
                         .all_blocks = BK_NEW(t->arena, double, blocks * job->world->size)};
    bk_step_agree(job->world->ctl, &job->lanes, &m);
    read_terms(job, m.sum, out);
    out->status = m.status;
    out->nonfinite = m.flag[BK_STEP_NONFINITE];
    out->stop = m.flag[BK_STEP_TERM] + m.flag[BK_STEP_USR1] > 0 ? BK_STOP_SIGNAL
                : m.flag[BK_STEP_TIME] > 0                      ? BK_STOP_TIME
                                                                : BK_GO_ON;
    out->saver_waits = bk_saver_busy(job->saver) &&
                       m.flag[BK_STEP_SAVE_DONE] + m.flag[BK_STEP_SAVE_FAILED] == job->world->size;
    out->save_is_due = m.flag[BK_STEP_SAVE_DUE] > 0;
    out->save_is_dear = m.flag[BK_STEP_SAVE_DEAR] > 0;
    return bk_reduction_norm(job->reduction, m.all_blocks);
}

static void update(bk_job *job, bk_step_result *out)
{
    const bk_config *c = job->config;
    double clip = c->optim.clip > 0 ? fmin(1.0, c->optim.clip / (out->grad_norm + 1e-6)) : 1.0;
    out->lr =
        c->optim.lr * c->schedule.kind->factor(job->state.step, c->run.steps, c->schedule.warmup,
                                               c->schedule.floor, c->schedule.config);
    bk_update u = {.clip = (float)clip,
                   .lr = out->lr,
                   .decay = c->optim.weight_decay,
                   .step = bk_job_updates(&job->state) + 1 - job->state.moments_from};
    if (c->parallel.zero == 0)
        bk_reduction_allgather(job->reduction, job->slab->grad);
    bk_shard_update(job->shard, job->slab, c->optim.kind, c->optim.config, &u);
    bk_model_step_routers(job->model);
    if (c->parallel.zero == 1)
        bk_reduction_gather_begin(job->reduction, &job->tape);
}

/* Forward and backward over the rows of t->lanes. */
static void pass(bk_job *job, bk_bundle *bundle)
{
    bk_tape *t = &job->tape;
    bk_watchdog_phase(BK_PHASE_BATCH);
    bk_fault(BK_FAULT_STEP_FORWARD);
    bk_tape_begin(t);
    bk_sampler_batch(job->train_sampler, job->state.step, &t->lanes, t->arena, bundle);
    bk_watchdog_phase(BK_PHASE_FORWARD);
    bk_job_teach(job, (bk_lesson){.batch = job->state.step, .batches = job->config->run.steps},
                 bundle);
    bundle->inside = bk_transfer_student(job);
    bk_model_forward(job->model, t, bundle);
    add_losses(job, bundle);
    bk_watchdog_phase(BK_PHASE_BACKWARD);
    bk_fault(BK_FAULT_STEP_BACKWARD);
    bk_tape_backward(t);
    keep_records(job, t->lanes.first - job->lanes.first);
}

/* ---- lane by lane (parallel.walk): the tree over lanes stands outside the pass ---- */

typedef struct walk {
    bk_job *job;
    bk_bundle *bundle;
} walk;

/* The gradients of one lane, in the place of the slab's. */
static void gradients_of_lane(void *context, int64_t l, void *out)
{
    const walk *w = context;
    bk_slab *slab = w->job->slab;
    float *whole = slab->grad;
    memset(out, 0, (size_t)slab->grads * sizeof *whole);
    slab->grad = out;
    w->job->tape.lanes.first = w->job->lanes.first + l;
    *w->bundle = (bk_bundle){0};
    pass(w->job, w->bundle);
    slab->grad = whole;
}

static void all_ready(const bk_job *job)
{
    const bk_tape *t = &job->tape;
    for (int i = 0; i < job->slab->parameters; i++)
        for (int use = 0; use < job->slab->parameter[i]->uses; use++)
            t->grad_ready(t->grad_ready_context, job->slab->parameter[i], use);
}

static void walk_lanes(bk_job *job, bk_bundle *bundle)
{
    bk_tape *t = &job->tape;
    t->grad_ready = NULL;
    t->lanes.count = 1;
    bk_lane_tree(&job->lanes, BK_F32, job->slab->grads, job->slab->grad, gradients_of_lane,
                 &(walk){job, bundle}, job->walk);
    t->lanes = job->lanes;
    bk_reduction_begin(job->reduction, t);
    all_ready(job);
}

static void forward_backward(bk_job *job, bk_bundle *bundle)
{
    bk_tape *t = &job->tape;
    t->training = t->recording = true;
    t->step = job->state.step;
    if (job->config->parallel.walk && job->lanes.count > 1) {
        walk_lanes(job, bundle);
    } else {
        bk_reduction_begin(job->reduction, t);
        pass(job, bundle);
    }
    bk_watchdog_phase(BK_PHASE_REDUCE);
    bk_fault(BK_FAULT_STEP_REDUCE);
    bk_reduction_finish(job->reduction);
}

int64_t bk_job_updates(const bk_run_state *s)
{
    return s->step - s->updates_skipped;
}

void bk_job_advance(bk_job *job, int64_t positions)
{
    bk_run_state *s = &job->state;
    s->step++;
    s->samples_seen += job->lanes.batch;
    s->tokens_seen += positions;
    s->cursor = s->step * job->lanes.batch;
    s->epoch = s->cursor / bk_sampler_samples(job->train_sampler);
}

static bk_step_result one_step(bk_job *job)
{
    bk_bundle bundle = {0};
    bk_step_result out = {0};
    if (job->teacher) {
        job->teacher->waited = 0.0;
        job->teacher->status = BK_OK;
    }
    forward_backward(job, &bundle);
    out.positions = bundle.positions;
    out.teacher_wait = job->teacher ? job->teacher->waited : 0.0;
    bk_watchdog_phase(BK_PHASE_AGREE);
    out.grad_norm = agree(job, &out);
    if (out.status != BK_OK)
        return out;
    if (out.nonfinite > 0 || !isfinite(out.grad_norm)) {
        out.status = BK_NONFINITE;
        return out;
    }
    out.spike = bk_spike_seen(&job->state.spike, job->config->optim.spike_zscore, out.grad_norm);
    if (out.spike)
        return out;
    bk_watchdog_phase(BK_PHASE_UPDATE);
    bk_fault(BK_FAULT_STEP_UPDATE);
    update(job, &out);
    bk_job_advance(job, out.positions);
    return out;
}

bk_step_result bk_job_step(bk_job *job)
{
    bk_traffic before[BK_TRAFFIC_PARTS];
    bk_watchdog_step(job->state.step + 1);
    for (int i = 0; i < BK_TRAFFIC_PARTS; i++)
        before[i] = bk_traffic_of((bk_traffic_part)i);
    bk_step_result out = one_step(job);
    for (int i = 0; i < BK_TRAFFIC_PARTS; i++)
        out.sent[i] = bk_traffic_minus(bk_traffic_of((bk_traffic_part)i), before[i]);
    return out;
}
