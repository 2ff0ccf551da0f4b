/* birkhoff cache: a teacher's logits for a split of a data set, into a file. */
#include "core/log.h"
#include "dist/agree.h"
#include "io/files.h"
#include "jobs/load.h"
#include "jobs/teacher.h"

#include <stdio.h>
#include <unistd.h>

/* A relative name is from here. */
static const char *absolute(bk_arena *arena, const char *path)
{
    char here[4096];
    if (path[0] == '/' || !getcwd(here, sizeof here))
        return path;
    return bk_arena_printf(arena, "%s/%s", here, path);
}

static void print_plan(const bk_job *job, const bk_teacher_file *f)
{
    char form[64];
    if (job->world->rank != 0)
        return;
    printf("teacher       %lld parameters, payload %.12s (%s)\n",
           (long long)job->teacher->parameters, f->teacher, job->config->distill.teacher);
    printf("data          %s, split %s, digest %.12s\n", job->train->path, f->split, f->data);
    printf("rows          %lld of %lld classes, %s\n", (long long)f->rows,
           (long long)f->form.vocabulary, bk_teacher_form_text(&f->form, form));
    printf("file          %.3f MB (%s)\n", (double)bk_teacher_cache_bytes(f) / 1e6, f->path);
    printf("flops         %.4g\n",
           job->teacher->flops_per_sample * (double)bk_sampler_samples(job->train_sampler));
}

static bk_status write_file(const bk_context *context, bk_job *job)
{
    bk_teacher_file plan;
    const char *path = absolute(context->arena, context->argv[1]);
    double begun = bk_seconds();
    BK_TRY(bk_agree(job->world->ctl, job->world->rank == 0 ? bk_check_output(path) : BK_OK));
    BK_TRY(bk_teacher_cache_plan(job, path, &plan));
    print_plan(job, &plan);
    if (context->dry_run)
        return BK_OK;
    fflush(stdout);
    BK_TRY(bk_teacher_cache_write(job, path));
    if (job->world->rank == 0)
        printf("written       %.3f MB in %.2f s\n", (double)bk_file_size(path) / 1e6,
               bk_seconds() - begun);
    return BK_OK;
}

static bk_status run(bk_context *context)
{
    bk_config *config;
    bk_job *job;
    if (context->argc != 2)
        return bk_fail(BK_USAGE,
                       "cache takes a configuration and the file to write (%d given): birkhoff "
                       "cache CONFIG.yaml OUT.h5",
                       context->argc);
    bk_context first = *context; /* the configuration alone */
    first.argc = 1;
    BK_TRY(bk_load_config(&first, &config));
    if (!config->has_distill)
        return bk_fail(BK_USAGE,
                       "the configuration has no section distill (%s): name the teacher with "
                       "distill: {teacher: RUN_DIR}",
                       context->argv[0]);
    BK_TRY(bk_job_open(context->arena, config, BK_CACHE, (bk_given){0}, &job));
    bk_status status = write_file(context, job);
    bk_job_close(job);
    return status;
}

const bk_command bk_command_cache = {
    .name = "cache",
    .summary = "a teacher's logits for a data set, for distill.placement: cached",
    .usage = "cache CONFIG.yaml OUT.h5 [--dry-run] [key=value ...]",
    .help = "Runs the teacher of the configuration (distill.teacher) once over data.split of "
            "data.train and writes its\n"
            "raw logits: all of them (distill.cache_form=dense, distill.cache_dtype=fp32 or bf16) "
            "or the largest of each\n"
            "row with the row's log-sum-exp at the temperatures of the losses (top_k).  A training "
            "with\n"
            "distill.placement=cached distill.cache=OUT.h5 reads them; it writes a file that is "
            "missing itself.\n"
            "--dry-run prints rows and sizes, and writes nothing.\n",
    .stops = true,
    .run = run,
};
