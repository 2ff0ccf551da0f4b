#include "io/glyphs.h"

#include "core/rng.h"

#include <math.h>

enum { SIDE = BK_GLYPH_SIDE, SEGMENTS = 32 };

/* Strokes on a grid of 10 x 10, a point as two digits "xy", y downwards; a comma lifts the pen. */
static const char *const strokes[][BK_GLYPH_CLASSES] = {
    [BK_GLYPH_DIGITS] = {"40 50 72 77 59 49 27 22 40", "32 50 59", "22 40 50 72 73 29 79",
                         "21 40 50 72 73 54 44,54 75 77 59 39 28", "60 26 76,63 69",
                         "70 20 24 54 76 77 59 29", "70 40 23 27 49 59 77 75 54 25", "20 70 39",
                         "40 50 72 73 54 44 23 22 40,44 26 27 49 59 77 76 54",
                         "74 45 34 22 40 50 72 74 69 39"},
    [BK_GLYPH_CLOTHES] = {"31 61 83 74 64 69 39 34 24 13 31", "30 60 69 59 53 43 39 29 30",
                          "31 61 88 78 64 69 39 34 28 18 31", "30 44 60 64 89 19 34 30",
                          "31 61 88 78 64 69 39 34 28 18 31,51 59", "17 87,17 35 54 63,54 85 87",
                          "31 61 83 74 64 69 39 34 24 13 31,31 45 61,45 49", "18 88 86 65 43 14 18",
                          "14 84 88 18 14,34 32 51 62 64", "30 50 55 86 88 38 30"},
};

typedef struct segment {
    double x0, y0, x1, y1;
} segment;

typedef struct drawing {
    segment segment[SEGMENTS];
    int segments;
    double width; /* half of it, in pixels */
} drawing;

/* ---- strokes under an affine map ---- */

/* Pixel = centre + m (point - (4.5, 4.5)). */
typedef struct affine {
    double m[2][2], centre[2];
} affine;

static double between(uint64_t word, double lo, double hi)
{
    return lo + (hi - lo) * bk_unit(word);
}

/* Turn * shear * scale; a grid step is two pixels. */
static affine random_affine(const uint64_t w[8])
{
    double turn = between(w[0], -0.26, 0.26), shear = between(w[1], -0.2, 0.2);
    double across = 2.0 * between(w[2], 0.8, 1.1), down = 2.0 * between(w[3], 0.8, 1.1);
    double c = cos(turn), s = sin(turn), middle = 0.5 * (SIDE - 1);
    return (affine){
        .m = {{across * c, down * (shear * c - s)}, {across * s, down * (shear * s + c)}},
        .centre = {middle + between(w[4], -2.0, 2.0), middle + between(w[5], -2.0, 2.0)}};
}

static void place(const affine *a, const char *point, double *x, double *y)
{
    double u = point[0] - '0' - 4.5, v = point[1] - '0' - 4.5;
    *x = a->centre[0] + a->m[0][0] * u + a->m[0][1] * v;
    *y = a->centre[1] + a->m[1][0] * u + a->m[1][1] * v;
}

/* Each point that a blank leads to ends a segment. */
static void trace(const char *text, const affine *a, drawing *d)
{
    for (const char *at = text + 3;; at += 3) {
        if (at[-1] == ' ') {
            segment *s = &d->segment[d->segments++];
            place(a, at - 3, &s->x0, &s->y0);
            place(a, at, &s->x1, &s->y1);
        }
        if (at[2] == '\0')
            return;
    }
}

/* ---- pixels ---- */

/* Squared. */
static double distance_to(const segment *s, double x, double y)
{
    double dx = s->x1 - s->x0, dy = s->y1 - s->y0, u = x - s->x0, v = y - s->y0;
    double t = (u * dx + v * dy) / (dx * dx + dy * dy);
    t = t < 0.0 ? 0.0 : t > 1.0 ? 1.0 : t;
    return (u - t * dx) * (u - t * dx) + (v - t * dy) * (v - t * dy);
}

/* 1 on a stroke, 0 off it, falling over one pixel. */
static double ink(const drawing *d, double x, double y)
{
    double nearest = SIDE * SIDE;
    for (int i = 0; i < d->segments; i++) {
        double distance = distance_to(&d->segment[i], x, y);
        nearest = distance < nearest ? distance : nearest;
    }
    return fmin(1.0, fmax(0.0, d->width + 0.5 - sqrt(nearest)));
}

/* Four pixels share a draw. */
static void fill(const drawing *d, bk_philox_key key, int64_t image, unsigned char *pixel)
{
    for (int i = 0; i < SIDE * SIDE; i += 4) {
        uint64_t w[4];
        double noise[4];
        bk_philox(key, 0, (uint64_t)image, 2 + (uint64_t)i / 4, w);
        bk_normal_pair(w[0], w[1], noise);
        bk_normal_pair(w[2], w[3], noise + 2);
        for (int k = 0; k < 4; k++) {
            double grey = 255.0 * ink(d, (i + k) % SIDE, (i + k) / SIDE) + 20.0 * noise[k];
            pixel[i + k] = (unsigned char)(fmin(255.0, fmax(0.0, grey)) + 0.5);
        }
    }
}

static void draw(bk_glyph_family family, int64_t seed, int64_t image, unsigned char *pixel)
{
    bk_philox_key key = bk_philox_for((uint64_t)seed, family, BK_USE_DATA);
    uint64_t w[8];
    bk_philox(key, 0, (uint64_t)image, 0, w);
    bk_philox(key, 0, (uint64_t)image, 1, w + 4);
    affine a = random_affine(w);
    drawing d = {.width = between(w[6], 0.7, 1.4)};
    trace(strokes[family][image % BK_GLYPH_CLASSES], &a, &d);
    fill(&d, key, image, pixel);
}

void bk_glyphs_draw(bk_arena *arena, bk_glyph_family family, int64_t seed, int64_t first,
                    int64_t count, bk_images *out)
{
    *out = (bk_images){.count = count,
                       .rows = SIDE,
                       .cols = SIDE,
                       .pixel = BK_NEW(arena, unsigned char, count *SIDE *SIDE),
                       .label = BK_NEW(arena, unsigned char, count)};
    for (int64_t i = 0; i < count; i++) {
        draw(family, seed, first + i, out->pixel + i * SIDE * SIDE);
        out->label[i] = (unsigned char)((first + i) % BK_GLYPH_CLASSES);
    }
}
