/* The cut of a batch into lanes, and the tree that adds them. */
#include "core/lanes.h"

#include "core/rng.h"
#include "tests/support/check.h"

#include <stdlib.h>
#include <string.h>

static void ranks_share_the_lanes(void **state)
{
    (void)state;
    for (int64_t total = 1; total <= 64; total *= 2)
        for (int size = 1; size <= 70; size++) {
            int64_t next = 0, samples = 0;
            for (int rank = 0; rank < size; rank++) {
                bk_lanes l = bk_lanes_of_rank(total, 3 * total, rank, size);
                assert_int_equal(l.total, total);
                assert_int_equal(l.batch, 3 * total);
                assert_int_equal(l.first, total * rank / size);
                assert_int_equal(l.first, next);
                assert_in_range(l.count, total / size, (total + size - 1) / size);
                assert_int_equal(bk_lanes_first_sample(&l), samples);
                assert_int_equal(bk_lanes_samples(&l), 3 * l.count);
                next += l.count;
                samples += bk_lanes_samples(&l);
            }
            assert_int_equal(next, total);
            assert_int_equal(samples, 3 * total);
        }
}

static void one_lane_holds_all(void **state)
{
    (void)state;
    bk_lanes l = bk_lanes_single(7);
    assert_true(l.total == 1 && l.first == 0 && l.count == 1 && l.batch == 7);
    assert_int_equal(bk_lanes_samples(&l), 7);
    assert_int_equal(bk_lane_row(&l, 35, 0), 0);
    assert_int_equal(bk_lane_row(&l, 35, 1), 35);
}

/* A batch that the lanes do not divide is cut at [batch i/L, batch (i+1)/L). */
static void rows_follow_the_samples(void **state)
{
    bk_lanes l = {.total = 8, .first = 2, .count = 3, .batch = 21};
    (void)state;
    int64_t first = 21 * 2 / 8;
    assert_int_equal(bk_lanes_first_sample(&l), first);
    assert_int_equal(bk_lanes_samples(&l), 21 * 5 / 8 - first);
    for (int64_t i = 0; i <= 3; i++)
        assert_int_equal(bk_lane_row(&l, 4 * bk_lanes_samples(&l), i),
                         4 * (21 * (2 + i) / 8 - first));
    bk_lanes none = {.total = 8, .first = 2, .count = 0, .batch = 21};
    assert_int_equal(bk_lanes_samples(&none), 0);
    assert_int_equal(bk_lane_row(&none, 0, 0), 0);
}

/* ---- the tree ---- */

enum { N = 37, MOST = 20 };

typedef struct table {
    bk_dtype dtype;
    char *data;
    int calls;
} table;

static void take_row(void *context, int64_t l, void *out)
{
    table *t = context;
    size_t row = N * bk_dtype_size(t->dtype);
    assert_int_equal(l, t->calls++); /* in order, once each */
    memcpy(out, t->data + (size_t)l * row, row);
}

/* node(h, i) = node(h-1, 2i) + node(h-1, 2i+1); what is left over behind the largest power of two
 * is a tree of its own, and is added to it. */
static double plain_tree(const table *t, int64_t first, int64_t count, int64_t column)
{
    if (count == 1)
        return t->dtype == BK_F64 ? ((const double *)(void *)t->data)[first * N + column]
                                  : (double)((const float *)(void *)t->data)[first * N + column];
    int64_t half = 1;
    while (2 * half < count)
        half *= 2;
    double a = plain_tree(t, first, half, column),
           b = plain_tree(t, first + half, count - half, column);
    return t->dtype == BK_F64 ? a + b : (double)((float)a + (float)b);
}

static void fill(table *t)
{
    for (int i = 0; i < MOST * N; i++) {
        double x = bk_fill((uint64_t)i, 1, -1.0, 1.0) *
                   (double)((uint64_t)1 << (bk_mix64((uint64_t)i) % 40));
        if (t->dtype == BK_F64)
            ((double *)(void *)t->data)[i] = x;
        else
            ((float *)(void *)t->data)[i] = (float)x;
    }
}

static void check_tree(bk_dtype dtype)
{
    static double data[MOST * N];
    bk_arena *scratch = bk_arena_new("scratch");
    table t = {.dtype = dtype, .data = (char *)data};
    fill(&t);
    for (int64_t count = 1; count <= MOST; count++) {
        bk_lanes lanes = {.total = 32, .first = 3, .count = count, .batch = 32};
        double out[N];
        t.calls = 0;
        bk_lane_tree(&lanes, dtype, N, out, take_row, &t, scratch);
        assert_int_equal(t.calls, count);
        for (int j = 0; j < N; j++) {
            double expected = plain_tree(&t, 0, count, j);
            float single = (float)expected;
            if (dtype == BK_F64)
                assert_memory_equal(&out[j], &expected, sizeof expected);
            else
                assert_memory_equal((float *)out + j, &single, sizeof single);
        }
        assert_int_equal(bk_arena_used(scratch), 0);
    }
    /* a counter of log2(16) + 1 sums, the last of which is the result */
    assert_true(bk_arena_peak(scratch) <= 5 * (N * sizeof(double) + 128));
    bk_arena_free(scratch);
}

static void the_tree_is_the_plain_recursion(void **state)
{
    (void)state;
    check_tree(BK_F32);
    check_tree(BK_F64);
}

/* Ranks that add their own lanes first reach the bits of one rank. */
static void parts_of_the_tree_fit_together(void **state)
{
    static double values[16 * N], part[16 * N];
    double all[N], sum[N];
    bk_arena *scratch = bk_arena_new("scratch");
    (void)state;
    for (int i = 0; i < 16 * N; i++)
        values[i] = bk_fill((uint64_t)i, 2, -1.0, 1.0);
    bk_lane_tree_values(16, N, values, all, scratch);
    for (int64_t ranks = 1; ranks <= 16; ranks *= 2) {
        for (int64_t r = 0; r < ranks; r++)
            bk_lane_tree_values(16 / ranks, N, values + r * 16 / ranks * N, part + r * N, scratch);
        bk_lane_tree_values(ranks, N, part, sum, scratch);
        assert_memory_equal(sum, all, sizeof all);
    }
    bk_arena_free(scratch);
}

static void no_lanes_sum_to_zero(void **state)
{
    double out[3] = {1, 2, 3};
    bk_arena *scratch = bk_arena_new("scratch");
    (void)state;
    bk_lane_tree_values(0, 3, NULL, out, scratch);
    for (int i = 0; i < 3; i++)
        assert_true(out[i] == 0.0);
    bk_arena_free(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_share_the_lanes),
        cmocka_unit_test(one_lane_holds_all),
        cmocka_unit_test(rows_follow_the_samples),
        cmocka_unit_test(the_tree_is_the_plain_recursion),
        cmocka_unit_test(parts_of_the_tree_fit_together),
        cmocka_unit_test(no_lanes_sum_to_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
