#include "jobs/best.h"

#include <math.h>
#include <string.h>

static const struct {
    const char *name;
    size_t offset;         /* in bk_evaluation */
    bool teacher, classes; /* what it needs */
} metrics[] = {
    {"accuracy", offsetof(bk_evaluation, accuracy), false, false},
    {"cross_entropy", offsetof(bk_evaluation, cross_entropy), false, false},
    {"f1", offsetof(bk_evaluation, metric[BK_METRIC_F1]), false, true},
    {"matthews", offsetof(bk_evaluation, metric[BK_METRIC_MATTHEWS]), false, true},
    {"spearman", offsetof(bk_evaluation, metric[BK_METRIC_SPEARMAN]), false, true},
    {"teacher_agreement", offsetof(bk_evaluation, teacher_agreement), true, false},
    {"teacher_kl", offsetof(bk_evaluation, teacher_kl), true, false},
};
enum { METRICS = sizeof metrics / sizeof *metrics };

static bk_status unknown(const char *text, const char *name)
{
    const char *names[METRICS + 1] = {0};
    for (int i = 0; i < METRICS; i++)
        names[i] = metrics[i].name;
    const char *near = bk_nearest(name, names);
    return bk_fail(
        BK_USAGE,
        "checkpoint.best=%s is neither none nor min: or max: and a metric%s%s%s: metrics "
        "are accuracy, cross_entropy, f1, matthews, spearman, teacher_agreement, teacher_kl",
        text, near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
}

bk_status bk_best_read(const bk_config *config, bk_best *out)
{
    const char *text = config->checkpoint.best;
    *out = (bk_best){.metric = -1, .largest = strncmp(text, "max:", 4) == 0};
    if (strcmp(text, "none") == 0)
        return BK_OK;
    bool directed = out->largest || strncmp(text, "min:", 4) == 0;
    for (int i = 0; directed && i < METRICS; i++)
        if (strcmp(text + 4, metrics[i].name) == 0)
            out->metric = i;
    if (out->metric < 0)
        return unknown(text, directed ? text + 4 : text);
    if (metrics[out->metric].teacher && !config->has_distill)
        return bk_fail(BK_USAGE,
                       "checkpoint.best=%s needs a teacher: add distill: {teacher: "
                       "RUN_DIR}, or choose another metric",
                       text);
    if (metrics[out->metric].teacher && !config->distill.evaluate)
        return bk_fail(
            BK_USAGE,
            "checkpoint.best=%s needs the teacher in evaluations: choose another metric, "
            "or distill.evaluate=true",
            text);
    return BK_OK;
}

bk_status bk_best_fits(const bk_best *best, const bk_job *job)
{
    int64_t classes = job->data.classes;
    if (best->metric < 0 || !metrics[best->metric].classes ||
        (classes > 0 && classes <= BK_METRIC_CLASSES))
        return BK_OK;
    return bk_fail(BK_USAGE,
                   "checkpoint.best=%s is for 1 to %d classes, the data set has %lld (%s): choose "
                   "another metric",
                   job->config->checkpoint.best, BK_METRIC_CLASSES, (long long)classes,
                   job->eval->path);
}

bool bk_best_improved(const bk_best *best, const bk_evaluation *e, bk_run_state *state)
{
    double value;
    if (best->metric < 0)
        return false;
    memcpy(&value, (const char *)e + metrics[best->metric].offset, sizeof value);
    bool first = isnan(state->best_value);
    bool better = best->largest ? value > state->best_value : value < state->best_value;
    if (!isfinite(value) || !(first || better))
        return false;
    state->best_value = value;
    state->best_step = state->step;
    return true;
}
