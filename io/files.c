#include "io/files.h"

#include "dist/agree.h"
#include "dist/collective.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_TEXT = 4096 };

bool bk_is_directory(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

int64_t bk_file_size(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISREG(s.st_mode) ? (int64_t)s.st_size : -1;
}

bool bk_same_file(const char *a, const char *b)
{
    struct stat s, t;
    return stat(a, &s) == 0 && stat(b, &t) == 0 && s.st_dev == t.st_dev && s.st_ino == t.st_ino;
}

/* What a file would be renamed over: a device or a pipe must not vanish. */
static bk_status refuse_special(const char *path)
{
    struct stat s;
    if (stat(path, &s) != 0 || S_ISREG(s.st_mode))
        return BK_OK;
    return bk_fail(BK_USAGE, "the output is %s (%s): name a file",
                   S_ISDIR(s.st_mode) ? "a directory" : "no plain file", path);
}

bk_status bk_check_output(const char *path)
{
    char parent[PATH_TEXT];
    if (snprintf(parent, sizeof parent, "%s", path) >= (int)sizeof parent)
        return bk_fail(BK_USAGE, "the path is too long (%.100s...): choose a shorter one", path);
    const char *directory = dirname(parent);
    BK_TRY(refuse_special(path));
    if (!bk_is_directory(directory))
        return bk_fail(BK_USAGE, "the output's directory does not exist (%s): make it first",
                       directory);
    if (access(directory, W_OK | X_OK) != 0 || (bk_file_size(path) >= 0 && access(path, W_OK) != 0))
        return bk_fail(BK_USAGE, "the output cannot be written (%s): %s", path, strerror(errno));
    return BK_OK;
}

bk_status bk_make_directories(const char *path)
{
    char part[PATH_TEXT];
    if (snprintf(part, sizeof part, "%s", path) >= (int)sizeof part)
        return bk_fail(BK_USAGE, "the path is too long (%.100s...): choose a shorter one", path);
    for (char *slash = strchr(part + 1, '/');; slash = strchr(slash + 1, '/')) {
        if (slash)
            *slash = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST)
            return bk_fail(BK_USAGE, "the directory cannot be made (%s): %s", part,
                           strerror(errno));
        if (!slash)
            break;
        *slash = '/';
    }
    if (!bk_is_directory(path) || access(path, W_OK) != 0)
        return bk_fail(
            BK_USAGE,
            "the directory cannot be written (%s): choose another or change its permissions", path);
    return BK_OK;
}

bk_status bk_read_file(bk_arena *arena, const char *path, char **text, size_t *length)
{
    FILE *file = fopen(path, "rb");
    int64_t size = bk_file_size(path);
    if (!file || size < 0) {
        if (file)
            fclose(file);
        return bk_fail(BK_INPUT, "the file cannot be read (%s): %s", path,
                       file ? "not a plain file" : strerror(errno));
    }
    *text = bk_arena_alloc(arena, (size_t)size + 1);
    *length = fread(*text, 1, (size_t)size, file);
    (*text)[*length] = '\0';
    fclose(file);
    return *length == (size_t)size
               ? BK_OK
               : bk_fail(BK_INPUT, "the file is shorter than its size (%s): read it again", path);
}

static bk_status read_and_share(const bk_world *world, bk_arena *arena, const char *path,
                                char **text)
{
    size_t length = 0;
    bk_status status = BK_OK;
    if (world->rank == 0) {
        status = bk_read_file(arena, path, text, &length);
        if (status != BK_OK)
            status =
                bk_fail(BK_USAGE, "the configuration cannot be read (%s): check the path", path);
    }
    BK_TRY(bk_agree(world->ctl, status));
    bk_broadcast(world->ctl, 0, &length, sizeof length);
    if (world->rank != 0)
        *text = bk_arena_zalloc(arena, length + 1);
    bk_broadcast(world->ctl, 0, *text, length);
    return BK_OK;
}

bk_status bk_read_text_everywhere(bk_arena *arena, const char *path, char **text)
{
    bk_arena *scratch = bk_arena_new("communicator");
    bk_world *world;
    bk_status status = bk_world_open(scratch, 1, &world);
    if (status == BK_OK) {
        status = read_and_share(world, arena, path, text);
        bk_world_close(world);
    }
    bk_arena_free(scratch);
    return status;
}

static bk_status sync_path(const char *path, int flags)
{
    int descriptor = open(path, flags | O_CLOEXEC);
    if (descriptor < 0 || fsync(descriptor) != 0) {
        bk_status status = bk_fail(BK_FAULT, "fsync failed (%s): %s", path, strerror(errno));
        if (descriptor >= 0)
            close(descriptor);
        return status;
    }
    close(descriptor);
    return BK_OK;
}

bk_status bk_sync_file(const char *path)
{
    return sync_path(path, O_RDONLY);
}

bk_status bk_sync_directory(const char *path)
{
    return sync_path(path, O_RDONLY | O_DIRECTORY);
}

bk_status bk_sync_parent(const char *path)
{
    char parent[PATH_TEXT];
    snprintf(parent, sizeof parent, "%s", path);
    return bk_sync_directory(dirname(parent));
}

static bk_status write_all(const char *path, const char *text)
{
    size_t length = strlen(text), done = 0;
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor < 0)
        return bk_fail(BK_USAGE, "the file cannot be written (%s): %s", path, strerror(errno));
    while (done < length) {
        ssize_t wrote = write(descriptor, text + done, length - done);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            break;
        done += (size_t)wrote;
    }
    bool good = done == length && fsync(descriptor) == 0;
    bk_status status =
        good ? BK_OK
             : bk_fail(BK_USAGE, "the file cannot be written (%s): %s", path, strerror(errno));
    if (close(descriptor) != 0 && good)
        status = bk_fail(BK_USAGE, "the file cannot be closed (%s): %s", path, strerror(errno));
    return status;
}

bk_status bk_write_text(const char *path, const char *text)
{
    char temporary[PATH_TEXT];
    if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= (int)sizeof temporary)
        return bk_fail(BK_USAGE, "the path is too long (%.100s...): choose a shorter one", path);
    BK_TRY(refuse_special(path));
    bk_status status = write_all(temporary, text);
    if (status == BK_OK && rename(temporary, path) != 0)
        status = bk_fail(BK_USAGE, "the file cannot be renamed (%s): %s", path, strerror(errno));
    if (status != BK_OK) {
        unlink(temporary);
        return status;
    }
    return bk_sync_parent(path);
}

bk_status bk_lock_file(const char *path, const char *owner)
{
    int descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor < 0)
        return bk_fail(BK_USAGE, "the run directory cannot be written (%s): %s", path,
                       strerror(errno));
    if (flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        close(descriptor);
        return bk_fail(
            BK_USAGE,
            "another job is running in this directory (%s): wait for it, or name another run.dir",
            path);
    }
    char host[256] = "", text[512];
    gethostname(host, sizeof host - 1);
    int length = snprintf(text, sizeof text, "%s %s %d\n", owner, host, (int)getpid());
    if (ftruncate(descriptor, 0) != 0 || write(descriptor, text, (size_t)length) != length) {
        bk_status status =
            bk_fail(BK_USAGE, "the lock cannot be written (%s): %s", path, strerror(errno));
        close(descriptor);
        return status;
    }
    return BK_OK; /* the descriptor stays open: the lock lasts as long as the process */
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

char **bk_list_directory(bk_arena *arena, const char *path)
{
    DIR *directory = opendir(path);
    size_t count = 0, room = 0;
    char **names = NULL;
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (count == room) {
            room = room ? 2 * room : 64;
            char **wider = BK_NEW(arena, char *, room + 1);
            if (count > 0)
                memcpy(wider, names, count * sizeof *names);
            names = wider;
        }
        names[count++] = bk_arena_strdup(arena, entry->d_name);
    }
    if (directory)
        closedir(directory);
    if (!names)
        return BK_ZNEW(arena, char *, 1);
    names[count] = NULL;
    qsort(names, count, sizeof *names, by_name);
    return names;
}

void bk_remove_directory(const char *path)
{
    bk_arena *scratch = bk_arena_new("directory");
    char **names = bk_list_directory(scratch, path);
    for (; *names; names++)
        unlink(bk_arena_printf(scratch, "%s/%s", path, *names));
    rmdir(path);
    bk_arena_free(scratch);
}
