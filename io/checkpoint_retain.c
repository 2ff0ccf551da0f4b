/* What goes and what comes back: old checkpoints, and what saves that were killed left behind. */
#include "io/checkpoint_internal.h"

#include "core/fault.h"
#include "core/log.h"
#include "io/files.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* The name of a checkpoint while another takes its place. */
#define ASIDE ".aside-"

/* ---- left behind ---- */

const char *bk_aside_path(bk_arena *arena, const char *directory, int64_t step)
{
    return bk_arena_printf(arena, "%s/" ASIDE "step-%08lld", directory, (long long)step);
}

int64_t bk_step_aside(const char *name)
{
    return strncmp(name, ASIDE, strlen(ASIDE)) == 0 ? bk_step_of(name + strlen(ASIDE)) : -1;
}

/* Its successor is in place for good. */
static bool is_replaced(bk_arena *arena, const char *directory, const char *name)
{
    int64_t step = bk_step_aside(name);
    return step >= 0 && bk_is_directory(bk_step_path(arena, directory, step)) &&
           bk_sync_directory(directory) == BK_OK;
}

/* Left by a save that was killed: ours of the same name, or an hour old. */
static bool stale(bk_arena *arena, const char *directory, const char *name, const char *own)
{
    struct stat s;
    if (strncmp(name, ".trash-", 7) == 0 || strcmp(name, own) == 0 ||
        is_replaced(arena, directory, name))
        return true;
    return strncmp(name, ".tmp-", 5) == 0 &&
           stat(bk_arena_printf(arena, "%s/%s", directory, name), &s) == 0 &&
           time(NULL) - s.st_mtime > 3600;
}

void bk_remove_stale(bk_arena *arena, const char *directory, const char *own)
{
    for (char **names = bk_list_directory(arena, directory); *names; names++)
        if (stale(arena, directory, *names, own))
            bk_remove_directory(bk_arena_printf(arena, "%s/%s", directory, *names));
}

void bk_checkpoint_restore(const char *directory)
{
    bk_arena *arena = bk_arena_new("restore");
    for (char **names = bk_list_directory(arena, directory); *names; names++) {
        const char *from = bk_arena_printf(arena, "%s/%s", directory, *names);
        const char *to = bk_step_path(arena, directory, bk_step_aside(*names));
        if (bk_step_aside(*names) < 0 || bk_is_directory(to))
            continue;
        if (rename(from, to) != 0 || bk_sync_directory(directory) != BK_OK)
            bk_warn("the checkpoint cannot be put back (%s): %s", from, strerror(errno));
    }
    bk_arena_free(arena);
}

void bk_checkpoint_sweep(const char *directory)
{
    bk_arena *arena = bk_arena_new("sweep");
    for (char **names = bk_list_directory(arena, directory); *names; names++)
        if (strncmp(*names, ".tmp-", 5) == 0 || strncmp(*names, ".trash-", 7) == 0 ||
            is_replaced(arena, directory, *names))
            bk_remove_directory(bk_arena_printf(arena, "%s/%s", directory, *names));
    bk_arena_free(arena);
}

/* ---- what is valid ---- */

/* What this process wrote or found good lately.  Retention asks at each save, and reading every
 * kept checkpoint once is enough. */
enum { BELIEVED = 64 };
static struct {
    int64_t step;
    char payload[BK_SHA256_TEXT];
} believed[BELIEVED];
static int next_believed;

void bk_manifest_believe(const bk_manifest *m)
{
    int at = next_believed++ % BELIEVED;
    believed[at].step = m->step;
    memcpy(believed[at].payload, m->payload, sizeof believed[at].payload);
}

static bool is_believed(const bk_manifest *m)
{
    for (int i = 0; i < BELIEVED; i++)
        if (believed[i].step == m->step && strcmp(believed[i].payload, m->payload) == 0)
            return true;
    return false;
}

/* Whole: manifest, sizes, and digests unless they were checked before. */
static bool is_valid(bk_arena *arena, const char *path)
{
    bk_manifest m;
    if (bk_manifest_read(arena, path, &m) != BK_OK)
        return false;
    if (is_believed(&m))
        return true;
    if (bk_manifest_verify(arena, path, &m) != BK_OK)
        return false;
    bk_manifest_believe(&m);
    return true;
}

/* ---- retention ---- */

void bk_discard(bk_arena *arena, const char *directory, const char *name, const char *run_id)
{
    const char *from = bk_arena_printf(arena, "%s/%s", directory, name);
    const char *trash =
        bk_arena_printf(arena, "%s/.trash-%s.%s.%d", directory, name, run_id, (int)getpid());
    if (rename(from, trash) != 0 || bk_sync_directory(directory) != BK_OK)
        bk_warn("an old checkpoint cannot be removed (%s)", from);
    else if (!bk_fault(BK_FAULT_SAVE_UNLINK))
        bk_remove_directory(trash);
}

void bk_retain(bk_arena *arena, const char *directory, const bk_save_options *o)
{
    int64_t *steps, count = bk_list_steps(arena, directory, &steps), valid = 0, newer = 0;
    int64_t keep = o->keep > 2 ? o->keep : 2;
    if (bk_fault(BK_FAULT_SAVE_RETAIN))
        return;
    for (int64_t i = 0; i < count; i++) {
        const char *path = bk_place_of_step(NULL, arena, directory, steps[i]);
        if (!is_valid(arena, path))
            continue; /* evidence, not ours to remove */
        bool kept = valid++ < keep || (o->keep_every > 0 && steps[i] % o->keep_every == 0) ||
                    steps[i] == o->best || (steps[i] == o->started_from && newer < 2);
        newer += steps[i] > o->started_from;
        if (!kept)
            bk_discard(arena, directory, strrchr(path, '/') + 1, o->run_id);
    }
}
