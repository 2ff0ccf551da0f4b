/* Lifetimes: alignment, marks, reset, peak, readable tails, and redzones under ASan. */
#include "tests/support/check.h"
#include "tests/support/child.h"

#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ASAN 1
#endif
#endif
#ifdef ASAN
#include <sanitizer/asan_interface.h>
#endif

static const size_t MiB = (size_t)1 << 20;

static int make(void **state)
{
    *state = bk_arena_new("test");
    return 0;
}

static int unmake(void **state)
{
    bk_arena_free(*state);
    return 0;
}

static void pieces_are_aligned_and_apart(void **state)
{
    enum { PIECES = 200 };
    unsigned char *piece[PIECES];
    for (int i = 0; i < PIECES; i++) {
        piece[i] = bk_arena_alloc(*state, (size_t)i);
        assert_non_null(piece[i]);
        assert_int_equal((uintptr_t)piece[i] % 64, 0);
        memset(piece[i], i, (size_t)(i > 0 ? (i + 63) / 64 * 64 : 64)); /* the tail too */
    }
    for (int i = 0; i < PIECES; i++)
        for (int j = 0; j < (i > 0 ? (i + 63) / 64 * 64 : 64); j++)
            assert_int_equal(piece[i][j], i);
}

static void zeroed_pieces_are_zero_to_the_tail(void **state)
{
    bk_arena_mark mark = bk_arena_get_mark(*state);
    memset(bk_arena_alloc(*state, 1000), 0xff, 1000);
    bk_arena_release(*state, mark);
    const char *x = bk_arena_zalloc(*state, 65);
    for (int i = 0; i < 128; i++)
        assert_int_equal(x[i], 0);
}

static void texts_are_copied(void **state)
{
    char word[] = "word";
    char *copy = bk_arena_strdup(*state, word);
    word[0] = 'W';
    assert_string_equal(copy, "word");
    assert_string_equal(bk_arena_printf(*state, "%s-%04d", copy, 7), "word-0007");
    assert_string_equal(bk_arena_printf(*state, "%s", ""), "");
}

static void a_mark_gives_back_what_came_after(void **state)
{
    bk_arena *arena = *state;
    bk_arena_mark outer = bk_arena_get_mark(arena);
    void *first = bk_arena_alloc(arena, 100);
    size_t used = bk_arena_used(arena);
    bk_arena_mark inner = bk_arena_get_mark(arena);
    void *second = bk_arena_alloc(arena, 10);
    bk_arena_alloc(arena, 70 * MiB);
    bk_arena_alloc(arena, 40 * MiB);
    bk_arena_alloc(arena, 40 * MiB);
    assert_true(bk_arena_used(arena) >= used + 150 * MiB);
    assert_int_equal(bk_arena_peak(arena), bk_arena_used(arena));
    bk_arena_release(arena, inner);
    assert_int_equal(bk_arena_used(arena), used);
    assert_ptr_equal(bk_arena_alloc(arena, 10), second);
    bk_arena_release(arena, outer);
    assert_int_equal(bk_arena_used(arena), 0);
    assert_ptr_equal(bk_arena_alloc(arena, 100), first);
}

static void reset_keeps_the_blocks(void **state)
{
    bk_arena *arena = *state;
    void *small[2], *large[2], *next[2];
    for (int i = 0; i < 2; i++) {
        bk_arena_reset(arena);
        assert_int_equal(bk_arena_used(arena), 0);
        small[i] = bk_arena_alloc(arena, 64);
        large[i] = bk_arena_alloc(arena, 100 * MiB);
        next[i] = bk_arena_alloc(arena, 50 * MiB);
    }
    assert_ptr_equal(small[0], small[1]);
    assert_ptr_equal(large[0], large[1]);
    assert_ptr_equal(next[0], next[1]);
}

/* A kept block that is too small for a request is passed over, and still there for the next. */
static void a_small_block_waits_behind_a_large_request(void **state)
{
    bk_arena *arena = *state;
    char *a = bk_arena_alloc(arena, 60 * MiB), *b = bk_arena_alloc(arena, 60 * MiB);
    bk_arena_reset(arena);
    char *large = bk_arena_alloc(arena, 90 * MiB);
    char *c = bk_arena_alloc(arena, 60 * MiB), *d = bk_arena_alloc(arena, 60 * MiB);
    assert_true(large != a && large != b && c != d);
    assert_true((c == a || c == b) && (d == a || d == b));
    large[0] = c[0] = d[0] = 1;
    assert_true(bk_arena_used(arena) >= 210 * MiB && bk_arena_used(arena) < 211 * MiB);
}

static void the_peak_stays(void **state)
{
    bk_arena *arena = *state;
    assert_int_equal(bk_arena_peak(arena), 0);
    bk_arena_alloc(arena, 3000);
    size_t most = bk_arena_used(arena);
    assert_true(most >= 3000 && most < 4000);
    bk_arena_reset(arena);
    bk_arena_alloc(arena, 10);
    assert_int_equal(bk_arena_peak(arena), most);
    assert_true(bk_arena_used(arena) < most);
}

static void ask_for_too_much(void *arena)
{
    bk_arena_alloc(arena, (size_t)-64);
}

static void a_negative_count_is_a_fault(void **state)
{
    bk_test_dies(ask_for_too_much, *state, "arena test");
}

static void a_piece_given_back_serves_again(void **state)
{
    bk_arena *arena = *state;
    char *x = bk_arena_alloc(arena, 64 << 10), *y = bk_arena_alloc(arena, 32 << 10),
         *z = bk_arena_alloc(arena, 8 << 10);
    size_t used = bk_arena_used(arena), peak = bk_arena_peak(arena);
    bk_arena_give(arena, x, 64 << 10);
    bk_arena_give(arena, z, 8 << 10);
    assert_true(bk_arena_used(arena) < used - (71 << 10));
    assert_ptr_equal(bk_arena_alloc(arena, 8 << 10), z); /* the smallest that holds it */
    assert_ptr_equal(bk_arena_alloc(arena, 16 << 10), x);
    bk_arena_give(arena, x, 16 << 10);
    bk_arena_give(arena, y, 32 << 10);
    assert_ptr_equal(bk_arena_alloc(arena, 96 << 10), x); /* neighbours are one piece again */
    assert_int_equal(bk_arena_peak(arena), peak);
    bk_arena_give(arena, x, 96 << 10);
    bk_arena_reset(arena);
    assert_int_equal(bk_arena_used(arena), 0);
    char *again = bk_arena_alloc(arena, 64 << 10);
    assert_true(bk_arena_alloc(arena, 64 << 10) != again); /* the reset forgot the pieces */
}

static void many_pieces_come_and_go(void **state)
{
    enum { PIECES = 3000, BYTES = 4096 };
    static unsigned char *piece[PIECES];
    bk_arena *arena = *state;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < PIECES; i++)
            memset(piece[i] = bk_arena_alloc(arena, BYTES), i % 251, BYTES);
        for (int i = 0; i < PIECES; i++)
            assert_true(piece[i][0] == i % 251 && piece[i][BYTES - 1] == i % 251);
        for (int i = 0; i < PIECES; i += 2)
            bk_arena_give(arena, piece[i], BYTES);
        for (int i = 1; i < PIECES; i += 2)
            bk_arena_give(arena, piece[i], BYTES);
    }
}

static void free_takes_null(void **state)
{
    (void)state;
    bk_arena_free(NULL);
}

#ifdef ASAN

static void foreign_bytes_are_poisoned(void **state)
{
    bk_arena *arena = *state;
    char *x = bk_arena_alloc(arena, 100), *y;
    assert_null(__asan_region_is_poisoned(x, 128)); /* 100 rounded up to a multiple of 64 */
    assert_true(__asan_address_is_poisoned(x + 128));
    bk_arena_mark mark = bk_arena_get_mark(arena);
    y = bk_arena_alloc(arena, 64);
    assert_true(y > x + 128); /* a redzone lies between */
    assert_true(__asan_address_is_poisoned(y - 1));
    bk_arena_release(arena, mark);
    assert_true(__asan_address_is_poisoned(y));
    assert_null(__asan_region_is_poisoned(x, 128));
    assert_ptr_equal(bk_arena_alloc(arena, 64), y);
    assert_null(__asan_region_is_poisoned(y, 64));
    bk_arena_reset(arena);
    assert_true(__asan_address_is_poisoned(x) && __asan_address_is_poisoned(y));
}

static void blocks_behind_a_mark_are_poisoned(void **state)
{
    bk_arena *arena = *state;
    bk_arena_alloc(arena, 1);
    bk_arena_mark mark = bk_arena_get_mark(arena);
    char *other = bk_arena_alloc(arena, 64 * MiB);
    bk_arena_release(arena, mark);
    assert_true(__asan_address_is_poisoned(other) && __asan_address_is_poisoned(other + 50 * MiB));
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pieces_are_aligned_and_apart, make, unmake),
        cmocka_unit_test_setup_teardown(zeroed_pieces_are_zero_to_the_tail, make, unmake),
        cmocka_unit_test_setup_teardown(texts_are_copied, make, unmake),
        cmocka_unit_test_setup_teardown(a_mark_gives_back_what_came_after, make, unmake),
        cmocka_unit_test_setup_teardown(reset_keeps_the_blocks, make, unmake),
        cmocka_unit_test_setup_teardown(a_small_block_waits_behind_a_large_request, make, unmake),
        cmocka_unit_test_setup_teardown(the_peak_stays, make, unmake),
        cmocka_unit_test_setup_teardown(a_piece_given_back_serves_again, make, unmake),
        cmocka_unit_test_setup_teardown(many_pieces_come_and_go, make, unmake),
        cmocka_unit_test_setup_teardown(a_negative_count_is_a_fault, make, unmake),
        cmocka_unit_test(free_takes_null),
#ifdef ASAN
        cmocka_unit_test_setup_teardown(foreign_bytes_are_poisoned, make, unmake),
        cmocka_unit_test_setup_teardown(blocks_behind_a_mark_are_poisoned, make, unmake),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
