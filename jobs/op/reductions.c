/* Operators reduce and sum: the sums of dist on numbers from a file. */
#include "core/param.h"
#include "core/transport/sinkhorn.h"
#include "dist/bucket.h"
#include "dist/collective.h"
#include "dist/reduce_scatter.h"
#include "jobs/op/op.h"

#include <math.h>
#include <string.h>

/* ---- reduce: x[L,n] by the lane tree, as gradients are ---- */

typedef struct reduce_settings {
    bk_operator_settings base;
    int algorithm; /* bk_reduce_algorithm */
    double bucket_mb;
} reduce_settings;

static const bk_option reduce_options[] = {
    BK_OPERATOR_DTYPE(reduce_settings),
    BK_OPTION_CHOICE(reduce_settings, algorithm, BK_REDUCE_TREE, "tree|ring|mpi",
                     "tree: that of training; ring, mpi: to compare"),
    BK_OPTION_F64(reduce_settings, bucket_mb, 4.0, 0.25, 256.0, "size of a bucket in MiB of fp32"),
    BK_OPTION_END,
};

static int64_t bucket_elements(const bk_operator_call *c)
{
    return (int64_t)(((const reduce_settings *)c->own)->bucket_mb * 262144.0);
}

static bk_status check_reduce(bk_operator_call *c)
{
    int64_t lanes = c->axis['L'];
    if (lanes < 1 || (lanes & (lanes - 1)) != 0)
        return bk_fail(BK_USAGE, "x has %lld lanes (%s): give it a power of two", (long long)lanes,
                       c->in);
    return BK_OK;
}

static int64_t lanes_of_reduce(const bk_operator_call *c)
{
    return c->axis['L'];
}

/* Elements [first, first+n) of the own lanes. */
typedef struct piece {
    const bk_tensor *x;
    int64_t first, n;
} piece;

static void lane_of_piece(void *context, int64_t lane, void *out)
{
    const piece *p = context;
    size_t size = bk_dtype_size(p->x->dtype);
    memcpy(out, (const char *)p->x->data + (size_t)(lane * bk_cols(p->x) + p->first) * size,
           (size_t)p->n * size);
}

static void sum_own_lanes(bk_operator_call *c, const piece *p, void *out)
{
    piece copy = *p;
    bk_lane_tree(&c->tape.lanes, p->x->dtype, p->n, out, lane_of_piece, &copy, c->tape.scratch);
}

/* Gradients of training: a slab of parameters that fill a bucket each. */
static bk_slab *make_slab(bk_operator_call *c, const bk_tensor *x)
{
    bk_slab *slab = bk_slab_new(c->arena);
    int64_t n = bk_cols(x), most = bucket_elements(c), size = c->world->size;
    for (int64_t first = 0; first < n; first += most)
        bk_slab_declare(slab, &(bk_parameter){.name = "x",
                                              .shape = {n - first < most ? n - first : most},
                                              .dims = 1,
                                              .global_offset = first,
                                              .global_shape = {n},
                                              .global_dims = 1,
                                              .uses = 1,
                                              .expert = -1});
    int64_t aligned = bk_lanes_exact(&c->tape.lanes, (int)size) ? c->tape.lanes.total : size;
    bk_slab_layout(slab, most, 16 * aligned);
    bk_slab_want_gradients(slab);
    for (int i = 0; i < slab->parameters; i++) {
        const bk_parameter *p = slab->parameter[i];
        sum_own_lanes(c, &(piece){x, p->global_offset, p->count}, slab->grad + p->grad_offset[0]);
    }
    return slab;
}

/* The sums lie in the own segments: through the values they reach all ranks. */
static void gather_slab(bk_reduction *r, bk_slab *slab, float *out)
{
    for (int i = 0; i < slab->buckets; i++) {
        const bk_bucket *b = &slab->bucket[i];
        bk_segment own = bk_reduction_segment(r, i);
        memcpy(slab->value + b->offset + own.lo, slab->grad + b->grad_offset + own.lo,
               (size_t)(own.hi - own.lo) * sizeof *slab->value);
    }
    bk_reduction_allgather(r, slab->value);
    for (int i = 0; i < slab->parameters; i++) {
        const bk_parameter *p = slab->parameter[i];
        memcpy(out + p->global_offset, slab->value + p->offset, (size_t)p->count * sizeof *out);
    }
}

static bk_traffic reduce_slab(bk_operator_call *c, const bk_tensor *x, float *out)
{
    bk_slab *slab = make_slab(c, x);
    bk_reduction *r = bk_reduction_new(c->arena, c->world, slab, &c->tape.lanes, true);
    bk_traffic before = bk_traffic_now();
    bk_reduction_begin(r, &c->tape);
    for (int i = slab->parameters - 1; i >= 0; i--)
        c->tape.grad_ready(c->tape.grad_ready_context, slab->parameter[i], 0);
    bk_reduction_finish(r);
    bk_traffic after = bk_traffic_now();
    gather_slab(r, slab, out);
    return bk_traffic_minus(after, before);
}

/* The same with arrays of any dtype and the other algorithms, bucket by bucket. */
static bk_traffic reduce_arrays(bk_operator_call *c, const bk_tensor *x, char *out)
{
    const reduce_settings *s = c->own;
    int64_t n = bk_cols(x), most = bucket_elements(c), unit = c->world->size, at;
    size_t size = bk_dtype_size(x->dtype);
    bk_traffic sent = {0};
    for (int64_t first = 0; first < n; first += most) {
        int64_t count = n - first < most ? n - first : most;
        int64_t padded = (count + unit - 1) / unit * unit;
        char *sum = bk_arena_zalloc(c->arena, (size_t)padded * size);
        sum_own_lanes(c, &(piece){x, first, count}, sum);
        bk_traffic before = bk_traffic_now();
        bk_reduce_scatter(c->world->world, (bk_reduce_algorithm)s->algorithm, x->dtype, padded, sum,
                          &at);
        bk_traffic after = bk_traffic_now();
        sent.bytes += after.bytes - before.bytes;
        sent.messages += after.messages - before.messages;
        bk_reduce_gather(c->world->world, (bk_reduce_algorithm)s->algorithm, x->dtype, padded, sum);
        memcpy(out + (size_t)first * size, sum, (size_t)count * size);
    }
    return sent;
}

/* Every lane has the gradient of the sum. */
static bk_tensor *spread(bk_operator_call *c, const bk_tensor *x, const bk_tensor *grad)
{
    bk_tensor *out = bk_tensor_new(c->arena, x->dtype, x->dims, x->shape);
    size_t bytes = (size_t)bk_cols(x) * bk_dtype_size(x->dtype);
    for (int64_t i = 0; i < x->shape[0]; i++)
        memcpy((char *)out->data + (size_t)i * bytes, grad->data, bytes);
    return out;
}

static bk_status run_reduce(bk_operator_call *c)
{
    const reduce_settings *s = c->own;
    const bk_tensor *x = bk_operator_input(c, "x"), *grad = bk_operator_seed_array(c, "sum");
    bk_tensor *sum = bk_tensor_new(c->arena, x->dtype, BK_SHAPE(bk_cols(x)));
    bool slab = s->algorithm == BK_REDUCE_TREE && x->dtype == BK_F32;
    bk_traffic sent = slab ? reduce_slab(c, x, sum->data) : reduce_arrays(c, x, sum->data);
    bk_max_i64(c->world->data, 1, &sent.bytes);
    bk_max_i64(c->world->data, 1, &sent.messages);
    bk_attribute_set_integer(&c->attributes, "bytes_sent", sent.bytes);
    bk_attribute_set_integer(&c->attributes, "messages", sent.messages);
    bk_operator_output(c, "sum", sum);
    if (c->backward)
        c->gradient[0] = spread(c, x, grad);
    return BK_OK;
}

/* ---- sum: x[T,E] by rule F1 or F3 ---- */

typedef struct sum_settings {
    bk_operator_settings base;
    int method;
    int64_t lanes;
} sum_settings;

enum { FIXED, LANES };

static const bk_option sum_options[] = {
    BK_OPTION_CHOICE(
        sum_settings, method, FIXED, "fixed|lanes",
        "fixed: int64 fixed point, values in [0, 1]; lanes: double by lane, then tree"),
    BK_OPTION_I64(sum_settings, lanes, 64, 1, 4096, "row blocks of method=lanes, a power of two"),
    {.name = "dtype",
     .type = BK_OPT_CHOICE,
     .offset = offsetof(sum_settings, base.dtype),
     .text = "f64",
     .help = "always double"},
    BK_OPTION_END,
};

static bk_status check_sum(bk_operator_call *c)
{
    int64_t lanes = ((const sum_settings *)c->own)->lanes;
    if ((lanes & (lanes - 1)) != 0)
        return bk_fail(BK_USAGE, "lanes=%lld is no power of two (birkhoff op sum): use 64",
                       (long long)lanes);
    return BK_OK;
}

static int64_t lanes_of_sum(const bk_operator_call *c)
{
    return ((const sum_settings *)c->own)->lanes;
}

static bk_status examine_sum(const bk_operator_call *c)
{
    const bk_tensor *x = bk_operator_input(c, "x");
    if (((const sum_settings *)c->own)->method != FIXED)
        return BK_OK;
    for (int64_t i = 0; i < bk_count(x); i++)
        if (!(bk_f64(x)[i] >= 0.0 && bk_f64(x)[i] <= 1.0))
            return bk_fail(BK_INPUT,
                           "x has %g in row %lld (%s): method=fixed sums values in [0, 1], use "
                           "method=lanes",
                           bk_f64(x)[i], (long long)(bk_operator_first_row(c) + i / bk_cols(x)),
                           c->in);
    return BK_OK;
}

static void sum_fixed(bk_operator_call *c, const bk_tensor *x, double *out)
{
    int64_t columns = bk_cols(x), *sum = BK_ZNEW(c->arena, int64_t, columns);
    int bits = bk_fixed_bits(c->axis['T']);
    for (int64_t i = 0; i < bk_count(x); i++)
        sum[i % columns] += (int64_t)rint(ldexp(bk_f64(x)[i], bits));
    bk_sum_i64(c->world->route, columns, sum);
    for (int64_t j = 0; j < columns; j++)
        out[j] = ldexp((double)sum[j], -bits);
}

static void sum_lanes(bk_operator_call *c, const bk_tensor *x, double *out)
{
    const bk_lanes *lanes = &c->tape.lanes;
    int64_t columns = bk_cols(x), rows = x->shape[0];
    double *record = BK_ZNEW(c->arena, double, lanes->count *columns);
    for (int64_t l = 0; l < lanes->count; l++)
        for (int64_t i = bk_lane_row(lanes, rows, l); i < bk_lane_row(lanes, rows, l + 1); i++)
            for (int64_t j = 0; j < columns; j++)
                record[l * columns + j] += bk_f64(x)[i * columns + j];
    bk_sum_lanes(c->world->loss, lanes, columns, record, out);
}

static bk_status run_sum(bk_operator_call *c)
{
    const bk_tensor *x = bk_operator_input(c, "x");
    bk_tensor *sum = bk_tensor_new(c->arena, BK_F64, BK_SHAPE(bk_cols(x)));
    if (((const sum_settings *)c->own)->method == FIXED)
        sum_fixed(c, x, sum->data);
    else
        sum_lanes(c, x, sum->data);
    bk_operator_output(c, "sum", sum);
    return BK_OK;
}

/* ---- the table ---- */

static const bk_operator operators[] = {
    {.name = "reduce",
     .summary = "sum over lanes, as gradients are summed over the ranks; attributes bytes_sent and "
                "messages are those of the reduce-scatter",
     .kind = "reduce",
     .rows = 'L',
     .input = {{.name = "x", .axes = "Ln", .type = BK_OPERATOR_REAL, .differentiable = true}},
     .output = {{.name = "sum", .axes = "n", .type = BK_OPERATOR_REAL, .differentiable = true}},
     .own_options = reduce_options,
     .own_size = sizeof(reduce_settings),
     .check = check_reduce,
     .lanes = lanes_of_reduce,
     .run = run_reduce},
    {.name = "sum",
     .summary = "column sums that do not depend on the split of the rows",
     .kind = "sum",
     .rows = 'T',
     .always_double = true,
     .input = {{.name = "x", .axes = "TE", .type = BK_OPERATOR_DOUBLE}},
     .output = {{.name = "sum", .axes = "E", .type = BK_OPERATOR_DOUBLE}},
     .own_options = sum_options,
     .own_size = sizeof(sum_settings),
     .check = check_sum,
     .lanes = lanes_of_sum,
     .examine = examine_sum,
     .run = run_sum},
};

bool bk_operator_reductions(int index, bk_arena *arena, bk_operator *op)
{
    (void)arena;
    if (index >= (int)(sizeof operators / sizeof *operators))
        return false;
    *op = operators[index];
    return true;
}
