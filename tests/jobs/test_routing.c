/* test: labels=unit timeout=60 */
/* Lines of training about experts: each layer's figures, and their percentiles over the layers. */
#include "jobs/routing.h"
#include "tests/support/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LAYERS = 10 };

static json_t *written(bk_arena *arena, int layers, const bk_moe_figures *figures)
{
    char directory[] = "/tmp/birkhoff.XXXXXX", path[64], line[65536];
    bk_metrics *m;
    assert_non_null(mkdtemp(directory));
    assert_int_equal(bk_metrics_open(arena, directory, 0, false, &m), BK_OK);
    bk_metrics_begin(m, 1, "train");
    bk_routing_write(m, layers, figures, arena);
    bk_metrics_end(m);
    assert_int_equal(bk_metrics_close(m), BK_OK);
    snprintf(path, sizeof path, "%s/metrics.jsonl", directory);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    assert_non_null(fgets(line, sizeof line, file));
    fclose(file);
    remove(path);
    rmdir(directory);
    json_t *object = json_loads(line, 0, NULL);
    assert_non_null(object);
    return object;
}

static double field(const json_t *line, const char *list, size_t i, const char *key)
{
    const json_t *value = json_object_get(json_array_get(json_object_get(line, list), i), key);
    if (!value)
        fail_msg("no %s in %s", key, list);
    return json_number_value(value);
}

/* Figure i of ten is i + 1, in an order that is not rising. */
static void percentiles_are_nearest_ranks(void **state)
{
    const double share[] = {0.25, 0.75};
    bk_arena *arena = bk_arena_new("test");
    bk_moe_figures f[LAYERS] = {0};
    (void)state;
    for (int i = 0; i < LAYERS; i++)
        f[i] = (bk_moe_figures){.layer = i,
                                .experts = 2,
                                .share = share,
                                .load_cv = 1 + i * 7 % LAYERS,
                                .dead = 1 + i * 3 % LAYERS,
                                .seconds = {[BK_MOE_COMBINE] = i}};
    json_t *line = written(arena, LAYERS, f);
    assert_int_equal(json_array_size(json_object_get(line, "moe")), LAYERS);
    assert_int_equal(json_array_size(json_object_get(line, "moe_over_layers")), 3);
    const double expected[] = {5.0, 9.0, 10.0};
    for (size_t i = 0; i < 3; i++) {
        assert_true(field(line, "moe_over_layers", i, "load_cv") == expected[i]);
        assert_true(field(line, "moe_over_layers", i, "dead") == expected[i]);
        assert_true(field(line, "moe_over_layers", i, "combine") == expected[i] - 1.0);
    }
    assert_true(field(line, "moe", 3, "layer") == 3.0 && field(line, "moe", 3, "load_cv") == 2.0);
    const json_t *load = json_object_get(json_array_get(json_object_get(line, "moe"), 3), "load");
    assert_int_equal(json_array_size(load), 2);
    assert_true(json_number_value(json_array_get(load, 1)) == 0.75);
    json_decref(line);
    bk_arena_free(arena);
}

static void one_layer_is_all_percentiles(void **state)
{
    const double share[] = {1.0};
    bk_arena *arena = bk_arena_new("test");
    const bk_moe_figures f = {.experts = 1, .share = share, .z = 2.5};
    (void)state;
    json_t *line = written(arena, 1, &f);
    for (size_t i = 0; i < 3; i++)
        assert_true(field(line, "moe_over_layers", i, "z") == 2.5);
    json_decref(line);
    bk_arena_free(arena);
}

/* An operator tells what a line of training tells, but for the clock. */
static void attributes_are_the_same_figures(void **state)
{
    const double share[] = {1.0};
    bk_arena *arena = bk_arena_new("test");
    const bk_moe_figures f = {.experts = 1, .share = share, .load_cv = 0.5, .bytes_sent = 7};
    bk_attributes a = {0};
    const char *key;
    json_t *value, *line = written(arena, 1, &f);
    int seconds = 0;
    (void)state;
    bk_routing_attributes(&f, &a);
    json_object_foreach(json_array_get(json_object_get(line, "moe"), 0), key, value)
    {
        double told = bk_attribute_get(&a, key, NAN);
        if (!isnan(told))
            assert_true(told == json_number_value(value));
        else if (strcmp(key, "layer") != 0 && strcmp(key, "load") != 0)
            seconds++;
    }
    assert_int_equal(seconds, BK_MOE_PHASES);
    json_decref(line);
    bk_arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentiles_are_nearest_ranks),
        cmocka_unit_test(one_layer_is_all_percentiles),
        cmocka_unit_test(attributes_are_the_same_figures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
