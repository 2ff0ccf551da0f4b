/* tests/support/disk.h - what a disk may hold after a crash.
 *
 * Calls of the system on a directory tree are replayed on a model of a disk that keeps no more than
 * it must: of a file what was synced, of a directory the entries it had when it was synced;
 * anything later may be there, in part, or not. */
#ifndef BK_TESTS_SUPPORT_DISK_H
#define BK_TESTS_SUPPORT_DISK_H

#include "core/arena.h"

typedef enum bk_disk_call {
    BK_DISK_CREATE, /* an empty file */
    BK_DISK_WRITE,  /* bytes at offset */
    BK_DISK_CUT,    /* to so many bytes */
    BK_DISK_SYNC,   /* a file or directory */
    BK_DISK_RENAME, /* within its directory */
    BK_DISK_MKDIR,
    BK_DISK_REMOVE, /* a file or empty directory */
} bk_disk_call;

/* Paths are relative to the root, at most two names; "" is the root itself. */
typedef struct bk_disk_op {
    bk_disk_call call;
    const char *path, *to;
    int64_t offset, bytes;
    const char *data;
} bk_disk_op;

typedef struct bk_disk bk_disk;

/* An empty root; everything lies on the arena. */
bk_disk *bk_disk_new(bk_arena *arena);
void bk_disk_apply(bk_disk *d, const bk_disk_op *op);

/* A crash: how many changes of the root's entries since its last sync it leaves, whether those of
 * the directories below are lost, and what it leaves of data that was not synced. */
typedef enum bk_disk_data { BK_DISK_LOST, BK_DISK_TORN, BK_DISK_KEPT, BK_DISK_DATA } bk_disk_data;
typedef struct bk_disk_crash {
    int changes;
    bool names_lost;
    bk_disk_data data;
} bk_disk_crash;

/* Changes of the root's entries since its last sync. */
int bk_disk_changes(const bk_disk *d);
/* A number for what the crash leaves; equal trees have equal ones. */
uint64_t bk_disk_hash(const bk_disk *d, bk_disk_crash crash);
/* Makes what the crash leaves in an empty directory. */
void bk_disk_make(const bk_disk *d, bk_disk_crash crash, const char *directory);

#endif
