#include "io/data.h"

#include "core/rng.h"
#include "io/data_common.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DATA(kind) extern const bk_data_kind bk_data_##kind;
#include "io/data/kinds.def"
#undef DATA

#define DATA(kind) &bk_data_##kind,
const bk_data_kind *const bk_data_kinds[] = {
#include "io/data/kinds.def"
    NULL};
#undef DATA

const bk_data_kind *bk_data_find(const char *name)
{
    for (int i = 0; bk_data_kinds[i]; i++)
        if (strcmp(bk_data_kinds[i]->name, name) == 0)
            return bk_data_kinds[i];
    return NULL;
}

/* ---- samples ---- */

static void *grow(bk_arena *arena, void *old, int64_t used, int64_t room, size_t size)
{
    void *wider = bk_arena_alloc(arena, (size_t)room * size);
    if (used > 0)
        memcpy(wider, old, (size_t)used * size);
    return wider;
}

void bk_samples_add(bk_samples *s, const int32_t *tokens, int64_t count, int32_t label)
{
    if (s->count + 1 >= s->room) {
        int64_t room = s->room ? 2 * s->room : 1024;
        s->offsets =
            grow(s->arena, s->offsets, s->count + (s->count > 0), room + 1, sizeof *s->offsets);
        s->labels = grow(s->arena, s->labels, s->count, room, sizeof *s->labels);
        s->offsets[0] = 0;
        s->room = room;
    }
    int64_t total = s->offsets[s->count];
    if (total + count >= s->token_room) { /* of empty texts, too: NULL is none */
        s->token_room = 2 * (total + count) + 4096;
        s->tokens = grow(s->arena, s->tokens, total, s->token_room, sizeof *s->tokens);
    }
    if (count > 0)
        memcpy(s->tokens + total, tokens, (size_t)count * sizeof *tokens);
    s->labels[s->count++] = label;
    s->offsets[s->count] = total + count;
}

void bk_samples_add_bytes(bk_samples *s, const char *bytes, int64_t count, int32_t label)
{
    int32_t *tokens = BK_NEW(s->arena, int32_t, count > 0 ? count : 1);
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (unsigned char)bytes[i] + 1;
    bk_samples_add(s, tokens, count, label);
}

void bk_samples_to(const bk_samples *s, bk_dataset *out)
{
    out->samples = s->count;
    out->tokens = s->tokens;
    out->labels = s->labels;
    out->offsets = s->offsets;
    bk_dataset_measure(out);
}

/* ---- splits ---- */

void bk_split_add(bk_dataset *out, const char *name, const int64_t *index, int64_t count)
{
    BK_ASSERT(out->splits < BK_DATASET_SPLITS, "too many splits");
    bk_split *s = &out->split[out->splits++];
    *s = (bk_split){.name = name, .index = index, .count = count};
    s->majority = bk_majority(out, s);
}

static int by_number(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int64_t bk_share_of(double wish, int64_t count)
{
    double share = wish < 1.0 ? wish * (double)count : wish;
    int64_t n = (int64_t)(share + 0.5);
    return n > count ? count : n;
}

bk_status bk_split_seeded(bk_dataset *out, bk_arena *arena, const int64_t *from, int64_t count,
                          const bk_split_wish *wish)
{
    int64_t sizes[3] = {0, bk_share_of(wish->validation, count), bk_share_of(wish->test, count)};
    sizes[0] = count - sizes[1] - sizes[2];
    if (sizes[0] <= 0)
        return bk_fail(BK_USAGE,
                       "validation=%g and test=%g leave nothing to train on (%lld samples): choose "
                       "less",
                       wish->validation, wish->test, (long long)count);
    int64_t *order = BK_NEW(arena, int64_t, count), *index = BK_NEW(arena, int64_t, count);
    bk_permutation((uint64_t)wish->seed, BK_USE_SPLIT, 0, count, order);
    for (int64_t i = 0; i < count; i++)
        index[i] = from ? from[order[i]] : order[i];
    static const char *const names[3] = {"train", "validation", "test"};
    for (int64_t k = 0, at = 0; k < 3; at += sizes[k++]) {
        if (sizes[k] == 0)
            continue;
        qsort(index + at, (size_t)sizes[k], sizeof *index, by_number);
        bk_split_add(out, names[k], index + at, sizes[k]);
    }
    return BK_OK;
}
