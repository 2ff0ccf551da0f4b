/* manifest.json: text and back, and texts that are refused with a reason. */
#include "io/checkpoint_internal.h"
#include "tests/support/check.h"

#include <stdlib.h>
#include <string.h>

static bk_arena *arena;

static bk_manifest sample(void)
{
    static bk_stored_piece first[] = {{0, 0, 8192}, {1, 8192, 1808}}, second[] = {{1, 0, 1}};
    static bk_stored_tensor tensor[] = {
        {"model/a", BK_F32, 2, {100, 100}, 10000, 2, first},
        {"model/b", BK_I64, 0, {0}, 1, 1, second},
    };
    static bk_shard_file shard[] = {{.file = "shard-00000.h5"}, {.file = "shard-00001.h5"}};
    for (int i = 0; i < 2; i++) {
        shard[i].digest.size = 1000 + i;
        memset(shard[i].digest.sha256, 'a' + i, 64);
        memset(shard[i].digest.xxh64, 'c', 16);
    }
    bk_manifest m = {.step = 500,
                     .world_size = 4,
                     .lanes = 8,
                     .run_id = "0123456789abcdef",
                     .created = "2026-01-01T00:00:00Z",
                     .version = "0.1.0",
                     .shards = 2,
                     .shard = shard,
                     .tensors = 2,
                     .tensor = tensor};
    memset(m.config_sha256, '1', 64);
    memset(m.payload, '2', 64);
    return m;
}

/* The text after an edit, with the digest made right again. */
static const char *edited(const char *from, const char *to)
{
    static const char key[] = "\"manifest_sha256\":\"";
    bk_manifest m = sample();
    const char *text = bk_manifest_text(arena, &m), *place = strstr(text, from);
    assert_non_null(place);
    char *out =
        bk_arena_printf(arena, "%.*s%s%s", (int)(place - text), text, to, place + strlen(from));
    char digest[65], *own = strstr(out, key);
    if (!own)
        return out;
    own += strlen(key);
    memset(own, '0', 64);
    bk_sha256_text(out, strlen(out), digest);
    memcpy(own, digest, 64);
    return out;
}

static void text_and_back(void **state)
{
    (void)state;
    bk_manifest m = sample(), r = {0};
    assert_int_equal(bk_manifest_parse(arena, "x", bk_manifest_text(arena, &m), &r), BK_OK);
    assert_int_equal(r.step, 500);
    assert_int_equal(r.world_size, 4);
    assert_int_equal(r.lanes, 8);
    assert_string_equal(r.run_id, m.run_id);
    assert_string_equal(r.payload, m.payload);
    assert_string_equal(r.config_sha256, m.config_sha256);
    assert_int_equal(r.shards, 2);
    assert_int_equal(r.shard[1].digest.size, 1001);
    assert_string_equal(r.shard[1].digest.sha256, m.shard[1].digest.sha256);
    assert_int_equal(r.tensors, 2);
    const bk_stored_tensor *a = bk_manifest_find(&r, "model/a");
    assert_non_null(a);
    assert_null(bk_manifest_find(&r, "model/c"));
    assert_int_equal(a->pieces, 2);
    assert_int_equal(a->piece[1].offset, 8192);
    assert_int_equal(a->count, 10000);
    assert_int_equal(bk_manifest_find(&r, "model/b")->dims, 0);
}

static void the_digest_is_over_64_zeros(void **state)
{
    (void)state;
    static const char key[] = "\"manifest_sha256\":\"";
    bk_manifest m = sample();
    char *text = bk_arena_strdup(arena, bk_manifest_text(arena, &m)), told[65] = "", found[65];
    char *place = strstr(text, key) + strlen(key);
    memcpy(told, place, 64);
    memset(place, '0', 64);
    bk_sha256_text(text, strlen(text), found);
    assert_string_equal(told, found);
}

static void what_is_fine(void **state)
{
    (void)state;
    bk_manifest r = {0};
    static const char *const edit[][2] = {
        {"\"step\":500", "\"step\":501"},
        {"\"format_version\":[1,0]", "\"format_version\":[1,7]"}, /* a later minor version */
        {"\"lanes\":8", "\"lanes\":8,\"colour\":\"blue\""},       /* an unknown key */
    };
    for (size_t i = 0; i < sizeof edit / sizeof *edit; i++)
        if (bk_manifest_parse(arena, "x", edited(edit[i][0], edit[i][1]), &r) != BK_OK)
            fail_msg("%s: %s", edit[i][1], bk_status_text());
}

static void what_is_refused(void **state)
{
    (void)state;
    static const char *const edit[][3] = {
        {"\"format_version\":[1,0]", "\"format_version\":[2,3]", "format version 2.3"},
        {"birkhoff-checkpoint", "birkhoff-dataset", "format birkhoff-checkpoint"},
        {"[1,8192,1808]", "[1,8192,1807]", "model/a"}, /* too short */
        {"[1,8192,1808]", "[1,8191,1808]", "model/a"}, /* overlap */
        {"[1,8192,1808]", "[2,8192,1808]", "model/a"}, /* no such shard */
        {"[1,8192,1808]", "[4294967297,8192,1808]", "model/a"},
        {"[0,0,8192]", "[0,0,9223372036854775807]", "model/a"},
        {"[100,100]", "[4294967296,4294967296]", "model/a"}, /* a product of 0 in 64 bits */
        {"[100,100]", "[100,\"100\"]", "model/a"},
        {"\"size\":1000", "\"size\":-1", "size"},
        {"\"size\":1000", "\"size\":20", "cannot hold"},
        {"\"size\":1000", "\"size\":\"1000\"", "cannot hold"},
        {"\"step\":500", "\"step\":-1", "no sense"},
        {"\"lanes\":8", "\"lanes\":7", "no sense"},
        {"\"world_size\":4", "\"world_size\":0", "no sense"},
        {"[1,8192,1808]", "[-1,8192,1808]", "model/a"},
        {"[0,0,8192],", "", "model/a"},
        {"[100,100]", "[100,101]", "model/a"},
        {"[100,100]", "[100,-100]", "model/a"},
        {"[100,100]", "[1,1,1,1,1]", "shape"},
        {"\"dtype\":\"f32\"", "\"dtype\":\"f8\"", "dtype"},
        {"\"name\":\"model/a\"", "\"name\":\"model/z\"", "model/b"}, /* not in order of name */
        {"\"name\":\"model/a\"", "\"name\":7", "name"},
        {"shard-00001.h5", "../../x", "shard"},
        {"\"lanes\":8", "\"lanes\":8,\"lanes\":9", "damaged"}, /* a key twice */
        {"\"shards\":[", "\"bits\":[", "no shards"},
        {"manifest_sha256", "manifest_sha25x", "manifest_sha256"},
    };
    for (size_t i = 0; i < sizeof edit / sizeof *edit; i++) {
        bk_manifest r = {0};
        if (bk_manifest_parse(arena, "m.json", edited(edit[i][0], edit[i][1]), &r) != BK_INPUT)
            fail_msg("%s was read", edit[i][1]);
        if (!strstr(bk_status_text(), edit[i][2]) || !strstr(bk_status_text(), "m.json"))
            fail_msg("no '%s' in: %s", edit[i][2], bk_status_text());
    }
}

/* Texts reach the terminal by way of inspect. */
static void texts_are_plain(void **state)
{
    (void)state;
    bk_manifest r = {0};
    const char *text =
        edited("\"birkhoff_version\":\"0.1.0\"", "\"birkhoff_version\":\"\\u001b[2J\\n\"");
    assert_int_equal(bk_manifest_parse(arena, "x", text, &r), BK_OK);
    assert_string_equal(r.version, "?[2J?");
}

/* Every single changed character is found by the digest or the parser. */
static void every_character_counts(void **state)
{
    (void)state;
    bk_manifest m = sample();
    char *text = bk_arena_strdup(arena, bk_manifest_text(arena, &m));
    size_t length = strlen(text);
    for (size_t i = 0; i < length; i++) {
        bk_manifest r = {0};
        text[i] ^= 1;
        if (bk_manifest_parse(arena, "x", text, &r) == BK_OK)
            fail_msg("a change at byte %zu is not seen", i);
        text[i] ^= 1;
    }
}

static void texts_that_are_none(void **state)
{
    (void)state;
    static const char elf[] = {0x7f, 'E', 'L', 'F', 0};
    static const char *const text[] = {
        "", "\n", "{}", "[]", "null", "{\"manifest_sha256\":\"00\"}", elf, "{\"a\":"};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        bk_manifest r = {0};
        assert_int_equal(bk_manifest_parse(arena, "x", text[i], &r), BK_INPUT);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_and_back),       cmocka_unit_test(the_digest_is_over_64_zeros),
        cmocka_unit_test(what_is_fine),        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(texts_are_plain),     cmocka_unit_test(every_character_counts),
        cmocka_unit_test(texts_that_are_none),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_arena_free(arena);
    return failed;
}
