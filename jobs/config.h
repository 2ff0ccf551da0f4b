/* jobs/config.h - the whole configuration of a run: every section, read, checked and written back.
 *
 * The `model:` section belongs to models/config.c; here it stays a tree until the data is known. */
#ifndef BK_JOBS_CONFIG_H
#define BK_JOBS_CONFIG_H

#include "core/optim.h"
#include "core/schedule.h"
#include "losses/loss.h"

#include <stdio.h>

typedef struct bk_config_run {
    const char *dir;
    int64_t seed, steps;
    int precision, resume; /* BK_PRECISION_*; BK_RESUME_* */
    double time_limit, stop_margin, stall_seconds;
} bk_config_run;

typedef struct bk_config_data {
    const char *train, *eval, *split, *eval_split;
    int64_t batch, length, max_length;
    int metric; /* BK_SHOW_* */
} bk_config_data;

typedef struct bk_config_distill {
    const char *teacher, *cache;
    int placement; /* bk_placement */
    int64_t teacher_ranks;
    bool evaluate;
    int cache_form;  /* BK_FORM_* */
    int cache_dtype; /* BK_PRECISION_* */
} bk_config_distill;

/* Where a teacher runs: on every rank, on ranks of its own, or once, into a file. */
typedef enum bk_placement { BK_COLOCATED, BK_SPLIT, BK_CACHED } bk_placement;
enum { BK_FORM_AUTO, BK_FORM_DENSE, BK_FORM_TOP_K };

typedef struct bk_config_loss {
    const char *kind_name;
    double weight;
    const char *name; /* of the term in metrics: "kl", and "kl.2" for a second one at place 2 */
    const bk_loss_kind *kind;
    void *config;
} bk_config_loss;

typedef struct bk_config_optim {
    const char *kind_name;
    double lr, weight_decay, clip;
    int64_t skip_nonfinite;
    double spike_zscore;
    const bk_optimizer_kind *kind;
    void *config;
} bk_config_optim;

typedef struct bk_config_schedule {
    const char *kind_name;
    int64_t warmup;
    double floor;
    const bk_schedule_kind *kind;
    void *config;
} bk_config_schedule;

typedef struct bk_config_parallel {
    int64_t expert, lanes, threads, zero;
    double bucket_mb;
    bool overlap, walk;
} bk_config_parallel;

/* data.metric; from BK_SHOW_METRICS on the metrics of jobs/metric.h in their order */
enum { BK_SHOW_AUTO, BK_SHOW_ACCURACY, BK_SHOW_METRICS };

/* checkpoint.async_busy */
enum { BK_BUSY_SKIP, BK_BUSY_WAIT };

typedef struct bk_config_checkpoint {
    int64_t every, keep, keep_every, writers, failures, deflate;
    double minutes, max_overhead, mtbf_hours;
    int async_busy, verify; /* BK_BUSY_*; bk_checkpoint_check */
    const char *best;
    bool async, strict, partial, verify_write;
} bk_config_checkpoint;

typedef struct bk_config_log {
    int64_t interval, eval_interval, eval_batches, probe;
    bool tensorboard;
} bk_config_log;

enum { BK_RESUME_AUTO, BK_RESUME_FRESH };
enum { BK_PRECISION_FP32, BK_PRECISION_BF16 };
enum { BK_LOSSES_MAX = 16 };

typedef struct bk_config {
    bk_arena *arena;
    bk_value *root; /* its section `model` is for bk_model_new; absent: defaults */
    bk_config_run run;
    bk_config_data data;
    bool has_distill;
    bk_config_distill distill;
    bk_config_loss loss[BK_LOSSES_MAX];
    int losses;
    bk_config_optim optim;
    bk_config_schedule schedule;
    bk_config_parallel parallel;
    bk_config_checkpoint checkpoint;
    bk_config_log log;
} bk_config;

/* Every section but `model` (bk_model_sections), in the order of the file. */
extern const bk_section bk_config_sections[];

/* Reads `root` (file plus overrides).  Paths from a file are relative to that file, paths from the
 * command line to the current directory.  BK_USAGE with file, line, key and what to do. */
BK_CHECKED bk_status bk_config_read(bk_arena *arena, bk_value *root, bk_config **out);

/* Not collective.  checkpoint.verify alone (a bk_checkpoint_check), for a tree that may lack all
 * the rest.  BK_USAGE as above. */
BK_CHECKED bk_status bk_config_read_verify(bk_arena *arena, bk_value *root, int *out);

/* The resolved configuration as YAML, defaults included: reading it gives the same run.  `model`
 * writes its section. */
void bk_config_write(const bk_config *c,
                     void (*write_model)(const void *model, int indent, void *file),
                     const void *model, FILE *file);

#endif
