/* What a data set that was read must be: its samples can be drawn, in every split, in bounds. */
#include "io/sampler.h"
#include "tests/fuzz/fuzz.h"

#include <math.h>

enum { MOST_TOKENS = 1 << 16 };

static void check_split(const bk_dataset *d, const bk_split *s)
{
    for (int64_t i = 0; i < s->count; i++)
        if (s->index[i] < 0 || s->index[i] >= d->samples)
            bk_fuzz_wrong("split %s names sample %lld of %lld", s->name, (long long)s->index[i],
                          (long long)d->samples);
    if (isfinite(s->majority) && (s->majority < 0 || s->majority > 1))
        bk_fuzz_wrong("the majority of split %s is %g", s->name, s->majority);
}

static void check_tokens(const bk_dataset *d, const int32_t *tokens, const int64_t *offsets)
{
    for (int64_t i = 0; i < offsets[d->samples]; i++)
        if (tokens[i] < 0 || tokens[i] >= d->vocabulary)
            bk_fuzz_wrong("token %d of %lld", tokens[i], (long long)d->vocabulary);
}

static void check_samples(const bk_dataset *d)
{
    for (int64_t i = 0; d->labels && i < d->samples; i++)
        if (d->labels[i] < -1 || d->labels[i] >= d->classes)
            bk_fuzz_wrong("label %d of %lld classes", d->labels[i], (long long)d->classes);
    if (d->tokens)
        check_tokens(d, d->tokens, d->offsets);
    if (d->tokens2)
        check_tokens(d, d->tokens2, d->offsets2);
}

static void draw(bk_arena *arena, const bk_dataset *d, const bk_split *s, bool shuffle)
{
    const bk_lanes lanes = bk_lanes_of_rank(2, 4, 0, 1);
    const bk_sampler_options o = {.batch = 4,
                                  .length = d->classes == 0 ? 8 : 0,
                                  .max_length = shuffle ? 0 : 7,
                                  .seed = 1,
                                  .shuffle = shuffle};
    bk_sampler *sampler = bk_sampler_new(arena, d, s, &o);
    for (int64_t step = 0; step < 3 && bk_sampler_samples(sampler) > 0; step++) {
        bk_bundle bundle = {0};
        bk_sampler_batch(sampler, step, &lanes, arena, &bundle);
    }
}

void bk_fuzz_data(const bk_dataset *d)
{
    check_samples(d);
    for (int i = 0; i < d->splits; i++) {
        check_split(d, &d->split[i]);
        bk_arena *arena = bk_arena_new("draw");
        int64_t width = d->features ? d->max_length * d->channels : d->max_length;
        for (int shuffle = 0; shuffle < 2 && width <= MOST_TOKENS; shuffle++)
            draw(arena, d, &d->split[i], shuffle);
        bk_arena_free(arena);
    }
}
