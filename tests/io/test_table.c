/* Rows of TSV and CSV: RFC 4180 quotes, line ends, lines counted. */
#include "io/table.h"
#include "tests/support/check.h"

#include <stdlib.h>
#include <string.h>

/* All rows as "a|b;c|d", the row's line before each: "1:a|b;2:c|d". */
static const char *rows_of(const char *text, char separator, bool quotes)
{
    static char out[4096];
    char *copy = strdup(text);
    bk_table t = bk_table_new("t.csv", copy, strlen(text), separator, quotes);
    bool more;
    out[0] = '\0';
    for (;;) {
        bk_status status = bk_table_next(&t, &more);
        if (status != BK_OK) {
            assert_int_equal(status, BK_INPUT);
            snprintf(out, sizeof out, "%s", bk_status_text());
            break;
        }
        if (!more)
            break;
        char *to = out + strlen(out);
        to += sprintf(to, "%s%d:", *out ? ";" : "", (int)t.line);
        for (int i = 0; i < t.fields; i++)
            to += sprintf(to, "%s%.*s", i ? "|" : "", (int)t.field[i].length, t.field[i].text);
    }
    free(copy);
    return out;
}

static void tabs(void **state)
{
    (void)state;
    assert_string_equal(rows_of("a\tb\nc\td", '\t', false), "1:a|b;2:c|d");
    assert_string_equal(rows_of("a\t\t\r\n\r\n\n\"c\"\td\r\n", '\t', false), "1:a||;4:\"c\"|d");
    assert_string_equal(rows_of("\xef\xbb\xbf"
                                "a\tb",
                                '\t', false),
                        "1:a|b");
    assert_string_equal(rows_of("", '\t', false), "");
    assert_string_equal(rows_of("\n\n", '\t', false), "");
    assert_string_equal(rows_of("\xef\xbb\xbf", '\t', false), "");
    assert_string_equal(rows_of("a b\tc\n", '\0', false), "1:a b\tc");
}

static void commas(void **state)
{
    (void)state;
    assert_string_equal(rows_of("a,b\n", ',', true), "1:a|b");
    assert_string_equal(rows_of("\"a,b\",c\r\n", ',', true), "1:a,b|c");
    assert_string_equal(rows_of("\"say \"\"x\"\"\",\"\"\n", ',', true), "1:say \"x\"|");
    assert_string_equal(rows_of("\"\"\"\"", ',', true), "1:\"");
    assert_string_equal(rows_of("\"a\nb\r\nc\",d\ne,f", ',', true), "1:a\nb\r\nc|d;4:e|f");
    assert_string_equal(rows_of("a\"b,\"c\"", ',', true), "1:a\"b|c");
    assert_string_equal(rows_of("a,\n,b\n,\n", ',', true), "1:a|;2:|b;3:|");
    assert_string_equal(rows_of("a,b\r", ',', true), "1:a|b");
    assert_string_equal(rows_of("\"a\"\r", ',', true), "1:a");
}

static void refused(const char *text, const char *word)
{
    const char *found = rows_of(text, ',', true);
    if (!strstr(found, word) || !strstr(found, "t.csv"))
        fail_msg("no '%s' in: %s", word, found);
}

static void trouble(void **state)
{
    (void)state;
    refused("a\n\"b\nc\n", "line 2");
    refused("\"", "never closed");
    refused("\"a\"\"", "never closed");
    refused("\"a\"b,c\n", "behind a closing quote");
    refused("\"a\" ,c\n", "behind a closing quote");
    char many[600];
    memset(many, ',', sizeof many - 1);
    many[sizeof many - 1] = '\0';
    refused(many, "256 columns");
}

static void columns_by_name(void **state)
{
    (void)state;
    char text[] = "id,text,label,text\n";
    bool more;
    bk_table t = bk_table_new("t.csv", text, strlen(text), ',', true);
    assert_int_equal(bk_table_next(&t, &more), BK_OK);
    assert_int_equal(bk_table_column(&t, "text"), 1);
    assert_int_equal(bk_table_column(&t, "label"), 2);
    assert_int_equal(bk_table_column(&t, "lab"), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tabs),
        cmocka_unit_test(commas),
        cmocka_unit_test(trouble),
        cmocka_unit_test(columns_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
