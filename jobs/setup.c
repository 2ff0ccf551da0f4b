#include "jobs/teacher.h"

#include "core/blas.h"
#include "core/log.h"
#include "core/real.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "dist/topology.h"
#include "io/files.h"
#include "io/hdf5.h"
#include "io/yaml.h"
#include "jobs/transfer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- lanes ---- */

static int64_t next_power_of_two(int64_t n)
{
    int64_t power = 1;
    while (power < n)
        power *= 2;
    return power;
}

/* Those of the run, so that what is done lane by lane (capacity, local routers) is evaluated as it
 * was trained; an evaluation on more ranks has a lane for each. */
static int64_t choose_lanes(const bk_job *job)
{
    int64_t wanted = job->config->parallel.lanes, least = next_power_of_two(job->world->size);
    int64_t kept = job->checkpoint ? bk_checkpoint_state(job->checkpoint)->lanes : 0;
    int64_t lanes = wanted > 0 ? wanted : kept > 0 ? kept : least;
    if (job->lanes.total > 0) /* as the students have them */
        return job->lanes.total;
    return job->purpose == BK_EVALUATE && lanes < least ? least : lanes;
}

/* Samples past the end of a split count nothing, so an evaluation may round its batch up. */
static void round_batch(bk_job *job, int64_t lanes)
{
    int64_t *batch = &job->config->data.batch;
    *batch = (*batch + lanes - 1) / lanes * lanes;
}

static bk_status open_lanes(bk_job *job)
{
    bk_config *c = job->config;
    c->parallel.lanes = choose_lanes(job);
    if (job->purpose == BK_EVALUATE)
        round_batch(job, c->parallel.lanes);
    if (c->data.batch % c->parallel.lanes != 0)
        return bk_fail(BK_USAGE,
                       "parallel.lanes=%lld does not divide data.batch=%lld: choose a batch that "
                       "is a multiple, or at most %lld lanes",
                       (long long)c->parallel.lanes, (long long)c->data.batch,
                       (long long)(c->data.batch & -c->data.batch));
    job->lanes =
        bk_lanes_of_rank(c->parallel.lanes, c->data.batch, job->world->rank, job->world->size);
    return BK_OK;
}

static void note_rounding(const bk_job *job)
{
    if (job->purpose != BK_EVALUATE && job->purpose != BK_CACHE &&
        !bk_lanes_exact(&job->lanes, job->world->size))
        bk_note("%d ranks do not divide %lld lanes as a power of two: results agree with other "
                "rank counts to rounding, not to the bit",
                job->world->size, (long long)job->lanes.total);
}

static void note_precision(const bk_job *job)
{
    if (job->tape.bf16 && bk_blas_bf16() != BK_BF16)
        bk_note("run.precision=bf16: nothing here multiplies bf16 (%s), so operands are rounded to "
                "it and multiplied in fp32, which gains no speed",
                bk_blas_description());
}

/* ---- model ---- */

static int64_t slab_alignment(const bk_job *job)
{
    int size = job->world->size;
    return 16 * (bk_lanes_exact(&job->lanes, size) ? job->lanes.total : size);
}

/* A model of another data set may be longer than this data set asks for: what it was counts. */
static bk_status keep_max_length(bk_job *job)
{
    const char *text = job->checkpoint ? bk_checkpoint_state(job->checkpoint)->config : "";
    bk_value *then, *root = job->config->root;
    if (bk_value_get(bk_value_get(root, "model"), "max_length"))
        return BK_OK;
    BK_TRY(bk_yaml_parse(job->arena, "checkpoint", text, strlen(text), &then));
    const bk_value *kept = bk_value_get(bk_value_get(then, "model"), "max_length");
    return kept ? bk_value_set(job->arena, root, "model.max_length", kept->text) : BK_OK;
}

static bk_status make_model(bk_job *job)
{
    const bk_config *c = job->config;
    BK_TRY(keep_max_length(job));
    BK_TRY(bk_model_new(job->arena, bk_value_get(c->root, "model"), &job->data, job->world,
                        &job->model));
    job->slab = bk_model_slab(job->model);
    return BK_OK;
}

/* When everything is declared, the maps to the teacher's layers among it. */
static bk_status lay_out(bk_job *job)
{
    const bk_config *c = job->config;
    BK_TRY(bk_transfer_plan(job));
    bk_slab_layout(job->slab, (int64_t)(c->parallel.bucket_mb * 262144.0), slab_alignment(job));
    if (job->purpose != BK_EVALUATE)
        bk_slab_want_gradients(job->slab);
    return BK_OK;
}

/* A walk sees one lane at a time. */
static bk_status check_walk(const bk_job *job)
{
    const bk_config *c = job->config;
    if (c->parallel.walk && bk_model_moe_layers(job->model) > 0)
        return bk_fail(BK_USAGE, "parallel.walk=true does not go with model.moe: its routers see "
                                 "the tokens of all lanes at once; use model.recompute=block to "
                                 "save memory");
    for (int i = 0; c->parallel.walk && i < c->losses; i++)
        if (c->loss[i].kind->flags & BK_LOSS_COLLECTIVE)
            return bk_fail(BK_USAGE,
                           "parallel.walk=true does not go with the loss %s: it sees the rows of "
                           "all lanes at once; use model.recompute=block to save memory",
                           c->loss[i].kind->name);
    return BK_OK;
}

/* Keys of another placement are no mistake where one of them is tried after the other. */
static void warn_of_placement(const bk_config_distill *d)
{
    static const char *const names[] = {"colocated", "split", "cached"};
    if (d->teacher_ranks > 0 && d->placement != BK_SPLIT)
        bk_warn("distill.teacher_ranks=%lld has no effect: distill.placement is %s",
                (long long)d->teacher_ranks, names[d->placement]);
    if (d->cache && d->placement != BK_CACHED)
        bk_warn("distill.cache has no effect: distill.placement is %s (%s)", names[d->placement],
                d->cache);
}

/* What only the model and its data can tell about the configuration. */
static bk_status check_model(const bk_job *job)
{
    const bk_config *c = job->config;
    if (c->parallel.expert > 1 && bk_model_moe_layers(job->model) == 0)
        bk_warn("parallel.expert=%lld has no effect: the model has no experts",
                (long long)c->parallel.expert);
    if (job->purpose == BK_TRAIN)
        warn_of_placement(&c->distill);
    for (int i = 0; i < c->losses; i++)
        if (c->loss[i].kind->fits)
            BK_TRY(c->loss[i].kind->fits(c->loss[i].config, job->data.classes == 0));
    return check_walk(job);
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

static const bk_comm *all_ranks(const bk_job *job)
{
    return job->world->between ? job->world->between : job->world->ctl;
}

static void make_run_id(bk_job *job)
{
    uint64_t id = (uint64_t)time(NULL) * 0x9E3779B97F4A7C15u ^ (uint64_t)getpid();
    bk_broadcast(all_ranks(job), 0, &id, sizeof id);
    snprintf(job->run_id, sizeof job->run_id, "%016llx", (unsigned long long)id);
}

static void make_tape(bk_job *job)
{
    job->tape = (bk_tape){.arena = bk_arena_new("step"),
                          .scratch = bk_arena_new("scratch"),
                          .inner = bk_arena_new("block"),
                          .dtype = BK_F32,
                          .bf16 = job->config->run.precision == BK_PRECISION_BF16,
                          .lanes = job->lanes,
                          .seed = (uint64_t)job->config->run.seed};
}

static void make_step_room(bk_job *job)
{
    job->walk = bk_arena_new("walk");
    job->records = BK_NEW(job->arena, double, job->lanes.count *BK_MAX_TERMS);
}

static const char *machine_text(const bk_job *job)
{
    const char *teacher = job->teacher ? job->teacher->payload : NULL;
    return bk_arena_printf(job->arena,
                           "ranks: %d\nlanes: %lld\nexpert: %d\nproducts: %s\nkernels: %s\nmpi: "
                           "%s\nhdf5: %s\ncompiler: %s%s%s",
                           job->world->size, (long long)job->lanes.total, job->world->expert,
                           bk_blas_description(), bk_cpu_avx512() ? "avx512" : "avx2",
                           bk_mpi_library(), bk_h5_version(), __VERSION__,
                           teacher ? "\nteacher: " : "", teacher ? teacher : "");
}

/* ---- the run directory (rank 0; all agree on the outcome) ---- */

static bk_status lock(bk_job *job)
{
    const char *dir = job->config->run.dir;
    if (!job->locked)
        BK_TRY(bk_lock_file(bk_arena_printf(job->arena, "%s/run.lock", dir), job->run_id));
    job->locked = true;
    return BK_OK;
}

/* Before anything is read from it, so that no other job writes it meanwhile; what a killed save set
 * aside is in its place again.  A directory that is
 * not there yet is made when all else is known to be good. */
static bk_status lock_existing(bk_job *job)
{
    bool wanted = job->purpose == BK_TRAIN && job->world->rank == 0;
    if (!wanted || !bk_is_directory(job->config->run.dir))
        return BK_OK;
    BK_TRY(lock(job));
    bk_checkpoint_restore(job->checkpoints);
    return BK_OK;
}

static bk_status claim(bk_job *job)
{
    const char *dir = job->config->run.dir;
    BK_TRY(bk_make_directories(dir));
    BK_TRY(lock(job));
    BK_TRY(bk_make_directories(job->checkpoints));
    bk_checkpoint_sweep(job->checkpoints);
    BK_TRY(bk_make_directories(bk_arena_printf(job->arena, "%s/stall", dir)));
    return bk_write_text(bk_arena_printf(job->arena, "%s/config.yaml", dir), job->resolved);
}

bk_status bk_job_claim_directory(bk_job *job)
{
    return bk_agree(job->world->ctl, job->world->rank == 0 ? claim(job) : BK_OK);
}

/* ---- the checkpoint to go on from ---- */

static bk_status refuse_old(const bk_job *job)
{
    if (job->world->rank != 0 || !*bk_list_directory(job->arena, job->checkpoints))
        return BK_OK;
    return bk_fail(BK_USAGE,
                   "run.resume=fresh, but there are checkpoints (%s): name another run.dir",
                   job->checkpoints);
}

static bk_status find_checkpoint(bk_job *job)
{
    const bk_config *c = job->config;
    const bk_comm *comm = job->world->checkpoint;
    if (job->checkpoint || job->purpose == BK_MEASURE)
        return BK_OK;
    if (job->purpose != BK_EVALUATE && c->run.resume == BK_RESUME_FRESH)
        return bk_agree(comm, refuse_old(job));
    bk_find_options options = {.check = (bk_checkpoint_check)c->checkpoint.verify,
                               .strict = c->checkpoint.strict};
    BK_TRY(bk_checkpoint_find(comm, job->arena, job->checkpoints, options, &job->checkpoint));
    if (job->purpose == BK_EVALUATE && !job->checkpoint)
        return bk_fail(BK_INPUT, "there is no checkpoint to evaluate (%s): train first",
                       job->checkpoints);
    return BK_OK;
}

/* An evaluation checks the fit; a training that goes on compares digests and keys. */
static bk_status check_fit(const bk_job *job)
{
    return job->purpose == BK_EVALUATE ? bk_job_check_fit(job, job->checkpoint, "model") : BK_OK;
}

/* ---- the whole ---- */

static void open_optimizer(bk_job *job)
{
    const bk_config *c = job->config;
    job->reduction =
        bk_reduction_new(job->arena, job->world, job->slab, &job->lanes, c->parallel.overlap);
    job->shard = bk_shard_new(job->arena, job->reduction, job->slab, c->optim.kind->moments,
                              (int)c->parallel.zero);
}

/* The degree that an evaluation can have on these ranks. */
static void adapt_degree(bk_config *c)
{
    c->parallel.expert = bk_common_degree(c->parallel.expert, bk_mpi_size());
}

/* Rounded rows travel as they are multiplied: in bf16 only where every rank multiplies it. */
static void agree_on_bf16(const bk_comm *comm)
{
    int64_t lacking = bk_blas_bf16() != BK_BF16;
    bk_max_i64(comm, 1, &lacking);
    bk_blas_allow_bf16(!lacking);
}

/* One world of all ranks, or one of the students and one of the teacher. */
static bk_status open_communicators(bk_job *job)
{
    const bk_config *c = job->config;
    int64_t last = c->distill.teacher_ranks;
    if (bk_teacher_placement(c, job->purpose) != BK_SPLIT)
        return bk_world_open(job->arena, (int)c->parallel.expert, &job->world);
    if (last >= bk_mpi_size())
        return bk_fail(BK_USAGE,
                       "distill.teacher_ranks=%lld leaves no rank for the student (of %d): start "
                       "more ranks, or give the teacher fewer",
                       (long long)last, bk_mpi_size());
    job->teaches = bk_mpi_rank() >= bk_mpi_size() - (int)last;
    return bk_world_open_two(job->arena, (int)last, (int)c->parallel.expert, &job->world);
}

static bk_status open_world(bk_job *job)
{
    bk_config *c = job->config;
    if (job->purpose == BK_EVALUATE || job->purpose == BK_CACHE)
        adapt_degree(c);
    BK_TRY(open_communicators(job));
    int64_t threads = c->parallel.threads > 0 ? c->parallel.threads : bk_topology_threads();
    BK_TRY(bk_job_meet(job, bk_agree(job->world->ctl, bk_blas_setup((int)threads, BK_GEMM_AUTO))));
    agree_on_bf16(all_ranks(job));
    return BK_OK;
}

/* ---- what is read, in two parts: between them the students' lanes become known ---- */

/* A job of a teacher alone: on its ranks of a split, or to fill a file. */
static bool has_student(const bk_job *job)
{
    return !job->teaches && job->purpose != BK_CACHE;
}

/* Each line is agreed on: all ranks take the same way out. */
static bk_status open_first(bk_job *job)
{
    const bk_comm *ctl = job->world->ctl;
    if (!has_student(job))
        return bk_agree(ctl, bk_job_read_data(job));
    BK_TRY(bk_agree(ctl, lock_existing(job)));
    BK_TRY(bk_agree(ctl, bk_job_read_data(job)));
    BK_TRY(bk_agree(ctl, find_checkpoint(job)));
    BK_TRY(bk_agree(ctl, check_fit(job)));
    return bk_agree(ctl, open_lanes(job));
}

static bk_status open_second(bk_job *job)
{
    const bk_comm *ctl = job->world->ctl;
    if (!has_student(job))
        BK_TRY(bk_agree(ctl, open_lanes(job)));
    BK_TRY(bk_agree(ctl, bk_job_open_samplers(job)));
    make_tape(job);
    if (has_student(job)) {
        BK_TRY(bk_agree(ctl, make_model(job)));
        BK_TRY(bk_agree(ctl, check_model(job)));
    }
    BK_TRY(bk_job_open_teacher(job));
    if (!has_student(job))
        return BK_OK;
    BK_TRY(bk_agree(ctl, lay_out(job)));
    return bk_job_upcycle(job);
}

bk_status bk_job_meet(bk_job *job, bk_status status)
{
    return job->world->between ? bk_agree(job->world->between, status) : status;
}

static void share_lanes(bk_job *job)
{
    if (job->world->between)
        bk_broadcast(job->world->between, 0, &job->lanes.total, sizeof job->lanes.total);
}

/* What the first of the teacher's ranks knows of it. */
static void share_teacher(bk_job *job)
{
    const bk_comm *between = job->world->between;
    bk_teacher *t = job->teacher;
    int first = bk_comm_size(between) - (int)job->config->distill.teacher_ranks;
    bk_broadcast(between, first, t->payload, sizeof t->payload);
    bk_broadcast(between, first, &t->parameters, sizeof t->parameters);
    bk_broadcast(between, first, &t->flops_per_sample, sizeof t->flops_per_sample);
}

static bk_status open_inputs(bk_job *job)
{
    BK_TRY(bk_job_meet(job, open_first(job)));
    share_lanes(job);
    BK_TRY(bk_job_meet(job, open_second(job)));
    if (!job->world->between)
        return BK_OK;
    share_teacher(job);
    return bk_teacher_split_open(job);
}

static bk_status open_all(bk_job *job)
{
    make_run_id(job);
    BK_TRY(open_inputs(job));
    if (has_student(job)) {
        job->resolved = resolved_text(job);
        job->machine = machine_text(job);
        make_step_room(job);
        if (job->purpose != BK_EVALUATE)
            open_optimizer(job);
    }
    note_rounding(job);
    note_precision(job);
    return BK_OK;
}

bk_status bk_job_open(bk_arena *arena, bk_config *config, bk_purpose purpose, bk_given given,
                      bk_job **out)
{
    bk_job *job = BK_ZNEW(arena, bk_job, 1);
    *job = (bk_job){.arena = arena,
                    .purpose = purpose,
                    .config = config,
                    .checkpoint = given.checkpoint,
                    .train = given.data,
                    .started = bk_seconds(),
                    .stop_at = INFINITY};
    job->checkpoints = bk_arena_printf(arena, "%s/checkpoints", config->run.dir);
    BK_TRY(open_world(job));
    bk_status status = open_all(job);
    if (status != BK_OK)
        bk_job_close(job);
    *out = job;
    return status;
}

void bk_job_close(bk_job *job)
{
    bk_teacher_split_release(job);
    if (job->reduction)
        bk_reduction_gather_finish(job->reduction);
    bk_saver_free(job->saver);
    bk_arena_free(job->tape.arena);
    bk_arena_free(job->tape.scratch);
    bk_arena_free(job->tape.inner);
    bk_arena_free(job->walk);
    bk_teacher_close(job->teacher);
    bk_world_close(job->world);
}
