/* What a job reads: data sets, their splits, samplers; and whether a checkpoint fits them. */
#include "jobs/job.h"

#include <stdio.h>
#include <string.h>

/* ---- data sets ---- */

/* For messages: the digest of subwords, or what stands for none. */
static const char *subwords_name(const char *digest)
{
    return *digest ? digest : "none";
}

static bk_status check_alike(const bk_dataset *a, const bk_dataset *b)
{
    if (!a->tokens2 != !b->tokens2)
        return bk_fail(BK_INPUT,
                       "one of the data sets holds pairs of texts, the other does not (%s, %s): "
                       "make both alike",
                       a->path, b->path);
    if (strcmp(a->vocabulary_digest, b->vocabulary_digest) != 0)
        return bk_fail(BK_INPUT,
                       "the data sets have other subwords (%s: %.16s, %s: %.16s): make the second "
                       "with vocabulary=FIRST.h5",
                       a->path, subwords_name(a->vocabulary_digest), b->path,
                       subwords_name(b->vocabulary_digest));
    if (a->vocabulary == b->vocabulary && a->classes == b->classes && a->channels == b->channels)
        return BK_OK;
    return bk_fail(BK_INPUT,
                   "the data sets for training and evaluation differ in vocabulary (%lld, %lld), "
                   "classes (%lld, %lld) or channels (%lld, %lld) (%s, %s): make both alike",
                   (long long)a->vocabulary, (long long)b->vocabulary, (long long)a->classes,
                   (long long)b->classes, (long long)a->channels, (long long)b->channels, a->path,
                   b->path);
}

static bk_status read_sets(bk_job *job)
{
    const bk_config_data *d = &job->config->data;
    const char *eval = d->eval ? d->eval : d->train;
    if (job->purpose != BK_EVALUATE) {
        if (!job->train)
            BK_TRY(bk_dataset_read(job->arena, d->train, &job->train));
        BK_TRY(bk_dataset_split(job->train, d->split, &job->train_split));
    }
    if (job->purpose == BK_CACHE) { /* nothing is evaluated */
        job->eval = job->train;
        job->eval_split = job->train_split;
        return BK_OK;
    }
    if (job->train && !d->eval)
        job->eval = job->train;
    else
        BK_TRY(bk_dataset_read(job->arena, eval, &job->eval));
    BK_TRY(bk_dataset_split(job->eval, d->eval_split, &job->eval_split));
    return job->train ? check_alike(job->train, job->eval) : BK_OK;
}

static int64_t longest(const bk_job *job)
{
    const bk_config_data *d = &job->config->data;
    if (job->eval->classes == 0)
        return d->length;
    int64_t most = job->eval->max_length;
    if (job->train && job->train->max_length > most)
        most = job->train->max_length;
    return d->max_length > 0 && d->max_length < most ? d->max_length : most;
}

static int64_t shortest_of(const bk_dataset *d)
{
    int64_t least = d->max_length;
    for (int64_t i = 0; d->tokens && i < d->samples; i++)
        if (bk_sample_length(d, i) < least)
            least = bk_sample_length(d, i);
    return least;
}

static int64_t shortest(const bk_job *job)
{
    int64_t least = shortest_of(job->eval), other = job->train ? shortest_of(job->train) : least;
    least = other < least ? other : least;
    return least < longest(job) ? least : longest(job);
}

/* What is shown beside accuracy: the configuration's choice, else the data set's. */
static bk_status find_metric(bk_job *job)
{
    const bk_dataset *d = job->eval;
    int choice = job->config->data.metric;
    bool counted = d->classes > 0 && d->classes <= BK_METRIC_CLASSES;
    job->metric = -1;
    if (choice >= BK_SHOW_METRICS && !counted)
        return bk_fail(
            BK_USAGE, "data.metric=%s is for 1 to %d classes, the data set has %lld (%s): say auto",
            bk_metric_names[choice - BK_SHOW_METRICS], BK_METRIC_CLASSES, (long long)d->classes,
            d->path);
    if (choice >= BK_SHOW_METRICS)
        job->metric = choice - BK_SHOW_METRICS;
    if (choice != BK_SHOW_AUTO || !d->metric || !counted || strcmp(d->metric, "accuracy") == 0)
        return BK_OK;
    for (int i = 0; i < BK_METRICS; i++)
        if (strcmp(d->metric, bk_metric_names[i]) == 0)
            job->metric = i;
    return job->metric >= 0
               ? BK_OK
               : bk_fail(BK_INPUT,
                         "the data set names a metric that is not known, '%.40s' (%s): choose one "
                         "by data.metric=accuracy, f1, matthews or spearman",
                         d->metric, d->path);
}

bk_status bk_job_read_data(bk_job *job)
{
    BK_TRY(read_sets(job));
    const bk_dataset *d = job->eval;
    if (d->classes == 0 && !d->tokens)
        return bk_fail(
            BK_INPUT,
            "the data set has neither classes nor tokens (%s): make one with birkhoff data",
            d->path);
    job->data = (bk_model_data){.vocabulary = d->features ? 0 : bk_dataset_symbols(d),
                                .segments = d->tokens2 ? 2 : 0,
                                .channels = d->features ? d->channels : 0,
                                .classes = d->classes,
                                .min_length = shortest(job),
                                .max_length = longest(job)};
    return find_metric(job);
}

/* ---- samplers ---- */

int64_t bk_job_window(const bk_job *job)
{
    return job->data.classes == 0 ? job->config->data.length : 0;
}

static bk_status open_sampler(const bk_job *job, const bk_dataset *d, const bk_split *split,
                              bool shuffle, bk_sampler **out)
{
    const bk_config *c = job->config;
    bk_sampler_options o = {.batch = c->data.batch,
                            .length = bk_job_window(job),
                            .max_length = c->data.max_length,
                            .seed = (uint64_t)c->run.seed,
                            .shuffle = shuffle};
    *out = bk_sampler_new(job->arena, d, split, &o);
    if (bk_sampler_samples(*out) > 0)
        return BK_OK;
    return bk_fail(BK_INPUT, "split %s holds nothing to %s on (%s): name another with data.%s",
                   split->name, shuffle ? "train" : "evaluate", d->path,
                   shuffle ? "split" : "eval_split");
}

bk_status bk_job_open_samplers(bk_job *job)
{
    if (job->train)
        BK_TRY(open_sampler(job, job->train, job->train_split, true, &job->train_sampler));
    return open_sampler(job, job->eval, job->eval_split, false, &job->eval_sampler);
}

/* ---- does a checkpoint fit? ---- */

/* Length of one axis of a tensor; 0 when there is none of that name. */
static int64_t axis_of(const bk_checkpoint *c, const char *wanted, int axis)
{
    for (int64_t i = 0; i < bk_checkpoint_tensors(c); i++) {
        const char *name;
        bk_dtype dtype;
        int dims;
        int64_t shape[BK_MAX_DIMS];
        bk_checkpoint_tensor(c, i, &name, &dtype, &dims, shape);
        if (strcmp(name, wanted) == 0)
            return axis < dims ? shape[axis] : 0;
    }
    return 0;
}

bk_status bk_job_check_fit(const bk_job *job, const bk_checkpoint *c, const char *who)
{
    const struct {
        const char *what;
        int64_t theirs, ours;
    } row[] = {
        {"texts a sample", axis_of(c, "model/embed/segments", 0), job->data.segments},
        {"classes", axis_of(c, "model/head/b", 0), job->data.classes},
        {"vocabulary", axis_of(c, "model/embed/tokens", 0), job->data.vocabulary},
        {"channels", axis_of(c, "model/embed/features", 1), job->data.channels},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        if (row[i].theirs != row[i].ours)
            return bk_fail(BK_INPUT,
                           "the %s has %s %lld, the data set %lld (%s, %s): use one that was "
                           "trained on such data",
                           who, row[i].what, (long long)row[i].theirs, (long long)row[i].ours,
                           bk_checkpoint_path(c), job->eval->path);
    const char *theirs = bk_checkpoint_state(c)->vocabulary_digest;
    const char *ours = job->eval->vocabulary_digest;
    if (strcmp(theirs, ours) != 0)
        return bk_fail(BK_INPUT,
                       "the %s has other subwords (%.16s) than the data set (%.16s) (%s, %s): make "
                       "the data set with vocabulary=FILE.h5 of the one it was trained on",
                       who, subwords_name(theirs), subwords_name(ours), bk_checkpoint_path(c),
                       job->eval->path);
    return BK_OK;
}
