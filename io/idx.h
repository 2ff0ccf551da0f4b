/* io/idx.h - labelled images in memory, as MNIST's IDX files (plain or gzip) hold them. */
#ifndef BK_IO_IDX_H
#define BK_IO_IDX_H

#include "core/arena.h"

typedef struct bk_images {
    int64_t count, rows, cols;
    unsigned char *pixel; /* [count,rows,cols] */
    unsigned char *label; /* [count] */
} bk_images;

/* Not collective.  Reads a file of images and one of labels to `arena`: the first `limit` records
 * (0: all, and then nothing may follow).  Labels lie below `classes` (0: any).  BK_INPUT with file,
 * byte and reason when a file is missing, damaged, of another kind, or the two do not fit. */
BK_CHECKED bk_status bk_images_read(bk_arena *arena, const char *images, const char *labels,
                                    int64_t limit, int64_t classes, bk_images *out);

#endif
