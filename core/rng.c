#include "core/rng.h"

#include <math.h>
#include <string.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#include <Random123/philox.h>
#pragma GCC diagnostic pop

static const uint64_t golden = 0x9E3779B97F4A7C15u;

void bk_philox(bk_philox_key key, uint64_t step, uint64_t sample, uint64_t index, uint64_t out[4])
{
    philox4x64_ctr_t counter = {{step, sample, index, 0}};
    philox4x64_key_t k = {{key.seed, key.layer_use}};
    philox4x64_ctr_t r = philox4x64(counter, k);
    memcpy(out, r.v, sizeof r.v);
}

void bk_philox_words(bk_philox_key key, uint64_t step, uint64_t sample, uint64_t first,
                     int64_t count, uint32_t *word)
{
    philox4x64_key_t k = {{key.seed, key.layer_use}};
    for (int64_t i = 0; i < count; i++) {
        philox4x64_ctr_t counter = {{step, sample, first + (uint64_t)i, 0}};
        philox4x64_ctr_t r = philox4x64(counter, k);
        memcpy(word + 8 * i, r.v, sizeof r.v);
    }
}

void bk_normal_pair(uint64_t a, uint64_t b, double out[2])
{
    double radius = sqrt(-2.0 * log(1.0 - bk_unit(a)));
    double angle = 2.0 * 3.14159265358979323846 * bk_unit(b);
    out[0] = radius * cos(angle);
    out[1] = radius * sin(angle);
}

uint64_t bk_mix64(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

uint64_t bk_hash64(int n, const uint64_t *values)
{
    uint64_t h = golden;
    for (int i = 0; i < n; i++)
        h = bk_mix64(h + values[i] * golden);
    return h;
}

uint64_t bk_hash_bytes(const void *bytes, uint64_t count)
{
    const char *p = bytes;
    uint64_t h = bk_mix64(golden + count * golden);
    for (uint64_t i = 0; i < count; i += 8) {
        uint64_t word = 0;
        memcpy(&word, p + i, count - i < 8 ? count - i : 8);
        h = bk_mix64(h + word * golden);
    }
    return h;
}

double bk_fill(uint64_t index, uint64_t tag, double lo, double hi)
{
    return lo + (hi - lo) * bk_unit(bk_mix64((index + (tag << 32)) * golden));
}

/* Uniform in 0..n-1 from one 64-bit word: the high half of the product (bias below n / 2^64). */
static int64_t below(uint64_t word, int64_t n)
{
    __extension__ typedef unsigned __int128 wide;
    return (int64_t)(((wide)word * (uint64_t)n) >> 64);
}

void bk_permutation(uint64_t seed, bk_use use, uint64_t epoch, int64_t n, int64_t *order)
{
    bk_philox_key key = bk_philox_for(seed, 0, use);
    uint64_t word[4];
    for (int64_t i = 0; i < n; i++)
        order[i] = i;
    for (int64_t i = n - 1, drawn = 0; i > 0; i--, drawn++) {
        if (drawn % 4 == 0)
            bk_philox(key, epoch, 0, (uint64_t)drawn / 4, word);
        int64_t j = below(word[drawn % 4], i + 1), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}
