/* The teacher of a distillation: its own configuration and parameters, never trained. */
#include "jobs/teacher.h"

#include "core/log.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "io/files.h"
#include "io/yaml.h"
#include "jobs/transfer.h"

#include <stdio.h>
#include <string.h>

bk_placement bk_teacher_placement(const bk_config *config, bk_purpose purpose)
{
    bool acts = config->has_distill && (purpose == BK_TRAIN || purpose == BK_DRY_RUN);
    return acts ? (bk_placement)config->distill.placement : BK_COLOCATED;
}

/* ---- opening ---- */

static void measure(bk_teacher *t)
{
    bk_model_figures f = bk_model_measure(t->model);
    t->parameters = f.parameters;
    t->flops_per_sample = f.flops_per_sample;
}

/* The model as its checkpoint describes it. */
static bk_status make_model(bk_job *job, bk_arena *arena)
{
    bk_teacher *t = job->teacher;
    const char *path = bk_checkpoint_path(t->checkpoint),
               *text = bk_checkpoint_state(t->checkpoint)->config;
    bk_value *root;
    BK_TRY(bk_yaml_parse(arena, path, text, strlen(text), &root));
    bk_status status =
        bk_model_new(arena, bk_value_get(root, "model"), &job->data, job->world, &t->model);
    if (status != BK_OK)
        return bk_fail(status, "the teacher cannot be used here (%s): %s", path,
                       bk_arena_strdup(arena, bk_status_text()));
    bk_slab_layout(bk_model_slab(t->model), 1 << 20, 16);
    measure(t);
    return BK_OK;
}

static bk_status load_model(bk_job *job, bk_arena *arena)
{
    const bk_world *w = job->world;
    BK_TRY(bk_agree(w->ctl, make_model(job, arena)));
    return bk_job_load_model(w, arena, job->teacher->checkpoint,
                             bk_model_slab(job->teacher->model));
}

/* ---- a model that is held for a while ---- */

static void let_go(bk_teacher *t)
{
    bk_arena_free(t->visit);
    t->visit = NULL;
    t->model = NULL;
}

static bk_status hold(bk_job *job)
{
    bk_teacher *t = job->teacher;
    t->visit = bk_arena_new("teacher's model");
    bk_status status = load_model(job, t->visit);
    if (status != BK_OK)
        let_go(t);
    return status;
}

bool bk_teacher_enter_evaluation(bk_job *job)
{
    const bk_teacher *t = job->teacher;
    if (!bk_teacher_evaluates(t))
        return false;
    bool there = !t->file || hold(job) == BK_OK;
    if (!there)
        bk_warn("evaluated without the teacher: %s", bk_status_text());
    return there;
}

void bk_teacher_leave_evaluation(bk_job *job)
{
    if (job->teacher && job->teacher->visit)
        let_go(job->teacher);
}

/* ---- the file ---- */

/* What rank 0 sees counts. */
static bool file_is_missing(const bk_job *job)
{
    int64_t missing = bk_file_size(job->config->distill.cache) < 0;
    bk_broadcast(job->world->ctl, 0, &missing, sizeof missing);
    return missing != 0;
}

static bk_status write_file(bk_job *job)
{
    BK_TRY(hold(job));
    bk_status status = bk_teacher_cache_write(job, job->config->distill.cache);
    let_go(job->teacher);
    return status;
}

static bk_status open_file(bk_job *job)
{
    bool missing = file_is_missing(job);
    if (missing && job->purpose == BK_DRY_RUN) /* which writes nothing */
        return load_model(job, job->arena);
    if (missing)
        BK_TRY(write_file(job));
    return bk_agree(job->world->ctl, bk_teacher_cache_open(job));
}

static bk_status open_checkpoint(bk_job *job)
{
    const bk_config *config = job->config;
    const bk_world *w = job->world;
    bk_teacher *t = job->teacher;
    BK_TRY(bk_checkpoint_open(w->checkpoint, job->arena, config->distill.teacher,
                              (bk_checkpoint_check)config->checkpoint.verify, &t->checkpoint));
    BK_TRY(bk_agree(w->ctl, bk_job_check_fit(job, t->checkpoint, "teacher")));
    snprintf(t->payload, sizeof t->payload, "%s", bk_checkpoint_payload(t->checkpoint));
    return t->placement == BK_CACHED ? open_file(job) : load_model(job, job->arena);
}

static void make_teacher(bk_job *job)
{
    job->teacher = BK_ZNEW(job->arena, bk_teacher, 1);
    job->teacher->placement = bk_teacher_placement(job->config, job->purpose);
    job->teacher->evaluates = job->config->distill.evaluate;
    job->teacher->arena = bk_arena_new("teacher");
}

/* Students of a split hear of the teacher from its ranks. */
static bool is_elsewhere(const bk_job *job)
{
    return job->teacher->placement == BK_SPLIT && !job->teaches;
}

bk_status bk_job_open_teacher(bk_job *job)
{
    const bk_config *c = job->config;
    if (!c->has_distill || (job->purpose == BK_EVALUATE && !c->distill.evaluate))
        return BK_OK;
    make_teacher(job);
    bk_status status = is_elsewhere(job) ? BK_OK : open_checkpoint(job);
    if (status == BK_OK || job->purpose != BK_EVALUATE)
        return status;
    bk_warn("evaluated without the teacher: %s", bk_status_text());
    bk_teacher_close(job->teacher);
    job->teacher = NULL;
    return BK_OK;
}

void bk_job_take_teacher(bk_job *job, bk_model *model)
{
    make_teacher(job);
    job->teacher->placement = BK_COLOCATED;
    job->teacher->evaluates = true;
    job->teacher->model = model;
    measure(job->teacher);
}

void bk_teacher_close(bk_teacher *t)
{
    if (!t)
        return;
    if (t->file) {
        bk_status closed = bk_teacher_file_close(t->file); /* a failed read was told by its step */
        (void)closed;
    }
    bk_arena_free(t->arena);
    bk_arena_free(t->visit);
}

/* ---- a batch ---- */

const bk_tensor *bk_teacher_forward(bk_job *job, const bk_lanes *lanes, const bk_bundle *bundle)
{
    bk_teacher *t = job->teacher;
    bk_arena_reset(t->arena);
    bk_tape tape = {.arena = t->arena,
                    .scratch = job->tape.scratch,
                    .inner = bk_transfer_wants_matrices(job) ? NULL : job->tape.inner,
                    .dtype = BK_F32,
                    .bf16 = job->tape.bf16,
                    .lanes = *lanes,
                    .seed = job->tape.seed,
                    .step = job->tape.step};
    bk_bundle seen = *bundle;
    seen.inside = bk_transfer_teacher(job);
    bk_model_forward(t->model, &tape, &seen);
    if (tape.status != BK_OK)
        job->tape.status = t->status = tape.status;
    return bk_bundle_need(&seen, "logits");
}

/* Its activations go, the logits stay until the end of the step. */
static void teach_here(bk_job *job, bk_bundle *bundle)
{
    const bk_tensor *logits = bk_teacher_forward(job, &job->tape.lanes, bundle);
    bk_tensor *kept = bk_tensor_new(job->tape.arena, logits->dtype, logits->dims, logits->shape);
    memcpy(kept->data, logits->data, (size_t)bk_count(logits) * bk_dtype_size(logits->dtype));
    bk_bundle_set(bundle, "teacher.logits", kept);
}

bool bk_teacher_evaluates(const bk_teacher *t)
{
    return t && t->evaluates;
}

void bk_job_teach(bk_job *job, bk_lesson lesson, bk_bundle *bundle)
{
    const bk_teacher *t = job->teacher;
    if (!t || (lesson.evaluation && !bk_teacher_evaluates(t)))
        return;
    if (t->placement == BK_SPLIT)
        bk_teacher_split_teach(job, lesson, bundle);
    else if (t->file && !lesson.evaluation)
        bk_teacher_cache_teach(job, lesson.batch, bundle);
    else if (t->model)
        teach_here(job, bundle);
}

const bk_teacher_top *bk_job_teacher_top(const bk_job *job, const bk_bundle *bundle)
{
    const bk_tensor *index = bk_bundle_get(bundle, "teacher.index");
    if (!index)
        return NULL;
    bk_teacher_top *top = BK_NEW(job->tape.arena, bk_teacher_top, 1);
    *top = (bk_teacher_top){.k = bk_cols(index),
                            .index = bk_i32(index),
                            .value = bk_bundle_need(bundle, "teacher.value")->data,
                            .temperatures = job->teacher->form.temperatures,
                            .temperature = job->teacher->form.temperature,
                            .lse = bk_bundle_need(bundle, "teacher.lse")->data,
                            .dtype = BK_F32};
    return top;
}
