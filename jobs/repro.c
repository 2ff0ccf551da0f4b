#include "jobs/repro.h"

#include "core/log.h"
#include "io/files.h"
#include "jobs/json.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { KEPT = 8 };

static void write_terms(bk_json *j, const bk_job *job, const bk_step_result *r)
{
    bk_json_open(j, "loss");
    bk_json_number(j, "sum", r->loss);
    for (int i = 0; i < job->config->losses; i++)
        bk_json_number(j, job->config->loss[i].name, r->term[i]);
    bk_json_close(j);
}

static void write_content(bk_json *j, const bk_job *job, const bk_step_result *r,
                          int64_t checkpoint)
{
    const bk_run_state *s = &job->state;
    int64_t batch = job->lanes.batch, *samples = BK_NEW(job->tape.arena, int64_t, batch);
    bk_sampler_indices(job->train_sampler, s->step, samples);
    bk_json_open(j, NULL);
    bk_json_integer(j, "step", s->step + 1);
    bk_json_integer(j, "checkpoint", checkpoint);
    bk_json_integer(j, "seed", (int64_t)s->seed);
    bk_json_integer(j, "ranks", job->world->size);
    bk_json_integer(j, "lanes", job->lanes.total);
    bk_json_integer(j, "nonfinite", r->nonfinite);
    bk_json_number(j, "grad_norm", r->grad_norm);
    write_terms(j, job, r);
    bk_json_text(j, "data", s->data_path);
    bk_json_text(j, "data_digest", s->data_digest);
    bk_json_integer(j, "cursor", s->cursor);
    bk_json_integers(j, "samples", batch, samples);
    bk_json_text(j, "config", job->resolved);
    bk_json_close(j);
    bk_json_end(j);
}

/* "step-00000500.json"; -1: another name. */
static int64_t step_of(const char *name)
{
    char *end;
    if (strncmp(name, "step-", 5) != 0 || !isdigit((unsigned char)name[5]))
        return -1;
    long long step = strtoll(name + 5, &end, 10);
    return strcmp(end, ".json") == 0 ? step : -1;
}

/* Whether the report of step a goes before that of step b: first those of steps that are yet to
 * come, which are of a run that was set back, then the oldest.  The present one is the last. */
static bool goes_before(int64_t a, int64_t b, int64_t present)
{
    return (a > present) != (b > present) ? a > present : a < b;
}

/* A run may leave out any number of steps. */
static void remove_some(const bk_job *job, const char *directory)
{
    int64_t present = job->state.step + 1;
    char **names = bk_list_directory(job->tape.arena, directory);
    int count = 0;
    for (int i = 0; names[i]; i++)
        count += step_of(names[i]) >= 0;
    for (; count > KEPT; count--) {
        int first = -1;
        for (int i = 0; names[i]; i++)
            if (step_of(names[i]) >= 0 &&
                (first < 0 || goes_before(step_of(names[i]), step_of(names[first]), present)))
                first = i;
        unlink(bk_arena_printf(job->tape.arena, "%s/%s", directory, names[first]));
        names[first] = "";
    }
}

void bk_repro_write(const bk_job *job, const bk_step_result *r, int64_t checkpoint)
{
    if (job->world->rank != 0)
        return;
    const char *directory = bk_arena_printf(job->tape.arena, "%s/repro", job->config->run.dir);
    const char *path = bk_arena_printf(job->tape.arena, "%s/step-%08lld.json", directory,
                                       (long long)job->state.step + 1);
    bk_json j = {0};
    if (bk_make_directories(directory) != BK_OK || !(j.file = fopen(path, "w"))) {
        bk_warn("what led to the step cannot be written (%s): %s", path, strerror(errno));
        return;
    }
    write_content(&j, job, r, checkpoint);
    if (fclose(j.file) != 0)
        bk_warn("what led to the step cannot be written (%s): %s", path, strerror(errno));
    remove_some(job, directory);
}
