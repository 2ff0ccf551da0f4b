/* bench step: one whole training step - batch, forward, losses, backward, reduction, update - of
 * the GPT-2 layout (Radford et al. 2019) or of the user's configuration, from random weights. */
#include "core/blas.h"
#include "core/rng.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "dist/cost.h"
#include "io/files.h"
#include "jobs/bench.h"
#include "jobs/load.h"
#include "jobs/memory.h"
#include "jobs/teacher.h"

#include <math.h>
#include <string.h>

typedef struct step_config {
    int layout, gemm, distill;
    const char *config;
    int64_t batch, length, vocabulary, warmup, repeats;
    bool profile;
} step_config;

static const bk_option options[] = {
    BK_OPTION_CHOICE(step_config, layout, 0, "auto|gpt2",
                     "model to measure, on generated tokens (auto: gpt2 without config)"),
    BK_OPTION_TEXT(step_config, config, NULL, "configuration to measure instead, on its data"),
    BK_OPTION_I64(step_config, batch, 0, 0, 1 << 24,
                  "samples of the global batch; 0 = 4, or as configured"),
    BK_OPTION_I64(step_config, length, 0, 0, 1 << 24,
                  "positions of a sample; 0 = 256, or as configured"),
    BK_OPTION_I64(step_config, vocabulary, 0, 0, 1 << 30, "of the layout; 0 = 50257"),
    BK_OPTION_CHOICE(
        step_config, distill, 0, "none|kl|sinkd",
        "layout: with a teacher of the same layout and this loss (sinkd: kl, too; in groups of "
        "256 rows)"),
    BK_OPTION_CHOICE(step_config, gemm, 0, "auto|onednn|cblas", "library of matrix products"),
    BK_OPTION_I64(step_config, warmup, 2, 0, BK_BENCH_REPEATS, "steps that do not count"),
    BK_OPTION_I64(step_config, repeats, 5, 1, BK_BENCH_REPEATS, "steps; the median counts"),
    BK_OPTION_BOOL(step_config, profile, false, "also the seconds of each op"),
    BK_OPTION_END,
};

enum { GPT2 = 1 }; /* the choice of layout */
enum { NONE };     /* of distill */

/* ---- configuration ---- */

static const char gpt2[] = "run: {dir: none}\n"
                           "data: {train: generated, eval_split: train, batch: 4, length: 256}\n"
                           "model: {kind: decoder, layers: 12, width: 768, heads: 12, "
                           "activation: gelu_tanh, positions: learned, tied: true}\n"
                           "schedule: {kind: constant}\n";

static const char *const losses[] = {
    "", "distill: {teacher: generated}\nloss: [{kind: kl}]\n",
    "distill: {teacher: generated}\nloss: [{kind: kl}, {kind: sinkd, group: 256}]\n"};

/* There is room: the key was one of the arguments itself. */
static void overlay(bk_context *context, const char *path, int64_t value)
{
    if (value > 0)
        context->override[context->overrides++] = (bk_override){
            .path = path, .text = bk_arena_printf(context->arena, "%lld", (long long)value)};
}

/* distill= makes the teacher. */
static bk_status refuse_teacher(const bk_context *context)
{
    for (int i = 0; i < context->overrides; i++)
        if (strcmp(context->override[i].path, "distill.teacher") == 0)
            return bk_fail(BK_USAGE,
                           "distill= makes a teacher, and distill.teacher=%s names another: name a "
                           "configuration that has it, config=FILE.yaml",
                           context->override[i].text);
    return BK_OK;
}

static bk_status load(bk_context *context, const step_config *c, bk_config **out)
{
    char *text = NULL;
    if (c->distill != NONE)
        BK_TRY(refuse_teacher(context));
    if (c->config && (c->layout == GPT2 || c->vocabulary > 0 || c->distill != NONE))
        return bk_fail(BK_USAGE, "%s says what to measure, and config=%s too: give one",
                       c->layout == GPT2    ? "layout"
                       : c->distill != NONE ? "distill"
                                            : "vocabulary",
                       c->config);
    overlay(context, "data.batch", c->batch);
    overlay(context, "data.length", c->length);
    if (!c->config) {
        const char *all = bk_arena_printf(context->arena, "%s%s", gpt2, losses[c->distill]);
        return bk_load_config_text(context, "layout=gpt2", all, out);
    }
    BK_TRY(bk_read_text_everywhere(context->arena, c->config, &text));
    return bk_load_config_text(context, c->config, text, out);
}

/* ---- generated tokens: one document, uniform over the vocabulary without the padding ---- */

static bk_dataset *generate(bk_arena *arena, const bk_config *config, int64_t symbols)
{
    enum { BATCHES = 4, GPT2_VOCABULARY = 50257 };
    int64_t vocabulary = symbols > 0 ? symbols : GPT2_VOCABULARY;
    int64_t count = BATCHES * config->data.batch * config->data.length + 1;
    int32_t *tokens = BK_NEW(arena, int32_t, count);
    int64_t *offsets = BK_NEW(arena, int64_t, 2), *index = BK_ZNEW(arena, int64_t, 1);
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (int32_t)bk_fill((uint64_t)i, BK_USE_BENCH, 1.0, (double)vocabulary);
    offsets[0] = 0;
    offsets[1] = count;
    bk_dataset *d = BK_ZNEW(arena, bk_dataset, 1);
    *d = (bk_dataset){.path = "generated",
                      .task = "language_model",
                      .source = "uniform tokens",
                      .samples = 1,
                      .vocabulary = vocabulary,
                      .tokens = tokens,
                      .offsets = offsets,
                      .max_length = count,
                      .split = {{.name = "train", .index = index, .count = 1}},
                      .splits = 1};
    return d;
}

/* ---- the teacher: the student's layout, other random weights ---- */

/* The teacher is in no file: what needs one at the opening of the job is refused. */
static bk_status without_file(bk_config *config)
{
    bool layers = false;
    for (int i = 0; i < config->losses; i++)
        layers = layers || (config->loss[i].kind->flags & BK_LOSS_LAYERS) != 0;
    if (layers || config->distill.placement != BK_COLOCATED)
        return bk_fail(BK_USAGE,
                       "distill= makes a teacher on the same ranks for losses on logits, not for "
                       "%s: name a configuration with a trained teacher, config=FILE.yaml",
                       layers ? "losses between layers" : "distill.placement");
    config->has_distill = false;
    return BK_OK;
}

static bk_status make_teacher(bk_job *job)
{
    bk_model *model;
    BK_TRY(bk_model_new(job->arena, bk_value_get(job->config->root, "model"), &job->data,
                        job->world, &model));
    bk_slab *slab = bk_model_slab(model);
    bk_slab_layout(slab, 1 << 20, 16);
    bk_slab_initialise(slab, (uint64_t)job->config->run.seed + 1);
    bk_job_take_teacher(job, model);
    return BK_OK;
}

/* ---- seconds by op ---- */

enum { OPS = (BK_BENCH_FIGURES - 48) / 2 };

typedef struct profile {
    bool counting;
    int ops;
    const bk_op *op[OPS];
    double seconds[OPS][2]; /* forward, backward */
} profile;

static void observe(void *context, const bk_op *op, bool backward, double seconds)
{
    profile *p = context;
    int i = 0;
    while (i < p->ops && p->op[i] != op)
        i++;
    if (!p->counting || i == OPS)
        return;
    p->op[i] = op;
    p->ops += i == p->ops;
    p->seconds[i][backward] += seconds;
}

static void add_profile(const profile *p, int64_t steps, bk_bench_result *out)
{
    for (int backward = 0; backward < 2; backward++)
        for (int i = 0; i < p->ops; i++)
            if (p->seconds[i][backward] > 0)
                bk_bench_add(out, backward ? "backward" : "forward", p->op[i]->name,
                             p->seconds[i][backward] / (double)steps);
}

/* ---- the step ---- */

typedef struct work {
    bk_job *job;
    int64_t warmup, done, positions;
    double cpu;                        /* seconds of this process when the warm-up was over */
    bk_traffic sent[BK_TRAFFIC_PARTS]; /* of the steps that count */
    profile *profile;
} work;

static bk_status step(void *context)
{
    work *w = context;
    if (w->done == w->warmup) {
        w->profile->counting = true;
        w->cpu = bk_bench_cpu_seconds();
    }
    w->done++;
    bk_step_result r = bk_job_step(w->job);
    w->positions = r.positions;
    for (int i = 0; i < BK_TRAFFIC_PARTS && w->done > w->warmup; i++)
        w->sent[i] = bk_traffic_plus(w->sent[i], r.sent[i]);
    if (r.status == BK_NONFINITE)
        return bk_fail(BK_NONFINITE, "loss or gradient is not finite at step %lld (%lld values)",
                       (long long)w->done, (long long)r.nonfinite);
    return r.status;
}

/* ---- messages ---- */

/* The largest of a figure over the ranks, a step. */
static void add_largest(const bk_comm *comm, double value, const char *name, double steps,
                        bk_bench_result *out)
{
    bk_max_f64(comm, 1, &value);
    bk_bench_add(out, "communication", name, value / steps);
}

static void add_communication(work *w, double steps, bk_bench_result *out)
{
    static const char *const bytes[BK_TRAFFIC_PARTS] = {
        "reduce_bytes", "gather_bytes", "agree_bytes",   "loss_bytes",
        "route_bytes",  "expert_bytes", "teacher_bytes", "rest_bytes"};
    const bk_comm *ctl = w->job->world->ctl;
    bk_traffic sum = bk_traffic_sum(w->sent);
    double exposed = w->sent[BK_TRAFFIC_REDUCE].blocked + w->sent[BK_TRAFFIC_GATHER].blocked;
    bk_cost cost = bk_cost_measure(ctl, 9);
    add_largest(ctl, (double)sum.bytes, "bytes", steps, out);
    add_largest(ctl, (double)sum.messages, "messages", steps, out);
    for (int i = 0; i < BK_TRAFFIC_PARTS; i++)
        add_largest(ctl, (double)w->sent[i].bytes, bytes[i], steps, out);
    add_largest(ctl, sum.blocked, "blocked", steps, out);
    add_largest(ctl, w->sent[BK_TRAFFIC_REDUCE].blocked, "reduce_exposed", steps, out);
    add_largest(ctl, w->sent[BK_TRAFFIC_GATHER].blocked, "gather_exposed", steps, out);
    add_largest(ctl, exposed, "exposed", steps, out);
    double computing = fmax(0.0, out->seconds - sum.blocked / steps);
    double beside = w->job->config->parallel.overlap ? computing : 0.0;
    add_largest(ctl, bk_cost_exposed(&cost, w->job->reduction, beside / 3.0, 2.0 / 3.0 * beside),
                "exposed_bound", 1.0, out);
    bk_bench_add(out, "communication", "alpha", cost.alpha);
    bk_bench_add(out, "communication", "beta", cost.beta);
    bk_bench_add(out, "communication", "gamma", cost.gamma);
}

static double flops_of(const bk_job *job)
{
    double flops = 3.0 * bk_model_measure(job->model).flops_per_sample;
    if (job->teacher)
        flops += job->teacher->flops_per_sample;
    return flops * (double)job->lanes.batch;
}

static bk_status measure(bk_job *job, const step_config *c, bk_bench_result *out)
{
    profile p = {0};
    work w = {.job = job, .warmup = c->warmup, .profile = &p};
    bk_slab_initialise(job->slab, (uint64_t)job->config->run.seed);
    if (c->profile) {
        job->tape.observe = observe;
        job->tape.observe_context = &p;
    }
    *out = (bk_bench_result){.unit = "FLOP/s",
                             .ranks = job->world->size,
                             .threads = bk_blas_threads(),
                             .library = bk_blas_description()};
    BK_TRY(bk_bench_time(job->world->ctl, c->warmup, c->repeats, step, &w, &out->seconds));
    double cpu = bk_bench_cpu_since(job->world->ctl, w.cpu);
    out->rate = flops_of(job) / out->seconds;
    out->limit =
        job->tape.bf16 ? bk_bench_peak_bf16(job->world->ctl) : bk_bench_peak(job->world->ctl);
    bk_bench_add(out, NULL, "tokens_per_second", (double)w.positions / out->seconds);
    bk_bench_add(out, NULL, "cpu_seconds", cpu / (double)c->repeats);
    bk_bench_add(out, NULL, "peak_bytes", (double)bk_peak_bytes_of_ranks(job->world->ctl));
    bk_bench_add(out, NULL, "parameters", (double)job->slab->total_count);
    bk_bench_add(out, NULL, "batch", (double)job->lanes.batch);
    bk_bench_add(out, NULL, "lanes", (double)job->lanes.total);
    add_communication(&w, (double)c->repeats, out);
    add_profile(&p, c->repeats, out);
    return BK_OK;
}

static bk_status run(bk_context *context, const void *config, bk_bench_result *out)
{
    const step_config *c = config;
    bk_config *full;
    bk_job *job;
    BK_TRY(load(context, c, &full));
    if (c->distill != NONE)
        BK_TRY(without_file(full));
    bk_dataset *data = c->config ? NULL : generate(context->arena, full, c->vocabulary);
    BK_TRY(bk_job_open(context->arena, full, BK_MEASURE, (bk_given){.data = data}, &job));
    bk_status status =
        bk_agree(job->world->ctl, bk_blas_setup(bk_blas_threads(), (bk_gemm_library)c->gemm));
    if (status == BK_OK && c->distill != NONE)
        status = bk_agree(job->world->ctl, make_teacher(job));
    if (status == BK_OK)
        status = measure(job, c, out);
    bk_job_close(job);
    return status;
}

const bk_bench bk_bench_step = {
    .name = "step",
    .summary = "a training step of the GPT-2 layout, or of config=FILE.yaml, from random weights",
    .options = options,
    .config_size = sizeof(step_config),
    .configured = true,
    .run = run,
};
