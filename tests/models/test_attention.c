/* test: labels=unit,golden,grad timeout=120 */
/* Every attention kind of the table with every choice of its options: golden values, gradients,
 * padding, causality, and samples that do not know of each other. */
#include "tests/support/check.h"

#include "core/attributes.h"
#include "core/blas.h"
#include "core/rng.h"
#include "models/attention.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* D > N: a head's scores have full rank.  SHORT: for kinds that want a power of two and no padding.
 */
enum { B = 3, H = 2, N = 9, D = 11, LONG = 20, SHORT = 4 };

/* One call: q, k, v of `samples` samples from number `first` on, padded to `length`. */
typedef struct call {
    const bk_attention_kind *kind;
    double config[64];
    int64_t first, samples, length;
    bool causal, whole; /* whole: nothing is padding, no mask */
    bool joined;        /* joined: q, k, v and the result side by side */
    float filler;       /* in padding */
    bk_tape tape;
    bk_tensor *q, *k, *v, *mask, *out;
    bk_attention_args args;
} call;

/* Sample 1 has a hole, sample 2 is short. */
static bool is_real(const call *c, int64_t sample, int64_t i)
{
    return c->whole || (i < (sample == 2 ? 4 : N) && !(sample == 1 && i == 3));
}

static bk_tensor *input(call *c, uint64_t tag)
{
    bk_tensor *x = bk_tape_variable(&c->tape, BK_SHAPE(c->samples, H, c->length, D));
    for (int64_t j = 0; j < bk_count(x); j++) {
        int64_t s = c->first + j / (H * c->length * D), h = j / (c->length * D) % H,
                i = j / D % c->length, d = j % D;
        uint64_t place = (uint64_t)(((s * H + h) * LONG + i) * D + d);
        double value = is_real(c, s, i) ? bk_fill(place, tag, -1.5, 1.5) : (double)c->filler;
        if (x->dtype == BK_F64)
            ((double *)x->data)[j] = value;
        else
            ((float *)x->data)[j] = (float)value;
    }
    return x;
}

static void read_options(call *c, const char *options)
{
    bk_arena *arena = bk_arena_new("options");
    bk_value *map = bk_value_new(arena, BK_MAP, "test", 0);
    char *text = bk_arena_strdup(arena, options), *rest = NULL;
    for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        char *equal = strchr(word, '=');
        *equal = '\0';
        assert_int_equal(bk_value_set(arena, map, word, equal + 1), BK_OK);
    }
    assert_true(c->kind->config_size <= sizeof c->config);
    assert_int_equal(bk_options_read(c->kind->options, c->config, map, "attention", arena), BK_OK);
    bk_arena_free(arena);
}

static void make_parameters(call *c)
{
    bk_attention_parameter own[BK_ATTENTION_PARAMETERS];
    int count = c->kind->declare ? c->kind->declare(c->config, H, D, c->length, own) : 0;
    for (int i = 0; i < count; i++)
        c->args.parameter[i] =
            bk_test_fill(&c->tape, own[i].dims, own[i].shape, 50 + (uint64_t)i, -1.0, 1.0);
}

/* Inputs on a fresh step of the call's tape. */
static void fill(call *c)
{
    bk_tape_begin(&c->tape);
    c->q = input(c, 1);
    c->k = input(c, 2);
    c->v = input(c, 3);
    c->mask = bk_tape_constant(&c->tape, BK_I32, BK_SHAPE(c->samples, c->length));
    for (int64_t j = 0; j < bk_count(c->mask); j++)
        ((int32_t *)c->mask->data)[j] = is_real(c, c->first + j / c->length, j % c->length);
    make_parameters(c);
    c->args.heads = c->joined ? H : 0;
    c->args.q = c->joined ? bk_merge_heads(&c->tape, c->q) : c->q;
    c->args.k = c->joined ? bk_merge_heads(&c->tape, c->k) : c->k;
    c->args.v = c->joined ? bk_merge_heads(&c->tape, c->v) : c->v;
    c->args.mask = c->whole ? NULL : c->mask;
    c->args.causal = c->causal;
    c->args.config = c->config;
}

static void prepare(call *c, bk_dtype dtype)
{
    bk_lanes one = {.total = B, .first = c->first, .count = 1, .batch = B};
    c->tape = bk_test_tape(dtype, c->samples == 1 ? one : bk_lanes_single(c->samples));
    fill(c);
}

static double out_weight(const call *c, int64_t j)
{
    int64_t s = c->first + j / (H * c->length * D), rest = j % (H * c->length * D);
    return bk_fill((uint64_t)((s * H + rest / (c->length * D)) * LONG * D + rest % (c->length * D)),
                   7, -1.0, 1.0);
}

static void run(call *c)
{
    c->out = c->kind->apply(&c->tape, &c->args);
    c->out = c->joined ? bk_split_heads(&c->tape, c->out, H) : c->out;
    assert_true(bk_same_shape(c->out, c->q));
}

static void run_back(call *c)
{
    run(c);
    void *grad = bk_grad(&c->tape, c->out);
    for (int64_t j = 0; j < bk_count(c->out); j++)
        if (c->out->dtype == BK_F64)
            ((double *)grad)[j] = out_weight(c, j);
        else
            ((float *)grad)[j] = (float)out_weight(c, j);
    bk_tape_backward_seeded(&c->tape);
}

/* ---- the walk ---- */

typedef void variant_test(const call *c, const char *what);

static void one_variant(const bk_attention_kind *kind, const char *options, variant_test *test)
{
    char what[256];
    for (int causal = 0; causal <= ((kind->flags & BK_ATTENTION_CAUSAL) != 0); causal++) {
        call c = {.kind = kind, .samples = B, .length = N, .causal = causal};
        read_options(&c, options);
        if (kind->check && kind->check(c.config) != BK_OK)
            continue;
        c.whole = kind->fits && kind->fits(c.config, N, true) != BK_OK;
        c.length = c.whole ? SHORT : N;
        snprintf(what, sizeof what, "attention.%s %s%s", kind->name, options,
                 causal ? " causal" : "");
        test(&c, what);
    }
}

/* Defaults, every choice of every CHOICE and BOOL, and each whole number at its least (blocks and
 * windows of one). */
static void for_every_variant(variant_test *test)
{
    char options[128], choices[128], *rest;
    for (int i = 0; bk_attentions[i]; i++) {
        one_variant(bk_attentions[i], "", test);
        for (const bk_option *o = bk_attentions[i]->options; o && o->name; o++) {
            if (o->type == BK_OPT_I64) {
                snprintf(options, sizeof options, "%s=%.0f", o->name, o->least);
                one_variant(bk_attentions[i], options, test);
            }
            if (o->type != BK_OPT_CHOICE && o->type != BK_OPT_BOOL)
                continue;
            rest = NULL;
            snprintf(choices, sizeof choices, "%s",
                     o->type == BK_OPT_BOOL ? "true|false" : o->text);
            for (char *word = strtok_r(choices, "|", &rest); word;
                 word = strtok_r(NULL, "|", &rest)) {
                snprintf(options, sizeof options, "%s=%s", o->name, word);
                one_variant(bk_attentions[i], options, test);
            }
        }
    }
}

/* ---- gradients ---- */

/* <weights, out> with element j of a leaf moved, on a tape that is used again and again. */
static double objective(call *c, int which, int64_t j, double delta)
{
    fill(c);
    bk_tensor *leaf[3 + BK_ATTENTION_PARAMETERS] = {c->q, c->k, c->v};
    memcpy(leaf + 3, c->args.parameter, sizeof c->args.parameter);
    ((double *)leaf[which]->data)[j] += delta;
    run(c);
    double sum = 0.0;
    for (int64_t i = 0; i < bk_count(c->out); i++)
        sum += out_weight(c, i) * bk_f64(c->out)[i];
    return sum;
}

static void check_gradient(const call *given, const char *what)
{
    const double step = 1e-5;
    call c = *given, other = *given;
    if (strstr(what, "gradient=last")) /* by its definition not that of the function */
        return;
    prepare(&c, BK_F64);
    prepare(&other, BK_F64);
    run_back(&c);
    bk_tensor *leaf[3 + BK_ATTENTION_PARAMETERS] = {c.q, c.k, c.v};
    memcpy(leaf + 3, c.args.parameter, sizeof c.args.parameter);
    for (int which = 0; which < 3 + BK_ATTENTION_PARAMETERS; which++)
        for (int64_t j = 0; leaf[which] && j < bk_count(leaf[which]);
             j += 1 + bk_count(leaf[which]) / 40) {
            double numeric =
                (objective(&other, which, j, step) - objective(&other, which, j, -step)) /
                (2.0 * step);
            bk_check_error(fabs(numeric - bk_test_grad(leaf[which], j)) / fmax(1.0, fabs(numeric)),
                           1e-6, "%s, input %d", what, which);
        }
    bk_test_tape_free(&c.tape);
    bk_test_tape_free(&other.tape);
}

static void every_gradient(void **state)
{
    (void)state;
    for_every_variant(check_gradient);
}

/* ---- padding ---- */

/* Rows of real positions of `a` and `b` are equal to the bit in `data` and gradients. */
static void same_rows(const call *a, const bk_tensor *x, const call *b, const bk_tensor *y,
                      bool grad, const char *what)
{
    for (int64_t r = 0; r < a->samples * H * a->length; r++) {
        int64_t s = a->first + r / (H * a->length), h = r / a->length % H, i = r % a->length;
        if (!is_real(a, s, i))
            continue;
        int64_t other = ((s - b->first) * H + h) * b->length + i;
        const float *left = (const float *)(grad ? x->grad : x->data) + r * D,
                    *right = (const float *)(grad ? y->grad : y->data) + other * D;
        if (memcmp(left, right, D * sizeof *left) != 0)
            fail_msg("%s: sample %d, position %d, %s differs", what, (int)s, (int)i,
                     grad ? "gradient" : "output");
    }
}

static void same_calls(const call *a, const call *b, const char *what)
{
    same_rows(a, a->out, b, b->out, false, what);
    same_rows(a, a->q, b, b->q, true, what);
    same_rows(a, a->k, b, b->k, true, what);
    same_rows(a, a->v, b, b->v, true, what);
}

static void padded_rows_are_zero(const call *c, const char *what)
{
    const bk_tensor *leaf[] = {c->q, c->k, c->v};
    for (int64_t j = 0; j < bk_count(c->out); j++) {
        if (is_real(c, c->first + j / (H * c->length * D), j / D % c->length))
            continue;
        if (bk_test_value(c->out, j) != 0.0)
            fail_msg("%s: a padded query gives %g", what, bk_test_value(c->out, j));
        for (int i = 0; i < 3; i++)
            if (bk_test_grad(leaf[i], j) != 0.0)
                fail_msg("%s: a padded row has a gradient", what);
    }
}

/* Content and amount of padding. */
static void check_padding(const call *given, const char *what)
{
    call c[3] = {*given, *given, *given};
    if (!(given->kind->flags & BK_ATTENTION_MASK))
        return;
    c[1].filler = 30.0f;
    c[2].length = LONG;
    for (int i = 0; i < 3; i++) {
        prepare(&c[i], BK_F32);
        run_back(&c[i]);
        padded_rows_are_zero(&c[i], what);
    }
    same_calls(&c[0], &c[1], what);
    if (!strstr(what, "naive=true")) /* whole rows times zeros: other sums, for comparison only */
        same_calls(&c[0], &c[2], what);
    for (int i = 0; i < 3; i++)
        bk_test_tape_free(&c[i].tape);
}

static void padding_moves_no_bit(void **state)
{
    (void)state;
    for_every_variant(check_padding);
}

static void check_no_sample(const call *given, const char *what)
{
    call c = *given;
    c.samples = 0;
    prepare(&c, BK_F32);
    run_back(&c);
    assert_int_equal(bk_count(c.out), 0);
    bk_test_tape_free(&c.tape);
    (void)what;
}

static void no_sample_is_fine(void **state)
{
    (void)state;
    for_every_variant(check_no_sample);
}

/* ---- heads side by side ---- */

static void check_joined(const call *given, const char *what)
{
    call c[2] = {*given, *given};
    if (!(given->kind->flags & BK_ATTENTION_JOINED))
        return;
    c[1].joined = true;
    for (int i = 0; i < 2; i++) {
        prepare(&c[i], BK_F32);
        run_back(&c[i]);
    }
    same_calls(&c[0], &c[1], what);
    bk_test_tape_free(&c[0].tape);
    bk_test_tape_free(&c[1].tape);
}

static void joined_heads_give_the_same_bits(void **state)
{
    (void)state;
    for_every_variant(check_joined);
}

/* ---- samples, ranks ---- */

/* A rank that holds one sample gets the bits of a rank that holds all. */
static void check_alone(const call *given, const char *what)
{
    call all = *given;
    prepare(&all, BK_F32);
    run_back(&all);
    for (int64_t s = 0; s < B; s++) {
        call one = *given;
        one.first = s;
        one.samples = 1;
        prepare(&one, BK_F32);
        run_back(&one);
        same_calls(&one, &all, what);
        bk_test_tape_free(&one.tape);
    }
    bk_test_tape_free(&all.tape);
}

static void samples_do_not_know_of_each_other(void **state)
{
    (void)state;
    for_every_variant(check_alone);
}

/* ---- causality ---- */

static void check_causality(const call *given, const char *what)
{
    enum { CUT = 5 };
    call a = *given, b = *given;
    if (!given->causal)
        return;
    prepare(&a, BK_F32);
    prepare(&b, BK_F32);
    bk_tensor *leaf[] = {b.q, b.k, b.v};
    for (int i = 0; i < 3; i++)
        for (int64_t j = 0; j < bk_count(leaf[i]); j++)
            if (j / D % N >= CUT)
                ((float *)leaf[i]->data)[j] += 1.0f;
    run(&a);
    run(&b);
    bool later = false;
    for (int64_t j = 0; j < bk_count(a.out); j++) {
        float left = bk_f32(a.out)[j], right = bk_f32(b.out)[j];
        if (j / D % N >= CUT)
            later = later || left != right;
        else if (memcmp(&left, &right, sizeof left) != 0)
            fail_msg("%s: position %d sees the future", what, (int)(j / D % N));
    }
    assert_true(later);
    bk_test_tape_free(&a.tape);
    bk_test_tape_free(&b.tape);
}

static void the_future_is_not_seen(void **state)
{
    (void)state;
    for_every_variant(check_causality);
}

/* ---- golden values: the cases whose inputs are q, k, v ---- */

/* The first shape[2] positions of an array of N positions (cross attention: fewer queries). */
static bk_tensor *golden_input(bk_tape *t, const json_t *inputs, const char *name, uint64_t tag)
{
    int64_t n, all = json_integer_value(json_array_get(json_object_get(inputs, "k"), 2));
    double *size = bk_test_numbers(json_object_get(inputs, name), &n);
    const int64_t shape[] = {(int64_t)size[0], (int64_t)size[1], (int64_t)size[2],
                             (int64_t)size[3]},
                  one = shape[2] * shape[3];
    bk_tensor *x = bk_tape_variable(t, 4, shape);
    for (int64_t j = 0; j < bk_count(x); j++) {
        uint64_t place = (uint64_t)(j / one * all * shape[3] + j % one);
        double value = bk_fill(place, tag, -1.5, 1.5);
        if (x->dtype == BK_F64)
            ((double *)x->data)[j] = value;
        else
            ((float *)x->data)[j] = (float)value;
    }
    free(size);
    return x;
}

static bk_tensor *golden_mask(bk_tape *t, const json_t *array)
{
    int64_t n, samples = (int64_t)json_array_size(array);
    double *numbers = bk_test_numbers(array, &n);
    bk_tensor *mask = bk_tape_constant(t, BK_I32, BK_SHAPE(samples, n / samples));
    for (int64_t i = 0; i < n; i++)
        ((int32_t *)mask->data)[i] = (int32_t)numbers[i];
    free(numbers);
    return mask;
}

/* "key=value ..." of the case's options, `causal` apart; false: the kind has not all of them. */
static bool golden_options(const json_t *c, const bk_attention_kind *kind, bool *causal,
                           char text[256])
{
    const char *key;
    json_t *value;
    size_t length = 0;
    *causal = json_is_true(json_object_get(json_object_get(c, "options"), "causal"));
    text[0] = '\0';
    json_object_foreach(json_object_get(c, "options"), key, value)
    {
        const bk_option *o = kind->options;
        if (strcmp(key, "causal") == 0)
            continue;
        while (o && o->name && strcmp(o->name, key) != 0)
            o++;
        if (!o || !o->name)
            return false;
        char *word = json_dumps(value, JSON_ENCODE_ANY);
        length +=
            (size_t)snprintf(text + length, 256 - length, "%s=%.*s ", key,
                             (int)strcspn(word + (*word == '"'), "\""), word + (*word == '"'));
        free(word);
    }
    return true;
}

static void check_golden(const json_t *golden, const char *name, bk_dtype dtype, int *checked)
{
    const json_t *c = json_object_get(json_object_get(golden, "cases"), name),
                 *inputs = json_object_get(c, "inputs"), *grad = json_object_get(c, "grad");
    call x = {.kind = bk_attention_find(json_string_value(json_object_get(c, "kind")))};
    char options[256];
    if (!x.kind || json_object_size(inputs) != 3 || json_object_size(json_object_get(c, "const")) ||
        !json_object_get(inputs, "k") || !golden_options(c, x.kind, &x.args.causal, options))
        return;
    double limit = dtype == BK_F64 ? 1e-11 : 1e-5; /* the values have 12 digits */
    x.tape = bk_test_tape(dtype, bk_lanes_single(2));
    read_options(&x, options);
    x.args.q = golden_input(&x.tape, inputs, "q", 1);
    x.args.k = golden_input(&x.tape, inputs, "k", 2);
    x.args.v = golden_input(&x.tape, inputs, "v", 3);
    x.args.mask = golden_mask(&x.tape, json_object_get(golden, "mask"));
    x.args.config = x.config;
    x.out = x.kind->apply(&x.tape, &x.args);
    bk_test_seed_fill(&x.tape, x.out, 99, -1.0, 1.0);
    bk_tape_backward_seeded(&x.tape);
    bk_check_error(bk_test_data_error(x.out, json_object_get(c, "out"), 1.0), limit, "%s", name);
    bk_check_error(bk_test_grad_error(x.args.q, json_object_get(grad, "q"), 1.0), limit, "%s",
                   name);
    bk_check_error(bk_test_grad_error(x.args.k, json_object_get(grad, "k"), 1.0), limit, "%s",
                   name);
    bk_check_error(bk_test_grad_error(x.args.v, json_object_get(grad, "v"), 1.0), limit, "%s",
                   name);
    bk_test_tape_free(&x.tape);
    *checked += 1;
}

static void golden_values(void **state)
{
    json_t *golden = bk_test_golden("ref_attention_golden.json"), *c;
    const char *name;
    int checked = 0;
    (void)state;
    json_object_foreach(json_object_get(golden, "cases"), name, c)
    {
        check_golden(golden, name, BK_F64, &checked);
        check_golden(golden, name, BK_F32, &checked);
    }
    assert_true(checked >= 6); /* softmax, softmax_causal, softmax_cross */
    json_decref(golden);
}

/* ---- matrix, attributes ---- */

/* The matrix holds the probabilities: rows of real queries sum to 1, out = matrix v. */
static void check_matrix(const call *given, const char *what)
{
    call c = *given;
    bk_tensor *matrix = NULL;
    if (!(given->kind->flags & BK_ATTENTION_MATRIX))
        return;
    prepare(&c, BK_F64);
    c.args.matrix = &matrix;
    run(&c);
    assert_non_null(matrix);
    for (int64_t r = 0; r < B * H * c.length; r++) {
        if (!is_real(&c, r / (H * c.length), r % c.length))
            continue;
        for (int64_t d = 0; d < D; d++) {
            double sum = 0.0;
            for (int64_t j = 0; j < c.length; j++)
                sum += bk_f64(matrix)[r * c.length + j] *
                       bk_f64(c.v)[(r / c.length * c.length + j) * D + d];
            bk_check_error(fabs(sum - bk_f64(c.out)[r * D + d]), 1e-12, "%s", what);
        }
    }
    bk_test_tape_free(&c.tape);
}

static void out_is_matrix_times_v(void **state)
{
    (void)state;
    for_every_variant(check_matrix);
}

static void softmax_counts_its_pairs(void **state)
{
    bk_attributes a = {0};
    int64_t pairs[2] = {0};
    (void)state;
    for (int64_t s = 0; s < B; s++)
        for (int64_t i = 0; i < N; i++)
            for (int64_t j = 0; j < N; j++) {
                pairs[0] += H * (is_real(&(call){0}, s, i) && is_real(&(call){0}, s, j));
                pairs[1] += H * (is_real(&(call){0}, s, i) && is_real(&(call){0}, s, j) && j <= i);
            }
    for (int causal = 0; causal < 2; causal++) {
        call c = {
            .kind = bk_attention_find("softmax"), .samples = B, .length = N, .causal = causal};
        read_options(&c, "");
        prepare(&c, BK_F32);
        c.args.attributes = &a;
        run(&c);
        assert_string_equal(a.entry[0].name, "pairs");
        assert_true(a.entry[0].value == (double)pairs[causal]);
        assert_true(a.entry[1].value == 4.0 * D * (double)pairs[causal]);
        bk_test_tape_free(&c.tape);
    }
}

static void the_table_and_the_folder_agree(void **state)
{
    const char *source = getenv("BIRKHOFF_SOURCE");
    char path[4096];
    int files = 0, kinds = 0;
    (void)state;
    snprintf(path, sizeof path, "%s/models/attention", source ? source : ".");
    DIR *folder = opendir(path);
    assert_non_null(folder);
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        char name[64];
        if (sscanf(entry->d_name, "%63[a-z_0-9].c", name) != 1 || !strstr(entry->d_name, ".c"))
            continue;
        assert_non_null(bk_attention_find(name));
        files++;
    }
    closedir(folder);
    for (; bk_attentions[kinds]; kinds++)
        assert_true(bk_attentions[kinds]->summary && bk_attentions[kinds]->source);
    assert_int_equal(files, kinds);
    assert_null(bk_attention_find("no such kind"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_gradient),
        cmocka_unit_test(padding_moves_no_bit),
        cmocka_unit_test(no_sample_is_fine),
        cmocka_unit_test(joined_heads_give_the_same_bits),
        cmocka_unit_test(samples_do_not_know_of_each_other),
        cmocka_unit_test(the_future_is_not_seen),
        cmocka_unit_test(golden_values),
        cmocka_unit_test(out_is_matrix_times_v),
        cmocka_unit_test(softmax_counts_its_pairs),
        cmocka_unit_test(the_table_and_the_folder_agree),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
