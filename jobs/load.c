#include "jobs/load.h"

#include "dist/collective.h"
#include "io/files.h"
#include "io/yaml.h"
#include "jobs/memory.h"
#include "jobs/teacher.h"

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

bk_status bk_load_verify(bk_context *context, int *out)
{
    bk_value *root = bk_value_new(context->arena, BK_MAP, "command line", 0);
    BK_TRY(overlay(context, root));
    return bk_config_read_verify(context->arena, root, out);
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

/* What one step takes and sends, by doing one. */
typedef struct step_costs {
    double activations; /* bytes of the arenas of a step */
    double resident;    /* peak bytes of this rank, all included but the copy that is saved */
    bk_traffic sent[BK_TRAFFIC_PARTS];
} step_costs;

static double arena_bytes(const bk_job *job)
{
    bk_arena *const arenas[] = {job->tape.arena, job->tape.scratch, job->tape.inner, job->walk,
                                job->teacher ? job->teacher->arena : NULL};
    double bytes = 0.0;
    for (size_t i = 0; i < sizeof arenas / sizeof *arenas; i++)
        bytes += arenas[i] ? (double)bk_arena_peak(arenas[i]) : 0.0;
    return bytes;
}

static step_costs measure_step(bk_job *job)
{
    bk_slab_initialise(job->slab, (uint64_t)job->config->run.seed);
    step_costs out = {0};
    for (bk_traffic_part i = 0; i < BK_TRAFFIC_PARTS; i++)
        out.sent[i] = bk_traffic_of(i);
    (void)bk_job_step(job);
    bk_reduction_gather_finish(job->reduction); /* what the next step would wait for */
    for (bk_traffic_part i = 0; i < BK_TRAFFIC_PARTS; i++)
        out.sent[i] = bk_traffic_minus(bk_traffic_of(i), out.sent[i]);
    out.activations = arena_bytes(job);
    out.resident = (double)bk_peak_bytes();
    return out;
}

/* What was counted, and what the formulas say of gradients and parameters. */
static void print_messages(const bk_job *job, const bk_traffic *part)
{
    bk_traffic sent = bk_traffic_sum(part);
    int64_t formula = bk_reduction_formula(job->reduction, BK_TRAFFIC_REDUCE).bytes +
                      bk_reduction_formula(job->reduction, BK_TRAFFIC_GATHER).bytes;
    printf("sent a step by rank 0 %lld bytes in %lld messages, %lld of them gradients and "
           "parameters: n (P-1)/P each way\n",
           (long long)sent.bytes, (long long)sent.messages, (long long)formula);
    for (int i = 0; i < BK_TRAFFIC_PARTS; i++)
        if (part[i].messages > 0)
            printf("  %-19s %lld bytes in %lld messages\n", bk_traffic_name((bk_traffic_part)i),
                   (long long)part[i].bytes, (long long)part[i].messages);
}

/* What rank 0, which always writes, holds of a checkpoint while it is written beside the training.
 */
static double staging_bytes(const bk_job *job)
{
    const bk_config_checkpoint *c = &job->config->checkpoint;
    double bytes = 4.0 * (1 + job->config->optim.kind->moments) * (double)job->slab->total_count;
    bk_save_options options = {.writers = (int)c->writers, .nodes = job->world->nodes};
    return c->async ? bytes / bk_checkpoint_writers(&options, job->world->size, (int64_t)bytes)
                    : 0.0;
}

static void print_memory(const bk_job *job, const step_costs *step)
{
    double slab = 4.0 * (double)(job->slab->values + job->slab->grads);
    double moments = 4.0 * job->config->optim.kind->moments * (double)job->shard->moment_floats;
    bool here = job->teacher && job->teacher->model;
    double teacher = here ? 4.0 * (double)bk_model_slab(job->teacher->model)->values : 0.0;
    double staging = staging_bytes(job);
    double rest = fmax(0.0, step->resident - slab - moments - teacher - step->activations);
    printf("memory of rank 0      %.3f MB: parameters and gradients %.3f, moments %.3f, teacher "
           "%.3f, activations and scratch %.3f, copy to be saved %.3f, data, libraries and program "
           "%.3f\n",
           (step->resident + staging) / 1e6, slab / 1e6, moments / 1e6, teacher / 1e6,
           step->activations / 1e6, staging / 1e6, rest / 1e6);
}

/* Losses that match rows in groups: B b V absolute differences for groups of b rows, the price of
 * such a loss; matrices in double, logits of the teacher in fp32. */
static void print_losses(const bk_job *job)
{
    double classes = (double)bk_model_outputs(&job->data);
    for (int i = 0; i < job->config->losses; i++) {
        double groups = bk_attribute_get(&job->figures[i], "groups", 0.0),
               rows = bk_attribute_get(&job->figures[i], "rows", 0.0), size = rows / groups;
        if (groups > 0.0)
            printf("loss %-16s %.0f rows in %.0f groups of %.0f: %.3g differences each way, %.3f "
                   "MB a matrix, %.3f MB of teacher logits, over all ranks\n",
                   job->config->loss[i].name, rows, groups, size, rows * size * classes,
                   8e-6 * rows * size, 4e-6 * rows * classes);
    }
}

/* Teacher's ranks that make N/(P-N) ~ F_teacher/(3 F_student), forward flops. */
static int64_t balanced_ranks(double share, int64_t size)
{
    int64_t ranks = (int64_t)floor((double)size * share / (1.0 + share) + 0.5);
    return ranks < 1 ? 1 : ranks > size - 1 ? size - 1 : ranks;
}

static void print_split(const bk_job *job)
{
    const bk_teacher *t = job->teacher;
    int64_t size = bk_mpi_size(), ranks = job->config->distill.teacher_ranks;
    double have = (double)ranks / (double)(size - ranks);
    double share = t->flops_per_sample / (3.0 * bk_model_measure(job->model).flops_per_sample);
    char form[64];
    printf("teacher's ranks       %lld of %lld: N/(P-N) = %.3g, F_teacher/(3 F_student) = %.3g: %s "
           "(%lld of %lld would be nearest)\n",
           (long long)ranks, (long long)size, have, share,
           have < share ? "the students wait" : "the teacher waits",
           (long long)balanced_ranks(share, size), (long long)size);
    printf("teacher's rows a step %.3f MB to the students, %s\n",
           (double)bk_teacher_split_bytes(job) / 1e6, bk_teacher_form_text(&t->form, form));
}

static bk_status print_cached(const bk_job *job)
{
    const bk_teacher *t = job->teacher;
    bk_teacher_file plan;
    char form[64];
    if (!t->file)
        BK_TRY(bk_teacher_cache_plan(job, job->config->distill.cache, &plan));
    const bk_teacher_file *f = t->file ? t->file : &plan;
    printf("teacher's logits      %lld rows, %s, %.3f MB%s (%s)\n", (long long)f->rows,
           bk_teacher_form_text(&f->form, form), (double)bk_teacher_cache_bytes(f) / 1e6,
           t->file ? "" : ", to be written first", f->path);
    return BK_OK;
}

static bk_status print_teacher(const bk_job *job)
{
    const bk_teacher *t = job->teacher;
    if (t && t->placement == BK_SPLIT)
        print_split(job);
    return t && t->placement == BK_CACHED ? print_cached(job) : BK_OK;
}

bk_status bk_dry_run(bk_job *job)
{
    bk_model_figures f = bk_model_measure(job->model);
    step_costs step = measure_step(job);
    int tensors = 1 + job->config->optim.kind->moments;
    if (job->world->rank != 0)
        return BK_OK;
    printf("%s\n", job->resolved);
    printf("parameters            %lld\n", (long long)f.parameters);
    printf("active parameters     %lld\n", (long long)f.active_parameters);
    printf("flops a step          %.4g\n", 3.0 * f.flops_per_sample * (double)job->lanes.batch);
    print_losses(job);
    print_memory(job, &step);
    print_messages(job, step.sent);
    printf("checkpoint            %.3f MB\n", 4.0 * tensors * (double)job->slab->total_count / 1e6);
    return print_teacher(job);
}
