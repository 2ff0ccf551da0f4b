#include "jobs/probe.h"

#include "core/log.h"
#include "models/probe.h"

#include <math.h>

/* A batch of its own, so that no more matrices stand in memory than are asked for. */
static int64_t draw_batch(bk_job *job, bk_lanes *lanes, bk_bundle *bundle)
{
    const bk_config *c = job->config;
    int64_t there = bk_sampler_samples(job->eval_sampler), samples = c->log.probe;
    samples = samples < there ? samples : there;
    *lanes = job->lanes;
    lanes->batch = (samples + lanes->total - 1) / lanes->total * lanes->total;
    bk_sampler_options o = {
        .batch = lanes->batch, .length = bk_job_window(job), .max_length = c->data.max_length};
    const bk_sampler *sampler = bk_sampler_new(job->tape.arena, job->eval, job->eval_split, &o);
    bk_sampler_batch(sampler, 0, lanes, job->tape.arena, bundle);
    return samples;
}

static void write_layer(bk_metrics *m, const bk_probe_figures *f)
{
    bk_metrics_next_item(m);
    bk_metrics_integer(m, "layer", f->layer);
    bk_metrics_number(m, "birkhoff_distance", f->distance);
    bk_metrics_number(m, "entropy", f->entropy);
    bk_metrics_number(m, "row_error", f->row_error);
    bk_metrics_number(m, "column_error", f->column_error);
    bk_metrics_number(m, "effective_rank", f->rank);
    bk_metrics_number(m, "product_rank", f->product_rank);
    bk_metrics_numbers(m, "eigenvalues", f->eigenvalues, f->eigenvalue);
}

static void write_layers(bk_metrics *m, const bk_probe_figures *f, int layers)
{
    bk_metrics_open_list(m, "probe");
    for (int i = 0; i < layers; i++)
        write_layer(m, &f[i]);
    bk_metrics_close_list(m);
}

/* All samples, unless a request to stop comes in between. */
static bk_stop look(const bk_job *job, bk_probe *p, double start, double *longest)
{
    bk_stop stop = BK_GO_ON;
    for (bool more = true; more && stop == BK_GO_ON;) {
        more = bk_probe_next(p);
        stop = more ? bk_job_stop_asked(job) : BK_GO_ON;
        *longest = fmax(*longest, bk_seconds() - start);
        start = bk_seconds();
    }
    return stop;
}

bk_stop bk_job_probe(bk_job *job, bk_metrics *m, double *longest)
{
    double start = bk_seconds();
    bk_tape *t = &job->tape;
    bk_bundle bundle = {0};
    if (job->config->log.probe == 0)
        return BK_GO_ON;
    bk_tape_begin(t);
    int64_t samples = draw_batch(job, &t->lanes, &bundle);
    bk_probe_figures *f = BK_NEW(t->arena, bk_probe_figures, bk_model_layers(job->model));
    bk_probe *p = bk_probe_begin(job->model, t, &bundle, samples);
    bk_stop stop = look(job, p, start, longest);
    if (stop == BK_GO_ON)
        write_layers(m, f, bk_probe_end(p, f));
    t->lanes = job->lanes;
    return stop;
}
