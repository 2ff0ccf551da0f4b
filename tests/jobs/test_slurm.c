/* test: labels=unit timeout=60 */
/* Slurm's texts of a duration, and where the time left comes from. */
#include "tests/support/check.h"
#include "tests/support/files.h"

#include "jobs/slurm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

static void durations(void **state)
{
    static const struct {
        const char *text;
        double seconds;
    } row[] = {{"0:00", 0},
               {"0:09", 9},
               {"3:04", 184},
               {"59:59", 3599},
               {"2:03:04", 7384},
               {"1-02:03:04", 93784},
               {"2-00:00:00", 172800},
               {"365-00:00:00", 31536000},
               {"UNLIMITED", INFINITY}};
    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        assert_true(bk_slurm_seconds(row[i].text) == row[i].seconds);
}

static void no_durations(void **state)
{
    static const char *const text[] = {
        "",        "INVALID", "NOT_SET",     "N/A",      "17",    "3:04 ", "-3:04",        "1-",
        "1-02",    "1--2:03", "-1-02:03:04", "3-:04",    ":04",   "3:",    "3:0x",         "x-1:02",
        "1:2:3:4", "3:-4",    "0x1:02",      "1-2-3:04", " 3:04", "+3:04", "1234567890:00"};
    (void)state;
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        assert_true(bk_slurm_seconds(text[i]) == -1);
}

static void set_end(double seconds)
{
    char text[32];
    snprintf(text, sizeof text, "%.0f", (double)time(NULL) + seconds);
    setenv("SLURM_JOB_END_TIME", text, 1);
}

/* A squeue of our own answers for job 17 and for task 3 of array 20. */
static void place_squeue(void)
{
    const char *path = bk_test_path("bin/squeue");
    char search[8192];
    bk_test_write_text(path, "#!/bin/sh\ncase \"$*\" in\n'-h -j 17 -o %L') echo 2:03:04 ;;\n"
                             "'-h -j 20_3 -o %L') echo 3:04 ;;\n*) exit 1 ;;\nesac\n");
    assert_int_equal(chmod(path, 0755), 0);
    snprintf(search, sizeof search, "%s:%s", bk_test_path("bin"), getenv("PATH"));
    setenv("PATH", search, 1);
}

static void time_left(void **state)
{
    (void)state;
    unsetenv("SLURM_JOB_ID");
    unsetenv("SLURM_ARRAY_JOB_ID");
    unsetenv("SLURM_JOB_END_TIME");
    place_squeue();
    assert_true(bk_slurm_time_left() == INFINITY); /* outside */
    setenv("SLURM_JOB_ID", "17; true", 1);
    assert_true(bk_slurm_time_left() == INFINITY);
    setenv("SLURM_JOB_ID", "17", 1);
    assert_true(bk_slurm_time_left() == 7384);
    set_end(100);
    double left = bk_slurm_time_left();
    assert_true(left > 90 && left <= 101);
    set_end(-100); /* of the job that submitted this one */
    assert_true(bk_slurm_time_left() == 7384);
    setenv("SLURM_JOB_ID", "18", 1);
    assert_true(bk_slurm_time_left() == -1);
    setenv("SLURM_ARRAY_JOB_ID", "20", 1);
    setenv("SLURM_ARRAY_TASK_ID", "3", 1);
    assert_true(bk_slurm_time_left() == 184);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(durations), cmocka_unit_test(no_durations),
                                       cmocka_unit_test(time_left)};
    return cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
}
