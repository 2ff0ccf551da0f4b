/* jobs/job.h - everything that a training or an evaluation holds: data, model, teacher, optimizer
 * state, lanes. */
#ifndef BK_JOBS_JOB_H
#define BK_JOBS_JOB_H

#include "core/attributes.h"
#include "dist/shard.h"
#include "dist/traffic.h"
#include "io/checkpoint.h"
#include "io/dataset.h"
#include "io/metrics.h"
#include "io/sampler.h"
#include "jobs/config.h"
#include "jobs/metric.h"
#include "models/model.h"

/* A dry run opens everything that a training does and writes nothing; a measurement does so from
 * random weights, whatever checkpoints there are; an evaluation has no gradients, no optimizer
 * state and only the data set to evaluate on; a cache is made of a teacher alone. */
typedef enum bk_purpose { BK_TRAIN, BK_DRY_RUN, BK_MEASURE, BK_EVALUATE, BK_CACHE } bk_purpose;

/* What the caller has at hand already; NULL: what the configuration names. */
typedef struct bk_given {
    bk_checkpoint *checkpoint; /* else the newest valid one of run.dir */
    bk_dataset *data;          /* to train and evaluate on */
} bk_given;

/* Why a job is asked to stop. */
typedef enum bk_stop { BK_GO_ON, BK_STOP_TIME, BK_STOP_SIGNAL } bk_stop;

typedef struct bk_transfer bk_transfer; /* jobs/transfer.h */
typedef struct bk_teacher bk_teacher;   /* jobs/teacher.h */

typedef struct bk_job {
    bk_arena *arena; /* run arena */
    bk_purpose purpose;
    bk_config *config;
    bk_world *world; /* of the students or of the teacher, where it has ranks of its own */
    bool teaches;    /* this is one of those: there is no student, no state and no run directory */
    bk_dataset *train, *eval;                 /* train: NULL for an evaluation */
    const bk_split *train_split, *eval_split; /* the same */
    bk_sampler *train_sampler, *eval_sampler; /* the same */
    bk_model_data data;
    int metric; /* shown beside accuracy: BK_METRIC_*; -1: none */
    bk_model *model;
    bk_teacher *teacher; /* NULL without */
    bk_slab *slab;
    bk_lanes lanes;
    bk_reduction *reduction;
    bk_shard *shard;
    bk_tape tape;
    double *records; /* [m,terms] of the last step, one row for each own lane */
    bk_arena *walk;  /* gradients of lanes that wait for others (parallel.walk) */
    bk_attributes figures[BK_LOSSES_MAX]; /* of the losses, in a step whose line is due */
    bk_transfer *transfer;                /* losses between layers; NULL: none */
    bk_checkpoint *checkpoint;            /* resumed from; NULL: fresh */
    bk_checkpoint *dense;                 /* upcycled from; NULL: not */
    bk_run_state state;
    char run_id[17];
    const char *resolved;      /* the resolved configuration, YAML */
    const char *machine;       /* "key: value" lines */
    const char *checkpoints;   /* RUN/checkpoints */
    bk_saver *saver;           /* of a training */
    bool locked;               /* this job holds RUN/run.lock (rank 0) */
    double started, stop_at;   /* bk_seconds(): the clock began; time to stop, INFINITY without */
    double save_at, save_from; /* bk_seconds() on rank 0: time for a checkpoint, INFINITY without;
                                  before the second none is cheap enough */
} bk_job;

/* ---- setup.c ---- */

/* Collective.  From a configuration to a job that can step or evaluate: opens the world, data sets,
 * checkpoint, model, teacher.  All ranks leave with the same status.  What is `given` is borrowed.
 * An evaluation adapts expert degree, lanes and batch to the ranks there are: its counts do not
 * depend on them. */
BK_CHECKED bk_status bk_job_open(bk_arena *arena, bk_config *config, bk_purpose purpose,
                                 bk_given given, bk_job **out);
void bk_job_close(bk_job *job); /* Collective. */

/* Collective over all ranks of the job, before it is closed.  The end of what students and teacher
 * do, where those are on different ranks: all leave with the same status. */
BK_CHECKED bk_status bk_job_meet(bk_job *job, bk_status status);

/* Collective.  Checks that the run directory can be written, takes the lock, writes config.yaml. */
BK_CHECKED bk_status bk_job_claim_directory(bk_job *job);

/* ---- inputs.c: data sets and samplers ---- */

/* Not collective: every rank reads the files for itself; the caller agrees.  Fills data sets,
 * splits, job->data and job->metric. */
BK_CHECKED bk_status bk_job_read_data(bk_job *job);
/* Tokens of a language model's window that predict the next one; 0: rows are whole samples. */
int64_t bk_job_window(const bk_job *job);
/* Samplers over the splits; BK_INPUT when there is nothing to train or evaluate on. */
BK_CHECKED bk_status bk_job_open_samplers(bk_job *job);
/* BK_INPUT when a model of this checkpoint reads other tokens, features or classes than the data
 * set has.  `who` stands in the message ("teacher"). */
BK_CHECKED bk_status bk_job_check_fit(const bk_job *job, const bk_checkpoint *c, const char *who);

/* ---- state.c: between the job and its checkpoints ---- */

/* Collective.  The parameters and buffers of a slab from a checkpoint. */
BK_CHECKED bk_status bk_job_load_model(const bk_world *world, bk_arena *arena,
                                       const bk_checkpoint *c, bk_slab *slab);
/* Collective.  Everything: parameters, buffers, moments, state. */
BK_CHECKED bk_status bk_job_resume(bk_job *job);
/* Collective.  Begins a checkpoint of the present state (io/checkpoint.h, bk_saver_begin). */
BK_CHECKED bk_status bk_job_save(bk_job *job);

/* ---- upcycle.c ---- */

/* Collective (agreed).  A new training whose model.moe.upcycle names a dense model: initialises and
 * fills the slab from that one's checkpoint.  BK_INPUT when it does not fit.  Nothing without. */
BK_CHECKED bk_status bk_job_upcycle(bk_job *job);

/* ---- resume.c ---- */

/* Collective (agreed).  Compares the configuration with the checkpoint's, key by key: BK_USAGE with
 * both values for one that may not change, a warning for one that changes the training. */
BK_CHECKED bk_status bk_job_check_resume(const bk_job *job);

/* ---- step.c ---- */

typedef struct bk_step_result {
    bk_status status; /* BK_OK, BK_NONFINITE when the step was not applied, or the agreed failure */
    double loss;      /* weighted sum of all terms, auxiliary ones too */
    double term[BK_LOSSES_MAX]; /* unweighted, in the order of the configuration */
    double aux, z;              /* means over the MoE layers, unweighted */
    bool clamps;                /* some attention clamps, and so often it did (attention.qr) */
    double clamped;
    bool tails;  /* some loss sees the likeliest classes of the teacher alone */
    double tail; /* the teacher's probability outside them, mean over rows; the largest of the
                    losses */
    double grad_norm, lr;
    int64_t positions; /* real positions of the global batch */
    int64_t nonfinite;
    double teacher_wait; /* seconds in which this rank waited for the teacher's rows or read them */
    bool spike;        /* the step was not applied: its gradient was far larger than those before */
    bk_stop stop;      /* the same on all ranks, like the next three */
    bool saver_waits;  /* no rank's part of the save under way is unfinished */
    bool save_is_due;  /* by rank 0's clock */
    bool save_is_dear; /* the last one was too long ago for checkpoint.max_overhead */
    bk_traffic sent[BK_TRAFFIC_PARTS]; /* by this rank; an all-gather of parameters beside the next
                                          forward pass counts there */
} bk_step_result;

/* Collective.  One training step: batch, teacher, forward, losses, backward, reduction, agreement,
 * update. */
bk_step_result bk_job_step(bk_job *job);
/* Whether metrics.jsonl gets a line after this step, or a dry run prints one, with the figures of
 * the losses. */
bool bk_job_line_due(const bk_job *job, int64_t step);
/* Not collective.  Steps whose update was applied. */
int64_t bk_job_updates(const bk_run_state *s);
/* Counts the step that is done, applied or skipped. */
void bk_job_advance(bk_job *job, int64_t positions);

/* ---- evaluate.c ---- */

/* Collective.  Whether to stop now: the strongest reason of any rank. */
bk_stop bk_job_stop_asked(const bk_job *job);

typedef struct bk_evaluation {
    bk_status status; /* not BK_OK, agreed: there are no figures */
    int64_t rows, correct;
    double cross_entropy; /* mean over rows, nats */
    double accuracy;
    double metric[BK_METRICS]; /* of a classifier of at most BK_METRIC_CLASSES, else NaN */
    double teacher_agreement, teacher_kl; /* with a teacher, else NaN */
    double seconds;
    bk_stop stop; /* a request to stop came in between: the figures are of a part only */
} bk_evaluation;

/* Collective.  Exact over the first `batches` batches of the evaluation split (0: all), the same
 * for any number of ranks.  Looks for requests to stop after each batch. */
bk_evaluation bk_job_evaluate(bk_job *job, int64_t batches);

#endif
