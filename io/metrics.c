#include "io/metrics.h"

#include "io/files.h"
#include "io/tensorboard.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct bk_metrics {
    FILE *file;
    const char *path;
    bk_tensorboard *tensorboard;
    int64_t step;
    char split[64];
    json_t *line, *list, *item; /* list, item: while a list is open */
};

/* ---- one story after a resume ---- */

/* A whole line of a step that the run has left behind. */
static bool keeps(const char *line, size_t length, int64_t step)
{
    json_t *object = json_loadb(line, length, 0, NULL);
    const json_t *at = json_object_get(object, "step");
    bool kept = json_is_integer(at) && json_integer_value(at) <= step;
    json_decref(object);
    return kept;
}

/* Drops lines of later steps and a torn last line. */
static bk_status rewrite(const char *path, int64_t step)
{
    bk_arena *scratch = bk_arena_new("metrics");
    char *text, *to;
    size_t length;
    bk_status status = bk_read_file(scratch, path, &text, &length);
    if (status == BK_OK) {
        char *out = to = bk_arena_alloc(scratch, length + 1);
        for (char *at = text, *end; (end = strchr(at, '\n')); at = end + 1)
            if (keeps(at, (size_t)(end - at), step)) {
                memcpy(to, at, (size_t)(end + 1 - at));
                to += end + 1 - at;
            }
        *to = '\0';
        status = bk_write_text(path, out);
    }
    bk_arena_free(scratch);
    return status;
}

/* ---- open and close ---- */

bk_status bk_metrics_open(bk_arena *arena, const char *run_directory, int64_t step,
                          bool tensorboard, bk_metrics **out)
{
    bk_metrics *m = BK_ZNEW(arena, bk_metrics, 1);
    m->path = bk_arena_printf(arena, "%s/metrics.jsonl", run_directory);
    if (bk_file_size(m->path) >= 0)
        BK_TRY(rewrite(m->path, step));
    m->file = fopen(m->path, "a");
    if (!m->file)
        return bk_fail(BK_USAGE, "the metrics cannot be written (%s): %s", m->path,
                       strerror(errno));
    if (tensorboard)
        BK_TRY(bk_tensorboard_open(arena, bk_arena_printf(arena, "%s/tb", run_directory),
                                   &m->tensorboard));
    *out = m;
    return BK_OK;
}

bk_status bk_metrics_close(bk_metrics *m)
{
    bool good = !ferror(m->file) && fflush(m->file) == 0 && fsync(fileno(m->file)) == 0;
    good = fclose(m->file) == 0 && good;
    BK_TRY(bk_tensorboard_close(m->tensorboard));
    return good ? BK_OK
                : bk_fail(BK_FAULT, "the metrics are not whole (%s): check the disk", m->path);
}

bool bk_metrics_has(const bk_metrics *m, int64_t step, const char *field)
{
    bk_arena *scratch = bk_arena_new("metrics");
    char *text;
    size_t length;
    bool found = false;
    if (bk_read_file(scratch, m->path, &text, &length) == BK_OK)
        for (char *at = text, *end; !found && (end = strchr(at, '\n')); at = end + 1) {
            json_t *line = json_loadb(at, (size_t)(end - at), 0, NULL);
            found = json_integer_value(json_object_get(line, "step")) == step &&
                    json_object_get(line, field);
            json_decref(line);
        }
    bk_arena_free(scratch);
    return found;
}

/* ---- lines ---- */

static void put(bk_metrics *m, const char *name, json_t *value)
{
    if (json_object_set_new(m->item ? m->item : m->line, name, value) != 0)
        bk_fatal("out of memory: metrics");
}

void bk_metrics_begin(bk_metrics *m, int64_t step, const char *split)
{
    if (!m)
        return;
    m->line = json_object();
    m->step = step;
    snprintf(m->split, sizeof m->split, "%s", split);
    bk_metrics_integer(m, "step", step);
    bk_metrics_text(m, "split", split);
}

static void show(const bk_metrics *m, const char *name, double value)
{
    char tag[160];
    snprintf(tag, sizeof tag, "%s/%s", m->split, name);
    if (!m->item && isfinite(value))
        bk_tensorboard_scalar(m->tensorboard, tag, m->step, value);
}

static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

void bk_metrics_number(bk_metrics *m, const char *name, double value)
{
    if (!m)
        return;
    put(m, name, number(value));
    show(m, name, value);
}

void bk_metrics_integer(bk_metrics *m, const char *name, int64_t value)
{
    if (!m)
        return;
    put(m, name, json_integer(value));
    if (strcmp(name, "step") != 0)
        show(m, name, (double)value);
}

void bk_metrics_text(bk_metrics *m, const char *name, const char *value)
{
    if (m)
        put(m, name, json_string(value));
}

void bk_metrics_numbers(bk_metrics *m, const char *name, int64_t count, const double *value)
{
    if (!m)
        return;
    json_t *list = json_array();
    for (int64_t i = 0; i < count; i++)
        if (json_array_append_new(list, number(value[i])) != 0)
            bk_fatal("out of memory: metrics");
    put(m, name, list);
}

void bk_metrics_open_list(bk_metrics *m, const char *name)
{
    if (!m)
        return;
    m->list = json_array();
    put(m, name, m->list);
}

void bk_metrics_next_item(bk_metrics *m)
{
    if (!m)
        return;
    m->item = json_object();
    if (json_array_append_new(m->list, m->item) != 0)
        bk_fatal("out of memory: metrics");
}

void bk_metrics_close_list(bk_metrics *m)
{
    if (m)
        m->list = m->item = NULL;
}

void bk_metrics_end(bk_metrics *m)
{
    if (!m)
        return;
    char *text = json_dumps(m->line, JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
    if (!text)
        bk_fatal("out of memory: metrics");
    fprintf(m->file, "%s\n", text);
    fflush(m->file);
    bk_tensorboard_flush(m->tensorboard);
    free(text);
    json_decref(m->line);
    m->line = NULL;
}
