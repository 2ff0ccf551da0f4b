/* jobs/teacher.h - the teacher of a distillation, wherever it runs: on every rank (colocated), on
 * ranks of its own that send their rows (split), or once before the training, into a file (cached).
 *
 *   teacher.c        opening it, and what a step takes from it
 *   teacher_form.c   rows of logits as they are stored and sent
 *   teacher_cache.c  the file: writing it, whether it fits, reading it
 *   teacher_split.c  between the ranks of the students and those of the teacher */
#ifndef BK_JOBS_TEACHER_H
#define BK_JOBS_TEACHER_H

#include "io/teacher_file.h"
#include "jobs/job.h"

typedef struct bk_stream bk_stream;

struct bk_teacher {
    bk_placement placement; /* as it acts in this job: an evaluation has its teacher at hand */
    bk_model *model;        /* NULL on students of a split, and with a file but for evaluations */
    bk_arena *arena;        /* of its forward pass */
    bk_arena *visit;        /* of a model that is held for a while; else NULL */
    bk_checkpoint *checkpoint; /* NULL on students of a split */
    bool evaluates;            /* evaluations have its figures */
    char payload[65];          /* digest of its parameters */
    int64_t parameters;
    double flops_per_sample; /* forward */
    bk_teacher_form form;    /* of the rows that are received or read */
    bk_teacher_file *file;   /* cached; NULL in a dry run before there is one */
    bk_stream *stream;       /* split */
    double waited;           /* seconds of this step in which its rows were waited for or read */
    int64_t seen;            /* requests to stop that its ranks have seen */
    bk_status status;        /* first failure of this step */
};

/* Which batch of the training or of an evaluation, and how many there are: those that follow may be
 * asked for ahead. */
typedef struct bk_lesson {
    bool evaluation;
    int64_t batch, batches;
} bk_lesson;

/* ---- teacher.c ---- */

/* How the teacher of this configuration acts in a job of this purpose. */
bk_placement bk_teacher_placement(const bk_config *config, bk_purpose purpose);

/* Collective (agreed).  Opens and verifies the teacher that distill.teacher names, where this rank
 * needs it; nothing without.  With a file that is missing, writes it.  An evaluation goes on
 * without a teacher that is gone, with a warning. */
BK_CHECKED bk_status bk_job_open_teacher(bk_job *job);
/* Not collective.  The job gets a teacher that is at hand, on every rank; `model` is borrowed. */
void bk_job_take_teacher(bk_job *job, bk_model *model);
void bk_teacher_close(bk_teacher *t); /* Not collective.  NULL is fine. */

/* Collective with MoE.  Logits [R,V] of the bundle's rows for `lanes`, on t->arena until the next
 * call. */
const bk_tensor *bk_teacher_forward(bk_job *job, const bk_lanes *lanes, const bk_bundle *bundle);

/* Fills what the teacher says of the bundle's rows (those of the tape's lanes): "teacher.logits",
 * or "teacher.index", "teacher.value" and "teacher.lse".  A teacher in a file has nothing to say in
 * an evaluation.  Collective with MoE; with a split over the students.  A failure is in t->status.
 */
void bk_job_teach(bk_job *job, bk_lesson lesson, bk_bundle *bundle);
/* The largest logits of a bundle, on the tape's arena; NULL: it has whole rows, or none. */
const bk_teacher_top *bk_job_teacher_top(const bk_job *job, const bk_bundle *bundle);

/* Collective.  Around an evaluation: the model of a teacher whose rows are in a file comes for its
 * time alone.  Whether there is a teacher in it; one that is gone is a warning. */
bool bk_teacher_enter_evaluation(bk_job *job);
void bk_teacher_leave_evaluation(bk_job *job);
/* Whether evaluations have the teacher's figures; NULL: no. */
bool bk_teacher_evaluates(const bk_teacher *t);

/* ---- teacher_form.c ---- */

/* Not collective.  The form that distill.cache_form asks for, or that suits the losses (`suits`):
 * top-k where they all have one top_k and no option that needs all logits, else dense.  BK_USAGE.
 */
BK_CHECKED bk_status bk_teacher_form_choose(const bk_config *config, int64_t vocabulary, bool suits,
                                            bool bf16, bk_teacher_form *out);
/* BK_INPUT when a loss needs what rows of this form, of the file at `path`, do not hold. */
BK_CHECKED bk_status bk_teacher_form_serves(const bk_config *config, const bk_teacher_form *form,
                                            const char *path);
/* rows[0..count) of a form from logits[count,V]. */
void bk_teacher_encode(const bk_teacher_form *form, int64_t count, const float *logits,
                       bk_teacher_rows rows);
/* The rows as tensors of the bundle; `rows` is borrowed until the end of the step. */
void bk_teacher_hand(bk_arena *arena, const bk_teacher_form *form, int64_t count,
                     bk_teacher_rows rows, bk_bundle *bundle);

/* ---- teacher_cache.c ---- */

/* Bytes of a file that a rank holds in memory at most; rows of a larger one are read as they are
 * needed.  Tests set it. */
extern size_t bk_teacher_keep;

/* The file that is to be written for data.split: all but `file` and `kept`, on the run arena. */
BK_CHECKED bk_status bk_teacher_cache_plan(const bk_job *job, const char *path,
                                           bk_teacher_file *out);
int64_t bk_teacher_cache_bytes(const bk_teacher_file *f);
/* Collective (agreed).  Runs the teacher once over data.split and writes the file, with progress.
 * BK_STOPPED on request; then, and on failure, nothing is left of it. */
BK_CHECKED bk_status bk_teacher_cache_write(bk_job *job, const char *path);
/* Not collective.  Opens distill.cache; BK_INPUT when it is of another teacher, data set or form
 * than the configuration's. */
BK_CHECKED bk_status bk_teacher_cache_open(bk_job *job);
/* Not collective.  The rows of the tape's lanes in batch `batch` of the training. */
void bk_teacher_cache_teach(bk_job *job, int64_t batch, bk_bundle *bundle);

/* ---- teacher_split.c ---- */

/* Not collective, on the ranks of both sides, when all is open.  The same status on all. */
BK_CHECKED bk_status bk_teacher_split_open(bk_job *job);
/* Not collective.  Bytes of the rows of the first batch, for all students. */
int64_t bk_teacher_split_bytes(const bk_job *job);
/* Collective over the students.  Asks for the rows of the lesson and of two batches behind it, and
 * waits for the first. */
void bk_teacher_split_teach(bk_job *job, bk_lesson lesson, bk_bundle *bundle);
/* Not collective.  Lets the teacher's ranks go: no more is asked.  Twice is fine. */
void bk_teacher_split_release(bk_job *job);
/* Collective over the ranks of the teacher: sends rows until they are let go. */
void bk_teacher_serve(bk_job *job);

#endif
