/* birkhoff eval: metrics of a checkpoint on a split. */
#include "core/log.h"
#include "dist/agree.h"
#include "io/files.h"
#include "io/yaml.h"
#include "jobs/load.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static bool ends_with(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

/* The configuration: of a file, or the one a run or checkpoint holds. */
static bk_status load(bk_context *context, bk_config **config, const char **checkpoint)
{
    const char *what = context->argv[0];
    bk_world *world;
    bk_checkpoint *c;
    *checkpoint = NULL;
    if (ends_with(what, ".yaml") || ends_with(what, ".yml"))
        return bk_load_config(context, config);
    bk_arena *scratch = bk_arena_new("eval");
    BK_TRY(bk_world_open(scratch, 1, &world));
    bk_status status = bk_checkpoint_open(world->checkpoint, context->arena, what, &c);
    if (status == BK_OK) {
        *checkpoint = bk_checkpoint_path(c);
        status = bk_load_config_text(context, *checkpoint, bk_checkpoint_state(c)->config, config);
    }
    bk_world_close(world);
    bk_arena_free(scratch);
    return status;
}

static void print_text(const bk_job *job, const bk_evaluation *e, int64_t step)
{
    char ladder[128];
    printf("split            %s (%s)\nstep             %lld\nrows             %lld\n",
           job->eval_split->name, job->eval->path, (long long)step, (long long)e->rows);
    printf("accuracy         %.6f%s\ncross_entropy    %.6f\n", e->accuracy,
           bk_ladder_text(job->eval_split, e->accuracy, ladder), e->cross_entropy);
    if (job->data.classes == 0)
        printf("perplexity       %.6f\nbits_per_token   %.6f\n", exp(e->cross_entropy),
               e->cross_entropy / log(2.0));
    if (job->teacher)
        printf("teacher_agreement %.6f\nteacher_kl       %.6f\n", e->teacher_agreement,
               e->teacher_kl);
}

static void print_json(const bk_job *job, const bk_evaluation *e, int64_t step)
{
    bk_model_figures f = bk_model_measure(job->model);
    printf("{\"split\": \"%s\", \"step\": %lld, \"rows\": %lld, \"correct\": %lld, \"accuracy\": "
           "%.9g, \"cross_entropy\": %.9g, "
           "\"standard_error\": %.9g, \"majority\": %.9g, \"parameters\": %lld, "
           "\"active_parameters\": %lld",
           job->eval_split->name, (long long)step, (long long)e->rows, (long long)e->correct,
           e->accuracy, e->cross_entropy,
           sqrt(e->accuracy * (1.0 - e->accuracy) / (double)(e->rows > 0 ? e->rows : 1)),
           isfinite(job->eval_split->majority) ? job->eval_split->majority : 0.0,
           (long long)f.parameters, (long long)f.active_parameters);
    if (job->teacher)
        printf(", \"teacher_agreement\": %.9g, \"teacher_kl\": %.9g", e->teacher_agreement,
               e->teacher_kl);
    if (job->eval_split->ladder_count > 0) {
        printf(", \"ladder\": [");
        for (int64_t i = 0; i < job->eval_split->ladder_count; i++)
            printf("%s%.6g", i ? ", " : "", job->eval_split->ladder[i]);
        printf("]");
    }
    printf("}\n");
}

static bk_status evaluate(bk_context *context, bk_job *job)
{
    const bk_checkpoint *c = job->checkpoint;
    if (!c)
        return bk_fail(BK_INPUT, "there is no checkpoint to evaluate (%s): train first",
                       job->checkpoints);
    BK_TRY(bk_job_load_model(job->world, job->arena, c, job->slab));
    bk_evaluation e = bk_job_evaluate(job, job->eval_sampler, 0);
    if (job->world->rank != 0)
        return BK_OK;
    if (context->json)
        print_json(job, &e, bk_checkpoint_state(c)->step);
    else
        print_text(job, &e, bk_checkpoint_state(c)->step);
    return BK_OK;
}

static bk_status run(bk_context *context)
{
    bk_config *config;
    bk_job *job;
    const char *checkpoint;
    if (context->argc != 1)
        return bk_fail(BK_USAGE,
                       "eval takes one configuration, run directory or checkpoint (%d given): "
                       "birkhoff help eval",
                       context->argc);
    BK_TRY(load(context, &config, &checkpoint));
    config->run.resume = BK_RESUME_AUTO;
    BK_TRY(bk_job_open_for_evaluation(context->arena, config, checkpoint, &job));
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
            "reads another split.\n",
    .run = run,
};
