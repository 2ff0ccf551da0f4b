#include "core/transport/batch.h"

#include "core/blas.h"
#include "core/hooks.h"
#include "core/vector.h"

#include <omp.h>
#include <string.h>

static const bk_batch_kernels *kernels(bk_dtype dtype)
{
    return BK_KERNEL_SELECT(bk_batch_kernels, dtype);
}

/* [half_steps, longer of rows and columns] */
static int64_t step_numbers(int64_t rows, int64_t columns, int64_t half_steps)
{
    return half_steps * (rows > columns ? rows : columns);
}

/* The next piece of a work space. */
static void *take(char **at, int64_t count, bk_dtype dtype)
{
    void *piece = *at;
    *at += ((size_t)count * bk_dtype_size(dtype) + 63) / 64 * 64;
    return piece;
}

/* ---- one problem ---- */

static int64_t potentials(int64_t columns, int64_t half_steps)
{
    return (half_steps / 2 + 1) * columns;
}

size_t bk_batch_single_size(bk_dtype dtype, int64_t rows, int64_t columns, int64_t half_steps)
{
    int64_t count = 2 * step_numbers(rows, columns, half_steps) + potentials(columns, half_steps) +
                    rows + 2 * columns;
    return (size_t)count * bk_dtype_size(dtype) + 4 * 64;
}

void bk_batch_single_forward(bk_dtype dtype, bk_batch_single *k, void *work)
{
    char *at = work;
    k->shift = take(&at, step_numbers(k->rows, k->columns, k->half_steps), dtype);
    k->part = take(&at, step_numbers(k->rows, k->columns, k->half_steps), dtype);
    k->v = take(&at, potentials(k->columns, k->half_steps), dtype);
    k->work = take(&at, k->rows + 2 * k->columns, dtype);
    kernels(dtype)->single_forward(k);
}

void bk_batch_single_backward(bk_dtype dtype, const bk_batch_single *k)
{
    kernels(dtype)->single_backward(k);
}

/* ---- a slot by itself: its rows and columns with mass, side by side ---- */

typedef struct slot_view {
    bk_dtype dtype;
    int64_t slots, slot, columns; /* of the block */
    int64_t row[BK_BATCH_MOST], column[BK_BATCH_MOST], count, width;
} slot_view;

static int64_t with_mass(const slot_view *v, const void *mass, int64_t n, int64_t *index)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        if (bk_real_get(v->dtype, mass, i * v->slots + v->slot) > 0)
            index[count++] = i;
    return count;
}

static void gather_line(const slot_view *v, const void *x, int64_t n, const int64_t *index,
                        void *out)
{
    for (int64_t i = 0; i < n; i++)
        bk_real_put(v->dtype, out, i, bk_real_get(v->dtype, x, index[i] * v->slots + v->slot));
}

static int64_t place(const slot_view *v, int64_t i, int64_t j)
{
    return (v->row[i] * v->columns + v->column[j]) * v->slots + v->slot;
}

static void gather(const slot_view *v, const void *x, void *out)
{
    for (int64_t i = 0; i < v->count; i++)
        for (int64_t j = 0; j < v->width; j++)
            bk_real_put(v->dtype, out, i * v->width + j, bk_real_get(v->dtype, x, place(v, i, j)));
}

/* The rest of the slot is 0. */
static void scatter(const slot_view *v, int64_t rows, const void *x, void *out)
{
    for (int64_t i = 0; i < rows * v->columns; i++)
        bk_real_put(v->dtype, out, i * v->slots + v->slot, 0.0);
    for (int64_t i = 0; i < v->count; i++)
        for (int64_t j = 0; j < v->width; j++)
            bk_real_put(v->dtype, out, place(v, i, j), bk_real_get(v->dtype, x, i * v->width + j));
}

/* Work: masses, four matrices, and that of the problem. */
static size_t slot_work_size(bk_dtype dtype, const bk_batch_block *k)
{
    int64_t count = k->rows + k->columns + 4 * k->rows * k->columns;
    return (size_t)count * bk_dtype_size(dtype) + 6 * 64 +
           bk_batch_single_size(dtype, k->rows, k->columns, k->half_steps);
}

/* One slot by itself; ds too, where k->g is given. */
static void run_slot(bk_dtype dtype, const bk_batch_block *k, int64_t slot, void *work)
{
    char *at = work;
    slot_view v = {.dtype = dtype, .slots = bk_slots(dtype), .slot = slot};
    v.columns = k->columns;
    v.count = with_mass(&v, k->a, k->rows, v.row);
    v.width = with_mass(&v, k->b, k->columns, v.column);
    void *a = take(&at, v.count, dtype), *b = take(&at, v.width, dtype),
         *s = take(&at, v.count * v.width, dtype), *g = take(&at, v.count * v.width, dtype);
    bk_batch_single one = {.rows = v.count,
                           .columns = v.width,
                           .half_steps = k->half_steps,
                           .s = s,
                           .a = a,
                           .b = b,
                           .plan = take(&at, v.count * v.width, dtype),
                           .last_only = k->last_only,
                           .g = g,
                           .ds = take(&at, v.count * v.width, dtype)};
    gather_line(&v, k->a, v.count, v.row, a);
    gather_line(&v, k->b, v.width, v.column, b);
    gather(&v, k->s, s);
    bk_batch_single_forward(dtype, &one, at);
    scatter(&v, k->rows, one.plan, k->plan);
    if (!k->g)
        return;
    gather(&v, k->g, g);
    bk_batch_single_backward(dtype, &one);
    scatter(&v, k->rows, one.ds, k->ds);
}

/* ---- a block ---- */

static int64_t factors(const bk_batch_block *k, bk_dtype dtype)
{
    return step_numbers(k->rows, k->columns, k->half_steps) * bk_slots(dtype);
}

size_t bk_batch_work_size(bk_dtype dtype, const bk_batch_block *k)
{
    return (size_t)factors(k, dtype) * bk_dtype_size(dtype) + slot_work_size(dtype, k);
}

static void run_wild(bk_dtype dtype, const bk_batch_block *k, void *work)
{
    char *at = work;
    take(&at, factors(k, dtype), dtype);
    for (int64_t slot = 0; slot < bk_slots(dtype); slot++)
        if (k->wild[slot])
            run_slot(dtype, k, slot, at);
}

void bk_batch_block_forward(bk_dtype dtype, bk_batch_block *k, void *work)
{
    const void *g = k->g;
    k->factor = work;
    kernels(dtype)->forward(k);
    k->g = NULL;
    run_wild(dtype, k, work);
    k->g = g;
}

void bk_batch_block_backward(bk_dtype dtype, bk_batch_block *k, void *work)
{
    kernels(dtype)->backward(k);
    run_wild(dtype, k, work);
}

/* ---- all blocks, shared out over the threads ---- */

typedef struct blocks {
    const bk_batch *batch;
    int64_t count;
    size_t square, row, column, bytes; /* of a block; of the work of a thread */
    char *work;
} blocks;

static bk_batch_block block_of(const blocks *x, int64_t i)
{
    const bk_batch *b = x->batch;
    return (bk_batch_block){.rows = b->rows,
                            .columns = b->columns,
                            .half_steps = b->half_steps,
                            .s = (const char *)b->s + (size_t)i * x->square,
                            .a = (const char *)b->a + (size_t)i * x->row,
                            .b = (const char *)b->b + (size_t)i * x->column};
}

static blocks blocks_of(const bk_batch *b, bool with_plan, bk_arena *scratch)
{
    int64_t slots = bk_slots(b->dtype);
    BK_ASSERT(b->rows <= BK_BATCH_MOST && b->columns <= BK_BATCH_MOST, "%lld x %lld",
              (long long)b->rows, (long long)b->columns);
    blocks x = {.batch = b,
                .count = (b->problems + slots - 1) / slots,
                .square = (size_t)(b->rows * b->columns) * BK_SLOT_BYTES,
                .row = (size_t)b->rows * BK_SLOT_BYTES,
                .column = (size_t)b->columns * BK_SLOT_BYTES};
    bk_batch_block k = {.rows = b->rows, .columns = b->columns, .half_steps = b->half_steps};
    x.bytes = (bk_batch_work_size(b->dtype, &k) + (with_plan ? x.square : 0) + 63) / 64 * 64;
    x.work = bk_arena_alloc(scratch, x.bytes * (size_t)bk_blas_threads());
    return x;
}

static char *own_work(const blocks *x)
{
    return x->work + x->bytes * (size_t)omp_get_thread_num();
}

void bk_transport_batch(const bk_batch *batch, void *plan, bk_arena *scratch)
{
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    blocks x = blocks_of(batch, false, scratch);
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads())
    for (int64_t i = 0; i < x.count; i++) {
        bk_batch_block k = block_of(&x, i);
        k.plan = (char *)plan + (size_t)i * x.square;
        bk_batch_block_forward(batch->dtype, &k, own_work(&x));
    }
    bk_arena_release(scratch, mark);
    bk_poll();
}

void bk_transport_batch_backward(const bk_batch *batch, bool last_only, const void *g, void *ds,
                                 bk_arena *scratch)
{
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    blocks x = blocks_of(batch, true, scratch);
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads())
    for (int64_t i = 0; i < x.count; i++) {
        bk_batch_block k = block_of(&x, i);
        k.last_only = last_only;
        k.g = (const char *)g + (size_t)i * x.square;
        k.ds = (char *)ds + (size_t)i * x.square;
        k.plan = own_work(&x);
        bk_batch_block_forward(batch->dtype, &k, own_work(&x) + x.square);
        bk_batch_block_backward(batch->dtype, &k, own_work(&x) + x.square);
    }
    bk_arena_release(scratch, mark);
    bk_poll();
}
