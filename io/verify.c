/* birkhoff verify: every byte of a checkpoint, of all checkpoints of a run, or of a data set. */
#include "io/checkpoint_internal.h"

#include "core/log.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "io/dataset.h"
#include "io/files.h"
#include "io/teacher_file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* One line a shard, and what is wrong with it; ranks fill those of their shards. */
typedef struct report {
    char line[120], finding[392];
} report;

typedef struct verifier {
    const bk_comm *comm;
    bk_arena *arena;
    const char *path;
    bk_manifest manifest;
    uint8_t **leaves; /* [tensors], parts of one array; NULL: a shard is not whole */
    uint8_t *all_leaves;
    int64_t leaf_count;
    report *report; /* [shards] */
} verifier;

/* ---- one shard ---- */

static bk_status check_finite(const bk_tensor *x, const char *name)
{
    for (int64_t i = 0; i < bk_count(x); i++) {
        double value = x->dtype == BK_F32   ? (double)bk_f32(x)[i]
                       : x->dtype == BK_F64 ? bk_f64(x)[i]
                                            : 0.0;
        if (!isfinite(value))
            return bk_fail(BK_INPUT, "%s is not finite at element %lld of its slice", name,
                           (long long)i);
    }
    return BK_OK;
}

/* What a slice says of itself: place, shape and dtype. */
static bk_status check_label(const verifier *v, bk_h5 *file, const char *path,
                             const bk_stored_tensor *t, const bk_stored_piece *p)
{
    int64_t offset, dims, shape[BK_MAX_DIMS] = {0};
    char *dtype;
    BK_TRY(bk_h5_attribute(file, path, "offset", BK_I64, 0, &offset));
    BK_TRY(bk_h5_attribute_count(file, path, "global_shape", &dims));
    if (dims == t->dims)
        BK_TRY(bk_h5_attribute(file, path, "global_shape", BK_I64, dims, shape));
    BK_TRY(bk_h5_attribute_text(file, path, "dtype", v->arena, &dtype));
    bool same = t->dims == 0 || /* a scalar has no axes to name */
                (dims == t->dims && memcmp(shape, t->shape, (size_t)dims * sizeof *shape) == 0);
    if (offset != p->offset || !same || strcmp(dtype, bk_dtype_name(t->dtype)) != 0)
        return bk_fail(BK_INPUT, "%s has not the place, shape or dtype that the manifest names",
                       path);
    return BK_OK;
}

static bk_status check_slice(verifier *v, bk_h5 *file, int64_t tensor, const bk_stored_piece *p)
{
    const bk_stored_tensor *t = &v->manifest.tensor[tensor];
    const char *path = bk_arena_printf(v->arena, "/%s", t->name);
    bk_tensor *x;
    BK_TRY(check_label(v, file, path, t, p));
    BK_TRY(bk_h5_read(file, path, t->dtype, v->arena, &x));
    if (bk_count(x) != p->length)
        return bk_fail(BK_INPUT, "%s is not the slice that the manifest names", path);
    if (v->leaves)
        bk_digest_leaves(x->data, p->length, bk_dtype_size(t->dtype),
                         v->leaves[tensor] + p->offset / BK_LEAF * BK_SHA256);
    return check_finite(x, path);
}

/* The slices that the manifest places in this shard, and no others. */
static bk_status check_slices(verifier *v, bk_h5 *file, int shard)
{
    const bk_manifest *m = &v->manifest;
    char **paths;
    int64_t wanted = 0, found = 0;
    for (int64_t i = 0; i < m->tensors; i++)
        for (int k = 0; k < m->tensor[i].pieces; k++)
            if (m->tensor[i].piece[k].shard == shard) {
                bk_arena_mark mark = bk_arena_get_mark(v->arena);
                bk_status status = check_slice(v, file, i, &m->tensor[i].piece[k]);
                bk_arena_release(v->arena, mark);
                BK_TRY(status);
                wanted++;
            }
    BK_TRY(bk_h5_walk(file, v->arena, &paths));
    for (; *paths; paths++)
        found += strcmp(*paths, "/config") != 0;
    return found == wanted ? BK_OK
                           : bk_fail(BK_INPUT, "it holds %lld tensors, the manifest names %lld",
                                     (long long)found, (long long)wanted);
}

/* The small groups, which shard 0 alone has, and the configuration's own digest. */
static bk_status check_state(verifier *v, bk_h5 *file)
{
    bk_run_state state;
    char digest[BK_SHA256_TEXT];
    BK_TRY(bk_state_read(file, v->arena, &state));
    bk_sha256_text(state.config, strlen(state.config), digest);
    if (state.step != v->manifest.step || strcmp(digest, v->manifest.config_sha256) != 0)
        return bk_fail(BK_INPUT, "/step or /config is not that of the manifest");
    return BK_OK;
}

static bk_status check_content(verifier *v, bk_h5 *file, int shard)
{
    const bk_manifest *m = &v->manifest;
    uint8_t complete = 0;
    int64_t step;
    int32_t number;
    BK_TRY(bk_h5_expect(file, "birkhoff-checkpoint"));
    BK_TRY(bk_h5_attribute(file, "/", "complete", BK_U8, 0, &complete));
    BK_TRY(bk_h5_attribute(file, "/", "step", BK_I64, 0, &step));
    BK_TRY(bk_h5_attribute(file, "/", "shard", BK_I32, 0, &number));
    if (complete != 1)
        return bk_fail(BK_INPUT, "it is not complete");
    if (step != m->step || number != shard)
        return bk_fail(BK_INPUT, "it is shard %d of step %lld", number, (long long)step);
    BK_TRY(check_slices(v, file, shard));
    return shard == 0 ? check_state(v, file) : BK_OK;
}

static bk_status check_shard(verifier *v, int shard)
{
    const bk_shard_file *s = &v->manifest.shard[shard];
    const char *path = bk_arena_printf(v->arena, "%s/%s", v->path, s->file);
    bk_file_digest found;
    bk_h5 *file;
    BK_TRY(bk_digest_file(path, &found));
    if (strcmp(found.sha256, s->digest.sha256) != 0 || strcmp(found.xxh64, s->digest.xxh64) != 0)
        return bk_fail(BK_INPUT, "digest differs: %.16s..., the manifest says %.16s...",
                       found.sha256, s->digest.sha256);
    BK_TRY(bk_h5_open(v->arena, path, &file));
    bk_status status = check_content(v, file, shard);
    bk_status closed = bk_h5_close(file);
    return status != BK_OK ? status : closed;
}

/* ---- one checkpoint ---- */

static bk_status check_sizes(const verifier *v)
{
    for (int i = 0; i < v->manifest.shards; i++)
        BK_TRY(bk_shard_size(v->arena, v->path, &v->manifest.shard[i]));
    return BK_OK;
}

static void allocate_leaves(verifier *v)
{
    const bk_manifest *m = &v->manifest;
    v->leaf_count = 0;
    for (int64_t i = 0; i < m->tensors; i++)
        v->leaf_count += bk_leaves(m->tensor[i].count);
    v->all_leaves = bk_arena_zalloc(v->arena, (size_t)v->leaf_count * BK_SHA256);
    v->leaves = BK_NEW(v->arena, uint8_t *, m->tensors);
    uint8_t *at = v->all_leaves;
    for (int64_t i = 0; i < m->tensors; i++) {
        v->leaves[i] = at;
        at += bk_leaves(m->tensor[i].count) * BK_SHA256;
    }
}

/* Records that exactly one rank filled, zero elsewhere: their sum hands them to all. */
static void share(const verifier *v, void *records, size_t bytes)
{
    bk_sum_i64(v->comm, (int64_t)(bytes / sizeof(int64_t)), records);
}

static void check_shards(verifier *v)
{
    const bk_manifest *m = &v->manifest;
    v->report = BK_ZNEW(v->arena, report, m->shards);
    for (int i = bk_comm_rank(v->comm); i < m->shards; i += bk_comm_size(v->comm)) {
        report *r = &v->report[i];
        bool whole = bk_shard_size(v->arena, v->path, &m->shard[i]) == BK_OK;
        bk_status status = whole ? check_shard(v, i) : BK_INPUT;
        snprintf(r->line, sizeof r->line, "%s  %.1f MB  %s", m->shard[i].file,
                 (double)m->shard[i].digest.size / 1e6, status == BK_OK ? "ok" : "damaged");
        if (status != BK_OK)
            snprintf(r->finding, sizeof r->finding, "%s%s%.300s", whole ? m->shard[i].file : "",
                     whole ? ": " : "", bk_status_text()); /* a size names its file itself */
    }
    share(v, v->report, (size_t)m->shards * sizeof *v->report);
    share(v, v->all_leaves, (size_t)v->leaf_count * BK_SHA256);
}

/* Only of whole shards: what could not be read has no digest. */
static int64_t check_payload(const verifier *v)
{
    char payload[BK_SHA256_TEXT];
    bk_payload_digest(&v->manifest, v->leaves, payload);
    printf("  payload_sha256  %s\n", payload);
    if (strcmp(payload, v->manifest.payload) == 0)
        return 0;
    printf("  finding: payload_sha256 differs from the manifest's %s\n", v->manifest.payload);
    return 1;
}

static int64_t print_checkpoint(const verifier *v)
{
    const bk_manifest *m = &v->manifest;
    int64_t findings = 0;
    printf("%s\n", v->path);
    for (int i = 0; i < m->shards; i++)
        printf("  %s\n", v->report[i].line);
    for (int i = 0; i < m->shards; i++)
        if (v->report[i].finding[0]) {
            printf("  finding: %s\n", v->report[i].finding);
            findings++;
        }
    if (findings == 0)
        findings = check_payload(v);
    printf("%s\n", findings == 0 ? "valid" : "damaged");
    return findings;
}

static bk_status verify_checkpoint(const bk_comm *comm, const char *path)
{
    verifier v = {.comm = comm, .arena = bk_arena_new("verify"), .path = path};
    bk_status status = bk_agree(comm, bk_manifest_load(v.arena, path, &v.manifest));
    int64_t findings = 1;
    if (status == BK_OK) {
        if (bk_agree(comm, check_sizes(&v)) == BK_OK)
            allocate_leaves(&v);
        check_shards(&v);
        if (bk_comm_rank(comm) == 0)
            findings = print_checkpoint(&v);
        bk_broadcast(comm, 0, &findings, sizeof findings);
    } else if (bk_comm_rank(comm) == 0) {
        printf("%s\n  finding: %s\ndamaged\n", path, bk_status_text());
    }
    bk_arena_free(v.arena);
    return findings == 0
               ? BK_OK
               : bk_fail(BK_INPUT, "the checkpoint is damaged (%s): use an older one", path);
}

/* ---- runs and data sets ---- */

static bk_status verify_run(const bk_comm *comm, bk_arena *arena, const char *directory)
{
    int64_t *steps, count = bk_list_steps_everywhere(comm, arena, directory, &steps), damaged = 0;
    if (count == 0)
        return bk_fail(BK_INPUT, "there is no checkpoint in the directory (%s): train first",
                       directory);
    for (int64_t i = 0; i < count; i++)
        damaged +=
            verify_checkpoint(comm, bk_place_of_step(comm, arena, directory, steps[i])) != BK_OK;
    return damaged == 0 ? BK_OK
                        : bk_fail(BK_INPUT,
                                  "%lld of %lld checkpoints are damaged (%s): the run "
                                  "resumes from the newest valid one",
                                  (long long)damaged, (long long)count, directory);
}

/* Every byte is read again. */
static bk_status check_digest(bk_arena *arena, const char *path, const char *what,
                              const char *remedy, const char *written)
{
    bk_h5 *file;
    char digest[BK_SHA256_TEXT];
    BK_TRY(bk_h5_open(arena, path, &file));
    bk_status status = bk_dataset_digest(file, digest), closed = bk_h5_close(file);
    BK_TRY(status);
    BK_TRY(closed);
    if (*written && strcmp(digest, written) != 0) /* other makers may leave it out */
        return bk_fail(BK_INPUT,
                       "the %s is damaged (%s): its content has digest %.16s..., it was "
                       "written with %.16s...: %s",
                       what, path, digest, written, remedy);
    return BK_OK;
}

/* What a file holds, for the line that says it is valid. */
typedef struct content {
    int64_t count;
    const char *of, *digest;
} content;

static bk_status check_dataset(bk_arena *arena, const char *path, content *out)
{
    bk_dataset *d;
    BK_TRY(bk_dataset_read(arena, path, &d));
    *out = (content){d->samples, "samples", d->digest};
    return check_digest(arena, path, "data set", "make it again with birkhoff data", d->digest);
}

static bk_status check_teacher(bk_arena *arena, const char *path, content *out)
{
    bk_teacher_file f;
    BK_TRY(bk_teacher_file_open(arena, path, 0, &f));
    *out = (content){f.rows, "rows of a teacher's logits", f.digest};
    BK_TRY(bk_teacher_file_close(&f));
    return check_digest(arena, path, "file of the teacher's logits",
                        "remove it, and it is written anew", f.digest);
}

static bool holds_teacher(bk_arena *arena, const char *path)
{
    bk_h5 *file;
    if (bk_h5_open(arena, path, &file) != BK_OK)
        return false;
    bool holds = bk_h5_expect(file, "birkhoff-teacher") == BK_OK;
    return bk_h5_close(file) == BK_OK && holds;
}

static bk_status verify_file(const bk_comm *comm, bk_arena *arena, const char *path)
{
    content c = {0};
    if (bk_comm_rank(comm) != 0)
        return bk_agree(comm, BK_OK);
    bk_status status = holds_teacher(arena, path) ? check_teacher(arena, path, &c)
                                                  : check_dataset(arena, path, &c);
    if (status == BK_OK)
        printf("%s  %lld %s  sha256 %s\nvalid\n", path, (long long)c.count, c.of, c.digest);
    else
        printf("%s\n  finding: %s\ndamaged\n", path, bk_status_text());
    return bk_agree(comm, status);
}

/* ---- what a path is ---- */

enum { NOTHING, WHOLE_FILE, SHARD, RUN, CHECKPOINTS, CHECKPOINT };

static bool is_file_in(bk_arena *arena, const char *directory, const char *name)
{
    return bk_file_size(bk_arena_printf(arena, "%s/%s", directory, name)) >= 0;
}

static int64_t kind_of(bk_arena *arena, const char *path)
{
    int64_t *steps;
    const char *slash = strrchr(path, '/');
    if (bk_file_size(path) >= 0)
        return strncmp(slash ? slash + 1 : path, "shard-", 6) == 0 ? SHARD : WHOLE_FILE;
    if (bk_is_directory(bk_arena_printf(arena, "%s/checkpoints", path)))
        return RUN;
    if (bk_list_steps(arena, path, &steps) > 0)
        return CHECKPOINTS;
    return is_file_in(arena, path, "manifest.json") || is_file_in(arena, path, "shard-00000.h5")
               ? CHECKPOINT
               : NOTHING;
}

static bk_status verify(const bk_comm *comm, bk_arena *arena, const char *path)
{
    int64_t kind = kind_of(arena, path);
    bk_broadcast(comm, 0, &kind, sizeof kind); /* what rank 0 sees counts */
    switch (kind) {
    case WHOLE_FILE:
        return verify_file(comm, arena, path);
    case SHARD:
        return bk_fail(
            BK_INPUT, "a shard is verified against the manifest beside it (%s): name its directory",
            path);
    case RUN:
        return verify_run(comm, arena, bk_arena_printf(arena, "%s/checkpoints", path));
    case CHECKPOINTS:
        return verify_run(comm, arena, path);
    case CHECKPOINT:
        return verify_checkpoint(comm, path);
    default:
        return bk_fail(BK_INPUT, "there is no run, checkpoint or data set (%s): check the path",
                       path);
    }
}

bk_status bk_verify(const bk_comm *comm, const char *path)
{
    bk_arena *arena = bk_arena_new("verify");
    bk_status status = verify(comm, arena, path);
    bk_arena_free(arena);
    return status;
}
