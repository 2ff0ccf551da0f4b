/* test: labels=unit,io timeout=120 */
/* Subwords: learned from the training split, kept in the data set, lossless, the same for other
 * files; and what goes wrong.  Skipped where sentencepiece is not installed. */
#include "tests/support/check.h"
#include "tests/support/data.h"
#include "tests/support/files.h"

#include "io/digest.h"
#include "io/program.h"
#include "io/subwords.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bk_arena *arena;

static const char *file(const char *name, const char *text)
{
    const char *path = bk_arena_strdup(arena, bk_test_path("%s", name));
    bk_test_write_text(path, text);
    return path;
}

/* Sentences of a few words, some with signs of several bytes, as pairs or as one text. */
static const char *sentences(int from, int count, bool pairs)
{
    static const char *const noun[] = {"the river", "a caf\xc3\xa9", "my brother", "\xe6\xb0\xb4",
                                       "this teapot"},
                             *const verb[] = {"flows to", "looks like", "follows", "remembers"};
    char *text = bk_arena_strdup(arena, "");
    for (int i = from; i < from + count; i++) {
        const char *one = bk_arena_printf(arena, "%s %s %s number %d", noun[i % 5], verb[i % 4],
                                          noun[i / 3 % 5], i);
        text = pairs ? bk_arena_printf(arena, "%s%d\t-\t-\t%s\t%s too\n", text, i % 2, one, one)
                     : bk_arena_printf(arena, "%s%s\n", text, one);
    }
    return text;
}

static void make(const char *kind, const char *const *inputs, const char *const *options,
                 bk_dataset *d)
{
    if (bk_test_make(arena, kind, inputs, options, d) != BK_OK)
        fail_msg("%s: %s", kind, bk_status_text());
}

/* ---- back to text ---- */

/* Bytes of a list of symbols by spm_decode, the judge; what this file encodes has no line ends. */
static const char *decode(const bk_dataset *d, const int32_t *tokens, int64_t count)
{
    const char *place = bk_test_path("decode/ids");
    const char *directory = bk_arena_printf(arena, "%.*s", (int)strlen(place) - 4, place);
    FILE *ids = fopen(place, "w");
    size_t bytes;
    assert_non_null(ids);
    for (int64_t i = 0; i < count; i++)
        fprintf(ids, "%d ", tokens[i]);
    fprintf(ids, "\n");
    fclose(ids);
    bk_test_write(bk_test_path("decode/model"), d->subwords, (size_t)d->subword_bytes);
    const char *const argv[] = {"spm_decode",  "--model=model", "--input_format=id",
                                "--input=ids", "--output=text", NULL};
    if (bk_program_run(directory, argv, "log") != BK_OK)
        fail_msg("%s", bk_status_text());
    char *text = bk_test_read(bk_test_path("decode/text"), &bytes);
    text[strcspn(text, "\n")] = '\0';
    const char *copy = bk_arena_strdup(arena, text);
    free(text);
    return copy;
}

/* One text; at byte pieces of line ends and zero bytes its lines begin anew. */
static const char *text_of(const bk_dataset *d, const int32_t *tokens, const int64_t *offsets,
                           int64_t sample)
{
    const char *text = "";
    for (int64_t at = offsets[sample], end = offsets[sample + 1]; at <= end; at++) {
        int64_t from = at;
        while (at < end && tokens[at] != 2 + '\n')
            at++;
        text = bk_arena_printf(arena, "%s%s%s", text, decode(d, tokens + from, at - from),
                               at < end ? "\n" : "");
    }
    return text;
}

/* ---- learning ---- */

static void pairs_come_back(void **state)
{
    (void)state;
    bk_dataset bytes, d;
    const char *path = file("train.tsv", sentences(0, 120, true));
    make("pairs", BK_TEXTS(path), BK_NONE, &bytes);
    make("pairs", BK_TEXTS(path), BK_TEXTS("tokens=subwords", "vocabulary=400"), &d);
    assert_in_range(d.vocabulary, 258, 400);
    assert_int_equal(d.samples, 120);
    assert_int_equal(bk_test_split(&d, "validation")->count, 12);
    assert_true(bk_mean_length(&d) < 0.7 * bk_mean_length(&bytes));
    for (int64_t i = 0; i < 120; i += 37) {
        assert_string_equal(text_of(&d, d.tokens, d.offsets, i), bk_test_bytes(arena, &bytes, i));
        assert_string_equal(text_of(&d, d.tokens2, d.offsets2, i),
                            bk_test_bytes2(arena, &bytes, i));
        assert_int_equal(d.labels[i], bytes.labels[i]);
    }
    char digest[BK_SHA256_TEXT];
    bk_sha256_text(d.subwords, (size_t)d.subword_bytes, digest);
    assert_string_equal(digest, d.vocabulary_digest);
}

/* Line ends, blanks, zero bytes, tabs and what is no UTF-8. */
static void lines_come_back(void **state)
{
    (void)state;
    bk_dataset d;
    const char *start = sentences(0, 200, false);
    const char *odd = "\n\n  two  blanks \r\n\tand a tab\n";
    const char *path =
        file("corpus", bk_arena_printf(arena, "%s%s%s", start, odd, sentences(200, 200, false)));
    make("lines", BK_TEXTS(path), BK_TEXTS("tokens=subwords", "vocabulary=400", "validation=0"),
         &d);
    assert_int_equal(d.samples, 1);
    const char *text = text_of(&d, d.tokens, d.offsets, 0);
    assert_memory_equal(text, start, strlen(start));
    assert_memory_equal(text + strlen(start), odd, strlen(odd));
    static const char raw[] = "a\0b\xff"
                              "c";
    bk_test_write(bk_test_path("raw"), raw, 5);
    make("lines", BK_TEXTS(path, bk_arena_strdup(arena, bk_test_path("raw"))),
         BK_TEXTS("tokens=subwords", "vocabulary=400", "validation=0"), &d);
    int64_t zero = d.offsets[1];
    while (zero < d.offsets[2] && d.tokens[zero] != 2 + 0)
        zero++;
    assert_string_equal(decode(&d, d.tokens + d.offsets[1], zero - d.offsets[1]), "a");
    assert_string_equal(decode(&d, d.tokens + zero + 1, d.offsets[2] - zero - 1), "b\xef\xbf\xbd"
                                                                                  "c");
}

/* The validation split's words are not in what was learned, and the same work gives the same
 * model. */
static void only_training_is_learned_from(void **state)
{
    (void)state;
    bk_dataset a, b, c;
    const char *train = file("train.tsv", sentences(0, 200, true));
    make("pairs", BK_TEXTS(train, file("dev.tsv", sentences(7000, 40, true))),
         BK_TEXTS("tokens=subwords", "vocabulary=350"), &a);
    make("pairs", BK_TEXTS(train, file("dev.tsv", "1\t-\t-\tzyzzyva zyzzyva\tzyzzyva\n")),
         BK_TEXTS("tokens=subwords", "vocabulary=350"), &b);
    assert_string_equal(a.vocabulary_digest, b.vocabulary_digest);
    make("pairs", BK_TEXTS(file("train.tsv", sentences(500, 200, true)), bk_test_path("dev.tsv")),
         BK_TEXTS("tokens=subwords", "vocabulary=350"), &c);
    assert_string_not_equal(a.vocabulary_digest, c.vocabulary_digest);
}

static void other_files_by_the_same_subwords(void **state)
{
    (void)state;
    bk_dataset d, other, again;
    const char *train = file("train.tsv", sentences(0, 200, true)),
               *more = file("more.tsv", sentences(300, 50, true)),
               *kept = bk_arena_strdup(arena, bk_test_path("kept.h5"));
    make("pairs", BK_TEXTS(train), BK_TEXTS("tokens=subwords", "vocabulary=350"), &d);
    assert_int_equal(bk_dataset_write(&d, kept, 1, ""), BK_OK);
    const char *from = bk_arena_printf(arena, "vocabulary=%s", kept);
    make("pairs", BK_TEXTS(train), BK_TEXTS("tokens=subwords", from), &again);
    assert_true(bk_dataset_write(&again, bk_test_path("again.h5"), 1, "") == BK_OK);
    assert_string_equal(again.digest, d.digest);
    make("pairs", BK_TEXTS(more), BK_TEXTS("tokens=subwords", from), &other);
    assert_string_equal(other.vocabulary_digest, d.vocabulary_digest);
    assert_int_equal(other.vocabulary, d.vocabulary);
    bk_dataset bytes;
    make("pairs", BK_TEXTS(more), BK_NONE, &bytes);
    assert_string_equal(text_of(&other, other.tokens, other.offsets, 9),
                        bk_test_bytes(arena, &bytes, 9));
    assert_int_equal(bk_dataset_write(&bytes, kept, 1, ""), BK_OK);
    bk_test_refused("pairs", BK_TEXTS(more), BK_TEXTS("tokens=subwords", from), BK_INPUT,
                    BK_TEXTS("has no subwords", "kept.h5"));
}

static void single_texts(void **state)
{
    (void)state;
    bk_dataset d;
    const char *text = "";
    for (int i = 0; i < 120; i++)
        text = bk_arena_printf(arena, "%s%d %s", text, i % 2, sentences(i, 1, false));
    make("text", BK_TEXTS(file("labelled", text)),
         BK_TEXTS("layout=label_first", "tokens=subwords", "vocabulary=330"), &d);
    assert_string_equal(text_of(&d, d.tokens, d.offsets, 3),
                        bk_arena_printf(arena, "%.*s", (int)strlen(sentences(3, 1, false)) - 1,
                                        sentences(3, 1, false)));
    assert_int_equal(d.classes, 2);
}

static void a_few_letters(void **state)
{
    (void)state;
    bk_dataset d;
    make("pairs", BK_TEXTS(file("train.tsv", "1\t-\t-\tab\tba\n0\t-\t-\tab\tab\n")),
         BK_TEXTS("tokens=subwords", "validation=0", "test=0"), &d);
    assert_in_range(d.vocabulary, 258, 300);
    assert_string_equal(text_of(&d, d.tokens2, d.offsets2, 0), "ba");
    assert_non_null(strstr(d.note, "of 8000 subwords"));
}

/* ---- refusals ---- */

static void refusals(void **state)
{
    (void)state;
    const char *path = file("train.tsv", sentences(0, 30, true)), *kept = getenv("PATH");
    bk_test_refused("pairs", BK_TEXTS(path), BK_TEXTS("vocabulary=500"), BK_USAGE,
                    BK_TEXTS("tokens=subwords"));
    bk_test_refused("pairs", BK_TEXTS(path), BK_TEXTS("tokens=subwords", "vocabulary=20"), BK_USAGE,
                    BK_TEXTS("vocabulary=20", "300"));
    bk_test_refused("pairs", BK_TEXTS(path), BK_TEXTS("tokens=subwords", "vocabulary=none.h5"),
                    BK_INPUT, BK_TEXTS("none.h5"));
    bk_test_refused("pairs", BK_TEXTS(file("train.tsv", "1\t-\t-\t\t\n0\t-\t-\t\t\n")),
                    BK_TEXTS("tokens=subwords"), BK_INPUT, BK_TEXTS("no text to learn"));
    const char *letters = "1\t-\t-\t";
    for (int i = 0; i < 120; i++) /* of the alphabets from U+0100 on */
        letters = bk_arena_printf(arena, "%s%c%c ", letters, 0xc4 + i / 64, 0x80 + i % 64);
    bk_test_refused(
        "pairs",
        BK_TEXTS(file("train.tsv", bk_arena_printf(arena, "%s\tb\n0\t-\t-\ta\tb\n", letters))),
        BK_TEXTS("tokens=subwords", "vocabulary=300", "validation=0", "test=0"), BK_INPUT,
        BK_TEXTS("300 subwords cannot be learned"));
    char *saved = bk_arena_strdup(arena, kept);
    setenv("PATH", "/nowhere", 1);
    bk_test_refused("pairs", BK_TEXTS(path), BK_TEXTS("tokens=subwords"), BK_USAGE,
                    BK_TEXTS("spm_train", "apt-get install sentencepiece"));
    setenv("PATH", saved, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pairs_come_back),
        cmocka_unit_test(lines_come_back),
        cmocka_unit_test(only_training_is_learned_from),
        cmocka_unit_test(other_files_by_the_same_subwords),
        cmocka_unit_test(single_texts),
        cmocka_unit_test(a_few_letters),
        cmocka_unit_test(refusals),
    };
    if (!bk_program_found("spm_train") || !bk_program_found("spm_encode")) {
        printf("skipped: spm_train and spm_encode are not in PATH\n");
        return 77;
    }
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
