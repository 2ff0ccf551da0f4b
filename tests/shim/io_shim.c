/* Preloaded below every library: BIRKHOFF_SHIM=CALL:ERROR:TEXT:NTH lets the NTH call of CALL (write
 * or fsync, in all their forms) on a file whose path holds TEXT fail with ERROR (enospc, eio), or
 * write half of what it should (short). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long passed;

/* Whether this call is the one; *error: its errno, 0 for a short write. */
static int is_chosen(const char *call, int file, int *error)
{
    char wish[512], link[64], path[4096], *rest = NULL;
    const char *given = getenv("BIRKHOFF_SHIM");
    snprintf(wish, sizeof wish, "%s", given ? given : "");
    const char *name = strtok_r(wish, ":", &rest), *what = strtok_r(NULL, ":", &rest);
    const char *text = strtok_r(NULL, ":", &rest), *nth = strtok_r(NULL, ":", &rest);
    if (!name || !what || !text || !nth || strcmp(name, call) != 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    *error = strcmp(what, "enospc") == 0 ? ENOSPC : strcmp(what, "eio") == 0 ? EIO : 0;
    return strstr(path, text) && atomic_fetch_add(&passed, 1) + 1 == atol(nth);
}

static size_t bytes_to_write(int file, size_t bytes, int *error)
{
    int chosen = is_chosen("write", file, error);
    if (!chosen)
        *error = 0;
    return chosen && *error == 0 ? (bytes + 1) / 2 : bytes;
}

ssize_t write(int file, const void *data, size_t bytes)
{
    int error;
    ssize_t (*next)(int, const void *, size_t);
    *(void **)&next = dlsym(RTLD_NEXT, "write");
    size_t some = bytes_to_write(file, bytes, &error);
    errno = error ? error : errno;
    return error ? -1 : next(file, data, some);
}

ssize_t pwrite(int file, const void *data, size_t bytes, off_t at)
{
    int error;
    ssize_t (*next)(int, const void *, size_t, off_t);
    *(void **)&next = dlsym(RTLD_NEXT, "pwrite");
    size_t some = bytes_to_write(file, bytes, &error);
    errno = error ? error : errno;
    return error ? -1 : next(file, data, some, at);
}

ssize_t pwrite64(int file, const void *data, size_t bytes, off64_t at)
{
    return pwrite(file, data, bytes, at);
}

int fsync(int file)
{
    int error = 0;
    int (*next)(int);
    *(void **)&next = dlsym(RTLD_NEXT, "fsync");
    if (!is_chosen("fsync", file, &error) || error == 0)
        return next(file);
    errno = error;
    return -1;
}
