/* core/arena.h - lifetimes.  Everything is allocated from an arena and dies with it: `run` (the
 * whole program), `step` (tape and activations of one step), `scratch` (inside one op). An arena is
 * a list of 64 MiB blocks that reset keeps; nobody sizes anything. */
#ifndef BK_CORE_ARENA_H
#define BK_CORE_ARENA_H

#include "core/status.h"

typedef struct bk_arena bk_arena;

typedef struct bk_arena_mark {
    void *block;
    size_t used;
} bk_arena_mark;

/* `name` is borrowed and appears in messages.  Out of memory is fatal, here and below. */
bk_arena *bk_arena_new(const char *name);
void bk_arena_free(bk_arena *arena); /* NULL is fine */

/* 64-byte aligned, uninitialised, readable and writable up to the next multiple of 64 bytes (a
 * vector loop may run over the tail).  bytes = 0 gives a valid pointer. */
void *bk_arena_alloc(bk_arena *arena, size_t bytes);
void *bk_arena_zalloc(bk_arena *arena, size_t bytes);
char *bk_arena_strdup(bk_arena *arena, const char *text);
char *bk_arena_printf(bk_arena *arena, const char *format, ...) BK_PRINTF(2, 3);

/* Stack discipline inside one op: everything allocated after the mark is given back. */
bk_arena_mark bk_arena_get_mark(bk_arena *arena);
void bk_arena_release(bk_arena *arena, bk_arena_mark mark);

/* Gives back one piece of `bytes` that bk_arena_alloc handed out; a later request may get it, or
 * parts of it.  For an arena without marks: activations and their gradients die in any order. */
void bk_arena_give(bk_arena *arena, void *data, size_t bytes);

/* Gives everything back; the blocks stay. */
void bk_arena_reset(bk_arena *arena);

/* Bytes in use now, and the most that ever stood in blocks, pieces given back included. */
size_t bk_arena_used(const bk_arena *arena);
size_t bk_arena_peak(const bk_arena *arena);

#define BK_NEW(arena, type, count) ((type *)bk_arena_alloc((arena), sizeof(type) * (size_t)(count)))
#define BK_ZNEW(arena, type, count) \
    ((type *)bk_arena_zalloc((arena), sizeof(type) * (size_t)(count)))

#endif
