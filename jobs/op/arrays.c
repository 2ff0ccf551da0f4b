/* The files of `birkhoff op`: inputs against what the operator reads, own rows, outputs. */
#include "io/files.h"
#include "io/hdf5.h"
#include "jobs/op/op.h"

#include "dist/agree.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- names ---- */

/* "student[B,V], teacher[B,V], mask[B]": what the operator reads, for messages. */
static const char *signature(const bk_operator_call *c)
{
    const char *text = "";
    for (const bk_operator_array *a = c->op.input; a->type; a++)
        text = bk_arena_printf(c->arena, "%s%s%s", text, *text ? ", " : "", a->name);
    return text;
}

static const char *axes_text(const bk_operator_call *c, const bk_operator_array *a)
{
    const char *text = a->name;
    for (const char *axis = a->axes; *axis; axis++)
        text = bk_arena_printf(c->arena, "%s%c%c", text, axis == a->axes ? '[' : ',', (char)*axis);
    return bk_arena_printf(c->arena, "%s%s", text, *a->axes ? "]" : "");
}

static bk_status refuse_name(const bk_operator_call *c, const char *path)
{
    const char *names[BK_OPERATOR_INPUTS + BK_OPERATOR_OUTPUTS + 1] = {0};
    int count = 0;
    for (const bk_operator_array *a = c->op.input; a->type; a++)
        names[count++] = a->name;
    for (const bk_operator_array *a = c->op.output; a->type; a++)
        if (a->differentiable)
            names[count++] = bk_arena_printf(c->arena, "grad/%s", a->name);
    const char *near = bk_nearest(path, names);
    return bk_fail(BK_USAGE, "%s is not read by %s%s%s%s (%s): it reads %s", path, c->op.name,
                   near ? " (did you mean " : "", near ? near : "", near ? "?)" : "", c->in,
                   signature(c));
}

static bool is_read(const bk_operator_call *c, const char *path)
{
    const char *gradient = strncmp(path, "grad/", 5) == 0 ? path + 5 : NULL;
    int i = bk_operator_find(gradient ? c->op.output : c->op.input, gradient ? gradient : path);
    return i >= 0 && (!gradient || c->op.output[i].differentiable);
}

static bk_status check_names(const bk_operator_call *c, bk_h5 *file)
{
    char **paths;
    BK_TRY(bk_h5_walk(file, c->arena, &paths));
    for (; *paths; paths++)
        if (!is_read(c, *paths + 1))
            return refuse_name(c, *paths + 1);
    return BK_OK;
}

/* ---- shapes ---- */

typedef struct stored {
    bk_dtype dtype;
    int dims;
    int64_t shape[BK_MAX_DIMS];
} stored;

static bk_status refuse_shape(const bk_operator_call *c, const bk_operator_array *a,
                              const char *path, const stored *s)
{
    char found[BK_SHAPE_TEXT];
    bk_tensor as = {.dims = s->dims};
    memcpy(as.shape, s->shape, sizeof as.shape);
    const char *lengths = "";
    for (const char *axis = a->axes; *axis; axis++)
        if (c->axis[(int)*axis] >= 0)
            lengths = bk_arena_printf(c->arena, "%s, %c = %lld", lengths, *axis,
                                      (long long)c->axis[(int)*axis]);
    return bk_fail(BK_INPUT, "%s has the shape %s, not that of %s%s (%s)", path,
                   bk_shape_text(&as, found), axes_text(c, a), lengths, c->in);
}

/* Binds the axes that are not known yet, compares the others. */
static bk_status check_shape(bk_operator_call *c, const bk_operator_array *a, const char *path,
                             const stored *s)
{
    bool one = *a->axes == '\0' && s->dims == 1 && s->shape[0] == 1; /* a scalar of one element */
    if (s->dims != (int)strlen(a->axes) && !one)
        return refuse_shape(c, a, path, s);
    for (int i = 0; a->axes[i]; i++) {
        int64_t *length = &c->axis[(int)a->axes[i]];
        if (*length < 0)
            *length = s->shape[i];
        if (*length != s->shape[i])
            return refuse_shape(c, a, path, s);
        if (*length == 0 && a->axes[i] != c->op.rows)
            return bk_fail(BK_INPUT, "%s is empty along %c of %s (%s): give it at least one", path,
                           a->axes[i], axes_text(c, a), c->in);
    }
    return BK_OK;
}

static bk_status check_array(bk_operator_call *c, const bk_operator_array *a, const char *path,
                             bk_h5 *file)
{
    stored s;
    BK_TRY(bk_h5_shape(file, path, &s.dtype, &s.dims, s.shape));
    bool real = s.dtype == BK_F32 || s.dtype == BK_F64, wanted = a->type != BK_OPERATOR_INTEGER;
    if (real != wanted)
        return bk_fail(BK_INPUT, "%s holds %s, %s are read (%s): write it as %s", path,
                       real ? "reals" : "integers", wanted ? "reals" : "integers", c->in,
                       wanted ? "float32 or float64" : "int32 or int64");
    return check_shape(c, a, path, &s);
}

static bk_status check_inputs(bk_operator_call *c, bk_h5 *file)
{
    for (int i = 0; c->op.input[i].type; i++) {
        const bk_operator_array *a = &c->op.input[i];
        c->given[i] = bk_h5_exists(file, a->name);
        if (c->given[i])
            BK_TRY(check_array(c, a, a->name, file));
        else if (!a->optional)
            return bk_fail(BK_USAGE, "input %s is missing (%s): %s reads %s", a->name, c->in,
                           c->op.name, signature(c));
    }
    return BK_OK;
}

static const char *gradient_path(const bk_operator_call *c, const bk_operator_array *a)
{
    return bk_arena_printf(c->arena, "grad/%s", a->name);
}

/* Backward runs when a gradient comes in, or when the only differentiable output is a scalar. */
static bk_status check_seeds(bk_operator_call *c, bk_h5 *file, bool *present)
{
    int differentiable = 0, scalars = 0;
    for (int i = 0; c->op.output[i].type; i++) {
        const bk_operator_array *a = &c->op.output[i];
        const char *path = gradient_path(c, a);
        present[i] = a->differentiable && bk_h5_exists(file, path);
        if (present[i])
            BK_TRY(check_array(c, a, path, file));
        c->backward = c->backward || present[i];
        differentiable += a->differentiable;
        scalars += a->differentiable && *a->axes == '\0';
    }
    c->backward = c->backward || (differentiable == 1 && scalars == 1);
    return BK_OK;
}

/* ---- own rows ---- */

static void cut_lanes(bk_operator_call *c)
{
    int rank = c->world->rank, size = c->world->size;
    int64_t total = c->op.lanes ? c->op.lanes(c) : 64 % size == 0 ? 64 : size;
    c->tape.lanes = bk_lanes_of_rank(total, c->axis[(int)c->op.rows], rank, size);
}

static bk_status read_array(bk_operator_call *c, const bk_operator_array *a, const char *path,
                            bk_h5 *file, bk_tensor **out)
{
    bk_dtype dtype = a->type == BK_OPERATOR_INTEGER  ? BK_I32
                     : a->type == BK_OPERATOR_DOUBLE ? BK_F64
                                                     : c->tape.dtype;
    bk_tensor *x;
    BK_TRY(bk_h5_read(file, path, dtype, c->arena, &x));
    if (*a->axes == c->op.rows) {
        int64_t row = x->shape[0] > 0 ? bk_count(x) / x->shape[0] : 0;
        x->data = (char *)x->data + (size_t)(bk_operator_first_row(c) * row) * bk_dtype_size(dtype);
        x->shape[0] = bk_operator_rows(c);
    }
    *out = x;
    return BK_OK;
}

static bk_status read_arrays(bk_operator_call *c, bk_h5 *file, const bool *present)
{
    for (int i = 0; c->op.input[i].type; i++) {
        const bk_operator_array *a = &c->op.input[i];
        if (!c->given[i])
            continue;
        BK_TRY(read_array(c, a, a->name, file, &c->input[i]));
        c->input[i]->needs_grad = c->backward && a->differentiable && a->type == BK_OPERATOR_REAL;
    }
    for (int i = 0; c->op.output[i].type; i++)
        if (present[i])
            BK_TRY(read_array(c, &c->op.output[i], gradient_path(c, &c->op.output[i]), file,
                              &c->seed[i]));
    return BK_OK;
}

static bk_status read_file(bk_operator_call *c, bk_h5 *file)
{
    bool present[BK_OPERATOR_OUTPUTS] = {false};
    BK_TRY(check_inputs(c, file));
    if (c->op.check)
        BK_TRY(c->op.check(c));
    BK_TRY(check_names(c, file));
    BK_TRY(check_seeds(c, file, present));
    cut_lanes(c);
    BK_TRY(read_arrays(c, file, present));
    return c->op.examine ? c->op.examine(c) : BK_OK;
}

bk_status bk_operator_read(bk_operator_call *c)
{
    bk_h5 *file;
    BK_TRY(bk_h5_open_as(c->arena, c->in, "input", "name an HDF5 file with --in", &file));
    bk_status status = read_file(c, file), closed = bk_h5_close(file);
    return status != BK_OK ? status : closed;
}

/* ---- results ---- */

typedef struct result {
    const char *path;
    bk_tensor *array; /* of all ranks */
} result;

typedef struct results {
    result list[BK_OPERATOR_INPUTS + BK_OPERATOR_OUTPUTS];
    int count;
} results;

static void keep(bk_operator_call *c, results *r, const bk_operator_array *a, const char *path,
                 bk_tensor *x)
{
    bool split = *a->axes == c->op.rows;
    r->list[r->count++] =
        (result){path, split ? bk_operator_gather(c->world->data, c->arena, x) : x};
}

/* The gradient of an input, summed over the ranks where they all hold the same input. */
static bk_tensor *gradient_of(bk_operator_call *c, int i)
{
    bk_tensor *x = c->input[i];
    if (c->gradient[i])
        return c->gradient[i];
    void *grad = bk_grad(&c->tape, x);
    if (*c->op.input[i].axes != c->op.rows)
        bk_operator_sum_ranks(c->world->data, x->dtype, bk_count(x), grad, c->tape.scratch);
    return bk_tensor_wrap(c->arena, x->dtype, x->dims, x->shape, grad);
}

static results collect(bk_operator_call *c)
{
    results r = {.count = 0};
    for (int i = 0; c->op.output[i].type; i++)
        if (c->output[i])
            keep(c, &r, &c->op.output[i], c->op.output[i].name, c->output[i]);
    for (int i = 0; c->backward && c->op.input[i].type; i++)
        if (c->given[i] && c->op.input[i].differentiable)
            keep(c, &r, &c->op.input[i], gradient_path(c, &c->op.input[i]), gradient_of(c, i));
    return r;
}

static bk_status write_array(const bk_operator_call *c, bk_h5 *file, const result *r)
{
    const bk_tensor *x = r->array;
    bool real = x->dtype == BK_F32 || x->dtype == BK_F64;
    BK_TRY(bk_h5_create_dataset(file, r->path, real ? c->tape.dtype : x->dtype, x->dims, x->shape));
    return bk_h5_write_rows(file, r->path, x->dtype, 0, x->dims > 0 ? x->shape[0] : 1, x->data);
}

static bk_status write_attributes(const bk_operator_call *c, bk_h5 *file)
{
    BK_TRY(bk_h5_set_attribute_text(file, "/", "operator", c->op.name));
    BK_TRY(bk_h5_set_attribute_text(file, "/", "kind", c->op.kind));
    return bk_h5_set_figures(file, &c->attributes);
}

static bk_status write_content(const bk_operator_call *c, bk_h5 *file, const results *r)
{
    for (int i = 0; i < r->count; i++)
        BK_TRY(write_array(c, file, &r->list[i]));
    return write_attributes(c, file);
}

static bk_status write_file(const bk_operator_call *c, const char *temporary, const results *r)
{
    bk_h5 *file;
    BK_TRY(bk_h5_create(c->arena, temporary, &file));
    bk_status status = write_content(c, file, r), closed = bk_h5_close(file);
    BK_TRY(status != BK_OK ? status : closed);
    return bk_sync_file(temporary);
}

/* The file appears whole or not at all. */
static bk_status commit(const bk_operator_call *c, const char *path, const results *r)
{
    const char *temporary = bk_arena_printf(c->arena, "%s.tmp.%d", path, (int)getpid());
    bk_status status = write_file(c, temporary, r);
    if (status == BK_OK && rename(temporary, path) != 0)
        status = bk_fail(BK_FAULT, "the output cannot be renamed (%s): %s", path, strerror(errno));
    if (status != BK_OK)
        unlink(temporary);
    return status != BK_OK ? status : bk_sync_parent(path);
}

bk_status bk_operator_write(bk_operator_call *c, const char *path)
{
    results r = collect(c);
    return bk_agree(c->world->ctl, c->world->rank == 0 ? commit(c, path, &r) : BK_OK);
}
