/* Which directory can be believed: names, manifests, sizes, digests. */
#include "io/checkpoint_internal.h"

#include "core/fault.h"
#include "core/log.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "io/files.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- names ---- */

const char *bk_step_path(bk_arena *arena, const char *directory, int64_t step)
{
    return bk_arena_printf(arena, "%s/step-%08lld", directory, (long long)step);
}

int64_t bk_step_of(const char *name)
{
    size_t digits = strncmp(name, "step-", 5) == 0 ? strspn(name + 5, "0123456789") : 0;
    return digits >= 8 && digits <= 18 && name[5 + digits] == '\0' ? atoll(name + 5) : -1;
}

static int descending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* Of a checkpoint in place or aside; -1: another name. */
static int64_t step_named(const char *name)
{
    int64_t step = bk_step_of(name);
    return step >= 0 ? step : bk_step_aside(name);
}

static int64_t without_repeats(int64_t *x, int64_t count)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++)
        if (kept == 0 || x[i] != x[kept - 1])
            x[kept++] = x[i];
    return kept;
}

int64_t bk_list_steps(bk_arena *arena, const char *directory, int64_t **steps)
{
    char **names = bk_list_directory(arena, directory);
    int64_t room = 0, count = 0;
    while (names[room])
        room++;
    *steps = BK_NEW(arena, int64_t, room);
    for (int64_t i = 0; i < room; i++)
        if (step_named(names[i]) >= 0)
            (*steps)[count++] = step_named(names[i]);
    qsort(*steps, (size_t)count, sizeof **steps, descending);
    return without_repeats(*steps, count);
}

/* ---- manifest and sizes: what one rank checks ---- */

bk_status bk_shard_size(bk_arena *arena, const char *path, const bk_shard_file *s)
{
    int64_t size = bk_file_size(bk_arena_printf(arena, "%s/%s", path, s->file));
    if (size < 0)
        return bk_fail(BK_INPUT, "%s is missing", s->file);
    if (size != s->digest.size)
        return bk_fail(BK_INPUT, "%s has %lld bytes, the manifest says %lld", s->file,
                       (long long)size, (long long)s->digest.size);
    return BK_OK;
}

bk_status bk_manifest_load(bk_arena *arena, const char *path, bk_manifest *out)
{
    const char *file = bk_arena_printf(arena, "%s/manifest.json", path);
    char *text;
    size_t length;
    if (bk_fault_at(BK_FAULT_LOAD_MANIFEST, file) ||
        bk_read_file(arena, file, &text, &length) != BK_OK)
        return bk_fail(BK_INPUT, "it has no manifest.json");
    *out = (bk_manifest){0};
    BK_TRY(bk_manifest_parse(arena, file, text, out));
    int64_t named = step_named(strrchr(path, '/') ? strrchr(path, '/') + 1 : path);
    if (named >= 0 && named != out->step)
        return bk_fail(BK_INPUT, "its manifest is of step %lld", (long long)out->step);
    return BK_OK;
}

bk_status bk_manifest_read(bk_arena *arena, const char *path, bk_manifest *out)
{
    BK_TRY(bk_manifest_load(arena, path, out));
    for (int i = 0; i < out->shards; i++)
        BK_TRY(bk_shard_size(arena, path, &out->shard[i]));
    return BK_OK;
}

/* ---- digests: the ranks share the files ---- */

static bk_status check_shard(bk_arena *arena, const char *path, const bk_shard_file *s,
                             bk_checkpoint_check check)
{
    const char *file = bk_arena_printf(arena, "%s/%s", path, s->file);
    bool fast = check == BK_CHECK_XXH64;
    bk_file_digest found;
    int error = bk_fault_at(BK_FAULT_LOAD_DIGEST, file);
    if (error)
        return bk_fail(BK_INPUT, "%s cannot be read: %s", s->file, strerror(error));
    BK_TRY(fast ? bk_digest_file_fast(file, &found) : bk_digest_file(file, &found));
    if (strcmp(fast ? found.xxh64 : found.sha256, fast ? s->digest.xxh64 : s->digest.sha256) != 0)
        return bk_fail(BK_INPUT, "%s: digest differs", s->file);
    return BK_OK;
}

static bk_status check_digests(const bk_comm *comm, bk_arena *arena, const char *path,
                               const bk_manifest *m, bk_checkpoint_check check)
{
    int first = check == BK_CHECK_SIZE ? m->shards : bk_comm_rank(comm);
    for (int i = first; i < m->shards; i += bk_comm_size(comm))
        BK_TRY(check_shard(arena, path, &m->shard[i], check));
    return BK_OK;
}

bk_status bk_manifest_verify(bk_arena *arena, const char *path, bk_manifest *out)
{
    BK_TRY(bk_manifest_read(arena, path, out));
    return check_digests(NULL, arena, path, out, BK_CHECK_SHA256);
}

static bk_status read_state(bk_arena *arena, bk_checkpoint *c)
{
    const bk_shard_file *first = &c->manifest.shard[0];
    bk_h5 *file;
    BK_TRY(bk_h5_open(arena, bk_arena_printf(arena, "%s/%s", c->path, first->file), &file));
    bk_status status = bk_h5_expect(file, "birkhoff-checkpoint");
    if (status == BK_OK)
        status = bk_state_read(file, arena, &c->state);
    bk_status closed = bk_h5_close(file);
    c->state.world_size = c->manifest.world_size;
    c->state.lanes = c->manifest.lanes;
    return status != BK_OK ? status : closed;
}

/* Collective.  Retention counts on what was read whole, here or later. */
static bk_status open_one(const bk_comm *comm, bk_arena *arena, const char *path,
                          bk_checkpoint_check check, bk_checkpoint **out)
{
    bk_checkpoint *c = BK_ZNEW(arena, bk_checkpoint, 1);
    c->path = bk_arena_strdup(arena, path);
    BK_TRY(bk_agree(comm, bk_manifest_read(arena, path, &c->manifest)));
    BK_TRY(bk_agree(comm, check_digests(comm, arena, path, &c->manifest, check)));
    BK_TRY(bk_agree(comm, read_state(arena, c)));
    if (check != BK_CHECK_SIZE)
        bk_manifest_believe(&c->manifest);
    *out = c;
    return BK_OK;
}

/* ---- the newest valid one ---- */

int64_t bk_list_steps_everywhere(const bk_comm *comm, bk_arena *arena, const char *directory,
                                 int64_t **steps)
{
    int64_t count = 0;
    if (bk_comm_rank(comm) == 0)
        count = bk_list_steps(arena, directory, steps);
    bk_broadcast(comm, 0, &count, sizeof count);
    if (bk_comm_rank(comm) != 0)
        *steps = BK_NEW(arena, int64_t, count);
    bk_broadcast(comm, 0, *steps, (size_t)count * sizeof **steps);
    return count;
}

const char *bk_place_of_step(const bk_comm *comm, bk_arena *arena, const char *directory,
                             int64_t step)
{
    const char *place = bk_step_path(arena, directory, step),
               *aside = bk_aside_path(arena, directory, step);
    int64_t moved = !bk_is_directory(place) && bk_is_directory(aside);
    bk_broadcast(comm, 0, &moved, sizeof moved);
    return moved ? aside : place;
}

static bk_status none_valid(bk_arena *arena, const char *directory, const char *findings)
{
    return bk_fail(BK_INPUT,
                   "no checkpoint is valid (%s):%s: restore one, or name another run.dir to begin "
                   "anew",
                   bk_arena_strdup(arena, directory), findings);
}

/* `latest` is a hint for people: where it differs from what is there, one note says so. */
static void compare_latest(bk_arena *arena, const char *directory, int64_t newest)
{
    char *text;
    size_t length;
    const char *hint = bk_arena_printf(arena, "%s/latest", directory);
    if (bk_read_file(arena, hint, &text, &length) != BK_OK)
        text = bk_arena_strdup(arena, "nothing");
    text[strcspn(text, "\n")] = '\0';
    if (bk_step_of(text) != newest)
        bk_note("%s names %.40s, but the newest checkpoint is step-%08lld", hint, text,
                (long long)newest);
}

/* Not there is fine (what stands in its way is refused when the run directory is made); a
 * directory that cannot be read is not an empty one. */
static bk_status check_listing(const char *directory)
{
    int error = bk_fault(BK_FAULT_LOAD_LIST);
    DIR *open = error ? NULL : opendir(directory);
    if (!open && !error && errno != ENOENT && errno != ENOTDIR)
        error = errno;
    if (open)
        closedir(open);
    return error ? bk_fail(BK_INPUT, "the checkpoints cannot be listed (%s): %s", directory,
                           strerror(error))
                 : BK_OK;
}

bk_status bk_checkpoint_find(const bk_comm *comm, bk_arena *arena, const char *directory,
                             bk_find_options options, bk_checkpoint **out)
{
    BK_TRY(bk_agree(comm, bk_comm_rank(comm) == 0 ? check_listing(directory) : BK_OK));
    int64_t *steps, count = bk_list_steps_everywhere(comm, arena, directory, &steps);
    const char *findings = "";
    *out = NULL;
    if (count > 0 && bk_comm_rank(comm) == 0)
        compare_latest(arena, directory, steps[0]);
    for (int64_t i = 0; i < count; i++) {
        const char *path = bk_place_of_step(comm, arena, directory, steps[i]);
        const char *name = strrchr(path, '/') + 1;
        bk_status status = open_one(comm, arena, path, options.check, out);
        if (status != BK_INPUT)
            return status;
        const char *reason = bk_arena_strdup(arena, bk_status_text());
        if (options.strict)
            return bk_fail(BK_INPUT,
                           "checkpoint %s is damaged (%s): restore it, or set "
                           "checkpoint.strict=false",
                           name, reason);
        findings = bk_arena_printf(arena, "%s %s (%s)", findings, name, reason);
        if (i + 1 < count)
            bk_warn("checkpoint %s is damaged (%s); using step-%08lld", name, reason,
                    (long long)steps[i + 1]);
    }
    return count == 0 ? BK_OK : none_valid(arena, directory, findings);
}

bk_status bk_checkpoint_open(const bk_comm *comm, bk_arena *arena, const char *path,
                             bk_checkpoint_check check, bk_checkpoint **out)
{
    const char *below = bk_arena_printf(arena, "%s/checkpoints", path);
    int64_t kind = bk_file_size(bk_arena_printf(arena, "%s/manifest.json", path)) >= 0 ? 2
                   : bk_is_directory(path)                                             ? 1
                                                                                       : 0;
    bk_broadcast(comm, 0, &kind, sizeof kind);
    if (kind == 0)
        return bk_fail(BK_INPUT,
                       "there is no run or checkpoint (%s): name a run directory or a "
                       "checkpoint directory",
                       path);
    if (kind == 2) {
        bk_status status = open_one(comm, arena, path, check, out);
        if (status == BK_INPUT)
            return bk_fail(BK_INPUT, "the checkpoint is damaged (%s): %s", path,
                           bk_arena_strdup(arena, bk_status_text()));
        return status;
    }
    int64_t nested = bk_is_directory(below);
    bk_broadcast(comm, 0, &nested, sizeof nested);
    BK_TRY(bk_checkpoint_find(comm, arena, nested ? below : path, (bk_find_options){.check = check},
                              out));
    return *out ? BK_OK
                : bk_fail(BK_INPUT, "there is no checkpoint in the directory (%s): train first",
                          path);
}

const bk_run_state *bk_checkpoint_state(const bk_checkpoint *c)
{
    return &c->state;
}

const char *bk_checkpoint_path(const bk_checkpoint *c)
{
    return c->path;
}

const char *bk_checkpoint_payload(const bk_checkpoint *c)
{
    return c->manifest.payload;
}

bool bk_checkpoint_has(const bk_checkpoint *c, const char *name)
{
    return bk_manifest_find(&c->manifest, name) != NULL;
}

bk_checkpoint_files bk_checkpoint_describe(const bk_checkpoint *c)
{
    const bk_manifest *m = &c->manifest;
    bk_checkpoint_files files = {
        .created = m->created, .version = m->version, .run_id = m->run_id, .shards = m->shards};
    for (int i = 0; i < m->shards; i++)
        files.bytes += m->shard[i].digest.size;
    return files;
}

int64_t bk_checkpoint_tensors(const bk_checkpoint *c)
{
    return c->manifest.tensors;
}

void bk_checkpoint_tensor(const bk_checkpoint *c, int64_t i, const char **name, bk_dtype *dtype,
                          int *dims, int64_t shape[BK_MAX_DIMS])
{
    const bk_stored_tensor *t = &c->manifest.tensor[i];
    *name = t->name;
    *dtype = t->dtype;
    *dims = t->dims;
    memcpy(shape, t->shape, sizeof t->shape);
}
