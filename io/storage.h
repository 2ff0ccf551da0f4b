/* io/storage.h - what a file system is, and whether it keeps what it is told to keep. */
#ifndef BK_IO_STORAGE_H
#define BK_IO_STORAGE_H

#include "core/status.h"

typedef struct bk_storage {
    char type[32];        /* "ext4", "nfs4", "tmpfs"; "unknown" */
    int64_t total, spare; /* bytes; spare: for this user; -1 when it cannot be asked */
} bk_storage;

/* Not collective.  The file system under a path. */
void bk_storage_read(const char *path, bk_storage *out);

/* Not collective.  What a commit does, in small: makes a file in the directory, syncs it, renames
 * it, syncs the directory, and removes the file.  *seconds: from the first sync to the last.
 * BK_USAGE when the directory cannot be written, BK_FAULT when a sync fails. */
BK_CHECKED bk_status bk_storage_try(const char *directory, double *seconds);

/* Not collective.  Writes a file of `bytes` bytes in the directory, syncs it, drops it from the
 * cache of the system where that is allowed, reads it and removes it.  Seconds of the write with
 * its sync, and of the read.  BK_USAGE when the directory cannot be written, BK_FAULT when the sync
 * or the read fails. */
BK_CHECKED bk_status bk_storage_rates(const char *directory, int64_t bytes, double *write,
                                      double *read);

#endif
