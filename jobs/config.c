#include "jobs/config.h"

#include "jobs/preset.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const bk_option run_options[] = {
    BK_OPTION_TEXT(bk_config_run, dir, NULL,
                   "run directory: checkpoints, metrics, the resolved configuration"),
    BK_OPTION_I64(bk_config_run, seed, 1, 0, 1LL << 53,
                  "of initialisation, order, dropout and router draws"),
    BK_OPTION_I64(bk_config_run, steps, 1000, 1, 1LL << 53, "updates"),
    BK_OPTION_CHOICE(
        bk_config_run, precision, 0, "fp32|bf16",
        "operands of linear maps and experts; sums, parameters and all else stay fp32"),
    BK_OPTION_CHOICE(bk_config_run, resume, 0, "auto|fresh",
                     "auto: from the newest valid checkpoint; fresh: refuse one"),
    BK_OPTION_F64(
        bk_config_run, time_limit, 0.0, 0.0, 1e9,
        "seconds after which the run stops with 75; 0 = what Slurm leaves the job, if any"),
    BK_OPTION_F64(bk_config_run, stop_margin, 60.0, 0.0, 3600.0,
                  "seconds kept free at the end of the time limit"),
    BK_OPTION_F64(
        bk_config_run, stall_seconds, 600.0, 0.0, 86400.0,
        "seconds without any progress of a rank after which the run ends with 76; 0 = off"),
    BK_OPTION_END,
};

static const bk_option data_options[] = {
    BK_OPTION_TEXT(bk_config_data, train, NULL, "data set (birkhoff data)"),
    BK_OPTION_TEXT(bk_config_data, eval, NULL, "data set to evaluate on; default: data.train"),
    BK_OPTION_TEXT(bk_config_data, split, "train", "split to train on"),
    BK_OPTION_TEXT(bk_config_data, eval_split, "validation", "split to evaluate on"),
    BK_OPTION_I64(bk_config_data, batch, 32, 1, 1 << 24, "samples of the global batch"),
    BK_OPTION_I64(bk_config_data, length, 256, 1, 1 << 24,
                  "language models: positions of a window"),
    BK_OPTION_I64(bk_config_data, max_length, 0, 0, 1 << 24,
                  "samples are cut to this length, of a pair the longer text first; 0 = no"),
    BK_OPTION_CHOICE(bk_config_data, metric, BK_SHOW_AUTO, "auto|accuracy|f1|matthews|spearman",
                     "of a classifier, shown beside its accuracy; auto: what the data set names"),
    BK_OPTION_END,
};

static const bk_option distill_options[] = {
    BK_OPTION_TEXT(bk_config_distill, teacher, NULL, "run directory or checkpoint of the teacher"),
    BK_OPTION_CHOICE(bk_config_distill, placement, BK_COLOCATED, "colocated|split|cached",
                     "where the teacher runs: on every rank, on ranks of its own, or once, into a "
                     "file that is read from then on"),
    BK_OPTION_I64(bk_config_distill, teacher_ranks, 0, 0, 1 << 20,
                  "placement=split: so many of the last ranks run only the teacher"),
    BK_OPTION_BOOL(bk_config_distill, evaluate, true,
                   "evaluations say how far student and teacher agree; with a cache the teacher is "
                   "loaded for their time"),
    BK_OPTION_TEXT(bk_config_distill, cache, NULL,
                   "placement=cached: the file (birkhoff cache); written first if it is missing"),
    BK_OPTION_CHOICE(bk_config_distill, cache_form, BK_FORM_AUTO, "auto|dense|top_k",
                     "what is written of a row: all logits, or the largest; auto: those where "
                     "every distillation loss has the same top_k"),
    BK_OPTION_CHOICE(bk_config_distill, cache_dtype, BK_PRECISION_FP32, "fp32|bf16",
                     "in which all logits of a row are written"),
    BK_OPTION_END,
};

static const bk_option loss_options[] = {
    BK_OPTION_TEXT_AS(bk_config_loss, kind_name, "kind", NULL,
                      "loss (birkhoff kinds loss), or preset (kinds preset)"),
    BK_OPTION_F64(bk_config_loss, weight, 1.0, 0.0, 1e9, "factor of the term"),
    BK_OPTION_END,
};

static const bk_option optim_options[] = {
    BK_OPTION_TEXT_AS(bk_config_optim, kind_name, "kind", "adamw",
                      "optimizer (birkhoff kinds optimizer)"),
    BK_OPTION_F64(bk_config_optim, lr, 3e-4, 0.0, 1e30, "peak learning rate"),
    BK_OPTION_F64(bk_config_optim, weight_decay, 0.01, 0.0, 1e3,
                  "decoupled decay of matrices; not of norms and biases"),
    BK_OPTION_F64(bk_config_optim, clip, 1.0, 0.0, 1e9,
                  "largest global norm of the gradient; 0 = no clipping"),
    BK_OPTION_I64(bk_config_optim, skip_nonfinite, 0, 0, 1 << 20,
                  "steps in a row that are skipped before exit 4"),
    BK_OPTION_F64(bk_config_optim, spike_zscore, 0.0, 0.0, 1e6,
                  "skip a step whose gradient norm is so many standard deviations above the mean; "
                  "0 = none"),
    BK_OPTION_END,
};

static const bk_option schedule_options[] = {
    BK_OPTION_TEXT_AS(bk_config_schedule, kind_name, "kind", "cosine",
                      "learning-rate schedule (birkhoff kinds schedule)"),
    BK_OPTION_I64(bk_config_schedule, warmup, 0, 0, 1LL << 53, "steps of linear rise"),
    BK_OPTION_F64(bk_config_schedule, floor, 0.0, 0.0, 1.0, "fraction of the peak at the end"),
    BK_OPTION_END,
};

static const bk_option parallel_options[] = {
    BK_OPTION_I64(bk_config_parallel, expert, 1, 1, 1 << 20,
                  "expert-parallel degree; divides the ranks"),
    BK_OPTION_I64(
        bk_config_parallel, lanes, 0, 0, 4096,
        "lanes of the global batch, a power of two; 0 = ranks at the first start, rounded up"),
    BK_OPTION_I64(bk_config_parallel, threads, 0, 0, 4096,
                  "OpenMP threads a rank; 0 = OMP_NUM_THREADS, or cores bound / ranks on the node"),
    BK_OPTION_I64(bk_config_parallel, zero, 1, 0, 1,
                  "1: optimizer state is sharded over the ranks"),
    BK_OPTION_F64(bk_config_parallel, bucket_mb, 4.0, 0.25, 256.0,
                  "MiB of gradients reduced as one chain of messages"),
    BK_OPTION_BOOL(bk_config_parallel, overlap, true, "start buckets during backward"),
    BK_OPTION_BOOL(bk_config_parallel, walk, false,
                   "a rank works on its lanes one by one: the same bits in less memory, slower"),
    BK_OPTION_END,
};

static const bk_option checkpoint_options[] = {
    BK_OPTION_I64(bk_config_checkpoint, every, 500, 0, 1LL << 53,
                  "steps between checkpoints; 0 = only at the end and on stop"),
    BK_OPTION_F64(bk_config_checkpoint, minutes, 0.0, 0.0, 1e6,
                  "minutes between checkpoints, besides; 0 = steps alone"),
    BK_OPTION_F64(
        bk_config_checkpoint, max_overhead, 0.0, 0.0, 1.0,
        "share of the time that saving may hold up the training: those too soon for it are "
        "left out; 0 = any"),
    BK_OPTION_BOOL(bk_config_checkpoint, async, true,
                   "save beside the training, from a copy of what is saved"),
    BK_OPTION_CHOICE(bk_config_checkpoint, async_busy, BK_BUSY_SKIP, "skip|wait",
                     "when the one before is still being written"),
    BK_OPTION_I64(bk_config_checkpoint, keep, 3, 2, 1 << 20, "newest checkpoints kept"),
    BK_OPTION_I64(bk_config_checkpoint, keep_every, 0, 0, 1LL << 53,
                  "also keep each multiple of this step; 0 = none"),
    BK_OPTION_TEXT(bk_config_checkpoint, best, "none",
                   "min:METRIC or max:METRIC of the evaluations: also keep the best checkpoint"),
    BK_OPTION_I64_OR(bk_config_checkpoint, writers, 0, "auto", 0, 0, 1 << 20,
                     "ranks that write files; auto: one a node, more while each has 64 MiB"),
    BK_OPTION_I64(bk_config_checkpoint, failures, 3, 1, 1 << 20,
                  "failed saves in a row until the run ends with 70"),
    BK_OPTION_F64(bk_config_checkpoint, mtbf_hours, 24.0, 1e-3, 1e6,
                  "mean time between failures, for the interval that is advised only"),
    BK_OPTION_I64(bk_config_checkpoint, deflate, 0, 0, 9, "compression level, with shuffle"),
    BK_OPTION_BOOL(bk_config_checkpoint, strict, false,
                   "a damaged newest checkpoint is an error, not a fallback"),
    BK_OPTION_CHOICE(bk_config_checkpoint, verify, 0, "sha256|xxh64|size",
                     "what is checked before a checkpoint is loaded; size finds no changed byte"),
    BK_OPTION_BOOL(bk_config_checkpoint, partial, false,
                   "go on from a checkpoint that lacks tensors of the model or optimizer, or is of "
                   "another optimizer: they begin anew, and so do all moments"),
    BK_OPTION_BOOL(bk_config_checkpoint, verify_write, false,
                   "re-read every file after it was written"),
    BK_OPTION_END,
};

static const bk_option log_options[] = {
    BK_OPTION_I64(bk_config_log, interval, 10, 1, 1LL << 53, "steps between lines of metrics"),
    BK_OPTION_I64(bk_config_log, eval_interval, 0, 0, 1LL << 53,
                  "steps between evaluations; 0 = only at the end"),
    BK_OPTION_I64(bk_config_log, eval_batches, 0, 0, 1LL << 53,
                  "batches of an evaluation during training; 0 = the whole split"),
    BK_OPTION_I64(
        bk_config_log, probe, 0, 0, 1 << 20,
        "first samples of each evaluation whose attention matrices are measured; 0 = none"),
    BK_OPTION_BOOL(bk_config_log, tensorboard, false, "also write TensorBoard events to RUN/tb"),
    BK_OPTION_END,
};

const bk_section bk_config_sections[] = {
    {"run", run_options, NULL},
    {"data", data_options, NULL},
    {"distill", distill_options, NULL},
    {"loss", loss_options, "loss"},
    {"optim", optim_options, "optimizer"},
    {"schedule", schedule_options, "schedule"},
    {"parallel", parallel_options, NULL},
    {"checkpoint", checkpoint_options, NULL},
    {"log", log_options, NULL},
    {NULL, NULL, NULL},
};

/* ---- reading ---- */

static bk_status check_sections(const bk_value *root)
{
    enum { SECTIONS = sizeof bk_config_sections / sizeof *bk_config_sections };
    const char *names[SECTIONS + 1] = {"model"}; /* the rest of the array is the end */
    for (int i = 0; i < SECTIONS; i++)
        names[i + 1] = bk_config_sections[i].path;
    return bk_options_unknown(root, "", (const bk_option *const[]){NULL}, names);
}

static bk_status section_of(const bk_config *c, const char *name, bk_value **map)
{
    char where[BK_PLACE_TEXT];
    *map = bk_value_get(c->root, name);
    if (!*map)
        return BK_OK;
    (*map)->used = true;
    if ((*map)->kind == BK_MAP)
        return BK_OK;
    return bk_fail(BK_USAGE, "section %s is not a mapping (%s): write %s: {key: value}", name,
                   bk_value_place(*map, where), name);
}

static bk_status read_section(bk_config *c, const char *name, const bk_option *table, void *config)
{
    const bk_option *tables[] = {table, NULL};
    bk_value *map;
    BK_TRY(section_of(c, name, &map));
    BK_TRY(bk_options_read(table, config, map, name, c->arena));
    return map ? bk_options_unknown(map, name, tables, NULL) : BK_OK;
}

static bk_status read_optim(bk_config *c)
{
    bk_config_optim *o = &c->optim;
    bk_value *map;
    const char *names[16] = {0};
    BK_TRY(section_of(c, "optim", &map));
    BK_TRY(bk_options_read(optim_options, o, map, "optim", c->arena));
    for (int i = 0; bk_optimizers[i] && i < 15; i++) {
        names[i] = bk_optimizers[i]->name;
        if (strcmp(names[i], o->kind_name) == 0)
            o->kind = bk_optimizers[i];
    }
    if (!o->kind)
        return bk_unknown_kind("optimizer", o->kind_name, bk_value_get(map, "kind"), names);
    const bk_option *tables[] = {optim_options, o->kind->options, NULL};
    o->config = bk_arena_zalloc(c->arena, o->kind->config_size + 1);
    BK_TRY(bk_options_read(o->kind->options, o->config, map, "optim", c->arena));
    return map ? bk_options_unknown(map, "optim", tables, NULL) : BK_OK;
}

static bk_status read_schedule(bk_config *c)
{
    bk_config_schedule *s = &c->schedule;
    bk_value *map;
    const char *names[16] = {0};
    BK_TRY(section_of(c, "schedule", &map));
    BK_TRY(bk_options_read(schedule_options, s, map, "schedule", c->arena));
    for (int i = 0; bk_schedules[i] && i < 15; i++) {
        names[i] = bk_schedules[i]->name;
        if (strcmp(names[i], s->kind_name) == 0)
            s->kind = bk_schedules[i];
    }
    if (!s->kind)
        return bk_unknown_kind("schedule", s->kind_name, bk_value_get(map, "kind"), names);
    const bk_option *tables[] = {schedule_options, s->kind->options, NULL};
    s->config = bk_arena_zalloc(c->arena, s->kind->config_size + 1);
    if (s->kind->options)
        BK_TRY(bk_options_read(s->kind->options, s->config, map, "schedule", c->arena));
    BK_TRY(map ? bk_options_unknown(map, "schedule", tables, NULL) : BK_OK);
    return s->kind->check ? s->kind->check(s->config) : BK_OK;
}

static bk_status read_loss(bk_config *c, bk_value *map, const char *path, bk_config_loss *loss)
{
    const char *names[64] = {0};
    char where[BK_PLACE_TEXT];
    if (map->kind != BK_MAP)
        return bk_fail(BK_USAGE, "%s is not a mapping (%s): write - {kind: cross_entropy}", path,
                       bk_value_place(map, where));
    BK_TRY(bk_options_read(loss_options, loss, map, path, c->arena));
    if (!loss->kind_name)
        return bk_fail(BK_USAGE, "%s has no kind (%s): write - {kind: cross_entropy}", path,
                       bk_value_place(map, where));
    for (int i = 0; bk_losses[i] && i < 63; i++)
        names[i] = bk_losses[i]->name;
    loss->kind = bk_loss_find(loss->kind_name);
    if (!loss->kind)
        return bk_unknown_kind("loss", loss->kind_name, bk_value_get(map, "kind"), names);
    const bk_option *tables[] = {loss_options, loss->kind->options, NULL};
    loss->config = bk_arena_zalloc(c->arena, loss->kind->config_size + 1);
    BK_TRY(bk_options_read(loss->kind->options, loss->config, map, path, c->arena));
    BK_TRY(bk_options_unknown(map, path, tables, NULL));
    return loss->kind->check ? loss->kind->check(loss->config, BK_F32) : BK_OK;
}

static const char *term_name(const bk_config *c, int place)
{
    const char *kind = c->loss[place].kind->name;
    for (int i = 0; i < place; i++)
        if (c->loss[i].kind == c->loss[place].kind)
            return bk_arena_printf(c->arena, "%s.%d", kind, place);
    return kind;
}

static bk_status read_losses(bk_config *c)
{
    bk_value *list = bk_value_get(c->root, "loss");
    char where[BK_PLACE_TEXT];
    if (!list) {
        bk_value *entry = bk_value_new(c->arena, BK_MAP, "default", 0);
        BK_TRY(bk_value_set(c->arena, entry, "kind", "cross_entropy"));
        BK_TRY(read_loss(c, entry, "loss.0", &c->loss[0]));
        c->loss[0].name = term_name(c, 0);
        c->losses = 1;
        return BK_OK;
    }
    list->used = true;
    if (list->kind != BK_LIST || !list->child)
        return bk_fail(
            BK_USAGE,
            "section loss is not a list (%s): write loss: followed by - {kind: cross_entropy}",
            bk_value_place(list, where));
    BK_TRY(bk_presets_expand(c->arena, list, &list));
    for (bk_value *entry = list->child; entry; entry = entry->next, c->losses++) {
        if (c->losses == BK_LOSSES_MAX)
            return bk_fail(BK_USAGE, "more than %d losses (%s): remove some", BK_LOSSES_MAX,
                           bk_value_place(entry, where));
        const char *path = bk_arena_printf(c->arena, "loss.%d", c->losses);
        BK_TRY(read_loss(c, entry, path, &c->loss[c->losses]));
        c->loss[c->losses].name = term_name(c, c->losses);
    }
    return BK_OK;
}

/* ---- checks across sections ---- */

static bool is_empty(const char *text)
{
    return !text || !*text;
}

static bk_status check_placement(const bk_config_distill *d)
{
    if (d->placement == BK_SPLIT && d->teacher_ranks == 0)
        return bk_fail(BK_USAGE, "distill.placement=split without distill.teacher_ranks: say how "
                                 "many ranks run the teacher");
    if (d->placement == BK_CACHED && is_empty(d->cache))
        return bk_fail(BK_USAGE, "distill.placement=cached without distill.cache: name the file "
                                 "of the teacher's logits, distill.cache=FILE.h5");
    return BK_OK;
}

static bk_status check_distill(const bk_config *c)
{
    int kd = 0;
    for (int i = 0; i < c->losses; i++) {
        bool teacher = (c->loss[i].kind->flags & BK_LOSS_TEACHER) != 0;
        kd += teacher;
        if (teacher && !c->has_distill)
            return bk_fail(BK_USAGE,
                           "loss %s needs a teacher (loss.%d): add distill: {teacher: RUN_DIR}",
                           c->loss[i].kind->name, i);
    }
    for (int i = 0; i < c->losses && c->distill.placement != BK_COLOCATED; i++)
        if (c->loss[i].kind->flags & BK_LOSS_LAYERS)
            return bk_fail(BK_USAGE,
                           "loss %s looks inside the teacher (loss.%d), which must run on the same "
                           "ranks: use distill.placement=colocated",
                           c->loss[i].kind->name, i);
    if (c->has_distill && kd == 0)
        return bk_fail(BK_USAGE, "section distill without a distillation loss: add one under "
                                 "loss:, such as - {kind: kl}");
    if (c->has_distill && is_empty(c->distill.teacher))
        return bk_fail(BK_USAGE, "distill.teacher is missing: name a run directory or checkpoint");
    return check_placement(&c->distill);
}

static bk_status check(const bk_config *c)
{
    int64_t lanes = c->parallel.lanes;
    if (is_empty(c->run.dir))
        return bk_fail(BK_USAGE,
                       "run.dir is missing: name the directory of the run, run.dir=runs/NAME");
    if (is_empty(c->data.train))
        return bk_fail(
            BK_USAGE,
            "data.train is missing: name a data set made by birkhoff data, data.train=FILE.h5");
    if (lanes & (lanes - 1))
        return bk_fail(BK_USAGE,
                       "parallel.lanes=%lld is not a power of two: choose 1, 2, 4, 8, ...",
                       (long long)lanes);
    return check_distill(c);
}

/* ---- paths ---- */

static const char *absolute(bk_arena *arena, const char *path, const char *file)
{
    char here[4096];
    if (!path || path[0] == '\0' || path[0] == '/')
        return path;
    const char *base = getcwd(here, sizeof here) ? here : ".";
    const char *slash = file ? strrchr(file, '/') : NULL;
    if (!slash || strcmp(file, "command line") == 0)
        return bk_arena_printf(arena, "%s/%s", base, path);
    if (file[0] == '/')
        return bk_arena_printf(arena, "%.*s/%s", (int)(slash - file), file, path);
    return bk_arena_printf(arena, "%s/%.*s/%s", base, (int)(slash - file), file, path);
}

static void resolve(bk_config *c, const char *section, const char *key, const char **path)
{
    const bk_value *map = bk_value_get(c->root, section);
    const bk_value *value = map ? bk_value_get(map, key) : NULL;
    *path = absolute(c->arena, *path, value ? value->file : NULL);
}

/* The path of the dense model is read by the model, from the tree. */
static void resolve_upcycle(const bk_config *c)
{
    static const char *const keys[] = {"model", "moe", "upcycle", "from"};
    bk_value *value = c->root;
    for (size_t i = 0; value && i < sizeof keys / sizeof *keys; i++)
        value = value->kind == BK_MAP ? bk_value_get(value, keys[i]) : NULL;
    if (value && value->kind == BK_SCALAR)
        value->text = absolute(c->arena, value->text, value->file);
}

bk_status bk_config_read(bk_arena *arena, bk_value *root, bk_config **out)
{
    bk_config *c = BK_ZNEW(arena, bk_config, 1);
    char where[BK_PLACE_TEXT];
    c->arena = arena;
    c->root = root;
    if (root->kind != BK_MAP)
        return bk_fail(
            BK_USAGE,
            "the configuration is not a mapping (%s): it has sections run, data, model, ...",
            bk_value_place(root, where));
    c->has_distill = bk_value_get(root, "distill") != NULL;
    BK_TRY(check_sections(root));
    bk_value *model;
    BK_TRY(section_of(c, "model", &model));
    BK_TRY(read_section(c, "run", run_options, &c->run));
    BK_TRY(read_section(c, "data", data_options, &c->data));
    BK_TRY(read_section(c, "distill", distill_options, &c->distill));
    BK_TRY(read_losses(c));
    BK_TRY(read_optim(c));
    BK_TRY(read_schedule(c));
    BK_TRY(read_section(c, "parallel", parallel_options, &c->parallel));
    BK_TRY(read_section(c, "checkpoint", checkpoint_options, &c->checkpoint));
    BK_TRY(read_section(c, "log", log_options, &c->log));
    resolve(c, "run", "dir", &c->run.dir);
    resolve(c, "data", "train", &c->data.train);
    resolve(c, "data", "eval", &c->data.eval);
    resolve(c, "distill", "teacher", &c->distill.teacher);
    resolve_upcycle(c);
    resolve(c, "distill", "cache", &c->distill.cache);
    *out = c;
    return check(c);
}

bk_status bk_config_read_verify(bk_arena *arena, bk_value *root, int *out)
{
    bk_config c = {.arena = arena, .root = root};
    BK_TRY(read_section(&c, "checkpoint", checkpoint_options, &c.checkpoint));
    *out = c.checkpoint.verify;
    return BK_OK;
}

/* ---- writing ---- */

static void write_section(const char *name, const bk_option *table, const void *config, FILE *file)
{
    fprintf(file, "%s:\n", name);
    bk_options_write(table, config, 2, file);
}

static void write_losses(const bk_config *c, FILE *file)
{
    fprintf(file, "loss:\n");
    for (int i = 0; i < c->losses; i++) {
        fprintf(file, "  -\n");
        bk_options_write(loss_options, &c->loss[i], 4, file);
        bk_options_write(c->loss[i].kind->options, c->loss[i].config, 4, file);
    }
}

void bk_config_write(const bk_config *c,
                     void (*write_model)(const void *model, int indent, void *file),
                     const void *model, FILE *file)
{
    write_section("run", run_options, &c->run, file);
    write_section("data", data_options, &c->data, file);
    fprintf(file, "model:\n");
    write_model(model, 2, file);
    if (c->has_distill)
        write_section("distill", distill_options, &c->distill, file);
    write_losses(c, file);
    write_section("optim", optim_options, &c->optim, file);
    bk_options_write(c->optim.kind->options, c->optim.config, 2, file);
    write_section("schedule", schedule_options, &c->schedule, file);
    if (c->schedule.kind->options)
        bk_options_write(c->schedule.kind->options, c->schedule.config, 2, file);
    write_section("parallel", parallel_options, &c->parallel, file);
    write_section("checkpoint", checkpoint_options, &c->checkpoint, file);
    write_section("log", log_options, &c->log, file);
}
