/* What the makers of data sets share: the table of kinds, growing samples, shares, seeded splits.
 */
#include "io/data.h"
#include "io/data_common.h"
#include "tests/support/check.h"
#include "tests/support/data.h"

#include <math.h>
#include <string.h>

static bk_arena *arena;

static void the_table_of_kinds(void **state)
{
    (void)state;
    static const char *const known[] = {"eureka", "images", "lines", "listops", "text"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const bk_data_kind *k = bk_data_find(known[i]);
        assert_non_null(k);
        assert_string_equal(k->name, known[i]);
        assert_true(k->summary && k->usage && k->source && k->options && k->make);
        for (const bk_option *o = k->options; o->name; o++)
            assert_true(o->help && *o->help && o->offset < k->config_size);
    }
    assert_null(bk_data_find("list"));
    for (int i = 1; bk_data_kinds[i]; i++)
        assert_true(strcmp(bk_data_kinds[i - 1]->name, bk_data_kinds[i]->name) < 0);
}

static void samples_grow(void **state)
{
    (void)state;
    bk_samples s = {.arena = arena};
    bk_dataset d = {0};
    enum { COUNT = 5000 };
    for (int i = 0; i < COUNT; i++) {
        int32_t token[3] = {i, i + 1, i + 2};
        bk_samples_add(&s, token, i % 4 == 3 ? 0 : i % 4, i);
    }
    bk_samples_add_bytes(&s, "\xff\0a", 3, 7);
    bk_samples_to(&s, &d);
    assert_int_equal(d.samples, COUNT + 1);
    assert_int_equal(d.max_length, 3);
    for (int i = 0; i < COUNT; i++) {
        int64_t length = i % 4 == 3 ? 0 : i % 4;
        assert_int_equal(d.offsets[i + 1] - d.offsets[i], length);
        assert_int_equal(d.labels[i], i);
        for (int64_t k = 0; k < length; k++)
            assert_int_equal(d.tokens[d.offsets[i] + k], i + k);
    }
    const int32_t *last = d.tokens + d.offsets[COUNT];
    assert_true(last[0] == 256 && last[1] == 1 && last[2] == 98);
}

static void shares(void **state)
{
    (void)state;
    static const struct {
        double wish;
        int64_t count, share;
    } wanted[] = {{0.0, 10, 0}, {0.1, 10, 1},  {0.1, 14, 1},
                  {0.1, 15, 2}, {0.5, 3, 2},   {1.0, 10, 1},
                  {7.0, 10, 7}, {1e9, 10, 10}, {1.0 / 12, 60000, 5000},
                  {0.9, 0, 0}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        assert_int_equal(bk_share_of(wanted[i].wish, wanted[i].count), wanted[i].share);
}

static void splits_partition(void **state)
{
    (void)state;
    int64_t from[30];
    for (int i = 0; i < 30; i++)
        from[i] = 100 + i;
    bk_dataset d = {0}, same = {0};
    const bk_split_wish wish = {.validation = 0.2, .test = 4, .seed = 5};
    assert_int_equal(bk_split_seeded(&d, arena, from, 30, &wish), BK_OK);
    assert_int_equal(bk_split_seeded(&same, arena, NULL, 30, &wish), BK_OK);
    int seen[30] = {0};
    for (int k = 0; k < 3; k++)
        for (int64_t i = 0; i < d.split[k].count; i++) {
            assert_true(i == 0 || d.split[k].index[i] > d.split[k].index[i - 1]);
            assert_int_equal(d.split[k].index[i], 100 + same.split[k].index[i]);
            seen[d.split[k].index[i] - 100]++;
        }
    for (int i = 0; i < 30; i++)
        assert_int_equal(seen[i], 1);
    assert_int_equal(bk_test_split(&d, "train")->count, 20);
    assert_int_equal(bk_test_split(&d, "validation")->count, 6);
    assert_int_equal(bk_test_split(&d, "test")->count, 4);
}

static void nothing_left_to_train_on(void **state)
{
    (void)state;
    static const bk_split_wish wish[] = {{.validation = 10},
                                         {.validation = 0.5, .test = 0.5},
                                         {.validation = 0.9, .test = 0.9},
                                         {.test = 1e9}};
    for (int i = 0; i < 4; i++) {
        bk_dataset d = {0};
        assert_int_equal(bk_split_seeded(&d, arena, NULL, 10, &wish[i]), BK_USAGE);
        assert_non_null(strstr(bk_status_text(), "10 samples"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_of_kinds),
        cmocka_unit_test(samples_grow),
        cmocka_unit_test(shares),
        cmocka_unit_test(splits_partition),
        cmocka_unit_test(nothing_left_to_train_on),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_arena_free(arena);
    return failed;
}
