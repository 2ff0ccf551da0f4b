/* Maps between the layers of student and teacher. */
#include "tests/support/check.h"

#include "losses/layers.h"

#include <string.h>

static const bk_layer_shape student = {.layers = 4, .width = 8, .heads = 2},
                            teacher = {.layers = 12, .width = 8, .heads = 2};

static void check(const char *map, int least, const bk_layer_shape *s, const bk_layer_shape *t,
                  int pairs, const int *ours, const int *theirs)
{
    bk_layer_plan plan;
    if (bk_layers_map("hidden", map, least, s, t, &plan) != BK_OK)
        fail_msg("%s", bk_status_text());
    assert_int_equal(plan.pairs, pairs);
    for (int i = 0; i < pairs; i++) {
        assert_int_equal(plan.student[i], ours[i]);
        assert_int_equal(plan.teacher[i], theirs[i]);
    }
}

static void maps(void **state)
{
    const bk_layer_shape five = {.layers = 5}, three = {.layers = 3}, two = {.layers = 2};
    (void)state;
    check("uniform", 0, &student, &teacher, 4, (const int[]){1, 2, 3, 4},
          (const int[]){3, 6, 9, 12});
    check("uniform", 1, &three, &five, 3, (const int[]){1, 2, 3}, (const int[]){2, 3, 5});
    check("uniform", 1, &five, &two, 5, (const int[]){1, 2, 3, 4, 5}, (const int[]){1, 1, 1, 2, 2});
    check("last", 1, &student, &teacher, 1, (const int[]){4}, (const int[]){12});
    check("0:0,2:7", 0, &student, &teacher, 2, (const int[]){0, 2}, (const int[]){0, 7});
    check("4:12", 1, &student, &teacher, 1, (const int[]){4}, (const int[]){12});
}

static void wrong_maps_are_refused(void **state)
{
    static const struct {
        const char *map, *says;
        int least;
    } cases[] = {{"", "layers= of hidden is not known", 0},
                 {"2", "layers=2 of hidden is not known", 0},
                 {"2:", "is not known", 0},
                 {"2:3,", "is not known", 0},
                 {"2:3;3:4", "is not known", 0},
                 {"a:b", "is not known", 0},
                 {"-1:2", "is not known", 0},
                 {"unifrm", "is not known", 0},
                 {"5:3", "the student has layers 0 to 4, the teacher 0 to 12", 0},
                 {"4:13", "pairs 4 with 13", 0},
                 {"0:1", "the student has layers 1 to 4", 1},
                 {"99999999999999999999:1", "the student has layers", 0}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bk_layer_plan plan;
        assert_int_equal(
            bk_layers_map("hidden", cases[i].map, cases[i].least, &student, &teacher, &plan),
            BK_USAGE);
        if (!strstr(bk_status_text(), cases[i].says))
            fail_msg("%s", bk_status_text());
    }
}

static void positions_must_agree(void **state)
{
    bk_layer_shape with = teacher;
    bk_layer_plan plan;
    (void)state;
    with.front = 1;
    assert_int_equal(bk_layers_map("hidden", "last", 0, &student, &with, &plan), BK_USAGE);
    assert_non_null(strstr(bk_status_text(), "model.pool"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps),
        cmocka_unit_test(wrong_maps_are_refused),
        cmocka_unit_test(positions_must_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
