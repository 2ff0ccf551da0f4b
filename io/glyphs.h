/* io/glyphs.h - synthetic 28 x 28 images of ten classes, drawn with strokes: no files are needed.
 */
#ifndef BK_IO_GLYPHS_H
#define BK_IO_GLYPHS_H

#include "io/idx.h"

/* Digits 0..9; outlines of ten clothes in the order of FashionMNIST's classes. */
typedef enum bk_glyph_family { BK_GLYPH_DIGITS, BK_GLYPH_CLOTHES } bk_glyph_family;

enum { BK_GLYPH_SIDE = 28, BK_GLYPH_CLASSES = 10 };

/* Not collective.  Draws images first .. first+count-1 of a family to `arena`; image i is of class
 * i mod 10.  Its strokes go through a random affine map (turned by at most 15 degrees, scaled by
 * 0.8 to 1.1 along each axis, sheared by at most 0.2, shifted by at most 2 pixels), have a random
 * width and get normal noise of 20 grey levels on all pixels, a function of (seed, family, i)
 * alone.
 */
void bk_glyphs_draw(bk_arena *arena, bk_glyph_family family, int64_t seed, int64_t first,
                    int64_t count, bk_images *out);

#endif
