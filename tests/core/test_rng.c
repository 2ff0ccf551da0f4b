/* test: labels=unit,golden */
/* Philox against Random123's known answers, bk_hash64 and bk_fill against the golden values. */
#include "core/rng.h"

#include "tests/support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- a plain Philox4x64-10 (Salmon et al. 2011) ---- */

static uint64_t high_product(uint64_t a, uint64_t b)
{
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)(((wide)a * b) >> 64);
}

static void plain_philox(const uint64_t counter[4], const uint64_t key[2], uint64_t x[4])
{
    const uint64_t m0 = 0xD2E7470EE14C6C93u, m1 = 0xCA5A826395121157u;
    uint64_t k0 = key[0], k1 = key[1];
    memcpy(x, counter, 4 * sizeof *x);
    for (int round = 0; round < 10; round++) {
        uint64_t h0 = high_product(m0, x[0]), h1 = high_product(m1, x[2]);
        uint64_t next[4] = {h1 ^ x[1] ^ k0, m1 * x[2], h0 ^ x[3] ^ k1, m0 * x[0]};
        memcpy(x, next, sizeof next);
        k0 += 0x9E3779B97F4A7C15u;
        k1 += 0xBB67AE8584CAA73Bu;
    }
}

/* Random123's kat_vectors, philox4x64 with 10 rounds. */
static const struct {
    uint64_t counter[4], key[2], out[4];
} known[] = {
    {{0, 0, 0, 0},
     {0, 0},
     {0x16554d9eca36314cu, 0xdb20fe9d672d0fdcu, 0xd7e772cee186176bu, 0x7e68b68aec7ba23bu}},
    {{~0ull, ~0ull, ~0ull, ~0ull},
     {~0ull, ~0ull},
     {0x87b092c3013fe90bu, 0x438c3c67be8d0224u, 0x9cc7d7c69cd777b6u, 0xa09caebf594f0ba0u}},
    {{0x243f6a8885a308d3u, 0x13198a2e03707344u, 0xa4093822299f31d0u, 0x082efa98ec4e6c89u},
     {0x452821e638d01377u, 0xbe5466cf34e90c6cu},
     {0xa528f45403e61d95u, 0x38c72dbd566e9788u, 0xa5a1610e72fd18b5u, 0x57bd43b5e52b7fe6u}},
};

static void philox_gives_the_known_answers(void **state)
{
    uint64_t out[4];
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        plain_philox(known[i].counter, known[i].key, out);
        assert_memory_equal(out, known[i].out, sizeof out);
    }
    bk_philox((bk_philox_key){0, 0}, 0, 0, 0, out);
    assert_memory_equal(out, known[0].out, sizeof out);
}

static void words_are_those_of_their_indices(void **state)
{
    bk_philox_key key = bk_philox_for(42, 3, BK_USE_DROPOUT_ATTENTION);
    uint32_t word[8 * 5];
    (void)state;
    bk_philox_words(key, 7, 11, 1u << 20, 5, word);
    for (uint64_t i = 0; i < 5; i++) {
        uint64_t four[4];
        bk_philox(key, 7, 11, (1u << 20) + i, four);
        assert_memory_equal(word + 8 * i, four, sizeof four);
    }
}

static void philox_is_the_plain_one_for_every_counter(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 1000; i++) {
        uint64_t x[5], out[4], plain[4];
        for (uint64_t j = 0; j < 5; j++)
            x[j] = bk_mix64(5 * i + j);
        bk_philox((bk_philox_key){x[0], x[1]}, x[2], x[3], x[4], out);
        plain_philox((uint64_t[]){x[2], x[3], x[4], 0}, x, plain);
        assert_memory_equal(out, plain, sizeof out);
    }
}

/* Part of the checkpoint format. */
static void uses_keep_their_numbers(void **state)
{
    (void)state;
    bk_philox_key key = bk_philox_for(42, 3, BK_USE_DROPOUT_ATTENTION);
    assert_true(key.seed == 42 && key.layer_use == 3 * 0x100000000u + 4);
    const bk_use use[] = {BK_USE_INIT,
                          BK_USE_SHUFFLE,
                          BK_USE_DROPOUT_EMBED,
                          BK_USE_DROPOUT_ATTENTION,
                          BK_USE_DROPOUT_ATTENTION_OUT,
                          BK_USE_DROPOUT_FFN_HIDDEN,
                          BK_USE_DROPOUT_FFN_OUT,
                          BK_USE_DATA,
                          BK_USE_SPLIT,
                          BK_USE_BENCH};
    for (size_t i = 0; i < sizeof use / sizeof *use; i++)
        assert_int_equal(use[i], i + 1);
}

/* ---- distributions ---- */

static void units_lie_in_the_half_open_interval(void **state)
{
    (void)state;
    assert_true(bk_unit(0) == 0.0);
    assert_true(bk_unit(2047) == 0.0); /* the low 11 bits are dropped */
    assert_true(bk_unit(2048) == 0x1p-53);
    assert_true(bk_unit(~0ull) == 1.0 - 0x1p-53);
}

static void normals_are_box_muller(void **state)
{
    double z[2], u = 0.75, v = 0.125; /* radius sqrt(-2 log 1/4), angle pi/4 */
    (void)state;
    bk_normal_pair((uint64_t)(u * 0x1p53) << 11, (uint64_t)(v * 0x1p53) << 11, z);
    assert_true(fabs(z[0] - sqrt(2.0 * log(4.0)) * sqrt(0.5)) < 1e-15);
    assert_true(fabs(z[1] - sqrt(2.0 * log(4.0)) * sqrt(0.5)) < 1e-15);
    bk_normal_pair(~0ull, 0, z); /* 1 - u is never 0 */
    assert_true(isfinite(z[0]) && z[0] > 8.0 && z[1] == 0.0);
}

static void normals_have_their_moments(void **state)
{
    enum { N = 100000 };
    double sum[5] = {0};
    (void)state;
    for (uint64_t i = 0; i < N; i++) {
        uint64_t w[4];
        double z[2];
        bk_philox(bk_philox_for(1, 0, BK_USE_INIT), 0, 0, i, w);
        bk_normal_pair(w[0], w[1], z);
        for (int k = 1; k <= 4; k++)
            sum[k] += (pow(z[0], k) + pow(z[1], k)) / (2.0 * N);
    }
    assert_true(fabs(sum[1]) < 0.01 && fabs(sum[2] - 1.0) < 0.02);
    assert_true(fabs(sum[3]) < 0.05 && fabs(sum[4] - 3.0) < 0.1);
}

/* ---- hashes ---- */

static void golden_draws(void **state)
{
    json_t *golden = bk_test_golden("ref_moe_golden.json"), *row;
    json_t *draws = json_object_get(golden, "draws");
    size_t i;
    (void)state;
    json_array_foreach(json_object_get(draws, "branch"), i, row)
    {
        int64_t n;
        double *x = bk_test_numbers(row, &n);
        assert_true(bk_unit(BK_HASH64((uint64_t)x[0], 1, (uint64_t)x[1], (uint64_t)x[2])) == x[3]);
        free(x);
    }
    assert_true(i > 0);
    json_array_foreach(json_object_get(draws, "normal"), i, row)
    {
        int64_t n;
        double *x = bk_test_numbers(row, &n), z[2];
        uint64_t a = BK_HASH64((uint64_t)x[0], 2, (uint64_t)x[1], (uint64_t)x[2], (uint64_t)x[3],
                               (uint64_t)x[4]);
        bk_normal_pair(a, bk_mix64(a + 0x9E3779B97F4A7C15u), z);
        assert_true(fabs(z[0] - x[5]) < 1e-14);
        free(x);
    }
    assert_true(i > 0);
    json_decref(golden);
}

/* spec: fill([3], 1) with lo = -1.5, hi = 1.5 */
static void golden_fill(void **state)
{
    const double expected[] = {0.737338528231664, -0.6792646095688175, 1.2187273451934746};
    (void)state;
    for (uint64_t i = 0; i < 3; i++)
        assert_true(fabs(bk_fill(i, 1, -1.5, 1.5) - expected[i]) < 1e-15);
    for (uint64_t i = 0; i < 1000; i++)
        assert_true(bk_fill(i, 3, 2.0, 5.0) >= 2.0 && bk_fill(i, 3, 2.0, 5.0) < 5.0);
    assert_true(bk_fill(0, 2, 0.0, 1.0) != bk_fill(0, 1, 0.0, 1.0));
}

static void bytes_are_hashed_as_words_behind_their_number(void **state)
{
    const char text[] = "model/block3/attention/wq";
    uint64_t word[4] = {0};
    (void)state;
    memcpy(word, text, 25);
    assert_true(bk_hash_bytes(text, 25) == BK_HASH64(25, word[0], word[1], word[2], word[3]));
    assert_true(bk_hash_bytes("", 0) == BK_HASH64(0));
    assert_true(bk_hash_bytes("a", 1) != bk_hash_bytes("a\0", 2));
}

/* ---- permutations ---- */

static bool is_permutation(int64_t n, const int64_t *order)
{
    bool *seen = calloc((size_t)n + 1, sizeof *seen), good = true;
    assert_non_null(seen);
    for (int64_t i = 0; i < n; i++) {
        good = good && order[i] >= 0 && order[i] < n && !seen[order[i]];
        if (good)
            seen[order[i]] = true;
    }
    free(seen);
    return good;
}

static void permutations_depend_on_seed_use_and_epoch(void **state)
{
    enum { N = 1000 };
    int64_t base[N], again[N], other[N];
    (void)state;
    bk_permutation(7, BK_USE_SHUFFLE, 2, N, base);
    bk_permutation(7, BK_USE_SHUFFLE, 2, N, again);
    assert_memory_equal(base, again, sizeof base);
    const struct {
        uint64_t seed;
        bk_use use;
        uint64_t epoch;
    } change[] = {{8, BK_USE_SHUFFLE, 2}, {7, BK_USE_SPLIT, 2}, {7, BK_USE_SHUFFLE, 3}};
    for (int k = 0; k < 3; k++) {
        int fixed = 0;
        bk_permutation(change[k].seed, change[k].use, change[k].epoch, N, other);
        assert_true(is_permutation(N, other));
        for (int i = 0; i < N; i++)
            fixed += other[i] == base[i];
        assert_true(fixed < 10); /* one on the average */
    }
    for (int64_t n = 0; n < 20; n++) {
        bk_permutation(1, BK_USE_SHUFFLE, 0, n, other);
        assert_true(is_permutation(n, other));
    }
}

/* All orders of four come equally often: chi-squared with 23 degrees of freedom. */
static void permutations_are_uniform(void **state)
{
    enum { DRAWS = 24000 };
    int seen[256] = {0};
    double chi = 0.0;
    (void)state;
    for (uint64_t seed = 0; seed < DRAWS; seed++) {
        int64_t order[4];
        bk_permutation(seed, BK_USE_SHUFFLE, 0, 4, order);
        seen[order[0] + 4 * order[1] + 16 * order[2] + 64 * order[3]]++;
    }
    for (int i = 0; i < 256; i++)
        chi += seen[i] ? (seen[i] - 1000.0) * (seen[i] - 1000.0) / 1000.0 : 0.0;
    assert_true(chi < 58.6); /* 1 in 10,000 */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_known_answers),
        cmocka_unit_test(words_are_those_of_their_indices),
        cmocka_unit_test(philox_is_the_plain_one_for_every_counter),
        cmocka_unit_test(uses_keep_their_numbers),
        cmocka_unit_test(units_lie_in_the_half_open_interval),
        cmocka_unit_test(normals_are_box_muller),
        cmocka_unit_test(normals_have_their_moments),
        cmocka_unit_test(golden_draws),
        cmocka_unit_test(golden_fill),
        cmocka_unit_test(bytes_are_hashed_as_words_behind_their_number),
        cmocka_unit_test(permutations_depend_on_seed_use_and_epoch),
        cmocka_unit_test(permutations_are_uniform),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
