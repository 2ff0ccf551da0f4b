/* Glyphs: functions of (seed, family, number), inside their frame, and told apart by their shape.
 */
#include "io/glyphs.h"
#include "tests/support/check.h"

#include <math.h>
#include <string.h>

enum { PIXELS = BK_GLYPH_SIDE * BK_GLYPH_SIDE, TRAIN = 1500, TEST = 300 };

static bk_arena *arena;

static bk_images glyphs(bk_glyph_family family, int64_t seed, int64_t first, int64_t count)
{
    bk_images x;
    bk_glyphs_draw(arena, family, seed, first, count, &x);
    return x;
}

static void a_function_of_seed_family_and_number(void **state)
{
    (void)state;
    bk_images a = glyphs(BK_GLYPH_DIGITS, 1, 0, 30), b = glyphs(BK_GLYPH_DIGITS, 1, 17, 5);
    assert_true(a.count == 30 && a.rows == BK_GLYPH_SIDE && a.cols == BK_GLYPH_SIDE);
    assert_memory_equal(a.pixel + 17 * PIXELS, b.pixel, 5 * PIXELS);
    for (int i = 0; i < 30; i++)
        assert_int_equal(a.label[i], i % 10);
    bk_images other = glyphs(BK_GLYPH_DIGITS, 2, 17, 5),
              clothes = glyphs(BK_GLYPH_CLOTHES, 1, 17, 5);
    assert_memory_not_equal(b.pixel, other.pixel, 5 * PIXELS);
    assert_memory_not_equal(b.pixel, clothes.pixel, 5 * PIXELS);
    assert_memory_not_equal(a.pixel, a.pixel + 10 * PIXELS, PIXELS); /* one class, two images */
}

/* Ink makes a tenth to a third of the image, and hardly any of it lies at the edge. */
static void strokes_lie_inside(void **state)
{
    (void)state;
    for (int family = 0; family < 2; family++) {
        bk_images x = glyphs((bk_glyph_family)family, 3, 0, 200);
        int64_t ink = 0, edge = 0;
        for (int64_t i = 0; i < 200 * PIXELS; i++) {
            int64_t row = i % PIXELS / BK_GLYPH_SIDE, col = i % BK_GLYPH_SIDE;
            bool inked = x.pixel[i] > 128;
            ink += inked;
            edge += inked && (row == 0 || col == 0 || row == 27 || col == 27);
        }
        assert_in_range(ink, 200 * PIXELS / 20, 200 * PIXELS / 3);
        assert_in_range(edge, 0, ink / 100);
    }
}

/* The nearest of TRAIN images, by squared distance, is of the same class far more often than by
 * chance: what a model can learn is there; and not always, so that there is something to learn. */
static double nearest_neighbour_accuracy(bk_glyph_family family)
{
    bk_images train = glyphs(family, 5, 0, TRAIN), test = glyphs(family, 5, TRAIN, TEST);
    int right = 0;
    for (int i = 0; i < TEST; i++) {
        int64_t best = INT64_MAX, place = 0;
        for (int j = 0; j < TRAIN; j++) {
            int64_t sum = 0;
            for (int k = 0; k < PIXELS; k++) {
                int d = test.pixel[i * PIXELS + k] - train.pixel[j * PIXELS + k];
                sum += d * d;
            }
            place = sum < best ? j : place;
            best = sum < best ? sum : best;
        }
        right += train.label[place] == test.label[i];
    }
    return (double)right / TEST;
}

static void classes_have_shapes(void **state)
{
    (void)state;
    double digits = nearest_neighbour_accuracy(BK_GLYPH_DIGITS),
           clothes = nearest_neighbour_accuracy(BK_GLYPH_CLOTHES);
    if (digits < 0.6 || digits > 0.995 || clothes < 0.6 || clothes > 0.995)
        fail_msg("nearest neighbours: digits %.3f, clothes %.3f", digits, clothes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_function_of_seed_family_and_number),
        cmocka_unit_test(strokes_lie_inside),
        cmocka_unit_test(classes_have_shapes),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_arena_free(arena);
    return failed;
}
