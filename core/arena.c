#include "core/arena.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define POISON 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define POISON 1
#endif
#endif
#ifdef POISON
#include <sanitizer/asan_interface.h>
/* Blocks are small: what is given back is poisoned byte by byte. */
enum { REDZONE = 64, BLOCK_MIB = 1, PAGE = 4096 };
#else
enum { REDZONE = 0, BLOCK_MIB = 64, PAGE = 2 << 20 };
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

enum { ALIGN = 64 };
static const size_t block_bytes = (size_t)BLOCK_MIB << 20;

typedef struct block {
    struct block *next;
    size_t size; /* of data */
    size_t used;
    size_t before; /* bytes used in the blocks before this one */
    char *data;
} block;

/* A piece that was given back.  Neighbours are joined. */
typedef struct piece {
    char *data;
    size_t bytes;
} piece;

/* Below LEAST bytes a piece is not worth the search; when all PIECES are taken, more are forgotten
 * until the reset. */
enum { PIECES = 1024, LEAST = 4096 };

struct bk_arena {
    const char *name;
    block *first, *current;
    size_t peak, given; /* bytes */
    piece piece[PIECES];
    int pieces;
};

static size_t round_up(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* In large pages where the system has them: a step touches gigabytes. */
static char *map(size_t bytes)
{
    char *data = aligned_alloc(PAGE, bytes);
    if (data)
        madvise(data, bytes, MADV_HUGEPAGE);
    return data;
}

static block *block_new(const bk_arena *arena, size_t bytes)
{
    size_t size = bytes > block_bytes ? (bytes + PAGE - 1) / PAGE * PAGE : block_bytes;
    block *b = malloc(sizeof *b);
    char *data = map(size);
    if (!b || !data)
        bk_fatal("out of memory: %zu bytes for arena %s", size, arena->name);
    *b = (block){.size = size, .data = data};
    ASAN_POISON_MEMORY_REGION(data, size);
    return b;
}

bk_arena *bk_arena_new(const char *name)
{
    bk_arena *arena = malloc(sizeof *arena);
    if (!arena)
        bk_fatal("out of memory: arena %s", name);
    memset(arena, 0, sizeof *arena);
    arena->name = name;
    return arena;
}

void bk_arena_free(bk_arena *arena)
{
    if (!arena)
        return;
    for (block *b = arena->first, *next; b; b = next) {
        next = b->next;
        ASAN_UNPOISON_MEMORY_REGION(b->data, b->size);
        free(b->data);
        free(b);
    }
    free(arena);
}

/* The first kept block behind the current one that is large enough, moved next to it; else a new
 * one. */
static block *next_block(bk_arena *arena, size_t bytes)
{
    block **link = arena->current ? &arena->current->next : &arena->first;
    for (block **b = link; *b; b = &(*b)->next) {
        if ((*b)->size >= bytes) {
            block *found = *b;
            *b = found->next;
            found->next = *link;
            *link = found;
            return found;
        }
    }
    block *fresh = block_new(arena, bytes);
    fresh->next = *link;
    *link = fresh;
    return fresh;
}

/* ---- pieces ---- */

static void remove_piece(bk_arena *arena, int i)
{
    arena->given -= arena->piece[i].bytes;
    arena->piece[i] = arena->piece[--arena->pieces];
}

/* Grows `p` by the piece that touches it, if there is one. */
static bool join_neighbour(bk_arena *arena, piece *p)
{
    for (int i = 0; i < arena->pieces; i++) {
        piece other = arena->piece[i];
        bool before = other.data + other.bytes == p->data;
        if (!before && p->data + p->bytes != other.data)
            continue;
        *p = (piece){before ? other.data : p->data, p->bytes + other.bytes};
        remove_piece(arena, i);
        return true;
    }
    return false;
}

static void add_piece(bk_arena *arena, piece p)
{
    while (join_neighbour(arena, &p))
        ;
    if (p.bytes < LEAST || arena->pieces == PIECES)
        return;
    arena->piece[arena->pieces++] = p;
    arena->given += p.bytes;
}

/* `need` bytes from the smallest piece that holds them; NULL: none does. */
static char *take_piece(bk_arena *arena, size_t need)
{
    int best = -1;
    for (int i = 0; need >= LEAST && i < arena->pieces; i++)
        if (arena->piece[i].bytes >= need &&
            (best < 0 || arena->piece[i].bytes < arena->piece[best].bytes))
            best = i;
    if (best < 0)
        return NULL;
    piece p = arena->piece[best];
    remove_piece(arena, best);
    if (p.bytes > need)
        add_piece(arena, (piece){p.data + need, p.bytes - need});
    return p.data;
}

void bk_arena_give(bk_arena *arena, void *data, size_t bytes)
{
    size_t whole = round_up(bytes ? bytes : 1) + REDZONE;
    ASAN_POISON_MEMORY_REGION(data, whole);
    add_piece(arena, (piece){data, whole});
}

/* ---- requests ---- */

static char *take_from_blocks(bk_arena *arena, size_t need)
{
    block *b = arena->current;
    if (!b || b->size - b->used < need) {
        size_t before = b ? b->before + b->used : 0;
        b = next_block(arena, need);
        b->used = 0;
        b->before = before;
        arena->current = b;
    }
    char *data = b->data + b->used;
    b->used += need;
    if (b->before + b->used > arena->peak)
        arena->peak = b->before + b->used;
    return data;
}

void *bk_arena_alloc(bk_arena *arena, size_t bytes)
{
    BK_ASSERT(bytes <= PTRDIFF_MAX / 2, "arena %s: a negative or absurd size", arena->name);
    size_t need = round_up(bytes ? bytes : 1) + REDZONE;
    char *data = take_piece(arena, need);
    if (!data)
        data = take_from_blocks(arena, need);
    ASAN_UNPOISON_MEMORY_REGION(data, need - REDZONE);
    return data;
}

void *bk_arena_zalloc(bk_arena *arena, size_t bytes)
{
    return memset(bk_arena_alloc(arena, bytes), 0, round_up(bytes ? bytes : 1));
}

char *bk_arena_strdup(bk_arena *arena, const char *text)
{
    size_t bytes = strlen(text) + 1;
    return memcpy(bk_arena_alloc(arena, bytes), text, bytes);
}

char *bk_arena_printf(bk_arena *arena, const char *format, ...)
{
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    BK_ASSERT(length >= 0, "bad format %s", format);
    char *text = bk_arena_alloc(arena, (size_t)length + 1);
    vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    return text;
}

bk_arena_mark bk_arena_get_mark(bk_arena *arena)
{
    BK_ASSERT(arena->pieces == 0, "arena %s: a mark among pieces given back", arena->name);
    block *b = arena->current;
    return (bk_arena_mark){b, b ? b->used : 0};
}

void bk_arena_release(bk_arena *arena, bk_arena_mark mark)
{
    block *b = mark.block;
    for (block *x = b ? b->next : arena->first; x; x = x->next)
        ASAN_POISON_MEMORY_REGION(x->data, x->size);
    if (b) {
        b->used = mark.used;
        ASAN_POISON_MEMORY_REGION(b->data + b->used, b->size - b->used);
    }
    arena->current = b;
}

void bk_arena_reset(bk_arena *arena)
{
    arena->pieces = 0;
    arena->given = 0;
    bk_arena_release(arena, (bk_arena_mark){0});
}

size_t bk_arena_used(const bk_arena *arena)
{
    return arena->current ? arena->current->before + arena->current->used - arena->given : 0;
}

size_t bk_arena_peak(const bk_arena *arena)
{
    return arena->peak;
}
