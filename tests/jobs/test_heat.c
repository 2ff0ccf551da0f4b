/* test: labels=unit timeout=60 */
/* Maps of load: where cells stand, their colours, what is averaged, what is left out. */
#include "jobs/heat.h"
#include "tests/support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bk_arena *arena;

static char *drawn(const bk_heat *heat, int maps)
{
    char *text;
    size_t length;
    FILE *f = open_memstream(&text, &length);
    assert_non_null(f);
    bk_heat_write(f, "a & b", heat, maps);
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

/* 480 pixels for 40 steps from 60 on, 192 for 4 experts from 90 down, expert 0 at the bottom. */
static void cells_stand_where_they_should(void **state)
{
    const double load[] = {0.0, 0.25, 0.5, 0.25}, bad[] = {NAN, 0.5, 0.25, 0.25};
    (void)state;
    bk_heat heat[2] = {{.layer = 3, .experts = 4}, {.layer = 5, .experts = 4}};
    bk_heat_add(arena, &heat[0], 10.0, load);
    bk_heat_add(arena, &heat[0], 20.0, bad);
    bk_heat_add(arena, &heat[0], 40.0, load);
    char *text = drawn(heat, 2);
    assert_int_equal(heat[0].columns, 2);
    assert_non_null(
        strstr(text, "x=\"60.0\" y=\"234.0\" width=\"120.0\" height=\"48.0\" fill=\"#1f5fa8\""));
    assert_non_null(
        strstr(text, "x=\"180.0\" y=\"138.0\" width=\"360.0\" height=\"48.0\" fill=\"#b5451b\""));
    assert_int_equal(count(text, "height=\"48.0\" fill=\"#ffffff\""), 4);
    assert_int_equal(count(text, ">layer 3<"), 1);
    assert_int_equal(count(text, ">layer 5<"), 0); /* nothing in it */
    assert_int_equal(count(text, "a &amp; b"), 1);
    assert_int_equal(count(text, "</svg>\n"), 1);
    free(text);
}

/* Alternating columns and experts that are too many to be seen are even on average. */
static void what_is_too_fine_is_averaged(void **state)
{
    enum { EXPERTS = 128, COLUMNS = 320 };
    double load[EXPERTS];
    (void)state;
    bk_heat heat = {.experts = EXPERTS};
    for (int c = 0; c < COLUMNS; c++) {
        for (int e = 0; e < EXPERTS; e++)
            load[e] = (c + e) % 2 ? 2.0 / EXPERTS : 0.0;
        bk_heat_add(arena, &heat, c + 1.0, load);
    }
    char *text = drawn(&heat, 1);
    assert_int_equal(count(text, "width=\"3.0\" height=\"3.0\" fill=\"#ffffff\""), 160 * 64);
    assert_true(heat.columns == COLUMNS && heat.step[319] == 320.0 && heat.load[0] == 0.0);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cells_stand_where_they_should),
        cmocka_unit_test(what_is_too_fine_is_averaged),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_arena_free(arena);
    return failed;
}
