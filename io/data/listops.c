/* io/data/listops.c - ListOps (Nangia and Bowman 2018; Long Range Arena's generator): nested MIN,
 * MAX, MED, SM over digits. Sample by sample from the counter-based generator keyed by (seed,
 * attempt), so the set does not depend on the ranks. */
#include "io/data_common.h"

#include "core/rng.h"

#include <stdlib.h>
#include <string.h>

typedef struct listops_config {
    int preset;
    int64_t min_length, max_length, max_depth, max_args, train, validation, test, limit, seed;
} listops_config;

static const bk_option options[] = {
    BK_OPTION_CHOICE(listops_config, preset, 0, "official|medium|small|tiny",
                     "length limits and depth of the trees"),
    BK_OPTION_I64(listops_config, min_length, 0, 0, 1 << 20,
                  "shorter trees (and of this length) are drawn again; 0 = preset"),
    BK_OPTION_I64(listops_config, max_length, 0, 0, 1 << 20,
                  "longer trees (and of this length) are drawn again; 0 = preset"),
    BK_OPTION_I64(listops_config, max_depth, 0, 0, 64, "deepest nesting; 0 = preset"),
    BK_OPTION_I64(listops_config, max_args, 10, 2, 64, "most arguments of an operator"),
    BK_OPTION_I64(listops_config, train, 96000, 0, 1LL << 32, "samples of the training split"),
    BK_OPTION_I64(listops_config, validation, 2000, 0, 1LL << 32,
                  "samples of the validation split"),
    BK_OPTION_I64(listops_config, test, 2000, 0, 1LL << 32, "samples of the test split"),
    BK_OPTION_I64(listops_config, limit, 0, 0, 1LL << 32, "most samples of a split; 0 = no limit"),
    BK_OPTION_I64(listops_config, seed, 1, 0, 1LL << 53, "of the generator"),
    BK_OPTION_END,
};

static const struct {
    int64_t min_length, max_length, max_depth;
} presets[] = {{500, 2000, 10}, {100, 400, 10}, {20, 128, 6}, {5, 64, 4}};

/* Symbols: 1..10 the digits, then the operators and the bracket. */
enum { DIGIT = 1, MIN = 11, MAX, MED, SM, CLOSE, VOCABULARY };

/* ---- generator ---- */

typedef struct stream {
    bk_philox_key key;
    uint64_t attempt, drawn, word[4];
} stream;

static double draw(stream *s)
{
    if (s->drawn % 4 == 0)
        bk_philox(s->key, s->attempt, 0, s->drawn / 4, s->word);
    return bk_unit(s->word[s->drawn++ % 4]);
}

static int64_t draw_below(stream *s, int64_t n)
{
    return (int64_t)(draw(s) * (double)n);
}

typedef struct tree {
    int32_t *token;
    int64_t length, room; /* one past `room` marks a tree that is too long */
    int64_t max_depth, max_args;
} tree;

static void put(tree *t, int32_t token)
{
    if (t->length < t->room)
        t->token[t->length] = token;
    t->length++;
}

static void generate(tree *t, stream *s, int64_t depth)
{
    double r = depth < t->max_depth ? draw(s) : 1.0;
    if (t->length >= t->room)
        return; /* too long already: it will be drawn again */
    if (r > 0.25) {
        put(t, DIGIT + (int32_t)draw_below(s, 10));
        return;
    }
    int64_t children = 2 + draw_below(s, t->max_args - 1), place = t->length;
    put(t, MIN);
    for (int64_t i = 0; i < children; i++)
        generate(t, s, depth + 1);
    int32_t kind = MIN + (int32_t)draw_below(s, 4);
    if (place < t->room)
        t->token[place] = kind;
    put(t, CLOSE);
}

/* ---- evaluation: operators of the first `depth` levels; deeper ones are guessed ----
 * Depth 0 reads the root operator alone, depth 1 also its arguments, and so on. */

static int ascending(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

static int apply(int32_t kind, int *value, int count)
{
    int result = value[0], sum = 0;
    for (int i = 0; i < count; i++) {
        result = kind == MIN   ? (value[i] < result ? value[i] : result)
                 : kind == MAX ? (value[i] > result ? value[i] : result)
                               : result;
        sum += value[i];
    }
    if (kind == SM)
        return sum % 10;
    if (kind != MED)
        return result;
    qsort(value, (size_t)count, sizeof *value, ascending);
    return count % 2 ? value[count / 2] : (value[count / 2 - 1] + value[count / 2]) / 2;
}

static int guess(int32_t kind)
{
    return kind == MIN ? 0 : kind == MAX ? 9 : 4;
}

/* Value of the expression at *at, which moves behind it; operators from level `depth` on are
 * guessed. */
static int evaluate(const int32_t *token, int64_t *at, int64_t level, int64_t depth)
{
    int32_t kind = token[(*at)++];
    int value[64] = {0}, count = 0;
    if (kind < MIN)
        return kind - DIGIT;
    while (token[*at] != CLOSE)
        value[count++] = evaluate(token, at, level + 1, depth);
    (*at)++;
    return level >= depth ? guess(kind) : apply(kind, value, count);
}

static int label_of(const int32_t *token, int64_t depth)
{
    int64_t at = 0;
    return evaluate(token, &at, 0, depth);
}

/* ---- the set ---- */

/* Distinct expressions: an open-addressing table of hashes, collisions compared by content. */
typedef struct seen {
    int64_t *sample;
    int64_t room;
} seen;

static bool add_if_new(seen *x, bk_samples *s, const tree *t)
{
    uint64_t hash = bk_hash_bytes(t->token, (uint64_t)t->length * sizeof *t->token);
    int64_t slot = (int64_t)(hash % (uint64_t)x->room);
    for (; x->sample[slot] >= 0; slot = (slot + 1) % x->room) {
        int64_t i = x->sample[slot], length = s->offsets[i + 1] - s->offsets[i];
        if (length == t->length &&
            memcmp(s->tokens + s->offsets[i], t->token, (size_t)length * sizeof *t->token) == 0)
            return false;
    }
    x->sample[slot] = s->count;
    bk_samples_add(s, t->token, t->length, label_of(t->token, INT64_MAX));
    return true;
}

static void ladder(const bk_data_args *a, const bk_samples *s, bk_split *split, int64_t depths)
{
    double *share = BK_ZNEW(a->arena, double, depths);
    for (int64_t i = 0; i < split->count; i++)
        for (int64_t d = 0; d < depths; d++)
            share[d] +=
                label_of(s->tokens + s->offsets[split->index[i]], d) == s->labels[split->index[i]];
    for (int64_t d = 0; d < depths; d++)
        share[d] /= split->count > 0 ? (double)split->count : 1.0;
    split->ladder = share;
    split->ladder_count = depths;
}

enum { SPLITS = 3, FRUITLESS = 2000000 };

static void split_sizes(const listops_config *c, int64_t sizes[SPLITS])
{
    const int64_t wanted[SPLITS] = {c->train, c->validation, c->test};
    for (int k = 0; k < SPLITS; k++)
        sizes[k] = c->limit > 0 && c->limit < wanted[k] ? c->limit : wanted[k];
}

/* In the order of drawing: first the training trees. */
static void add_splits(const bk_data_args *a, const bk_samples *s, int64_t depths, bk_dataset *out)
{
    static const char *const names[SPLITS] = {"train", "validation", "test"};
    int64_t sizes[SPLITS], at = 0;
    split_sizes(a->config, sizes);
    for (int k = 0; k < SPLITS; k++) {
        int64_t *index = BK_NEW(a->arena, int64_t, sizes[k]);
        for (int64_t i = 0; i < sizes[k]; i++)
            index[i] = at + i;
        at += sizes[k];
        if (sizes[k] == 0)
            continue;
        bk_split_add(out, names[k], index, sizes[k]);
        ladder(a, s, &out->split[out->splits - 1], depths);
    }
}

/* Distinct trees of a length strictly between the limits, by attempt. */
static bk_status draw_trees(const bk_data_args *a, tree *t, int64_t least, int64_t wanted,
                            bk_samples *s)
{
    const listops_config *c = a->config;
    seen x = {.room = 2 * wanted + 1};
    x.sample = BK_NEW(a->arena, int64_t, x.room);
    memset(x.sample, 0xff, (size_t)x.room * sizeof *x.sample);
    int64_t fruitless = 0;
    for (uint64_t attempt = 0; s->count < wanted; attempt++) {
        stream random = {.key = bk_philox_for((uint64_t)c->seed, 0, BK_USE_DATA),
                         .attempt = attempt};
        t->length = 0;
        generate(t, &random, 1);
        bool added = t->length > least && t->length < t->room && add_if_new(&x, s, t);
        fruitless = added ? 0 : fruitless + 1;
        if (fruitless > FRUITLESS)
            return bk_fail(BK_USAGE,
                           "no new tree came of %d draws (%lld distinct ones were found): ask for "
                           "fewer, or widen min_length and max_length",
                           FRUITLESS, (long long)s->count);
    }
    return BK_OK;
}

static bk_status make(const bk_data_args *a, bk_dataset *out)
{
    const listops_config *c = a->config;
    int64_t least = c->min_length ? c->min_length : presets[c->preset].min_length;
    int64_t most = c->max_length ? c->max_length : presets[c->preset].max_length;
    int64_t sizes[SPLITS];
    split_sizes(c, sizes);
    if (a->inputs > 0)
        return bk_fail(BK_USAGE, "listops takes no input files (%s): birkhoff data listops OUT.h5",
                       a->input[0]);
    if (least + 1 >= most)
        return bk_fail(BK_USAGE,
                       "min_length=%lld leaves no room under max_length=%lld: choose others",
                       (long long)least, (long long)most);
    if (sizes[0] + sizes[1] + sizes[2] == 0)
        return bk_fail(BK_USAGE, "train, validation and test are all 0: ask for some samples");
    tree t = {.token = BK_NEW(a->arena, int32_t, most),
              .room = most,
              .max_depth = c->max_depth ? c->max_depth : presets[c->preset].max_depth,
              .max_args = c->max_args};
    bk_samples s = {.arena = a->arena};
    BK_TRY(draw_trees(a, &t, least, sizes[0] + sizes[1] + sizes[2], &s));
    bk_samples_to(&s, out);
    out->task = "classification";
    out->vocabulary = VOCABULARY;
    out->classes = 10;
    add_splits(a, &s, t.max_depth, out);
    return BK_OK;
}

const bk_data_kind bk_data_listops = {
    .name = "listops",
    .summary = "nested list operations, generated; prints the ladder of shortcut accuracies",
    .source = "Nangia and Bowman 2018; Tay et al. 2020",
    .usage = "",
    .options = options,
    .config_size = sizeof(listops_config),
    .make = make,
};
