/* Damage of a given strength: means and spreads are those asked for, and every draw is a function
 * of what it is for. */
#include "io/corrupt.h"
#include "tests/support/check.h"

#include <math.h>
#include <string.h>

enum { SIDE = 16, SIZE = SIDE * SIDE };

static bk_arena *arena;

/* `count` images of one grey. */
static bk_images flat(int64_t count, unsigned char grey)
{
    bk_images x = {.count = count, .rows = SIDE, .cols = SIDE};
    x.pixel = BK_NEW(arena, unsigned char, count *SIZE);
    memset(x.pixel, grey, (size_t)(count * SIZE));
    return x;
}

static double sum_of(const bk_images *x)
{
    double sum = 0.0;
    for (int64_t i = 0; i < x->count * SIZE; i++)
        sum += x->pixel[i];
    return sum;
}

static void a_blur_spreads_a_point(void **state)
{
    (void)state;
    bk_images x = flat(2, 0);
    x.pixel[SIZE + 8 * SIDE + 8] = 255; /* in the second image */
    bk_images_blur(1.0, &x);
    const unsigned char *at = x.pixel + SIZE + 8 * SIDE + 8;
    /* 255 w0^2, 255 w0 w1, 255 w0 w2 for weights of sd 1 within 3 pixels */
    double w0 = 1.0 / (1.0 + 2.0 * (exp(-0.5) + exp(-2.0) + exp(-4.5)));
    assert_int_equal(at[0], (int)nearbyint(255.0 * w0 * w0));
    assert_int_equal(at[1], (int)nearbyint(255.0 * w0 * w0 * exp(-0.5)));
    assert_int_equal(at[SIDE], at[1]);
    assert_int_equal(at[-2], (int)nearbyint(255.0 * w0 * w0 * exp(-2.0)));
    assert_int_equal(at[4], 0);
    bk_images first = {.count = 1, .rows = SIDE, .cols = SIDE, .pixel = x.pixel};
    assert_true(sum_of(&first) == 0.0);
}

static void a_blur_leaves_what_is_flat(void **state)
{
    (void)state;
    bk_images x = flat(1, 77), y = flat(1, 77);
    bk_images_blur(2.5, &x);
    assert_memory_equal(x.pixel, y.pixel, SIZE);
}

static void a_blur_narrower_than_a_pixel_is_none(void **state)
{
    (void)state;
    bk_images x = flat(1, 20), y = flat(1, 20);
    x.pixel[8 * SIDE + 8] = y.pixel[8 * SIDE + 8] = 200;
    bk_images_blur(1e-200, &x); /* its square is no number above 0 */
    assert_memory_equal(x.pixel, y.pixel, SIZE);
}

static void noise_has_the_spread_asked_for(void **state)
{
    (void)state;
    enum { IMAGES = 40 };
    bk_images x = flat(IMAGES, 128);
    bk_images_noise(1, 0.1, 0, &x);
    double mean = sum_of(&x) / (IMAGES * SIZE), square = 0.0;
    for (int64_t i = 0; i < IMAGES * SIZE; i++)
        square += (x.pixel[i] - mean) * (x.pixel[i] - mean);
    assert_true(fabs(mean - 128.0) < 1.0);
    assert_true(fabs(sqrt(square / (IMAGES * SIZE)) - 25.5) < 1.0);
}

static void noise_is_a_function_of_seed_and_sample(void **state)
{
    (void)state;
    bk_images all = flat(3, 128), last = flat(1, 128), other = flat(1, 128);
    bk_images_noise(1, 0.1, 0, &all);
    bk_images_noise(1, 0.1, 2, &last);
    bk_images_noise(2, 0.1, 2, &other);
    assert_memory_equal(all.pixel + 2 * SIZE, last.pixel, SIZE);
    assert_memory_not_equal(all.pixel, last.pixel, SIZE);
    assert_memory_not_equal(other.pixel, last.pixel, SIZE);
}

/* Two samples of 0, 1, 2, ... */
static bk_samples counting(int32_t first, int32_t second)
{
    bk_samples s = {.arena = arena};
    int32_t token[4096];
    for (int32_t i = 0; i < 4096; i++)
        token[i] = i;
    bk_samples_add(&s, token, first, -1);
    bk_samples_add(&s, token, second, -1);
    return s;
}

static void swaps_move_a_token_once(void **state)
{
    (void)state;
    bk_samples s = counting(4000, 5);
    bk_samples_swap(3, 0.25, &s);
    int64_t moved = 0;
    for (int32_t i = 0; i < 4000; i++) {
        int32_t by = s.tokens[i] - i;
        assert_true(by >= -1 && by <= 1);
        moved += by != 0;
    }
    /* pairs are begun at a share of rate / (1 + rate) of the places: 2 x 800 tokens of 4000 move */
    assert_in_range(moved, 1500, 1700);
}

static void swaps_stay_in_their_sample(void **state)
{
    (void)state;
    bk_samples s = counting(3, 2);
    bk_samples_swap(3, 1.0, &s);
    const int32_t expected[] = {1, 0, 2, 1, 0};
    assert_memory_equal(s.tokens, expected, sizeof expected);
    bk_samples_swap(3, 0.0, &s);
    assert_memory_equal(s.tokens, expected, sizeof expected);
}

static int set_up(void **state)
{
    (void)state;
    arena = bk_arena_new("test");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    bk_arena_free(arena);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_blur_spreads_a_point),
        cmocka_unit_test(a_blur_leaves_what_is_flat),
        cmocka_unit_test(a_blur_narrower_than_a_pixel_is_none),
        cmocka_unit_test(noise_has_the_spread_asked_for),
        cmocka_unit_test(noise_is_a_function_of_seed_and_sample),
        cmocka_unit_test(swaps_move_a_token_once),
        cmocka_unit_test(swaps_stay_in_their_sample),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
