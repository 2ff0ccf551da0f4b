/* io/files.h - small things with the file system, each durable when it says so. */
#ifndef BK_IO_FILES_H
#define BK_IO_FILES_H

#include "core/arena.h"

/* Makes a directory and its parents; existing ones are fine.  BK_USAGE when it cannot be made or
 * written. */
BK_CHECKED bk_status bk_make_directories(const char *path);

/* Reads a whole file; the text ends in NUL, which is not counted.  BK_INPUT. */
BK_CHECKED bk_status bk_read_file(bk_arena *arena, const char *path, char **text, size_t *length);

/* Collective over all ranks of the job: rank 0 reads, all get the text.  BK_USAGE when it cannot be
 * read. */
BK_CHECKED bk_status bk_read_text_everywhere(bk_arena *arena, const char *path, char **text);

/* Temporary name, fsync, rename, fsync of the directory.  BK_USAGE (an output that cannot be
 * written). */
BK_CHECKED bk_status bk_write_text(const char *path, const char *text);

/* Takes an advisory lock that lasts as long as the process and writes `owner` into the file;
 * BK_USAGE when another process holds it. */
BK_CHECKED bk_status bk_lock_file(const char *path, const char *owner);

BK_CHECKED bk_status bk_sync_file(const char *path);      /* fsync of a file, BK_FAULT */
BK_CHECKED bk_status bk_sync_directory(const char *path); /* the same for a directory */
BK_CHECKED bk_status bk_sync_parent(const char *path);    /* of the directory that holds `path` */
/* Before the work: BK_USAGE when a file cannot be made at `path`, or would take the place of a
 * directory, a device or a pipe. */
BK_CHECKED bk_status bk_check_output(const char *path);
bool bk_is_directory(const char *path);
bool bk_same_file(const char *a, const char *b); /* both are there, and one and the same */
int64_t bk_file_size(const char *path);          /* -1 when it is not there */

/* Names in a directory without . and .., NULL-ended, sorted.  Empty when it is not there. */
char **bk_list_directory(bk_arena *arena, const char *path);

/* Removes a directory with the plain files in it (no deeper); errors are ignored. */
void bk_remove_directory(const char *path);

#endif
