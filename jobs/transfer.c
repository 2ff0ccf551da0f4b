#include "jobs/transfer.h"

#include "jobs/teacher.h"
#include "losses/layers.h"

#include <math.h>

/* One loss. */
typedef struct term {
    bk_layer_plan plan; /* no pairs: it looks at logits */
    bool matrices;
    bk_parameter *weight[BK_LOSS_PAIRS]; /* NULL: no map */
} term;

struct bk_transfer {
    term term[BK_LOSSES_MAX];
    bk_inside student, teacher;
    bool matrices; /* some loss asks for them */
    int maps;      /* declared so far */
};

/* ---- planning ---- */

static bk_layer_shape shape_of(const bk_model *model)
{
    bk_model_shape s = bk_model_shape_of(model);
    return (bk_layer_shape){s.layers, s.width, s.heads, s.front};
}

static bk_status check_matrix(const bk_model *model, const char *who, int layer)
{
    const char *kind = bk_model_without_matrix(model, layer - 1);
    if (!kind)
        return BK_OK;
    return bk_fail(BK_USAGE,
                   "loss attention compares matrices, and layer %d of the %s makes none "
                   "(attention %s): leave it out of layers",
                   layer, who, kind);
}

/* Drawn as linear maps of encoders are (Glorot and Bengio 2010). */
static bk_parameter *declare_map(bk_job *job, int64_t out, int64_t in)
{
    return bk_slab_declare(job->slab,
                           &(bk_parameter){.name = bk_arena_printf(job->arena, "distill/hidden%d/w",
                                                                   job->transfer->maps++),
                                           .shape = {out, in},
                                           .dims = 2,
                                           .expert = -1,
                                           .decay = true,
                                           .init = BK_INIT_UNIFORM,
                                           .init_scale = sqrt(6.0 / (double)(in + out))});
}

static bk_status plan_term(bk_job *job, const bk_config_loss *loss, term *k)
{
    bk_layer_shape ours = shape_of(job->model), theirs = shape_of(job->teacher->model);
    bk_transfer *all = job->transfer;
    BK_TRY(loss->kind->plan(loss->config, &ours, &theirs, &k->plan));
    k->matrices = (loss->kind->flags & BK_LOSS_MATRICES) != 0;
    all->matrices = all->matrices || k->matrices;
    if (k->matrices && bk_model_shape_of(job->model).recomputes)
        return bk_fail(BK_USAGE, "loss attention needs the matrices of the student in backward: "
                                 "model.recompute=none keeps them");
    for (int i = 0; i < k->plan.pairs; i++) {
        int s = k->plan.student[i], t = k->plan.teacher[i];
        if (s >= BK_BUNDLE_LAYERS || t >= BK_BUNDLE_LAYERS)
            return bk_fail(BK_USAGE, "loss %s sees layers 0 to %d, not %d: leave it out of layers",
                           loss->kind->name, BK_BUNDLE_LAYERS - 1, s > t ? s : t);
        if (k->matrices) {
            BK_TRY(check_matrix(job->model, "student", s));
            BK_TRY(check_matrix(job->teacher->model, "teacher", t));
        }
        (k->matrices ? all->student.want_matrix : all->student.want_hidden)[s] = true;
        (k->matrices ? all->teacher.want_matrix : all->teacher.want_hidden)[t] = true;
        k->weight[i] = k->plan.project ? declare_map(job, theirs.width, ours.width) : NULL;
    }
    return BK_OK;
}

bk_status bk_transfer_plan(bk_job *job)
{
    const bk_config *c = job->config;
    if (job->purpose == BK_EVALUATE)
        return BK_OK;
    for (int i = 0; i < c->losses; i++) {
        if (!(c->loss[i].kind->flags & BK_LOSS_LAYERS))
            continue;
        if (!job->transfer)
            job->transfer = BK_ZNEW(job->arena, bk_transfer, 1);
        BK_TRY(plan_term(job, &c->loss[i], &job->transfer->term[i]));
    }
    return BK_OK;
}

/* ---- in a step ---- */

bk_inside *bk_transfer_student(const bk_job *job)
{
    return job->transfer ? &job->transfer->student : NULL;
}

bk_inside *bk_transfer_teacher(const bk_job *job)
{
    return job->transfer ? &job->transfer->teacher : NULL;
}

bool bk_transfer_wants_matrices(const bk_job *job)
{
    return job->transfer && job->transfer->matrices;
}

const bk_loss_layers *bk_transfer_layers(bk_job *job, int place)
{
    const term *k = job->transfer ? &job->transfer->term[place] : NULL;
    if (!k || k->plan.pairs == 0)
        return NULL;
    const bk_inside *ours = &job->transfer->student, *theirs = &job->transfer->teacher;
    bk_loss_layers *out = BK_ZNEW(job->tape.arena, bk_loss_layers, 1);
    *out =
        (bk_loss_layers){.pairs = k->plan.pairs, .mask = ours->mask, .positions = ours->positions};
    for (int i = 0; i < k->plan.pairs; i++) {
        int s = k->plan.student[i], t = k->plan.teacher[i];
        out->student[i] = k->matrices ? ours->matrix[s] : ours->hidden[s];
        out->teacher[i] = k->matrices ? theirs->matrix[t] : theirs->hidden[t];
        out->weight[i] = k->weight[i] ? bk_tape_parameter(&job->tape, k->weight[i]) : NULL;
    }
    return out;
}
