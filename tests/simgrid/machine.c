#include "tests/simgrid/machine.h"

#include "core/arena.h"
#include "core/hooks.h"
#include "core/log.h"
#include "core/parallel.h"
#include "core/vector.h"

#include <mpi.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- time ---- */

static bk_machine here;

void bk_machine_set(const bk_machine *machine)
{
    here = *machine;
}

/* Short times add up before they pass: the simulator works for each piece. */
static double owed; /* seconds */

static void pass(double seconds, double least)
{
    owed += seconds;
    if (owed <= least)
        return;
    smpi_execute_flops(owed * here.flops); /* the hosts' speed is given in operations */
    owed = 0.0;
}

void bk_machine_multiply(double flops, bool polls)
{
    double seconds = flops / here.flops, slice = polls ? here.poll : seconds;
    for (; seconds > 0.0; seconds -= slice) {
        pass(seconds < slice ? seconds : slice, polls ? 0.9 * here.poll : 0.0);
        if (owed == 0.0)
            bk_poll();
    }
}

void bk_machine_stream(double bytes)
{
    pass(bytes / here.memory, 2e-5);
}

void bk_machine_flush(void)
{
    pass(0.0, 0.0);
}

double bk_seconds(void)
{
    return MPI_Wtime();
}

/* ---- memory: arrays from 1 MiB on are one, without content ---- */

enum { SHARED = 1 << 20, ALIGN = 64 };

typedef struct piece {
    struct piece *before;
    void *data; /* of this rank alone; NULL: shared */
} piece;

struct bk_arena {
    piece *last;
};

bk_arena *bk_arena_new(const char *name)
{
    (void)name;
    return calloc(1, sizeof(bk_arena));
}

static void drop_until(bk_arena *arena, const piece *mark)
{
    while (arena->last != mark) {
        piece *p = arena->last;
        arena->last = p->before;
        free(p->data);
        free(p);
    }
}

void bk_arena_free(bk_arena *arena)
{
    drop_until(arena, NULL);
    free(arena);
}

void *bk_arena_zalloc(bk_arena *arena, size_t bytes)
{
    BK_ASSERT(bytes < SHARED || bytes <= here.bytes, "an array of %zu bytes", bytes);
    if (bytes >= SHARED)
        return here.payload;
    size_t size = (bytes + ALIGN) / ALIGN * ALIGN;
    piece *p = malloc(sizeof *p);
    *p = (piece){arena->last, aligned_alloc(ALIGN, size)};
    arena->last = p;
    return memset(p->data, 0, size);
}

void *bk_arena_alloc(bk_arena *arena, size_t bytes)
{
    return bk_arena_zalloc(arena, bytes);
}

char *bk_arena_strdup(bk_arena *arena, const char *text)
{
    return strcpy(bk_arena_alloc(arena, strlen(text) + 1), text);
}

bk_arena_mark bk_arena_get_mark(bk_arena *arena)
{
    return (bk_arena_mark){arena->last, 0};
}

void bk_arena_release(bk_arena *arena, bk_arena_mark mark)
{
    drop_until(arena, mark.block);
}

/* ---- arithmetic ---- */

static void add(int64_t n, const void *x, void *y)
{
    (void)x;
    (void)y;
    bk_machine_stream(3.0 * sizeof(float) * (double)n);
}

const bk_vector_kernels bk_vector_kernels_f32 = {.add = add};
const bk_vector_kernels bk_vector_kernels_f32x = {.add = add};
const bk_vector_kernels bk_vector_kernels_f64 = {.add = add};
const bk_vector_kernels bk_vector_kernels_f64x = {.add = add};

void bk_parallel(int64_t n, int64_t unit, int64_t cost, bk_parallel_body *body, void *context)
{
    (void)unit;
    (void)cost;
    body(context, 0, n);
}

bool bk_cpu_avx512(void)
{
    return false;
}
