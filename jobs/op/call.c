/* What the families of operators share while a call runs. */
#include "jobs/op/op.h"

#include "dist/collective.h"

#include <math.h>
#include <string.h>

/* ---- lists of arrays ---- */

int bk_operator_find(const bk_operator_array *list, const char *name)
{
    for (int i = 0; list[i].type; i++)
        if (strcmp(list[i].name, name) == 0)
            return i;
    return -1;
}

void bk_operator_add(bk_operator_array *list, bk_operator_array array)
{
    while (list->type)
        list++;
    *list = array;
}

void bk_operator_drop(bk_operator_array *list, const char *name)
{
    int i = bk_operator_find(list, name);
    BK_ASSERT(i >= 0, "no array %s", name);
    for (; list[i].type; i++)
        list[i] = list[i + 1];
}

/* ---- inputs ---- */

bool bk_operator_given(const bk_operator_call *c, const char *name)
{
    int i = bk_operator_find(c->op.input, name);
    return i >= 0 && c->given[i];
}

bk_tensor *bk_operator_input(const bk_operator_call *c, const char *name)
{
    int i = bk_operator_find(c->op.input, name);
    return i >= 0 ? c->input[i] : NULL;
}

int64_t bk_operator_first_row(const bk_operator_call *c)
{
    return bk_lanes_first_sample(&c->tape.lanes);
}

int64_t bk_operator_rows(const bk_operator_call *c)
{
    return bk_lanes_samples(&c->tape.lanes);
}

bk_status bk_operator_refuse_input(const bk_operator_call *c, const char *name, const char *why)
{
    return bk_fail(BK_USAGE, "%s is not read by %s %s (%s): remove it", name, c->op.name, why,
                   c->in);
}

static double value_of(const bk_tensor *x, int64_t i)
{
    return x->dtype == BK_F64 ? bk_f64(x)[i] : (double)bk_f32(x)[i];
}

/* The global index of element i of a real input along its first axis. */
static long long row_of(const bk_operator_call *c, const char *name, int64_t i)
{
    char axis = c->op.input[bk_operator_find(c->op.input, name)].axes[0];
    int64_t first = axis == c->op.rows ? bk_operator_first_row(c) : 0;
    const bk_tensor *x = bk_operator_input(c, name);
    return first + i / (bk_count(x) / x->shape[0]);
}

bk_status bk_operator_examine_finite(const bk_operator_call *c, const char *name)
{
    const bk_tensor *x = bk_operator_input(c, name);
    for (int64_t i = 0; x && i < bk_count(x); i++)
        if (!isfinite(value_of(x, i)))
            return bk_fail(BK_INPUT, "%s is not finite in row %lld (%s): write numbers there", name,
                           row_of(c, name, i), c->in);
    return BK_OK;
}

bk_status bk_operator_examine_size(const bk_operator_call *c, const char *name, double most)
{
    const bk_tensor *x = bk_operator_input(c, name);
    for (int64_t i = 0; x && i < bk_count(x); i++)
        if (isfinite(value_of(x, i)) && fabs(value_of(x, i)) > most)
            return bk_fail(BK_INPUT,
                           "%s is %g in row %lld, beyond the %g that %s takes with these options "
                           "(%s): scale it down",
                           name, value_of(x, i), row_of(c, name, i), most, c->op.name, c->in);
    return BK_OK;
}

const int32_t *bk_operator_mask(const bk_operator_call *c, int64_t *valid)
{
    const bk_tensor *mask = bk_operator_input(c, "mask");
    const int32_t *keep = mask ? bk_i32(mask) : NULL;
    *valid = 0;
    for (int64_t i = 0; i < bk_operator_rows(c); i++)
        *valid += !keep || keep[i] != 0;
    bk_sum_i64(c->world->data, 1, valid);
    return keep;
}

/* ---- outputs and their gradients ---- */

void bk_operator_output(bk_operator_call *c, const char *name, bk_tensor *x)
{
    int i = bk_operator_find(c->op.output, name);
    BK_ASSERT(i >= 0, "%s has no output %s", c->op.name, name);
    x->kept = true;
    c->output[i] = x;
}

void bk_operator_output_scalar(bk_operator_call *c, const char *name, double value)
{
    bk_tensor *x = bk_tensor_new(c->arena, BK_F64, 0, NULL);
    *(double *)x->data = value;
    bk_operator_output(c, name, x);
}

void bk_operator_output_lanes(bk_operator_call *c, const char *name, bk_tensor *value)
{
    double sum;
    bk_sum_lanes(c->world->loss, &c->tape.lanes, 1, value->data, &sum);
    bk_operator_output_scalar(c, name, sum);
    if (!c->backward)
        return;
    double *seed = bk_grad(&c->tape, value);
    for (int64_t l = 0; l < bk_count(value); l++)
        seed[l] = bk_operator_seed(c, name);
}

bk_tensor *bk_operator_seed_array(const bk_operator_call *c, const char *name)
{
    int i = bk_operator_find(c->op.output, name);
    return i >= 0 ? c->seed[i] : NULL;
}

double bk_operator_seed(const bk_operator_call *c, const char *name)
{
    int i = bk_operator_find(c->op.output, name);
    if (i < 0)
        return 0.0;
    return c->seed[i] ? bk_f64(c->seed[i])[0] : c->op.output[i].seed;
}

void bk_operator_seed_tape(bk_operator_call *c, const char *name, bk_tensor *x)
{
    const bk_tensor *seed = bk_operator_seed_array(c, name);
    if (seed)
        memcpy(bk_grad(&c->tape, x), seed->data, (size_t)bk_count(x) * bk_dtype_size(x->dtype));
}

/* ---- over the ranks ---- */

typedef struct copies {
    const char *data;
    size_t bytes;
} copies;

static void copy_of_rank(void *context, int64_t rank, void *out)
{
    const copies *all = context;
    memcpy(out, all->data + (size_t)rank * all->bytes, all->bytes);
}

void bk_operator_sum_ranks(const bk_comm *comm, bk_dtype dtype, int64_t n, void *x,
                           bk_arena *scratch)
{
    int size = bk_comm_size(comm);
    if (size == 1)
        return;
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    int64_t *count = BK_NEW(scratch, int64_t, size);
    size_t bytes = (size_t)n * bk_dtype_size(dtype);
    char *data = bk_arena_alloc(scratch, bytes * (size_t)size);
    for (int r = 0; r < size; r++)
        count[r] = (int64_t)bytes;
    bk_allgather_bytes(comm, x, (int64_t)bytes, count, data);
    copies all = {data, bytes};
    bk_lanes ranks = {.total = size, .count = size, .batch = size};
    bk_lane_tree(&ranks, dtype, n, x, copy_of_rank, &all, scratch);
    bk_arena_release(scratch, mark);
}

bk_tensor *bk_operator_gather(const bk_comm *comm, bk_arena *arena, const bk_tensor *x)
{
    int size = bk_comm_size(comm);
    int64_t *count = BK_NEW(arena, int64_t, size), rows = 0, shape[BK_MAX_DIMS];
    int64_t bytes = (int64_t)bk_dtype_size(x->dtype);
    for (int i = 1; i < x->dims; i++)
        bytes *= x->shape[i];
    bk_gather_counts(comm, x->shape[0], count);
    for (int r = 0; r < size; r++) {
        rows += count[r];
        count[r] *= bytes;
    }
    memcpy(shape, x->shape, sizeof shape);
    shape[0] = rows;
    bk_tensor *all = bk_tensor_new(arena, x->dtype, x->dims, shape);
    bk_allgather_bytes(comm, x->data, x->shape[0] * bytes, count, all->data);
    return all;
}
