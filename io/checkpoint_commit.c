/* What rank 0 alone does to a checkpoint: directory, manifest, rename, hints, retention. */
#include "io/checkpoint_internal.h"

#include "core/fault.h"
#include "core/log.h"
#include "io/files.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static bk_status failed_at(const char *what, const char *path, int error)
{
    return bk_fail(BK_FAULT, "%s (%s): %s", what, path, strerror(error));
}

bk_status bk_commit_begin(const bk_save *s)
{
    const char *name = strrchr(s->temporary, '/') + 1;
    bk_remove_stale(s->arena, s->directory, name);
    int error = bk_fault(BK_FAULT_SAVE_MKDIR);
    if (!error && mkdir(s->temporary, 0777) != 0)
        error = errno;
    return error ? failed_at("the directory cannot be made", s->temporary, error) : BK_OK;
}

static void describe(const bk_save *s)
{
    bk_manifest *m = s->plan.manifest;
    char now[32];
    time_t seconds = time(NULL);
    struct tm utc;
    gmtime_r(&seconds, &utc);
    strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", &utc);
    m->step = s->state.step;
    m->world_size = s->size;
    m->lanes = s->state.lanes;
    m->run_id = s->options.run_id;
    m->created = bk_arena_strdup(s->arena, now);
    m->version = BIRKHOFF_VERSION;
    const char *config = s->state.config ? s->state.config : "";
    bk_sha256_text(config, strlen(config), m->config_sha256);
}

static bk_status write_manifest(const bk_save *s)
{
    const char *manifest = bk_arena_printf(s->arena, "%s/manifest.json", s->temporary);
    BK_TRY(bk_manifest_check(s->plan.manifest, manifest));
    int error = bk_fault(BK_FAULT_SAVE_MANIFEST);
    if (error)
        return failed_at("the file cannot be written", manifest, error);
    BK_TRY(bk_write_text(manifest, bk_manifest_text(s->arena, s->plan.manifest)));
    error = bk_fault_at(BK_FAULT_SAVE_MANIFEST_SYNC, manifest);
    if (error)
        return failed_at("fsync failed", s->temporary, error);
    return bk_sync_directory(s->temporary);
}

static bool same_is_there(const bk_save *s, const char *target)
{
    bk_manifest old;
    return bk_manifest_verify(s->arena, target, &old) == BK_OK &&
           strcmp(old.payload, s->plan.manifest->payload) == 0;
}

/* Behind the rename the checkpoint is there, synced or not: it goes back before this save counts as
 * failed. */
static bk_status sync_names(const bk_save *s, const char *target)
{
    int error = bk_fault_at(BK_FAULT_SAVE_RENAME_SYNC,
                            bk_arena_printf(s->arena, "%s/shard-00000.h5", target));
    bk_status status =
        error ? failed_at("fsync failed", s->directory, error) : bk_sync_directory(s->directory);
    if (status != BK_OK && rename(target, s->temporary) != 0)
        bk_warn("the checkpoint cannot be taken back (%s): %s", target, strerror(errno));
    return status;
}

static bk_status put_in_place(const bk_save *s, const char *target)
{
    int error = bk_fault(BK_FAULT_SAVE_RENAME);
    if (!error && rename(s->temporary, target) != 0)
        error = errno;
    if (error)
        return failed_at("the checkpoint cannot be renamed", target, error);
    return sync_names(s, target);
}

/* The older one of this step stands aside until ours is in place for good; whatever comes in
 * between, it can be put back (bk_checkpoint_restore). */
static bk_status replace(const bk_save *s, const char *target)
{
    const char *aside = bk_aside_path(s->arena, s->directory, s->state.step);
    int error = bk_fault(BK_FAULT_SAVE_ASIDE);
    if (!error && rename(target, aside) != 0)
        error = errno;
    if (error)
        return failed_at("the older checkpoint cannot be set aside", target, error);
    bk_status status = put_in_place(s, target);
    if (status == BK_OK)
        bk_discard(s->arena, s->directory, strrchr(aside, '/') + 1, s->options.run_id);
    else if (rename(aside, target) != 0)
        bk_warn("the older checkpoint cannot be put back (%s): %s", aside, strerror(errno));
    return status;
}

/* In a run that was set back, a directory of this step is there already. */
static bk_status rename_to(const bk_save *s, const char *target)
{
    if (!bk_is_directory(target))
        return put_in_place(s, target);
    if (!same_is_there(s, target))
        return replace(s, target);
    bk_remove_directory(s->temporary);
    return BK_OK;
}

static void point(const bk_save *s, const char *name, const char *target)
{
    const char *hint = bk_arena_printf(s->arena, "%s/%s", s->directory, name);
    const char *text = bk_arena_printf(s->arena, "%s\n", strrchr(target, '/') + 1);
    int error = bk_fault(BK_FAULT_SAVE_LATEST);
    if (error)
        bk_warn("the file cannot be written (%s): %s", hint, strerror(error));
    else if (bk_write_text(hint, text) != BK_OK)
        bk_warn("%s", bk_status_text());
}

bk_status bk_commit(const bk_save *s)
{
    const char *target = bk_step_path(s->arena, s->directory, s->state.step);
    bk_payload_digest(s->plan.manifest, s->leaves, s->plan.manifest->payload);
    describe(s);
    BK_TRY(write_manifest(s));
    BK_TRY(rename_to(s, target));
    bk_manifest_believe(s->plan.manifest);
    point(s, "latest", target);
    if (s->options.best == s->state.step)
        point(s, "best", target);
    bk_retain(s->arena, s->directory, &s->options);
    return BK_OK;
}
