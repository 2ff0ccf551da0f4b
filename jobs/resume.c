/* What may change between the start of a run and its resume. */
#include "core/log.h"
#include "dist/agree.h"
#include "io/yaml.h"
#include "jobs/job.h"

#include <string.h>

/* FIXED: other bits would follow.  TENSORS: other tensors may, which checkpoint.partial allows
 * where they do.  MOMENTS: others do, which it allows.  WARNED: the training goes on in another
 * way.  FREE: neither. */
typedef enum key_class { FREE, WARNED, MOMENTS, TENSORS, FIXED } key_class;

/* The first row whose path is the key or stands above it. */
static const struct {
    const char *path;
    key_class class;
} classes[] = {
    {"run.seed", FIXED},
    {"run.precision", WARNED},
    {"data.batch", FIXED},
    {"data.length", FIXED},
    {"data.split", FIXED},
    {"data.max_length", FIXED},
    {"model.recompute", FREE},
    {"model.moe.chunks", FREE},
    {"model.moe.hierarchy", FREE},
    {"model.moe.max_receive_factor", FREE},
    {"model.moe.upcycle", FREE}, /* of the first start alone */
    {"model", TENSORS},
    {"distill.teacher_ranks", FREE},
    {"distill.cache", FREE},
    {"distill.evaluate", FREE},
    {"distill", WARNED},
    {"loss", WARNED},
    {"optim.kind", MOMENTS},
    {"optim.skip_nonfinite", FREE},
    {"optim", WARNED},
    {"schedule", WARNED},
    {"parallel.lanes", FIXED},
};

static key_class class_of(const char *path)
{
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        size_t length = strlen(classes[i].path);
        if (strncmp(path, classes[i].path, length) == 0 &&
            (path[length] == '\0' || path[length] == '.'))
            return classes[i].class;
    }
    return FREE;
}

typedef struct comparison {
    bk_arena *arena;
    const char *where;
    key_class allowed; /* the strictest class whose differences are warnings */
} comparison;

static const char *shown(const bk_value *v)
{
    return !v ? "absent" : v->kind == BK_SCALAR ? v->text : "given";
}

static bk_status differs(const comparison *c, const char *path, const bk_value *then,
                         const bk_value *now)
{
    key_class class = class_of(path);
    if (class > c->allowed)
        return bk_fail(BK_USAGE,
                       "%s was %s when this run began and is %s now (%s): keep it, or name another "
                       "run.dir",
                       path, shown(then), shown(now), c->where);
    if (class != FREE)
        bk_warn("%s was %s when this run began and is %s now", path, shown(then), shown(now));
    return BK_OK;
}

static bk_status compare(const comparison *c, const char *path, const bk_value *then,
                         const bk_value *now);

static const char *below(const comparison *c, const char *path, const char *key)
{
    return bk_arena_printf(c->arena, "%s%s%s", path, *path ? "." : "", key);
}

static bk_status compare_maps(const comparison *c, const char *path, const bk_value *then,
                              const bk_value *now)
{
    for (const bk_value *a = then->child; a; a = a->next)
        BK_TRY(compare(c, below(c, path, a->key), a, bk_value_get(now, a->key)));
    for (const bk_value *b = now->child; b; b = b->next)
        if (!bk_value_get(then, b->key))
            BK_TRY(compare(c, below(c, path, b->key), NULL, b));
    return BK_OK;
}

static bk_status compare_lists(const comparison *c, const char *path, const bk_value *then,
                               const bk_value *now)
{
    const bk_value *a = then->child, *b = now->child;
    for (int i = 0; a || b; i++) {
        BK_TRY(compare(c, bk_arena_printf(c->arena, "%s.%d", path, i), a, b));
        a = a ? a->next : NULL;
        b = b ? b->next : NULL;
    }
    return BK_OK;
}

static bk_status compare(const comparison *c, const char *path, const bk_value *then,
                         const bk_value *now)
{
    if (!then || !now || then->kind != now->kind)
        return differs(c, path, then, now);
    if (then->kind == BK_MAP)
        return compare_maps(c, path, then, now);
    if (then->kind == BK_LIST)
        return compare_lists(c, path, then, now);
    return strcmp(then->text, now->text) == 0 ? BK_OK : differs(c, path, then, now);
}

/* ---- data, teacher, machine ---- */

static bk_status same_data(const bk_job *job, const bk_run_state *s)
{
    if (strcmp(s->data_digest, job->train->digest) == 0)
        return BK_OK;
    return bk_fail(BK_USAGE,
                   "the data set is not the one this run began with (%s): digest %.12s then, "
                   "%.12s now; keep it, or name another run.dir",
                   job->train->path, s->data_digest, job->train->digest);
}

/* The value of one "key: value" line; its length without the newline. */
static const char *line_of(const char *machine, const char *key, size_t *length)
{
    const char *at = machine ? strstr(machine, key) : NULL;
    at = at ? at + strlen(key) : "";
    *length = strcspn(at, "\n");
    return at;
}

static void warn_of_line(const bk_job *job, const bk_run_state *s, const char *key,
                         const char *text)
{
    size_t a, b;
    const char *then = line_of(s->machine, key, &a), *now = line_of(job->machine, key, &b);
    if (a > 0 && b > 0 && (a != b || memcmp(then, now, a) != 0))
        bk_warn("%s: %.*s then, %.*s now", text, (int)a, then, (int)b, now);
}

static int64_t stored_tensors(const bk_checkpoint *c)
{
    int64_t count = 0, shape[BK_MAX_DIMS];
    for (int64_t i = 0; i < bk_checkpoint_tensors(c); i++) {
        const char *name;
        bk_dtype dtype;
        int dims;
        bk_checkpoint_tensor(c, i, &name, &dtype, &dims, shape);
        count += strncmp(name, "optim/", strlen("optim/")) != 0;
    }
    return count;
}

/* Whether model and checkpoint name other tensors. */
static bool other_tensors(const bk_job *job)
{
    const bk_slab *slab = job->slab;
    bool same = stored_tensors(job->checkpoint) == slab->parameters + slab->buffers;
    for (int i = 0; i < slab->parameters; i++)
        same = same && bk_checkpoint_has(job->checkpoint, slab->parameter[i]->name);
    for (int i = 0; i < slab->buffers; i++)
        same = same && bk_checkpoint_has(job->checkpoint, slab->buffer[i]->name);
    return !same;
}

static key_class allowed_class(const bk_job *job)
{
    return !job->config->checkpoint.partial ? WARNED : other_tensors(job) ? TENSORS : MOMENTS;
}

static bk_status check(const bk_job *job)
{
    const bk_run_state *s = bk_checkpoint_state(job->checkpoint);
    const comparison c = {job->arena, job->checkpoints, allowed_class(job)};
    bk_value *then, *now;
    BK_TRY(bk_yaml_parse(job->arena, bk_checkpoint_path(job->checkpoint), s->config,
                         strlen(s->config), &then));
    BK_TRY(bk_yaml_parse(job->arena, "resolved configuration", job->resolved, strlen(job->resolved),
                         &now));
    BK_TRY(same_data(job, s));
    BK_TRY(compare(&c, "", then, now));
    warn_of_line(job, s, "products: ", "bits may differ: this run began on other products");
    warn_of_line(job, s, "kernels: ", "bits may differ: this run began on other kernels");
    warn_of_line(job, s, "teacher: ", "the teacher is not the one this run began with");
    return BK_OK;
}

bk_status bk_job_check_resume(const bk_job *job)
{
    return bk_agree(job->world->ctl, job->checkpoint ? check(job) : BK_OK);
}
