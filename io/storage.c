#include "io/storage.h"

#include "core/log.h"
#include "io/files.h"

#include <errno.h>
#include <limits.h>
#include <mntent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* ---- the file system ---- */

/* Whether `directory` is `path` or above it. */
static bool above(const char *directory, const char *path)
{
    size_t length = strlen(directory);
    if (strcmp(directory, "/") == 0)
        return true;
    return strncmp(directory, path, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* The innermost mount above the path; of two on one place the later one hides the other. */
static void find_type(const char *path, char type[32])
{
    char real[PATH_MAX];
    size_t best = 0;
    FILE *mounts = setmntent("/proc/self/mounts", "r");
    snprintf(type, 32, "unknown");
    if (!mounts)
        return;
    for (struct mntent *m; realpath(path, real) && (m = getmntent(mounts));)
        if (above(m->mnt_dir, real) && strlen(m->mnt_dir) >= best) {
            best = strlen(m->mnt_dir);
            snprintf(type, 32, "%.31s", m->mnt_type);
        }
    endmntent(mounts);
}

void bk_storage_read(const char *path, bk_storage *out)
{
    struct statvfs s;
    *out = (bk_storage){.total = -1, .spare = -1};
    find_type(path, out->type);
    if (statvfs(path, &s) != 0)
        return;
    out->total = (int64_t)(s.f_blocks * s.f_frsize);
    out->spare = (int64_t)(s.f_bavail * s.f_frsize);
}

/* ---- a commit in small ---- */

static bk_status write_probe(const char *path)
{
    FILE *file = fopen(path, "w");
    bool good = file && fputs("birkhoff doctor\n", file) >= 0;
    if (file && fclose(file) != 0)
        good = false;
    return good ? BK_OK : bk_fail(BK_USAGE, "it cannot be written (%s): %s", path, strerror(errno));
}

static bk_status commit_probe(const char *from, const char *to)
{
    BK_TRY(bk_sync_file(from));
    if (rename(from, to) != 0)
        return bk_fail(BK_FAULT, "rename failed (%s): %s", to, strerror(errno));
    return bk_sync_parent(to);
}

bk_status bk_storage_try(const char *directory, double *seconds)
{
    char from[PATH_MAX], to[PATH_MAX];
    int room = snprintf(from, sizeof from, "%s/.birkhoff-probe.%d.tmp", directory, (int)getpid());
    if (room >= (int)sizeof from)
        return bk_fail(BK_USAGE, "the path is too long (%.100s...)", directory);
    snprintf(to, sizeof to, "%s/.birkhoff-probe.%d", directory, (int)getpid());
    bk_status status = write_probe(from);
    double start = bk_seconds();
    if (status == BK_OK)
        status = commit_probe(from, to);
    *seconds = bk_seconds() - start;
    unlink(from);
    unlink(to);
    return status;
}
