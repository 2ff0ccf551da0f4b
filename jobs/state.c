/* Between a job and its checkpoints: which slices of which tensors, and the small state. */
#include "jobs/job.h"

#include "core/log.h"
#include "dist/watchdog.h"
#include "io/yaml.h"

#include <math.h>
#include <string.h>

/* "model/block0/..." -> "optim/m/block0/...", "distill/..." -> "optim/m/distill/..." */
static const char *moment_name(bk_arena *arena, char moment, const char *name)
{
    size_t prefix = strncmp(name, "model/", 6) == 0 ? 6 : 0;
    return bk_arena_printf(arena, "optim/%c/%s", moment, name + prefix);
}

static bk_piece piece_of(const bk_parameter *p, const char *name, int64_t first, int64_t count,
                         float *data)
{
    bk_piece piece = {.name = name,
                      .dtype = BK_F32,
                      .dims = p->global_dims,
                      .offset = p->global_offset + first,
                      .count = count,
                      .data = data};
    memcpy(piece.global_shape, p->global_shape, sizeof piece.global_shape);
    return piece;
}

static bk_piece piece_of_buffer(const bk_buffer *b)
{
    bk_piece piece = {
        .name = b->name, .dtype = b->dtype, .dims = b->dims, .count = b->count, .data = b->data};
    memcpy(piece.global_shape, b->shape, sizeof piece.global_shape);
    return piece;
}

static int64_t list_buffers(const bk_slab *slab, bk_piece *list)
{
    for (int i = 0; i < slab->buffers; i++)
        list[i] = piece_of_buffer(slab->buffer[i]);
    return slab->buffers;
}

static int64_t list_moments(bk_arena *arena, const bk_run *run, int64_t runs, bk_piece *list)
{
    int64_t count = 0;
    for (int64_t i = 0; i < runs; i++) {
        const bk_parameter *p = run[i].parameter;
        if (run[i].m)
            list[count++] =
                piece_of(p, moment_name(arena, 'm', p->name), run[i].first, run[i].count, run[i].m);
        if (run[i].v)
            list[count++] =
                piece_of(p, moment_name(arena, 'v', p->name), run[i].first, run[i].count, run[i].v);
    }
    return count;
}

static int64_t list_parameters(const bk_slab *slab, bk_piece *list)
{
    for (int i = 0; i < slab->parameters; i++) {
        const bk_parameter *p = slab->parameter[i];
        list[i] = piece_of(p, p->name, 0, p->count, bk_parameter_value(slab, p));
    }
    return slab->parameters;
}

static int64_t list_model(const bk_slab *slab, bk_piece *list)
{
    int64_t count = list_parameters(slab, list);
    return count + list_buffers(slab, list + count);
}

bk_status bk_job_load_model(const bk_world *world, bk_arena *arena, const bk_checkpoint *c,
                            bk_slab *slab)
{
    bk_piece *list = BK_NEW(arena, bk_piece, slab->parameters + slab->buffers);
    int64_t count = list_model(slab, list);
    return bk_checkpoint_read(world->checkpoint, c, list, count, "model/");
}

/* ---- resume ---- */

/* Drops the pieces that the checkpoint lacks: they stay as they are.  The number left. */
static int64_t keep_stored(const bk_checkpoint *c, bk_piece *list, int64_t count)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++)
        if (bk_checkpoint_has(c, list[i].name))
            list[kept++] = list[i];
    return kept;
}

static void warn_of_lacking(const bk_job *job)
{
    const bk_slab *slab = job->slab;
    const char *text = "";
    for (int i = 0; i < slab->parameters; i++)
        if (!bk_checkpoint_has(job->checkpoint, slab->parameter[i]->name))
            text = bk_arena_printf(job->arena, "%s %s", text, slab->parameter[i]->name);
    for (int i = 0; i < slab->buffers; i++)
        if (!bk_checkpoint_has(job->checkpoint, slab->buffer[i]->name))
            text = bk_arena_printf(job->arena, "%s %s", text, slab->buffer[i]->name);
    if (*text)
        bk_warn("not in the checkpoint, so initialised as for a new run (%s):%.800s",
                bk_checkpoint_path(job->checkpoint), text);
}

/* The optimizer that the checkpoint was trained with; "": it does not say. */
static bk_status stored_optimizer(const bk_job *job, const char **kind)
{
    const char *path = bk_checkpoint_path(job->checkpoint);
    const char *text = bk_checkpoint_state(job->checkpoint)->config;
    bk_value *root;
    BK_TRY(bk_yaml_parse(job->arena, path, text, strlen(text), &root));
    const bk_value *value = bk_value_get(bk_value_get(root, "optim"), "kind");
    *kind = value && value->kind == BK_SCALAR ? value->text : "";
    return BK_OK;
}

/* The first moment that the checkpoint lacks; NULL: none. */
static const char *lacking_moment(const bk_job *job)
{
    const bk_slab *slab = job->slab;
    for (int i = 0; i < slab->parameters; i++)
        for (int k = 0; k < job->config->optim.kind->moments; k++) {
            const char *name =
                moment_name(job->arena, k == 0 ? 'm' : 'v', slab->parameter[i]->name);
            if (!bk_checkpoint_has(job->checkpoint, name))
                return name;
        }
    return NULL;
}

/* Moments of another optimizer, or of some parameters only, are no start: then none is loaded, and
 * their count of updates begins again. */
static bk_status renew_moments(bk_job *job, bool *renewed)
{
    const char *kind, *name = lacking_moment(job), *path = bk_checkpoint_path(job->checkpoint);
    BK_TRY(stored_optimizer(job, &kind));
    bool other = strcmp(kind, job->config->optim.kind->name) != 0;
    *renewed = other || name;
    if (!*renewed)
        return BK_OK;
    job->state.moments_from = bk_job_updates(&job->state);
    if (other)
        bk_warn("all moments of the optimizer begin anew: those of the checkpoint are of %s (%s)",
                kind, path);
    else
        bk_warn("all moments of the optimizer begin anew: %s is not in the checkpoint (%s)", name,
                path);
    return BK_OK;
}

static bk_status load_moments(bk_job *job)
{
    const bk_shard *shard = job->shard;
    bool renewed = false;
    if (job->config->checkpoint.partial)
        BK_TRY(renew_moments(job, &renewed));
    if (renewed)
        return BK_OK;
    bk_piece *list = BK_NEW(job->arena, bk_piece, 2 * shard->updates);
    int64_t count = list_moments(job->arena, shard->update, shard->updates, list);
    return bk_checkpoint_read(job->world->checkpoint, job->checkpoint, list, count, NULL);
}

static bk_status load_model(bk_job *job)
{
    const bk_slab *slab = job->slab;
    bk_piece *list = BK_NEW(job->arena, bk_piece, slab->parameters + slab->buffers);
    int64_t count = list_model(slab, list);
    if (job->config->checkpoint.partial) {
        warn_of_lacking(job);
        count = keep_stored(job->checkpoint, list, count);
    }
    return bk_checkpoint_read(job->world->checkpoint, job->checkpoint, list, count, "model/");
}

bk_status bk_job_resume(bk_job *job)
{
    bk_watchdog_phase(BK_PHASE_LOAD);
    job->state = (bk_run_state){.seed = (uint64_t)job->config->run.seed, .best_value = NAN};
    if ((!job->checkpoint && !job->dense) || job->config->checkpoint.partial)
        bk_slab_initialise(job->slab, (uint64_t)job->config->run.seed);
    if (job->checkpoint) {
        job->state = *bk_checkpoint_state(job->checkpoint);
        BK_TRY(load_model(job));
        BK_TRY(load_moments(job));
    }
    job->state.data_path = job->train->path;
    job->state.data_digest = job->train->digest;
    job->state.vocabulary_digest = job->train->vocabulary_digest;
    job->state.config = job->resolved;
    job->state.machine = job->machine;
    job->state.world_size = job->world->size;
    job->state.lanes = job->lanes.total;
    return BK_OK;
}

/* ---- save ---- */

static int64_t list_owned(bk_job *job, bk_arena *arena, bk_piece *list)
{
    const bk_shard *shard = job->shard;
    int64_t count = 0;
    for (int64_t i = 0; i < shard->owned; i++) {
        const bk_run *run = &shard->own[i];
        const bk_parameter *p = run->parameter;
        list[count++] = piece_of(p, p->name, run->first, run->count,
                                 bk_parameter_value(job->slab, p) + run->first);
    }
    count += list_moments(arena, shard->own, shard->owned, list + count);
    if (job->world->rank == 0)
        count += list_buffers(job->slab, list + count);
    return count;
}

bk_status bk_job_save(bk_job *job)
{
    const bk_config_checkpoint *c = &job->config->checkpoint;
    if (!job->saver)
        job->saver = bk_saver_new(job->world->checkpoint, job->checkpoints, c->async);
    bk_save_options options = {
        .writers = (int)c->writers,
        .nodes = job->world->nodes,
        .keep = (int)c->keep,
        .keep_every = c->keep_every,
        .best = isnan(job->state.best_value) ? -1 : job->state.best_step,
        .started_from = job->checkpoint ? bk_checkpoint_state(job->checkpoint)->step : -1,
        .deflate = (int)c->deflate,
        .verify_write = c->verify_write,
        .run_id = job->run_id};
    bk_arena *arena = bk_arena_new("save");
    bk_watchdog_phase(BK_PHASE_SAVE);
    bk_piece *list = BK_NEW(arena, bk_piece, 3 * job->shard->owned + job->slab->buffers);
    int64_t count = list_owned(job, arena, list);
    bk_status status = bk_saver_begin(job->saver, list, count, &job->state, &options);
    bk_arena_free(arena);
    return status;
}
