/* io/corrupt.h - damage of a given strength to samples, for data sets that models are evaluated on
 * (`data.eval`).  Every draw is a function of (seed, sample, place) alone.  Not collective. */
#ifndef BK_IO_CORRUPT_H
#define BK_IO_CORRUPT_H

#include "io/data_common.h"
#include "io/idx.h"

/* Gaussian blur: each pixel becomes the sum over a window of 2 ceil(3 sd) + 1 pixels a side with
 * weights exp(-d^2 / (2 sd^2)) over their sum; pixels at the edge stand for those beyond it.  `sd`
 * in pixels, 0: nothing.  In place. */
void bk_images_blur(double sd, bk_images *x);

/* Adds normal noise of standard deviation `sd` (1 = the range from black to white) to every pixel,
 * rounded and cut to 0..255.  Image i of x counts as sample first + i.  0: nothing.  In place. */
void bk_images_noise(uint64_t seed, double sd, int64_t first, bk_images *x);

/* From the front of each sample, exchanges a token with the next one with probability `rate`; a
 * token moves once at most.  0: nothing.  In place. */
void bk_samples_swap(uint64_t seed, double rate, bk_samples *s);

#endif
