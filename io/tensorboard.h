/* io/tensorboard.h - scalars as TensorBoard events: the few records of the format that scalars
 * need, written by hand (TFRecord framing, protocol buffers of tensorflow.Event). */
#ifndef BK_IO_TENSORBOARD_H
#define BK_IO_TENSORBOARD_H

#include "core/arena.h"

typedef struct bk_tensorboard bk_tensorboard;

/* A new events file in `directory`, which is made.  BK_USAGE when it cannot be written. */
BK_CHECKED bk_status bk_tensorboard_open(bk_arena *arena, const char *directory,
                                         bk_tensorboard **out);
/* NULL does nothing. */
void bk_tensorboard_scalar(bk_tensorboard *b, const char *tag, int64_t step, double value);
void bk_tensorboard_flush(bk_tensorboard *b);
BK_CHECKED bk_status bk_tensorboard_close(bk_tensorboard *b);

#endif
