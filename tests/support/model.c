#include "tests/support/model.h"

#include "core/rng.h"
#include "io/yaml.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bk_model_data bk_test_classes(int64_t max_length)
{
    return (bk_model_data){.vocabulary = 11, .classes = 3, .max_length = max_length};
}

bk_model_data bk_test_language(int64_t max_length)
{
    return (bk_model_data){.vocabulary = 11, .max_length = max_length};
}

bk_model_data bk_test_pairs(int64_t max_length)
{
    return (bk_model_data){.vocabulary = 11, .segments = 2, .classes = 3, .max_length = max_length};
}

const bk_world *bk_test_alone(void)
{
    static const bk_world alone = {.size = 1, .nodes = 1, .expert = 1};
    return &alone;
}

bk_status bk_test_model_read(bk_arena *arena, const char *section, const bk_model_data *data,
                             const bk_world *world, bk_model **model)
{
    bk_value *root;
    const char *text = bk_arena_printf(arena, "model: %s\n", section);
    if (bk_yaml_parse(arena, "test.yaml", text, strlen(text), &root) != BK_OK)
        fail_msg("%s: %s", section, bk_status_text());
    return bk_model_new(arena, bk_value_get(root, "model"), data, world, model);
}

/* Moves each value by at most 0.1 (1 in embeddings: small ones make a norm steep), a function of
 * its place in the logical tensor. */
static void move_parameters(bk_slab *slab)
{
    for (int i = 0; i < slab->parameters; i++) {
        const bk_parameter *p = slab->parameter[i];
        uint64_t tag = bk_hash_bytes(p->name, strlen(p->name)) % 100000;
        double most = strstr(p->name, "/embed/") ? 1.0 : 0.1;
        for (int64_t j = 0; j < p->count; j++)
            slab->value[p->offset + j] +=
                (float)bk_fill((uint64_t)(p->global_offset + j), tag, -most, most);
    }
}

bk_test_model *bk_test_model_open(const char *section, const bk_model_data *data,
                                  const bk_world *world, bk_lanes lanes)
{
    bk_test_model *m = calloc(1, sizeof *m);
    assert_non_null(m);
    m->arena = bk_arena_new("run");
    if (bk_test_model_read(m->arena, section, data, world, &m->model) != BK_OK)
        fail_msg("%s: %s", section, bk_status_text());
    m->slab = bk_model_slab(m->model);
    bool divides = (world->size & (world->size - 1)) == 0 && lanes.total % world->size == 0;
    bk_slab_layout(m->slab, 1 << 10, 16 * (divides ? lanes.total : world->size));
    bk_slab_want_gradients(m->slab);
    bk_slab_initialise(m->slab, 1);
    move_parameters(m->slab);
    m->tape = bk_test_tape(BK_F32, lanes);
    m->tape.training = true;
    return m;
}

void bk_test_model_close(bk_test_model *m)
{
    bk_test_tape_free(&m->tape);
    bk_arena_free(m->arena);
    free(m);
}

bk_parameter *bk_test_parameter(const bk_test_model *m, const char *name, int expert)
{
    for (int i = 0; i < m->slab->parameters; i++)
        if (strcmp(m->slab->parameter[i]->name, name) == 0 &&
            m->slab->parameter[i]->expert == expert)
            return m->slab->parameter[i];
    fail_msg("no parameter %s (expert %d)", name, expert);
    return NULL;
}

/* ---- batches ---- */

void bk_test_model_batch(bk_test_model *m, int64_t length, int64_t (*real)(int64_t sample),
                         int32_t filler)
{
    bk_tape *t = &m->tape;
    bk_tape_begin(t);
    int64_t samples = bk_lanes_samples(&t->lanes), first = bk_lanes_first_sample(&t->lanes),
            vocabulary = m->model->data.vocabulary, positions = 0;
    bk_tensor *tokens = bk_tape_constant(t, BK_I32, BK_SHAPE(samples, length)),
              *segments = bk_tape_constant(t, BK_I32, BK_SHAPE(samples, length)),
              *mask = bk_tape_constant(t, BK_I32, BK_SHAPE(samples, length));
    for (int64_t s = 0; s < t->lanes.batch; s++)
        for (int64_t i = 0; i < length; i++) {
            bool is_real = i < (real ? real(s) : length);
            positions += is_real;
            if (s < first || s >= first + samples)
                continue;
            int64_t at = (s - first) * length + i;
            ((int32_t *)mask->data)[at] = is_real;
            ((int32_t *)segments->data)[at] = is_real && i > s % 5;
            ((int32_t *)tokens->data)[at] =
                is_real ? (int32_t)bk_fill((uint64_t)(s * 1000 + i), 5, 1.0, (double)vocabulary)
                        : filler;
        }
    m->bundle = (bk_bundle){.positions = positions, .rows = t->lanes.batch};
    bk_bundle_set(&m->bundle, "tokens", tokens);
    if (m->model->segments)
        bk_bundle_set(&m->bundle, "segments", segments);
    if (real)
        bk_bundle_set(&m->bundle, "mask", mask);
}

void bk_test_model_features(bk_test_model *m, int64_t length, int64_t channels)
{
    bk_tape *t = &m->tape;
    bk_tape_begin(t);
    int64_t samples = bk_lanes_samples(&t->lanes),
            first = bk_lanes_first_sample(&t->lanes) * length * channels;
    bk_tensor *x = bk_tape_constant(t, BK_F32, BK_SHAPE(samples, length, channels));
    for (int64_t i = 0; i < bk_count(x); i++)
        ((float *)x->data)[i] = (float)bk_fill((uint64_t)(first + i), 6, -1.0, 1.0);
    m->bundle = (bk_bundle){.positions = t->lanes.batch * length, .rows = t->lanes.batch};
    bk_bundle_set(&m->bundle, "features", x);
}

bk_tensor *bk_test_model_forward(bk_test_model *m)
{
    bk_model_forward(m->model, &m->tape, &m->bundle);
    return bk_bundle_need(&m->bundle, "logits");
}

/* ---- the loss ---- */

static double weight_of(const bk_test_model *m, const bk_tensor *logits, int64_t i)
{
    int64_t samples = bk_lanes_samples(&m->tape.lanes);
    int64_t one = samples > 0 ? bk_count(logits) / samples : 0;
    int64_t place = bk_lanes_first_sample(&m->tape.lanes) * one + i;
    return bk_fill((uint64_t)place, 9, -1.0, 1.0) / (double)(one * m->tape.lanes.batch);
}

double bk_test_model_loss(const bk_test_model *m, const bk_tensor *logits)
{
    double sum = 0.0;
    for (int64_t i = 0; i < bk_count(logits); i++)
        sum += weight_of(m, logits, i) * (double)bk_f32(logits)[i];
    for (int i = 0; i < m->tape.terms; i++)
        for (int64_t l = 0; l < m->tape.lanes.count; l++)
            sum += m->tape.term[i].weight * bk_f64(m->tape.term[i].value)[l];
    return sum;
}

void bk_test_model_backward(bk_test_model *m, bk_tensor *logits)
{
    float *grad = bk_grad(&m->tape, logits);
    for (int64_t i = 0; i < bk_count(logits); i++)
        grad[i] = (float)weight_of(m, logits, i);
    bk_tape_backward(&m->tape);
}

/* ---- gradients ---- */

static double loss_of(bk_test_model *m, int64_t length, int64_t (*real)(int64_t sample))
{
    if (length > 0)
        bk_test_model_batch(m, length, real, 0);
    else
        bk_test_model_features(m, 16, m->model->data.channels);
    return bk_test_model_loss(m, bk_test_model_forward(m));
}

/* Along g/|g| the loss changes by |g|.  Parameters are fp32: the step is large, and two differences
 * (h and h/2) take its error of second order away. */
static void check_along_gradient(bk_test_model *m, const bk_parameter *p, const float *grad,
                                 int64_t length, int64_t (*real)(int64_t sample))
{
    const double step = 0.02;
    double norm = 0.0, slope[2];
    float *value = m->slab->value + p->offset;
    for (int64_t i = 0; i < p->count; i++)
        norm += (double)grad[i] * (double)grad[i];
    norm = sqrt(norm);
    if (norm < 1e-5) /* nothing to see above the rounding of fp32 */
        return;
    float *kept = malloc((size_t)p->count * sizeof *kept);
    assert_non_null(kept);
    memcpy(kept, value, (size_t)p->count * sizeof *kept);
    for (int half = 0; half < 2; half++) {
        double h = half ? step / 2 : step, side[2];
        for (int s = 0; s < 2; s++) {
            for (int64_t i = 0; i < p->count; i++)
                value[i] = (float)((double)kept[i] + (s ? h : -h) * (double)grad[i] / norm);
            side[s] = loss_of(m, length, real);
        }
        slope[half] = (side[1] - side[0]) / (2.0 * h);
    }
    memcpy(value, kept, (size_t)p->count * sizeof *kept);
    free(kept);
    double numeric = (4.0 * slope[1] - slope[0]) / 3.0;
    bk_check_error(fabs(numeric - norm) / (norm + 1e-3), 1e-3, "%s (expert %d): %g against %g",
                   p->name, p->expert, norm, numeric);
}

void bk_test_model_check_gradient(bk_test_model *m, int64_t length, int64_t (*real)(int64_t sample))
{
    loss_of(m, length, real);
    bk_test_model_backward(m, bk_bundle_need(&m->bundle, "logits"));
    size_t bytes = (size_t)m->slab->grads * sizeof(float);
    float *grad = malloc(bytes);
    assert_non_null(grad);
    memcpy(grad, m->slab->grad, bytes);
    for (int i = 0; i < m->slab->parameters; i++) {
        const bk_parameter *p = m->slab->parameter[i];
        for (int64_t j = 0; p->uses == 2 && j < p->count; j++)
            grad[p->grad_offset[0] + j] += grad[p->grad_offset[1] + j];
        check_along_gradient(m, p, grad + p->grad_offset[0], length, real);
    }
    free(grad);
    bk_test_model_close(m);
}

/* ---- standard error ---- */

char *bk_test_stderr_of(void (*speak)(void *context), void *context)
{
    char *text = calloc(1, 4096);
    FILE *file = tmpfile();
    int kept = dup(STDERR_FILENO);
    assert_true(text && file && kept >= 0);
    fflush(stderr);
    dup2(fileno(file), STDERR_FILENO);
    speak(context);
    fflush(stderr);
    dup2(kept, STDERR_FILENO);
    close(kept);
    rewind(file);
    text[fread(text, 1, 4095, file)] = '\0';
    fclose(file);
    return text;
}
