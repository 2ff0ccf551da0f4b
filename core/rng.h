/* core/rng.h - random numbers without state: every draw is a function of what it is for.
 *
 * Philox4x64-10 (Random123): key = (seed, layer * 2^32 + use), counter = (step, global sample
 * position, index, 0). Router draws and other fixed choices use bk_hash64 (SplitMix64), pinned by
 * golden values.  Never the rank, never the lane, never a running state. */
#ifndef BK_CORE_RNG_H
#define BK_CORE_RNG_H

#include <stdint.h>

/* What a Philox draw is for.  Values are part of the checkpoint format: append, never renumber. */
typedef enum bk_use {
    BK_USE_INIT = 1,
    BK_USE_SHUFFLE = 2,
    BK_USE_DROPOUT_EMBED = 3,
    BK_USE_DROPOUT_ATTENTION = 4, /* probabilities */
    BK_USE_DROPOUT_ATTENTION_OUT = 5,
    BK_USE_DROPOUT_FFN_HIDDEN = 6,
    BK_USE_DROPOUT_FFN_OUT = 7,
    BK_USE_DATA = 8, /* generators of data sets */
    BK_USE_SPLIT = 9,
    BK_USE_BENCH = 10,
    BK_USE_ATTENTION_NOISE = 11, /* on scores that are factorised (attention.qr) */
    BK_USE_CORRUPT = 12,         /* damage to samples for evaluation */
} bk_use;

typedef struct bk_philox_key {
    uint64_t seed;
    uint64_t layer_use; /* layer * 2^32 + use */
} bk_philox_key;

static inline bk_philox_key bk_philox_for(uint64_t seed, int64_t layer, bk_use use)
{
    return (bk_philox_key){seed, ((uint64_t)layer << 32) + (uint64_t)use};
}

/* Four 64-bit words for one counter. */
void bk_philox(bk_philox_key key, uint64_t step, uint64_t sample, uint64_t index, uint64_t out[4]);

/* The same for `count` indices from `first` on, as 32-bit words: word[8 i .. 8 i + 7] are those of
 * index first + i in memory order. */
void bk_philox_words(bk_philox_key key, uint64_t step, uint64_t sample, uint64_t first,
                     int64_t count, uint32_t *word);

/* (word >> 11) 2^-53: uniform in [0, 1). */
static inline double bk_unit(uint64_t word)
{
    return (double)(word >> 11) * 0x1p-53;
}

/* Two standard normals from two words (Box-Muller on 1 - u). */
void bk_normal_pair(uint64_t a, uint64_t b, double out[2]);

/* SplitMix64 finaliser, and the hash of n values: h = 0x9E3779B97F4A7C15; for each v: h = mix(h + v
 * * 0x9E37...). */
uint64_t bk_mix64(uint64_t z);
uint64_t bk_hash64(int n, const uint64_t *values);
#define BK_HASH64(...)                                                     \
    bk_hash64((int)(sizeof((uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t)), \
              (const uint64_t[]){__VA_ARGS__})

/* Hash of bytes, for names (SplitMix64 over 8-byte words and the length). */
uint64_t bk_hash_bytes(const void *bytes, uint64_t count);

/* lo + (hi - lo) unit(mix((index + tag 2^32) * 0x9E37...)): inputs that any language can make, for
 * tests and samples. */
double bk_fill(uint64_t index, uint64_t tag, double lo, double hi);

/* A seeded permutation of 0..n-1 by Fisher-Yates from Philox (use BK_USE_SHUFFLE or BK_USE_SPLIT,
 * step = epoch). */
void bk_permutation(uint64_t seed, bk_use use, uint64_t epoch, int64_t n, int64_t *order);

#endif
