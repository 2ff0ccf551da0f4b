/* birkhoff eval: metrics of a checkpoint on a split. */
#include "dist/agree.h"
#include "jobs/json.h"
#include "jobs/load.h"
#include "jobs/teacher.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static bool ends_with(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

/* A run or checkpoint, and the configuration that it holds. */
static bk_status load_stored(bk_context *context, bk_config **config, bk_checkpoint **checkpoint)
{
    bk_world *world;
    int check;
    BK_TRY(bk_load_verify(context, &check));
    bk_arena *scratch = bk_arena_new("eval");
    BK_TRY(bk_world_open(scratch, 1, &world));
    bk_status status = bk_checkpoint_open(world->checkpoint, context->arena, context->argv[0],
                                          (bk_checkpoint_check)check, checkpoint);
    if (status == BK_OK)
        status = bk_load_config_text(context, bk_checkpoint_path(*checkpoint),
                                     bk_checkpoint_state(*checkpoint)->config, config);
    bk_world_close(world);
    bk_arena_free(scratch);
    return status;
}

static bk_status load(bk_context *context, bk_config **config, bk_checkpoint **checkpoint)
{
    *checkpoint = NULL;
    if (ends_with(context->argv[0], ".yaml") || ends_with(context->argv[0], ".yml"))
        return bk_load_config(context, config);
    return load_stored(context, config, checkpoint);
}

static double standard_error(const bk_evaluation *e)
{
    return e->rows > 0 ? sqrt(e->accuracy * (1.0 - e->accuracy) / (double)e->rows) : NAN;
}

static void print_text(const bk_job *job, const bk_evaluation *e)
{
    char ladder[128];
    printf("split             %s (%s)\n", job->eval_split->name, job->eval->path);
    printf("step              %lld\n", (long long)bk_checkpoint_state(job->checkpoint)->step);
    printf("rows              %lld\n", (long long)e->rows);
    printf("accuracy          %.6f%s\n", e->accuracy,
           bk_ladder_text(job->eval_split, e->accuracy, ladder));
    if (job->metric >= 0)
        printf("%-17s %.6f\n", bk_metric_names[job->metric], e->metric[job->metric]);
    printf("cross_entropy     %.6f\n", e->cross_entropy);
    if (job->data.classes == 0)
        printf("perplexity        %.6f\nbits_per_token    %.6f\n", exp(e->cross_entropy),
               e->cross_entropy / log(2.0));
    if (bk_teacher_evaluates(job->teacher))
        printf("teacher_agreement %.6f\nteacher_kl        %.6f\n", e->teacher_agreement,
               e->teacher_kl);
}

static void print_json(const bk_job *job, const bk_evaluation *e)
{
    bk_model_figures f = bk_model_measure(job->model);
    const bk_split *s = job->eval_split;
    bk_json j = {.file = stdout};
    bk_json_open(&j, NULL);
    bk_json_text(&j, "split", s->name);
    bk_json_text(&j, "data", job->eval->path);
    bk_json_text(&j, "checkpoint", bk_checkpoint_path(job->checkpoint));
    bk_json_integer(&j, "step", bk_checkpoint_state(job->checkpoint)->step);
    bk_json_integer(&j, "rows", e->rows);
    bk_json_integer(&j, "correct", e->correct);
    bk_json_number(&j, "accuracy", e->accuracy);
    bk_json_text(&j, "metric", job->metric >= 0 ? bk_metric_names[job->metric] : "accuracy");
    for (int i = 0; i < BK_METRICS && job->data.classes > 0; i++)
        bk_json_number(&j, bk_metric_names[i], e->metric[i]);
    bk_json_number(&j, "cross_entropy", e->cross_entropy);
    bk_json_number(&j, "standard_error", standard_error(e));
    bk_json_number(&j, "majority", s->majority);
    bk_json_integer(&j, "parameters", f.parameters);
    bk_json_integer(&j, "active_parameters", f.active_parameters);
    if (bk_teacher_evaluates(job->teacher)) {
        bk_json_number(&j, "teacher_agreement", e->teacher_agreement);
        bk_json_number(&j, "teacher_kl", e->teacher_kl);
    }
    if (s->ladder_count > 0) {
        bk_json_open_list(&j, "ladder");
        for (int64_t i = 0; i < s->ladder_count; i++)
            bk_json_number(&j, NULL, s->ladder[i]);
        bk_json_close_list(&j);
    }
    bk_json_close(&j);
    bk_json_end(&j);
}

static bk_status evaluate(bk_context *context, bk_job *job)
{
    BK_TRY(bk_job_load_model(job->world, job->arena, job->checkpoint, job->slab));
    bk_evaluation e = bk_job_evaluate(job, 0);
    BK_TRY(e.status);
    if (job->world->rank != 0)
        return BK_OK;
    if (context->json)
        print_json(job, &e);
    else
        print_text(job, &e);
    return BK_OK;
}

static bk_status run(bk_context *context)
{
    bk_config *config;
    bk_job *job;
    bk_checkpoint *checkpoint;
    if (context->argc != 1)
        return bk_fail(BK_USAGE,
                       "eval takes one configuration, run directory or checkpoint (%d given): "
                       "birkhoff help eval",
                       context->argc);
    BK_TRY(load(context, &config, &checkpoint));
    BK_TRY(bk_job_open(context->arena, config, BK_EVALUATE, (bk_given){.checkpoint = checkpoint},
                       &job));
    bk_status status = evaluate(context, job);
    bk_job_close(job);
    return status;
}

const bk_command bk_command_eval = {
    .name = "eval",
    .summary = "metrics of a checkpoint on a split",
    .usage = "eval CONFIG.yaml|RUN_DIR|CHECKPOINT [--json] [key=value ...]",
    .help = "Evaluates the newest valid checkpoint (or the one named) over the whole split "
            "data.eval_split.\n"
            "Exact: the same counts for any batch size and number of ranks.  data.eval_split=test "
            "reads another split,\n"
            "checkpoint.verify=xxh64 or size checks less of what is loaded than every byte by "
            "SHA-256.\n",
    .run = run,
};
