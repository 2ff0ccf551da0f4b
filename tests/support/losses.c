#include "tests/support/losses.h"

#include "dist/collective.h"
#include "tests/support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- batches ---- */

static void *need(size_t bytes)
{
    void *memory = malloc(bytes + 1);
    assert_non_null(memory);
    return memory;
}

bk_test_batch bk_test_batch_new(int64_t rows, int64_t classes)
{
    size_t bytes = (size_t)(rows * classes) * sizeof(double);
    bk_test_batch b = {.rows = rows,
                       .classes = classes,
                       .student = need(bytes),
                       .teacher = need(bytes),
                       .labels = need((size_t)rows * sizeof(int32_t))};
    for (int64_t i = 0; i < rows; i++) {
        double row = (double)i;
        b.labels[i] = (int32_t)((7 * i) % (classes + 1)) - 1;
        for (int64_t v = 0; v < classes; v++) {
            double column = (double)v;
            b.student[i * classes + v] = 2.5 * sin(1.0 + 0.9 * row + 0.37 * column * (row + 1.0));
            b.teacher[i * classes + v] = 2.5 * cos(0.5 + 0.6 * row + 0.53 * column * (row + 2.0));
        }
    }
    return b;
}

void bk_test_batch_free(bk_test_batch *b)
{
    free(b->student);
    free(b->teacher);
    free(b->labels);
    free(b->valid);
    free(b->sequence);
}

/* ---- one call ---- */

static const bk_loss_kind *find(const char *name)
{
    const bk_loss_kind *kind = bk_loss_find(name);
    if (!kind)
        fail_msg("no loss is called %s", name);
    return kind;
}

bool bk_test_loss_has(const char *kind, const char *option)
{
    for (const bk_option *o = find(kind)->options; o->name; o++)
        if (strcmp(o->name, option) == 0)
            return true;
    return false;
}

void *bk_test_loss_options(const bk_loss_kind *kind, const char *options, bk_dtype dtype,
                           bk_arena *arena)
{
    void *config = bk_arena_zalloc(arena, kind->config_size);
    bk_value *map = bk_value_new(arena, BK_MAP, "test", 0);
    char *text = bk_arena_strdup(arena, options ? options : ""), *rest = NULL;
    for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        char *equal = strchr(word, '=');
        *equal = '\0';
        assert_int_equal(bk_value_set(arena, map, word, equal + 1), BK_OK);
    }
    const bk_option *const tables[] = {kind->options, NULL};
    bk_status status = bk_options_read(kind->options, config, map, "loss", arena);
    if (status == BK_OK)
        status = bk_options_unknown(map, "loss", tables, NULL);
    if (status == BK_OK && kind->check)
        status = kind->check(config, dtype);
    if (status != BK_OK)
        fail_msg("%s", bk_status_text());
    return config;
}

/* The rows of this rank and its lanes. */
typedef struct part {
    bk_lanes lanes;
    int64_t first, rows;
} part;

static part part_of_rank(const bk_test_batch *b, const bk_test_way *w)
{
    int rank = bk_comm_rank(w->comm), size = bk_comm_size(w->comm);
    if (w->cut) /* one lane a rank, with as many rows as the test says */
        return (part){.lanes = bk_lanes_of_rank(size, size, rank, size),
                      .first = w->cut[rank],
                      .rows = w->cut[rank + 1] - w->cut[rank]};
    part p = {.lanes = bk_lanes_of_rank(w->lanes > 0 ? w->lanes : size, b->rows, rank, size)};
    p.first = bk_lanes_first_sample(&p.lanes);
    p.rows = bk_lanes_samples(&p.lanes);
    return p;
}

static bk_tensor *tensor_of(bk_tape *t, const double *x, int64_t rows, int64_t classes)
{
    bk_tensor *out = bk_tape_variable(t, BK_SHAPE(rows, classes));
    for (int64_t i = 0; i < rows * classes; i++)
        if (out->dtype == BK_F64)
            ((double *)out->data)[i] = x[i];
        else
            ((float *)out->data)[i] = (float)x[i];
    return out;
}

/* Whether class v comes before class u of a row: larger, or equal and lower. */
static bool before(const double *row, int64_t v, int64_t u)
{
    return row[v] > row[u] || (row[v] == row[u] && v < u);
}

/* By counting: the place of a class is the number of those before it. */
static void take_top(const bk_test_batch *b, int64_t i, int64_t k, int32_t *index, double *value)
{
    const double *row = b->teacher + i * b->classes;
    for (int64_t v = 0; v < b->classes; v++) {
        int64_t place = 0;
        for (int64_t u = 0; u < b->classes; u++)
            place += before(row, u, v);
        if (place < k) {
            index[place] = (int32_t)v;
            value[place] = row[v];
        }
    }
}

static double log_sum_exp(const bk_test_batch *b, int64_t i, double temperature)
{
    const double *row = b->teacher + i * b->classes;
    double most = row[0], sum = 0.0;
    for (int64_t v = 0; v < b->classes; v++)
        most = fmax(most, row[v]);
    for (int64_t v = 0; v < b->classes; v++)
        sum += exp((row[v] - most) / temperature);
    return most / temperature + log(sum);
}

/* Own rows, at two temperatures of which the loss uses the second; T = 2 unless the options say
 * otherwise. */
static const bk_teacher_top *top_of(bk_tape *t, const bk_test_batch *b, const part *p, int64_t k,
                                    const char *options)
{
    const char *given = options ? strstr(options, "temperature=") : NULL;
    double *temperature = BK_NEW(t->arena, double, 2), *value = BK_NEW(t->arena, double, k);
    int32_t *index = BK_NEW(t->arena, int32_t, p->rows * k);
    void *values = bk_arena_alloc(t->arena, (size_t)(p->rows * k) * sizeof *value),
         *lse = bk_arena_alloc(t->arena, (size_t)(2 * p->rows) * sizeof *value);
    temperature[0] = 0.123;
    temperature[1] = given ? strtod(given + 12, NULL) : 2.0;
    for (int64_t i = 0; i < p->rows; i++) {
        take_top(b, p->first + i, k, index + i * k, value);
        for (int64_t j = 0; j < k; j++)
            bk_real_put(t->dtype, values, i * k + j, value[j]);
        for (int64_t c = 0; c < 2; c++)
            bk_real_put(t->dtype, lse, 2 * i + c, log_sum_exp(b, p->first + i, temperature[c]));
    }
    bk_teacher_top *top = BK_NEW(t->arena, bk_teacher_top, 1);
    *top = (bk_teacher_top){.k = k,
                            .index = index,
                            .value = values,
                            .temperatures = 2,
                            .temperature = temperature,
                            .lse = lse,
                            .dtype = t->dtype};
    return top;
}

/* Rows as layers of samples of one position: [rows,1,classes], with matrices [rows,1,1,classes]. */
static const bk_loss_layers *layers_of(bk_tape *t, const bk_loss_kind *kind, const bk_loss_args *a,
                                       int64_t positions)
{
    int64_t rows = bk_rows(a->logits), classes = bk_cols(a->logits);
    bool matrices = (kind->flags & BK_LOSS_MATRICES) != 0;
    bk_tensor *x[2] = {a->logits, a->teacher};
    for (int i = 0; i < 2; i++) {
        x[i]->dims = matrices ? 4 : 3;
        x[i]->shape[1] = x[i]->shape[2] = 1;
        x[i]->shape[x[i]->dims - 1] = classes;
    }
    bk_loss_layers *l = BK_ZNEW(t->arena, bk_loss_layers, 1);
    *l = (bk_loss_layers){.pairs = 1, .student = {x[0]}, .teacher = {x[1]}, .positions = positions};
    if (a->valid)
        l->mask = bk_tensor_wrap(t->arena, BK_I32, BK_SHAPE(rows, 1), (void *)(uintptr_t)a->valid);
    return l;
}

static int64_t valid_rows(const bk_loss_kind *kind, const bk_test_batch *b)
{
    int64_t count = 0;
    for (int64_t i = 0; i < b->rows; i++)
        count += (!b->valid || b->valid[i] != 0) &&
                 (!(kind->flags & BK_LOSS_LABELS) || b->labels[i] >= 0);
    return count;
}

static void gather_gradient(const bk_test_batch *b, const part *p, const bk_comm *comm,
                            const bk_tensor *student, double *all)
{
    int size = bk_comm_size(comm);
    int64_t own = p->rows * b->classes, *bytes = need((size_t)size * sizeof *bytes);
    double *grad = need((size_t)own * sizeof *grad);
    for (int64_t i = 0; i < own; i++)
        grad[i] = bk_test_grad(student, i);
    bk_gather_counts(comm, own * (int64_t)sizeof *grad, bytes);
    bk_allgather_bytes(comm, grad, own * (int64_t)sizeof *grad, bytes, all);
    free(grad);
    free(bytes);
}

static double sum_of_lanes(bk_tape *t, const bk_comm *comm, const bk_tensor *value)
{
    double loss = 0.0;
    bk_reduce_vector(bk_comm_reducer(comm), &t->lanes, 1, value->data, &loss, t->scratch);
    return loss;
}

static double *copy_of(const bk_tensor *x)
{
    size_t bytes = (size_t)bk_count(x) * sizeof(double);
    return memcpy(need(bytes), x->data, bytes);
}

/* One tape for all calls: fresh arenas for each would dominate under a sanitizer. */
static bk_tape *begin_tape(bk_dtype dtype, bk_lanes lanes)
{
    static bk_tape tape;
    if (!tape.arena)
        tape = bk_test_tape(dtype, lanes);
    bk_tape_begin(&tape);
    tape.dtype = dtype;
    tape.lanes = lanes;
    return &tape;
}

bk_test_result bk_test_loss(const char *name, const bk_test_batch *b, const bk_test_way *w)
{
    const bk_loss_kind *kind = find(name);
    part p = part_of_rank(b, w);
    bk_tape *t = begin_tape(w->dtype, p.lanes);
    bk_test_result r = {.grad = need((size_t)(b->rows * b->classes) * sizeof(double))};
    bk_tensor *plan, *cost;
    int64_t at = p.first * b->classes;
    bk_loss_args a = {.logits = tensor_of(t, b->student + at, p.rows, b->classes),
                      .teacher = tensor_of(t, b->teacher + at, p.rows, b->classes),
                      .labels = b->labels + p.first,
                      .valid = b->valid ? b->valid + p.first : NULL,
                      .sequence = b->sequence ? b->sequence + p.first : NULL,
                      .rows = valid_rows(kind, b),
                      .step = w->step,
                      .steps = w->steps,
                      .comm = w->comm,
                      .config = bk_test_loss_options(kind, w->options, w->dtype, t->arena),
                      .plan = w->plan ? &plan : NULL,
                      .cost = w->plan ? &cost : NULL,
                      .attributes = &r.attributes};
    bk_tensor *teacher = a.teacher;
    teacher->needs_grad = false;
    if (w->top > 0) {
        a.teacher = NULL;
        a.teacher_top = top_of(t, b, &p, w->top, w->options);
    }
    if (kind->flags & BK_LOSS_LAYERS)
        a.layers = layers_of(t, kind, &a, a.rows);
    bk_tape_add_term(t, name, -1, kind->apply(t, &a), 1.0);
    r.loss = sum_of_lanes(t, w->comm, t->term[t->terms - 1].value);
    for (int i = 0; i < t->terms - 1; i++)
        bk_attribute_set(&r.attributes, t->term[i].name,
                         sum_of_lanes(t, w->comm, t->term[i].value));
    bk_tape_backward(t);
    assert_null(teacher->grad);
    gather_gradient(b, &p, w->comm, a.logits, r.grad);
    r.plan = w->plan ? copy_of(plan) : NULL;
    r.cost = w->plan ? copy_of(cost) : NULL;
    return r;
}

double bk_test_layers_loss(bk_tape *tape, const char *kind, const bk_loss_layers *layers,
                           const char *options)
{
    const bk_loss_kind *k = bk_loss_find(kind);
    bk_loss_args a = {.layers = layers,
                      .config = bk_test_loss_options(k, options, BK_F64, tape->arena)};
    tape->terms = 0;
    bk_tape_add_term(tape, kind, -1, k->apply(tape, &a), 1.0);
    return bk_f64(tape->term[0].value)[0];
}

void bk_test_result_free(bk_test_result *r)
{
    free(r->grad);
    free(r->plan);
    free(r->cost);
}

double bk_test_loss_value(const char *kind, const bk_test_batch *b, const bk_test_way *w)
{
    bk_test_result r = bk_test_loss(kind, b, w);
    bk_test_result_free(&r);
    return r.loss;
}

double bk_test_figure(const bk_test_result *r, const char *name)
{
    for (int i = 0; i < r->attributes.entries; i++)
        if (strcmp(r->attributes.entry[i].name, name) == 0)
            return r->attributes.entry[i].value;
    fail_msg("no figure is called %s", name);
    return NAN;
}

/* ---- comparisons ---- */

double bk_test_grad_distance(const bk_test_batch *b, const bk_test_result *x,
                             const bk_test_result *reference)
{
    return bk_test_error(b->rows * b->classes, x->grad, reference->grad, 1e-30);
}

void bk_test_same_loss(const bk_test_batch *b, const bk_test_result *x,
                       const bk_test_result *reference, double loss_limit, double grad_limit,
                       const char *what)
{
    bk_check_error(bk_test_error(1, &x->loss, &reference->loss, 1e-12), loss_limit, "loss: %s",
                   what);
    bk_check_error(bk_test_grad_distance(b, x, reference), grad_limit, "gradient: %s", what);
}

void bk_test_loss_gradient(const char *kind, const char *options)
{
    const double step = 1e-6;
    bk_test_batch b = bk_test_batch_new(6, 5);
    bk_test_way w = {.options = options, .dtype = BK_F64, .lanes = 2};
    bk_test_result r = bk_test_loss(kind, &b, &w);
    int64_t n = b.rows * b.classes;
    double *differences = need((size_t)n * sizeof *differences);
    for (int64_t i = 0; i < n; i++) {
        double x = b.student[i];
        b.student[i] = x + step;
        double above = bk_test_loss_value(kind, &b, &w);
        b.student[i] = x - step;
        double below = bk_test_loss_value(kind, &b, &w);
        b.student[i] = x;
        differences[i] = (above - below) / (2.0 * step);
    }
    bk_check_error(bk_test_error(n, r.grad, differences, 1e-30), 1e-6,
                   "differences of the loss: %s %s", kind, options ? options : "");
    free(differences);
    bk_test_result_free(&r);
    bk_test_batch_free(&b);
}

/* ---- golden values ---- */

static double largest(const bk_test_batch *b, const double *x)
{
    double most = 0.0;
    for (int64_t i = 0; i < b->rows * b->classes; i++)
        most = fmax(most, fabs(x[i]));
    return most;
}

static double sum_abs(const bk_test_batch *b, const double *x)
{
    double sum = 0.0;
    for (int64_t i = 0; i < b->rows * b->classes; i++)
        sum += fabs(x[i]);
    return sum;
}

void bk_test_golden_entry(const char *kind, const json_t *entry, const bk_test_batch *b,
                          const char *options, const char *row0)
{
    static const struct {
        bk_dtype dtype;
        double loss, grad;
    } limits[] = {{BK_F64, 1e-9, 1e-8}, {BK_F32, 1e-6, 1e-5}};
    int64_t n;
    double loss = json_number_value(json_object_get(entry, "loss")),
           sum = json_number_value(json_object_get(entry, "grad_sum_abs")),
           *row = bk_test_numbers(json_object_get(entry, row0), &n);
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        bk_test_result r =
            bk_test_loss(kind, b, &(bk_test_way){.options = options, .dtype = limits[i].dtype});
        double own = sum_abs(b, r.grad);
        bk_check_error(bk_test_error(1, &r.loss, &loss, 1e-30), limits[i].loss, "loss of %s %s",
                       kind, options);
        bk_check_error(bk_test_error(n, r.grad, row, largest(b, r.grad)), limits[i].grad,
                       "%s of %s %s", row0, kind, options);
        if (strcmp(row0, "grad_row0") == 0)
            bk_check_error(bk_test_error(1, &own, &sum, 1e-30), limits[i].grad,
                           "sum of the gradient of %s %s", kind, options);
        bk_test_result_free(&r);
    }
    free(row);
}

/* One entry's options as text; false when the kind does not have one of them. */
static bool golden_options(const char *kind, json_t *entry, char *text, size_t size)
{
    static const char *const names[] = {
        "T", "skew", "beta", "t_squared", "reduction", "label_smoothing", "top_k"};
    text[0] = '\0';
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const json_t *value = json_object_get(entry, names[i]);
        const char *name = strcmp(names[i], "T") == 0 ? "temperature" : names[i];
        size_t used = strlen(text);
        if (!value || (strcmp(name, "top_k") == 0 && json_integer_value(value) == 0))
            continue;
        if (!bk_test_loss_has(kind, name))
            return false;
        if (json_is_string(value))
            snprintf(text + used, size - used, "%s=%s ", name, json_string_value(value));
        else if (json_is_boolean(value))
            snprintf(text + used, size - used, "%s=%s ", name,
                     json_is_true(value) ? "true" : "false");
        else
            snprintf(text + used, size - used, "%s=%.17g ", name, json_number_value(value));
    }
    return true;
}

static bk_test_batch golden_batch(const json_t *entry)
{
    bk_test_batch b = bk_test_batch_new(json_integer_value(json_object_get(entry, "B")),
                                        json_integer_value(json_object_get(entry, "V")));
    const json_t *labels = json_object_get(entry, "labels");
    for (size_t i = 0; i < json_array_size(labels); i++)
        b.labels[i] = (int32_t)json_integer_value(json_array_get(labels, i));
    return b;
}

int bk_test_loss_golden(const char *kind)
{
    json_t *golden = bk_test_golden("ref_sinkd_golden.json"), *entry;
    size_t i;
    int checked = 0;
    json_array_foreach(json_object_get(golden, "rows"), i, entry)
    {
        char options[256];
        if (strcmp(json_string_value(json_object_get(entry, "kind")), kind) != 0 ||
            !golden_options(kind, entry, options, sizeof options))
            continue;
        bk_test_batch b = golden_batch(entry);
        bk_test_golden_entry(kind, entry, &b, options, "grad_row0");
        bk_test_batch_free(&b);
        checked++;
    }
    json_decref(golden);
    return checked;
}
