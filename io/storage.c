#include "io/storage.h"

#include "core/log.h"
#include "io/files.h"

#include <errno.h>
#include <fcntl.h>
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

/* ---- rates ---- */

enum { PIECE = 4 << 20 };

typedef ssize_t transfer(int file, char *data, size_t bytes);

static ssize_t put(int file, char *data, size_t bytes)
{
    return write(file, data, bytes);
}

static ssize_t get(int file, char *data, size_t bytes)
{
    return read(file, data, bytes);
}

static bool move_all(int file, transfer *some, char *data, int64_t bytes)
{
    for (int64_t done = 0; done < bytes;) {
        int64_t left = bytes - done;
        ssize_t moved = some(file, data, (size_t)(left < PIECE ? left : PIECE));
        if (moved <= 0)
            return false;
        done += moved;
    }
    return true;
}

static bk_status time_both(int file, const char *path, char *data, int64_t bytes, double seconds[2])
{
    double start = bk_seconds();
    if (!move_all(file, put, data, bytes))
        return bk_fail(BK_USAGE, "%lld bytes cannot be written (%s): %s", (long long)bytes, path,
                       strerror(errno));
    if (fsync(file) != 0)
        return bk_fail(BK_FAULT, "fsync failed (%s): %s", path, strerror(errno));
    seconds[0] = bk_seconds() - start;
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    start = bk_seconds();
    if (lseek(file, 0, SEEK_SET) != 0 || !move_all(file, get, data, bytes))
        return bk_fail(BK_FAULT, "it cannot be read (%s): %s", path, strerror(errno));
    seconds[1] = bk_seconds() - start;
    return BK_OK;
}

bk_status bk_storage_rates(const char *directory, int64_t bytes, double *write, double *read)
{
    char path[PATH_MAX];
    double seconds[2] = {0.0, 0.0};
    int room = snprintf(path, sizeof path, "%s/.birkhoff-rates.%d", directory, (int)getpid());
    if (room >= (int)sizeof path)
        return bk_fail(BK_USAGE, "the path is too long (%.100s...)", directory);
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0)
        return bk_fail(BK_USAGE, "it cannot be written (%s): %s", path, strerror(errno));
    bk_arena *arena = bk_arena_new("rates");
    char *data = bk_arena_alloc(arena, PIECE);
    for (uint32_t i = 0; i < PIECE; i++) /* nothing that a file system could leave out or pack */
        data[i] = (char)(i * 2654435761u >> 13);
    bk_status status = time_both(file, path, data, bytes, seconds);
    close(file);
    unlink(path);
    bk_arena_free(arena);
    *write = seconds[0];
    *read = seconds[1];
    return status;
}
