/* A new mixture of experts from the checkpoint of a dense model. */
#include "models/upcycle.h"
#include "jobs/job.h"

#include <string.h>

/* Everything of the model but the layers with experts: the dense one has it too. */
static int64_t list_common(const bk_slab *slab, bk_piece *list)
{
    int64_t count = 0;
    for (int i = 0; i < slab->parameters; i++) {
        const bk_parameter *p = slab->parameter[i];
        if (strncmp(p->name, "model/", 6) != 0 || bk_parameter_is_of_experts(p))
            continue;
        list[count] = (bk_piece){.name = p->name,
                                 .dtype = BK_F32,
                                 .dims = p->global_dims,
                                 .count = p->count,
                                 .data = bk_parameter_value(slab, p)};
        memcpy(list[count++].global_shape, p->global_shape, sizeof p->global_shape);
    }
    return count;
}

static int64_t list_dense(bk_arena *arena, const bk_model *model, int layer, bk_piece *list)
{
    bk_dense_tensor tensor[BK_DENSE_TENSORS];
    bk_model_dense_tensors(model, layer, tensor);
    for (int i = 0; i < BK_DENSE_TENSORS; i++) {
        int64_t count = tensor[i].shape[0] * (tensor[i].dims == 2 ? tensor[i].shape[1] : 1);
        list[i] = (bk_piece){.name = tensor[i].name,
                             .dtype = BK_F32,
                             .dims = tensor[i].dims,
                             .global_shape = {tensor[i].shape[0], tensor[i].shape[1]},
                             .count = count,
                             .data = BK_NEW(arena, float, count)};
    }
    return BK_DENSE_TENSORS;
}

static bk_status fill(bk_job *job, bk_arena *arena)
{
    int layers = bk_model_moe_layers(job->model);
    bk_piece *list = BK_NEW(arena, bk_piece, job->slab->parameters + layers * BK_DENSE_TENSORS);
    int64_t common = list_common(job->slab, list), count = common;
    for (int i = 0; i < layers; i++)
        count += list_dense(arena, job->model, i, list + count);
    BK_TRY(bk_checkpoint_read(job->world->checkpoint, job->dense, list, count, "model/"));
    for (int i = 0; i < layers; i++) {
        const bk_piece *from = list + common + i * BK_DENSE_TENSORS;
        const float *dense[BK_DENSE_TENSORS];
        for (int k = 0; k < BK_DENSE_TENSORS; k++)
            dense[k] = from[k].data;
        bk_model_upcycle(job->model, i, dense);
    }
    return BK_OK;
}

bk_status bk_job_upcycle(bk_job *job)
{
    const char *from = bk_model_upcycle_from(job->model);
    bool begins = job->purpose == BK_TRAIN || job->purpose == BK_DRY_RUN;
    if (!from || !begins || job->checkpoint)
        return BK_OK;
    BK_TRY(bk_checkpoint_open(job->world->checkpoint, job->arena, from,
                              (bk_checkpoint_check)job->config->checkpoint.verify, &job->dense));
    bk_slab_initialise(job->slab, (uint64_t)job->config->run.seed);
    bk_arena *arena = bk_arena_new("upcycle");
    bk_status status = fill(job, arena);
    bk_arena_free(arena);
    return status;
}
