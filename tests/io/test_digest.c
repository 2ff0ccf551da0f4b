/* SHA-256 and XXH64 against known vectors, leaves against their definition. */
#include "io/digest.h"
#include "tests/support/check.h"
#include "tests/support/files.h"

#include <stdlib.h>
#include <string.h>

static void known_vectors(void **state)
{
    (void)state;
    /* FIPS 180-4 */
    static const char *const vector[][2] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"}};
    for (int i = 0; i < 3; i++) {
        char text[BK_SHA256_TEXT];
        bk_sha256_text(vector[i][0], strlen(vector[i][0]), text);
        assert_string_equal(text, vector[i][1]);
    }
}

static void a_digest_begins_anew(void **state)
{
    (void)state;
    char text[BK_SHA256_TEXT];
    bk_sha256 *s = bk_sha256_new();
    for (int i = 0; i < 1000000; i++)
        bk_sha256_add(s, "a", 1);
    bk_sha256_finish_text(s, text);
    assert_string_equal(text, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    bk_sha256_add(s, "a", 1);
    bk_sha256_add(s, "bc", 2);
    bk_sha256_finish_text(s, text);
    assert_string_equal(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    bk_sha256_free(s);
    bk_sha256_free(NULL);
}

static void files_in_one_pass(void **state)
{
    (void)state;
    bk_file_digest d;
    const char *path = bk_test_path("file");
    bk_test_write_text(path, "");
    assert_int_equal(bk_digest_file(path, &d), BK_OK);
    assert_int_equal(d.size, 0);
    assert_string_equal(d.xxh64, "ef46db3751d8e999"); /* of the xxHash documentation */
    bk_test_write_text(path, "abc");
    assert_int_equal(bk_digest_file(path, &d), BK_OK);
    assert_int_equal(d.size, 3);
    assert_string_equal(d.sha256,
                        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_string_equal(d.xxh64, "44bc2cf5ad770999");
    assert_int_equal(bk_digest_file_fast(path, &d), BK_OK);
    assert_int_equal(d.size, 3);
    assert_string_equal(d.sha256, "");
    assert_string_equal(d.xxh64, "44bc2cf5ad770999");
    size_t bytes = (3 << 20) + 17; /* several buffers */
    char *data = calloc(bytes, 1), text[BK_SHA256_TEXT];
    data[bytes - 1] = 1;
    bk_test_write(path, data, bytes);
    assert_int_equal(bk_digest_file(path, &d), BK_OK);
    bk_sha256_text(data, bytes, text);
    assert_string_equal(d.sha256, text);
    assert_int_equal(d.size, bytes);
    free(data);
    assert_int_equal(bk_digest_file(bk_test_path("nowhere"), &d), BK_INPUT);
    assert_non_null(strstr(bk_status_text(), "nowhere"));
    *strrchr((char *)(uintptr_t)path, '/') = '\0'; /* the directory */
    assert_int_equal(bk_digest_file(path, &d), BK_INPUT);
}

static void leaves_of_4096_elements(void **state)
{
    (void)state;
    enum { COUNT = 2 * BK_LEAF + 100 };
    static double data[COUNT];
    uint8_t leaves[3 * BK_SHA256], part[2 * BK_SHA256];
    char found[BK_SHA256_TEXT], wanted[BK_SHA256_TEXT];
    for (int i = 0; i < COUNT; i++)
        data[i] = i * 0.5;
    assert_int_equal(bk_leaves(0), 0);
    assert_int_equal(bk_leaves(1), 1);
    assert_int_equal(bk_leaves(BK_LEAF), 1);
    assert_int_equal(bk_leaves(COUNT), 3);
    bk_digest_leaves(data, COUNT, sizeof *data, leaves);
    for (int i = 0; i < 3; i++) {
        bk_hex(leaves + i * BK_SHA256, BK_SHA256, found);
        bk_sha256_text(data + i * BK_LEAF, (size_t)(i < 2 ? BK_LEAF : 100) * sizeof *data, wanted);
        assert_string_equal(found, wanted);
    }
    /* a piece that begins at a leaf has the leaves of the whole */
    bk_digest_leaves(data + BK_LEAF, COUNT - BK_LEAF, sizeof *data, part);
    assert_memory_equal(part, leaves + BK_SHA256, sizeof part);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_vectors),
        cmocka_unit_test(a_digest_begins_anew),
        cmocka_unit_test(files_in_one_pass),
        cmocka_unit_test(leaves_of_4096_elements),
    };
    return cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
}
