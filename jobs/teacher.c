/* The teacher of a distillation: its own configuration and parameters, never trained. */
#include "core/log.h"
#include "dist/agree.h"
#include "io/yaml.h"
#include "jobs/job.h"

#include <stdio.h>
#include <string.h>

/* The model as its checkpoint describes it. */
static bk_status make_model(bk_job *job, const bk_checkpoint *c)
{
    const char *text = bk_checkpoint_state(c)->config;
    bk_value *root;
    BK_TRY(bk_job_check_fit(job, c, "teacher"));
    BK_TRY(bk_yaml_parse(job->arena, bk_checkpoint_path(c), text, strlen(text), &root));
    bk_status status = bk_model_new(job->arena, bk_value_get(root, "model"), &job->data, job->world,
                                    &job->teacher);
    if (status != BK_OK)
        return bk_fail(status, "the teacher cannot be used here (%s): %s", bk_checkpoint_path(c),
                       bk_arena_strdup(job->arena, bk_status_text()));
    bk_slab_layout(bk_model_slab(job->teacher), 1 << 20, 16);
    return BK_OK;
}

static bk_status load(bk_job *job)
{
    const bk_world *w = job->world;
    bk_checkpoint *c;
    BK_TRY(bk_checkpoint_open(w->checkpoint, job->arena, job->config->distill.teacher,
                              (bk_checkpoint_check)job->config->checkpoint.verify, &c));
    BK_TRY(bk_agree(w->ctl, make_model(job, c)));
    BK_TRY(bk_job_load_model(w, job->arena, c, bk_model_slab(job->teacher)));
    job->teacher_payload = bk_checkpoint_payload(c);
    job->teacher_arena = bk_arena_new("teacher");
    return BK_OK;
}

bk_status bk_job_open_teacher(bk_job *job)
{
    if (!job->config->has_distill)
        return BK_OK;
    bk_status status = load(job);
    if (status == BK_OK || job->purpose != BK_EVALUATE)
        return status;
    bk_warn("evaluated without the teacher: %s", bk_status_text());
    job->teacher = NULL;
    return BK_OK;
}

void bk_job_teach(bk_job *job, bk_bundle *bundle)
{
    if (!job->teacher)
        return;
    bk_arena_reset(job->teacher_arena);
    bk_tape tape = {.arena = job->teacher_arena,
                    .scratch = job->tape.scratch,
                    .inner = job->tape.inner,
                    .dtype = BK_F32,
                    .bf16 = job->tape.bf16,
                    .lanes = job->tape.lanes,
                    .seed = job->tape.seed,
                    .step = job->tape.step};
    bk_bundle seen = *bundle;
    bk_model_forward(job->teacher, &tape, &seen);
    if (tape.status != BK_OK)
        job->tape.status = tape.status;
    const bk_tensor *logits = bk_bundle_need(&seen, "logits");
    bk_tensor *kept = bk_tensor_new(job->tape.arena, logits->dtype, logits->dims, logits->shape);
    memcpy(kept->data, logits->data, (size_t)bk_count(logits) * bk_dtype_size(logits->dtype));
    bk_bundle_set(bundle, "teacher.logits", kept);
}
