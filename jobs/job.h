/* jobs/job.h - everything that a training or an evaluation holds: data, model, teacher, optimizer
 * state, lanes. */
#ifndef BK_JOBS_JOB_H
#define BK_JOBS_JOB_H

#include "core/blas.h"
#include "dist/shard.h"
#include "io/checkpoint.h"
#include "io/dataset.h"
#include "io/metrics.h"
#include "io/sampler.h"
#include "jobs/config.h"
#include "models/model.h"

typedef struct bk_job {
    bk_arena *arena; /* run arena */
    bk_config *config;
    bk_world *world;
    bk_dataset *train, *eval;
    const bk_split *train_split, *eval_split;
    bk_sampler *train_sampler, *eval_sampler;
    bk_model_data data;
    bk_model *model, *teacher; /* teacher: NULL without */
    bk_slab *slab;
    bk_lanes lanes;
    bk_reduction *reduction;
    bk_shard *shard;
    bk_tape tape;
    bk_arena *teacher_arena;
    bk_checkpoint *checkpoint; /* resumed from; NULL: fresh */
    bk_run_state state;
    char run_id[17];
    const char *resolved;    /* the resolved configuration, YAML */
    const char *machine;     /* "key: value" lines */
    const char *checkpoints; /* RUN/checkpoints */
} bk_job;

/* ---- setup.c ---- */

/* Collective.  From a configuration to a job that can step: opens the world, data sets, checkpoint,
 * model, teacher. All ranks leave with the same status.  `training`: also the reduction and the
 * optimizer state. */
BK_CHECKED bk_status bk_job_open(bk_arena *arena, bk_config *config, bool training, bk_job **out);
/* Collective.  The same without optimizer state, for a checkpoint directory (NULL: the newest of
 * run.dir). */
BK_CHECKED bk_status bk_job_open_for_evaluation(bk_arena *arena, bk_config *config,
                                                const char *checkpoint, bk_job **out);
/* Collective.  For measuring steps: random weights whatever checkpoints there are, products by
 * `gemm`, and `data` (borrowed) instead of the configured data sets unless it is NULL. */
BK_CHECKED bk_status bk_job_open_for_bench(bk_arena *arena, bk_config *config, bk_dataset *data,
                                           bk_gemm_library gemm, bk_job **out);
void bk_job_close(bk_job *job); /* Collective. */

/* Collective.  Checks that the run directory can be written, takes the lock, writes config.yaml. */
BK_CHECKED bk_status bk_job_claim_directory(bk_job *job);

/* ---- state.c: between the job and its checkpoints ---- */

/* Collective.  The parameters and buffers of a slab from a checkpoint. */
BK_CHECKED bk_status bk_job_load_model(const bk_world *world, bk_arena *arena,
                                       const bk_checkpoint *c, bk_slab *slab);
/* Collective.  Everything: parameters, buffers, moments, state. */
BK_CHECKED bk_status bk_job_resume(bk_job *job);
/* Collective.  Commits a checkpoint of the present state. */
BK_CHECKED bk_status bk_job_save(bk_job *job, bk_saved *saved);
/* Collective.  Resolves data.lanes = 0 and compares the keys that may not change with those of the
 * checkpoint. */
BK_CHECKED bk_status bk_job_check_resume(bk_job *job);

/* ---- step.c ---- */

typedef struct bk_step_result {
    bk_status status; /* BK_OK, BK_NONFINITE when the step was not applied, or the agreed failure */
    double loss;      /* weighted sum of all terms, auxiliary ones too */
    double term[BK_LOSSES_MAX]; /* unweighted, in the order of the configuration */
    double aux, z;              /* means over the MoE layers, unweighted */
    double grad_norm, lr;
    int64_t positions; /* real positions of the global batch */
    int64_t nonfinite;
    bool stop_signal, stop_time;
} bk_step_result;

/* Collective.  One training step: batch, teacher, forward, losses, backward, reduction, agreement,
 * update. `time_is_near`: this rank's clock says that the time limit is. */
bk_step_result bk_job_step(bk_job *job, bool time_is_near);

/* ---- evaluate.c ---- */

typedef struct bk_evaluation {
    int64_t rows, correct;
    double cross_entropy; /* mean over rows, nats */
    double accuracy;
    double teacher_agreement, teacher_kl; /* with a teacher, else NaN */
    double seconds;
} bk_evaluation;

/* Collective.  Exact over the first `batches` batches of the split (0: all), the same for any
 * number of ranks. */
bk_evaluation bk_job_evaluate(bk_job *job, const bk_sampler *sampler, int64_t batches);

/* Fills "teacher.logits" of the bundle on the tape's arena.  Collective with MoE. */
void bk_job_teach(bk_job *job, bk_bundle *bundle);

#endif
