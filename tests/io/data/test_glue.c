/* The files of GLUE's tasks: columns, label words, second validation sets, rows left out, and what
 * goes wrong. */
#include "tests/support/check.h"
#include "tests/support/data.h"
#include "tests/support/files.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bk_arena *arena;

static const char *file(const char *name, const char *text)
{
    const char *path = bk_arena_strdup(arena, bk_test_path("%s", name));
    bk_test_write_text(path, text);
    return path;
}

static void make(const char *const *inputs, const char *const *options, bk_dataset *d)
{
    if (bk_test_make(arena, "glue", inputs, options, d) != BK_OK)
        fail_msg("%s: %s", inputs[0], bk_status_text());
}

static void check(const bk_dataset *d, int64_t sample, const char *first, const char *second,
                  int32_t label)
{
    assert_string_equal(bk_test_bytes(arena, d, sample), first);
    assert_int_equal(d->tokens2 != NULL, second != NULL);
    if (second)
        assert_string_equal(bk_test_bytes2(arena, d, sample), second);
    assert_int_equal(d->labels[sample], label);
}

static void check_split(const bk_dataset *d, const char *name, int64_t count)
{
    assert_int_equal(bk_test_split(d, name)->count, count);
}

/* A small file of each task as GLUE lays it out, the classes of its two rows, and their texts. */
static const struct {
    const char *layout, *text, *first[2], *second[2];
    int32_t label[2];
    const char *names, *metric;
} layouts[] = {
    {"layout=cola",
     "gj04\t1\t\tA \"b.\ncj99\t0\t*\tC d.\n",
     {"A \"b.", "C d."},
     {NULL, NULL},
     {1, 0},
     "unacceptable\nacceptable",
     "matthews"},
    {"layout=sst2",
     "sentence\tlabel\nfine film \t1\nno \t0\n",
     {"fine film ", "no "},
     {NULL, NULL},
     {1, 0},
     "negative\npositive",
     NULL},
    {"layout=mrpc",
     "\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tA\tB\r\n0\t9\t1\tC\tD",
     {"A", "C"},
     {"B", "D"},
     {1, 0},
     "not_equivalent\nequivalent",
     "f1"},
    {"layout=qqp",
     "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tA?\tB?\t0\n1\t3\t4\tC?\t\t1\n",
     {"A?", "C?"},
     {"B?", ""},
     {0, 1},
     "not_duplicate\nduplicate",
     "f1"},
    {"layout=mnli",
     "index\tpairID\tsentence1\tsentence2\tlabel1\tgold_label\n0\tx\tA\tB\tneutral\tneutral\n"
     "1\ty\tC\tD\tcontradiction\tcontradiction\n",
     {"A", "C"},
     {"B", "D"},
     {1, 2},
     "entailment\nneutral\ncontradiction",
     NULL},
    {"layout=qnli",
     "index\tquestion\tsentence\tlabel\n0\tA\tB\tentailment\n1\tC\tD\tnot_entailment\n",
     {"A", "C"},
     {"B", "D"},
     {0, 1},
     "entailment\nnot_entailment",
     NULL},
    {"layout=rte",
     "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tnot_entailment\n1\tC\tD\tentailment\n",
     {"A", "C"},
     {"B", "D"},
     {1, 0},
     "entailment\nnot_entailment",
     NULL},
};

static void every_layout(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        bk_dataset d;
        make(BK_TEXTS(file("train.tsv", layouts[i].text), file("dev.tsv", layouts[i].text)),
             BK_TEXTS(layouts[i].layout), &d);
        assert_int_equal(d.samples, 4);
        for (int64_t s = 0; s < 4; s++)
            check(&d, s, layouts[i].first[s % 2], layouts[i].second[s % 2],
                  layouts[i].label[s % 2]);
        check_split(&d, "train", 2);
        check_split(&d, "validation", 2);
        assert_string_equal(d.task,
                            layouts[i].second[0] ? "pair_classification" : "classification");
        assert_string_equal(d.label_name, layouts[i].names);
        assert_string_equal(d.metric ? d.metric : "accuracy",
                            layouts[i].metric ? layouts[i].metric : "accuracy");
    }
}

static void second_validation_sets(void **state)
{
    (void)state;
    bk_dataset d;
    const char *text = layouts[4].text;
    make(BK_TEXTS(file("train.tsv", text), file("dev_matched.tsv", text),
                  file("dev_mismatched.tsv", text)),
         BK_TEXTS("layout=mnli", "limit=1"), &d);
    assert_int_equal(d.samples, 3);
    assert_int_equal(bk_test_split(&d, "validation")->index[0], 1);
    assert_int_equal(bk_test_split(&d, "validation_mismatched")->index[0], 2);
    text = layouts[0].text;
    make(BK_TEXTS(file("out_of_domain_dev.tsv", text), file("in_domain_train.tsv", text),
                  file("in_domain_dev.tsv", text)),
         BK_TEXTS("layout=cola"), &d);
    assert_int_equal(bk_test_split(&d, "validation_out_of_domain")->index[0], 0);
    assert_int_equal(bk_test_split(&d, "train")->index[0], 2);
    assert_int_equal(bk_test_split(&d, "validation")->index[0], 4);
}

/* What a task is known to hold is counted; classes are the task's, met or not. */
static void rows_left_out_are_counted(void **state)
{
    (void)state;
    bk_dataset d;
    make(BK_TEXTS(file("train.tsv", "index\tsentence1\tsentence2\tgold_label\n0\tA\tB\t-\n"
                                    "1\tC\tD\tneutral\n2\tE\t\tneutral\n")),
         BK_TEXTS("layout=mnli", "validation=0"), &d);
    assert_int_equal(d.samples, 2);
    assert_int_equal(d.classes, 3);
    check(&d, 0, "C", "D", 1);
    assert_string_equal(d.note, "1 rows without an agreed label left out, 1 texts are empty");
    make(BK_TEXTS(file("train.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
                                    "0\t1\t2\tA?\tB?\t0\n1\t3\t4\tC?\n2\t5\t6\tD?\tE?\t1\n")),
         BK_TEXTS("layout=qqp", "validation=0"), &d);
    assert_int_equal(d.samples, 2);
    assert_string_equal(d.note, "1 torn rows left out");
}

static void refusals(void **state)
{
    (void)state;
    const char *torn = file("torn.tsv", "sentence\tlabel\ngood\t1\nbad\n"),
               *word = file("word.tsv", "sentence\tlabel\ngood\t1\nbad\t2\n"),
               *test = file("test.tsv", "index\tsentence\n0\tgood\n"),
               *empty = file("none.tsv", ""), *header = file("head.tsv", "sentence\tlabel\n"),
               *dev = file("dev.tsv", "sentence\tlabel\ngood\t1\nbad\t0\n"),
               *cola = file("cola.tsv", "gj04\t1\t\tA.\ngj04\t1\tA.\n");
    bk_test_refused("glue", BK_TEXTS(dev), BK_NONE, BK_USAGE, BK_TEXTS("layout=cola"));
    bk_test_refused("glue", BK_NONE, BK_TEXTS("layout=sst2"), BK_USAGE, BK_TEXTS("FILE"));
    bk_test_refused("glue", BK_TEXTS(torn), BK_TEXTS("layout=sst2"), BK_INPUT,
                    BK_TEXTS("torn.tsv:3", "1 columns, not 2"));
    bk_test_refused("glue", BK_TEXTS(word), BK_TEXTS("layout=sst2"), BK_INPUT,
                    BK_TEXTS("word.tsv:3", "'2' is no label", "0,1"));
    bk_test_refused("glue", BK_TEXTS(test), BK_TEXTS("layout=sst2"), BK_INPUT,
                    BK_TEXTS("test.tsv:1", "no column label", "without labels"));
    bk_test_refused("glue", BK_TEXTS(empty), BK_TEXTS("layout=rte"), BK_INPUT,
                    BK_TEXTS("none.tsv", "no text"));
    bk_test_refused("glue", BK_TEXTS(header), BK_TEXTS("layout=sst2"), BK_INPUT,
                    BK_TEXTS("no text"));
    bk_test_refused("glue", BK_TEXTS(dev), BK_TEXTS("layout=sst2"), BK_INPUT,
                    BK_TEXTS("no text is for training"));
    bk_test_refused("glue", BK_TEXTS(cola), BK_TEXTS("layout=cola"), BK_INPUT,
                    BK_TEXTS("cola.tsv:2", "3 columns, not 4"));
}

/* CoLA and MRPC, where they are at hand. */
static void the_real_files(void **state)
{
    (void)state;
    const char *data = getenv("BIRKHOFF_DATA");
    if (!data) {
        print_message("BIRKHOFF_DATA is not set\n");
        skip();
    }
    bk_dataset d;
    const char *cola = bk_arena_printf(arena, "%s/text/cola", data),
               *mrpc = bk_arena_printf(arena, "%s/text/mrpc/msr_paraphrase", data);
    make(BK_TEXTS(bk_arena_printf(arena, "%s/in_domain_train.tsv", cola),
                  bk_arena_printf(arena, "%s/in_domain_dev.tsv", cola),
                  bk_arena_printf(arena, "%s/out_of_domain_dev.tsv", cola)),
         BK_TEXTS("layout=cola"), &d);
    check_split(&d, "train", 8551);
    check_split(&d, "validation", 527);
    check_split(&d, "validation_out_of_domain", 516);
    bk_check_error(fabs(bk_test_split(&d, "train")->majority - 0.7044), 5e-5, "majority");
    make(BK_TEXTS(bk_arena_printf(arena, "%s_train.txt", mrpc),
                  bk_arena_printf(arena, "%s_test.txt", mrpc)),
         BK_TEXTS("layout=mrpc"), &d);
    check_split(&d, "test", 1725);
    assert_int_equal(d.samples, 5801);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout),
        cmocka_unit_test(second_validation_sets),
        cmocka_unit_test(rows_left_out_are_counted),
        cmocka_unit_test(refusals),
        cmocka_unit_test(the_real_files),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
