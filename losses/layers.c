#include "losses/layers.h"

#include "core/blas.h"
#include "core/vector.h"
#include "losses/layers_kernel.h"
#include "losses/row.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- which layer goes with which ---- */

/* "2:4" at *text, moved behind it and a comma; false when it is none. */
static bool take_pair(const char **text, int64_t *student, int64_t *teacher)
{
    char *end;
    if (!isdigit((unsigned char)**text))
        return false;
    *student = strtol(*text, &end, 10);
    if (*end != ':' || !isdigit((unsigned char)end[1]))
        return false;
    *teacher = strtol(end + 1, &end, 10);
    *text = *end == ',' && end[1] ? end + 1 : end;
    return *end == '\0' || *text > end;
}

static bk_status add_pair(const char *kind, int least, int64_t s, int64_t t,
                          const bk_layer_shape *student, const bk_layer_shape *teacher,
                          bk_layer_plan *out)
{
    if (out->pairs == BK_LOSS_PAIRS)
        return bk_fail(BK_USAGE, "layers of %s has more than %d pairs: name fewer", kind,
                       BK_LOSS_PAIRS);
    if (s < least || s > student->layers || t < least || t > teacher->layers)
        return bk_fail(BK_USAGE,
                       "layers of %s pairs %lld with %lld: the student has layers %d to %lld, the "
                       "teacher %d to %lld",
                       kind, (long long)s, (long long)t, least, (long long)student->layers, least,
                       (long long)teacher->layers);
    out->student[out->pairs] = (int)s;
    out->teacher[out->pairs++] = (int)t;
    return BK_OK;
}

static bk_status read_pairs(const char *kind, const char *map, int least,
                            const bk_layer_shape *student, const bk_layer_shape *teacher,
                            bk_layer_plan *out)
{
    const char *text = map;
    int64_t s, t;
    do {
        if (!take_pair(&text, &s, &t))
            return bk_fail(BK_USAGE,
                           "layers=%s of %s is not known: use uniform, last or pairs "
                           "student:teacher such as \"2:4,4:8\"",
                           map, kind);
        BK_TRY(add_pair(kind, least, s, t, student, teacher, out));
    } while (*text);
    return BK_OK;
}

bk_status bk_layers_map(const char *kind, const char *map, int least, const bk_layer_shape *student,
                        const bk_layer_shape *teacher, bk_layer_plan *out)
{
    int64_t ours = student->layers, theirs = teacher->layers;
    *out = (bk_layer_plan){.pairs = 0};
    if (student->front != teacher->front)
        return bk_fail(BK_USAGE,
                       "loss %s compares positions, and one of student and teacher has a class "
                       "position in front: give both the same model.pool",
                       kind);
    if (strcmp(map, "last") == 0)
        return add_pair(kind, least, ours, theirs, student, teacher, out);
    if (strcmp(map, "uniform") != 0)
        return read_pairs(kind, map, least, student, teacher, out);
    for (int64_t l = 1; l <= ours; l++) {
        int64_t depth = (2 * l * theirs + ours) / (2 * ours); /* to nearest */
        BK_TRY(add_pair(kind, least, l, depth < 1 ? 1 : depth, student, teacher, out));
    }
    return BK_OK;
}

/* ---- one row ---- */

typedef struct row {
    bk_dtype dtype;
    int64_t n;
    const void *x, *y; /* [n] */
} row;

static double compare(bk_layer_measure measure, const row *r)
{
    const bk_layers_kernels *k = bk_layers_of(r->dtype);
    if (measure == BK_LAYER_DIVERGENCE)
        return k->divergence(r->n, r->x, r->y);
    if (measure != BK_LAYER_COSINE)
        return k->square(r->n, r->x, r->y) / (measure == BK_LAYER_MEAN_SQUARE ? (double)r->n : 1.0);
    double norm = sqrt(k->dot(r->n, r->x, r->x) * k->dot(r->n, r->y, r->y));
    return norm == 0.0 ? 1.0 : 1.0 - k->dot(r->n, r->x, r->y) / norm;
}

/* dx[n] += factor dD/dx. */
static void compare_back(bk_layer_measure measure, const row *r, double factor, void *dx)
{
    const bk_layers_kernels *k = bk_layers_of(r->dtype);
    if (measure == BK_LAYER_DIVERGENCE) {
        k->divergence_back(r->n, factor, r->x, r->y, dx);
    } else if (measure == BK_LAYER_COSINE) {
        double xx = k->dot(r->n, r->x, r->x), norm = sqrt(xx * k->dot(r->n, r->y, r->y));
        double xy = k->dot(r->n, r->x, r->y);
        if (norm != 0.0)
            k->combine(r->n, factor * xy / (xx * norm), r->x, -factor / norm, r->y, dx);
    } else {
        double twice = 2.0 * factor / (measure == BK_LAYER_MEAN_SQUARE ? (double)r->n : 1.0);
        k->combine(r->n, twice, r->x, -twice, r->y, dx);
    }
}

/* ---- the node ---- */

typedef struct attributes {
    bk_loss_layers layers;
    bk_layer_measure measure;
    bool mean;
    int reduction;
} attributes;

static int64_t heads_of(const bk_tensor *x)
{
    return x->dims == 4 ? x->shape[1] : 1;
}

static int64_t positions_of(const bk_tensor *x)
{
    return x->shape[x->dims - 2];
}

static void shape(bk_tape *t, bk_node *n)
{
    const attributes *a = n->attributes;
    for (int k = 0; k < n->inputs; k++) {
        const bk_tensor *x = n->in[k], *y = a->layers.teacher[k];
        BK_ASSERT(x->dims >= 3 && x->dims == y->dims && x->dtype == y->dtype &&
                      x->shape[0] == y->shape[0] && positions_of(x) == positions_of(y) &&
                      bk_cols(x) == bk_cols(y) && (a->mean || heads_of(x) == heads_of(y)),
                  "layers of student and teacher differ in shape");
    }
    n->out[0]->dtype = BK_F64;
    n->out[0]->dims = 1;
    n->out[0]->shape[0] = t->lanes.count;
}

/* One unit of one position: the heads first .. first+count-1 of x[B,H,N,W]. */
typedef struct unit {
    int64_t sample, position, first, count;
} unit;

static char *at(const bk_tensor *x, const void *data, const unit *u, int64_t head)
{
    int64_t place = (u->sample * heads_of(x) + head) * positions_of(x) + u->position;
    return (char *)(uintptr_t)data + (size_t)(place * bk_cols(x)) * bk_dtype_size(x->dtype);
}

/* The row of one head itself, or in `mean` that of the mean of several. */
static const void *read_unit(const bk_tensor *x, const unit *u, void *mean)
{
    int64_t n = bk_cols(x);
    if (u->count == 1)
        return at(x, x->data, u, u->first);
    memset(mean, 0, (size_t)n * bk_dtype_size(x->dtype));
    for (int64_t h = u->first; h < u->first + u->count; h++)
        bk_vector(x->dtype)->axpy(n, 1.0 / (double)u->count, at(x, x->data, u, h), mean);
    return mean;
}

/* The gradient of a row goes to its head, or in equal parts to several. */
static void add_unit(const attributes *a, const bk_tensor *x, const unit *u, const row *r,
                     double factor, void *work, void *grad)
{
    if (u->count == 1) {
        compare_back(a->measure, r, factor, at(x, grad, u, u->first));
        return;
    }
    memset(work, 0, (size_t)r->n * bk_dtype_size(x->dtype));
    compare_back(a->measure, r, factor / (double)u->count, work);
    for (int64_t h = u->first; h < u->first + u->count; h++)
        bk_vector(x->dtype)->add(r->n, work, at(x, grad, u, h));
}

static int64_t units_of(const attributes *a, const bk_tensor *x)
{
    return a->mean ? 1 : heads_of(x);
}

/* 1/(pairs U M), or 1/(pairs U) for a sum. */
static double weight_of(const attributes *a, const bk_tensor *x)
{
    double count = (double)a->layers.pairs * (double)units_of(a, x);
    if (a->reduction == BK_SUM)
        return 1.0 / count;
    return a->layers.positions > 0 ? 1.0 / (count * (double)a->layers.positions) : 0.0;
}

/* All units of position i of one pair: the sum of D, or with `grad`, to which factor dD/dx is
 * added, nothing.  work: three rows of x. */
static double compare_position(const attributes *a, const bk_tensor *x, const bk_tensor *y,
                               int64_t i, double factor, char *work, void *grad)
{
    size_t bytes = (size_t)bk_cols(x) * bk_dtype_size(x->dtype);
    double sum = 0.0;
    unit u = {.sample = i / positions_of(x), .position = i % positions_of(x)}, v = u;
    for (int64_t k = 0; k < units_of(a, x); k++) {
        u.first = v.first = a->mean ? 0 : k;
        u.count = a->mean ? heads_of(x) : 1;
        v.count = a->mean ? heads_of(y) : 1;
        row r = {x->dtype, bk_cols(x), read_unit(x, &u, work), read_unit(y, &v, work + bytes)};
        if (grad)
            add_unit(a, x, &u, &r, factor, work + 2 * bytes, grad);
        else
            sum += compare(a->measure, &r);
    }
    return sum;
}

static bool is_real(const attributes *a, int64_t i)
{
    return !a->layers.mask || bk_i32(a->layers.mask)[i] != 0;
}

/* value[positions] += the pair's share of each. */
static void forward_pair(bk_tape *t, const attributes *a, int k, const bk_tensor *x, double *value)
{
    int64_t rows = x->shape[0] * positions_of(x);
    double weight = weight_of(a, x);
    bk_row_room work = bk_row_room_new(t, x->dtype, 3 * bk_cols(x));
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (bk_count(x) > 65536)
    for (int64_t i = 0; i < rows; i++)
        if (is_real(a, i))
            value[i] += weight * compare_position(a, x, a->layers.teacher[k], i, 0.0,
                                                  bk_row_room_own(&work), NULL);
}

static void forward(bk_tape *t, bk_node *n)
{
    const attributes *a = n->attributes;
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    int64_t rows = n->inputs > 0 ? n->in[0]->shape[0] * positions_of(n->in[0]) : 0;
    double *value = BK_ZNEW(t->scratch, double, rows);
    for (int k = 0; k < n->inputs; k++)
        forward_pair(t, a, k, n->in[k], value);
    bk_row_sum_lanes(t, rows, value, n->out[0]->data);
    bk_arena_release(t->scratch, mark);
}

static void backward_pair(bk_tape *t, const attributes *a, int k, bk_tensor *x, const double *seed)
{
    int64_t rows = x->shape[0] * positions_of(x);
    double weight = weight_of(a, x);
    bk_row_room work = bk_row_room_new(t, x->dtype, 3 * bk_cols(x));
    void *grad = bk_grad(t, x);
    for (int64_t l = 0; l < t->lanes.count; l++) {
        int64_t last = bk_lane_row(&t->lanes, rows, l + 1);
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (bk_count(x) > 65536)
        for (int64_t i = bk_lane_row(&t->lanes, rows, l); i < last; i++)
            if (is_real(a, i))
                compare_position(a, x, a->layers.teacher[k], i, weight * seed[l],
                                 bk_row_room_own(&work), grad);
    }
}

static void backward(bk_tape *t, bk_node *n)
{
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    for (int k = 0; k < n->inputs; k++)
        if (n->in[k]->needs_grad)
            backward_pair(t, n->attributes, k, n->in[k], n->out[0]->grad);
    bk_arena_release(t->scratch, mark);
}

static const bk_op layers_loss = {
    .name = "layers_loss", .shape = shape, .forward = forward, .backward = backward};

bk_tensor *bk_layers_loss(bk_tape *t, const bk_loss_args *args, bk_tensor *const *x,
                          bk_layer_measure measure, bool mean, int reduction)
{
    attributes a = {
        .layers = *args->layers, .measure = measure, .mean = mean, .reduction = reduction};
    return bk_apply(t, &layers_loss, a.layers.pairs, x, 1, &a, sizeof a)->out[0];
}
