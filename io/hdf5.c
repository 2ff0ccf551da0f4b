/* Files: opening, closing, errors.  Datasets and attributes have files of their own. */
#include "io/hdf5_internal.h"

#include "io/files.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { ALIGN_FROM = 1 << 16, ALIGN_TO = 4096, BEHIND = 1 << 20 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Committed files never change, so readers need no locks, and network file systems refuse them.
 * Every file is closed by its user; the library's own closing at exit crashes over one that could
 * not be written. */
static void start(void)
{
    setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0);
    H5dont_atexit();
    H5open();
    /* a file holds what it says by itself: it names no other file and no code to load */
    H5Lunregister(H5L_TYPE_EXTERNAL);
    H5PLset_loading_state(0);
}

void bk_h5_lock(void)
{
    static _Thread_local bool silenced; /* a thread-safe library has one error stack a thread */
    pthread_once(&once, start);
    pthread_mutex_lock(&lock);
    if (!silenced)
        H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    silenced = true;
}

void bk_h5_unlock(void)
{
    pthread_mutex_unlock(&lock);
}

void bk_h5_start(void)
{
    bk_h5_lock();
    bk_h5_unlock();
}

const char *bk_h5_version(void)
{
    static char text[32];
    unsigned major = 0, minor = 0, release = 0;
    bk_h5_lock();
    H5get_libversion(&major, &minor, &release);
    snprintf(text, sizeof text, "%u.%u.%u", major, minor, release);
    bk_h5_unlock();
    return text;
}

/* ---- errors ---- */

/* What the system said, where the library quotes it among much else. */
static void say(const char *description, char *text)
{
    static const char quote[] = "error message = '";
    const char *system = strstr(description, quote);
    const char *from = system ? system + sizeof quote - 1 : description;
    int length = (int)(system ? strcspn(from, "'") : strlen(from));
    snprintf(text, BK_H5_TEXT, "%.*s", length, from);
    for (char *c = text; *c; c++)
        if (*c == '\n')
            *c = ' ';
}

static herr_t keep_first(unsigned n, const H5E_error2_t *error, void *text)
{
    if (n == 0 && error->desc)
        say(error->desc, text);
    return 0;
}

const char *bk_h5_reason(char text[BK_H5_TEXT])
{
    snprintf(text, BK_H5_TEXT, "the HDF5 library gives no reason");
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, text);
    H5Eclear2(H5E_DEFAULT);
    return text;
}

static bk_status keep(bk_h5 *file, bk_status status)
{
    if (file->status == BK_OK) {
        file->status = status;
        snprintf(file->text, sizeof file->text, "%s", bk_status_text());
    }
    return status;
}

bk_status bk_h5_failed(bk_h5 *file, const char *object, const char *action)
{
    char reason[BK_H5_TEXT];
    bk_h5_reason(reason);
    return keep(file, bk_fail(file->writing ? BK_FAULT : BK_INPUT, "%s cannot %s (%s): %.300s%s%s",
                              object, action, file->path, reason, file->writing ? "" : "; ",
                              file->writing ? "" : file->remedy));
}

bk_status bk_h5_refuse(bk_h5 *file, const char *format, ...)
{
    char text[BK_H5_TEXT];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return keep(file, bk_fail(file->writing ? BK_FAULT : BK_INPUT, "%s (%s): %s", text, file->path,
                              file->remedy));
}

/* ---- open and close ---- */

static bk_h5 *wrap(bk_arena *arena, const char *path)
{
    bk_h5 *file = BK_ZNEW(arena, bk_h5, 1);
    const char *slash = strrchr(path, '/');
    file->path = bk_arena_strdup(arena, path);
    file->name = file->path + (slash ? slash - path + 1 : 0);
    file->what = "file";
    file->remedy = "check the path";
    return file;
}

static hid_t access_list(void)
{
    hid_t list = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(list, H5F_LIBVER_V110, H5F_LIBVER_V110);
    H5Pset_fclose_degree(list, H5F_CLOSE_STRONG);
    H5Pset_alignment(list, ALIGN_FROM, ALIGN_TO);
    return list;
}

bk_status bk_h5_create(bk_arena *arena, const char *path, bk_h5 **out)
{
    bk_h5 *file = wrap(arena, path);
    file->writing = true;
    file->remedy = "check the disk and its permissions";
    bk_h5_lock();
    hid_t creation = H5Pcreate(H5P_FILE_CREATE), access = access_list();
    H5Pset_obj_track_times(creation, 0);
    file->id = H5Fcreate(path, H5F_ACC_EXCL, creation, access);
    bk_status status = file->id < 0 ? bk_h5_failed(file, file->name, "be created") : BK_OK;
    H5Pclose(creation);
    H5Pclose(access);
    bk_h5_unlock();
    *out = status == BK_OK ? file : NULL;
    return status;
}

static bk_status refuse_path(const bk_h5 *file)
{
    struct stat s;
    if (stat(file->path, &s) != 0)
        return bk_fail(BK_INPUT, "%s %s %s (%s): %s", file->what, file->name,
                       errno == ENOENT ? "does not exist" : strerror(errno), file->path,
                       file->remedy);
    if (S_ISDIR(s.st_mode))
        return bk_fail(BK_INPUT, "%s %s is a directory (%s): name a file", file->what, file->name,
                       file->path);
    FILE *readable = fopen(file->path, "rb");
    if (!readable)
        return bk_fail(BK_INPUT, "%s %s cannot be read (%s): %s", file->what, file->name,
                       file->path, strerror(errno));
    fclose(readable);
    if (s.st_size == 0)
        return bk_fail(BK_INPUT, "%s %s is empty (%s): %s", file->what, file->name, file->path,
                       file->remedy);
    return BK_OK;
}

/* Lock held. */
static bk_status open_library(bk_h5 *file)
{
    char reason[BK_H5_TEXT];
    if (H5Fis_hdf5(file->path) <= 0) {
        H5Eclear2(H5E_DEFAULT);
        return bk_fail(BK_INPUT, "%s %s is not an HDF5 file (%s): %s", file->what, file->name,
                       file->path, file->remedy);
    }
    hid_t access = access_list();
    file->id = H5Fopen(file->path, H5F_ACC_RDONLY, access);
    if (file->id < 0)
        bk_h5_reason(reason); /* before the next call clears it */
    H5Pclose(access);
    if (file->id >= 0)
        return BK_OK;
    const char *trouble = strstr(reason, "truncated")                ? "truncated"
                          : strstr(reason, "already open for write") ? "not closed by its writer"
                                                                     : "damaged";
    return bk_fail(BK_INPUT, "%s %s is %s (%s): %.300s; copy it again, or %s", file->what,
                   file->name, trouble, file->path, reason, file->remedy);
}

bk_status bk_h5_open_as(bk_arena *arena, const char *path, const char *what, const char *remedy,
                        bk_h5 **out)
{
    bk_h5 *file = wrap(arena, path);
    file->what = what;
    file->remedy = remedy;
    BK_TRY(refuse_path(file));
    bk_h5_lock();
    bk_status status = open_library(file);
    bk_h5_unlock();
    *out = status == BK_OK ? file : NULL;
    return status;
}

bk_status bk_h5_open(bk_arena *arena, const char *path, bk_h5 **file)
{
    return bk_h5_open_as(arena, path, "file", "check the path", file);
}

bk_status bk_h5_close(bk_h5 *file)
{
    bk_h5_lock();
    bk_status ignored = BK_OK; /* what counts is the first failure, which the file keeps */
    if (file->writing && H5Fflush(file->id, H5F_SCOPE_GLOBAL) < 0)
        ignored = bk_h5_failed(file, file->name, "be flushed");
    if (H5Fclose(file->id) < 0)
        ignored = bk_h5_failed(file, file->name, "be closed");
    (void)ignored;
    bk_h5_unlock();
    return file->status == BK_OK ? BK_OK : bk_fail(file->status, "%s", file->text);
}

/* The handle of the default driver is a descriptor.  The end stays behind: the library cuts the
 * file to its size when it is closed, which waits for pages there that are on their way.  A hint:
 * failure changes nothing. */
void bk_h5_start_writing_back(bk_h5 *file)
{
    void *handle = NULL;
    struct stat now;
    bk_h5_lock();
    if (H5Fget_vfd_handle(file->id, H5P_DEFAULT, &handle) >= 0 && handle &&
        fstat(*(int *)handle, &now) == 0 && now.st_size > BEHIND)
        sync_file_range(*(int *)handle, 0, now.st_size - BEHIND, SYNC_FILE_RANGE_WRITE);
    bk_h5_unlock();
}

void bk_h5_set_deflate(bk_h5 *file, int level)
{
    file->deflate = level;
}

/* ---- what every file of ours has ---- */

bk_status bk_h5_stamp(bk_h5 *file, const char *format)
{
    const int32_t version[2] = {1, 0};
    char now[32];
    time_t seconds = time(NULL);
    struct tm utc;
    gmtime_r(&seconds, &utc);
    strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", &utc);
    BK_TRY(bk_h5_set_attribute_text(file, "/", "format", format));
    BK_TRY(bk_h5_set_attribute(file, "/", "format_version", BK_I32, 2, version));
    BK_TRY(bk_h5_set_attribute_text(file, "/", "birkhoff_version", BIRKHOFF_VERSION));
    return bk_h5_set_attribute_text(file, "/", "created", now);
}

bk_status bk_h5_expect_version(bk_h5 *file)
{
    int32_t version[2] = {0};
    BK_TRY(bk_h5_attribute(file, "/", "format_version", BK_I32, 2, version));
    if (version[0] != 1)
        return bk_h5_refuse(file, "%s %s has format version %d.%d, this program reads 1.x",
                            file->what, file->name, version[0], version[1]);
    return BK_OK;
}

static bk_status expect(bk_h5 *file, const char *format, bk_arena *scratch)
{
    char *found;
    if (!bk_h5_has_attribute(file, "/", "format"))
        return bk_h5_refuse(file, "%s %s was not made by birkhoff: it has no attribute format",
                            file->what, file->name);
    BK_TRY(bk_h5_attribute_text(file, "/", "format", scratch, &found));
    if (strcmp(found, format) != 0)
        return bk_h5_refuse(file, "%s %s is of format \"%.60s\", not \"%s\"", file->what,
                            file->name, found, format);
    return bk_h5_expect_version(file);
}

bk_status bk_h5_expect(bk_h5 *file, const char *format)
{
    bk_arena *scratch = bk_arena_new("format");
    bk_status status = expect(file, format, scratch);
    bk_arena_free(scratch);
    return status;
}
