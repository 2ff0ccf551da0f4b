/* test: labels=unit timeout=300 */
/* ListOps: the statistics of the specification, labels by another evaluator, distinct trees. */
#include "core/rng.h"
#include "tests/support/check.h"
#include "tests/support/data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bk_arena *arena;

/* ---- an evaluator of its own: a stack of values, a mark at each open operator ---- */

enum { OPEN = -1, DIGITS = 11, MIN = 11, MAX, MED, SM, CLOSE };

static int middle(const int *value, int count)
{
    int seen[10] = {0}, low = -1, high = -1, passed = 0;
    for (int i = 0; i < count; i++)
        seen[value[i]]++;
    for (int digit = 0; digit < 10; digit++) {
        passed += seen[digit];
        if (low < 0 && passed > (count - 1) / 2)
            low = digit;
        if (high < 0 && passed > count / 2)
            high = digit;
    }
    return (low + high) / 2;
}

static int combine(int32_t kind, const int *value, int count)
{
    int sum = 0, least = 9, most = 0;
    for (int i = 0; i < count; i++) {
        sum += value[i];
        least = value[i] < least ? value[i] : least;
        most = value[i] > most ? value[i] : most;
    }
    return kind == MIN ? least : kind == MAX ? most : kind == SM ? sum % 10 : middle(value, count);
}

/* The value of a tree; its deepest nesting and root arguments on the way. */
static int value_of(const int32_t *token, int64_t length, int *deepest, int *arguments)
{
    int stack[4096], mark[64], size = 0, depth = 0;
    *deepest = 0;
    for (int64_t i = 0; i < length; i++) {
        if (token[i] >= MIN && token[i] <= SM) {
            assert_true(depth < 64);
            mark[depth++] = size;
            stack[size++] = OPEN - token[i];
            *deepest = depth > *deepest ? depth : *deepest;
        } else if (token[i] == CLOSE) {
            int from = mark[--depth], count = size - from - 1;
            assert_in_range(count, 2, 10);
            *arguments = count;
            stack[from] = combine(OPEN - stack[from], stack + from + 1, count);
            size = from + 1;
        } else {
            assert_in_range(token[i], 1, 10);
            stack[size++] = token[i] - 1;
        }
    }
    assert_int_equal(size, 1);
    assert_int_equal(depth, 0);
    return stack[0];
}

static void evaluator_knows_the_examples(void **state)
{
    (void)state;
    int deepest, arguments;
    const int32_t sm[] = {SM, 4, MAX, 2, 10, CLOSE, 6, CLOSE}, med[] = {MED, 2, 5, CLOSE};
    assert_int_equal(value_of(sm, 8, &deepest, &arguments), 7);
    assert_int_equal(deepest, 2);
    assert_int_equal(value_of(med, 4, &deepest, &arguments), 2);
}

/* ---- statistics ---- */

typedef struct figures {
    const char *preset;
    int64_t least, most;
    int depth;
    double low[3], high[3];   /* of depths 0, 1, 2 */
    double shortest, longest; /* of the mean length */
} figures;

/* `official` from the test section; the others: the two samples of the table, 3 points to each
 * side. */
static const figures table[] = {
    {"official", 500, 2000, 10, {0.33, 0.57, 0.71}, {0.385, 0.62, 0.76}, 1000, 1090},
    {"medium", 100, 400, 10, {0.296, 0.579, 0.753}, {0.369, 0.642, 0.826}, 240, 260},
    {"small", 20, 128, 6, {0.299, 0.576, 0.767}, {0.362, 0.644, 0.83}, 69, 75},
    {"tiny", 5, 64, 4, {0.292, 0.637, 0.802}, {0.352, 0.706, 0.874}, 27, 31},
};

static int by_bytes(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void check_distinct(const bk_dataset *d)
{
    uint64_t *hash = BK_NEW(arena, uint64_t, d->samples);
    for (int64_t i = 0; i < d->samples; i++)
        hash[i] = bk_hash_bytes(d->tokens + d->offsets[i],
                                (uint64_t)(d->offsets[i + 1] - d->offsets[i]) * sizeof(int32_t));
    qsort(hash, (size_t)d->samples, sizeof *hash, by_bytes);
    for (int64_t i = 1; i < d->samples; i++)
        assert_true(hash[i] != hash[i - 1]);
}

static void check_trees(const bk_dataset *d, const figures *f)
{
    for (int64_t i = 0; i < d->samples; i++) {
        int deepest, arguments;
        int64_t length = d->offsets[i + 1] - d->offsets[i];
        assert_true(length > f->least && length < f->most);
        assert_int_equal(value_of(d->tokens + d->offsets[i], length, &deepest, &arguments),
                         d->labels[i]);
        assert_true(deepest < f->depth);
    }
    double mean = (double)d->offsets[d->samples] / (double)d->samples;
    assert_true(mean > f->shortest && mean < f->longest);
}

/* Accuracy of the guess that knows the root alone: MIN 0, MAX 9, MED 4, SM 4. */
static double root_accuracy(const bk_dataset *d, const bk_split *s)
{
    static const int guess[] = {0, 9, 4, 4};
    int64_t right = 0;
    for (int64_t i = 0; i < s->count; i++)
        right += d->labels[s->index[i]] == guess[d->tokens[d->offsets[s->index[i]]] - MIN];
    return (double)right / (double)s->count;
}

static void check_ladder(const bk_dataset *d, const figures *f)
{
    const bk_split *s = bk_test_split(d, "train");
    assert_int_equal(s->count, 4000);
    assert_int_equal(s->ladder_count, f->depth);
    assert_true(s->majority >= 0.145 && s->majority <= 0.185);
    for (int k = 0; k < 3; k++)
        assert_true(s->ladder[k] >= f->low[k] && s->ladder[k] <= f->high[k]);
    for (int k = 1; k < f->depth; k++)
        assert_true(s->ladder[k] >= s->ladder[k - 1]);
    bk_check_error(fabs(s->ladder[0] - root_accuracy(d, s)), 1e-12, "%s, depth 0", f->preset);
    bk_check_error(1.0 - s->ladder[f->depth - 1], 0.0, "%s, all operators", f->preset);
}

static void statistics_of_the_presets(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        bk_dataset d;
        const char *preset = bk_arena_printf(arena, "preset=%s", table[i].preset);
        assert_int_equal(bk_test_make(arena, "listops", BK_NONE,
                                      BK_TEXTS(preset, "train=4000", "validation=0", "test=0"), &d),
                         BK_OK);
        assert_int_equal(d.samples, 4000);
        assert_int_equal(d.vocabulary, 16);
        assert_int_equal(d.classes, 10);
        assert_string_equal(d.task, "classification");
        check_trees(&d, &table[i]);
        check_distinct(&d);
        check_ladder(&d, &table[i]);
    }
}

/* ---- options ---- */

static void make(const char *const *options, bk_dataset *d)
{
    assert_int_equal(bk_test_make(arena, "listops", BK_NONE, options, d), BK_OK);
}

static void sizes_and_seeds(void **state)
{
    (void)state;
    bk_dataset a, b, c;
    make(BK_TEXTS("preset=tiny", "train=70", "validation=20", "test=10"), &a);
    make(BK_TEXTS("preset=tiny", "train=70", "validation=20", "test=10"), &b);
    make(BK_TEXTS("preset=tiny", "train=70", "validation=20", "test=10", "seed=2"), &c);
    assert_int_equal(a.samples, 100);
    assert_int_equal(bk_test_split(&a, "validation")->count, 20);
    assert_int_equal(bk_test_split(&a, "test")->index[0], 90);
    assert_int_equal(a.offsets[100], b.offsets[100]);
    assert_memory_equal(a.tokens, b.tokens, (size_t)a.offsets[100] * sizeof *a.tokens);
    assert_true(a.offsets[100] != c.offsets[100] ||
                memcmp(a.tokens, c.tokens, (size_t)a.offsets[100] * sizeof *a.tokens) != 0);
    make(BK_TEXTS("preset=tiny", "limit=5"), &a);
    assert_int_equal(a.samples, 15);
}

/* Few trees exist within narrow limits: they are found, and asking for more ends. */
static void few_distinct_trees(void **state)
{
    (void)state;
    bk_dataset d;
    make(BK_TEXTS("min_length=3", "max_length=5", "train=300", "validation=0", "test=0"), &d);
    assert_int_equal(d.max_length, 4); /* an operator, two digits, a bracket: 400 trees */
    check_distinct(&d);
    bk_test_refused("listops", BK_NONE,
                    BK_TEXTS("min_length=3", "max_length=5", "train=401", "validation=0", "test=0"),
                    BK_USAGE, BK_TEXTS("400 distinct"));
}

static void refusals(void **state)
{
    (void)state;
    bk_test_refused("listops", BK_TEXTS("a.tsv"), BK_NONE, BK_USAGE, BK_TEXTS("a.tsv"));
    bk_test_refused("listops", BK_NONE, BK_TEXTS("min_length=9", "max_length=10"), BK_USAGE,
                    BK_TEXTS("min_length=9", "max_length=10"));
    bk_test_refused("listops", BK_NONE, BK_TEXTS("train=0", "validation=0", "test=0"), BK_USAGE,
                    BK_TEXTS("all 0"));
    bk_test_refused("listops", BK_NONE, BK_TEXTS("preset=large"), BK_USAGE, BK_TEXTS("official"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(evaluator_knows_the_examples),
        cmocka_unit_test(statistics_of_the_presets),
        cmocka_unit_test(sizes_and_seeds),
        cmocka_unit_test(few_distinct_trees),
        cmocka_unit_test(refusals),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_arena_free(arena);
    return failed;
}
