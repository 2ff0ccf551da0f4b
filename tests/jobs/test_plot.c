/* Panels of curves: where points land, what is left out, names that need escaping. */
#include "jobs/plot.h"
#include "tests/support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bk_arena *arena;

static char *drawn(const bk_panel *panel, int panels)
{
    char *text;
    size_t length;
    FILE *f = open_memstream(&text, &length);
    bk_plot_write(f, "a & b", panel, panels);
    fclose(f);
    return text;
}

static int count(const char *text, const char *part)
{
    int found = 0;
    for (; (text = strstr(text, part)); text += strlen(part))
        found++;
    return found;
}

/* x = 0..4 over 300 pixels from 60 on, y = 0..2 over 180 from 240 upwards. */
static void points_land_where_they_should(void **state)
{
    (void)state;
    bk_panel panel[2] = {{.title = "empty", .axis = "step"},
                         {.title = "one <two>", .axis = "step"}};
    for (int i = 0; i <= 4; i++)
        bk_panel_add(arena, &panel[1], "curve", i, i % 2 ? 2.0 : 0.0);
    bk_panel_add(arena, &panel[1], "curve", 5.0, NAN);
    char *text = drawn(panel, 2);
    assert_non_null(strstr(text, "\"M60.0 240.0L135.0 60.0L210.0 240.0L285.0 60.0L360.0 240.0\""));
    assert_non_null(strstr(text, ">a &amp; b</text>"));
    assert_non_null(strstr(text, ">one &lt;two></text>"));
    assert_null(strstr(text, "empty"));
    assert_int_equal(count(text, "<circle"), 5);
    assert_int_equal(count(text, "<svg"), 1);
    assert_non_null(strstr(text, "</svg>\n"));
    free(text);
}

static void decades(void **state)
{
    (void)state;
    bk_panel panel = {.title = "log", .axis = "step", .logarithmic = true};
    for (int i = 0; i < 5; i++)
        bk_panel_add(arena, &panel, "curve", i, pow(10.0, -i));
    bk_panel_add(arena, &panel, "curve", 5.0, 0.0);
    char *text = drawn(&panel, 1);
    assert_int_equal(panel.series[0].points, 5);
    assert_non_null(strstr(text, "M60.0 60.0L135.0 105.0L210.0 150.0L285.0 195.0L360.0 240.0"));
    for (int i = 0; i < 5; i++)
        assert_int_equal(
            count(text, ((const char *[]){">1e0<", ">1e-1<", ">1e-2<", ">1e-3<", ">1e-4<"})[i]), 1);
    free(text);
}

static void many_points_and_curves(void **state)
{
    (void)state;
    bk_panel *panel = BK_ZNEW(arena, bk_panel, 1);
    *panel = (bk_panel){.title = "many", .axis = "step"};
    for (int k = 0; k < BK_PANEL_SERIES + 5; k++)
        for (int i = 0; i < 300; i++)
            bk_panel_add(arena, panel, bk_arena_printf(arena, "c%d", k), i, 3.0);
    assert_int_equal(panel->count, BK_PANEL_SERIES);
    assert_int_equal(panel->series[7].points, 300);
    assert_true(panel->series[7].x[299] == 299.0 && panel->series[7].y[250] == 3.0);
    char *text = drawn(panel, 1);
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
    assert_int_equal(count(text, ">c"), 2); /* the first and the last are named */
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(points_land_where_they_should),
        cmocka_unit_test(decades),
        cmocka_unit_test(many_points_and_curves),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_arena_free(arena);
    return failed;
}
