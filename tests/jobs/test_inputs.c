/* What a job takes from its data sets: shapes for the model, and the metric that is shown. */
#include "jobs/job.h"
#include "tests/support/check.h"

#include <string.h>

static const int32_t tokens[] = {1, 2, 3, 4, 5, 6}, labels[] = {0, 1, 1};
static const int64_t offsets[] = {0, 3, 4, 6}, index_of[] = {0, 1, 2};

static bk_dataset dataset(bool pairs, const char *metric)
{
    bk_dataset d = {.path = "memory.h5",
                    .samples = 3,
                    .vocabulary = 9,
                    .classes = 2,
                    .tokens = tokens,
                    .offsets = offsets,
                    .labels = labels,
                    .metric = metric,
                    .splits = 2};
    if (pairs) {
        d.tokens2 = tokens;
        d.offsets2 = offsets;
    }
    d.split[0] = (bk_split){.name = "train", .index = index_of, .count = 3};
    d.split[1] = (bk_split){.name = "validation", .index = index_of, .count = 3};
    bk_dataset_measure(&d);
    return d;
}

static bk_status read_job(bk_dataset *d, int metric, bk_job *job)
{
    static bk_config config;
    config.data = (bk_config_data){.split = "train", .eval_split = "validation", .metric = metric};
    *job = (bk_job){.purpose = BK_TRAIN, .config = &config, .train = d};
    return bk_job_read_data(job);
}

static void shapes(void **state)
{
    (void)state;
    bk_job job;
    bk_dataset single = dataset(false, NULL), pair = dataset(true, NULL);
    assert_int_equal(read_job(&single, BK_SHOW_AUTO, &job), BK_OK);
    assert_int_equal(job.data.vocabulary, 9);
    assert_int_equal(job.data.segments, 0);
    assert_int_equal(job.data.min_length, 1);
    assert_int_equal(job.data.max_length, 3);
    assert_int_equal(read_job(&pair, BK_SHOW_AUTO, &job), BK_OK);
    assert_int_equal(job.data.vocabulary, 10); /* the separator */
    assert_int_equal(job.data.segments, 2);
    assert_int_equal(job.data.min_length, 3);
    assert_int_equal(job.data.max_length, 7);
}

static void check_metric(const char *own, int choice, int expected)
{
    bk_job job;
    bk_dataset d = dataset(false, own);
    assert_int_equal(read_job(&d, choice, &job), BK_OK);
    assert_int_equal(job.metric, expected);
}

static void the_metric_shown(void **state)
{
    (void)state;
    check_metric(NULL, BK_SHOW_AUTO, -1);
    check_metric("accuracy", BK_SHOW_AUTO, -1);
    check_metric("matthews", BK_SHOW_AUTO, BK_METRIC_MATTHEWS);
    check_metric("matthews", BK_SHOW_ACCURACY, -1);
    check_metric("matthews", BK_SHOW_METRICS + BK_METRIC_F1, BK_METRIC_F1);
    check_metric(NULL, BK_SHOW_METRICS + BK_METRIC_SPEARMAN, BK_METRIC_SPEARMAN);
    check_metric("auc", BK_SHOW_ACCURACY, -1);
}

static void metrics_refused(void **state)
{
    (void)state;
    bk_job job;
    bk_dataset unknown = dataset(false, "auc"), many = dataset(false, "f1");
    assert_int_equal(read_job(&unknown, BK_SHOW_AUTO, &job), BK_INPUT);
    assert_non_null(strstr(bk_status_text(), "'auc' (memory.h5)"));
    many.classes = BK_METRIC_CLASSES + 1;
    assert_int_equal(read_job(&many, BK_SHOW_AUTO, &job), BK_OK);
    assert_int_equal(job.metric, -1);
    assert_int_equal(read_job(&many, BK_SHOW_METRICS, &job), BK_USAGE);
    assert_non_null(strstr(bk_status_text(), "data.metric=f1"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes),
        cmocka_unit_test(the_metric_shown),
        cmocka_unit_test(metrics_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
