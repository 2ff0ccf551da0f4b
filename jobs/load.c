#include "jobs/load.h"

#include "dist/agree.h"
#include "dist/collective.h"
#include "io/files.h"
#include "io/yaml.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static bk_status overlay(bk_context *context, bk_value *root)
{
    for (int i = 0; i < context->overrides; i++)
        BK_TRY(bk_value_set(context->arena, root, context->override[i].path,
                            context->override[i].text));
    return BK_OK;
}

bk_status bk_load_config_text(bk_context *context, const char *name, const char *text,
                              bk_config **out)
{
    bk_value *root;
    BK_TRY(bk_yaml_parse(context->arena, name, text, strlen(text), &root));
    BK_TRY(overlay(context, root));
    return bk_config_read(context->arena, root, out);
}

bk_status bk_load_config(bk_context *context, bk_config **out)
{
    if (context->argc != 1)
        return bk_fail(BK_USAGE, "one configuration file is wanted (%d given): name CONFIG.yaml",
                       context->argc);
    char *text = NULL;
    BK_TRY(bk_read_text_everywhere(context->arena, context->argv[0], &text));
    return bk_load_config_text(context, context->argv[0], text, out);
}

void bk_split_print(const bk_split *s)
{
    printf("%-12s %lld samples", s->name, (long long)s->count);
    if (isfinite(s->majority))
        printf(", majority %.4f", s->majority);
    for (int64_t d = 0; d < s->ladder_count; d++)
        printf("%s%lld: %.4f", d == 0 ? "; ladder of shortcuts by visible depth  " : "  ",
               (long long)d, s->ladder[d]);
    printf("\n");
}

const char *bk_ladder_text(const bk_split *split, double accuracy, char text[128])
{
    text[0] = '\0';
    int64_t depth = 0;
    while (depth < split->ladder_count && accuracy >= split->ladder[depth])
        depth++;
    if (split->ladder_count > 0 && depth == 0)
        snprintf(text, 128, ", under depth 0 (%.3f) of the ladder", split->ladder[0]);
    else if (split->ladder_count > 0 && depth == split->ladder_count)
        snprintf(text, 128, ", at the top of the ladder (%.3f)", split->ladder[depth - 1]);
    else if (split->ladder_count > 0)
        snprintf(text, 128, ", between depth %lld (%.3f) and %lld (%.3f) of the ladder",
                 (long long)depth - 1, split->ladder[depth - 1], (long long)depth,
                 split->ladder[depth]);
    else if (isfinite(split->majority) && split->majority > 0)
        snprintf(text, 128, " (majority %.4f)", split->majority);
    return text;
}

/* ---- dry run ---- */

/* One forward and backward tells what the step needs; nothing is written. */
static size_t activation_bytes(bk_job *job)
{
    bk_slab_initialise(job->slab, (uint64_t)job->config->run.seed);
    bk_step_result r = bk_job_step(job, false);
    (void)r;
    return bk_arena_peak(job->tape.arena) + bk_arena_peak(job->tape.scratch);
}

bk_status bk_dry_run(bk_job *job)
{
    bk_model_figures f = bk_model_measure(job->model);
    bk_traffic before = bk_traffic_now();
    double step_bytes = (double)activation_bytes(job);
    bk_traffic after = bk_traffic_now();
    double state = (double)(job->slab->values + job->slab->grads +
                            job->config->optim.kind->moments * job->shard->moment_floats) *
                   4.0;
    double teacher = job->teacher ? (double)bk_model_slab(job->teacher)->values * 4.0 : 0.0;
    double checkpoint =
        (double)job->slab->total_count * 4.0 * (1 + job->config->optim.kind->moments);
    if (job->world->rank != 0)
        return BK_OK;
    printf("%s\n", job->resolved);
    printf("parameters            %lld\nactive parameters     %lld\n", (long long)f.parameters,
           (long long)f.active_parameters);
    printf("flops a step          %.4g\n", 3.0 * f.flops_per_sample * (double)job->lanes.batch);
    printf("memory a rank         %.1f MB: parameters, gradients, moments %.1f, teacher %.1f, "
           "activations %.1f\n",
           (state + teacher + step_bytes) / 1e6, state / 1e6, teacher / 1e6, step_bytes / 1e6);
    printf("sent a step and rank  %.3f MB in %lld messages\n",
           (double)(after.bytes - before.bytes) / 1e6,
           (long long)(after.messages - before.messages));
    printf("checkpoint            %.1f MB\n", checkpoint / 1e6);
    return BK_OK;
}
