#include "losses/row.h"

#include "core/blas.h"

#include <omp.h>
#include <string.h>

double bk_row_weight(const bk_loss_args *args, int reduction)
{
    return reduction == BK_SUM ? 1.0 : args->rows > 0 ? 1.0 / (double)args->rows : 0.0;
}

void bk_row_sum_lanes(const bk_tape *t, int64_t rows, const double *value, double *out)
{
    for (int64_t l = 0; l < t->lanes.count; l++) {
        out[l] = 0.0;
        for (int64_t i = bk_lane_row(&t->lanes, rows, l); i < bk_lane_row(&t->lanes, rows, l + 1);
             i++)
            out[l] += value[i];
    }
}

bk_row_room bk_row_room_new(bk_tape *t, bk_dtype dtype, int64_t count)
{
    bk_row_room room = {.bytes = ((size_t)count * bk_dtype_size(dtype) + 127) / 64 * 64};
    room.data = bk_arena_alloc(t->scratch, room.bytes * (size_t)bk_blas_threads());
    return room;
}

void *bk_row_room_own(const bk_row_room *room)
{
    return room->data + room->bytes * (size_t)omp_get_thread_num();
}

typedef struct row_attributes {
    bk_loss_args args;
    bk_divergence_options options;
    double weight;
    const bk_tensor *teacher; /* NULL: top */
    bk_top top;
} row_attributes;

static const void *row(const void *data, const bk_tensor *x, int64_t i)
{
    return (const char *)data + (size_t)(i * bk_cols(x)) * bk_dtype_size(x->dtype);
}

static void shape(bk_tape *t, bk_node *n)
{
    const row_attributes *a = n->attributes;
    const bk_tensor *s = n->in[0], *q = a->teacher;
    BK_ASSERT(!q || (bk_same_shape(s, q) && q->dtype == s->dtype),
              "student and teacher differ in shape");
    n->out[0]->dtype = BK_F64;
    n->out[0]->dims = 1;
    n->out[0]->shape[0] = t->lanes.count;
}

static bk_coarse_row coarse_row(const row_attributes *a, int64_t i)
{
    int64_t k = a->top.k;
    size_t real = bk_dtype_size(a->args.logits->dtype);
    return (bk_coarse_row){.k = k,
                           .index = a->top.index + i * k,
                           .log_q = (const char *)a->top.log_q + (size_t)(i * (k + 1)) * real};
}

static double row_value(const row_attributes *a, const bk_tensor *s, int64_t i, void *work)
{
    const bk_row_kernels *k = bk_rows_of(s->dtype);
    if (a->top.k == 0)
        return k->divergence(bk_cols(s), row(s->data, s, i), row(a->teacher->data, s, i),
                             &a->options, work);
    bk_coarse_row q = coarse_row(a, i);
    return k->coarse(bk_cols(s), row(s->data, s, i), &q, &a->options, work);
}

static void row_back(const row_attributes *a, const bk_tensor *s, int64_t i, double seed,
                     void *work, void *grad)
{
    const bk_row_kernels *k = bk_rows_of(s->dtype);
    void *ds = (void *)(uintptr_t)row(grad, s, i);
    if (a->top.k == 0) {
        k->divergence_back(bk_cols(s), row(s->data, s, i), row(a->teacher->data, s, i), &a->options,
                           a->weight * seed, work, ds);
        return;
    }
    bk_coarse_row q = coarse_row(a, i);
    k->coarse_back(bk_cols(s), row(s->data, s, i), &q, &a->options, a->weight * seed, work, ds);
}

static void forward(bk_tape *t, bk_node *n)
{
    const row_attributes *a = n->attributes;
    const bk_tensor *s = n->in[0];
    int64_t rows = bk_rows(s);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    bk_row_room work = bk_row_room_new(t, s->dtype, 4 * bk_cols(s));
    double *value = BK_NEW(t->scratch, double, rows);
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (bk_count(s) > 65536)
    for (int64_t i = 0; i < rows; i++)
        value[i] = bk_row_valid(&a->args, i)
                       ? a->weight * row_value(a, s, i, bk_row_room_own(&work))
                       : 0.0;
    bk_row_sum_lanes(t, rows, value, n->out[0]->data);
    bk_arena_release(t->scratch, mark);
}

static void backward(bk_tape *t, bk_node *n)
{
    const row_attributes *a = n->attributes;
    bk_tensor *s = n->in[0];
    const double *seed = n->out[0]->grad;
    void *grad = bk_grad(t, s);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    bk_row_room work = bk_row_room_new(t, s->dtype, 4 * bk_cols(s));
    for (int64_t l = 0; l < t->lanes.count; l++) {
        int64_t last = bk_lane_row(&t->lanes, bk_rows(s), l + 1);
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (bk_count(s) > 65536)
        for (int64_t i = bk_lane_row(&t->lanes, bk_rows(s), l); i < last; i++)
            if (bk_row_valid(&a->args, i))
                row_back(a, s, i, seed[l], bk_row_room_own(&work), grad);
    }
    bk_arena_release(t->scratch, mark);
}

static const bk_op row_loss = {
    .name = "row_loss", .shape = shape, .forward = forward, .backward = backward};

static double temperature_now(const bk_loss_args *args, const bk_row_config *c)
{
    if (args->steps == 0 || c->temperature_end == 0.0)
        return c->temperature;
    double last = args->steps > 1 ? (double)(args->steps - 1) : 1.0;
    return c->temperature + (c->temperature_end - c->temperature) * (double)args->step / last;
}

const char *bk_row_whole(const void *config)
{
    const bk_row_config *c = config;
    bool runs = c->temperature_end != 0.0 && c->temperature_end != c->temperature;
    return runs ? "temperature_end" : NULL;
}

bk_tensor *bk_row_loss(bk_tape *t, const bk_loss_args *args, bk_divergence kind)
{
    const bk_row_config *c = args->config;
    row_attributes a = {.args = *args,
                        .options = {.kind = kind,
                                    .temperature = temperature_now(args, c),
                                    .skew = c->skew,
                                    .beta = c->beta,
                                    .entropy = c->entropy}};
    a.weight = bk_row_weight(args, c->reduction);
    if (c->t_squared)
        a.weight *= a.options.temperature * a.options.temperature;
    a.top = bk_top_read(t, args, c->top_k, a.options.temperature, &a.teacher);
    return bk_apply(t, &row_loss, 1, &args->logits, 1, &a, sizeof a)->out[0];
}
