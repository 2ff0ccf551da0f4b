#include "io/corrupt.h"

#include "core/rng.h"

#include <math.h>
#include <string.h>

/* What a draw is of; BK_USE_DATA belongs to the makers of samples. */
enum { NOISE, SWAP };

static bk_philox_key key_of(uint64_t seed, int what)
{
    return bk_philox_for(seed, what, BK_USE_CORRUPT);
}

static unsigned char grey(double value)
{
    return (unsigned char)(value < 0.0 ? 0.0 : value > 255.0 ? 255.0 : nearbyint(value));
}

/* ---- blur ---- */

static int64_t inside(int64_t i, int64_t count)
{
    return i < 0 ? 0 : i >= count ? count - 1 : i;
}

/* weight[0..radius] of the distances, all 2 radius + 1 of which sum to 1. */
static void window_of(double sd, int64_t radius, double *weight)
{
    double sum = 0.0;
    for (int64_t d = 0; d <= radius; d++) {
        double steps = (double)d / sd;
        weight[d] = exp(-0.5 * steps * steps);
        sum += d == 0 ? weight[d] : 2.0 * weight[d];
    }
    for (int64_t d = 0; d <= radius; d++)
        weight[d] /= sum;
}

/* to[count] = from[count], both `stride` apart, through the window. */
static void blur_line(int64_t count, int64_t stride, int64_t radius, const double *weight,
                      const double *from, double *to)
{
    for (int64_t i = 0; i < count; i++) {
        double sum = weight[0] * from[i * stride];
        for (int64_t d = 1; d <= radius; d++)
            sum += weight[d] *
                   (from[inside(i - d, count) * stride] + from[inside(i + d, count) * stride]);
        to[i * stride] = sum;
    }
}

static void blur_image(int64_t rows, int64_t cols, int64_t radius, const double *weight,
                       double *image, double *room)
{
    for (int64_t i = 0; i < rows; i++)
        blur_line(cols, 1, radius, weight, image + i * cols, room + i * cols);
    for (int64_t j = 0; j < cols; j++)
        blur_line(rows, cols, radius, weight, room + j, image + j);
}

void bk_images_blur(double sd, bk_images *x)
{
    if (sd == 0.0)
        return;
    int64_t size = x->rows * x->cols, radius = (int64_t)ceil(3.0 * sd);
    bk_arena *arena = bk_arena_new("blur");
    double *weight = BK_NEW(arena, double, radius + 1), *image = BK_NEW(arena, double, size),
           *room = BK_NEW(arena, double, size);
    window_of(sd, radius, weight);
    for (int64_t i = 0; i < x->count; i++) {
        unsigned char *pixel = x->pixel + i * size;
        for (int64_t p = 0; p < size; p++)
            image[p] = pixel[p];
        blur_image(x->rows, x->cols, radius, weight, image, room);
        for (int64_t p = 0; p < size; p++)
            pixel[p] = grey(image[p]);
    }
    bk_arena_free(arena);
}

/* ---- noise ---- */

void bk_images_noise(uint64_t seed, double sd, int64_t first, bk_images *x)
{
    enum { DRAWS = 4 }; /* of a Philox call */
    int64_t size = x->rows * x->cols;
    for (int64_t i = 0; i < x->count && sd > 0.0; i++)
        for (int64_t p = 0; p < size; p += DRAWS) {
            uint64_t word[DRAWS];
            double normal[DRAWS];
            bk_philox(key_of(seed, NOISE), 0, (uint64_t)(first + i), (uint64_t)(p / DRAWS), word);
            bk_normal_pair(word[0], word[1], normal);
            bk_normal_pair(word[2], word[3], normal + 2);
            for (int64_t d = 0; d < DRAWS && p + d < size; d++) {
                unsigned char *pixel = &x->pixel[i * size + p + d];
                *pixel = grey(*pixel + 255.0 * sd * normal[d]);
            }
        }
}

/* ---- swaps ---- */

void bk_samples_swap(uint64_t seed, double rate, bk_samples *s)
{
    for (int64_t i = 0; i < s->count && rate > 0.0; i++)
        for (int64_t t = s->offsets[i]; t + 1 < s->offsets[i + 1]; t++) {
            uint64_t word[4];
            bk_philox(key_of(seed, SWAP), 0, (uint64_t)i, (uint64_t)(t - s->offsets[i]), word);
            if (bk_unit(word[0]) >= rate)
                continue;
            int32_t moved = s->tokens[t];
            s->tokens[t] = s->tokens[t + 1];
            s->tokens[t + 1] = moved;
            t++;
        }
}
