#include "jobs/job.h"

#include "core/blas.h"
#include "core/log.h"
#include "core/real.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "dist/topology.h"
#include "io/files.h"
#include "io/hdf5.h"
#include "io/yaml.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- data ---- */

static bk_status read_data(bk_job *job)
{
    const bk_config_data *d = &job->config->data;
    if (!job->train)
        BK_TRY(bk_dataset_read(job->arena, d->train, &job->train));
    job->eval = job->train;
    if (d->eval)
        BK_TRY(bk_dataset_read(job->arena, d->eval, &job->eval));
    BK_TRY(bk_dataset_split(job->train, d->split, &job->train_split));
    return bk_dataset_split(job->eval, d->eval_split, &job->eval_split);
}

/* A language model learns from successors: a document of one token holds none. */
static bool has_something(const bk_dataset *d, const bk_split *split)
{
    for (int64_t i = 0; i < split->count; i++) {
        int64_t sample = split->index[i];
        if (d->classes > 0 || d->offsets[sample + 1] - d->offsets[sample] > 1)
            return true;
    }
    return false;
}

static bk_status check_data(const bk_job *job)
{
    const bk_dataset *a = job->train, *b = job->eval;
    if (a->vocabulary != b->vocabulary || a->classes != b->classes || a->channels != b->channels)
        return bk_fail(BK_INPUT,
                       "the data sets for training and evaluation differ in vocabulary, classes or "
                       "channels (%s, %s): make both alike",
                       a->path, b->path);
    if (a->classes == 0 && !a->tokens)
        return bk_fail(
            BK_INPUT,
            "the data set has neither classes nor tokens (%s): make one with birkhoff data",
            a->path);
    if (!has_something(a, job->train_split))
        return bk_fail(BK_INPUT,
                       "split %s holds nothing to learn from (%s): name another with data.split",
                       job->train_split->name, a->path);
    return BK_OK;
}

static int64_t longest(const bk_job *job)
{
    const bk_config_data *d = &job->config->data;
    if (job->train->classes == 0)
        return d->length;
    int64_t most = job->train->max_length > job->eval->max_length ? job->train->max_length
                                                                  : job->eval->max_length;
    return d->max_length > 0 && d->max_length < most ? d->max_length : most;
}

static void describe_data(bk_job *job)
{
    job->data = (bk_model_data){.vocabulary = job->train->features ? 0 : job->train->vocabulary,
                                .channels = job->train->features ? job->train->channels : 0,
                                .classes = job->train->classes,
                                .max_length = longest(job)};
}

static void open_samplers(bk_job *job)
{
    const bk_config *c = job->config;
    bk_sampler_options o = {.batch = c->data.batch,
                            .length = job->data.classes == 0 ? c->data.length : 0,
                            .max_length = c->data.max_length,
                            .seed = (uint64_t)c->run.seed,
                            .shuffle = true};
    job->train_sampler = bk_sampler_new(job->arena, job->train, job->train_split, &o);
    o.shuffle = false;
    job->eval_sampler = bk_sampler_new(job->arena, job->eval, job->eval_split, &o);
}

/* ---- lanes ---- */

static int64_t next_power_of_two(int64_t n)
{
    int64_t power = 1;
    while (power < n)
        power *= 2;
    return power;
}

static bk_status choose_lanes(bk_job *job)
{
    bk_config *c = job->config;
    int64_t kept = job->checkpoint ? bk_checkpoint_state(job->checkpoint)->lanes : 0;
    if (c->parallel.lanes == 0)
        c->parallel.lanes = kept > 0 ? kept : next_power_of_two(job->world->size);
    if (c->data.batch % c->parallel.lanes != 0)
        return bk_fail(
            BK_USAGE,
            "%lld lanes do not divide data.batch=%lld: choose a multiple, or parallel.lanes=%lld",
            (long long)c->parallel.lanes, (long long)c->data.batch,
            (long long)(c->data.batch & -c->data.batch));
    job->lanes =
        bk_lanes_of_rank(c->parallel.lanes, c->data.batch, job->world->rank, job->world->size);
    return BK_OK;
}

static void note_rounding(const bk_job *job)
{
    if (!bk_lanes_exact(&job->lanes, job->world->size))
        bk_note("%d ranks do not divide %lld lanes as a power of two: results agree with other "
                "rank counts to rounding, not to the bit",
                job->world->size, (long long)job->lanes.total);
}

/* ---- model and teacher ---- */

static int64_t slab_alignment(const bk_job *job)
{
    int size = job->world->size;
    return 16 * (bk_lanes_exact(&job->lanes, size) ? job->lanes.total : size);
}

static bk_status make_model(bk_job *job, bool training)
{
    const bk_config *c = job->config;
    BK_TRY(bk_model_new(job->arena, c->model, &job->data, job->world, &job->model));
    job->slab = bk_model_slab(job->model);
    bk_slab_layout(job->slab, (int64_t)(c->parallel.bucket_mb * 262144.0), slab_alignment(job));
    if (training)
        bk_slab_want_gradients(job->slab);
    return BK_OK;
}

static int64_t classes_of_checkpoint(const bk_checkpoint *c)
{
    for (int64_t i = 0; i < bk_checkpoint_tensors(c); i++) {
        const char *name;
        bk_dtype dtype;
        int dims;
        int64_t shape[BK_MAX_DIMS];
        bk_checkpoint_tensor(c, i, &name, &dtype, &dims, shape);
        if (strcmp(name, "model/head/b") == 0)
            return shape[0];
    }
    return 0;
}

static bk_status check_teacher(const bk_job *job, const bk_checkpoint *c)
{
    int64_t classes = classes_of_checkpoint(c);
    if (classes != job->data.classes)
        return bk_fail(
            BK_INPUT,
            "the teacher has %lld classes, the data set %lld (%s): train a teacher on this task",
            (long long)classes, (long long)job->data.classes, bk_checkpoint_path(c));
    return BK_OK;
}

static bk_status make_teacher(bk_job *job)
{
    if (!job->config->has_distill)
        return BK_OK;
    bk_checkpoint *c;
    bk_value *root;
    BK_TRY(
        bk_checkpoint_open(job->world->checkpoint, job->arena, job->config->distill.teacher, &c));
    BK_TRY(check_teacher(job, c));
    const char *text = bk_checkpoint_state(c)->config;
    BK_TRY(bk_yaml_parse(job->arena, bk_checkpoint_path(c), text, strlen(text), &root));
    BK_TRY(bk_model_new(job->arena, bk_value_get(root, "model"), &job->data, job->world,
                        &job->teacher));
    bk_slab *slab = bk_model_slab(job->teacher);
    bk_slab_layout(slab, 1 << 20, slab_alignment(job));
    job->teacher_arena = bk_arena_new("teacher");
    return bk_job_load_model(job->world, job->arena, c, slab);
}

/* ---- the whole ---- */

static void write_model(const void *model, int indent, void *file)
{
    bk_model_write_options(model, indent, file);
}

static const char *resolved_text(bk_job *job)
{
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    if (!stream)
        bk_fatal("out of memory: resolved configuration");
    bk_config_write(job->config, write_model, job->model, stream);
    fclose(stream);
    char *copy = bk_arena_strdup(job->arena, text);
    free(text);
    return copy;
}

static void make_run_id(bk_job *job)
{
    uint64_t id = (uint64_t)time(NULL) * 0x9E3779B97F4A7C15u ^ (uint64_t)getpid();
    bk_broadcast(job->world->ctl, 0, &id, sizeof id);
    snprintf(job->run_id, sizeof job->run_id, "%016llx", (unsigned long long)id);
}

static void make_tape(bk_job *job)
{
    job->tape = (bk_tape){.arena = bk_arena_new("step"),
                          .scratch = bk_arena_new("scratch"),
                          .dtype = BK_F32,
                          .lanes = job->lanes,
                          .seed = (uint64_t)job->config->run.seed};
}

static const char *machine_text(const bk_job *job)
{
    return bk_arena_printf(job->arena,
                           "ranks: %d\nlanes: %lld\nexpert: %d\nproducts: %s\nkernels: %s\nmpi: "
                           "%s\nhdf5: %s\ncompiler: %s",
                           job->world->size, (long long)job->lanes.total, job->world->expert,
                           bk_blas_description(), bk_cpu_avx512() ? "avx512" : "avx2",
                           bk_mpi_library(), bk_h5_version(), __VERSION__);
}

static bk_status find_checkpoint(bk_job *job, const char *named)
{
    const bk_config *c = job->config;
    job->checkpoints = bk_arena_printf(job->arena, "%s/checkpoints", c->run.dir);
    if (named)
        return bk_checkpoint_open(job->world->checkpoint, job->arena, named, &job->checkpoint);
    BK_TRY(bk_checkpoint_find(job->world->checkpoint, job->arena, job->checkpoints,
                              c->checkpoint.strict, &job->checkpoint));
    if (job->checkpoint && c->run.resume == BK_RESUME_FRESH)
        return bk_fail(BK_USAGE,
                       "run.resume=fresh, but there are checkpoints (%s): name another run.dir",
                       job->checkpoints);
    return BK_OK;
}

static void open_optimizer(bk_job *job)
{
    const bk_config *c = job->config;
    job->reduction =
        bk_reduction_new(job->arena, job->world, job->slab, &job->lanes, c->parallel.overlap);
    job->shard = bk_shard_new(job->arena, job->reduction, job->slab, c->optim.kind->moments,
                              (int)c->parallel.zero);
}

/* What each rank does alone; the caller agrees. */
static bk_status open_local(bk_job *job)
{
    BK_TRY(read_data(job));
    BK_TRY(check_data(job));
    describe_data(job);
    return BK_OK;
}

/* What the ways of opening a job differ in. */
typedef struct opening {
    bool training, random_weights;
    const char *checkpoint; /* NULL: the newest of run.dir */
    bk_dataset *data;       /* NULL: as configured */
    bk_gemm_library gemm;
} opening;

static bk_status open_job(bk_arena *arena, bk_config *config, const opening *o, bk_job **out)
{
    bk_job *job = BK_ZNEW(arena, bk_job, 1);
    job->arena = arena;
    job->config = config;
    job->train = o->data;
    int threads =
        config->parallel.threads > 0 ? (int)config->parallel.threads : bk_topology_threads();
    BK_TRY(bk_blas_setup(threads, o->gemm));
    BK_TRY(bk_world_open(arena, (int)config->parallel.expert, &job->world));
    const bk_comm *ctl = job->world->ctl;
    make_run_id(job);
    BK_TRY(bk_agree(ctl, open_local(job)));
    if (!o->random_weights)
        BK_TRY(bk_agree(ctl, find_checkpoint(job, o->checkpoint)));
    BK_TRY(bk_agree(ctl, choose_lanes(job)));
    BK_TRY(bk_agree(ctl, make_model(job, o->training)));
    BK_TRY(bk_agree(ctl, make_teacher(job)));
    job->resolved = resolved_text(job);
    job->machine = machine_text(job);
    open_samplers(job);
    make_tape(job);
    if (o->training)
        open_optimizer(job);
    note_rounding(job);
    *out = job;
    return BK_OK;
}

bk_status bk_job_open(bk_arena *arena, bk_config *config, bool training, bk_job **out)
{
    return open_job(arena, config, &(opening){.training = training}, out);
}

bk_status bk_job_open_for_evaluation(bk_arena *arena, bk_config *config, const char *checkpoint,
                                     bk_job **out)
{
    return open_job(arena, config, &(opening){.checkpoint = checkpoint}, out);
}

bk_status bk_job_open_for_bench(bk_arena *arena, bk_config *config, bk_dataset *data,
                                bk_gemm_library gemm, bk_job **out)
{
    opening o = {.training = true, .random_weights = true, .data = data, .gemm = gemm};
    return open_job(arena, config, &o, out);
}

void bk_job_close(bk_job *job)
{
    bk_arena_free(job->tape.arena);
    bk_arena_free(job->tape.scratch);
    bk_arena_free(job->teacher_arena);
    bk_world_close(job->world);
}

/* Rank 0 touches the file system; all agree on the outcome. */
static bk_status claim(const bk_job *job)
{
    const char *dir = job->config->run.dir;
    BK_TRY(bk_make_directories(dir));
    BK_TRY(bk_lock_file(bk_arena_printf(job->arena, "%s/run.lock", dir), job->run_id));
    BK_TRY(bk_make_directories(job->checkpoints));
    return bk_write_text(bk_arena_printf(job->arena, "%s/config.yaml", dir), job->resolved);
}

bk_status bk_job_claim_directory(bk_job *job)
{
    return bk_agree(job->world->ctl, job->world->rank == 0 ? claim(job) : BK_OK);
}
