/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "dist/agree.h"

#include <string.h>

static const bk_status classes[] = {BK_USAGE, BK_INPUT,   BK_NONFINITE,
                                    BK_FAULT, BK_STOPPED, BK_STALLED};
enum { CLASSES = sizeof classes / sizeof *classes };

static const bk_comm *ctl(void)
{
    return bk_test_world()->ctl;
}

static void all_good(void **state)
{
    (void)state;
    bk_status_set_text("of long ago");
    assert_int_equal(bk_agree(ctl(), BK_OK), BK_OK);
    assert_string_equal(bk_status_text(), "of long ago");
}

/* One rank fails: all leave with its status, text and trail. */
static void one_fails_all_leave(void **state)
{
    (void)state;
    for (int failing = 0; failing < bk_mpi_size(); failing++)
        for (int c = 0; c < CLASSES; c++) {
            char text[64];
            bk_status status = BK_OK;
            snprintf(text, sizeof text, "rank %d, class %d", failing, c);
            bk_status_set_text("another story");
            if (bk_mpi_rank() == failing) {
                status = bk_fail(classes[c], "%s", text);
                status = bk_within(status, "while reading shard %d", failing);
                status = bk_within(status, "while loading");
            }
            assert_int_equal(bk_agree(ctl(), status), classes[c]);
            assert_string_equal(bk_status_text(), text);
            snprintf(text, sizeof text, "while reading shard %d\nwhile loading", failing);
            assert_string_equal(bk_status_trail(), text);
        }
}

/* All fail alike: the lowest rank speaks. */
static void lowest_rank_speaks(void **state)
{
    (void)state;
    bk_status status = bk_fail(BK_INPUT, "rank %d", bk_mpi_rank());
    assert_int_equal(bk_agree(ctl(), status), BK_INPUT);
    assert_string_equal(bk_status_text(), "rank 0");
    assert_string_equal(bk_status_trail(), "");
}

/* Each rank fails in another way: the highest class wins, whoever has it. */
static void worst_class_wins(void **state)
{
    int size = bk_mpi_size();
    (void)state;
    for (int turn = 0; turn < size; turn++) {
        int own = (bk_mpi_rank() + turn) % size;
        bk_status status = bk_fail(classes[own], "class %d", own);
        char text[32];
        snprintf(text, sizeof text, "class %d", size - 1);
        assert_int_equal(bk_agree(ctl(), status), classes[size - 1]);
        assert_string_equal(bk_status_text(), text);
    }
}

static void long_texts_arrive_whole(void **state)
{
    char text[2001];
    (void)state;
    memset(text, 'x', 2000);
    text[1999] = 'y';
    text[2000] = '\0';
    bk_status_set_text("");
    bk_status status = bk_mpi_rank() == bk_mpi_size() - 1 ? bk_fail(BK_FAULT, "%s", text) : BK_OK;
    assert_int_equal(bk_agree(ctl(), status), BK_FAULT);
    assert_string_equal(bk_status_text(), text);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_good),
        cmocka_unit_test(one_fails_all_leave),
        cmocka_unit_test(lowest_rank_speaks),
        cmocka_unit_test(worst_class_wins),
        cmocka_unit_test(long_texts_arrive_whole),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
