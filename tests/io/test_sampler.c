/* Batches: a function of (seed, step) alone, cut by lanes, with permutations, windows and padding
 * as io/sampler.h says. */
#include "io/sampler.h"

#include "core/rng.h"
#include "tests/support/check.h"

#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 10 };

static bk_arena *arena;

/* Sample i: tokens 100 i + 1, 100 i + 2, ..., of length 3 + 7 i mod 23; label i mod 4, sample 6
 * without a label.  The split holds the samples backwards. */
static const bk_dataset *texts(void)
{
    int64_t *offsets = BK_ZNEW(arena, int64_t, SAMPLES + 1),
            *index = BK_NEW(arena, int64_t, SAMPLES);
    int32_t *labels = BK_NEW(arena, int32_t, SAMPLES), *tokens = BK_NEW(arena, int32_t, 1000);
    for (int64_t i = 0; i < SAMPLES; i++) {
        offsets[i + 1] = offsets[i] + 3 + 7 * i % 23;
        labels[i] = i == 6 ? -1 : (int32_t)(i % 4);
        index[i] = SAMPLES - 1 - i;
        for (int64_t k = offsets[i]; k < offsets[i + 1]; k++)
            tokens[k] = (int32_t)(100 * i + 1 + k - offsets[i]);
    }
    bk_dataset *d = BK_ZNEW(arena, bk_dataset, 1);
    *d = (bk_dataset){.samples = SAMPLES,
                      .vocabulary = 1100,
                      .classes = 4,
                      .tokens = tokens,
                      .offsets = offsets,
                      .labels = labels,
                      .splits = 1};
    d->split[0] = (bk_split){.name = "train", .index = index, .count = SAMPLES};
    return d;
}

static bk_sampler *sampler(const bk_dataset *d, bk_sampler_options options)
{
    return bk_sampler_new(arena, d, &d->split[0], &options);
}

static bk_bundle batch_of(const bk_sampler *s, int64_t step, bk_lanes lanes)
{
    bk_bundle b = {0};
    bk_sampler_batch(s, step, &lanes, arena, &b);
    return b;
}

/* The sample a row of tokens came from. */
static int64_t sample_of(const bk_bundle *b, int64_t row)
{
    const bk_tensor *t = bk_bundle_need(b, "tokens");
    return bk_i32(t)[row * t->shape[1]] / 100;
}

static bool same_tensor(const bk_tensor *a, const bk_tensor *b)
{
    return (!a && !b) ||
           (a && b && bk_same_shape(a, b) &&
            memcmp(a->data, b->data, (size_t)bk_count(a) * bk_dtype_size(a->dtype)) == 0);
}

static bool same_bundle(const bk_bundle *a, const bk_bundle *b)
{
    bool equal = a->entries == b->entries && a->rows == b->rows && a->positions == b->positions &&
                 a->first_sample == b->first_sample;
    for (int i = 0; equal && i < a->entries; i++)
        equal = same_tensor(a->entry[i].tensor, bk_bundle_get(b, a->entry[i].name));
    return equal;
}

/* ---- order ---- */

static void a_function_of_seed_and_step(void **state)
{
    (void)state;
    const bk_dataset *d = texts();
    const bk_sampler_options o = {.batch = 4, .seed = 3, .shuffle = true};
    bk_sampler *a = sampler(d, o), *b = sampler(d, o);
    static const int64_t steps[] = {7, 0, 3, 100, 1, 7, 2}; /* in any order, more than once */
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        batch_of(a, steps[i], bk_lanes_single(4));
    for (int64_t step = 0; step < 8; step++) {
        bk_bundle x = batch_of(a, step, bk_lanes_single(4)),
                  y = batch_of(b, step, bk_lanes_single(4));
        assert_true(same_bundle(&x, &y));
    }
    bk_sampler *other = sampler(d, (bk_sampler_options){.batch = 4, .seed = 4, .shuffle = true});
    bk_bundle x = batch_of(a, 0, bk_lanes_single(4)), y = batch_of(other, 0, bk_lanes_single(4));
    assert_false(same_bundle(&x, &y));
}

static void epochs_are_permutations_without_a_seam(void **state)
{
    (void)state;
    const bk_dataset *d = texts();
    static const int64_t batches[] = {1, 3, 4, 7, 25}; /* 25: more than two epochs in one batch */
    for (size_t k = 0; k < sizeof batches / sizeof *batches; k++) {
        int64_t batch = batches[k];
        bk_sampler *s =
            sampler(d, (bk_sampler_options){.batch = batch, .seed = 9, .shuffle = true});
        for (int64_t position = 0; position < 60; position++) {
            int64_t order[SAMPLES];
            bk_permutation(9, BK_USE_SHUFFLE, (uint64_t)(position / SAMPLES), SAMPLES, order);
            bk_bundle b = batch_of(s, position / batch, bk_lanes_single(batch));
            assert_int_equal(sample_of(&b, position % batch),
                             d->split[0].index[order[position % SAMPLES]]);
        }
    }
}

/* ---- pairs ---- */

/* The same samples, with second texts 5000 + 100 i + 1, ... of length i. */
static const bk_dataset *pairs(void)
{
    bk_dataset *d = BK_NEW(arena, bk_dataset, 1);
    int64_t *offsets = BK_ZNEW(arena, int64_t, SAMPLES + 1);
    int32_t *tokens = BK_NEW(arena, int32_t, SAMPLES * SAMPLES);
    *d = *texts();
    for (int64_t i = 0; i < SAMPLES; i++) {
        offsets[i + 1] = offsets[i] + i;
        for (int64_t k = 0; k < i; k++)
            tokens[offsets[i] + k] = (int32_t)(5000 + 100 * i + 1 + k);
    }
    d->vocabulary = 9999;
    d->tokens2 = tokens;
    d->offsets2 = offsets;
    return d;
}

/* Cut as a person would: the last symbol of the longer text goes, of equal ones that of the
 * second. */
static void cut_pair(int64_t *first, int64_t *second, int64_t room)
{
    while (*first + *second > room)
        --*(*first > *second ? first : second);
}

static void check_pair(const bk_bundle *b, int64_t row, int64_t sample, int64_t first,
                       int64_t second)
{
    const bk_tensor *tokens = bk_bundle_need(b, "tokens"),
                    *segments = bk_bundle_need(b, "segments"), *mask = bk_bundle_get(b, "mask");
    int64_t width = tokens->shape[1];
    for (int64_t n = 0; n < width; n++) {
        bool real = n<first + 1 + second, behind = n> first && real;
        int64_t expected = n < first    ? 100 * sample + 1 + n
                           : n == first ? 9999
                           : real       ? 5000 + 100 * sample + n - first
                                        : 0;
        assert_int_equal(bk_i32(tokens)[row * width + n], expected);
        assert_int_equal(bk_i32(segments)[row * width + n], behind);
        assert_int_equal(mask ? bk_i32(mask)[row * width + n] : 1, real);
    }
}

static void pairs_stand_behind_one_another(void **state)
{
    (void)state;
    const bk_dataset *d = pairs();
    assert_int_equal(bk_dataset_symbols(d), 10000);
    for (int64_t most = 0; most < 40; most++) {
        bk_sampler *s = sampler(d, (bk_sampler_options){.batch = 4, .max_length = most});
        for (int64_t i = 0; i < SAMPLES; i++) {
            bk_bundle b = batch_of(s, i / 4, bk_lanes_single(4));
            int64_t sample = SAMPLES - 1 - i, first = 3 + 7 * sample % 23, second = sample;
            if (most > 0)
                cut_pair(&first, &second, most - 1);
            check_pair(&b, i % 4, sample, first, second);
        }
    }
}

static void pairs_behind_the_end_are_padding(void **state)
{
    (void)state;
    bk_sampler *s = sampler(pairs(), (bk_sampler_options){.batch = 4});
    bk_bundle b = batch_of(s, 2, bk_lanes_single(4));
    const bk_tensor *tokens = bk_bundle_need(&b, "tokens"),
                    *segments = bk_bundle_need(&b, "segments");
    assert_int_equal(b.rows, 2);
    assert_int_equal(b.positions, (10 + 1 + 1) + (3 + 1 + 0));
    for (int64_t k = 2 * tokens->shape[1]; k < bk_count(tokens); k++)
        assert_true(bk_i32(tokens)[k] == 0 && bk_i32(segments)[k] == 0);
}

/* ---- lanes ---- */

static void check_part(const bk_bundle *all, const bk_bundle *part, int64_t first, int64_t count)
{
    static const char *const names[] = {"tokens", "mask", "labels", "sequence", "segments"};
    assert_int_equal(part->rows, all->rows);
    assert_int_equal(part->positions, all->positions);
    assert_int_equal(part->first_sample, all->first_sample + first);
    for (int i = 0; i < 5; i++) {
        const bk_tensor *x = bk_bundle_get(all, names[i]), *y = bk_bundle_get(part, names[i]);
        assert_int_equal(x != NULL, y != NULL);
        if (!x)
            continue;
        size_t row = (size_t)(bk_count(x) / 8) * sizeof(int32_t);
        assert_int_equal(bk_count(y) * 8, bk_count(x) * count);
        assert_memory_equal(y->data, (const char *)x->data + (size_t)first * row,
                            (size_t)count * row);
    }
}

static void lanes_partition_the_batch(void **state)
{
    (void)state;
    for (int what = 0; what < 3; what++) { /* samples, windows, pairs */
        const bk_sampler_options o = {
            .batch = 8, .seed = 5, .shuffle = true, .length = what == 1 ? 6 : 0};
        bk_sampler *s = sampler(what == 2 ? pairs() : texts(), o);
        for (int64_t step = 0; step < 5; step++) {
            bk_bundle all = batch_of(s, step, bk_lanes_single(8));
            assert_int_equal(all.first_sample, 8 * step);
            for (int size = 1; size <= 5;
                 size++) /* 3 and 5 do not divide the lanes; 5 leaves one out */
                for (int rank = 0; rank < size; rank++) {
                    bk_lanes lanes = bk_lanes_of_rank(4, 8, rank, size);
                    bk_bundle part = batch_of(s, step, lanes);
                    check_part(&all, &part, bk_lanes_first_sample(&lanes),
                               bk_lanes_samples(&lanes));
                }
        }
    }
}

/* ---- shapes ---- */

static void padding_follows_the_global_batch(void **state)
{
    (void)state;
    const bk_dataset *d = texts();
    bk_sampler *s = sampler(d, (bk_sampler_options){.batch = 4});
    bk_bundle b =
        batch_of(s, 1, bk_lanes_single(4)); /* samples 5, 4, 3, 2: lengths 15, 8, 24, 17 */
    const bk_tensor *tokens = bk_bundle_need(&b, "tokens"), *mask = bk_bundle_need(&b, "mask");
    assert_int_equal(tokens->shape[1], 32);
    assert_int_equal(b.positions, 15 + 8 + 24 + 17);
    for (int64_t i = 0; i < 4; i++)
        for (int64_t n = 0; n < 32; n++) {
            int64_t sample = 5 - i, length = 3 + 7 * sample % 23;
            assert_int_equal(bk_i32(mask)[32 * i + n], n < length);
            assert_int_equal(bk_i32(tokens)[32 * i + n], n < length ? 100 * sample + 1 + n : 0);
        }
}

static void long_samples_are_cut(void **state)
{
    (void)state;
    const bk_dataset *d = texts();
    bk_sampler *s = sampler(d, (bk_sampler_options){.batch = 2, .max_length = 16});
    for (int64_t step = 0; step < bk_sampler_batches(s); step++) {
        bk_bundle b = batch_of(s, step, bk_lanes_single(2));
        assert_int_equal(bk_bundle_need(&b, "tokens")->shape[1], 16);
    }
    bk_bundle b = batch_of(s, 3, bk_lanes_single(2)); /* samples 3 and 2: 24 and 17 tokens */
    assert_null(bk_bundle_get(&b, "mask"));           /* nothing is padding */
    assert_int_equal(b.positions, 32);
}

/* ---- evaluation ---- */

static void evaluation_is_in_order_and_whole(void **state)
{
    (void)state;
    const bk_dataset *d = texts();
    static const int64_t batches[] = {1, 4, 10, 64};
    for (size_t k = 0; k < sizeof batches / sizeof *batches; k++) {
        int64_t batch = batches[k], position = 0, rows = 0;
        bk_sampler *s = sampler(d, (bk_sampler_options){.batch = batch, .seed = 77});
        assert_int_equal(bk_sampler_samples(s), SAMPLES);
        assert_int_equal(bk_sampler_batches(s), (SAMPLES + batch - 1) / batch);
        for (int64_t step = 0; step < bk_sampler_batches(s); step++) {
            bk_bundle b = batch_of(s, step, bk_lanes_single(batch));
            const bk_tensor *labels = bk_bundle_need(&b, "labels"),
                            *sequence = bk_bundle_need(&b, "sequence");
            rows += b.rows;
            for (int64_t i = 0; i < batch; i++, position++) {
                int64_t sample = SAMPLES - 1 - position;
                assert_int_equal(bk_i32(labels)[i], sample < 0 ? -1 : d->labels[sample]);
                assert_int_equal(bk_i32(sequence)[i], i);
                if (sample >= 0)
                    assert_int_equal(sample_of(&b, i), sample);
                else /* behind the end: no position is real */
                    for (int64_t n = 0; n < bk_bundle_need(&b, "mask")->shape[1]; n++)
                        assert_int_equal(
                            bk_i32(bk_bundle_need(
                                &b, "mask"))[i * bk_bundle_need(&b, "mask")->shape[1] + n],
                            0);
            }
        }
        assert_int_equal(rows, SAMPLES - 1); /* sample 6 has no label */
    }
}

/* ---- windows ---- */

/* Every token but the first of its document is predicted once an epoch, from its predecessor. */
static void windows_cover_the_documents(void **state)
{
    (void)state;
    const bk_dataset *d = texts();
    for (int64_t length = 1; length <= 40; length += 3)
        for (int shuffle = 0; shuffle < 2; shuffle++) {
            int seen[1100] = {0};
            int64_t rows = 0;
            bk_sampler *s = sampler(
                d,
                (bk_sampler_options){.batch = 1, .length = length, .seed = 2, .shuffle = shuffle});
            for (int64_t step = 0; step < bk_sampler_samples(s); step++) {
                bk_bundle b = batch_of(s, step, bk_lanes_single(1));
                const bk_tensor *tokens = bk_bundle_need(&b, "tokens"),
                                *labels = bk_bundle_need(&b, "labels");
                rows += b.rows;
                assert_true(b.rows >= 1 && b.rows <= length);
                assert_int_equal(tokens->shape[1], (b.rows + 15) / 16 * 16);
                for (int64_t n = 0; n < tokens->shape[1]; n++) {
                    assert_int_equal(bk_i32(labels)[n], n < b.rows ? bk_i32(tokens)[n] + 1 : -1);
                    if (n < b.rows)
                        seen[bk_i32(labels)[n]]++;
                }
            }
            assert_int_equal(rows, d->offsets[SAMPLES] - SAMPLES);
            for (int64_t i = 0; i < SAMPLES; i++)
                for (int64_t k = d->offsets[i]; k < d->offsets[i + 1]; k++)
                    assert_int_equal(seen[d->tokens[k]], k > d->offsets[i]);
        }
}

static void documents_of_one_token_have_no_window(void **state)
{
    (void)state;
    static const int64_t offsets[] = {0, 1, 1, 3}, index[] = {0, 1, 2};
    static const int32_t tokens[] = {5, 6, 7};
    bk_dataset d = {.samples = 3, .vocabulary = 9, .tokens = tokens, .offsets = offsets};
    d.split[0] = (bk_split){.name = "train", .index = index, .count = 3};
    bk_sampler *s = sampler(&d, (bk_sampler_options){.batch = 2, .length = 4});
    assert_int_equal(bk_sampler_samples(s), 1);
    bk_bundle b = batch_of(s, 0, bk_lanes_single(2));
    assert_int_equal(b.rows, 1);
    assert_int_equal(bk_i32(bk_bundle_need(&b, "labels"))[0], 7);
}

/* ---- features ---- */

/* They are all as long, so none is padded and there is no mask, behind the end of a split either.
 */
static void features_are_copied(void **state)
{
    (void)state;
    float features[3 * 5 * 2];
    static const int32_t labels[] = {2, 0, 1};
    static const int64_t index[] = {2, 0, 1};
    for (int i = 0; i < 30; i++)
        features[i] = (float)i;
    bk_dataset d = {.samples = 3,
                    .classes = 3,
                    .labels = labels,
                    .features = features,
                    .positions = 5,
                    .channels = 2};
    d.split[0] = (bk_split){.name = "train", .index = index, .count = 3};
    bk_sampler *s = sampler(&d, (bk_sampler_options){.batch = 4});
    bk_bundle b = batch_of(s, 0, bk_lanes_single(4));
    const bk_tensor *x = bk_bundle_need(&b, "features");
    assert_null(bk_bundle_get(&b, "tokens"));
    assert_null(bk_bundle_get(&b, "mask"));
    assert_int_equal(x->shape[1], 5);
    for (int64_t i = 0; i < 4; i++)
        for (int64_t k = 0; k < 10; k++) {
            float wanted = i < 3 ? features[index[i] * 10 + k] : 0.0f;
            assert_memory_equal(&bk_f32(x)[10 * i + k], &wanted, sizeof wanted);
        }
    s = sampler(&d, (bk_sampler_options){.batch = 4, .max_length = 2});
    bk_bundle cut = batch_of(s, 0, bk_lanes_single(4));
    assert_int_equal(bk_bundle_need(&cut, "features")->shape[1], 2);
    assert_null(bk_bundle_get(&cut, "mask"));
    assert_true(bk_f32(bk_bundle_need(&cut, "features"))[4] == features[0]);
    assert_int_equal(b.positions, 20);
    assert_int_equal(b.rows, 3);
    assert_int_equal(bk_i32(bk_bundle_need(&b, "labels"))[3], -1);
    assert_int_equal(bk_i32(bk_bundle_need(&b, "labels"))[0], 1);
}

/* ---- rows of logits ---- */

/* The place of a unit says where its labels come from: row n of sample i predicts token n + 1. */
static void check_places(const bk_dataset *d, const bk_sampler *s, int64_t step, bk_lanes lanes)
{
    bk_bundle b = batch_of(s, step, lanes);
    const int32_t *label = bk_i32(bk_bundle_need(&b, "labels"));
    int64_t samples = bk_lanes_samples(&lanes), each = bk_sampler_rows(s, step);
    bk_row_place *place = BK_NEW(arena, bk_row_place, samples);
    bk_sampler_places(s, step, &lanes, place);
    assert_int_equal(samples * each, bk_count(bk_bundle_need(&b, "labels")));
    for (int64_t i = 0; i < samples; i++) {
        assert_int_equal(place[i].sample, sample_of(&b, i));
        assert_true(place[i].first + place[i].count <= bk_sampler_sample_rows(s, place[i].sample));
        for (int64_t n = 0; n < each; n++) {
            int64_t at = d->offsets[place[i].sample] + place[i].first + n + 1;
            assert_int_equal(label[i * each + n], n < place[i].count ? d->tokens[at] : -1);
        }
    }
}

static void places_of_windows(void **state)
{
    (void)state;
    const bk_dataset *d = texts();
    bk_sampler *s =
        sampler(d, (bk_sampler_options){.batch = 8, .length = 5, .seed = 2, .shuffle = true});
    int64_t rows = 0, windows = 0;
    for (int64_t step = 0; step < 20; step++)
        for (int r = 0; r < 4; r++)
            check_places(d, s, step, bk_lanes_of_rank(4, 8, r, 4));
    for (int64_t i = 0; i < SAMPLES; i++) {
        rows += bk_sampler_sample_rows(s, i);
        windows += (bk_sampler_sample_rows(s, i) + 4) / 5;
    }
    assert_int_equal(rows, d->offsets[SAMPLES] - SAMPLES); /* all tokens but the first of each */
    assert_int_equal(windows, bk_sampler_samples(s));
}

static void places_of_samples(void **state)
{
    (void)state;
    const bk_dataset *d = texts();
    bk_sampler *s = sampler(d, (bk_sampler_options){.batch = 4});
    bk_lanes lanes = bk_lanes_single(4);
    bk_row_place place[4];
    for (int64_t step = 0; step < 3; step++) {
        bk_sampler_places(s, step, &lanes, place);
        assert_int_equal(bk_sampler_rows(s, step), 1);
        for (int64_t i = 0; i < 4; i++) {
            bool there = 4 * step + i < SAMPLES; /* the last batch runs past the end */
            assert_int_equal(place[i].sample, there ? SAMPLES - 1 - (4 * step + i) : -1);
            assert_int_equal(place[i].first, 0);
            assert_int_equal(place[i].count, there);
        }
    }
    assert_int_equal(bk_sampler_sample_rows(s, 3), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(places_of_windows),
        cmocka_unit_test(places_of_samples),
        cmocka_unit_test(a_function_of_seed_and_step),
        cmocka_unit_test(epochs_are_permutations_without_a_seam),
        cmocka_unit_test(lanes_partition_the_batch),
        cmocka_unit_test(pairs_stand_behind_one_another),
        cmocka_unit_test(pairs_behind_the_end_are_padding),
        cmocka_unit_test(padding_follows_the_global_batch),
        cmocka_unit_test(long_samples_are_cut),
        cmocka_unit_test(evaluation_is_in_order_and_whole),
        cmocka_unit_test(windows_cover_the_documents),
        cmocka_unit_test(documents_of_one_token_have_no_window),
        cmocka_unit_test(features_are_copied),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_arena_free(arena);
    return failed;
}
