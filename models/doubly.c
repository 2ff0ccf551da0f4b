#include "models/doubly.h"

#include "core/attributes.h"
#include "core/blas.h"
#include "core/hooks.h"
#include "core/vector.h"
#include "models/projection.h"

#include <math.h>
#include <string.h>

const char bk_doubly_not_causal[] =
    "a causal doubly stochastic matrix is the identity; use softmax";

enum { Q, K, V, MASK, THETA, INPUTS };
enum { OUT, MATRIX, OUTPUTS };

typedef struct attributes {
    bk_doubly_rule rule;
    bk_attention_args args;
    int64_t *counted; /* [B], or NULL */
    bool matrix;
} attributes;

double bk_doubly_scale(double option, const bk_attention_args *a)
{
    return option == 0.0 ? 1.0 / sqrt((double)a->q->shape[3]) : option;
}

static void shape(bk_tape *t, bk_node *n)
{
    const attributes *o = n->attributes;
    const bk_tensor *q = n->in[Q], *k = n->in[K], *v = n->in[V], *mask = n->in[MASK];
    (void)t;
    BK_ASSERT(q->dims == 4 && bk_same_shape(q, k) && bk_same_shape(q, v), "q, k, v are [B,H,N,D]");
    BK_ASSERT(!mask || (mask->dtype == BK_I32 && mask->shape[1] == q->shape[2]), "mask[B,N]");
    n->out[OUT]->dtype = q->dtype;
    n->out[OUT]->dims = 4;
    memcpy(n->out[OUT]->shape, q->shape, sizeof q->shape);
    if (!o->matrix)
        return;
    n->out[MATRIX]->dtype = q->dtype;
    n->out[MATRIX]->dims = 4;
    memcpy(n->out[MATRIX]->shape, q->shape, sizeof q->shape);
    n->out[MATRIX]->shape[3] = q->shape[2];
}

/* ---- a group of problems: what stands in the scratch arena while it is at work ---- */

typedef struct group {
    bk_doubly_group rule;
    const bk_node *node;
    int64_t positions, width;                 /* N, D */
    int64_t *order, *real;                    /* [problems]; real positions of the sample */
    int64_t *index;                           /* [problems, N] which they are */
    void **q, **k, **v, **out, **m, **a, **g; /* [problems]: [n,D], [n,n] */
    bk_gemm *product;                         /* [problems] */
} group;

static const attributes *options_of(const group *x)
{
    return x->node->attributes;
}

static bk_dtype dtype_of(const group *x)
{
    return x->node->in[Q]->dtype;
}

/* The real positions of the sample of problem p. */
static void find_real(group *x, int64_t p)
{
    const bk_tensor *mask = x->node->in[MASK];
    int64_t sample = bk_doubly_unit(&x->rule, p) / x->rule.heads;
    x->real[p] = 0;
    for (int64_t i = 0; i < x->positions; i++)
        if (!mask || bk_i32(mask)[sample * x->positions + i] != 0)
            x->index[p * x->positions + x->real[p]++] = i;
}

static void *matrix_of(const group *x, int64_t rows, int64_t columns)
{
    return bk_arena_alloc(x->rule.scratch, (size_t)(rows * columns) * bk_dtype_size(dtype_of(x)));
}

/* Row i of problem p in an array [B,H,N,columns]. */
static char *row_at(const group *x, const void *data, int64_t columns, int64_t p, int64_t i)
{
    int64_t position = x->index[p * x->positions + i];
    int64_t row = bk_doubly_unit(&x->rule, p) * x->positions + position;
    return (char *)(uintptr_t)data + (size_t)(row * columns) * bk_dtype_size(dtype_of(x));
}

/* The real rows of the problem, rounded where run.precision says so; zeros behind them. */
static void *gather(const group *x, int64_t p, const void *data, bool round)
{
    int64_t n = x->order[p], real = x->real[p];
    size_t row = (size_t)x->width * bk_dtype_size(dtype_of(x));
    char *to = matrix_of(x, n, x->width);
    for (int64_t i = 0; i < real; i++)
        memcpy(to + (size_t)i * row, row_at(x, data, x->width, p, i), row);
    memset(to + (size_t)real * row, 0, (size_t)(n - real) * row);
    if (round && x->rule.tape->bf16 && dtype_of(x) == BK_F32)
        bk_vector(BK_F32)->round_bf16(n * x->width, to, to);
    return to;
}

static void add_rows(const group *x, int64_t p, const void *from, double factor, void *data)
{
    size_t row = (size_t)x->width * bk_dtype_size(dtype_of(x));
    for (int64_t i = 0; i < x->real[p]; i++)
        bk_vector(dtype_of(x))
            ->axpy(x->width, factor, (const char *)from + (size_t)i * row,
                   row_at(x, data, x->width, p, i));
}

/* Enters the problems [first, first + count) of the node. */
static group enter(bk_tape *t, const bk_node *n, int64_t first, int64_t count)
{
    const attributes *o = n->attributes;
    const bk_tensor *q = n->in[Q];
    group x = {.node = n, .positions = q->shape[2], .width = q->shape[3]};
    bk_arena *s = t->scratch;
    x.rule = (bk_doubly_group){.tape = t,
                               .args = &o->args,
                               .config = o->rule.config,
                               .problems = count,
                               .heads = q->shape[1],
                               .first_unit = first,
                               .theta = n->in[THETA],
                               .clamped = BK_ZNEW(s, int64_t, count),
                               .scratch = s};
    x.order = BK_NEW(s, int64_t, count);
    x.real = BK_NEW(s, int64_t, count);
    x.index = BK_NEW(s, int64_t, count * x.positions);
    void ***list[] = {&x.q, &x.k, &x.v, &x.out, &x.m, &x.a, &x.g};
    for (int i = 0; i < 7; i++)
        *list[i] = BK_ZNEW(s, void *, count);
    x.product = BK_ZNEW(s, bk_gemm, count);
    for (int64_t p = 0; p < count; p++) {
        find_real(&x, p);
        x.order[p] = o->rule.order > 0 ? o->rule.order : x.real[p];
        BK_ASSERT(x.real[p] <= x.order[p], "%lld positions", (long long)x.real[p]);
        x.rule.n = x.order[p] > x.rule.n ? x.order[p] : x.rule.n;
    }
    x.rule.order = x.order;
    x.rule.m = x.m;
    x.rule.a = x.a;
    return x;
}

/* ---- products: one for each problem ---- */

typedef struct product {
    void **left, **right, **to;
    bk_transpose ta, tb;
    bool square; /* the result is [n,n], else [n,D] */
    double alpha;
} product;

static void multiply(group *x, const product *w)
{
    for (int64_t p = 0; p < x->rule.problems; p++) {
        int64_t n = x->order[p];
        w->to[p] = matrix_of(x, n, w->square ? n : x->width);
        x->product[p] = (bk_gemm){.ta = w->ta,
                                  .tb = w->tb,
                                  .m = n,
                                  .n = w->square ? n : x->width,
                                  .k = w->square ? x->width : n,
                                  .alpha = w->alpha,
                                  .a = w->left[p],
                                  .lda = w->square ? x->width : n,
                                  .b = w->right[p],
                                  .ldb = x->width,
                                  .c = w->to[p],
                                  .ldc = w->square ? n : x->width,
                                  .varying = x->node->in[MASK] != NULL};
    }
    bk_gemm_batch(dtype_of(x), x->rule.problems, x->product);
}

static void scores(group *x)
{
    for (int64_t p = 0; p < x->rule.problems; p++) {
        x->q[p] = gather(x, p, x->node->in[Q]->data, true);
        x->k[p] = gather(x, p, x->node->in[K]->data, true);
        x->v[p] = gather(x, p, x->node->in[V]->data, true);
        x->a[p] = matrix_of(x, x->order[p], x->order[p]);
    }
    multiply(x, &(product){.left = x->q,
                           .right = x->k,
                           .to = x->m,
                           .tb = BK_T,
                           .square = true,
                           .alpha = options_of(x)->rule.scale});
}

/* ---- dropout on A: eight words a Philox call, index = (head 2^40 + row 2^20 + column) / 8 ---- */

static void drop_row(const group *x, int64_t p, int64_t i, void *row)
{
    const bk_tape *t = x->rule.tape;
    const bk_attention_args *a = x->rule.args;
    int64_t unit = bk_doubly_unit(&x->rule, p), n = x->order[p];
    uint64_t sample = (uint64_t)(bk_lanes_first_sample(&t->lanes) + unit / x->rule.heads);
    uint64_t base = ((uint64_t)(unit % x->rule.heads) << 40) + ((uint64_t)i << 20);
    uint32_t word[8], threshold = (uint32_t)(a->dropout * 4294967296.0);
    double keep = 1.0 / (1.0 - a->dropout);
    for (int64_t j = 0; j < n; j++) {
        if (j % 8 == 0)
            bk_philox_words(bk_philox_for(t->seed, a->layer, BK_USE_DROPOUT_ATTENTION),
                            (uint64_t)t->step, sample, (base + (uint64_t)j) / 8, 1, word);
        double factor = word[j % 8] >= threshold ? keep : 0.0;
        bk_real_put(dtype_of(x), row, j, bk_real_get(dtype_of(x), row, j) * factor);
    }
}

/* Each matrix by its factors, when dropout acts. */
static void drop(const group *x, void *const *matrix)
{
    if (!x->rule.tape->training || x->rule.args->dropout <= 0)
        return;
    for (int64_t p = 0; p < x->rule.problems; p++)
        for (int64_t i = 0; i < x->order[p]; i++)
            drop_row(x, p, i,
                     (char *)matrix[p] + (size_t)(i * x->order[p]) * bk_dtype_size(dtype_of(x)));
}

/* ---- the matrix output ---- */

/* Element by element between [n,n] and the rows and columns of real positions in [N,N]. */
static void spread(const group *x, int64_t p, void *compact, void *whole, bool add_to_compact)
{
    int64_t n = x->order[p], real = x->real[p];
    const int64_t *index = x->index + p * x->positions;
    for (int64_t i = 0; i < real; i++) {
        char *row = row_at(x, whole, x->positions, p, i);
        for (int64_t j = 0; j < real; j++)
            if (dtype_of(x) == BK_F64 && add_to_compact)
                ((double *)compact)[i * n + j] += ((double *)(void *)row)[index[j]];
            else if (dtype_of(x) == BK_F64)
                ((double *)(void *)row)[index[j]] = ((double *)compact)[i * n + j];
            else if (add_to_compact)
                ((float *)compact)[i * n + j] += ((float *)(void *)row)[index[j]];
            else
                ((float *)(void *)row)[index[j]] = ((float *)compact)[i * n + j];
    }
}

/* ---- forward ---- */

/* So many problems at a time: vectors full for every thread, within some megabytes. */
static int64_t group_size(const bk_node *n)
{
    enum { SLOTS = 16, ELEMENTS = 1 << 20 };
    const attributes *o = n->attributes;
    int64_t order = o->rule.order > 0 ? o->rule.order : n->in[Q]->shape[2];
    int64_t least = order <= 64 ? SLOTS * bk_blas_threads() : bk_blas_threads();
    int64_t fit = ELEMENTS / (order * order + 1) / SLOTS * SLOTS;
    return fit > least ? fit : least;
}

static void count_clamped(const group *x)
{
    int64_t *counted = options_of(x)->counted;
    for (int64_t p = 0; counted && p < x->rule.problems; p++)
        counted[bk_doubly_unit(&x->rule, p) / x->rule.heads] += x->rule.clamped[p];
}

static void forward_group(bk_tape *t, bk_node *n, int64_t first, int64_t count)
{
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    group x = enter(t, n, first, count);
    scores(&x);
    options_of(&x)->rule.apply(&x.rule);
    count_clamped(&x);
    for (int64_t p = 0; p < count && options_of(&x)->matrix; p++)
        spread(&x, p, x.a[p], n->out[MATRIX]->data, false);
    drop(&x, x.a);
    multiply(&x, &(product){.left = x.a, .right = x.v, .to = x.out, .alpha = 1.0});
    for (int64_t p = 0; p < count; p++)
        add_rows(&x, p, x.out[p], 1.0, n->out[OUT]->data);
    bk_arena_release(t->scratch, mark);
}

static void clear(const bk_tensor *x, void *data)
{
    memset(data, 0, (size_t)bk_count(x) * bk_dtype_size(x->dtype));
}

static void forward(bk_tape *t, bk_node *n)
{
    int64_t units = n->in[Q]->shape[0] * n->in[Q]->shape[1], size = group_size(n);
    for (int i = 0; i < n->outputs; i++)
        clear(n->out[i], n->out[i]->data);
    for (int64_t first = 0; first < units; first += size)
        forward_group(t, n, first, units - first < size ? units - first : size);
    bk_poll();
}

/* ---- backward ---- */

/* The gradients of the inputs, and of theta for each unit. */
typedef struct gradients {
    void *of[V + 1];
    void *dtheta; /* [units,K] */
    const bk_tensor *theta;
    int64_t heads;
    const bk_tape *tape;
} gradients;

static int64_t angles_of(const bk_tensor *theta)
{
    return theta ? theta->shape[1] : 0;
}

/* G = dout v' + the gradient of the matrix, through dropout. */
static void matrix_gradients(group *x, void **dout)
{
    const bk_node *n = x->node;
    for (int64_t p = 0; p < x->rule.problems; p++)
        dout[p] = gather(x, p, n->out[OUT]->grad, false);
    multiply(
        x, &(product){
               .left = dout, .right = x->v, .to = x->g, .tb = BK_T, .square = true, .alpha = 1.0});
    drop(x, x->g);
    for (int64_t p = 0; p < x->rule.problems && options_of(x)->matrix; p++)
        spread(x, p, x->g[p], n->out[MATRIX]->grad, true);
    x->rule.g = x->g;
    x->rule.dm = x->g;
}

static void add_products(group *x, const product *w, double factor, void *grad)
{
    if (!grad)
        return;
    multiply(x, w);
    for (int64_t p = 0; p < x->rule.problems; p++)
        add_rows(x, p, w->to[p], factor, grad);
}

static void backward_group(bk_tape *t, bk_node *n, int64_t first, int64_t count, const gradients *g)
{
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    group x = enter(t, n, first, count);
    void **dout = BK_NEW(t->scratch, void *, count);
    double scale = options_of(&x)->rule.scale;
    scores(&x);
    matrix_gradients(&x, dout);
    if (g->dtheta)
        x.rule.dtheta =
            (char *)g->dtheta + (size_t)(first * angles_of(g->theta)) * bk_dtype_size(dtype_of(&x));
    options_of(&x)->rule.apply(&x.rule);
    drop(&x, x.a);
    add_products(&x, &(product){.left = x.a, .right = dout, .to = x.out, .ta = BK_T, .alpha = 1.0},
                 1.0, g->of[V]);
    add_products(&x, &(product){.left = x.g, .right = x.k, .to = x.out, .alpha = 1.0}, scale,
                 g->of[Q]);
    add_products(&x, &(product){.left = x.g, .right = x.q, .to = x.out, .ta = BK_T, .alpha = 1.0},
                 scale, g->of[K]);
    bk_arena_release(t->scratch, mark);
}

/* The sum over the samples of a lane, in their order. */
static void theta_of_lane(void *context, int64_t l, void *out)
{
    const gradients *g = context;
    int64_t samples = bk_lanes_samples(&g->tape->lanes), count = bk_count(g->theta);
    size_t bytes = (size_t)count * bk_dtype_size(g->theta->dtype);
    clear(g->theta, out);
    for (int64_t b = bk_lane_row(&g->tape->lanes, samples, l);
         b < bk_lane_row(&g->tape->lanes, samples, l + 1); b++)
        bk_vector(g->theta->dtype)->add(count, (const char *)g->dtheta + (size_t)b * bytes, out);
}

static void backward(bk_tape *t, bk_node *n)
{
    int64_t units = n->in[Q]->shape[0] * n->in[Q]->shape[1], size = group_size(n);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    gradients g = {.theta = n->in[THETA], .heads = n->in[Q]->shape[1], .tape = t};
    for (int i = Q; i <= V; i++)
        g.of[i] = n->in[i]->needs_grad ? bk_grad(t, n->in[i]) : NULL;
    if (g.theta && g.theta->needs_grad)
        g.dtheta = bk_arena_alloc(t->scratch, (size_t)(units * angles_of(g.theta)) *
                                                  bk_dtype_size(g.theta->dtype));
    for (int64_t first = 0; first < units; first += size)
        backward_group(t, n, first, units - first < size ? units - first : size, &g);
    if (g.dtheta)
        bk_lane_gradient(t, &t->lanes, n->in[THETA], theta_of_lane, &g);
    bk_arena_release(t->scratch, mark);
    bk_poll();
}

static const bk_op op = {.name = "doubly",
                         .shape = shape,
                         .forward = forward,
                         .backward = backward,
                         .forgets_output = true};

/* ---- for the rules ---- */

int64_t bk_doubly_sort(const bk_doubly_group *g, int64_t most, int64_t *small, int64_t *large,
                       int64_t *larges)
{
    int64_t smalls = 0;
    *larges = 0;
    for (int64_t p = 0; p < g->problems; p++)
        if (g->order[p] > most)
            large[(*larges)++] = p;
        else if (g->order[p] > 0)
            small[smalls++] = p;
    return smalls;
}

bk_doubly_slots bk_doubly_slots_of(const bk_doubly_group *g, const int64_t *small, int64_t count)
{
    int64_t most = bk_slots(g->tape->dtype);
    bk_doubly_slots s = {.count = count < most ? count : most};
    for (int64_t i = 0; i < s.count; i++) {
        s.problem[i] = small[i];
        s.order[i] = g->order[small[i]];
        s.n = s.order[i] > s.n ? s.order[i] : s.n;
    }
    return s;
}

static bk_slots_pack pack_of(const bk_doubly_slots *s, void *const *matrix, const double *factor,
                             void *block, void **x)
{
    for (int64_t i = 0; i < s->count; i++)
        x[i] = matrix[s->problem[i]];
    return (bk_slots_pack){
        .n = s->n, .used = s->count, .order = s->order, .x = x, .factor = factor, .block = block};
}

void bk_doubly_pack(const bk_doubly_group *g, const bk_doubly_slots *s, void *const *matrix,
                    const double *factor, void *block)
{
    void *x[BK_SLOTS];
    bk_slots_pack p = pack_of(s, matrix, factor, block, x);
    BK_KERNEL_SELECT(bk_slots_kernels, g->tape->dtype)->pack(&p);
}

void bk_doubly_unpack(const bk_doubly_group *g, const bk_doubly_slots *s, void *const *matrix,
                      const double *factor, void *block)
{
    void *x[BK_SLOTS];
    bk_slots_pack p = pack_of(s, matrix, factor, block, x);
    BK_KERNEL_SELECT(bk_slots_kernels, g->tape->dtype)->unpack(&p);
}

/* ---- what callers see ---- */

/* Real rows and columns of the matrix [N,N] of a unit -> out[n,n]; returns n. */
static int64_t take_real(const bk_tensor *matrix, const bk_tensor *mask, int64_t unit, double *out)
{
    int64_t positions = matrix->shape[3], n = 0, taken = 0;
    const int32_t *real = mask ? bk_i32(mask) + unit / matrix->shape[1] * positions : NULL;
    for (int64_t i = 0; i < positions; i++) {
        if (real && real[i] == 0)
            continue;
        n++;
        for (int64_t j = 0; j < positions; j++)
            if (!real || real[j] != 0)
                out[taken++] = bk_real_get(matrix->dtype, matrix->data,
                                           (unit * positions + i) * positions + j);
    }
    return n;
}

/* Largest |sum - 1| over real rows and columns of matrix[B,H,N,N]. */
static void errors(bk_tape *t, const bk_tensor *matrix, const bk_tensor *mask, bk_attributes *a)
{
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    double *one = BK_NEW(t->scratch, double, matrix->shape[3] * matrix->shape[3]);
    double row = 0.0, column = 0.0;
    for (int64_t unit = 0; unit < matrix->shape[0] * matrix->shape[1]; unit++)
        bk_birkhoff_errors(take_real(matrix, mask, unit, one), one, &row, &column);
    bk_arena_release(t->scratch, mark);
    bk_attribute_set(a, "row_error", row);
    bk_attribute_set(a, "column_error", column);
}

/* 4 n^2 D of the products, and those of DS, over all heads. */
static double flops(const bk_attention_args *a, const bk_doubly_rule *rule)
{
    int64_t positions = a->q->shape[2];
    double sum = 0.0;
    for (int64_t b = 0; b < a->q->shape[0]; b++) {
        int64_t n = 0;
        for (int64_t i = 0; i < positions; i++)
            n += !a->mask || bk_i32(a->mask)[b * positions + i] != 0;
        n = rule->order > 0 ? rule->order : n;
        sum += 4.0 * (double)(n * n * a->q->shape[3]) + rule->flop(rule->config, n);
    }
    return sum * (double)a->q->shape[1];
}

bk_tensor *bk_doubly(bk_tape *t, const bk_attention_args *a, const bk_doubly_rule *rule,
                     int64_t *counted)
{
    attributes o = {*rule, *a, counted, a->matrix || a->attributes};
    bk_tensor *in[INPUTS] = {a->q, a->k, a->v, a->mask, a->parameter[0]};
    bk_node *n = bk_apply(t, &op, INPUTS, in, o.matrix ? OUTPUTS : 1, &o, sizeof o);
    if (a->matrix)
        *a->matrix = n->out[MATRIX];
    if (a->attributes) {
        errors(t, n->out[MATRIX], a->mask, a->attributes);
        bk_attribute_set(a->attributes, "flop", flops(a, rule));
    }
    return n->out[OUT];
}
