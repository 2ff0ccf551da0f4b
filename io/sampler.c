#include "io/sampler.h"

#include "core/rng.h"

#include <string.h>

enum { PAD_TO = 16 };

/* One unit of training: a sample, or a window of a language model. */
typedef struct span {
    int64_t first;  /* token, or value of the features */
    int64_t length; /* positions */
    int64_t sample;
    int64_t first2; /* of a pair: token of the second text, and positions of the first one */
    int64_t before;
} span;

/* The permutations of the two epochs that a batch may touch. */
typedef struct orders {
    int64_t epoch[2];
    int64_t *order[2];
} orders;

struct bk_sampler {
    const bk_dataset *d;
    bk_sampler_options o;
    span *unit;
    int64_t units;
    orders *orders;
};

/* ---- units ---- */

static int64_t length_of(const bk_sampler *s, int64_t sample)
{
    int64_t length = bk_sample_length(s->d, sample);
    return s->o.max_length > 0 && length > s->o.max_length ? s->o.max_length : length;
}

static int64_t first_of(const bk_sampler *s, int64_t sample)
{
    const bk_dataset *d = s->d;
    return d->features ? sample * d->positions * d->channels : d->offsets[sample];
}

/* Windows of one sample: each position but the last predicts its successor. */
static int64_t windows_of(const bk_sampler *s, int64_t sample)
{
    int64_t inputs = s->d->offsets[sample + 1] - s->d->offsets[sample] - 1;
    return inputs > 0 ? (inputs + s->o.length - 1) / s->o.length : 0;
}

static void add_windows(bk_sampler *s, int64_t sample)
{
    int64_t inputs = s->d->offsets[sample + 1] - s->d->offsets[sample] - 1;
    for (int64_t at = 0; at < inputs; at += s->o.length)
        s->unit[s->units++] =
            (span){.first = s->d->offsets[sample] + at,
                   .length = at + s->o.length < inputs ? s->o.length : inputs - at,
                   .sample = sample};
}

/* Both texts in `room` positions: the longer one is cut until they are as long, then both, the
 * second one first. */
static int64_t share_of_first(int64_t first, int64_t second, int64_t room)
{
    int64_t half = (room + 1) / 2;
    if (first + second <= room || first <= half)
        return first;
    return second < room - half ? room - second : half;
}

static span span_of(const bk_sampler *s, int64_t sample)
{
    const bk_dataset *d = s->d;
    span u = {.first = first_of(s, sample), .length = length_of(s, sample), .sample = sample};
    if (!d->tokens2)
        return u;
    int64_t first = d->offsets[sample + 1] - d->offsets[sample];
    int64_t second = d->offsets2[sample + 1] - d->offsets2[sample];
    u.first2 = d->offsets2[sample];
    u.before = share_of_first(first, second, u.length - 1);
    return u;
}

static void list_units(bk_sampler *s, bk_arena *arena, const bk_split *split)
{
    bool windows = s->o.length > 0;
    int64_t room = windows ? 0 : split->count;
    for (int64_t i = 0; windows && i < split->count; i++)
        room += windows_of(s, split->index[i]);
    s->unit = BK_NEW(arena, span, room);
    for (int64_t i = 0; i < split->count; i++) {
        int64_t sample = split->index[i];
        if (windows)
            add_windows(s, sample);
        else
            s->unit[s->units++] = span_of(s, sample);
    }
}

bk_sampler *bk_sampler_new(bk_arena *arena, const bk_dataset *d, const bk_split *split,
                           const bk_sampler_options *options)
{
    bk_sampler *s = BK_ZNEW(arena, bk_sampler, 1);
    s->d = d;
    s->o = *options;
    list_units(s, arena, split);
    s->orders = BK_ZNEW(arena, orders, 1);
    for (int i = 0; i < 2; i++) {
        s->orders->epoch[i] = -1;
        s->orders->order[i] = BK_NEW(arena, int64_t, options->shuffle ? s->units : 0);
    }
    return s;
}

int64_t bk_sampler_samples(const bk_sampler *s)
{
    return s->units;
}

int64_t bk_sampler_batches(const bk_sampler *s)
{
    return (s->units + s->o.batch - 1) / s->o.batch;
}

/* ---- order ---- */

static const int64_t *order_of(const bk_sampler *s, int64_t epoch)
{
    orders *o = s->orders;
    int64_t slot = epoch & 1;
    if (o->epoch[slot] != epoch) {
        bk_permutation(s->o.seed, BK_USE_SHUFFLE, (uint64_t)epoch, s->units, o->order[slot]);
        o->epoch[slot] = epoch;
    }
    return o->order[slot];
}

/* The unit at a global position; NULL: past the end of an evaluation. */
static const span *unit_at(const bk_sampler *s, int64_t position)
{
    if (s->o.shuffle)
        return &s->unit[order_of(s, position / s->units)[position % s->units]];
    return position < s->units ? &s->unit[position] : NULL;
}

/* ---- one batch ---- */

/* What the whole batch says about shapes: the same on every rank. */
typedef struct batch {
    int64_t first, samples; /* own part, global positions */
    int64_t length;         /* padded */
    bool ragged;            /* some position is padding */
} batch;

/* Samples of features are all as long: one behind the end is as long as they, of zeros. */
static int64_t length_behind_end(const bk_sampler *s)
{
    return s->d->features ? length_of(s, 0) : 0;
}

static int64_t pad(const bk_sampler *s, int64_t longest)
{
    int64_t padded = (longest + PAD_TO - 1) / PAD_TO * PAD_TO;
    return s->d->features ? longest : padded > 0 ? padded : PAD_TO;
}

static batch measure(const bk_sampler *s, int64_t step, const bk_lanes *lanes, bk_bundle *out)
{
    int64_t longest = 0, shortest = INT64_MAX, start = step * s->o.batch;
    out->rows = out->positions = 0;
    for (int64_t i = 0; i < s->o.batch; i++) {
        const span *u = unit_at(s, start + i);
        int64_t length = u ? u->length : length_behind_end(s);
        bool labelled = u && (s->o.length > 0 || (s->d->labels && s->d->labels[u->sample] >= 0));
        longest = length > longest ? length : longest;
        shortest = length < shortest ? length : shortest;
        out->positions += length;
        out->rows += labelled ? (s->o.length > 0 ? length : 1) : 0;
    }
    int64_t padded = pad(s, longest);
    return (batch){.first = start + bk_lanes_first_sample(lanes),
                   .samples = bk_lanes_samples(lanes),
                   .length = padded,
                   .ragged = shortest < padded};
}

/* First text, separator, second text. */
static void copy_pair(const bk_dataset *d, const span *u, int32_t *to)
{
    memcpy(to, d->tokens + u->first, (size_t)u->before * sizeof *to);
    to[u->before] = (int32_t)d->vocabulary;
    memcpy(to + u->before + 1, d->tokens2 + u->first2,
           (size_t)(u->length - u->before - 1) * sizeof *to);
}

static void fill_tokens(const bk_sampler *s, const batch *b, bk_arena *arena, bk_bundle *out)
{
    bk_tensor *tokens = bk_tensor_new(arena, BK_I32, BK_SHAPE(b->samples, b->length));
    int32_t *to = tokens->data;
    memset(to, 0, (size_t)(b->samples * b->length) * sizeof *to);
    for (int64_t i = 0; i < b->samples; i++) {
        const span *u = unit_at(s, b->first + i);
        if (u && s->d->tokens2)
            copy_pair(s->d, u, to + i * b->length);
        else if (u && u->length > 0)
            memcpy(to + i * b->length, s->d->tokens + u->first, (size_t)u->length * sizeof *to);
    }
    bk_bundle_set(out, "tokens", tokens);
}

static void fill_segments(const bk_sampler *s, const batch *b, bk_arena *arena, bk_bundle *out)
{
    bk_tensor *segments = bk_tensor_new(arena, BK_I32, BK_SHAPE(b->samples, b->length));
    int32_t *to = segments->data;
    for (int64_t i = 0; i < b->samples; i++) {
        const span *u = unit_at(s, b->first + i);
        for (int64_t n = 0; n < b->length; n++)
            to[i * b->length + n] = u && n > u->before && n < u->length;
    }
    bk_bundle_set(out, "segments", segments);
}

static void fill_features(const bk_sampler *s, const batch *b, bk_arena *arena, bk_bundle *out)
{
    int64_t channels = s->d->channels, width = b->length * channels;
    bk_tensor *features = bk_tensor_new(arena, BK_F32, BK_SHAPE(b->samples, b->length, channels));
    float *to = features->data;
    memset(to, 0, (size_t)(b->samples * width) * sizeof *to);
    for (int64_t i = 0; i < b->samples; i++) {
        const span *u = unit_at(s, b->first + i);
        if (u)
            memcpy(to + i * width, s->d->features + u->first,
                   (size_t)(u->length * channels) * sizeof *to);
    }
    bk_bundle_set(out, "features", features);
}

static void fill_mask(const bk_sampler *s, const batch *b, bk_arena *arena, bk_bundle *out)
{
    if (!b->ragged)
        return;
    bk_tensor *mask = bk_tensor_new(arena, BK_I32, BK_SHAPE(b->samples, b->length));
    int32_t *to = mask->data;
    for (int64_t i = 0; i < b->samples; i++) {
        const span *u = unit_at(s, b->first + i);
        for (int64_t n = 0; n < b->length; n++)
            to[i * b->length + n] = u && n < u->length;
    }
    bk_bundle_set(out, "mask", mask);
}

/* The successor of each position; -1 behind the end. */
static void window_labels(const bk_sampler *s, const span *u, int64_t length, int32_t *to)
{
    for (int64_t n = 0; n < length; n++)
        to[n] = u && n < u->length ? s->d->tokens[u->first + n + 1] : -1;
}

static void fill_labels(const bk_sampler *s, const batch *b, bk_arena *arena, bk_bundle *out)
{
    int64_t each = s->o.length > 0 ? b->length : 1;
    bk_tensor *labels = bk_tensor_new(arena, BK_I32, BK_SHAPE(b->samples * each));
    bk_tensor *sequence = bk_tensor_new(arena, BK_I32, BK_SHAPE(b->samples * each));
    int32_t *label = labels->data, *place = sequence->data;
    for (int64_t i = 0; i < b->samples; i++) {
        const span *u = unit_at(s, b->first + i);
        for (int64_t n = 0; n < each; n++)
            place[i * each + n] = (int32_t)((b->first + i) % s->o.batch);
        if (s->o.length > 0)
            window_labels(s, u, each, label + i * each);
        else
            label[i] = u && s->d->labels ? s->d->labels[u->sample] : -1;
    }
    bk_bundle_set(out, "labels", labels);
    bk_bundle_set(out, "sequence", sequence);
}

void bk_sampler_batch(const bk_sampler *s, int64_t step, const bk_lanes *lanes, bk_arena *arena,
                      bk_bundle *out)
{
    batch b = measure(s, step, lanes, out);
    out->first_sample = b.first;
    if (s->d->features)
        fill_features(s, &b, arena, out);
    else
        fill_tokens(s, &b, arena, out);
    if (s->d->tokens2)
        fill_segments(s, &b, arena, out);
    fill_mask(s, &b, arena, out);
    fill_labels(s, &b, arena, out);
}

void bk_sampler_indices(const bk_sampler *s, int64_t step, int64_t *out)
{
    for (int64_t i = 0; i < s->o.batch; i++) {
        const span *u = unit_at(s, step * s->o.batch + i);
        out[i] = u ? u->sample : -1;
    }
}

/* ---- rows of logits ---- */

int64_t bk_sampler_rows(const bk_sampler *s, int64_t step)
{
    bk_bundle counted = {0};
    const bk_lanes none = {.total = 1, .batch = s->o.batch};
    return s->o.length > 0 ? measure(s, step, &none, &counted).length : 1;
}

int64_t bk_sampler_sample_rows(const bk_sampler *s, int64_t sample)
{
    int64_t tokens = s->o.length > 0 ? s->d->offsets[sample + 1] - s->d->offsets[sample] : 2;
    return tokens > 0 ? tokens - 1 : 0;
}

void bk_sampler_places(const bk_sampler *s, int64_t step, const bk_lanes *lanes, bk_row_place *out)
{
    int64_t first = step * s->o.batch + bk_lanes_first_sample(lanes);
    for (int64_t i = 0; i < bk_lanes_samples(lanes); i++) {
        const span *u = unit_at(s, first + i);
        out[i] = (bk_row_place){-1, 0, 0};
        if (u && s->o.length > 0)
            out[i] = (bk_row_place){u->sample, u->first - s->d->offsets[u->sample], u->length};
        else if (u)
            out[i] = (bk_row_place){u->sample, 0, 1};
    }
}
